"""The simulation itself: it is reproducible, faults do no more than they should, and it sees what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from haltere.workers.broker.batch import Batch
from haltere.workers.broker.rings import Rings
from haltere.workers.broker.stream import Stream
from haltere.workers.frame_life import FrameEvent
from haltere.workers.sink.core import SinkCore
from haltere.workers.wire.messages import Ack
from haltere.workers.worker.reading import Reading

from .scenario import Fault, Frames, Scan, Scenario, draw, quiet
from .soak import main
from .world import World, simulate

ROOT = Path(__file__).parents[2]
PLAIN = Scenario(
    0,
    (Scan(0.2, 0.005, (Frames("eiger", True, 64, 64, 20, 64), Frames("pilc", False, 64, 64, 20, 64))),),
    pace=0.3,
    ring=100,
)


def digest(world: World) -> tuple[Any, ...]:
    return world.digest, world.now, sorted(world.counts.items())


@pytest.mark.parametrize("seed", [3, 4])
def test_the_same_seed_gives_the_same_run_in_any_process(seed: int) -> None:
    script = f"from tests.simulation.test_world import digest, simulate; print(digest(simulate({seed})))"
    runs = [
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": number},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for number in ("1", "2")
    ]
    assert runs == [str(digest(simulate(seed)))] * 2


def test_while_nothing_goes_wrong_every_frame_comes_live_and_nothing_twice() -> None:
    counts = simulate(PLAIN).counts
    assert counts["in the end live"] == 128
    assert counts["duplicates"] == counts["reads of blocks that were given back"] == 0


@pytest.mark.parametrize("seed", range(2000, 2010))
def test_a_disturbed_run_gives_what_the_undisturbed_one_gives(seed: int) -> None:
    """Frame by frame the checks compare both with the truth; here it is seen that the disturbance was one."""
    scenario = draw(seed)
    disturbed, undisturbed = simulate(scenario), simulate(quiet(scenario))
    ends = [
        {name: world.counts[f"in the end {name}"] for name in ("live", "backfilled", "quarantined", "lost")}
        for world in (disturbed, undisturbed)
    ]
    assert sum(ends[0].values()) == sum(ends[1].values())
    assert ends[0]["quarantined"] + ends[0]["lost"] >= ends[1]["quarantined"]


def test_overload_is_dropped_counted_and_backfilled() -> None:
    world = simulate(replace(PLAIN, pace=5.0, ring=12))
    assert sum(world.ingest.core.dropped.values()) > 10
    assert world.counts["in the end backfilled"] > 10
    assert world.counts["in the end lost"] == 0


# --- what is broken on purpose is seen -------------------------------------------------------------------------------


def acknowledge_before_it_is_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    real = SinkCore._control

    def hasty(self: SinkCore, peer: bytes, message: Any, now: float) -> Any:
        sends = real(self, peer, message, now)
        hello = self._peers.get(peer)
        return sends if hello is None else [*sends, (peer, Ack(hello.session, message.serial))]

    monkeypatch.setattr(SinkCore, "_control", hasty)


def read_what_was_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Stream.work

    def early(self: Stream, number: int, token: int, now: float) -> Any:
        work = real(self, number, token, now)
        batch = self.batches.get(number)
        if batch is not None:
            self.freed += batch.held.values()
        return work

    monkeypatch.setattr(Stream, "work", early)
    monkeypatch.setattr(Reading, "_given_back", lambda *_: [])
    monkeypatch.setattr("tests.simulation.model.Memory.lives", lambda *_: True)


def quarantine_at_the_first_death(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(self: Batch, nack: Any, frames: range) -> None:
        for frame in frames:
            self.give_up(frame, FrameEvent.KILLED, nack.reason)

    monkeypatch.setattr(Batch, "strike", hasty)


def keep_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rings, "free", lambda self, blocks: None)


@pytest.mark.parametrize(
    ("damage", "scenario"),
    [
        (
            acknowledge_before_it_is_on_disk,
            replace(PLAIN, faults=(Fault("sink dies in a commit", 0.1, whom=1),)),
        ),
        (read_what_was_given_back, PLAIN),
        (
            quarantine_at_the_first_death,
            replace(PLAIN, pace=2.0, faults=tuple(Fault("reducer dies", 0.5 + at / 10, whom=at) for at in range(4))),
        ),
        (keep_blocks, PLAIN),
    ],
)
def test_a_pool_that_is_broken_on_purpose_is_seen_to_be(
    damage: Callable[[pytest.MonkeyPatch], None], scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate(scenario)
    damage(monkeypatch)
    with pytest.raises(AssertionError):
        simulate(scenario)


def test_soak_reports_and_says_by_its_exit_code_whether_all_is_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--seed", "7"]) == 0
    assert "all is well" in capsys.readouterr().out
    keep_blocks(monkeypatch)
    assert main(["--seed", "6"]) == 1
