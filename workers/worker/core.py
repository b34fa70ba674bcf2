"""The worker without its sockets and its child: credit, what is to be done, what waits for the sink's word."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import Any, Final, NamedTuple

from ..wire.messages import (
    VERSION,
    AnyMessage,
    Beat,
    Bye,
    Credit,
    Done,
    Hello,
    Message,
    Nack,
    Result,
    StreamOpen,
    Welcome,
    Work,
)
from .unit import RESEND, Unit, UnitEvent

PREFETCH: Final = 2
"""Units on hand: one being reduced, one to go on with."""

MAX_KEPT: Final = 64
"""Results that may wait for the sink; beyond it the worker takes no more work."""

MAX_KEPT_BYTES: Final = 256 << 20
MAX_STREAMS: Final = 256
ABANDON: Final = 600.0
"""Seconds until a result that no sink wants is let go: its run is unknown there."""

HELLO_EVERY: Final = 1.0
BEAT_EVERY: Final = 0.5

StreamKey = tuple[str, str, str]


class ToBroker(NamedTuple):
    """Send this to the broker."""

    message: Message


class ToSink(NamedTuple):
    """Send this to the sink; ``payload`` is a part of its own."""

    message: Message
    payload: Any = None


Action = ToBroker | ToSink


class WorkerCore:
    """Messages and the reducer's answers go in, messages come out.

    Parameters
    ----------
    name
        What the worker is called, also over its restarts.
    session
        Grows each time it starts anew.
    """

    def __init__(self, name: str, session: int, now: float) -> None:
        self.name = name
        self.session = session
        self.counts: Counter[str] = Counter()
        self.frames = 0
        self.reduce_us = 0
        self.streams: OrderedDict[StreamKey, StreamOpen] = OrderedDict()
        self.willing = False
        """The reducer is there: more work may come."""
        self._epoch = -1
        self._got = 0
        self._limit = 0
        self._waiting: deque[Unit] = deque()
        self._running: deque[Unit] = deque()
        self._kept: OrderedDict[tuple[str, str, str, int], Unit] = OrderedDict()
        self._kept_bytes = 0
        self._beaten = now
        self._greeted = float("-inf")
        self._sink_greeted = float("-inf")
        self._sink_knows = False

    # --- from the broker and the sink --------------------------------------------------------------------------------

    def from_broker(self, message: AnyMessage, now: float) -> list[Action]:
        """Take a message from the broker."""
        if isinstance(message, Welcome):
            return self._welcome(message, now)
        if isinstance(message, StreamOpen):
            key = message.run, message.stream, message.cfg
            self.streams[key] = message
            self.streams.move_to_end(key)
            while len(self.streams) > MAX_STREAMS:
                self.streams.popitem(last=False)
        elif isinstance(message, Work):
            self._got += 1
            if (message.run, message.stream, message.cfg) not in self.streams:
                # Its STREAM_OPEN was lost; a new session makes the broker send it again, and the work too.
                self.counts["work of an unknown stream"] += 1
                return self._begin_session(now)
            self._waiting.append(Unit(message, self.session))
        else:
            self.counts["unexpected"] += 1
        return []

    def from_sink(self, message: AnyMessage, now: float) -> list[Action]:
        """Take a message from the sink."""
        if isinstance(message, Done):
            for first, stop in message.ranges:
                key = message.run, message.stream, message.cfg
                # As many steps as results are kept, not as the range is long.
                for kept in [k for k in self._kept if k[:3] == key and first <= k[3] < stop]:
                    self._let_go(kept, UnitEvent.CONFIRMED)
            return self._grant()
        if isinstance(message, Nack):
            return self._refused(message)
        if isinstance(message, Welcome):
            self._sink_knows = message.lease_ms > 0
        return []

    def _refused(self, nack: Nack) -> list[Action]:
        """Let go of a result that the sink will never take: the broker decides what becomes of its batch."""
        for key, unit in self._kept.items():
            if unit.work.token == nack.token:
                self._let_go(key, UnitEvent.DECLINED)
                self.counts["results that the sink refused"] += 1
                return [ToBroker(nack), *self._grant()]
        return []

    # --- from the reducer --------------------------------------------------------------------------------------------

    def take(self) -> Work | None:
        """Return the next unit for the reducer, None if there is none, or no room for its result.

        A broker that heard an old BEAT after a new one may send more than there was credit for.
        """
        if not self._waiting or len(self._kept) + len(self._running) >= MAX_KEPT + PREFETCH:
            return None
        unit = self._waiting.popleft()
        unit.move(UnitEvent.TAKEN)
        self._running.append(unit)
        return unit.work

    def reduced(self, result: Result, payload: Any, cpu_us: int, now: float) -> list[Action]:
        """Take a result; it is kept until the sink says that it is on disk."""
        unit = self._end(result.token)
        if unit is None:
            self.counts["answers to no question"] += 1
            return self._grant()
        self.frames += result.n
        self.reduce_us += cpu_us
        if unit.key in self._kept:
            self._let_go(unit.key, UnitEvent.REPLACED)
        unit.keep(result, payload, now)
        self._kept[unit.key] = unit
        self._kept_bytes += len(payload)
        return [ToSink(result, payload), *self._grant()]

    def failed(self, nack: Nack, event: UnitEvent = UnitEvent.FAILED) -> list[Action]:
        """Take word that a unit can't be done."""
        self.counts["NACK"] += 1
        unit = self._end(nack.token)
        if unit is None:
            self.counts["answers to no question"] += 1
            return self._grant()
        unit.move(event)
        # Of a former session's the broker doesn't hold that it is here.
        return [ToBroker(nack), *self._grant()] if unit.session == self.session else self._grant()

    def died(self, reason: str, frame: int, *, setup: bool = False) -> list[Action]:
        """Take word that the reducer died; ``frame`` is the one it was at if it went one by one, else −1.

        ``setup`` : it was at no frame, the recipes were being set up.

        Only the first unit it was given can have been in work; the others go to its successor.
        """
        self.counts["reducer died"] += 1
        if not self._running:
            return []
        work = self._running[0].work
        nack = Nack(work.run, work.stream, work.first, work.n, work.token, frame, reason[:500], False, setup=setup)
        out = self.failed(nack, UnitEvent.DIED)
        while self._running:
            unit = self._running.pop()
            unit.move(UnitEvent.SPARED)
            self._waiting.appendleft(unit)
        return out

    # --- time --------------------------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        """Say who is there."""
        return self.tick(now)

    def tick(self, now: float) -> list[Action]:
        """Do what time brings; call it every 50 ms or so."""
        out: list[Action] = []
        if self._epoch < 0 and now - self._greeted >= HELLO_EVERY:
            out += self._greet(now)
        if not self._sink_knows and now - self._sink_greeted >= HELLO_EVERY:
            self._sink_greeted = now
            out.append(ToSink(self._hello()))
        if self._epoch >= 0 and now - self._beaten >= BEAT_EVERY:
            self._beaten = now
            busy = self._running[0].work.token if self._running else -1
            held = [unit.work.token for unit in (*self._running, *self._waiting, *self._kept.values())]
            out.append(ToBroker(Beat(self.session, busy, self._got, self.frames, self.reduce_us, held)))
            if self._limit:
                out.append(ToBroker(Credit(self.session, self._limit)))  # the one before may have been lost
        for key, unit in list(self._kept.items()):
            if now - unit.kept.made > ABANDON:
                self.counts["results that no sink wanted"] += 1
                self._let_go(key, UnitEvent.UNWANTED)
            elif unit.due(now):
                self.counts["resent"] += 1
                out.append(ToSink(unit.kept.message, unit.kept.payload))
        return [*out, *self._grant()]

    def unsent(self, action: Action) -> None:
        """Take word that a message couldn't be sent: who it is for isn't there."""
        self.counts["unsent"] += 1
        message = action.message
        if isinstance(message, Hello):  # it goes as soon as there is somebody to hear it
            if isinstance(action, ToSink):
                self._sink_greeted = float("-inf")
            else:
                self._greeted = float("-inf")
        if isinstance(message, Result):
            unit = self._kept.get((message.run, message.stream, message.cfg, message.first))
            if unit is not None:
                unit.pause = RESEND

    def leave(self) -> list[Action]:
        """Give back what isn't begun: the worker ends."""
        self.willing = False
        self._drop_waiting()
        return [ToBroker(Bye(self.session))]

    @property
    def idle(self) -> bool:
        """Whether the reducer has nothing in hand and the sink has everything."""
        return not self._running and not self._kept

    @property
    def running(self) -> Work | None:
        """The unit that the reducer is at."""
        return self._running[0].work if self._running else None

    @property
    def in_hand(self) -> int:
        """How many units the reducer was given."""
        return len(self._running)

    @property
    def kept(self) -> int:
        """How many results wait for the sink."""
        return len(self._kept)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _hello(self) -> Hello:
        return Hello(VERSION, "worker", self.name, self.session)

    def _greet(self, now: float) -> list[Action]:
        self._greeted = now
        return [ToBroker(self._hello())]

    def _begin_session(self, now: float) -> list[Action]:
        """Begin anew with the broker: it takes its work back, and gives credit and work again."""
        self.session += 1
        self._epoch = -1
        self._got = self._limit = 0
        self._drop_waiting()
        self.counts["sessions"] += 1
        return self._greet(now)

    def _welcome(self, message: Welcome, now: float) -> list[Action]:
        if not message.lease_ms or (self._epoch >= 0 and message.epoch != self._epoch):
            return self._begin_session(now)
        if self._epoch < 0:
            self._epoch = message.epoch
            return self._grant()
        return []

    def _grant(self) -> list[Action]:
        """Take more work, as far as there is room: for it, and for its results."""
        if self._epoch < 0 or not self.willing or len(self._kept) >= MAX_KEPT or self._kept_bytes >= MAX_KEPT_BYTES:
            return []
        on_hand = sum(unit.session == self.session for unit in (*self._waiting, *self._running))
        limit = self._got - on_hand + PREFETCH
        if limit <= self._limit:
            return []
        self._limit = limit
        return [ToBroker(Credit(self.session, limit))]

    def _end(self, token: int) -> Unit | None:
        """Return the running unit of that token, which runs no more."""
        for at, unit in enumerate(self._running):
            if unit.work.token == token:
                del self._running[at]
                return unit
        return None

    def _let_go(self, key: tuple[str, str, str, int], event: UnitEvent) -> None:
        """Forget a result."""
        unit = self._kept.pop(key)
        unit.move(event)
        self._kept_bytes -= len(unit.kept.payload)

    def _drop_waiting(self) -> None:
        while self._waiting:
            self._waiting.popleft().move(UnitEvent.ENDED)
