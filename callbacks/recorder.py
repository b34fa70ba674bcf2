"""The recorder: ``python -m haltere.callbacks.recorder '<json>'``, one process.

It reads the ledger, composes each run's processed documents in the order of frames, serves them to sessions (each with
cursors of its own), and writes them to the catalog ``processed``. All that it knows it can read again: it may die at
any time.

Settings, as one JSON argument: ``bind`` (for sessions), ``sink``, ``ledger`` (path), ``catalog`` (URI; without one
nothing is written), ``api_key_file``.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from math import inf
from pathlib import Path
from time import monotonic, time_ns
from typing import Any, Final

import zmq

from ..workers.errors import FileError, HaltereError, ReductionError, WireError
from ..workers.ledger_reader import LedgerReader
from ..workers.ledger_rows import BatchRow, ConstRow, RunRow
from ..workers.lifeline import Lifeline, announce
from ..workers.wire.documents import (
    FULL_ANSWER,
    Document,
    Documents,
    Fetch,
    Part,
    decode,
    encode,
    pack,
    unpack,
)
from ..workers.wire.messages import VERSION, AnyMessage, Done, Expect, Hello, RunClose, StreamOpen, Welcome
from ..workers.wire.messages import decode as decode_pool
from ..workers.wire.messages import encode as encode_pool
from .processed_documents import Named, ProcessedDocuments

log = logging.getLogger(__name__)

LOOK: Final = 0.25
"""Seconds between looks at the ledger when the sink says nothing: runs that open and complete come without a DONE."""

PAUSE: Final = 0.05
"""Seconds at least between two looks, however often the sink says that there is something."""

GREETING: Final = 2.0
"""Seconds between greetings to the sink, which a new one needs to know of this recorder."""

ROWS: Final = 256
"""Batches read from the ledger at a time."""

LOOKED_BACK: Final = 100
"""Runs before the start of this process whose documents are made sure to be in the catalog."""

FINISHED_KEPT: Final = 16
"""Finished runs whose documents stay in memory; older ones are composed again when they are asked for."""

MAX_SESSIONS: Final = 256
"""Most questions that wait for an answer; the oldest is then answered with what there is."""

MOST_WAITING: Final = 20_000
"""Documents that may wait in memory for the catalog, beside those kept for the sessions."""

BATCH_SIZE: Final = 500
"""Rows that go to the catalog in one request."""


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
    """

    def __init__(self, ledger: LedgerReader) -> None:
        self.runs: OrderedDict[str, Recorded] = OrderedDict()
        """By the processed run's uid, in the order in which they were opened."""
        self.newest = -1
        self.faults: dict[str, str] = {}
        """Runs that can't be composed, and why."""
        self._ledger = ledger
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
            del self.runs[uid]

    def _load(self, row: RunRow) -> Recorded:
        """Take up a run, with all batches that the ledger has of it."""
        composer = ProcessedDocuments(row.run, row.processed, row.start, row.opened_at, row.nexus)
        recorded = Recorded(row, _number(row), composer)
        recorded.add(composer.start())
        self.runs[row.processed] = recorded
        self._read_control(recorded)
        while batches := self._ledger.since(row.run, recorded.seq, ROWS):
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
                    yield from composer.batch(batch, self._consts(batch))
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
            recorded.add(recorded.composer.batch(batch, self._consts(batch)))
        except (WireError, ReductionError) as error:
            self._fail(recorded, error)

    def _consts(self, batch: BatchRow) -> list[ConstRow]:
        return self._ledger.consts(batch.run, batch.stream, batch.cfg) if batch.first == 0 else []

    def _finish(self, recorded: Recorded) -> None:
        row = recorded.row
        if row.completed is None or recorded.complete or row.processed in self.faults:
            return
        reason = str((row.stop or {}).get("reason") or "")
        accounting = self._ledger.accounting(row.run)
        recorded.add(recorded.composer.complete(row.completed, row.exit_status or "fail", accounting, reason))
        recorded.complete = True

    def _fail(self, recorded: Recorded, error: Exception) -> None:
        """Give a run up, not the others."""
        log.error("run %s has no processed documents: %s", recorded.row.run, error)
        for uid in (recorded.row.processed, recorded.row.run):
            self.faults[uid] = str(error)[:500]
        self.runs.pop(recorded.row.processed, None)


