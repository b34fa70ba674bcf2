"""Assets, by their content."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from haltere.workers import assets
from haltere.workers.assets import AssetStore
from haltere.workers.errors import FileError, ReductionError


def test_an_asset_is_named_by_its_content_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    store = AssetStore(tmp_path / "assets")
    ref = store.put(b"a mask")
    assert ref == store.put(b"a mask")
    assert assets.is_ref(ref)
    assert store.open(ref).read() == b"a mask"
    (path,) = (tmp_path / "assets").iterdir()
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_a_file_is_stored_as_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "mask.npy").write_bytes(b"bytes")
    store = AssetStore(tmp_path / "assets")
    assert store.read(store.put(tmp_path / "mask.npy")) == b"bytes"


def test_an_asset_that_was_changed_is_refused(tmp_path: Path) -> None:
    store = AssetStore(tmp_path)
    ref = store.put(b"a mask")
    (tmp_path / ref.removeprefix("sha256:")).write_bytes(b"another")
    with pytest.raises(ReductionError, match="was changed after it was stored"):
        store.read(ref)


@pytest.mark.parametrize("ref", ["", "mask.npy", "sha256:../../etc/passwd", "sha256:" + "G" * 64, None])
def test_only_a_reference_can_be_read(tmp_path: Path, ref: str) -> None:
    with pytest.raises(ReductionError, match="no asset reference"):
        AssetStore(tmp_path).read(ref)


def test_an_asset_that_is_not_there_says_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(ReductionError, match="put it into the pool's assets"):
        AssetStore(tmp_path).read("sha256:" + 64 * "0")


def test_what_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "MAX_ASSET", 10)
    with pytest.raises(FileError, match="over the limit of 10"):
        AssetStore(tmp_path).put(b"12345678901")
    (tmp_path / "big").write_bytes(b"12345678901")
    with pytest.raises(FileError, match="over the limit of 10"):
        AssetStore(tmp_path).put(tmp_path / "big")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="an asset can't be stored"):
        AssetStore(tmp_path / "file" / "assets").put(b"a mask")
