"""Faults of processes: killed, all killed, stopped."""

from __future__ import annotations

import os
import signal
import threading
from typing import Final

from haltere.workers.pool.local import Chaos

from .report import Report
from .rig import PoolFault, Rig
from .scan import Scan

BUSY: Final = Scan(chaos={"delay": 0.002})
"""Batches take 80 ms of the 100 ms in which they come, so that a worker is hit amid one."""

UNSTORED: Final = Scan(rate=200, stored=False)
GROUP: Final = 20
"""Frames in a batch at that rate. Every third is left out on purpose, as if the ring were full: it is spilled."""

SPILLING: Final = 30
"""Frames on their way to a file when something is killed."""

STOPPED: Final = 4.5
"""s: longer than the broker believes in a silent worker."""


def kill_a_worker(rig: Rig) -> None:
    """Kill one that has work."""
    rig.until_working("worker-1")
    rig.signal("worker-1")


def kill_a_reducer(rig: Rig) -> None:
    """Kill a worker's child."""
    reducer = rig.reducer("worker-1")
    rig.until_working("worker-1")
    rig.now()
    reducer.kill()


def kill_all_workers(rig: Rig) -> None:
    """Kill both."""
    rig.until_working("worker-1")
    rig.signal("worker-1")
    rig.signal("worker-2")


def kill_in_turn(rig: Rig) -> None:
    """Kill everything, one after the other, each when the one before is back."""
    for name in ("worker-1", "broker", "recorder", "sink", "ingest", "worker-2"):
        rig.until_back(name, rig.signal(name))
        threading.Event().wait(0.3)


def kill_at_once(rig: Rig) -> None:
    """Kill everything in one go."""
    for name in ("sink", "broker", "ingest", "worker-1", "worker-2", "recorder"):
        rig.signal(name)


def stop_a_worker(rig: Rig) -> None:
    """Stop one that has work, until long after the broker has given that to another; then let it go on."""
    rig.until_working("worker-1")
    pid = rig.signal("worker-1", signal.SIGSTOP)
    threading.Event().wait(STOPPED)
    os.kill(pid, signal.SIGCONT)


def kill_the_spiller(rig: Rig) -> None:
    """Kill the spiller while it has frames that it hasn't written."""
    spiller = rig.spiller()
    spiller.suspend()
    rig.until_spilling(SPILLING)
    rig.now()
    spiller.kill()


def kill_the_spilling_ingest(rig: Rig) -> None:
    """Kill the ingest while its spiller has frames that it hasn't written; that one goes on."""
    spiller = rig.spiller()
    spiller.suspend()
    rig.until_spilling(SPILLING)
    rig.killed_at = rig.hutch.flown
    rig.signal("ingest")
    spiller.resume()


def in_no_file(rig: Rig) -> set[int]:
    """Return the frames that weren't reduced live and lie in no file: no more may be lost, and no less."""
    live = rig.heard[-1][1]["frames"]["eiger"]["intervals"]["live"]
    return set(range(rig.scan.frames)) - rig.spilled() - {frame for first, stop in live for frame in range(first, stop)}


def given_is_written(rig: Rig, report: Report) -> list[str]:
    """Complain if what the spiller was given before the ingest died isn't in files. The others are compared by name."""
    report.note = f"{len(rig.spilled())} frames spilled, {rig.killed_at} flown when the ingest was killed"
    before = [frame for frame in rig.spilled() if frame < rig.killed_at]
    return [] if len(before) >= SPILLING else [f"only {len(before)} frames that came before are in files"]


