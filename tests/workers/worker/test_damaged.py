"""Frames that come damaged: the file is asked before a frame is given up, and the answer is the same to the bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from haltere.workers.payload import Piece, unpack
from haltere.workers.reducers.azimuthal import recipe_params
from haltere.workers.ring import Ring
from haltere.workers.wire.messages import (
    BACKFILLED,
    LIVE,
    MAX_CONTROL,
    QUARANTINED,
    Block,
    Damaged,
    FileSpan,
    InputSpec,
    LiveLane,
    Nack,
    RecipeSpec,
    Result,
    RingSpan,
    StreamOpen,
    Work,
    encode,
)
from haltere.workers.worker.pipe import Failed
from haltere.workers.worker.reducing import Reducing

from ..chunks import bslz4

N, SHAPE = 8, (64, 80)
IMAGE = InputSpec("image", SHAPE, "<u2")
GEOMETRY = {"dist": 0.02, "poni1": 0.002, "poni2": 0.003, "pixel1": 1e-4, "pixel2": 1e-4, "wavelength": 1e-10}
RECIPES = [
    RecipeSpec("xrd", "azimuthal", json.dumps(recipe_params(poni=GEOMETRY, bins=50, sigma=True)).encode()),
    RecipeSpec("rings", "azimuthal", json.dumps(recipe_params(poni=GEOMETRY, bins=7, unit="r_mm")).encode()),
]
FRAMES = np.random.default_rng(5).poisson(20, (N, *SHAPE)).astype("<u2")
CHUNKS = [bytes(bslz4(frame).data) for frame in FRAMES]
BAD = CHUNKS[0][:-40]


class Bench:
    """A reducer with frames in a ring and in a file, and a broker's next word."""

    def __init__(self, folder: Path, ring: Ring) -> None:
        self.folder = folder
        self.ring = ring
        self.reducing = Reducing(folder, [folder], lambda at: None)
        lane = LiveLane("tcp://eiger", "simplon-1", 1, "image")
        self.reducing.open(StreamOpen(1, "run", "eiger", "cfg", N, [IMAGE], RECIPES, lane))
        self.write()

    def write(self, **others: bytes) -> None:
        """Write the file, some of its frames otherwise: ``f3=…``."""
        with h5py.File(self.folder / "a.h5", "w") as file:
            data = file.create_dataset("data", FRAMES.shape, "<u2", chunks=(1, *SHAPE), **hdf5plugin.Bitshuffle())
            for number, chunk in enumerate(CHUNKS):
                data.id.write_direct_chunk((number, 0, 0), others.get(f"f{number}", chunk))

    def reduce(
        self, live: dict[int, bytes], *damaged: Damaged, isolate: bool = False
    ) -> tuple[Result, list[Piece]] | Nack:
        """Reduce the batch with these frames live, and the others from the file."""
        blocks = []
        for number, chunk in live.items():
            self.ring.write(16384 * number, chunk, 1)
            blocks.append(Block(number, 16384 * number, len(chunk), "bslz4", 1))
        files = [FileSpan("image", (self.folder / "a.h5").as_uri(), "data", 0, N, 0)]
        rings = [RingSpan(self.ring.name, blocks)] if blocks else []
        work = Work("run", "eiger", "cfg", 0, N, 7, rings, files, [], isolate, list(damaged))
        answer = self.reducing.reduce(work)
        if isinstance(answer, Failed):
            return answer.nack
        reduced, payload = answer
        return reduced.result, unpack(reduced.result.arrays, payload, N)

    def close(self) -> None:
        """Let go of the ring."""
        self.reducing._reading.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Ring.create(1 << 18) as ring:
        bench = Bench(tmp_path, ring)
        yield bench
        bench.close()


def bits(pieces: list[Piece]) -> dict[str, bytes]:
    return {f"{each.recipe}/{each.name}": each.array.tobytes() for each in pieces if each.kind != "const"}


@pytest.mark.parametrize("isolate", [False, True])
def test_a_frame_that_came_damaged_is_reduced_from_its_file_to_the_same_bits(bench: Bench, isolate: bool) -> None:
    whole = bench.reduce(dict(enumerate(CHUNKS)))
    assert not isinstance(whole, Nack)
    live = {**dict(enumerate(CHUNKS)), 2: BAD, 5: b"\0" * 30}
    refused = bench.reduce(live, isolate=isolate)
    assert isinstance(refused, Nack)
    assert refused.retryable
    assert refused.missing == [each.frame for each in refused.damaged] == [2, 5]
    assert "damaged" in refused.reason
    del live[2], live[5]  # so does the broker
    again = bench.reduce(live, *refused.damaged, isolate=isolate)
    assert not isinstance(again, Nack)
    assert list(again[0].status) == [BACKFILLED if number in (2, 5) else LIVE for number in range(N)]
    assert bits(again[1]) == bits(whole[1])


def test_a_frame_that_its_file_has_damaged_too_is_quarantined_for_both_reasons(bench: Bench) -> None:
    bench.write(f2=BAD)
    live = dict(enumerate(CHUNKS))
    del live[2]
    answer = bench.reduce(live, Damaged(2, "bslz4 chunk of 30 bytes"))
    assert not isinstance(answer, Nack)
    result, pieces = answer
    assert list(result.status) == [QUARANTINED if number == 2 else LIVE for number in range(N)]
    ((frame, reason),) = result.reasons
    assert frame == 2
    assert f"chunk of {len(BAD)} bytes is damaged or cut" in reason
    assert reason.endswith("; what came live: bslz4 chunk of 30 bytes")
    intensity = next(each.array for each in pieces if each.name == "intensity")
    assert np.isnan(intensity[2]).all()
    assert np.isfinite(intensity[[0, 1, 3, 4, 5, 6, 7]]).all()


def test_a_frame_that_only_its_file_has_damaged_is_quarantined_at_once(bench: Bench) -> None:
    bench.write(f2=BAD)
    answer = bench.reduce({})
    assert not isinstance(answer, Nack)
    assert [frame for frame, _ in answer[0].reasons] == [2]


def test_word_of_a_whole_batch_that_came_damaged_fits_into_a_message(bench: Bench) -> None:
    refused = bench.reduce(dict.fromkeys(range(N), BAD))
    assert isinstance(refused, Nack)
    long = [Damaged(number, "é" * 120) for number in range(64)]
    nack = Nack("run", "eiger", 0, 64, 7, -1, refused.reason, True, list(range(64)), long)
    assert len(encode(nack)) < MAX_CONTROL
