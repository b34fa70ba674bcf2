"""A run is in the catalog once and whole, whatever happens to the server while it is written."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from haltere.callbacks.catalog import Catalog
from haltere.callbacks.rewriting import Rewriting
from haltere.workers.errors import HaltereError


def write(target: Rewriting, documents: Any) -> None:
    for name, doc in documents:
        target(name, dict(doc))


def test_a_run_that_was_left_half_written_is_written_again(shared_catalog: Catalog, measured: Any) -> None:
    scan = measured()
    documents = list(scan.documents())
    write(Rewriting(lambda: shared_catalog.raw, batch_size=1), documents[:6])  # and then its process dies
    finished: list[str] = []
    write(Rewriting(lambda: shared_catalog.raw, batch_size=20, finished=finished.append), documents)
    run = shared_catalog.raw[scan.uid]
    assert run.stop["exit_status"] == "success"
    np.testing.assert_array_equal(run["primary"]["pilc_y"].read(), scan.y)
    assert finished == [scan.uid]


def test_a_run_that_is_there_whole_is_left_alone(shared_catalog: Catalog, measured: Any) -> None:
    scan = measured()
    documents = list(scan.documents())
    write(Rewriting(lambda: shared_catalog.raw, batch_size=20), documents)
    shared_catalog.raw[scan.uid].update_metadata({"note": "mine"})
    finished: list[str] = []
    write(Rewriting(lambda: shared_catalog.raw, batch_size=20, finished=finished.append), documents)
    assert shared_catalog.raw[scan.uid].metadata["note"] == "mine"
    assert finished == [scan.uid]


def test_a_server_that_dies_within_a_run_loses_nothing(
    shared_catalog: Catalog, measured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiled.client.utils.TILED_RETRY_ATTEMPTS", 1)
    scan = measured()
    documents = list(scan.documents())
    opened: list[Catalog] = []

    def connect() -> Any:
        opened.append(Catalog.connect(shared_catalog.uri, shared_catalog.api_key_file))
        return opened[-1].raw

    target = Rewriting(connect, batch_size=1)
    write(target, documents[:6])
    shared_catalog.kill()  # it is started again, and is back after some seconds
    write(target, documents[6:])
    run = shared_catalog.raw[scan.uid]
    np.testing.assert_array_equal(run["primary"]["pilc_x"].read(), scan.x)
    np.testing.assert_array_equal(run["primary"]["eiger_image"][20], scan.images[20])
    for each in opened:
        each.close()


class Refusing:
    """A catalog whose server refuses everything."""

    def __getitem__(self, key: str) -> Any:
        """Find nothing."""
        raise KeyError(key)

    def include_data_sources(self) -> Any:
        """Refuse."""
        raise ValueError("422: column names differ only in case")


def test_a_run_that_the_server_refuses_is_given_up_and_the_next_goes_on(
    shared_catalog: Catalog, measured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haltere.callbacks.rewriting.FIRST_PAUSE", 0.001)
    catalogs: list[Any] = [Refusing()]
    target = Rewriting(lambda: catalogs[-1], batch_size=20)
    bad, good = measured(), measured()
    (name, doc), *rest = bad.documents()
    with pytest.raises(HaltereError, match=rf"run {bad.uid} isn't in the catalog whole: .*differ only in case"):
        target(name, doc)
    write(target, rest)
    catalogs.append(shared_catalog.raw)
    write(target, good.documents())
    assert shared_catalog.raw[good.uid].stop["exit_status"] == "success"


def test_waiting_for_a_server_that_is_away_can_be_ended(measured: Any) -> None:
    from haltere.workers.errors import PoolError

    asked = threading.Event()

    def away() -> Any:
        asked.set()
        raise PoolError("nobody there")

    target = Rewriting(away, batch_size=1)
    failed: list[Exception] = []

    def start() -> None:
        try:
            write(target, list(measured().documents())[:1])
        except HaltereError as error:
            failed.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    assert asked.wait(10)
    target.closing.set()
    thread.join(10)
    assert "isn't in the catalog whole" in str(failed[0])
