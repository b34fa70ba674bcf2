"""The ends of the path: the session that has the documents and follows the results, the recorder, the catalog."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haltere.callbacks.dispatch_core import DispatchCore
from haltere.callbacks.journal import Journal
from haltere.callbacks.recorder import Question
from haltere.callbacks.recording import Recorder, answer
from haltere.workers.ledger.reader import LedgerReader
from haltere.workers.recipes import Recipe
from haltere.workers.wire import documents as wire
from haltere.workers.wire.documents import Cursor, Document, Documents, Fetch
from haltere.workers.wire.messages import VERSION, Ack, Beat, Bye, Done, Hello, Welcome, decode, encode

from .process import Parts, Process

if TYPE_CHECKING:
    from .world import World

UPTIME = 1000.0
"""What a monotonic clock shows when virtual time begins: in no machine is it 0."""

TICK = 0.2
BEAT = 1.0
LOOK = 0.5
PAUSE = 0.05
GREETING = 2.0
WAIT = 2.0
PATIENCE = 1.0


class Session(Process):
    """A RunEngine's process: the dispatcher and the follower in it, as ``callbacks/dispatch.py``, ``following.py``."""

    def __init__(self, world: World, name: str, recipes: tuple[Recipe, ...]) -> None:
        super().__init__(world, name)
        self.recipes = recipes
        self.followed: dict[str, list[Document]] = {}
        """By processed uid: the documents that came in this life."""
        self.ended: set[str] = set()

    @property
    def called(self) -> str:
        """What this life of it is called."""
        return f"{self.name}-{self.life}"

    def begin(self) -> None:
        """Make the dispatcher; ask the recorder for all that there is."""
        self.followed, self.ended = {}, set()
        self._beat_at = 0.0
        self.core = DispatchCore(self.world.epoch(), self.recipes)
        self._cursors: dict[str, int] = {}
        self._after = 0  # from the first run on: it was here before the pool had any
        self._serial = 0
        self.after(0.0, self.every, TICK, self._turn)
        self.after(0.0, self._ask)

    def leave(self) -> None:
        """End as a program does that was told to."""
        self.links[0].to_server(encode(Bye(self.core.session)))

    def document(self, name: str, doc: dict[str, Any]) -> None:
        """Take a document from the RunEngine."""
        self.core.document(name, doc)
        self._turn()

    def hear(self, server: Process, parts: Parts) -> None:
        """Take the sink's or the recorder's word."""
        if server is self.world.sink:
            message = decode(parts[0])
            if isinstance(message, Welcome | Ack):
                self._turn(self.core.heard(message, UPTIME + self.world.now))
        else:
            found = wire.decode(parts[0])
            if isinstance(found, Documents) and found.serial == self._serial:
                self._take(found)

    def _turn(self, greet: bool = False) -> None:
        now = UPTIME + self.world.now
        to_sink = self.links[0]
        if greet or self.core.impatient(now):
            to_sink.to_server(encode(Hello(VERSION, "dispatcher", self.called, self.core.session)))
        elif now >= self._beat_at:
            self._beat_at = now + BEAT
            to_sink.to_server(encode(Beat(self.core.session)))
        for data in self.core.outgoing(now):
            to_sink.to_server(data)
        self.world.checks.dispatcher(self.core)

    def _ask(self) -> None:
        self._serial += 1
        wanted = [Cursor(run, first) for run, first in self._cursors.items()]
        self.links[1].to_server(wire.encode(Fetch(self._serial, self._after, wanted, 20, int(1000 * WAIT))))
        self.after(WAIT + PATIENCE, self._ask_anew, self._serial)

    def _ask_anew(self, serial: int) -> None:
        if serial == self._serial:  # unanswered: it may be lost, with a recorder that died
            self.links[1].ask_anew()
            self._ask()

    def _take(self, found: Documents) -> None:
        for part in found.parts:
            assert not part.fault, part.fault
            if part.first != self._cursors.get(part.processed, 0):
                continue
            mine = self.followed.setdefault(part.processed, [])
            mine += part.documents
            self._cursors[part.processed] = part.first + len(part.documents)
            if part.complete:
                del self._cursors[part.processed]
                self.ended.add(part.processed)
            self._after = max(self._after, part.number)
        self._ask()


