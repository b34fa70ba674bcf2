"""The session rig: ``haltere up``, and a whole session in a process of its own that flies the simulated beamline."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from haltere.callbacks.following import Follower
from haltere.workers.comparing import Comparison
from haltere.workers.ledger.reader import LedgerReader
from haltere.workers.ledger.rows import RunRow
from haltere.workers.worker.apart import Apart

from .flight import Flight
from .report import Report
from .results import Arrays, Named, faults_of, from_documents, from_nexus
from .rig import nothing_left
from .site import Site

ROWS, COLUMNS, DWELL = 3, 50, 0.02
DETECTORS: Final = {"xrd": "eiger", "xrf": "xspress3", "positions": "pilc"}
AT: Final = 60
"""Frames after which it happens: amid the second row, which takes a second."""

DEADLINE: Final = 120.0
ORPHANED: Final = 60.0
"""s in which the pool must have closed what a session that is gone has left."""


class Watched:
    """A flight, and the pool that it uses."""

    def __init__(self, site: Site, flight: Flight) -> None:
        self.site = site
        self.flight = flight
        self.ledger = LedgerReader(site.up.pool.ledger)
        self.struck = 0.0
        self.note = ""

    @property
    def uid(self) -> str:
        """The raw run's."""
        return str(self.flight.wait("start")["uid"])

    def row(self) -> RunRow:
        """Return the run as the ledger has it."""
        row = self.ledger.run(self.uid)
        assert row is not None
        return row

    def order(self, word: str) -> None:
        """Tell the session something, now."""
        self.struck = self.struck or time.time()
        self.flight.order(word)

    def reduced(self, timeout: float = DEADLINE) -> None:
        """Wait until the pool has the run complete, whether or not anybody is there to be told."""
        deadline = time.monotonic() + timeout
        while self.row().completed is None:
            if time.monotonic() > deadline:
                row = self.row()
                said = "open" if row.totals is None else "closed, but not complete"
                raise TimeoutError(f"the run is {said} {timeout:g} s after the session's end")
            time.sleep(0.05)

    def documents(self) -> list[Named]:
        """Return the processed run's documents, from the recorder."""
        follower = Follower(self.site.up.pool.endpoints.recorder)
        try:
            return list(follower.documents(self.uid, DEADLINE))
        finally:
            follower.close()


@dataclass(frozen=True, kw_only=True)
class SessionFault:
    """A fault of the session rig.

    Attributes
    ----------
    name, does, expects
        As of a fault of the pool rig.
    strike
        Does it, when the scan has taken :data:`AT` frames, and waits until the run is reduced.
    exit_status
        What the raw run must end as.
    whole
        Whether all frames of the scan must be there.
    least
        Frames of each detector that must be there otherwise: those that were taken before.
    again
        Whether some must be there twice.
    """

    name: str
    does: str
    expects: str
    strike: Callable[[Watched], None]
    exit_status: str
    whole: bool = False
    least: int = AT
    again: bool = False

    def run(self, site: Site) -> Report:
        """Try it."""
        if "session" not in site.references and self.name != UNDISTURBED.name:
            reference = UNDISTURBED.run(site)
            if not reference.passed:
                return Report(self.name, complaints=["the undisturbed flight failed", *reference.complaints])
        report = Report(self.name)
        before = site.up.pool.status()["processes"]
        began = time.monotonic()
        try:
            with (
                nothing_left(site, report),
                Flight(site.up.directory, rows=ROWS, columns=COLUMNS, dwell=DWELL) as flight,
            ):
                flight.wait("frames", n=AT)
                watched = Watched(site, flight)
                try:
                    self.strike(watched)
                    self._verdict(watched, report)
                finally:
                    self._account(watched, report, before)
                    watched.ledger.close()
        except Exception as error:  # whatever it was, the next fault is tried
            report.complaints.append(f"{type(error).__name__}: {error}")
        report.seconds = time.monotonic() - began
        if not report.passed:
            site.failed = True
            report.complaints.append(f"its files are in {site.up.directory}")
        return report

    def _account(self, watched: Watched, report: Report, before: Mapping[str, Any]) -> None:
        accounting = watched.ledger.accounting(watched.uid)
        for name in ("expected", "live", "backfilled", "quarantined", "lost"):
            setattr(report, name, sum(each[name] for each in accounting.values()))
        report.duplicates = watched.row().duplicates
        after = watched.site.up.pool.status()["processes"]
        report.restarts = {
            name: n for name, each in after.items() if (n := each["restarts"] - before[name]["restarts"])
        }
        commits = [row.committed_at for row in watched.ledger.since(watched.uid, 0, 100_000)]
        later = [at - watched.struck for at in commits if at > watched.struck > 0]
        report.next_commit = min(later, default=None)
        report.note = watched.note

    def _verdict(self, watched: Watched, report: Report) -> None:
        row, accounting = watched.row(), watched.ledger.accounting(watched.uid)
        if row.exit_status != self.exit_status:
            report.complaints.append(f"the run ended as {row.exit_status}, not {self.exit_status}")
        for name, each in accounting.items():
            if each["live"] + each["backfilled"] != each["expected"]:
                report.complaints.append(f"{name}: {each}")
            if each["expected"] < (ROWS * COLUMNS if self.whole else self.least):
                report.complaints.append(f"{name}: only {each['expected']} frames are expected")
        if self.again and accounting["eiger"]["expected"] <= ROWS * COLUMNS:
            report.complaints.append("no row was flown again: did the pause come between two?")
        if set(accounting) != set(DETECTORS.values()):
            report.complaints.append(f"the ledger knows of {sorted(accounting)}")
        documents = watched.documents()
        watched.note = str(documents[-1][1].get("reason", ""))
        wrong = faults_of(documents, accounting, DETECTORS)
        report.documents = not wrong
        report.complaints += wrong[:5]
        found = {**from_nexus(Path(documents[-1][1]["nexus"]), DETECTORS), **from_documents(documents)}
        reference = watched.site.references.setdefault("session", found)
        different = [*differing_before(reference, found, AT, sums(watched)), *differing_from_files(watched)]
        report.bits = not different
        report.complaints += different[:5]


