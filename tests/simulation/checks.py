"""What must hold: at each commit, between any two messages, and at the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from haltere.callbacks import dispatch_window
from haltere.callbacks.dispatch_core import DispatchCore
from haltere.callbacks.recording import Recorder
from haltere.workers.broker import queue as broker_queue
from haltere.workers.broker import waiting as broker_waiting
from haltere.workers.broker.batch import State
from haltere.workers.broker.core import BrokerCore
from haltere.workers.ingest.core import Source
from haltere.workers.ledger.reader import LedgerReader
from haltere.workers.ledger.rows import BatchRow, Group, Outcome
from haltere.workers.payload import unpack as unpack_arrays
from haltere.workers.sink import core as sink_core
from haltere.workers.sink.core import SinkCore
from haltere.workers.spill.pipe import Kind
from haltere.workers.wire.documents import Document, unpack
from haltere.workers.wire.messages import LIVE, LOST, QUARANTINED, STATUS_NAMES, Work
from haltere.workers.worker import core as worker_core
from haltere.workers.worker.core import PREFETCH, WorkerCore

from .model import Detector, Nature, expected_rows

if TYPE_CHECKING:
    from .beamline import Run
    from .world import World

STALL_BYTES = 64 * 1024
"""More than one result of a model batch has."""


class Checks:
    """Looks over everybody's shoulder."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._blamed: Counter[tuple[str, str, int]] = Counter()
        """(run, stream, frame): how often a reducer died at it for no reason of its own."""

    # --- between two messages ----------------------------------------------------------------------------------------

    def broker(self, core: BrokerCore) -> None:
        """See that the broker's books agree, and are of bounded size."""
        leases = core.peers._leases
        leased = Counter((lease.key, lease.number) for lease in leases.values())
        assert all(count == 1 for count in leased.values()), "a batch is leased twice"
        queued: set[tuple[Any, int]] = set()
        n_leased = 0
        for stream in core.runs.streams:
            for number, batch in stream.batches.items():
                if batch.state is State.LEASED:
                    n_leased += 1
                    assert leased[stream.key, number], f"{stream.key} {number}: leased to nobody"
                elif batch.state is State.QUEUED:
                    queued.add((stream.key, number))
        assert n_leased == len(leases), "a lease of no batch"
        if queued:
            assert queued <= set(core._queue), "a batch that nobody will take"
        for peer in core.peers.of("worker"):
            assert peer.sent <= peer.limit, f"{peer.name} was sent more than it takes"
        assert len(core._waiting) <= broker_waiting.MAX_BLOCKS
        assert (
            sum(entry.filed for entry in (*core._queue._live, *core._queue._backfill))
            <= broker_queue.FILES_QUEUED * max(len(core.runs.streams), 1) + 64
        )

    def sink(self, core: SinkCore) -> None:
        """See that what waits for the disk is bounded."""
        assert core._waiting.size <= vars(sink_core)["MAX_BUFFER"] + STALL_BYTES, f"{core._waiting.size} bytes wait"
        assert len(core._waiting.group.control) <= vars(sink_core)["MAX_CONTROLS"]

    def worker(self, core: WorkerCore) -> None:
        """See that what waits for the sink is bounded."""
        assert core.kept <= worker_core.MAX_KEPT + PREFETCH, f"{core.name} keeps {core.kept} results"
        assert core.in_hand <= 2

    def dispatcher(self, core: DispatchCore) -> None:
        """See that the window holds."""
        assert len(core._window._unacknowledged) <= dispatch_window.WINDOW

    def landed(self, source: Source, frame: int) -> None:
        """Take note of a frame that came into the ring."""
        self._by_series(source.series).lands.add(frame)
        core = self.world.ingest.core
        assert core.arena.used <= core.arena.size

    def spilled(self, kind: Kind, frames: list[int]) -> None:
        """Take note of frames that are in a file of the pool's now."""
        self._detector(kind.run, kind.stream).spilled.update(frames)
        self.world.counts["frames spilled"] += len(frames)

    def blamed(self, work: Work, frame: int) -> None:
        """Take note that a worker names a frame as the one at which its reducer died."""
        if self._detector(work.run, work.stream).nature(frame) is Nature.PLAIN:
            self._blamed[work.run, work.stream, frame] += 1

    # --- at each commit ----------------------------------------------------------------------------------------------

    def committed(self, group: Group, outcome: Outcome) -> None:
        """See that what was committed is right, frame by frame and bit by bit."""
        for row, new in zip(group.batches, outcome.new, strict=True):
            if new:
                self._row(row)
            else:
                self.world.counts["duplicates"] += 1
        self.world.counts["duplicates"] += sum(group.duplicates.values())
        self.world.counts["commits"] += 1

    def _row(self, row: BatchRow) -> None:
        detector = self._detector(row.run, row.stream)
        reasons = dict(row.reasons)
        for place, status in enumerate(row.status):
            self._frame(row, detector, row.first + place, status, reasons)
        expected = expected_rows(detector, range(row.first, row.first + row.n), row.status)
        pieces = unpack_arrays(row.arrays, row.payload, row.n)
        if any(status < QUARANTINED for status in row.status):
            assert pieces, f"{row.key}: no arrays"
        for piece in pieces:
            assert piece.array.tobytes() == expected[piece.name].tobytes(), (
                f"{row.key} {piece.name} of {row.worker}: {piece.array} isn't {expected[piece.name]}"
            )

    def _frame(self, row: BatchRow, detector: Detector, frame: int, status: int, reasons: dict[int, str]) -> None:
        what = f"t={self.world.now:.3f} {detector.name} frame {frame} is {STATUS_NAMES[status]}: {reasons.get(frame)!r}"
        nature = detector.nature(frame)
        self.world.counts[f"frames {STATUS_NAMES[status]}"] += 1
        if status == LOST:
            assert self._lost(detector, frame), f"{what}, its file has it"
            assert reasons.get(frame), what
        elif status == QUARANTINED:
            blamed = self._blamed[row.run, row.stream, frame]
            # It came, but what came is of no use, and its file has nothing better.
            came = frame in detector.damaged & detector.lands and self._lost(detector, frame)
            useless = came or frame in detector.broken
            assert nature is not Nature.PLAIN or useless or blamed > 1, f"{what}, it is innocent"
            assert reasons.get(frame), what
        else:
            assert nature is Nature.PLAIN, f"{what}, and {nature.name}"
            if detector.live and status == LIVE:
                assert frame in detector.lands, f"{what}, and never came"
                assert frame not in detector.damaged, f"{what}, and bytes of it were missing"
            else:
                assert not self._lost(detector, frame), f"{what}, and isn't in the file"
                assert frame not in detector.broken, f"{what}, and bytes of it are missing"
            assert (status == LIVE) or detector.live, f"{what}, though its file is its live lane"

    def _lost(self, detector: Detector, frame: int) -> bool:
        if frame in detector.spilled:
            return False
        return frame >= len(detector.written) or detector.written[frame] > self.world.now

    # --- the end -----------------------------------------------------------------------------------------------------

    def lacking(self) -> list[str]:
        """Return what hasn't come to its end yet."""
        world = self.world
        everybody = (world.broker, world.sink, world.ingest, world.recorder, world.session, *world.workers)
        found = [f"{process.name} is down" for process in everybody if not process.alive]
        if found:
            return found
        if not world.session.core.idle:
            found.append("the sink hasn't acknowledged every document")
        if any(world.now <= run.over for run in world.runs):
            found.append("a run isn't over")
        if any(run.life == world.session.life and run.uid not in world.sink.core.runs for run in world.runs):
            found.append("the sink doesn't know every run")
        for run in world.sink.core.runs.values():
            if run.completed is None:
                short = {name: state.books.done for name, state in run.streams.items()}
                found.append(f"run {run.open.run} isn't complete: {run.totals} {short}")
            if run.open.processed not in world.session.ended:
                found.append(f"the session hasn't got all of {run.open.processed}")
            if not world.catalog.complete(run.open.processed):
                found.append(f"the catalog hasn't got all of {run.open.processed}")
        for worker in world.workers:
            if not worker.core.idle:
                found.append(f"{worker.name} keeps {worker.core.kept} results, runs {worker.core.running}")
        if world.broker.core.runs:
            found.append(f"the broker remembers {world.broker.core.snapshot()}")
        if pending := world.ingest.book.pending():
            found.append(f"spilled, or to be, and not confirmed: {pending}")
        if world.ingest.core.arena.held:
            blocks = {offset: block.frame for offset, (_, block) in world.ingest.core._held.items()}
            found.append(f"blocks were not given back: {blocks}")
        return found

    def end(self) -> None:
        """See that accounts, ledger and documents agree, and that documents are as they must be."""
        world = self.world
        core = world.broker.core
        assert not core.peers.leases
        assert not len(core._queue)
        assert core.peers.backfilling == 0
        assert core.snapshot()["ring_bytes"] == 0
        assert not world.sink.core._waiting.group
        reader = LedgerReader(world.sink.path)
        try:
            recorder = Recorder(reader)
            recorder.look()
            again = {uid: recorded.documents for uid, recorded in recorder.runs.items()}
            for run in world.runs:
                self._run(run, reader, again)
            self._drops(reader)
        finally:
            reader.close()

    def _run(self, run: Run, reader: LedgerReader, again: dict[str, list[Document]]) -> None:
        row = reader.run(run.uid)
        abandoned = run.life != self.world.session.life
        if row is None:
            assert abandoned
            return
        assert row.completed is not None
        assert row.totals is not None
        detectors = run.detectors
        if row.totals == {name: each.promised for name, each in detectors.items()}:
            assert row.exit_status == run.scan.exit_status or (abandoned and row.exit_status == "fail")
        else:  # what the session said before it was gone
            assert abandoned
            assert row.exit_status == "fail"
            assert all(n <= detectors[name].promised for name, n in row.totals.items())
            detectors = {name: replace(detectors[name], promised=n) for name, n in row.totals.items()}
            self.world.counts["runs closed by the sink"] += 1
        account = reader.accounting(run.uid)
        statuses = {name: self._account(each, account[name], reader, run.uid) for name, each in detectors.items()}
        documents = again[row.processed]
        for whose, found in (("session", self.world.session.followed), ("catalog", self.world.catalog.runs)):
            assert found[row.processed] == documents, (
                f"the {whose}'s documents: {difference(found[row.processed], documents)}"
            )
        self._documents(detectors, [unpack(document) for document in documents], account, statuses)

    def _drops(self, reader: LedgerReader) -> None:
        """See that no more drops were counted than there were, whoever saw them, however often that was said."""
        seen: Counter[str] = Counter()
        for run in self.world.runs:
            for causes in reader.drops(run.uid).values():
                seen.update(causes)
        dropped = self.world.ingest.dropped
        assert seen <= dropped, f"{seen - dropped} more drops were counted than there were"
        self.world.counts["drops seen"] += seen.total()
        self.world.counts["drops"] += dropped.total()

    def _account(self, detector: Detector, account: dict[str, Any], reader: LedgerReader, uid: str) -> list[int]:
        """See that each frame is in exactly one interval, as its row says; return the statuses."""
        assert account["expected"] == detector.promised
        statuses = [-1] * detector.promised
        for number, name in enumerate(STATUS_NAMES):
            assert account[name] == sum(stop - first for first, stop in account["intervals"][name])
            for first, stop in account["intervals"][name]:
                assert first < stop
                for frame in range(first, stop):
                    assert statuses[frame] == -1, f"{detector.name} frame {frame} is in two states"
                    statuses[frame] = number
        assert -1 not in statuses, f"{detector.name} frame {statuses.index(-1)} is in no state"
        (stream,) = [each for each in reader.streams(uid) if each.stream == detector.name]
        rows = reader.batches(uid, detector.name, stream.cfg, 0, 10_000)
        if stream.sums:
            assert all(row.first + row.n <= detector.promised for row in rows), "added up and never promised"
        rows = [row for row in rows if row.first < detector.promised]  # others came and were never promised
        assert all(one.first + one.n == other.first for one, other in pairwise(rows))
        flat = [status for row in rows for status in row.status][: detector.promised]
        assert flat == statuses
        for frame, status in enumerate(statuses):
            assert (str(frame) in account["reasons"]) == (status >= QUARANTINED)
            if detector.nature(frame) is not Nature.PLAIN:
                assert status >= QUARANTINED
            self.world.counts[f"in the end {STATUS_NAMES[status]}"] += 1
        return statuses

    def _documents(
        self,
        detectors: dict[str, Detector],
        documents: list[Any],
        account: dict[str, Any],
        statuses: dict[str, list[int]],
    ) -> None:
        """See that a processed run's documents are valid, in order, each once, complete, and right."""
        assert documents[0][0] == "start"
        assert documents[-1][0] == "stop"
        assert [name for name, _ in documents].count("start") == 1
        assert [name for name, _ in documents].count("stop") == 1
        uids = [uid for name, doc in documents for uid in (doc["uid"] if name == "event_page" else [doc["uid"]])]
        assert len(set(uids)) == len(uids)
        descriptors: dict[str, Any] = {}
        resources: dict[str, Any] = {}
        reached: Counter[str] = Counter()
        datums: Counter[str] = Counter()
        for name, doc in documents:
            if name == "descriptor":
                assert doc["name"] not in {each["name"] for each in descriptors.values()}
                descriptors[doc["uid"]] = doc
            elif name == "stream_resource":
                resources[doc["uid"]] = doc
            elif name == "event_page":
                stream = descriptors[doc["descriptor"]]["name"]
                first = reached[stream]
                assert doc["seq_num"] == list(range(first + 1, first + 1 + len(doc["seq_num"])))
                assert set(doc["data"]) == {
                    key for key, each in descriptors[doc["descriptor"]]["data_keys"].items() if "external" not in each
                }
                self._page(detectors, descriptors[doc["descriptor"]], doc, statuses)
                reached[stream] += len(doc["seq_num"])
            elif name == "stream_datum":
                assert doc["stream_resource"] in resources
                assert doc["descriptor"] in descriptors
                assert doc["indices"]["start"] == datums[doc["stream_resource"]]
                datums[doc["stream_resource"]] = doc["indices"]["stop"]
        stop = documents[-1][1]
        assert stop["run_start"] == documents[0][1]["uid"]
        assert stop["num_events"] == {stream: n for stream, n in reached.items() if n}
        sources = {each["name"]: each["configuration"][each["name"]]["data"]["source"] for each in descriptors.values()}
        for stream, source in sources.items():
            assert reached[stream] == detectors[source].promised
        wanted = {name for name, each in detectors.items() if each.promised}
        assert wanted == set(sources.values())
        assert all(n == detectors[self._source(resources[uid], sources)].promised for uid, n in datums.items())
        assert stop["frames"].keys() == account.keys()
        for name, each in account.items():
            assert {key: stop["frames"][name][key] for key in each} == each

    @staticmethod
    def _source(resource: dict[str, Any], sources: dict[str, str]) -> str:
        return sources[resource["parameters"]["dataset"].split("/")[2]]

    def _page(
        self,
        detectors: dict[str, Detector],
        descriptor: dict[str, Any],
        page: dict[str, Any],
        statuses: dict[str, list[int]],
    ) -> None:
        """See that a page's numbers are its frames'."""
        detector = detectors[descriptor["configuration"][descriptor["name"]]["data"]["source"]]
        frames = range(page["data"]["frame"][0], page["data"]["frame"][-1] + 1)
        assert page["data"]["frame"] == list(frames)
        mine = statuses[detector.name][frames[0] : frames[-1] + 1]
        assert page["data"]["status"] == mine
        expected = expected_rows(detector, frames, bytes(mine))
        if "pilc" in detectors and detector.name != "pilc":
            pilc = detectors["pilc"]
            expected |= expected_rows(pilc, frames, bytes(statuses["pilc"][frames[0] : frames[-1] + 1]))
        for key, values in page["data"].items():
            if key not in ("frame", "status"):
                assert np.array_equal(np.array(values, float), expected[key].astype(float), equal_nan=True), (
                    f"{descriptor['name']} {key} of {frames}: {values} isn't {expected[key]}"
                )

    # --- inside ------------------------------------------------------------------------------------------------------

    def _detector(self, run: str, stream: str) -> Detector:
        (found,) = [each for each in self.world.runs if each.uid == run]
        return found.detectors[stream]

    def _by_series(self, series: int) -> Detector:
        (found,) = [
            detector for run in self.world.runs for detector in run.detectors.values() if detector.series == series
        ]
        return found


def difference(found: list[Document], expected: list[Document]) -> str:
    """Say where documents begin to differ from those that a new recorder composes."""
    for number, (one, other) in enumerate(zip(found, expected, strict=False)):
        if one != other:
            return f"number {number} is {unpack(one)}, not {unpack(other)}"
    return f"{len(found)} in place of {len(expected)}"
