"""Faults of processes: killed, all killed, stopped."""

from __future__ import annotations

import os
import signal
import threading
from typing import Final

from .report import Report
from .rig import PoolFault, Rig
from .scan import Scan

BUSY: Final = Scan(chaos={"delay": 0.002})
"""Batches take 80 ms of the 100 ms in which they come, so that a worker is hit amid one."""

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
