"""The pool rig: a real pool, a hutch that flies one scan, and a session's ends of both. Seconds per fault."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

import psutil

from haltere.callbacks.dispatch import Dispatcher
from haltere.callbacks.following import Follower
from haltere.callbacks.recording import Recorder
from haltere.services import recorder_command
from haltere.workers.ledger.reader import LedgerReader
from haltere.workers.pool.local import Endpoints, Pool
from haltere.workers.spill.file import left_behind
from haltere.workers.wire.documents import unpack
from haltere.workers.wire.messages import Spilled

from .hutch import Hutch
from .report import Report
from .results import Arrays, Named, differing, faults_of, from_catalog, from_documents, from_nexus
from .scan import Scan
from .site import Site

DEADLINE: Final = 120.0
"""s for anything to happen that has to."""


class Rig:
    """One pool and one scan. Use as a context manager.

    Parameters
    ----------
    site
        What it shares with others.
    folder
        Its own.
    scan
        What is flown.
    catalog
        Whether the recorder writes to the catalog.
    detectors
        Further endpoints that the ingest pulls from.
    pool
        Further arguments of :meth:`Pool.local`.
    """

    def __init__(
        self, site: Site, folder: Path, scan: Scan, *, catalog: bool = True, detectors: Sequence[str] = (), **pool: Any
    ) -> None:
        self.site = site
        self.catalog = site.server.catalog if catalog else None
        self.folder = folder
        self.scan = scan
        self.heard: list[Named] = []
        """Documents of the processed run, as a session's callback got them."""
        self.struck: list[float] = []
        """When faults happened, s since 1970."""
        self.note = ""
        self.killed_at = 0
        """Frames that had been flown when it was killed that takes frames."""
        self.dropped: Counter[str] = Counter()
        self._stack = ExitStack()
        with ExitStack() as stack:
            self.hutch = stack.enter_context(Hutch(scan, folder / "raw", self._tell, self._until_claimed))
            self.pool = stack.enter_context(
                Pool.local(
                    **{"workers": 2, "ring_bytes": 16 << 20, **pool},
                    directory=folder / "pool",
                    nexus=folder / "nexus",
                    roots=[folder / "raw"],
                    recorder=self._recorder,
                    streams=[(each, "simplon-1") for each in (self.hutch.endpoint, *detectors)],
                )
            )
            self.dispatcher = Dispatcher(self.pool.endpoints.sink)
            stack.callback(self.dispatcher.close)
            self.follower = Follower(self.pool.endpoints.recorder)
            stack.callback(self.follower.close)
            self.follower.subscribe(lambda name, doc: self.heard.append((name, doc)))
            self._stack = stack.pop_all()

    def _recorder(self, endpoints: Endpoints, ledger: Path) -> Sequence[str]:
        if self.catalog is not None:
            return recorder_command(endpoints, ledger, self.catalog)
        settings = {"bind": endpoints.recorder, "sink": endpoints.sink, "ledger": str(ledger)}
        return [sys.executable, "-m", "haltere.callbacks.recorder", json.dumps(settings)]

    def _until_claimed(self) -> None:
        def claimed() -> bool:
            broker = self.pool.status(timeout=1.0)["broker"] or {}
            streams = broker.get("runs", {}).get(self.hutch.uid, {}).get("streams", {})
            return "kept" in streams.get("eiger", {})

        if not self.scan.stored:
            self.until(claimed, what="the ingest's word that it knows of the run")

    def _tell(self, name: str, doc: dict[str, Any]) -> None:
        self.dispatcher(name, doc)

    # --- what faults use ---------------------------------------------------------------------------------------------

    def now(self) -> None:
        """Note that a fault happens now."""
        self.struck.append(time.time())

    def signal(self, name: str, number: int = signal.SIGKILL) -> int:
        """Send a process of the pool a signal, and return its pid."""
        self.now()
        return self.pool.kill(name, number)

    def pid(self, name: str) -> int:
        """Return a process's pid, −1 while it is down."""
        return int(self.pool.status(timeout=0)["processes"][name]["pid"])

    def reducer(self, worker: str) -> psutil.Process:
        """Return a worker's reducing child."""
        self.until(lambda: bool(psutil.Process(self.pid(worker)).children()), what=f"{worker}'s reducer")
        return psutil.Process(self.pid(worker)).children()[0]

    def until(self, true: Callable[[], bool], timeout: float = DEADLINE, what: str = "it") -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + timeout
        while not true():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} doesn't come within {timeout:g} s")
            time.sleep(0.01)

    def until_working(self, worker: str) -> None:
        """Wait until a worker holds a batch that isn't committed."""

        def works() -> bool:
            broker = self.pool.status(timeout=1.0)["broker"] or {}
            return bool(broker.get("workers", {}).get(worker, {}).get("leases"))

        self.until(works, what=f"work for {worker}")

    def until_back(self, name: str, died: int) -> None:
        """Wait until a process has been started again."""
        self.until(lambda: self.pid(name) not in (-1, died), what=f"another {name}")

    def spiller(self) -> psutil.Process:
        """Return the ingest's child that writes frames to files."""
        self.until(lambda: bool(psutil.Process(self.pid("ingest")).children()), what="the spiller")
        return psutil.Process(self.pid("ingest")).children()[0]

    def until_spilling(self, frames: int) -> None:
        """Wait until so many frames are on their way to the pool's files."""

        def waits() -> bool:
            said = self.pool.status(timeout=0)["processes"]["ingest"]["said"]
            return bool(said.get("spilling", 0) >= frames)

        self.until(waits, what=f"{frames} frames on their way to a file")

    def spilled(self) -> set[int]:
        """Return the frames that lie in the pool's files: that the ledger knows of, or whose writer is gone."""
        reader = LedgerReader(self.pool.ledger)
        told = [each for each in reader.control(self.hutch.uid) if isinstance(each, Spilled)]
        reader.close()
        spans = left_behind(self.pool.directory / "spill", self.hutch.uid)
        spans += [span for message in told for span in message.files]
        return {frame for span in spans for frame in range(span.first, span.first + span.n)}

    def commits(self) -> dict[str, list[float]]:
        """Return when each stream's batches were committed, s since 1970."""
        reader = LedgerReader(self.pool.ledger)
        found: dict[str, list[float]] = {}
        for row in reader.since(self.hutch.uid, 0, 100_000):
            found.setdefault(row.stream, []).append(row.committed_at)
        reader.close()
        return found

    # --- what came of it ---------------------------------------------------------------------------------------------

    def finish(self, timeout: float = DEADLINE) -> None:
        """Wait until the run is reduced, and in the catalog."""
        self.hutch.wait(timeout)
        stop = self.follower.wait(self.hutch.uid, timeout)
        if self.catalog is not None and not self.catalog.wait_processed(stop["run_start"], timeout):
            raise TimeoutError(f"the catalog hasn't got the run after {timeout:g} s")

    def account(self, report: Report) -> None:
        """Fill in what the ledger and the processes say."""
        reader = LedgerReader(self.pool.ledger)
        accounting = reader.accounting(self.hutch.uid)
        row = reader.run(self.hutch.uid)
        reader.close()
        for name in ("expected", "live", "backfilled", "quarantined", "lost"):
            setattr(report, name, sum(each[name] for each in accounting.values()))
        report.duplicates = 0 if row is None else row.duplicates
        status = self.pool.status()
        report.dropped = dict(self._dropped(accounting))
        report.restarts = {name: n for name, each in status["processes"].items() if (n := each["restarts"])}
        for child, deaths in (("reducer", self._reducers_died()), ("spiller", self._spillers_died())):
            if deaths:
                report.restarts[child] = deaths
        commits = self.commits().values()
        gaps = [min((at - at_ for at in each if at > at_), default=0.0) for each in commits for at_ in self.struck]
        report.next_commit = max((gap for gap in gaps if gap), default=None)
        report.note = self.note

    def _dropped(self, accounting: Mapping[str, Mapping[str, Any]]) -> Counter[str]:
        found: Counter[str] = Counter(self.dropped)
        for each in accounting.values():
            found.update(each["drops"])
        found["no receiver"] += self.hutch.unsent
        return +found

    def _reducers_died(self) -> int:
        logs = [path.read_text(errors="replace") for path in (self.pool.directory / "logs").glob("worker-*.log")]
        return sum(len(re.findall(r"worker died|no progress in", text)) for text in logs)

    def _spillers_died(self) -> int:
        return (self.pool.directory / "logs" / "ingest.log").read_text(errors="replace").count("the spiller ended")

    def verdict(self, report: Report, quarantined: Collection[int], lost: Collection[int]) -> None:
        """Fill in what is wrong.

        Parameters
        ----------
        report
            Of this fault.
        quarantined, lost
            The Eiger's frames that must end so; no other frame may.
        """
        reader = LedgerReader(self.pool.ledger)
        accounting = reader.accounting(self.hutch.uid)
        composed = Recorder(reader)
        composed.look()
        told = composed.find(self.hutch.uid)
        again = [] if told is None else [unpack(each) for each in told.documents]
        row = reader.run(self.hutch.uid)
        reader.close()
        assert row is not None
        report.complaints += accounts_wrong(accounting, self.scan, quarantined, lost)
        wrong = faults_of(self.heard, accounting)
        if json.dumps(again) != json.dumps(self.heard):  # as text: NaN is no NaN
            wrong.append("a recorder that starts now tells other documents")
        report.documents = not wrong
        report.complaints += wrong[:5]
        found = self.arrays()
        if row.nexus_error is not None:
            report.complaints.append(f"the NeXus file: {row.nexus_error}")
        reference = self.site.references.setdefault(reference_name(self.scan, catalog=self.catalog is not None), found)
        different = differing(reference, found, self.scan, {"eiger": {*quarantined, *lost}})
        report.bits = not different
        report.complaints += different[:5]

    def arrays(self) -> Arrays:
        """Return everything that the run gave."""
        stop = self.heard[-1][1]
        kept = {} if self.catalog is None else from_catalog(self.catalog.processed[stop["run_start"]])
        return {**from_nexus(Path(stop["nexus"])), **from_documents(self.heard), **kept}

    def close(self) -> None:
        """End everything."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *of_the_fault: object) -> None:
        self.close()


def reference_name(scan: Scan, *, catalog: bool) -> str:
    """Return what the arrays of an undisturbed run are kept under."""
    return f"{scan.frames} frames{', with catalog' if catalog else ''}"


def accounts_wrong(
    accounting: Mapping[str, Mapping[str, Any]], scan: Scan, quarantined: Collection[int], lost: Collection[int]
) -> list[str]:
    """Say where the ledger's account isn't what it must be."""
    wrong = []
    for stream, each in accounting.items():
        reduced = each["live"] + each["backfilled"]
        if each["expected"] != scan.frames or reduced + each["quarantined"] + each["lost"] != scan.frames:
            wrong.append(f"{stream}: of {scan.frames} frames {each['expected']} are expected, {reduced} reduced")
        for name, wanted in (("quarantined", quarantined), ("lost", lost)):
            found = {frame for first, stop in each["intervals"][name] for frame in range(first, stop)}
            if found != (set(wanted) if stream == "eiger" else set()):
                wrong.append(f"{stream}: {len(found)} frames are {name}: {each['intervals'][name][:8]}")
            if unexplained := [frame for frame in found if str(frame) not in each["reasons"]]:
                wrong.append(f"{stream}: nothing says why {len(unexplained)} frames are {name}")
    if set(accounting) != {"eiger", "pilc"}:
        wrong.append(f"the ledger knows of {sorted(accounting)}")
    return wrong


@contextmanager
def nothing_left(site: Site, report: Report) -> Iterator[None]:
    """Complain of processes that outlive what started them; the site's own may, and those of before."""
    keep = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    keep |= site.pids
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in keep]
    _, alive = psutil.wait_procs(left, timeout=5)
    for child in alive:
        report.complaints.append(f"{child.name()} ({child.pid}) was left running")
        child.kill()


