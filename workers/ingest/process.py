"""The ingest's process: drains detectors into shared memory. ``python -m haltere.workers.ingest.process '{…}'``.

A detector keeps no frame for us: what isn't fetched at once is lost there, unseen. So this process does nothing that
waits, drops what doesn't fit into the ring, and says so. Only what a run's recipes declare to be able to wait has to.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Annotated, Any, Final, cast

import msgspec
import zmq
from msgspec import Meta, Struct

from ..errors import WireError
from ..processes import shell, sockets
from ..processes.flood import Flood
from ..processes.lifeline import Lifeline, announce
from ..processes.shell import ShellSettings
from ..ring import Ring
from ..spill.shell import Spill
from ..wire.messages import (
    MAX_CONTROL,
    Block,
    Claim,
    Connect,
    Dropped,
    Frames,
    Free,
    Gauge,
    Hello,
    Message,
    Spilled,
    Welcome,
    decode,
    encode,
)
from .core import RING_FULL, Fate, IngestCore, Source
from .pulling import Pull, Streamed, identity

log = logging.getLogger(__name__)

AGE: Final = 0.005
"""Seconds that a frame may wait for company in its message: at 750 Hz four share one."""

TURN: Final = 64
"""Messages taken from one detector before the next is looked at."""

MAX_DETECTORS: Final = 64
LOG_EVERY: Final = 5.0
REMIND_EVERY: Final = 5.0
"""Seconds between reminders of the blocks that nobody gave back."""


class Stream(Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A detector's ``endpoint``, and the ``protocol`` that it streams in."""

    endpoint: str
    protocol: str


class IngestSettings(ShellSettings, frozen=True, kw_only=True):
    """What it is told at the start."""

    broker: str
    name: str = "ingest"
    ring_bytes: Annotated[int, Meta(ge=1 << 16)] = 256 << 20
    rcvhwm: Annotated[int, Meta(ge=1)] = 200
    group: Annotated[int, Meta(ge=1, le=256)] = 64
    drop_every: Annotated[int, Meta(ge=2)] | None = None
    drop_group: Annotated[int, Meta(ge=1)] = 20
    streams: Annotated[list[Stream], Meta(max_length=64)] = msgspec.field(default_factory=list)
    """Detectors to pull from at once, before any run names them: a scan's first frames come while it is announced."""
    spill: str = ""
    """The folder that frames are spilled to; none: they are dropped instead."""
    spill_ring: Annotated[int, Meta(ge=1 << 16)] = 64 << 20
    """Bytes of shared memory for frames on their way to a file."""
    spill_bytes: Annotated[int, Meta(ge=0)] = 256 << 30
    """Most bytes that are spilled of one run's detector."""
    spill_spare: Annotated[int, Meta(ge=0)] = 1 << 30
    """Bytes that are left free on the disk."""


