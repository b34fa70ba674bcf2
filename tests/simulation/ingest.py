"""The ingest: its core and its book of what is spilled, in a shell with virtual sockets."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from haltere.workers.broker.lane import SPILLING
from haltere.workers.ingest.core import Fate, IngestCore, Source
from haltere.workers.spill.child import PAUSE as SPILLER_PAUSE
from haltere.workers.spill.core import SpillBook
from haltere.workers.spill.pipe import Answer, Refused, Written
from haltere.workers.spill.shell import SPILL_SLOW
from haltere.workers.wire.messages import (
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

from .model import DTYPE, SHAPE, Memory
from .process import Parts, Process
from .spiller import Spiller

if TYPE_CHECKING:
    from .world import World

AGE = 0.005
REMIND = 3.0
SOCKET = 40
"""Frames that wait in the ingest's socket for a detector; the next are gone, if the detector can't wait."""


class Ingest(Process):
    """As ``workers/ingest/process.py``, with memory of its own make."""

    core: IngestCore
    memory: Memory
    _former: Counter[str]

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self._former = Counter()

    @property
    def dropped(self) -> Counter[str]:
        """What was dropped in this life and all before, by cause."""
        return self._former + self.core.dropped

    def begin(self) -> None:
        """Make a ring, and greet the broker."""
        world = self.world
        name = f"haltere-{self.life}-0"
        size = world.scenario.ring * 128
        self.memory = world.rings[name] = Memory(name, size, world.counts)
        self.core = IngestCore(name, size, group=world.scenario.group)
        self.book = SpillBook(world.scenario.spill_ring * 128)
        self._spill_memory: dict[int, bytes] = {}
        self._spiller: Spiller | None = None
        self._spills = False
        names = {frames.name for scan in world.scenario.scans for frames in scan.detectors if frames.live}
        self.endpoints = {f"tcp://{name}:9999" for name in names} if world.scenario.pulled else set()
        self._session = world.epoch()
        self._epoch = -1
        self._flushing = False
        self._sockets: dict[str, deque[tuple[Source, int, bytes]]] = {}
        self.now_or_later(self._hello)
        self.after(0.5, self.every, 0.5, self._beat)
        self.after(REMIND, self.every, REMIND, self._remind)

    def end(self) -> None:
        """Take the ring's name away; who has it mapped keeps it."""
        self.memory.gone = True
        if self._spiller is not None:
            self._spiller.orphan()
            self._spiller = None
        self._former += self.core.dropped
        self.core.dropped.clear()

    def come(self, source: Source, frame: int, data: bytes) -> None:
        """Take a frame from a detector's stream, now or when there is room."""
        waiting = self._sockets.setdefault(source.endpoint, deque())
        if len(waiting) >= SOCKET and self.world.scenario.policy != "block":
            self.world.counts["frames that never came"] += 1
            return
        waiting.append((source, frame, data))
        self._fetch()

    def _fetch(self) -> None:
        for endpoint, waiting in self._sockets.items():
            while waiting and self.core.fetches(endpoint, self.world.now) and self._land(*waiting[0]):
                waiting.popleft()
        self._tell(self.core.take(everything=False))
        self._soon()

    def _land(self, source: Source, frame: int, data: bytes) -> bool:
        place = self.core.place(source, frame, len(data), "none", self.world.now)
        if isinstance(place, Block):
            self.memory.write(place.offset, data, place.life)
            self.world.checks.landed(source, frame)
        elif place is Fate.SPILL:
            self._spill(source, frame, data)
        return place is not Fate.WAIT

    # --- spilling, as ``workers/spill/shell.py`` ---------------------------------------------------------------------

    def _claimed(self, claim: Claim) -> None:
        self.core.claim(claim)
        if claim.policy != "spill":
            return
        if not self._spills:
            self._spills = True
            self._start_spiller()
        search = self.book.claim(claim)
        if search is not None and self._spiller is not None:
            self._spiller.tell(search)

    def _start_spiller(self) -> None:
        self._spiller = Spiller(self.world, self, self._spill_memory)
        for order in self.book.again():
            self._spiller.tell(order)

    def lose_spiller(self) -> None:
        """Let the spiller die; another one is started in a while."""
        if self._spiller is not None:
            self._spiller.kill()
            self._spiller = None
            self.after(SPILLER_PAUSE, self._start_spiller)

    def _spill(self, source: Source, frame: int, data: bytes) -> None:
        known = self.core.claims.get(source.endpoint, source.series)
        assert known is not None
        order = self.book.put(known.claim, SHAPE, DTYPE, "none", frame, len(data), self.world.now)
        if order is None:
            return self.core.drop(source.endpoint, source.series, frame, SPILL_SLOW)
        self._spill_memory[order.offset] = data
        if self._spiller is not None:
            self._spiller.tell(order)
        return self.core.name(source.endpoint, source.series, frame, frame + 1, SPILLING)

    def answered(self, spiller: Spiller, answer: Answer) -> None:
        """Take what a spiller says; of one that has died since, too, for it lay in the socket."""
        if isinstance(answer, Written):
            for message in self.book.written(answer, self.world.now):
                self._say(message)
        elif isinstance(answer, Refused):
            for claim, frame in self.book.refused(answer):
                self.core.drop(claim.endpoint, claim.series, frame, answer.reason)
            self._soon()
        else:
            self.book.searched(answer)

    def _account(self, claim: Claim) -> tuple[int, int, bool]:
        frames, size, known = self.book.account(claim)
        return frames, size, known or not self._spills

    def garble(self, source: Source, frame: int) -> None:
        """Take a message that can't be read."""
        self.core.garble(source.endpoint, source.series, frame)
        self._soon()

    def hear(self, server: Process, parts: Parts) -> None:
        """Take the broker's word."""
        message = decode(parts[0])
        if isinstance(message, Free):
            self.core.load.waiting(message.queued, self.world.now)
            for block in self.core.free(message.ring, message.offsets, message.lives, self.world.now):
                self.memory.clear(block.offset)
            self._fetch()
        elif isinstance(message, Claim):
            self._claimed(message)
        elif isinstance(message, Spilled):
            self.book.confirmed(message)
        elif isinstance(message, Connect):
            if message.endpoint not in self.endpoints:
                self.endpoints.add(message.endpoint)
                self.world.pulled(message.endpoint)
        elif isinstance(message, Welcome):
            self._welcomed(message)

    def _welcomed(self, message: Welcome) -> None:
        if not message.lease_ms:
            self._session += 1
            self._epoch = -1
            self._hello()
        elif message.epoch != self._epoch:
            self._epoch = message.epoch
            self._tell(self.core.held())
            self._name_pending()
            self._tell(self.core.take(everything=True))
            for told in self.book.due(self.world.now, everything=True):
                self._say(told)

    def _remind(self) -> None:
        self._tell(self.core.remind())
        self._name_pending()
        self._soon()

    def _name_pending(self) -> None:
        for claim, first, stop in self.book.pending():
            self.core.name(claim.endpoint, claim.series, first, stop, SPILLING)

    def _soon(self) -> None:
        if self.core.pending and not self._flushing:
            self._flushing = True
            self.after(AGE, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self._tell(self.core.take(everything=True))
        self._soon()

    def _tell(self, messages: Sequence[Frames | Dropped]) -> None:
        for place, message in enumerate(messages):
            if not self._say(message):
                return self.core.untake(messages[place:])

    def _say(self, message: Message) -> bool:
        return self.links[0].to_server(encode(message))

    def _hello(self) -> None:
        self._say(Hello(1, "ingest", self.name, self._session))

    def _beat(self) -> None:
        now = self.world.now
        greeted = self._epoch >= 0
        self._say(self.core.gauge(self._session, now, self._account) if greeted else Gauge(self._session, []))
        if not greeted:
            self._hello()
        for claim, frame in self.book.overdue(now):
            self.core.drop(claim.endpoint, claim.series, frame, SPILL_SLOW)
        for message in self.book.due(now):
            self._say(message)
        self._fetch()
