"""Growing files as stream assets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haltere.devices.assets import Look, StreamAssets
from haltere.workers.errors import DetectorError

KEYS = {"d_image": "/entry/data", "d_sum": "/entry/sum"}


class Pretended(StreamAssets):
    """Files that exist in numbers only: ``there`` frames, ``per_file`` in each."""

    there = 0

    def look(self, path: Path) -> Look | None:
        """Pretend to open it."""
        per_file = self._per_file or 10**9
        frames = min(max(self.there - int(path.name) * per_file, 0), per_file)
        return Look(frames, {"d_image": (1, 4), "d_sum": (8,)}) if frames else None


def collect(assets: StreamAssets, index: int | None = None) -> list[tuple[str, Any]]:
    return list(assets.documents(index))


@given(
    per_file=st.integers(0, 7),
    growth=st.lists(st.tuples(st.integers(0, 9), st.none() | st.integers(0, 60)), max_size=12),
)
def test_however_files_grow_each_frame_is_promised_once_and_in_the_right_file(
    per_file: int, growth: list[tuple[int, int | None]]
) -> None:
    assets = Pretended(KEYS, lambda number: Path(str(number)), per_file=per_file)
    resources: dict[str, Any] = {}
    promised: dict[str, list[tuple[int, int, str]]] = {key: [] for key in KEYS}
    for more, index in growth:
        assets.there += more
        documents = collect(assets, index)
        widths = set()
        for name, doc in documents:
            if name == "stream_resource":
                resources[doc["uid"]] = doc
            else:
                resource = resources[doc["stream_resource"]]
                start, stop = doc["indices"]["start"], doc["indices"]["stop"]
                widths.add(stop - start)
                promised[resource["data_key"]].append((start, stop, resource["uri"]))
        # What the RunEngine demands of one collect: one stream_datum per data key, all equally wide.
        assert len(widths) <= 1
        assert sum(name == "stream_datum" for name, _ in documents) in (0, len(KEYS))
    for spans in promised.values():
        expected = 0
        for start, stop, uri in spans:
            assert start == expected
            assert stop <= assets.there
            if per_file:
                assert start // per_file == (stop - 1) // per_file == int(uri.rpartition("/")[2])
            expected = stop


def write(path: Path, frames: int) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("entry/data", data=np.arange(frames * 4).reshape(frames, 2, 2), chunks=(1, 2, 2))
        file.create_dataset("entry/sum", data=np.arange(frames - 1), chunks=(8,), maxshape=(None,))


def test_documents_carry_what_tiled_needs(tmp_path: Path) -> None:
    write(tmp_path / "a b_0.h5", 5)
    assets = StreamAssets(KEYS, lambda number: tmp_path / f"a b_{number}.h5")
    documents = collect(assets)
    image = documents[0][1]
    assert image["mimetype"] == "application/x-hdf5"
    assert image["uri"].startswith("file://localhost/")
    assert image["uri"].endswith("/a%20b_0.h5")
    assert image["parameters"] == {"dataset": "/entry/data", "swmr": True, "chunk_shape": [1, 2, 2]}
    assert documents[2][1]["indices"] == {"start": 0, "stop": 4}, "the shorter dataset counts"


def test_a_file_that_is_not_there_yet_has_no_frames(tmp_path: Path) -> None:
    assets = StreamAssets(KEYS, lambda number: tmp_path / "later.h5")
    assert assets.index() == 0
    assert collect(assets) == []
    (tmp_path / "later.h5").write_bytes(b"\x89HDF")
    assert assets.index() == 0


def test_the_newest_frame_is_read_from_the_file_it_lies_in(tmp_path: Path) -> None:
    for number, frames in enumerate((3, 2)):
        write(tmp_path / f"{number}.h5", frames)
    assets = StreamAssets({"d_image": "/entry/data"}, lambda number: tmp_path / f"{number}.h5", per_file=3)
    assert assets.readable() == 5
    np.testing.assert_array_equal(assets.last("d_image"), [[4, 5], [6, 7]])
    (tmp_path / "1.h5").unlink()
    with pytest.raises(DetectorError, match=r"1.h5: frame 4 can't be read"):
        assets.last("d_image")
