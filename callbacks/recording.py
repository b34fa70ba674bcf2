"""Processed runs kept in step with the ledger: what is new there is told to each run's composer; no sockets."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Final

from ..workers.errors import ReductionError, WireError
from ..workers.ledger.reader import LedgerReader
from ..workers.ledger.rows import BatchRow, ConstRow, RunRow
from ..workers.wire.documents import FULL_ANSWER, Document, Documents, Fetch, Part, pack
from ..workers.wire.messages import AnyMessage, Expect, RunClose, StreamOpen
from .processed_documents import Named, ProcessedDocuments

log = logging.getLogger(__name__)

ROWS: Final = 256
"""Batches read from the ledger at a time."""

LOOKED_BACK: Final = 100
"""Runs before the start of this process whose documents are made sure to be in the catalog."""

FINISHED_KEPT: Final = 16
"""Finished runs whose documents stay in memory; older ones are composed again when they are asked for."""


@dataclass(slots=True)
class Recorded:
    """One processed run: its documents so far, and where it stands."""

    row: RunRow
    number: int
    composer: ProcessedDocuments
    documents: list[Document] = field(default_factory=list)
    complete: bool = False
    seq: int = 0
    """The last batch that the composer was told of."""
    control: int = 0
    """The last control message that was read."""
    waiting: deque[tuple[int, AnyMessage]] = field(default_factory=deque)
    """Those that the composer wasn't told of, each with the last batch that came before it."""
    written: int = 0
    """How many documents have been handed to the catalog's writer."""

    def add(self, found: Iterable[Named]) -> None:
        """Take documents that were composed."""
        self.documents += [pack(name, doc) for name, doc in found]


class Recorder:
    """Keeps :class:`Recorded` runs in step with the ledger; no sockets.

    Parameters
    ----------
    ledger
        The ledger's read end.
    alive
        Called now and then in the course of long work.
    """

    def __init__(self, ledger: LedgerReader, alive: Callable[[], None] = lambda: None) -> None:
        self.runs: OrderedDict[str, Recorded] = OrderedDict()
        """By the processed run's uid, in the order in which they were opened."""
        self.newest = -1
        self.let_go: OrderedDict[str, int] = OrderedDict()
        """Of the last :data:`LOOKED_BACK` finished runs that aren't in memory any more: processed uid, and number."""
        self.faults: dict[str, str] = {}
        """Runs that can't be composed, and why."""
        self._ledger = ledger
        self._alive = alive
        self._seq = ledger.last_seq()

    def look(self) -> bool:
        """Read what is new in the ledger. Return whether there is a new document."""
        with self._ledger.snapshot():
            return self._look()

    def _look(self) -> bool:
        before = sum(len(each.documents) for each in self.runs.values())
        limit = LOOKED_BACK if self.newest < 0 else FINISHED_KEPT
        rows = {row.processed: row for row in [*self._ledger.runs(limit), *self._ledger.open_runs()]}
        for uid, row in sorted(rows.items(), key=lambda item: _number(item[1])):
            if uid in self.runs:
                self.runs[uid].row = row
            elif uid not in self.faults and (row.completed is None or _number(row) > self.newest):
                self._load(row)
            self.newest = max(self.newest, _number(row))
        for uid, recorded in list(self.runs.items()):
            if not recorded.complete and uid not in rows:
                self._refresh(recorded)
        by_run = {each.row.run: each for each in self.runs.values() if not each.complete}
        for recorded in by_run.values():
            self._read_control(recorded)
        while batches := self._ledger.after(self._seq, ROWS):
            self._alive()
            for batch in batches:
                if batch.run in by_run:
                    self._add(by_run[batch.run], batch)
                self._seq = batch.seq  # only now: should reading fail above, it is read again
        for recorded in by_run.values():
            self._tell_control(recorded)
            self._finish(recorded)
        return sum(len(each.documents) for each in self.runs.values()) > before

    def _refresh(self, recorded: Recorded) -> None:
        """Read the row of a run that is neither open nor among the last."""
        row = self._ledger.run(recorded.row.processed)
        if row is None:
            log.warning("run %s is reduced by other recipes now: its former documents end here", recorded.row.run)
            del self.runs[recorded.row.processed]
        else:
            recorded.row = row

    def summary(self) -> dict[str, int]:
        """Return how many runs aren't complete, and how many of their frames are reduced but have no documents."""
        growing = [each for each in self.runs.values() if not each.complete]
        return {"runs": len(growing), "behind": sum(each.composer.waiting for each in growing)}

    def find(self, uid: str) -> Recorded | None:
        """Return a run by its raw or its processed uid, composed from the ledger if it isn't in memory."""
        found = self.runs.get(uid) or next((each for each in self.runs.values() if each.row.run == uid), None)
        if found is not None:
            return found
        with self._ledger.snapshot():
            row = self._ledger.run(uid)
            if row is None or row.processed in self.faults:
                return None
            recorded = self._load(row)
            self._tell_control(recorded)
            self._finish(recorded)
        return self.runs.get(row.processed)

    def forget_finished(self, written: Iterable[str]) -> None:
        """Let go of the oldest finished runs that the catalog has."""
        known = set(written)
        finished = [uid for uid, each in self.runs.items() if each.complete and uid in known]
        for uid in finished[:-FINISHED_KEPT]:
            self.let_go[uid] = self.runs.pop(uid).number
        while len(self.let_go) > LOOKED_BACK:
            self.let_go.popitem(last=False)

    def _load(self, row: RunRow) -> Recorded:
        """Take up a run, with all batches that the ledger has of it."""
        composer = ProcessedDocuments(row.run, row.processed, row.start, row.opened_at, row.nexus)
        recorded = Recorded(row, _number(row), composer)
        recorded.add(composer.start())
        self.runs[row.processed] = recorded
        self._read_control(recorded)
        while batches := self._ledger.since(row.run, recorded.seq, ROWS):
            self._alive()
            for batch in batches:
                self._add(recorded, batch)
        return recorded

    def _read_control(self, recorded: Recorded) -> None:
        for number, after, message in self._ledger.control_since(recorded.row.run, recorded.control):
            recorded.waiting.append((after, message))
            recorded.control = number

    def _tell_control(self, recorded: Recorded, before: float = inf) -> None:
        """Tell the composer of the control messages that came before the batch of that ``seq``.

        It is told of both in the order in which they came into the ledger, whenever this process happens to read them:
        the documents must come in the same order after any restart.
        """
        while recorded.waiting and recorded.waiting[0][0] < before and recorded.row.processed not in self.faults:
            after, message = recorded.waiting.popleft()
            try:
                recorded.add(self._documents(recorded, message, after))
            except (WireError, ReductionError) as error:
                self._fail(recorded, error)

    def _documents(self, recorded: Recorded, message: AnyMessage, after: int) -> Iterator[Named]:
        composer = recorded.composer
        if isinstance(message, StreamOpen):
            composer.open(message)
            # What was done before is left from the run's former recipes: this stream has the same.
            first = 0
            while batches := self._ledger.batches(message.run, message.stream, message.cfg, first, until=after):
                for batch in batches:
                    yield from composer.batch(batch, self._consts(recorded, batch))
                first = batches[-1].first + 1
        elif isinstance(message, Expect):
            yield from composer.promise(message.stream, message.stop)
        elif isinstance(message, RunClose):
            yield from composer.close({total.stream: total.n for total in message.totals})

    def _add(self, recorded: Recorded, batch: BatchRow) -> None:
        if batch.seq <= recorded.seq or recorded.row.processed in self.faults:
            return
        self._tell_control(recorded, batch.seq)
        recorded.seq = batch.seq
        try:
            recorded.add(recorded.composer.batch(batch, self._consts(recorded, batch)))
        except (WireError, ReductionError) as error:
            self._fail(recorded, error)

    def _consts(self, recorded: Recorded, batch: BatchRow) -> list[ConstRow]:
        if not recorded.composer.lacks_consts(batch):
            return []
        return self._ledger.consts(batch.run, batch.stream, batch.cfg, until=batch.seq)

    def _finish(self, recorded: Recorded) -> None:
        row = recorded.row
        if row.completed is None or recorded.complete or row.processed in self.faults:
            return
        reason = str((row.stop or {}).get("reason") or "")
        accounting = self._ledger.accounting(row.run)
        exit_status = row.exit_status or "fail"
        recorded.add(recorded.composer.complete(row.completed, exit_status, accounting, reason, row.duplicates))
        recorded.complete = True

    def _fail(self, recorded: Recorded, error: Exception) -> None:
        """Give a run up, not the others."""
        log.error("run %s has no processed documents: %s", recorded.row.run, error)
        for uid in (recorded.row.processed, recorded.row.run):
            self.faults[uid] = str(error)[:500]
        self.runs.pop(recorded.row.processed, None)


