"""The pool's processes: the real cores, in shells that do with virtual sockets what the product's do with real ones."""

from __future__ import annotations

import sqlite3
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from haltere.workers.broker.core import SINK, BrokerCore
from haltere.workers.broker.core import Send as BrokerSend
from haltere.workers.broker.lane import SPILLING
from haltere.workers.ingest.core import Fate, IngestCore, Source
from haltere.workers.ledger.reader import LedgerReader
from haltere.workers.ledger.rows import Group
from haltere.workers.ledger.writer import Ledger
from haltere.workers.sink.core import REMEMBERED, SinkCore
from haltere.workers.sink.core import Send as SinkSend
from haltere.workers.sink.tellers import Tellers
from haltere.workers.spill.child import PAUSE as SPILLER_PAUSE
from haltere.workers.spill.core import SpillBook
from haltere.workers.spill.pipe import Answer, Refused, Written
from haltere.workers.spill.shell import SPILL_SLOW
from haltere.workers.wire.messages import (
    Beat,
    Block,
    Claim,
    Connect,
    Dropped,
    Frames,
    Free,
    Gauge,
    Hello,
    Message,
    RunOpen,
    Spilled,
    Welcome,
    Work,
    decode,
    encode,
)
from haltere.workers.worker.core import Action, ToBroker, WorkerCore
from haltere.workers.worker.pipe import BETWEEN, SETTING_UP, At, Failed
from haltere.workers.worker.process import PAUSES
from haltere.workers.worker.reading import Reading
from haltere.workers.worker.reducing import Reducing

from .model import DTYPE, SHAPE, Hung, Killed, Memory
from .process import Parts, Process
from .spiller import Spiller

if TYPE_CHECKING:
    from .world import World

TICK = 0.05
AGE = 0.005
REMIND = 3.0
STALL = 1.5
"""Seconds without progress after which a worker kills its reducer."""

SOCKET = 40
"""Frames that wait in the ingest's socket for a detector; the next are gone, if the detector can't wait."""


class Broker(Process):
    """As ``workers/broker/process.py``."""

    core: BrokerCore

    def begin(self) -> None:
        """Make the core."""
        self._heard = 0
        self.core = BrokerCore(self.world.epoch(), self.world.scenario.times)
        self.after(0.0, self.every, TICK, self._tick)

    def receive(self, peer: bytes, parts: Parts) -> None:
        """Take a message of a worker or an ingest."""
        self._take(peer, decode(parts[0]))

    def hear(self, server: Process, parts: Parts) -> None:
        """Take a message of the sink."""
        self._take(SINK, decode(parts[0]))

    def connected(self, server: Process) -> None:
        """Have the sink tell everything."""
        self.core.sink_connected()

    def _take(self, peer: bytes, message: Any) -> None:
        self._say(self.core.receive(peer, message, self.world.now))
        self._say(self.core.pump(self.world.now))
        self._heard += 1
        if self._heard % 4 == 0:
            self.world.checks.broker(self.core)

    def _tick(self) -> None:
        self._say(self.core.tick(self.world.now))
        self.world.checks.broker(self.core)

    def _say(self, sends: Iterable[BrokerSend]) -> None:
        for peer, message in sends:
            if peer == SINK:
                self.links[0].to_server(encode(message))
            elif peer in self.served:
                self.served[peer].to_client(encode(message))
            else:
                self.core.unreachable(peer, message, self.world.now)


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
        frames, size, searched = self.book.account(claim)
        return frames, size, searched or not self._spills

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