class Catalog:
    """What Tiled does for ``callbacks/rewriting.py``: keeps runs, or is away."""

    def __init__(self) -> None:
        self.away_until = 0.0
        self.runs: dict[str, list[Document]] = {}

    def complete(self, uid: str) -> bool:
        """Say whether a run is there to its stop document."""
        return bool(self.runs.get(uid)) and self.runs[uid][-1].name == "stop"


class RecorderProcess(Process):
    """As ``callbacks/recorder.py``, with a writer that deletes and rewrites as ``rewriting.py`` does."""

    recorder: Recorder
    journal: Journal

    def __init__(self, world: World, name: str, path: Path) -> None:
        super().__init__(world, name)
        self.path = path

    def begin(self) -> None:
        """Open the ledger and the journal."""
        self._ledger = LedgerReader(self.path)
        self.recorder = Recorder(self._ledger)
        self.journal = Journal(self.path.with_name("recorder.db"))
        self._questions: list[Question] = []
        self._buffer: list[tuple[str, Document]] = []
        self._begun: set[str] = set()
        self._broken: set[str] = set()
        self._looked = self._look_at = float("-inf")
        self._session = self.world.epoch()
        self.after(0.0, self.every, GREETING, self._greet)
        self.after(0.0, self._look, self._look_at)

    def end(self) -> None:
        """Let the files go."""
        self._ledger.close()
        self.journal.close()

    def _greet(self) -> None:
        self.links[0].to_server(encode(Hello(VERSION, "recorder", "recorder", self._session)))

    def hear(self, server: Process, parts: Parts) -> None:
        """Look soon if the sink has news."""
        if isinstance(decode(parts[0]), Done | Welcome):
            at = max(self._looked + PAUSE, self.world.now)
            if at < self._look_at:
                self._look_at = at
                self.after(at - self.world.now, self._look, at)

    def receive(self, peer: bytes, parts: Parts) -> None:
        """Take a session's question."""
        fetch = wire.decode(parts[0])
        assert isinstance(fetch, Fetch)
        wait = fetch.wait_ms / 1000 if fetch.after >= 0 or fetch.cursors else 0.0
        self._questions.append(Question(peer, fetch, self.world.now + wait))
        self._answer(asked=True)
        self.after(wait + 0.001, self._answer)

    def _look(self, planned: float) -> None:
        if planned != self._look_at:
            return
        now = self.world.now
        self._looked, self._look_at = now, now + LOOK
        self.after(LOOK, self._look, self._look_at)
        news = False
        try:
            news = self.recorder.look()
        except sqlite3.Error:
            self.world.counts["looks that failed"] += 1
        assert not self.recorder.faults, self.recorder.faults
        self._write()
        self.recorder.forget_finished(self.journal.written)
        self._answer(asked=news)

    def _answer(self, *, asked: bool = False) -> None:
        waiting = []
        for question in self._questions:
            late = self.world.now >= question.until
            found = answer(self.recorder, question.fetch) if asked or late else None
            if found is None or not (found.parts or late):
                waiting.append(question)
            elif question.peer in self.served:
                self.served[question.peer].to_client(wire.encode(found))
        self._questions = waiting

    # --- the catalog's writer ----------------------------------------------------------------------------------------

    def _write(self) -> None:
        for recorded in self.recorder.runs.values():
            uid = recorded.row.processed
            if uid in self.journal.written:
                continue
            new = recorded.documents[recorded.written :]
            self._buffer += [(uid, document) for document in new]
            recorded.written += len(new)
        catalog = self.world.catalog
        while self._buffer and self.world.now >= catalog.away_until:
            uid, document = self._buffer.pop(0)
            if document.name == "start":
                if catalog.complete(uid):
                    self.journal.add(uid)  # a recorder before this one wrote it and died before it noted that
                    continue
                catalog.runs[uid] = []
                self._begun.add(uid)
            if uid in self._begun:
                catalog.runs[uid].append(document)
                if document.name == "stop":
                    self._begun.discard(uid)
                    self.world.note("catalog has %s", uid)
                    self.after(0.01, self.journal.add, uid)
