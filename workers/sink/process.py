"""Sink: results and promises go to the ledger, and only then is anybody answered.

Run as ``python -m haltere.workers.sink.process '{"bind": …, "ledger": …, "nexus": …}'``.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import zmq
from msgspec import Meta

from .. import recipes
from ..errors import SettingsError, WireError
from ..ledger.lock import only_writer
from ..ledger.reader import LedgerReader
from ..ledger.rows import Group
from ..ledger.writer import Ledger
from ..nexus import layout as nexus_layout
from ..nexus.follower import NexusFollower
from ..payload import MAX_PAYLOAD
from ..pool.whereabouts import is_gone
from ..processes import shell, sockets
from ..processes.flood import Flood
from ..processes.lifeline import Lifeline, announce
from ..processes.locks import Lock
from ..processes.shell import ShellSettings
from ..wire.messages import AnyMessage, Beat, RecipeSpec, RunOpen, decode, encode
from .core import REMEMBERED, Send, SinkCore
from .tellers import Tellers

log = logging.getLogger(__name__)

TURN: Final = 500
"""Messages taken before what is due is looked at."""

SEND_HWM: Final = 100_000
"""Messages that may wait for one peer; whoever doesn't take so many is held to be gone, and hears all when back."""

LAST_SECONDS: Final = 5.0
"""How long an ending sink tries to commit what it has."""


class SinkSettings(ShellSettings, frozen=True, kw_only=True):
    """What it is told at the start."""

    bind: str
    ledger: str
    nexus: str
    assets: str = ""
    rcvhwm: Annotated[int, Meta(ge=1)] = 10_000


