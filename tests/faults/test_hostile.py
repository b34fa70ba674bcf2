"""Strangers on every socket of a pool, while it reduces: the run is whole, to the bit, and nobody dies of it."""

from __future__ import annotations

import json
import random
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from haltere.workers import recipes
from haltere.workers.payload import unpack
from haltere.workers.pool.local import Endpoints, Pool
from haltere.workers.recipes import Recipe
from haltere.workers.reducers import azimuthal
from haltere.workers.reducers.base import Batch, Setup
from haltere.workers.wire import simplon
from haltere.workers.wire.messages import MAX_CONTROL, InputSpec, LiveLane, StreamOpen

from ..system.conftest import ToldPool
from .hostile import HostileDetector, flood, stream_garbage

FRAMES = 400
SHAPE = (40, 50)
SEED = 11


def recorder(endpoints: Endpoints, ledger: Path) -> Sequence[str]:
    settings = {"bind": endpoints.recorder, "sink": endpoints.sink, "ledger": str(ledger)}
    return [sys.executable, "-m", "haltere.callbacks.recorder", json.dumps(settings)]


@pytest.fixture
def enemy() -> Iterator[HostileDetector]:
    with HostileDetector(SEED) as enemy:
        yield enemy


@pytest.fixture
def told(tmp_path: Path, enemy: HostileDetector) -> Iterator[ToldPool]:
    """Return a pool whose ingest also pulls from a detector that isn't one."""
    with Pool.local(2, directory=tmp_path / "pool", recorder=recorder, streams=[(enemy.endpoint, "simplon-1")]) as pool:
        told = ToldPool(pool)
        yield told
        told.context.destroy(linger=0)


def test_strangers_on_every_socket_change_no_bit_and_kill_nobody(told: ToldPool, enemy: HostileDetector) -> None:
    images = np.random.default_rng(SEED).poisson(30, (FRAMES, *SHAPE)).astype("<u2")
    geometry = {"dist": 0.2, "poni1": 0.001, "poni2": 0.001, "pixel1": 75e-6, "pixel2": 75e-6}
    spec = Recipe("xrd", "azimuthal", "eiger", azimuthal.recipe_params(geometry, bins=16, method="no")).spec()
    image = InputSpec("eiger_image", SHAPE, "<u2")

    over = threading.Event()
    endpoints = told.pool.endpoints
    done: dict[str, Counter[str]] = {name: Counter() for name in ("broker", "sink", "recorder")}

    def attack(name: str, endpoint: str, **most: int) -> None:
        for seed in range(SEED, 1000):
            if over.is_set():
                return
            done[name].update(flood(endpoint, 0.5, seed, **most))

    attackers = [
        threading.Thread(target=attack, args=("broker", endpoints.broker), kwargs={"most": MAX_CONTROL}),
        threading.Thread(target=attack, args=("sink", endpoints.sink)),
        threading.Thread(target=attack, args=("recorder", endpoints.recorder), kwargs={"most": MAX_CONTROL}),
    ]
    rng = random.Random(SEED)
    with told.detector() as (detector, endpoint):
        stream = StreamOpen(
            0,
            "besieged",
            "eiger",
            recipes.cfg_hash([spec]),
            10,
            [image],
            [spec],
            LiveLane(endpoint, "simplon-1", 5, "eiger_image"),
        )
        told.open(stream, FRAMES)
        for each in attackers:
            each.start()
        for number, pixels in enumerate(images):
            frame = simplon.Image(5, number, SHAPE, "<u2", "none", pixels.tobytes(), 0, 1, 1)
            detector.send_multipart(simplon.encode(frame))
            for _ in range(3):  # its own words between the frames are no better
                detector.send_multipart(stream_garbage(rng))
        account = told.close_run(stream, FRAMES)
        for _ in range(200):  # until each of them had its turn
            if all(len(each) == 5 for each in done.values()) and len(enemy.done) == 4:
                break
            threading.Event().wait(0.1)
        over.set()
        for each in attackers:
            each.join()

    assert account["live"] == account["expected"] == FRAMES
    assert account["reasons"] == {}

    reducer = recipes.build(spec)
    reducer.setup(Setup((image,), told.pool.assets))
    direct = reducer.map(Batch(np.arange(FRAMES), {"eiger_image": images})).nav
    found: dict[str, list[np.ndarray]] = {name: [] for name in direct}
    for row in told.rows(stream):
        for piece in unpack(row.arrays, row.payload):
            if piece.kind == "nav":
                found[piece.name].append(piece.array)
    for name, values in direct.items():
        assert np.concatenate(found[name]).tobytes() == values.tobytes(), name

    status = told.pool.status()
    assert {name: each["restarts"] for name, each in status["processes"].items()} == dict.fromkeys(
        ("sink", "broker", "ingest", "worker-1", "worker-2", "recorder"), 0
    )
    assert all(each["pid"] > 0 for each in status["processes"].values())
    assert status["broker"]["counts"]["malformed"] > 0
    assert status["sink"]["bad"] > 0
    logs = {path.stem: path.read_text() for path in (told.pool.directory / "logs").iterdir()}
    assert "malformed so far" in logs["ingest"]
    assert "can't be read" in logs["recorder"]
    for name, text in logs.items():
        assert "Traceback" not in text, name
        assert len(text) < 100_000, f"{name} was flooded"
