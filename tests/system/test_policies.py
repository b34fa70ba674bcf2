"""Detectors without files: what finds no room in memory is spilled to files of the pool's, or waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haltere.workers import recipes
from haltere.workers.payload import unpack
from haltere.workers.pool.local import Chaos, Pool
from haltere.workers.recipes import Recipe
from haltere.workers.reducers import azimuthal
from haltere.workers.reducers.base import Batch, Chunk, Setup
from haltere.workers.wire import simplon
from haltere.workers.wire.messages import InputSpec, LiveLane, Policy, StreamOpen

from .conftest import DEADLINE, ToldPool

SHAPE = (64, 64)
BATCH = 8
FRAMES = 200
EARLY = 96
"""Frames that come before the faults, whole batches: what lies in a ring dies with its ingest, and no file has it."""
IMAGE = InputSpec("eiger_image", SHAPE, "<u2")
GEOMETRY = {"dist": 0.2, "poni1": 0.0024, "poni2": 0.0024, "pixel1": 75e-6, "pixel2": 75e-6}


def blob(frame: int) -> bytes:
    return np.random.default_rng(frame).integers(0, 1000, SHAPE, dtype="<u2").tobytes()


def image(frame: int, series: int) -> simplon.Image:
    return simplon.Image(series, frame, SHAPE, "<u2", "none", blob(frame), 0, 1, 1)


def opened(run: str, endpoint: str, series: int, policy: Policy) -> StreamOpen:
    params = azimuthal.recipe_params(GEOMETRY, bins=10, method="no")
    spec = Recipe("xrd", "azimuthal", "eiger", params, policy).spec()
    lane = LiveLane(endpoint, "simplon-1", series, IMAGE.key)
    return StreamOpen(0, run, "eiger", recipes.cfg_hash([spec]), BATCH, [IMAGE], [spec], lane, policy)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Callable[..., ToldPool]]:
    made: list[ToldPool] = []

    def make(**options: Any) -> ToldPool:
        made.append(ToldPool(Pool.local(1, directory=tmp_path, **options)))
        return made[-1]

    yield make
    for told in made:
        told.context.destroy(linger=0)
        told.pool.close()


def wait(told: ToldPool, stream: StreamOpen, until: Callable[[dict[str, Any]], bool]) -> None:
    """Wait until the broker says so of the stream."""
    deadline = time.monotonic() + DEADLINE
    said: dict[str, Any] = {}
    while not until(said):
        assert time.monotonic() < deadline, (said, told.pool.status())
        time.sleep(0.05)
        broker = told.pool.status()["broker"] or {"runs": {}}
        said = broker["runs"].get(stream.run, {"streams": {}})["streams"].get("eiger", {})


def results(told: ToldPool, stream: StreamOpen) -> dict[str, Any]:
    found: dict[str, list[Any]] = {}
    for row in told.rows(stream):
        for piece in unpack(row.arrays, row.payload):
            if piece.kind == "nav":
                found.setdefault(piece.name, []).append(piece.array)
    return {name: np.concatenate(parts)[:FRAMES] for name, parts in found.items()}


def direct(told: ToldPool, stream: StreamOpen) -> dict[str, Any]:
    reducer = recipes.build(stream.recipes[0])
    reducer.setup(Setup((IMAGE,), told.pool.assets))
    chunks = [Chunk(blob(frame), "none", SHAPE, np.dtype("<u2")) for frame in range(FRAMES)]
    return dict(reducer.map(Batch(np.arange(FRAMES), {IMAGE.key: chunks})).nav)


def assert_the_same_bits(told: ToldPool, stream: StreamOpen) -> None:
    found, wanted = results(told, stream), direct(told, stream)
    assert found.keys() == wanted.keys()
    assert all(found[name].tobytes() == wanted[name].tobytes() for name in wanted)


def test_spilled_frames_are_reduced_from_the_pools_files_whatever_was_killed(
    pool: Callable[..., ToldPool],
) -> None:
    told = pool(chaos=Chaos(drop_every=3, drop_group=BATCH))
    spilled = [frame for frame in range(FRAMES) if frame // BATCH % 3 == 2]
    with told.detector() as (detector, endpoint):
        stream = opened("spilled", endpoint, 6, "spill")
        told.open(stream, FRAMES)
        wait(told, stream, lambda said: "kept" in said)
        for frame in range(EARLY):
            detector.send_multipart(simplon.encode(image(frame, 6)))
        early = sum(frame < EARLY for frame in spilled)
        wait(told, stream, lambda said: said.get("spilled") == early and said["done"] >= EARLY)
        for name in ("ingest", "broker", "sink"):
            told.pool.kill(name)
        wait(told, stream, lambda said: said.get("spilled", 0) >= early and "kept" in said)
        for frame in range(EARLY, FRAMES):
            detector.send_multipart(simplon.encode(image(frame, 6)))
        wait(told, stream, lambda said: said.get("spilled") == len(spilled))
        account = told.close_run(stream, FRAMES)
    assert account["lost"] == account["quarantined"] == 0, account["reasons"]
    assert account["live"] + account["backfilled"] == FRAMES
    assert account["backfilled"] >= len(spilled)
    assert sum(each["frames"] for each in account["spilled"]) == len(spilled)
    assert {Path(each["uri"].removeprefix("file://localhost")).parent for each in account["spilled"]} == {
        told.pool.directory / "spill"
    }
    assert_the_same_bits(told, stream)


def test_what_can_not_be_spilled_is_lost_and_says_so(pool: Callable[..., ToldPool]) -> None:
    told = pool(chaos=Chaos(drop_every=3, drop_group=BATCH), spill_bytes=8192 * 20)
    with told.detector() as (detector, endpoint):
        stream = opened("full", endpoint, 6, "spill")
        told.open(stream, FRAMES)
        wait(told, stream, lambda said: "kept" in said)
        for frame in range(FRAMES):
            detector.send_multipart(simplon.encode(image(frame, 6)))
        wait(told, stream, lambda said: said.get("dropped", {}).get("spill-full", 0) == 64 - 20)
        account = told.close_run(stream, FRAMES)
    assert account["backfilled"] == 20
    assert account["lost"] == 64 - 20
    assert set(account["reasons"].values()) == {"dropped: spill-full, and no file was announced that has eiger_image"}


def test_a_detector_that_can_wait_loses_nothing_to_a_ring_that_holds_a_tenth_of_it(
    pool: Callable[..., ToldPool],
) -> None:
    told = pool(ring_bytes=20 * 8192)
    with told.detector() as (detector, endpoint):
        stream = opened("waited", endpoint, 6, "block")
        told.open(stream, FRAMES)
        wait(told, stream, lambda said: "kept" in said)
        sent = threading.Thread(
            target=lambda: [detector.send_multipart(simplon.encode(image(frame, 6))) for frame in range(FRAMES)]
        )
        sent.start()
        wait(told, stream, lambda said: said.get("done", 0) >= FRAMES)
        sent.join()
        account = told.close_run(stream, FRAMES)
    assert account["live"] == FRAMES
    assert_the_same_bits(told, stream)