class Journal:
    """Which processed runs the catalog has, complete; a file of its own, so that the catalog needn't be asked."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("create table if not exists written(processed text primary key)")
        self.written = {uid for (uid,) in self._db.execute("select processed from written")}

    def add(self, processed: str) -> None:
        """Note a run."""
        with self._lock:
            self.written.add(processed)
            try:
                self._db.execute("insert or ignore into written values(?)", (processed,))
            except sqlite3.Error as error:  # it will be looked up in the catalog again, no more
                log.warning("the recorder's journal can't be written: %s", error)

    def close(self) -> None:
        """Close it."""
        self._db.close()


class Question:
    """A session's question that waits for an answer."""

    __slots__ = ("fetch", "peer", "until")

    def __init__(self, peer: bytes, fetch: Fetch, until: float) -> None:
        self.peer = peer
        self.fetch = fetch
        self.until = until


def answer(recorder: Recorder, fetch: Fetch) -> Documents:
    """Return what there is for a session now; no parts if there is nothing."""
    parts: list[Part] = []
    room, size = fetch.limit, 0
    wanted = [(cursor.run, cursor.first) for cursor in fetch.cursors]
    if fetch.after >= 0:
        mentioned = {uid for uid, _ in wanted}
        new = [each for each in recorder.runs.values() if each.number > fetch.after]
        new.sort(key=lambda each: each.number)
        wanted += [(each.row.processed, 0) for each in new if not {each.row.run, each.row.processed} & mentioned]
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


class CatalogWriter:
    """Hands the documents of runs that the catalog hasn't got to its writer, which has a thread of its own."""

    def __init__(self, uri: str, api_key_file: Path, journal: Journal) -> None:
        from .buffer import FlushableBuffer
        from .catalog import Catalog
        from .rewriting import Rewriting

        self._journal = journal
        # Tiled takes seconds to import: better now, while nothing is measured, than with the first run.
        threading.Thread(target=import_module, args=("bluesky_tiled_plugins",), daemon=True).start()
        self._buffer = FlushableBuffer(
            # A client of its own for each try: after a failure nothing of the old connection is trusted.
            Rewriting(lambda: Catalog.connect(uri, api_key_file).processed, batch_size=BATCH_SIZE, finished=journal.add)
        )

    def write(self, runs: Iterable[Recorded]) -> None:
        """Hand over what is new."""
        room = MOST_WAITING - self._buffer.waiting
        for recorded in runs:
            if recorded.row.processed not in self._journal.written:
                new = recorded.documents[recorded.written :][: max(room, 0)]
                for document in new:
                    self._buffer(*unpack(document))
                recorded.written += len(new)
                room -= len(new)


def wait_for_ledger(path: Path, lifeline: Lifeline) -> LedgerReader | None:
    """Return the ledger as soon as the sink has made it; None if it is time to end."""
    poller = zmq.Poller()
    lifeline.register(poller)
    said = False
    while True:
        try:
            return LedgerReader(path)
        except FileError as error:
            if not said:
                log.warning("%s", error)
                said = True
        if lifeline.over(dict(poller.poll(100))):
            return None


