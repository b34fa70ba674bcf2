"""The recorder: ``python -m haltere.callbacks.recorder '{…}'``, one process.

It reads the ledger, composes each run's processed documents in the order of frames, serves them to sessions (each with
cursors of its own), and writes them to the catalog ``processed``. All that it knows it can read again: it may die at
any time.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic, time_ns
from typing import Final

import zmq

from ..workers.errors import FileError, WireError
from ..workers.ledger.reader import LedgerReader
from ..workers.processes import shell, sockets
from ..workers.processes.flood import Flood
from ..workers.processes.lifeline import Lifeline, announce
from ..workers.processes.shell import Level, ShellSettings
from ..workers.wire.documents import Fetch, decode, encode
from ..workers.wire.messages import MAX_CONTROL, VERSION, Done, Hello, Welcome
from ..workers.wire.messages import decode as decode_pool
from ..workers.wire.messages import encode as encode_pool
from .journal import Journal
from .recording import Recorder, answer

log = logging.getLogger(__name__)

LOOK: Final = 0.25
"""Seconds between looks at the ledger when the sink says nothing: runs that open and complete come without a DONE."""

PAUSE: Final = 0.05
"""Seconds at least between two looks, however often the sink says that there is something."""

GREETING: Final = 2.0
"""Seconds between greetings to the sink, which a new one needs to know of this recorder."""

TURN: Final = 500
"""Messages taken from a socket before what is due is looked at."""

UNREAD: Final = 2
"""Answers, of up to 32 MiB each, that wait for a session to read them: it asks one question at a time."""

MAX_SESSIONS: Final = 256
"""Most questions that wait for an answer; the oldest is then answered with what there is."""


class RecorderSettings(ShellSettings, frozen=True, kw_only=True):
    """What it is told at the start. Without a ``catalog`` (URI) nothing is written."""

    bind: str
    sink: str
    ledger: str
    catalog: str = ""
    api_key_file: str = ""
    log: Level = "WARNING"


class Question:
    """A session's question that waits for an answer."""

    __slots__ = ("fetch", "peer", "until")

    def __init__(self, peer: bytes, fetch: Fetch, until: float) -> None:
        self.peer = peer
        self.fetch = fetch
        self.until = until


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


def work(settings: RecorderSettings, lifeline: Lifeline) -> None:
    """Record until the end."""
    context = zmq.Context()
    sessions = sockets.make(context, zmq.ROUTER, MAX_CONTROL)
    sessions.sndhwm = UNREAD
    sockets.bind(sessions, settings.bind)
    ledger_path = Path(settings.ledger)
    ledger = wait_for_ledger(ledger_path, lifeline)
    if ledger is None:
        return
    recorder = Recorder(ledger, lifeline.beat)
    writer = None
    journal = Journal(ledger_path.with_name("recorder.db"))
    if settings.catalog:
        from .catalog_writer import CatalogWriter  # it imports the catalog's client, which not every recorder needs

        writer = CatalogWriter(settings.catalog, Path(settings.api_key_file), journal)
    lifeline.says = lambda: {**recorder.summary(), "documents": 0 if writer is None else writer.waiting}
    sink = sockets.make(context, zmq.DEALER, MAX_CONTROL)
    sink.connect(settings.sink)
    poller = zmq.Poller()
    for socket in (sessions, sink):
        poller.register(socket, zmq.POLLIN)
    lifeline.register(poller)
    announce(role="recorder", ready=True)
    hello = encode_pool(Hello(VERSION, "recorder", "recorder", time_ns() // 1_000_000))
    questions: list[Question] = []
    flood = Flood()
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
        for parts in _drain(sink) if sink in events else ():
            if _is_news(parts, flood):
                look_at = min(look_at, looked + PAUSE)
        asked = False
        for parts in _drain(sessions) if sessions in events else ():
            question = _question(parts, monotonic(), flood)
            if question is not None:
                questions.append(question)
                asked = True
        if asked and writer is not None:
            writer.get_ready()  # now that a session is there, and not while all its processes start
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


def _drain(socket: zmq.Socket[bytes]) -> Iterator[list[bytes]]:
    """Yield what has come, but not for ever: a flood must not keep the ledger from being read."""
    for _ in range(TURN):
        try:
            yield socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return


def _is_news(parts: list[bytes], flood: Flood) -> bool:
    try:
        if len(parts) != 1:
            raise WireError(f"a message of {len(parts)} parts, expected 1")
        return isinstance(decode_pool(parts[0]), Done | Welcome)
    except WireError as error:
        if flood.tell():
            log.warning("the sink says what can't be read: %s (%d so far)", error, flood.count)
        return False


def _question(parts: list[bytes], now: float, flood: Flood) -> Question | None:
    try:
        if len(parts) != 2:
            raise WireError(f"{len(parts) - 1} parts, expected 1")
        fetch = decode(parts[1])
    except WireError as error:
        if flood.tell():
            log.warning("a session says what can't be read: %s (%d so far)", error, flood.count)
        return None
    # −1 asks where to start: that is answered at once.
    wait = fetch.wait_ms / 1000 if isinstance(fetch, Fetch) and (fetch.after >= 0 or fetch.cursors) else 0.0
    return Question(parts[0], fetch, now + wait) if isinstance(fetch, Fetch) else None


def _send(socket: zmq.Socket[bytes], *parts: bytes) -> None:
    try:
        socket.send_multipart(parts, zmq.NOBLOCK)
    except zmq.ZMQError as error:  # the other end is away: it asks, or is greeted, again
        log.debug("not sent: %s", error)


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or the end of standard input."""
    # Tiled's client would try for 149 s before it says that the server is away.
    os.environ.setdefault("TILED_RETRY_ATTEMPTS", "2")
    return shell.run("recorder", RecorderSettings, work, argv)


if __name__ == "__main__":
    sys.exit(main())