class Sink:
    """The sockets and files around a :class:`SinkCore`."""

    def __init__(
        self,
        settings: SinkSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        build: Callable[[RecipeSpec], Any] = recipes.build,
    ) -> None:
        self.settings = settings
        self._clock = clock
        self._nexus_folder = Path(settings.nexus)
        self.ledger = Ledger(Path(settings.ledger))
        self._named: set[str] = set()
        tellers = Tellers(self.ledger.tellers(), is_gone)
        self.core = SinkCore(time.time_ns() >> 10, sessions=self.ledger.sessions(), tellers=tellers, build=build)
        self._restore()
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        self.nexus = NexusFollower(Path(settings.ledger), self._wake, build=build)
        self._uncompleted: dict[str, str | None] = {}
        self._cpu_us = time.thread_time_ns() // 1000
        self._context = zmq.Context()
        self._socket = sockets.make(self._context, zmq.ROUTER, MAX_PAYLOAD)
        self._socket.router_mandatory = True
        self._socket.router_handover = True  # a worker that starts anew under its name takes over from its dead self
        self._socket.sndhwm = SEND_HWM
        self._socket.rcvhwm = settings.rcvhwm
        self._alone: Lock | None = None
        try:
            self._alone = sockets.bind(self._socket, settings.bind)
        except SettingsError as error:
            self.close()
            raise SettingsError(f"sink: {error}") from None
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._wake_out, zmq.POLLIN)
        self._garbage = Flood()

    def _restore(self) -> None:
        reader = LedgerReader(self.ledger.path)
        rows = {row.run: row for row in reversed(reader.runs(REMEMBERED))}
        rows.update((row.run, row) for row in reader.open_runs())
        for row in sorted(rows.values(), key=lambda each: each.opened_at):
            self.core.restore(row, reader.control(row.run), reader.done(row.run))
        reader.close()

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def run(self, lifeline: Lifeline) -> None:
        """Work until the end, then commit what there is."""
        lifeline.register(self._poller)
        self.start()
        while True:
            events = self.poll()
            if lifeline.over(events):
                break
            self.turn(events)
        self._last_words()

    def start(self) -> None:
        """Take up the NeXus files of the runs that were open when a sink before this one ended."""
        self.nexus.start()
        self.nexus.touch([uid for uid, run in self.core.runs.items() if run.completed is None])

    def poll(self) -> dict[Any, int]:
        """Wait for something to happen, or to be due."""
        return dict(self._poller.poll(int(self.core.wait(self._clock()) * 1000) + 1))

    def turn(self, events: dict[Any, int]) -> None:
        """Do what can be done now."""
        if self._socket in events:
            self._hear()
        now = self._clock()
        self.core.close_abandoned(now, time.time())
        group = self.core.take(now)
        if group is not None:
            self._commit(group, now)
        if self._wake_out in events:
            self._drain_wakes()
        for run in self.core.take_finished():
            self.nexus.finish(run)
        self._complete()
        self._send(self.core.tick(self._clock()))
        self.core.counters.ledger_us = time.thread_time_ns() // 1000 - self._cpu_us  # the NeXus file has its own thread

    def _hear(self) -> None:
        for _ in range(TURN):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            peer = frames[0].bytes
            try:
                if not 2 <= len(frames) <= 3:
                    raise WireError(f"{len(frames) - 1} parts, expected 1, or 2 of a result")
                message: AnyMessage = decode(frames[1].buffer)
            except WireError as error:
                self.core.counters.bad += 1
                if self._garbage.tell():
                    log.warning("%s (%d so far)", error, self._garbage.count)
                continue
            if isinstance(message, Beat):
                self._send(self.core.unsure(peer, self._clock()))
                continue
            payload = frames[2].buffer if len(frames) == 3 else None
            self._send(self.core.receive(peer, message, payload, self._clock()))

    def _commit(self, group: Group, now: float) -> bool:
        group.name_files(self._name_nexus)
        try:
            outcome = self.ledger.commit(group, time.time())
        except sqlite3.Error as error:
            self.core.failed(error, self._clock())
            return False
        runs = {row.run for row in group.batches} | {message.run for message, _ in group.control}
        self._send(self.core.committed(outcome, now))
        self.nexus.touch([uid for uid in runs if uid in self.core.runs and self.core.runs[uid].completed is None])
        return True

    def _complete(self) -> None:
        for report in self.nexus.reports():
            if report.final:
                self._uncompleted[report.run] = report.error
                self.core.nexus_errors.pop(report.run, None)
            if report.error is not None:
                self.core.nexus_errors[report.run] = report.error
        for run, error in list(self._uncompleted.items()):
            if not self.core.finishing(run):  # it was forgotten, or is another reduction now
                del self._uncompleted[run]
                continue
            now = time.time()
            try:
                self.ledger.complete(run, now, error)
            except sqlite3.Error as fault:
                self.core.failed(fault, self._clock())
                return
            del self._uncompleted[run]
            self._send(self.core.completed(run, now))
            log.info("run %s is complete%s", run, "" if error is None else f", without its NeXus file: {error}")

    def _send(self, messages: Iterable[Send]) -> None:
        gone: set[bytes] = set()
        for peer, message in messages:
            if peer in gone:
                continue
            try:
                self._socket.send_multipart([peer, encode(message)], zmq.NOBLOCK)
            except zmq.ZMQError:  # it left, or takes nothing any more; it will say Hello when it is back
                gone.add(peer)
                self.core.lost(peer)

    def _name_nexus(self, message: RunOpen) -> str:
        start = msgspec.json.decode(message.start)

        def taken(name: str) -> bool:
            path = str(self._nexus_folder / name)
            return path in self._named or self.ledger.has_path(path) or os.path.lexists(path)

        path = str(self._nexus_folder / nexus_layout.file_name(start, message.processed, taken))
        self._named.add(path)
        return path

    def _wake(self) -> None:
        try:
            os.write(self._wake_in, b"x")
        except BlockingIOError:  # so many wakes wait already that one more changes nothing
            return

    def _drain_wakes(self) -> None:
        try:
            os.read(self._wake_out, 65536)
        except BlockingIOError:
            return

    def _last_words(self) -> None:
        deadline = self._clock() + LAST_SECONDS
        self._hear()
        while (group := self.core.take(self._clock(), all_=True)) is not None and self._clock() < deadline:
            if not self._commit(group, self._clock()):
                break
        for run in self.core.take_finished():
            self.nexus.finish(run)
        self.nexus.close()
        self._complete()

    def close(self) -> None:
        """Close sockets and files. May be called again."""
        self._socket.close(200)
        self._context.term()
        if self._alone is not None:
            self._alone.release()
        self.nexus.close()
        self.ledger.close()
        for descriptor in (self._wake_in, self._wake_out):
            if descriptor >= 0:
                os.close(descriptor)
        self._wake_in = self._wake_out = -1


def work(settings: SinkSettings, lifeline: Lifeline) -> None:
    """Be a sink until the end."""
    with only_writer(Path(settings.ledger)), closing(Sink(settings)) as sink:
        announce(role="sink", ready=True, endpoint=sink.endpoint, ledger=settings.ledger)
        sink.run(lifeline)


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or the end of standard input."""
    return shell.run("sink", SinkSettings, work, argv)


if __name__ == "__main__":
    sys.exit(main())
