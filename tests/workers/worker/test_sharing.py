"""Recipes that share a walk: the same bits as each by itself, whatever is wrong with a frame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest

from haltere.workers.errors import ReductionError
from haltere.workers.kernel import Kernel
from haltere.workers.payload import unpack
from haltere.workers.reducers.base import Array, Made, Partial, Reducer
from haltere.workers.reducers.crop import Crop
from haltere.workers.reducers.moments import Moments
from haltere.workers.reducers.preview import Preview
from haltere.workers.reducers.roi import Roi
from haltere.workers.wire.messages import (
    BACKFILLED,
    QUARANTINED,
    FileSpan,
    InputSpec,
    LiveLane,
    RecipeSpec,
    StreamOpen,
    Work,
)
from haltere.workers.worker.pipe import Failed
from haltere.workers.worker.reducing import Reducing

SHAPE, N = (150, 200), 20
IMAGE = InputSpec("image", SHAPE, "<u4")


class Fussy(Moments):
    """Takes no frame with more than 200 counts in a pixel."""

    def finish(self, index: Any, made: Made) -> Partial:
        """Refuse such a frame."""
        most = made["frame"]["maximum"]
        if (most > 200).any():
            raise ReductionError(f"frame {index[int(np.argmax(most))]}: a cosmic")
        return super().finish(index, made)


class Astray(Moments):
    """Can't say its walk."""

    def walk(self) -> Any:
        """Fail."""
        raise ValueError("no walk")


KINDS: dict[str, Callable[[], Reducer]] = {
    "roi": lambda: Roi(regions={"top": {"rows": [0, 5], "columns": [3, 90]}}, centres=True),
    "moments": lambda: Moments(cutoff=250),
    "crop": lambda: Crop(rows=[140, 150], columns=[0, 50]),
    "preview": lambda: Preview(factor=7),
    "fussy": Fussy,
    "astray": Astray,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a file of frames: 9 has a pixel of 230 counts, and in 13 a block's bytes are damaged."""
    frames = np.random.default_rng(2).poisson(3, (N, *SHAPE)).astype("<u4")
    frames[9, 100, 100] = 230
    with h5py.File(tmp_path / "a.h5", "w") as file:
        filters = hdf5plugin.Bitshuffle()
        data = file.create_dataset("image", frames.shape, frames.dtype, chunks=(1, *SHAPE), **filters)
        data[:] = frames
        _, chunk = data.id.read_direct_chunk((13, 0, 0))
        damaged = bytearray(chunk)
        middle = 12
        for _ in range(7):  # blocks, each after its length; the seventh is in rows 61 to 71
            middle += 4 + int.from_bytes(damaged[middle : middle + 4], "big")
        damaged[middle + 4 : middle + 40] = bytes(36)
        data.id.write_direct_chunk((13, 0, 0), bytes(damaged))
    return tmp_path


def results(folder: Path, *kinds: str, isolate: bool = False) -> tuple[Any, dict[str, Array]]:
    """Reduce all frames by these recipes; return the result and its arrays by ``recipe/name``."""
    reducing = Reducing(folder, [folder], lambda _: None, lambda spec: KINDS[spec.reducer]())
    recipes = [RecipeSpec(kind, kind, b"{}") for kind in kinds]
    lane = LiveLane("tcp://eiger", "simplon-1", 1, "image")
    reducing.open(StreamOpen(1, "run", "eiger", "cfg", N, [IMAGE], recipes, lane))
    files = [FileSpan("image", (folder / "a.h5").as_uri(), "image", 0, N, 0)]
    answer = reducing.reduce(Work("run", "eiger", "cfg", 0, N, 1, [], files, [], isolate=isolate))
    assert not isinstance(answer, Failed), answer
    reduced, payload = answer
    pieces = unpack(reduced.result.arrays, payload, N)
    return reduced.result, {f"{piece.recipe}/{piece.name}": piece.array for piece in pieces}


@pytest.mark.parametrize("isolate", [False, True])
def test_recipes_that_share_a_walk_give_what_each_gives_alone(folder: Path, isolate: bool) -> None:
    kinds = list(KINDS)
    together, arrays = results(folder, *kinds, isolate=isolate)
    quarantined: dict[str, set[int]] = {}
    for kind in kinds:
        alone, mine = results(folder, kind)
        quarantined[kind] = {number for number, _ in alone.reasons}
        assert mine
        for name, array in mine.items():
            assert arrays[name].tobytes() == array.tobytes(), name
    # The damaged block is no concern of the regions and the piece: those frames are reduced by these.
    assert quarantined == {
        "roi": set(), "crop": set(), "moments": {13}, "preview": {13}, "fussy": {9, 13}, "astray": {13}
    }  # fmt: skip
    expected = [QUARANTINED if number in (9, 13) else BACKFILLED for number in range(N)]
    assert together.status == bytes(expected)
    assert "recipe fussy: frame 9: a cosmic" in dict(together.reasons)[9]


def test_one_walk_serves_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[list[str]] = []
    run = Kernel.run

    def seen(self: Kernel, *given: Any) -> Any:
        walks.append(sorted(self.parts))
        return run(self, *given)

    monkeypatch.setattr(Kernel, "run", seen)
    results(folder, "roi", "crop")
    assert walks == [["0/regions", "1/piece"]]