FULL: Final = Scan()


def nothing(rig: Rig) -> None:
    """Do nothing."""


@dataclass(frozen=True, kw_only=True)
class PoolFault:
    """A fault of the pool rig.

    Attributes
    ----------
    name
        What it is called.
    does
        What happens.
    expects
        What must come of it.
    strike
        Does it, when the scan has come so far:
    at
        Part of its frames.
    scan
        What is flown.
    pool
        Further arguments of :meth:`Pool.local`.
    quarantined, lost
        The Eiger's frames that must end so; of the lost ones also what says which these are, from what there is.
    restarts
        Processes that must have been started again, or the fault didn't happen.
    around
        What is set up before the pool is started, given the fault's folder; gives further arguments of :class:`Rig`.
    check
        Says what else is wrong.
    catalog
        Whether the documents are also recorded, and compared as the catalog has them.
    """

    name: str
    does: str
    expects: str
    strike: Callable[[Rig], None] = nothing
    at: float = 1 / 3
    scan: Scan = FULL
    pool: dict[str, Any] = field(default_factory=dict)
    quarantined: Collection[int] = ()
    lost: Collection[int] | Callable[[Rig], Collection[int]] = ()
    restarts: Collection[str] = ()
    around: Callable[[Path], AbstractContextManager[dict[str, Any]]] = lambda folder: nullcontext({})
    check: Callable[[Rig, Report], list[str]] = lambda rig, report: []
    catalog: bool = True

    @contextmanager
    def _rig(self, site: Site, folder: Path) -> Iterator[Rig]:
        with (
            self.around(folder) as further,
            Rig(site, folder, self.scan, catalog=self.catalog, **self.pool, **further) as rig,
        ):
            yield rig

    def run(self, site: Site) -> Report:
        """Try it."""
        named = reference_name(self.scan, catalog=self.catalog)
        if named not in site.references and self.name != UNDISTURBED.name:
            scan = Scan(rows=self.scan.rows, columns=self.scan.columns)
            reference = replace(UNDISTURBED, scan=scan, catalog=self.catalog).run(site)
            if not reference.passed:
                return Report(self.name, complaints=["the undisturbed run failed", *reference.complaints])
        report = Report(self.name)
        folder = site.folder(self.name)
        if self.catalog:
            site.server.ready()
        began = time.monotonic()
        try:
            with nothing_left(site, report), self._rig(site, folder) as rig:
                rig.hutch.start()
                rig.hutch.wait_flown(round(self.at * self.scan.frames))
                self.strike(rig)
                try:
                    rig.finish()
                finally:
                    rig.account(report)
                rig.verdict(report, self.quarantined, self.lost(rig) if callable(self.lost) else self.lost)
                report.complaints += [
                    f"{name} was never started again: did the fault happen?"
                    for name in self.restarts
                    if name not in report.restarts
                ]
                report.complaints += self.check(rig, report)
        except Exception as error:  # whatever it was, the next fault is tried
            report.complaints.append(f"{type(error).__name__}: {error}")
        report.seconds = time.monotonic() - began
        if not report.passed:
            site.failed = True
            report.complaints.append(f"its files are in {folder}")
        return report


UNDISTURBED: Final = PoolFault(
    name="undisturbed",
    does="Nothing happens.",
    expects="Every frame comes live. Its arrays are what every other run's are compared with.",
)