def sums(watched: Watched) -> set[str]:
    """Name the arrays that add up over frames."""
    rows = watched.ledger.since(watched.uid, 0, 100_000)
    return {f"nexus/{spec.recipe}/{spec.name}" for row in rows for spec in row.arrays if spec.kind == "acc"}


def differing_before(reference: Arrays, found: Arrays, frames: int, sums: Collection[str]) -> list[str]:
    """Name the arrays whose first frames aren't those of the undisturbed flight, to the bit.

    Of a session that was killed the card's documents may be behind the Eiger's: then its last frames have no position.
    """
    wrong = [f"{name} is missing" for name in reference.keys() - found.keys()]
    for name in sorted(reference.keys() & found.keys()):
        one, other = reference[name], found[name]
        if "/maps/" in name or name in sums:
            continue  # of all frames: compared with what the files give
        if one.ndim and len(one) == ROWS * COLUMNS:
            n = min(frames, len(other), len(found["documents/positions/frame"]) if "/pilc_" in name else frames)
            one, other = one[:n], other[:n]
        if one.dtype != other.dtype or one.tobytes() != other.tobytes():
            wrong.append(f"{name} differs from the undisturbed flight's")
    return wrong


def differing_from_files(watched: Watched) -> list[str]:
    """Reduce every batch anew, from the files alone; name the arrays that aren't the ledger's to the bit."""
    directory, ledger = watched.site.up.directory, watched.ledger
    run, wanted = watched.uid, 0
    found = Comparison()
    with Apart(directory / "pool" / "assets", [directory / "raw"], log=directory / "apart.log") as apart:
        for stream in ledger.streams(run):
            spans = [span for span in ledger.spans(run) if span.key in {each.key for each in stream.inputs}]
            total = ledger.accounting(run)[stream.stream]["expected"]
            for row in ledger.batches(run, stream.stream, stream.cfg, 0, 100_000):
                n = min(row.n, total - row.first)
                if n == row.n:
                    found.add(row, apart.reduce(stream, spans, row.first, n))
                    wanted += n
    if found.count != wanted or not wanted:
        return [f"of {wanted} frames {found.count} could be compared with their files'"]
    return [f"{name}: {len(frames)} frames differ from their files'" for name, frames in found.different.items()]


# --- what happens ----------------------------------------------------------------------------------------------------


def nothing(watched: Watched) -> None:
    """Let it fly."""
    watched.flight.wait("reduced")


def ordered(*words: str) -> Callable[[Watched], None]:
    """Return what gives orders; the first to a running scan, the rest to a paused one."""

    def strike(watched: Watched) -> None:
        for number, word in enumerate(words):
            if number:
                watched.flight.wait("paused")
            watched.order(word)
        watched.flight.wait("reduced")

    return strike


def kill_the_session(watched: Watched) -> None:
    """Kill it, and with it what belongs to it: dispatcher, follower, simulated beamline."""
    watched.struck = time.time()
    watched.flight.kill()
    watched.reduced(ORPHANED)


UNDISTURBED: Final = SessionFault(
    name="session-undisturbed",
    does="Nothing happens.",
    expects="Every frame is reduced. Its arrays are what every other flight's are compared with.",
    strike=nothing,
    exit_status="success",
    whole=True,
)

FAULTS: Final = (
    UNDISTURBED,
    SessionFault(
        name="pause-resume",
        does="The RunEngine is paused amid a row, and resumed.",
        expects="The row is flown again; the frames of both attempts are kept, and reduced.",
        strike=ordered("pause", "resume"),
        exit_status="success",
        whole=True,
        again=True,
    ),
    SessionFault(
        name="abort",
        does="The RunEngine aborts amid a row.",
        expects="What was taken is reduced; the run ends as aborted.",
        strike=ordered("abort"),
        exit_status="abort",
    ),
    SessionFault(
        name="stop",
        does="The RunEngine stops amid a row.",
        expects="What was taken is reduced; the run ends as a success.",
        strike=ordered("stop"),
        exit_status="success",
    ),
    SessionFault(
        name="halt",
        does="The RunEngine halts amid a row: the plan may clean up nothing.",
        expects="What was promised is reduced; the run ends as aborted.",
        strike=ordered("halt"),
        exit_status="abort",
    ),
    SessionFault(
        name="session-kill",
        does="SIGKILL to the session: RunEngine, dispatcher and the simulated beamline are gone.",
        expects="The pool closes the run itself, reduces what it was told of, and says so in the stop document.",
        strike=kill_the_session,
        exit_status="fail",
        least=ROWS * COLUMNS // 6,  # what the others' documents had promised by then may be a collect behind
    ),
)