def spilled_exactly(rig: Rig, report: Report) -> list[str]:
    """Complain if frames that were left out on purpose aren't all in files."""
    chaos = {frame for frame in range(rig.scan.frames) if frame // GROUP % 3 == 2}
    report.note = f"{len(rig.spilled())} frames spilled"
    return [f"{len(chaos - rig.spilled())} frames were spilled nowhere"] if chaos - rig.spilled() else []


def was_given_up(rig: Rig, report: Report) -> list[str]:
    """Complain if the broker never noticed. That a result comes twice depends on what the worker had in hand."""
    counts = (rig.pool.status()["broker"] or {}).get("counts", {})
    lost = [name for name in counts if name.startswith("worker lost")]
    return [] if lost or report.duplicates else ["the broker never gave the stopped worker up"]


def _kill(name: str, expects: str) -> PoolFault:
    def strike(rig: Rig) -> None:
        rig.signal(name)

    does = f"SIGKILL to the {name}, in mid-scan."
    return PoolFault(name=f"{name}-kill", does=does, expects=expects, strike=strike, restarts=[name])


FAULTS: Final = (
    PoolFault(
        name="worker-kill",
        does="SIGKILL to a worker that holds a batch.",
        expects="The other one gets the batch, live if it is still in the ring.",
        strike=kill_a_worker,
        scan=BUSY,
        restarts=["worker-1"],
    ),
    PoolFault(
        name="reducer-kill",
        does="SIGKILL to a worker's reducing child, amid a batch.",
        expects="The worker lives, and starts another; the batch is tried again, frame by frame, and none is blamed.",
        strike=kill_a_reducer,
        scan=BUSY,
        restarts=["reducer"],
    ),
    PoolFault(
        name="workers-kill",
        does="SIGKILL to every worker at once.",
        expects="They come back, and carry on; what the ring couldn't hold meanwhile is backfilled.",
        strike=kill_all_workers,
        scan=BUSY,
        restarts=["worker-1", "worker-2"],
    ),
    PoolFault(
        name="worker-stop",
        does=f"SIGSTOP to a worker that holds a batch, SIGCONT {STOPPED:g} s later.",
        expects="Its work goes to the other one; what it sends when it wakes is discarded as a duplicate.",
        strike=stop_a_worker,
        scan=BUSY,
        check=was_given_up,
    ),
    _kill("broker", "It relearns from sink, ingest and workers what there is and what is done."),
    _kill("sink", "Workers and dispatcher send again what it hadn't confirmed."),
    _kill("recorder", "It starts again at its cursor: the same documents, each once."),
    _kill("ingest", "What came meanwhile, and what was in its ring, is backfilled."),
    PoolFault(
        name="spiller-kill",
        does="SIGKILL to the ingest's spiller, which has frames of a detector without files that it hasn't written.",
        expects="They lie in shared memory still: another one writes them, and none is lost.",
        strike=kill_the_spiller,
        scan=UNSTORED,
        pool={"chaos": Chaos(drop_every=3, drop_group=GROUP)},
        restarts=["spiller"],
        check=spilled_exactly,
    ),
    PoolFault(
        name="spilling-ingest-kill",
        does="SIGKILL to the ingest of a detector without files, while its spiller has frames that it hasn't written.",
        expects="The spiller writes them, and the next ingest finds them; what no file has is lost, with the evidence.",
        strike=kill_the_spilling_ingest,
        scan=UNSTORED,
        at=1 / 6,
        pool={"chaos": Chaos(drop_every=3, drop_group=GROUP)},
        restarts=["ingest"],
        lost=in_no_file,
        check=given_is_written,
    ),
    PoolFault(
        name="all-in-turn",
        does="SIGKILL to worker, broker, recorder, sink, ingest and the other worker, one after the other.",
        expects="All come back within the same scan.",
        strike=kill_in_turn,
        scan=Scan(rate=200),
        at=1 / 6,
        restarts=["worker-1", "broker", "recorder", "sink", "ingest", "worker-2"],
    ),
    PoolFault(
        name="all-at-once",
        does="SIGKILL to every process of the pool at once.",
        expects="All come back within the same scan.",
        strike=kill_at_once,
        restarts=["worker-1", "broker", "recorder", "sink", "ingest", "worker-2"],
    ),
)
