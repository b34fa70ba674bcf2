"""The sink: its core and a real ledger, in a shell with virtual sockets."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from haltere.workers.ledger.reader import LedgerReader
from haltere.workers.ledger.rows import Group
from haltere.workers.ledger.writer import Ledger
from haltere.workers.sink.core import REMEMBERED, SinkCore
from haltere.workers.sink.core import Send as SinkSend
from haltere.workers.sink.tellers import Tellers
from haltere.workers.wire.messages import (
    Beat,
    RunOpen,
    decode,
    encode,
)

from .process import Parts, Process

if TYPE_CHECKING:
    from .world import World


class Sink(Process):
    """As ``workers/sink/process.py``, with a NeXus file that is only waited for."""

    core: SinkCore
    ledger: Ledger

    def __init__(self, world: World, name: str, path: Path) -> None:
        super().__init__(world, name)
        self.path = path
        self.full = False
        self.dies = ""
        """``"before"`` or ``"after"`` its next commit."""

    def begin(self) -> None:
        """Open the ledger and take over what is in it."""
        self.ledger = Ledger(self.path)
        tellers = Tellers(self.ledger.tellers(), self.world.gone)
        self.core = SinkCore(self.world.epoch(), sessions=self.ledger.sessions(), tellers=tellers)
        reader = LedgerReader(self.path)
        rows = {row.run: row for row in reversed(reader.runs(REMEMBERED))}
        rows.update((row.run, row) for row in reader.open_runs())
        for row in sorted(rows.values(), key=lambda each: each.opened_at):
            self.core.restore(row, reader.control(row.run), reader.done(row.run))
        reader.close()
        self._uncompleted: list[str] = []
        self._turning = float("inf")
        self._wake()

    def end(self) -> None:
        """Let the file go; what wasn't committed is gone."""
        self.ledger.close()

    def fill(self, full: bool) -> None:
        """Let the disk be full, or have room again."""
        self.full = full

    def receive(self, peer: bytes, parts: Parts) -> None:
        """Take anybody's message."""
        message = decode(parts[0])
        if isinstance(message, Beat):
            self._say(self.core.unsure(peer, self.world.now))
        else:
            payload = parts[1] if len(parts) == 2 else None
            self._say(self.core.receive(peer, message, payload, self.world.now))
        self.world.checks.sink(self.core)
        self._wake()

    def _wake(self) -> None:
        """See that a turn comes when it is due."""
        due = self.world.now + self.core.wait(self.world.now) + 0.0005  # as poll() does, to the next millisecond
        if due < self._turning:
            self._turning = due
            self.after(due - self.world.now, self._turn, due)

    def _turn(self, planned: float) -> None:
        if planned != self._turning:
            return  # an earlier one was planned after it
        self._turning = float("inf")
        group = self.core.take(self.world.now)
        if group is not None:
            self._commit(group)
        if not self.alive:
            return
        for run in self.core.take_finished():
            self.after(self.world.random.choice((0.01, 0.3)), self._closed, run)
        self._complete()
        self.core.close_abandoned(self.world.now, self.world.wall)
        self._say(self.core.tick(self.world.now))
        self._wake()

    def _commit(self, group: Group) -> None:
        if self.dies == "before":
            return self._die()
        group.name_files(self._name_nexus)
        try:
            with self._disk():
                outcome = self.ledger.commit(group, self.world.wall)
        except sqlite3.Error as error:
            self.world.counts["commits that failed"] += 1
            return self.core.failed(error, self.world.now)
        self.world.checks.committed(group, outcome)
        if self.dies == "after":
            return self._die()
        self._say(self.core.committed(outcome, self.world.now))

    def _die(self) -> None:
        self.dies = ""
        self.world.faults.kill(self, 0.3)

    def _closed(self, run: str) -> None:
        """Take note that a run's NeXus file is closed."""
        self._uncompleted.append(run)
        self._wake()

    def _complete(self) -> None:
        while self._uncompleted:
            run = self._uncompleted[0]
            if not self.core.finishing(run):
                del self._uncompleted[0]
                continue
            try:
                with self._disk():
                    self.ledger.complete(run, self.world.wall)
            except sqlite3.Error as error:
                self.core.failed(error, self.world.now)
                return
            del self._uncompleted[0]
            self._say(self.core.completed(run, self.world.wall))

    def _say(self, sends: Iterable[SinkSend]) -> None:
        gone: set[bytes] = set()
        for peer, message in sends:
            if peer in gone:
                continue
            if peer in self.served:
                self.served[peer].to_client(encode(message))
            else:
                gone.add(peer)
                self.core.lost(peer)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Let SQLite fail at any of its steps while the disk is full, though not when it takes the others back."""
        if self.full:
            steps = iter(range(self.world.random.choice((1, 3, 10, 30)), -1, -1))
            self.ledger._db.set_progress_handler(lambda: next(steps, 1) == 0, 10)
        try:
            yield
        finally:
            self.ledger._db.set_progress_handler(None, 0)

    @staticmethod
    def _name_nexus(message: RunOpen) -> str:
        return f"/nexus/{message.processed}.nxs"
