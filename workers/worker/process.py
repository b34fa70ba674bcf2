"""The worker's process: sockets, and the reducer as a child. ``python -m haltere.workers.worker.process '{…}'``.

It beats whatever its child does: a reducer may hold the GIL, hang or crash.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import zmq
from msgspec import Meta

from ..errors import SettingsError, WireError
from ..processes import shell, sockets
from ..processes.death import describe_exit
from ..processes.flood import Flood
from ..processes.lifeline import Lifeline, announce
from ..processes.shell import ShellSettings
from ..wire.messages import MAX_WORK, Name, decode, encode
from .core import Action, StreamKey, ToBroker, WorkerCore
from .pipe import BETWEEN, SETTING_UP, At, Failed, Ready, Record, Reduced, Unframer, frame
from .reducing import MAX_STREAMS, ReducingSettings

log = logging.getLogger(__name__)

TICK: Final = 0.05
DEPTH: Final = 2
"""Units in the child's hands: it finds the next one when it has done with one."""

PAUSES: Final = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds until the reducer is started again, by how often it has died in a row."""

HEALTHY: Final = 30.0
"""Seconds of life after which a death is the first in a row again."""

DRAIN: Final = 1.0
"""Seconds that the sink has at the end to confirm what it was sent."""

ONE_THREAD: Final = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
"""Workers scale by their number. A library that shares a product among threads may also sum in another order."""


class WorkerSettings(ShellSettings, frozen=True, kw_only=True):
    """What it is told at the start. ``stall`` : seconds that a unit, or a frame on its own, may take."""

    name: Name
    broker: str
    sink: str
    assets: str
    roots: list[str] = msgspec.field(default_factory=list)
    stall: Annotated[float, Meta(gt=0)] = 60.0
    reducing: tuple[str, ...] = (sys.executable, "-m", "haltere.workers.worker.reducing")


class Child:
    """The reducer's process, and the worker's end of the socket pair to it. Nothing here waits.

    ``log`` takes what it prints; without one the worker's standard error does.
    """

    def __init__(self, settings: WorkerSettings, log: Path | None = None) -> None:
        mine, its = socket.socketpair()
        with its, ExitStack() as stack:
            errors = sys.stderr if log is None else stack.enter_context(log.open("a"))
            told = ReducingSettings(
                fd=its.fileno(), parent=os.getpid(), name=settings.name, assets=settings.assets, roots=settings.roots
            )
            self.process = subprocess.Popen(
                [*settings.reducing, msgspec.json.encode(told).decode()],
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env={**os.environ, **ONE_THREAD},
            )
        mine.setblocking(False)
        self.channel = mine
        self.told: OrderedDict[StreamKey, None] = OrderedDict()
        self.at = At(-1, -1)
        self._out = bytearray()
        self._unframer = Unframer()

    @property
    def writing(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._out)

    def send(self, record: Record) -> None:
        """Write a record, now or when there is room."""
        for part in frame(record):
            self._out += part
        self.flush()

    def flush(self) -> None:
        """Write what there is room for."""
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):  # its death shows when reading
            while self._out:
                del self._out[: self.channel.send(self._out)]

    def read(self) -> list[tuple[Record, bytes]] | None:
        """Return what came; None if it has died."""
        records: list[tuple[Record, bytes]] = []
        try:
            for _ in range(64):
                data = self.channel.recv(1 << 18)
                if not data:
                    return records or None
                records += self._unframer.feed(data)
        except BlockingIOError:
            pass
        except ConnectionResetError:
            return records or None
        return records

    def end(self) -> int:
        """Kill it and return how it ended."""
        self.channel.close()
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(0.2)  # it closed the channel by dying: its own end says why
        self.process.kill()
        return self.process.wait()

    def kill(self) -> None:
        """Kill it; that it died then shows when reading."""
        self.process.kill()


class Worker:
    """The sockets and the child around a :class:`WorkerCore`."""

    def __init__(self, settings: WorkerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self._clock = clock
        self.core = WorkerCore(settings.name, time.time_ns() // 1000, clock())
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._broker = self._connect(settings.broker)
        self._sink = self._connect(settings.sink)
        self._child: Child | None = None
        self._deaths = 0
        self._born = 0.0
        self._start_at = float("-inf")
        self._heard = clock()
        self._flood = Flood()
        self._hung = False
        self._do(self.core.start(clock()))

    def run(self, lifeline: Lifeline) -> None:
        """Work until the end."""
        lifeline.register(self._poller)
        lifeline.says = self.summary
        while True:
            events = dict(self._poller.poll(int(1000 * TICK)))
            if lifeline.over(events):
                break
            self.turn(events)
        self._drain(lifeline)

    def turn(self, events: Mapping[Any, int]) -> None:
        """Do what can be done now; never waits."""
        now = self._clock()
        self._hear(self._broker, events, self.core.from_broker, now)
        self._hear(self._sink, events, self.core.from_sink, now)
        if self._child is not None and self._child.channel.fileno() in events:
            self._child.flush()
            self._hear_child(self._child, now)
        self._look_after_child(now)
        self._feed()
        self._do(self.core.tick(now))

    def summary(self) -> dict[str, Any]:
        """Return what it has in hand: batches to do, results that aren't known to be on disk; and its child."""
        core = self.core
        return {
            "in_hand": core.in_hand,
            "kept": core.kept,
            "frames": core.frames,
            "reduce_us": core.reduce_us,
            "reducer_deaths": core.counts["reducer died"],
            "children": [] if self._child is None else [self._child.process.pid],
        }

    def close(self) -> None:
        """Kill the child and close every socket."""
        if self._child is not None:
            self._child.kill()
            self._child.end()
            self._child = None
        self._context.destroy(linger=200)

    # --- sockets -----------------------------------------------------------------------------------------------------

    def _connect(self, endpoint: str) -> zmq.Socket[bytes]:
        made = sockets.make(self._context, zmq.DEALER, MAX_WORK)
        made.identity = self.settings.name.encode()
        made.immediate = True  # nothing is queued for one that isn't there: it is sent again when it is
        made.linger = 200
        made.sndhwm = 256
        try:
            made.connect(endpoint)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise SettingsError(f"{self.settings.name}: {endpoint} is no endpoint: {error}") from None
        self._poller.register(made, zmq.POLLIN)
        return made

    def _hear(
        self,
        where: zmq.Socket[bytes],
        events: Mapping[Any, int],
        take: Callable[[Any, float], Sequence[Action]],
        now: float,
    ) -> None:
        if where not in events:
            return
        for _ in range(500):
            try:
                data = where.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = decode(data, MAX_WORK)
            except WireError as error:
                self.core.counts["malformed"] += 1
                if self._flood.tell():
                    log.warning("%s (%d malformed so far)", error, self._flood.count)
                continue
            self._do(take(message, now))

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            try:
                if isinstance(action, ToBroker):
                    self._broker.send(encode(action.message), zmq.NOBLOCK)
                elif action.payload is None:
                    self._sink.send(encode(action.message), zmq.NOBLOCK)
                else:
                    self._sink.send_multipart([encode(action.message), action.payload], zmq.NOBLOCK, copy=False)
            except zmq.Again:  # it isn't there, or takes nothing more: all of this is said again in time
                self.core.unsent(action)

    # --- the child ---------------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        child = self._child
        if child is None or not self.core.willing:
            return
        while self.core.in_hand < DEPTH and (work := self.core.take()) is not None:
            if self.core.in_hand == 1:
                self._heard = self._clock()
            key = work.run, work.stream, work.cfg
            if key not in child.told:
                child.send(self.core.streams[key])
                child.told[key] = None
                while len(child.told) > MAX_STREAMS:  # as it forgets, so do we
                    child.told.popitem(last=False)
            child.told.move_to_end(key)
            child.send(work)
        self._poller.register(child.channel, zmq.POLLIN | (zmq.POLLOUT if child.writing else 0))

    def _hear_child(self, child: Child, now: float) -> None:
        try:
            records = child.read()
        except WireError as error:
            log.error("the reducer: %s; killed", error)
            child.kill()
            records = None
        if records is None:
            self._bury(child, now)
            return
        for record, payload in records:
            self._heard = now
            if isinstance(record, Ready):
                self.core.willing = True
            elif isinstance(record, At):
                child.at = record
            elif isinstance(record, Reduced):
                self._do(self.core.reduced(record.result, payload, record.cpu_us, now))
            elif isinstance(record, Failed):
                self._do(self.core.failed(record.nack))

    def _look_after_child(self, now: float) -> None:
        if self._child is None:
            if now >= self._start_at:
                self._child = Child(self.settings)
                self._born = self._heard = now
                self._poller.register(self._child.channel, zmq.POLLIN)
            return
        if self.core.running is not None and now - self._heard > self.settings.stall and not self._hung:
            self._hung = True
            self._child.kill()

    def _bury(self, child: Child, now: float) -> None:
        self._poller.unregister(child.channel)
        code = child.end()
        work = self.core.running
        at = child.at.frame if work is not None and child.at.token == work.token else BETWEEN
        number = at if at >= 0 and work is not None and work.isolate else -1
        how = f"no progress in {self.settings.stall:g} s" if self._hung else f"worker died, {describe_exit(code)}"
        if at == SETTING_UP:
            how += ", while the recipes were set up"
        where = "" if work is None else f" in {work.run}/{work.stream} [{work.first}, {work.first + work.n})"
        log.error("%s%s%s", how, where, "" if number < 0 else f" on frame {number}")
        self._hung = False
        self._child = None
        self.core.willing = False
        self._do(self.core.died(how, number, setup=at == SETTING_UP))
        self._deaths = 1 if now - self._born > HEALTHY else self._deaths + 1
        self._start_at = now + PAUSES[min(self._deaths, len(PAUSES)) - 1]

    def _drain(self, lifeline: Lifeline) -> None:
        """Give work back, and see that the sink has what was done."""
        self._do(self.core.leave())
        deadline = self._clock() + DRAIN
        while self.core.kept and self._clock() < deadline:
            events = dict(self._poller.poll(int(1000 * TICK)))
            self._hear(self._sink, events, self.core.from_sink, self._clock())


def work(settings: WorkerSettings, lifeline: Lifeline) -> None:
    """Be a worker until the end."""
    with closing(Worker(settings)) as worker:
        announce(role="worker", ready=True, name=settings.name, endpoint=settings.broker)
        worker.run(lifeline)
        log.info("%d frames, %.1f s of CPU; %s", worker.core.frames, worker.core.reduce_us / 1e6, worker.core.counts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or the end of standard input."""
    return shell.run("worker", WorkerSettings, work, argv)


if __name__ == "__main__":
    sys.exit(main())