def answer(recorder: Recorder, fetch: Fetch) -> Documents:
    """Return what there is for a session now; no parts if there is nothing."""
    parts: list[Part] = []
    room, size = fetch.limit, 0
    wanted = [(cursor.run, cursor.first) for cursor in fetch.cursors]
    if fetch.after >= 0:
        mentioned = {uid for uid, _ in wanted}
        # A session that was held up for long is told of those too that have ended and been let go of meanwhile.
        new = {uid: number for uid, number in recorder.let_go.items() if number > fetch.after}
        for uid, each in recorder.runs.items():
            if each.number > fetch.after and each.row.run not in mentioned:
                new[uid] = each.number
        wanted += [(uid, 0) for uid in sorted(new, key=new.__getitem__) if uid not in mentioned]
    for uid, first in wanted[:128]:
        recorded = recorder.find(uid)
        if recorded is None:
            if fault := recorder.faults.get(uid):
                parts.append(Part(0, uid, uid, first, [], True, fault))
            continue
        documents: list[Document] = []
        for document in recorded.documents[first : first + room]:
            if size >= FULL_ANSWER:
                break
            documents.append(document)
            size += len(document.body)
        room -= len(documents)
        row = recorded.row
        ended = recorded.complete and first + len(documents) >= len(recorded.documents)
        if documents or ended:
            parts.append(Part(recorded.number, row.run, row.processed, first, documents, ended))
        if room <= 0 or size >= FULL_ANSWER:
            break
    return Documents(fetch.serial, recorder.newest, parts)


def _number(row: RunRow) -> int:
    """Return a run's number: when it was opened, µs since 1970. It grows, and outlives this process."""
    return int(row.opened_at * 1e6)