class Reducer:
    """The worker's child: it takes its units one after the other, and dies or hangs by what they are."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.at = At(-1, -1)
        self.told: set[tuple[str, str, str]] = set()
        self.hung = False
        self.reducing = Reducing(Path("/"), [], self._say)
        self.reducing._reading = Reading(worker.world.files)

    def _say(self, at: At) -> None:
        self.at = at

    def reduce(self, work: Work) -> Any:
        """Reduce, with what memory and files hold now: what was given back meanwhile is seen to be so."""
        key = work.run, work.stream, work.cfg
        if key not in self.told:
            self.told.add(key)
            self.reducing.open(self.worker.core.streams[key])
        return self.reducing.reduce(work)


class Worker(Process):
    """As ``workers/worker/process.py``, with its child within."""

    core: WorkerCore

    def begin(self) -> None:
        """Make the core; the child is ready a little later."""
        self.core = WorkerCore(self.name, self.world.epoch(), self.world.now)
        self.slow = 1.0
        self.slow_until = 0.0
        self.leaving = False
        self._child: Reducer | None = None
        self._busy = False
        self._deaths = 0
        self._heard = self.world.now
        self.after(0.02, self._child_ready)
        self.after(0.0, self.every, TICK, self._tick)

    def hear(self, server: Process, parts: Parts) -> None:
        """Take a message of the broker or the sink."""
        message = decode(parts[0])
        take = self.core.from_sink if server is self.world.sink else self.core.from_broker
        self._do_all(take(message, self.world.now))
        self._feed()
        self.world.checks.worker(self.core)

    def lose_child(self) -> None:
        """Let the reducer die for no reason of its frames' own."""
        if self._child is not None:
            self._bury("worker died, killed by SIGKILL")

    def leave(self) -> None:
        """Give work back and end when the sink has everything, or after a second."""
        if self.leaving:
            return
        self.leaving = True
        self._do_all(self.core.leave())
        self.after(1.0, self.kill)

    def _tick(self) -> None:
        if self.leaving:
            if not self.core.kept:
                self.kill()
            return
        if self.core.running is not None and self.world.now - self._heard > STALL and self._child is not None:
            self._bury(f"no progress in {STALL} s")
        self._feed()
        self._do_all(self.core.tick(self.world.now))

    def _do_all(self, actions: Iterable[Action]) -> None:
        to_broker, to_sink = self.links
        for action in actions:
            if isinstance(action, ToBroker):
                taken = to_broker.to_server(encode(action.message))
            elif action.payload is None:
                taken = to_sink.to_server(encode(action.message))
            else:
                taken = to_sink.to_server(encode(action.message), bytes(action.payload))
            if not taken:
                self.core.unsent(action)

    # --- the child ---------------------------------------------------------------------------------------------------

    def _child_ready(self) -> None:
        if not self.leaving:
            self._child = Reducer(self)
            self._busy = False
            self._heard = self.world.now
            self.core.willing = True

    def _feed(self) -> None:
        if self._child is None or not self.core.willing:
            return
        while self.core.in_hand < 2 and self.core.take() is not None:
            if self.core.in_hand == 1:
                self._heard = self.world.now
        self._go_on()

    def _go_on(self) -> None:
        work = self.core.running
        if self._busy or work is None or self._child is None:
            return
        self._busy = True
        factor = self.slow if self.world.now < self.slow_until else 1.0
        took = self.world.cost * work.n * self.world.random.uniform(0.7, 1.3) * factor
        self.after(min(took, 0.8 * STALL), self._reduced, self._child, work)

    def _reduced(self, child: Reducer, work: Work) -> None:
        if child is not self._child:
            return  # it died before it was done
        try:
            answer = child.reduce(work)
        except Killed:
            self.world.counts["reducers killed"] += 1
            return self._bury("worker died, killed by SIGSEGV")
        except Hung:
            self.world.counts["reducers hung"] += 1
            return  # and the child stays busy
        self._heard = self.world.now
        self._busy = False
        if isinstance(answer, Failed):
            self._do_all(self.core.failed(answer.nack))
        else:
            reduced, payload = answer
            named = msgspec.structs.replace(reduced.result, worker=self.name)
            cpu_us = 100 * work.n  # the real one would be another in each run
            self._do_all(self.core.reduced(named, payload, cpu_us, self.world.now))
        self._feed()
        self._go_on()
        self.world.checks.worker(self.core)

    def _bury(self, how: str) -> None:
        assert self._child is not None
        work, at = self.core.running, self._child.at
        where = at.frame if work is not None and at.token == work.token else BETWEEN
        number = where if where >= 0 and work is not None and work.isolate else -1
        if number >= 0 and work is not None:
            self.world.checks.blamed(work, number)
        self._child = None
        self._busy = False
        self.core.willing = False
        self._do_all(self.core.died(how, number, setup=where == SETTING_UP))
        self._deaths += 1
        self.after(PAUSES[min(self._deaths, len(PAUSES)) - 1] + 0.02, self._child_ready)
