"""The embedded catalog: what a session can ask of it, and what it says when it can't start."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from databroker.queries import Key

from haltere.callbacks.catalog import Catalog, raw_writer
from haltere.workers.errors import PoolError, SettingsError


@pytest.fixture(scope="module")
def recorded(shared_catalog: Catalog, measured: Any) -> Iterator[tuple[Any, Any]]:
    """Return a scan, recorded as a RunEngine would, and the catalog of raw runs."""
    scan = measured(md={"sample": {"name": "slag"}, "purpose": "test_catalog"})
    writer = raw_writer(shared_catalog)
    for name, doc in scan.documents():
        writer(name, doc)
    assert writer.flush(30)
    writer.raise_errors()
    yield scan, shared_catalog.raw
    writer.close()


def test_a_run_is_found_by_place_by_uid_and_by_what_it_is(recorded: tuple[Any, Any]) -> None:
    scan, db = recorded
    assert db[-1].start["uid"] == scan.uid
    assert db[scan.uid].start["sample"]["name"] == "slag"
    assert db[scan.uid[:8]].start["uid"] == scan.uid
    assert scan.uid in list(db.search(Key("purpose") == "test_catalog"))
    assert list(db.search(Key("purpose") == "nobody's")) == []


def test_a_frame_is_read_from_the_file_it_lies_in(recorded: tuple[Any, Any]) -> None:
    scan, db = recorded
    images = db[scan.uid]["primary"]["eiger_image"]
    for frame in (0, 15, 16, 23):  # the last of the first file, the first of the second
        np.testing.assert_array_equal(images[frame], scan.images[frame])


def test_raw_positions_come_with_the_stream(recorded: tuple[Any, Any]) -> None:
    scan, db = recorded
    np.testing.assert_array_equal(db[scan.uid]["primary"]["pilc_x"].read(), scan.x)


def test_a_run_exports_its_documents(recorded: tuple[Any, Any]) -> None:
    scan, db = recorded
    names = [name for name, _ in db[scan.uid].documents()]
    assert names[0] == "start"
    assert names[-1] == "stop"
    assert names.count("stream_datum") == 3


def test_the_key_is_its_owners_alone(shared_catalog: Catalog) -> None:
    assert stat.S_IMODE(shared_catalog.api_key_file.stat().st_mode) == 0o600


def test_another_process_connects_with_the_key(shared_catalog: Catalog) -> None:
    other = Catalog.connect(shared_catalog.uri, shared_catalog.api_key_file)
    assert other.processed.uri.endswith("/processed")
    other.close()


def test_a_wrong_key_is_refused_in_one_line(shared_catalog: Catalog, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text("0" * 64)
    with pytest.raises(SettingsError, match=r"refuses: HTTP 401; is the key its own\?"):
        Catalog.connect(shared_catalog.uri, key).raw  # noqa: B018 - the property connects


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret")
    key.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        Catalog.connect("http://127.0.0.1:9/api/v1", key)


def test_nobody_there_is_said_in_one_line(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch(0o600)
    with pytest.raises(PoolError, match="doesn't answer"):
        Catalog.connect("http://127.0.0.1:9/api/v1", key).raw  # noqa: B018


def test_a_port_that_is_taken_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PoolError, match=rf"port {port} can't be used: Address already in use") as caught:
            Catalog.start(tmp_path, port=port)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="can't be made"):
        Catalog.start(tmp_path / "file" / "catalog")
