"""A sink's core to talk to, with a ledger that commits when it is told to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from haltere.workers.ledger.reader import LedgerReader
from haltere.workers.ledger.writer import Ledger
from haltere.workers.sink.core import SinkCore
from haltere.workers.sink.group import GROUP_SECONDS
from haltere.workers.wire.messages import Hello, Message, Result, RunOpen

from ..flying import EIGER, RUN, build, control, result

DISPATCHER, BROKER, WORKER, RECORDER = b"dispatcher", b"broker", b"worker-1", b"recorder"


class Bench:
    """A core with a ledger that commits when it is told to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 100.0
        self.ledger = Ledger(path)
        self.core = SinkCore(1, sessions=self.ledger.sessions(), build=build)
        reader = LedgerReader(path)
        for row in reversed(reader.runs()):
            self.core.restore(row, reader.control(row.run), reader.done(row.run))
        reader.close()
        self.finished: list[str] = []

    def tell(self, peer: bytes, message: Any, payload: bytes | None = None) -> list[tuple[bytes, Message]]:
        """Say it to the core."""
        return self.core.receive(peer, message, payload, self.now)

    def commit(self) -> list[tuple[bytes, Message]]:
        """Commit what is due after a while."""
        self.now += 2 * GROUP_SECONDS
        group = self.core.take(self.now)
        if group is None:
            return []
        answers = self.core.committed(self.ledger.commit(group, self.now), self.now)
        self.finished += self.core.take_finished()
        return answers

    def open(self, until: int = 3) -> None:
        """Greet, and open a run with its streams."""
        self.tell(DISPATCHER, Hello(1, "dispatcher", "session", 7))
        for message in control()[:until]:
            self.tell(DISPATCHER, message)
        self.commit()

    def accounting(self) -> dict[str, Any]:
        """Return what the ledger says of the run."""
        reader = LedgerReader(self.path)
        try:
            return reader.accounting(RUN)
        finally:
            reader.close()


def wrong(**changes: Any) -> tuple[Result, bytes]:
    message, payload = result(EIGER, 0)
    return msgspec.structs.replace(message, **changes), payload


def other_run(number: int, serial: int) -> RunOpen:
    return RunOpen(serial, f"run-{number}", f"processed-{number}", b"{}")
