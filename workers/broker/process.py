"""The broker's process: sockets around :class:`BrokerCore`. ``python -m haltere.workers.broker.process '{…}'``."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Annotated, Any, Final

import zmq
from msgspec import Meta

from ..errors import SettingsError, WireError
from ..processes import shell, sockets
from ..processes.flood import Flood
from ..processes.lifeline import Lifeline, announce
from ..processes.shell import ShellSettings
from ..wire.messages import MAX_CONTROL, decode, encode
from .core import SINK, BrokerCore, Send, Times
from .turns import SHARE

log = logging.getLogger(__name__)

TICK: Final = 0.05
"""Seconds between two looks at the clock."""

TURN: Final = 500
"""Messages taken from a socket before the other is looked at."""


class BrokerSettings(ShellSettings, frozen=True, kw_only=True):
    """What it is told at the start. ``lease`` and ``liveness`` are in seconds.

    ``backfill`` : the part of the workers' time that a backfill has while live batches wait.
    """

    bind: str
    sink: str
    lease: Annotated[float, Meta(gt=0)] = 90.0
    liveness: Annotated[float, Meta(gt=0)] = 3.0
    backfill: Annotated[float, Meta(gt=0, lt=1)] = SHARE


class Broker:
    """A ROUTER for everybody, a DEALER to the sink."""

    def __init__(self, settings: BrokerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        """Bind and connect.

        Raises
        ------
        SettingsError
            ``bind`` is taken, or no endpoint.
        """
        self._clock = clock
        times = Times(lease=settings.lease, liveness=settings.liveness)
        self.core = BrokerCore(time.time_ns() // 1000, times, backfill=settings.backfill)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._peers = sockets.make(self._context, zmq.ROUTER, MAX_CONTROL)
        self._peers.router_mandatory = True  # EHOSTUNREACH tells of a dead worker well before its heartbeats do
        self._peers.router_handover = True  # a worker that was started again comes by the same name
        self._peers.sndhwm = self._peers.rcvhwm = 10_000
        try:
            self._alone = sockets.bind(self._peers, settings.bind)
        except SettingsError as error:
            self._context.destroy(linger=0)
            raise SettingsError(f"broker: {error}") from None
        self.endpoint = self._peers.getsockopt_string(zmq.LAST_ENDPOINT)
        self._sink = sockets.make(self._context, zmq.DEALER, MAX_CONTROL)
        self._sink.identity = b"broker"
        self._sink.immediate = True  # a sink that is down shall not find a thousand Hellos when it comes
        self._sink.sndhwm = 100
        self._sink.rcvhwm = 100_000  # its answer to a Hello tells everything at once
        self._monitor = self._sink.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._sink.connect(settings.sink)
        self._poller = zmq.Poller()
        self._poller.register(self._peers, zmq.POLLIN)
        self._poller.register(self._sink, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._ticked = float("-inf")
        self._flood = Flood()

    def run(self, lifeline: Lifeline) -> None:
        """Work until the end."""
        lifeline.register(self._poller)
        while True:
            events = dict(self._poller.poll(int(1000 * TICK)))
            if lifeline.over(events):
                return
            self.turn(events)

    def turn(self, events: dict[Any, int]) -> None:
        """Do what can be done now; never waits."""
        now = self._clock()
        if self._monitor in events:
            for _ in self._drain(self._monitor):
                self.core.sink_connected()
        if self._sink in events:
            for parts in self._drain(self._sink):
                self._hear(SINK, parts, now)
        if self._peers in events:
            for peer, *parts in self._drain(self._peers):
                self._hear(peer, parts, now)
        if now - self._ticked >= TICK:
            self._ticked = now
            self._say(self.core.tick(now), now)
        else:
            self._say(self.core.pump(now), now)

    def close(self) -> None:
        """Close every socket."""
        self._sink.disable_monitor()
        self._context.destroy(linger=0)
        if self._alone is not None:
            self._alone.release()

    def _drain(self, socket: zmq.Socket[bytes]) -> Iterable[list[bytes]]:
        for _ in range(TURN):
            try:
                yield socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return

    def _hear(self, peer: bytes, parts: Sequence[bytes], now: float) -> None:
        try:
            if len(parts) != 1:
                raise WireError(f"a message of {len(parts)} parts, expected 1")
            message = decode(parts[0])
        except WireError as error:
            self.core.counts["malformed"] += 1
            if self._flood.tell():
                log.warning("from %r: %s (%d malformed so far)", peer, error, self._flood.count)
            return
        self._say(self.core.receive(peer, message, now), now)

    def _say(self, sends: Iterable[Send], now: float) -> None:
        for peer, message in sends:
            try:
                if peer == SINK:
                    self._sink.send(encode(message), zmq.NOBLOCK)
                else:
                    self._peers.send_multipart([peer, encode(message)], zmq.NOBLOCK)
            except zmq.ZMQError as error:  # nobody of that name any more, or it takes nothing more
                if peer == SINK:
                    log.debug("the sink isn't there: %s", error)
                    continue
                log.info("%r can't be reached: %s", peer, error)
                self.core.unreachable(peer, message, now)


def work(settings: BrokerSettings, lifeline: Lifeline) -> None:
    """Be a broker until the end."""
    with closing(Broker(settings)) as broker:
        announce(role="broker", ready=True, endpoint=broker.endpoint)
        broker.run(lifeline)
        log.info("ended; %s", dict(broker.core.counts))


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or the end of standard input."""
    return shell.run("broker", BrokerSettings, work, argv)


if __name__ == "__main__":
    sys.exit(main())
