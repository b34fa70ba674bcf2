"""Faults of frames: files that are late, cut or missing; frames that a reducer fails, crashes or hangs on."""

from __future__ import annotations

from typing import Any, Final

from .report import Report
from .rig import PoolFault, Rig
from .scan import Scan

LATE: Final = 3.0
STALL: Final = 2.0

AHEAD: Final = (0.75, 0.9)
"""A gap in the stream, within the second file."""


def reasons(rig: Rig) -> dict[str, str]:
    """Return why the Eiger's frames are quarantined or lost, as the stop document says."""
    found: dict[str, str] = rig.heard[-1][1]["frames"]["eiger"]["reasons"]
    return found


def say(*words: str) -> Any:
    """Return a check: every reason has one of these words."""

    def check(rig: Rig, report: Report) -> list[str]:
        said = sorted(set(reasons(rig).values()))
        report.note = "; ".join(each.replace(f"{rig.folder}/", "") for each in said[:2])
        return [f"{each!r} says none of {words}" for each in said if not any(word in each for word in words)]

    return check


FAULTS: Final = (
    PoolFault(
        name="file-late",
        does=f"The stream leaves frames out; the file that has them shows {LATE:g} s after the scan.",
        expects="They wait for it, and are backfilled.",
        scan=Scan(gap=AHEAD, late=LATE),
        check=lambda rig, report: [] if report.backfilled >= len(rig.scan.unstreamed) else ["nothing was backfilled"],
    ),
    PoolFault(
        name="file-missing",
        does="The stream leaves frames out, and the file that should have them never comes.",
        expects="They are lost, with the path as the evidence; what came live is live.",
        scan=Scan(gap=AHEAD, late=None),
        lost=range(900, 1080),
        check=say("doesn't exist"),
    ),
    PoolFault(
        name="file-short",
        does="The stream leaves the end out, and the file ends 100 frames before what was promised.",
        expects="What the file holds is backfilled, the rest lost.",
        scan=Scan(gap=(0.8, 1.0), short=100),
        lost=range(1100, 1200),
        check=say("has 300 frames"),
    ),
    PoolFault(
        name="file-cut",
        does="The stream leaves frames out, and the file that has them loses its second half.",
        expects="HDF5 finds no frame in it any more: they are lost, with the missing bytes as the evidence.",
        scan=Scan(gap=AHEAD, cut=True),
        lost=range(900, 1080),
        check=say("the file is cut"),
    ),
    PoolFault(
        name="poison",
        does="A recipe's reducer raises an error on 2 frames.",
        expects="They are quarantined with its words; those beside them in their batches are reduced.",
        scan=Scan(chaos={"raises": [100, 777]}),
        quarantined=[100, 777],
        check=say("is poison"),
    ),
    PoolFault(
        name="segfault",
        does="A recipe's reducer crashes on a frame, by SIGSEGV.",
        expects="The frame is named and quarantined after it has done so alone, twice; no other is.",
        scan=Scan(chaos={"segfaults": [300]}),
        quarantined=[300],
        restarts=["reducer"],
        check=say("SIGSEGV"),
    ),
    PoolFault(
        name="hang",
        does=f"A recipe's reducer never returns from a frame; it is given {STALL:g} s.",
        expects="It is killed, tried alone, twice, and quarantined; no other frame is.",
        scan=Scan(chaos={"hangs": [500]}),
        pool={"stall": STALL},
        quarantined=[500],
        restarts=["reducer"],
        check=say("no progress"),
    ),
)