class Ingest:
    """The sockets around an :class:`IngestCore`."""

    def __init__(self, settings: IngestSettings, ring: Ring, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self.core = IngestCore(
            ring.name,
            ring.size,
            group=settings.group,
            drop_every=settings.drop_every,
            drop_group=settings.drop_group,
        )
        self._ring = ring
        self._clock = clock
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._session = time.time_ns() >> 10
        self._epoch = -1
        self._beat_s = 0.5
        self._last_beat = self._reminded = clock()
        self._oldest = 0.0
        self._quiet_until = 0.0
        self._flood = Flood()
        self._complained: list[str] = []
        self._detectors: dict[str, Pull] = {}
        self._spill = Spill(settings, self.core, self._say)
        self._broker = sockets.make(self._context, zmq.DEALER, MAX_CONTROL)
        self._broker.connect(settings.broker)
        self._poller.register(self._broker, zmq.POLLIN)
        self._hello()
        for stream in settings.streams:
            self._connect(Connect(stream.endpoint, stream.protocol))

    def run(self, lifeline: Lifeline) -> None:
        """Work until the end."""
        lifeline.register(self._poller)
        lifeline.says = lambda: self.core.summary() | {"misfits": self._complained} | self._spill.summary
        while True:
            timeout = AGE if self.core.pending else self._beat_s
            events = dict(self._poller.poll(int(timeout * 1000)))
            if lifeline.over(events):
                break
            self.turn(events)
        self._flush(everything=True)

    def turn(self, events: dict[Any, int]) -> None:
        """Do what can be done now; never waits."""
        if self._broker in events:
            self._hear_broker()
        now = self._clock()
        self._spill.turn(self._poller, events, now)
        for pull in list(self._detectors.values()):
            if self._fetches(pull, now) and pull.socket in events:
                self._drain(pull)
        now = self._clock()
        if self.core.pending:
            self._oldest = self._oldest or now
            if now - self._oldest >= AGE:
                self._flush(everything=True)
                self._oldest = 0.0
        if now - self._last_beat >= self._beat_s:
            # Also when nothing else is said: a broker that has started anew learns from it that we are here.
            self._last_beat = now
            # A broker that isn't told yet what is held here must not think that it knows all.
            greeted = self._epoch >= 0
            self._say(self._spill.gauge(self._session, now) if greeted else Gauge(self._session, []))
            if not greeted:  # its answer was lost
                self._hello()
            self._spill.beat(now)
            self._renew(now)
            self._complain()
        if now - self._reminded >= REMIND_EVERY:
            self._reminded = now
            self._tell(self.core.remind())
            self._spill.name()

    def _fetches(self, pull: Pull, now: float) -> bool:
        """Return whether to fetch from a detector; one that has to wait isn't polled either."""
        fetches = self.core.fetches(pull.endpoint, now)
        if fetches and pull.in_hand is not None:
            fetches = self._land(pull, pull.in_hand)
        if fetches != pull.polled:
            pull.polled = fetches
            self._poller.register(pull.socket, zmq.POLLIN if fetches else 0)
        return fetches

    def _drain(self, pull: Pull) -> None:
        for parts in pull.receive(TURN):
            try:
                message = pull.read(parts)
            except WireError as error:
                self._garbled(pull.endpoint, parts, error)
                continue
            if not (hasattr(message, "blob") and hasattr(message, "frame")):
                continue
            if not (self._land(pull, cast(Streamed, message)) and self.core.fetches(pull.endpoint, self._clock())):
                break
        self._flush(everything=False)

    def _land(self, pull: Pull, frame: Streamed) -> bool:
        """Find a place for a frame's bytes; return False if it is in hand for want of one."""
        blob = memoryview(frame.blob)
        flat = blob if blob.format == "B" and blob.ndim == 1 else blob.cast("B")
        source = Source(pull.endpoint, frame.series, tuple(frame.shape), frame.dtype)
        place = self.core.place(source, frame.frame, blob.nbytes, frame.encoding, self._clock())
        pull.in_hand = frame if place is Fate.WAIT else None
        if isinstance(place, Block):
            self._ring.write(place.offset, flat, place.life)
        elif place is Fate.SPILL:
            self._spill.take(source, frame.frame, frame.encoding, flat, self._clock())
        return pull.in_hand is None

    def _garbled(self, endpoint: str, parts: Sequence[Any], error: WireError) -> None:
        self.core.garble(endpoint, *identity(parts))
        now = self._clock()
        if now >= self._quiet_until:
            self._quiet_until = now + LOG_EVERY
            log.warning("%s: %s (%d malformed so far)", endpoint, error, self.core.malformed)

    def _hear_broker(self) -> None:
        while True:
            try:
                message = decode(self._broker.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            except WireError as error:
                if self._flood.tell():
                    log.warning("from the broker: %s (%d malformed so far)", error, self._flood.count)
                continue
            if isinstance(message, Free):
                now = self._clock()
                self.core.load.waiting(message.queued, now)
                for block in self.core.free(message.ring, message.offsets, message.lives, now):
                    self._ring.clear(block.offset, block.size)
            elif isinstance(message, Claim):
                self.core.claim(message)
                self._spill.claim(message)
            elif isinstance(message, Spilled):
                self._spill.told(message)
            elif isinstance(message, Connect):
                self._connect(message)
            elif isinstance(message, Welcome):
                self._welcomed(message)

    def _welcomed(self, message: Welcome) -> None:
        if not message.lease_ms:
            self._session += 1
            self._epoch = -1
            self._hello()
        elif message.epoch != self._epoch:
            self._epoch = message.epoch
            self._beat_s = max(message.beat_ms, 10) / 1000
            self._tell(self.core.held())
            self._spill.name()
            self._flush(everything=True)
            self._spill.tell(self._clock())

    def _connect(self, message: Connect) -> None:
        endpoint, protocol = message.endpoint, message.protocol
        known = self._detectors.get(endpoint)
        if known is not None:
            if known.protocol == protocol:
                return
            self._poller.register(known.socket, 0)
            known.close()
            if known.in_hand is not None:
                self.core.drop(endpoint, known.in_hand.series, known.in_hand.frame, RING_FULL)
            del self._detectors[endpoint]
        try:
            if len(self._detectors) >= MAX_DETECTORS:
                raise WireError(f"{MAX_DETECTORS} detectors are connected already")
            pull = Pull(self._context, endpoint, protocol, self.settings.rcvhwm)
        except WireError as error:
            log.error("%s can't be pulled from: %s", endpoint, error)
            return
        self._detectors[endpoint] = pull
        self._poller.register(pull.socket, zmq.POLLIN)
        log.info("pulling from %s (%s)", endpoint, protocol)

    def _renew(self, now: float) -> None:
        for pull in self._detectors.values():
            before = pull.socket
            if pull.renew(now):
                self._poller.register(before, 0)
                self._poller.register(pull.socket, zmq.POLLIN if pull.polled else 0)

    def _complain(self) -> None:
        """Say once of each series that the ring is too small for it."""
        lines = self.core.misfits(self._clock())
        for line in lines:
            if line not in self._complained:
                log.warning("%s", line)
        self._complained = lines

    def _flush(self, *, everything: bool) -> None:
        self._tell(self.core.take(everything=everything))

    def _tell(self, messages: Sequence[Frames | Dropped]) -> None:
        for place, message in enumerate(messages):
            if not self._say(message):
                self.core.untake(messages[place:])
                return

    def _say(self, message: Message) -> bool:
        try:
            self._broker.send(encode(message), zmq.NOBLOCK)
        except zmq.Again:  # the broker is down and the queue to it full: the ring's size bounds what waits here
            return False
        return True

    def _hello(self) -> None:
        self._say(Hello(1, "ingest", self.settings.name, self._session))

    @property
    def endpoints(self) -> list[str]:
        """The detectors that are pulled from."""
        return list(self._detectors)

    def close(self) -> None:
        """Close every socket."""
        for pull in self._detectors.values():
            pull.close()
        self._spill.close()
        self._broker.close(200)
        self._context.term()


def work(settings: IngestSettings, lifeline: Lifeline) -> None:
    """Be an ingest until the end."""
    with Ring.create(settings.ring_bytes) as ring, closing(Ingest(settings, ring)) as ingest:
        announce(role="ingest", ready=True, name=settings.name, ring=ring.name)
        ingest.run(lifeline)
        core = ingest.core
        log.info(
            "%d frames, %d bytes, dropped %s, malformed %d", core.frames, core.bytes, dict(core.dropped), core.malformed
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or the end of standard input."""
    return shell.run("ingest", IngestSettings, work, argv)


if __name__ == "__main__":
    sys.exit(main())