def run(settings: dict[str, Any]) -> None:
    """Record until SIGTERM or the end of standard input."""
    lifeline = Lifeline()
    context = zmq.Context()
    sessions = context.socket(zmq.ROUTER)
    sessions.linger = 0
    sessions.maxmsgsize = 1 << 20
    try:
        sessions.bind(settings["bind"])
    except zmq.ZMQError as error:
        sys.exit(f"{settings['bind']} can't be used: {error}; name another endpoint")
    ledger_path = Path(settings["ledger"])
    ledger = wait_for_ledger(ledger_path, lifeline)
    if ledger is None:
        return
    recorder = Recorder(ledger)
    writer = None
    journal = Journal(ledger_path.with_name("recorder.db"))
    if settings.get("catalog"):
        writer = CatalogWriter(settings["catalog"], Path(settings["api_key_file"]), journal)
    sink = context.socket(zmq.DEALER)
    sink.linger = 0
    sink.connect(settings["sink"])
    poller = zmq.Poller()
    for socket in (sessions, sink):
        poller.register(socket, zmq.POLLIN)
    lifeline.register(poller)
    announce(role="recorder", ready=True)
    hello = encode_pool(Hello(VERSION, "recorder", "recorder", time_ns() // 1_000_000))
    questions: list[Question] = []
    look_at = greet_at = looked = 0.0
    while True:
        now = monotonic()
        if now >= greet_at:
            greet_at = now + GREETING
            _send(sink, hello)
        due = min([look_at, greet_at, *(question.until for question in questions)])
        events = dict(poller.poll(max(int(1000 * (due - now)) + 1, 0)))
        if lifeline.over(events):
            return
        while sink in events and sink.poll(0):
            if _is_news(sink.recv()):
                look_at = min(look_at, looked + PAUSE)
        asked = False
        while sessions in events and sessions.poll(0):
            question = _question(sessions.recv_multipart(), monotonic())
            if question is not None:
                questions.append(question)
                asked = True
        now = monotonic()
        news = False
        if now >= look_at:
            looked, look_at = now, now + LOOK
            try:
                news = recorder.look()
            except sqlite3.Error as error:
                log.warning("the ledger can't be read now: %s; trying again", error)
            if writer is not None:
                writer.write(recorder.runs.values())
            recorder.forget_finished(journal.written if writer is not None else recorder.runs.keys())
        waiting = []
        for place, question in enumerate(questions):
            late = now >= question.until or len(questions) - place > MAX_SESSIONS
            found = answer(recorder, question.fetch) if news or asked or late else None
            if found is not None and (found.parts or late):
                _send(sessions, question.peer, encode(found))
            else:
                waiting.append(question)
        questions = waiting


def _is_news(data: bytes) -> bool:
    try:
        return isinstance(decode_pool(data), Done | Welcome)
    except WireError as error:
        log.warning("the sink says what can't be read: %s", error)
        return False


def _question(parts: list[bytes], now: float) -> Question | None:
    if len(parts) != 2:
        log.warning("a session's message has %d parts, expected 2: dropped", len(parts))
        return None
    try:
        fetch = decode(parts[1])
    except WireError as error:
        log.warning("a session says what can't be read: %s", error)
        return None
    # −1 asks where to start: that is answered at once.
    wait = fetch.wait_ms / 1000 if isinstance(fetch, Fetch) and (fetch.after >= 0 or fetch.cursors) else 0.0
    return Question(parts[0], fetch, now + wait) if isinstance(fetch, Fetch) else None


def _send(socket: zmq.Socket[bytes], *parts: bytes) -> None:
    try:
        socket.send_multipart(parts, zmq.NOBLOCK)
    except zmq.ZMQError as error:  # the other end is away: it asks, or is greeted, again
        log.debug("not sent: %s", error)


def _number(row: RunRow) -> int:
    """Return a run's number: when it was opened, µs since 1970. It grows, and outlives this process."""
    return int(row.opened_at * 1e6)


if __name__ == "__main__":
    # Tiled's client would try for 149 s before it says that the server is away.
    os.environ.setdefault("TILED_RETRY_ATTEMPTS", "2")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    try:
        run(json.loads(sys.argv[1]))
    except HaltereError as error:
        sys.exit(str(error))
