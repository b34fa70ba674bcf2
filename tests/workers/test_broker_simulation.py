"""Broker and workers under virtual time, with every fault that a seed can think of.

The cores are the real ones. Sink, ingest, files, reducers and the network are toys: messages are late, doubled, and
lost when a connection breaks or an end of it dies. The same seed gives the same run.
"""
# ruff: noqa: D102 - the world's methods are its events; their names say what happens

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from haltere.workers.broker_batch import State
from haltere.workers.broker_core import SINK, BrokerCore, Times
from haltere.workers.intervals import IntervalSet
from haltere.workers.wire.messages import (
    BACKFILLED,
    LIVE,
    LOST,
    QUARANTINED,
    Beat,
    Block,
    Done,
    Dropped,
    Expect,
    FileSpan,
    Frames,
    Free,
    Hello,
    InputSpec,
    LiveLane,
    Message,
    Nack,
    RecipeSpec,
    Result,
    RunClose,
    RunOpen,
    StreamOpen,
    StreamTotal,
    Welcome,
    Work,
)
from haltere.workers.worker_core import ToBroker, WorkerCore

N, B, LINE = 197, 8, 25
RATE = 100.0
LANE = LiveLane("tcp://eiger", "simplon-1", 12, "image")
INPUT = InputSpec("image", (2, 2), "<u2")


class World:
    """Everything around the two cores. Each process is a name in ``alive`` with the number of its life."""

    def __init__(self, seed: int, *, live: bool = True, faults: int = 8) -> None:
        self.random = random.Random(seed)
        self.t = 0.0
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.number = 0
        self.alive: dict[str, int | None] = {}
        self.links: dict[frozenset[str], int] = {}
        self.last: dict[tuple[str, str], float] = {}
        self.seen: Counter[str] = Counter()
        frames = range(N)
        self.poison = set(self.random.sample(frames, 2))
        self.killers = set(self.random.sample(frames, 1))
        self.not_in_file = set(self.random.sample(frames, 4))
        self.stream = StreamOpen(
            2, "run", "eiger", "cfg", B, [INPUT], [RecipeSpec("r", "x", b"{}")], LANE if live else None
        )
        self.control: list[Message] = []
        self.rows: dict[int, bytes] = {}
        self.told_complete = False
        self.stalled_until = 0.0
        self.written = 0.0  # when the file had its last frame
        self.start_sink()
        self.start_broker()
        self.start_ingest()
        self.workers: dict[str, dict[str, Any]] = {}
        for name in ("w0", "w1", "w2"):
            self.start_worker(name)
        self.at(0.2, self.dispatch, RunOpen(1, "run", "processed", b"{}"))
        self.at(0.2, self.dispatch, self.stream)
        for frame in frames:
            self.at(0.5 + frame / RATE, self.expose, frame)
        for line, first in enumerate(range(0, N, LINE)):
            stop = min(first + LINE, N)
            spans = [FileSpan("image", "file:///d", "data", first, stop - first, first)]
            self.at(0.6 + stop / RATE, self.dispatch, Expect(3 + line, "run", "eiger", first, stop, spans))
        self.at(0.8 + N / RATE, self.dispatch, RunClose(4 + line, "run", [StreamTotal("eiger", N)], "success", b"{}"))
        for _ in range(faults):
            self.at(self.random.uniform(0.3, 5), self.fault)

    # --- time and network --------------------------------------------------------------------------------------------

    def at(self, t: float, do: Callable[..., None], *args: Any) -> None:
        self.number += 1
        heapq.heappush(self.events, (t, self.number, do, args))

    def send(self, a: str, b: str, take: Callable[..., None], *args: Any) -> None:
        """Deliver in order, unless either end has died or their connection was broken meanwhile."""
        link = frozenset((a, b))
        lives = self.alive[a], self.alive[b], self.links.get(link, 0)
        delay = self.random.choice([0.0002, 0.001, 0.02])
        due = self.last[a, b] = max(self.last.get((a, b), 0.0), self.t + delay)

        def deliver() -> None:
            if (self.alive[a], self.alive[b], self.links.get(link, 0)) == lives and lives[1] is not None:
                self.seen["messages"] += 1
                take(*args)
                if self.random.random() < 0.02:
                    take(*args)

        self.at(due, deliver)

    def born(self, name: str) -> int:
        self.number += 1
        self.alive[name] = self.number
        return self.number

    # --- broker ------------------------------------------------------------------------------------------------------

    def start_broker(self) -> None:
        life = self.born("broker")
        self.core = BrokerCore(10**6 * life, Times(lease=3.0, liveness=1.5, quiet=1.0, unclaimed=5.0, keep=2.0))
        self.at(self.t, self.tick_broker, life)

    def tick_broker(self, life: int) -> None:
        if self.alive["broker"] == life:
            self.act(self.core.tick(self.t))
            self.at(self.t + 0.05, self.tick_broker, life)

    def to_broker(self, peer: str, message: Message) -> None:
        address = SINK if peer == "sink" else peer.encode()
        self.act(self.core.receive(address, message, self.t))  # type: ignore[arg-type]
        self.act(self.core.pump(self.t))
        self.check()

    def act(self, sends: list[Any]) -> None:
        for address, message in sends:
            peer = "sink" if address == SINK else address.decode()
            if self.alive.get(peer) is None:
                if peer != "sink":
                    self.core.unreachable(address, message, self.t)
            elif peer == "sink":
                self.send("broker", "sink", self.sink_hears, "broker", message)
            elif peer == "ingest":
                self.send("broker", "ingest", self.ingest_hears, message)
            else:
                self.send("broker", peer, self.worker_hears, peer, message)

    def check(self) -> None:
        """See that what must hold between any two messages does."""
        leased = Counter((lease.key, lease.number) for lease in self.core.peers._leases.values())
        for stream in self.core.runs.streams:
            for number, batch in stream.batches.items():
                assert (batch.state is State.LEASED) == (leased[stream.key, number] == 1), (number, batch)
            queued = {number for number, batch in stream.batches.items() if batch.state is State.QUEUED}
            entries = [
                number for key, number in (*self.core._queue._live, *self.core._queue._files) if key == stream.key
            ]
            assert queued <= set(entries), "a batch that nobody will take"
        for peer in self.core.peers.of("worker"):
            assert peer.sent <= peer.limit

    # --- sink --------------------------------------------------------------------------------------------------------

    def start_sink(self) -> None:
        life = self.born("sink")
        self.pending: list[tuple[str, Message]] = []
        self.broker_known = False
        self.at(self.t + 0.02, self.commit, life)
        self.at(self.t + 2.0, self.tell_full, life)

    def dispatch(self, message: Message) -> None:
        """Say a control message until the sink has it, in order: so does the dispatcher."""
        up = self.alive["sink"] is not None and self.t >= self.stalled_until
        if not up or message.serial != len(self.control) + 1:  # type: ignore[attr-defined]
            self.at(self.t + 0.1, self.dispatch, message)
            return
        self.control.append(message)
        if self.broker_known and self.alive["broker"] is not None:
            self.send("sink", "broker", self.to_broker, "sink", message)

    def sink_hears(self, peer: str, message: Message) -> None:
        if isinstance(message, Hello):
            self.send("sink", peer, *self.hearer(peer), Welcome(1, 1, 5000, 500))
            if peer == "broker":
                self.broker_known = True
                if not self.told_complete:
                    for each in self.control:
                        self.send("sink", "broker", self.to_broker, "sink", each)
                    self.tell(full=True)
        elif isinstance(message, Result):
            self.pending.append((peer, message))

    def hearer(self, peer: str) -> tuple[Any, ...]:
        return (self.to_broker, "sink") if peer == "broker" else (self.worker_hears_sink, peer)

    def done(self) -> IntervalSet:
        return IntervalSet((first, first + len(status)) for first, status in self.rows.items())

    def tell(self, *, full: bool) -> None:
        if self.broker_known and self.alive["broker"] is not None and self.stream in self.control:
            message = Done("run", "eiger", "cfg", self.done().ranges(), full, len(self.control) if full else 0)
            self.send("sink", "broker", self.to_broker, "sink", message)

    def tell_full(self, life: int) -> None:
        if self.alive["sink"] == life:
            if not self.told_complete:
                self.tell(full=True)
            self.at(self.t + 2.0, self.tell_full, life)

    def commit(self, life: int) -> None:
        if self.alive["sink"] != life:
            return
        if self.t >= self.stalled_until:
            for peer, message in self.pending:
                assert isinstance(message, Result)
                if message.first in self.rows:
                    self.seen["duplicates"] += 1
                else:
                    assert message.worker != "corrupt", f"a block was freed while {message.first} was being read"
                    self.rows[message.first] = message.status
                range_ = [(message.first, message.first + message.n)]
                for who in (peer, "broker"):
                    if self.alive.get(who) is not None and (who != "broker" or self.broker_known):
                        self.send("sink", who, *self.hearer(who), Done("run", "eiger", "cfg", range_))
            self.pending.clear()
            closed = any(isinstance(each, RunClose) for each in self.control)
            if closed and self.done().covers(0, N) and not self.told_complete:
                self.told_complete = True
                self.tell(full=True)
        self.at(self.t + 0.02, self.commit, life)

    # --- ingest ------------------------------------------------------------------------------------------------------

    def start_ingest(self) -> None:
        life = self.born("ingest")
        self.ring_name = f"haltere-{life}-0"
        self.ring: dict[int, int | None] = dict.fromkeys(range(40))
        self.session, self.epoch = life, -1
        self.drops = IntervalSet()
        self.say(Hello(1, "ingest", "ingest", self.session))
        self.at(self.t + 0.3, self.beat_ingest, life)

    def say(self, message: Message) -> None:
        if self.alive["broker"] is not None:
            self.send("ingest", "broker", self.to_broker, "ingest", message)

    def beat_ingest(self, life: int) -> None:
        if self.alive["ingest"] == life:
            self.say(Beat(self.session))
            self.at(self.t + 0.3, self.beat_ingest, life)

    def expose(self, frame: int) -> None:
        self.written = self.t
        if self.stream.live is None or self.alive["ingest"] is None or self.random.random() < 0.02:
            return
        free = [slot for slot, content in self.ring.items() if content is None]
        if not free or (frame // B) % 10 == 9:
            self.seen["dropped"] += 1
            self.say(Dropped(LANE.endpoint, LANE.series, [(frame, frame + 1)], "ring-full"))
            return
        self.ring[free[0]] = frame
        self.announce([(free[0], frame)])

    def announce(self, held: list[tuple[int, int]]) -> None:
        blocks = [Block(frame, slot, 8, "none") for slot, frame in held]
        if blocks:
            self.say(Frames(LANE.endpoint, LANE.series, self.ring_name, (2, 2), "<u2", blocks))

    def ingest_hears(self, message: Message) -> None:
        if isinstance(message, Free) and message.ring == self.ring_name:
            for slot, frame in zip(message.offsets, message.frames, strict=True):
                if self.ring[slot] == frame:
                    self.ring[slot] = None
        elif isinstance(message, Welcome) and not message.lease_ms:
            self.session += 1
            self.epoch = -1
            self.say(Hello(1, "ingest", "ingest", self.session))
        elif isinstance(message, Welcome) and message.epoch != self.epoch:
            self.epoch = message.epoch
            self.announce([(slot, frame) for slot, frame in self.ring.items() if frame is not None])

    # --- workers -----------------------------------------------------------------------------------------------------

    def start_worker(self, name: str) -> None:
        life = self.born(name)
        core = WorkerCore(name, 10**6 * life, self.t)
        core.willing = True
        self.workers[name] = {"core": core, "busy": False, "hang": False}
        self.tick_worker(name, life)

    def tick_worker(self, name: str, life: int) -> None:
        if self.alive[name] == life:
            self.worker_acts(name, self.workers[name]["core"].tick(self.t))
            self.begin(name, life)
            self.at(self.t + 0.1, self.tick_worker, name, life)

    def worker_acts(self, name: str, actions: Any) -> None:
        core = self.workers[name]["core"]
        for action in actions:
            to = "broker" if isinstance(action, ToBroker) else "sink"
            if self.alive[to] is None:
                core.unsent(action)
            elif to == "broker":
                self.send(name, "broker", self.to_broker, name, action.message)
            else:
                self.send(name, "sink", self.sink_hears, name, action.message)

    def worker_hears(self, name: str, message: Message) -> None:
        self.worker_acts(name, self.workers[name]["core"].from_broker(message, self.t))
        self.begin(name, self.alive[name])

    def worker_hears_sink(self, name: str, message: Message) -> None:
        self.worker_acts(name, self.workers[name]["core"].from_sink(message, self.t))

    def begin(self, name: str, life: int | None) -> None:
        worker = self.workers[name]
        if worker["busy"] or (work := worker["core"].running or worker["core"].take()) is None:
            return
        worker["busy"] = True
        took = self.random.choice([0.005, 0.02, 0.05])
        if worker["hang"]:
            worker["hang"], took = False, self.random.choice([1.0, 5.0])
        self.at(self.t + took, self.end, name, life, work, took >= 2.0)

    def end(self, name: str, life: int | None, work: Work, hung: bool) -> None:
        if self.alive[name] != life:
            return
        worker = self.workers[name]
        core: WorkerCore = worker["core"]
        worker["busy"] = False
        if hung:
            self.worker_acts(name, core.died("no progress in 2 s", -1))
            return self.begin(name, life)
        absent = {each.frame: each.status for each in work.absent}
        wanted = [frame for frame in range(work.first, work.first + work.n) if frame not in absent]
        if (fatal := next((frame for frame in wanted if frame in self.killers), None)) is not None:
            self.seen["killed"] += 1
            self.worker_acts(name, core.died("killed by SIGSEGV", fatal if work.isolate else -1))
            return self.begin(name, life)
        blocks = {block.frame: (span.ring, block) for span in work.ring for block in span.blocks}
        in_files = {frame for span in work.files for frame in range(span.first, span.first + span.n)}
        missing = [frame for frame in wanted if blocks.get(frame, (self.ring_name,))[0] != self.ring_name]
        for frame in (each for each in wanted if each not in blocks):
            assert frame in in_files, f"frame {frame} of {work} is nowhere"
            if frame in self.not_in_file or self.t < 0.5 + frame / RATE:
                missing.append(frame)
        if missing:
            key = work.run, work.stream, work.first, work.n, work.token
            self.worker_acts(name, core.failed(Nack(*key, -1, "short file", True, missing)))
            return self.begin(name, life)
        corrupt = any(self.ring[block.offset] != frame for frame, (_, block) in blocks.items() if frame in wanted)
        status = bytearray(work.n)
        for at, frame in enumerate(range(work.first, work.first + work.n)):
            came = LIVE if frame in blocks or self.stream.live is None else BACKFILLED
            status[at] = absent.get(frame, QUARANTINED if frame in self.poison else came)
        label = "corrupt" if corrupt else name
        result = Result("run", "eiger", "cfg", work.first, work.n, work.token, label, bytes(status), [], [])
        self.worker_acts(name, core.reduced(result, b"", 1, self.t))
        self.begin(name, life)

    # --- faults ------------------------------------------------------------------------------------------------------

    def fault(self) -> None:
        kind = self.random.choice(["broker", "sink", "ingest", "worker", "worker", "hang", "stall", "break", "break"])
        self.seen[kind] += 1
        name = f"w{self.random.randrange(3)}"
        if kind == "hang":
            self.workers[name]["hang"] = True
        elif kind == "stall":
            self.stalled_until = self.t + self.random.uniform(0.2, 2)
        elif kind == "break":
            pairs = [("broker", name), ("broker", "sink"), ("broker", "ingest"), (name, "sink")]
            link = frozenset(self.random.choice(pairs))
            self.links[link] = self.links.get(link, 0) + 1
        else:
            victim = name if kind == "worker" else kind
            self.alive[victim] = None
            again = {"broker": self.start_broker, "sink": self.start_sink, "ingest": self.start_ingest}
            start = again.get(kind, lambda: self.start_worker(name))
            life = self.number
            self.at(self.t + self.random.uniform(0.05, 1.0), lambda: self.restart(victim, life, start))

    def restart(self, victim: str, life: int, start: Callable[[], None]) -> None:
        if self.alive[victim] is None:
            start()

    def run(self) -> None:
        while self.events:
            self.t, _, do, args = heapq.heappop(self.events)
            do(*args)
            if self.told_complete and not self.core.runs:
                return
            assert self.t < 120, (
                "it never ends",
                self.done().gaps(0, N),
                self.core.snapshot(),
                {stream.key: stream.batches for stream in self.core.runs.streams},
                {name: (w["core"].counts, w["core"].running, w["core"].kept) for name, w in self.workers.items()},
            )

    def statuses(self) -> dict[int, int]:
        flat = {first + at: each for first, status in self.rows.items() for at, each in enumerate(status)}
        return {frame: status for frame, status in flat.items() if frame < N}


def assert_every_frame_is_accounted_for(world: World) -> None:
    statuses = world.statuses()
    assert set(statuses) == set(range(N))
    for frame, status in statuses.items():
        if status == QUARANTINED:
            assert frame in world.poison | world.killers, f"innocent frame {frame} was quarantined"
        elif status == LOST:
            assert frame in world.not_in_file, f"frame {frame} was called lost, and the file has it"
        else:
            assert frame not in world.poison | world.killers


@pytest.mark.parametrize("seed", range(30))
def test_every_frame_is_accounted_for_whatever_dies(seed: int) -> None:
    world = World(seed)
    world.run()
    assert_every_frame_is_accounted_for(world)


@pytest.mark.parametrize("seed", range(100, 110))
def test_a_stream_without_a_live_lane_is_reduced_from_files_whatever_dies(seed: int) -> None:
    world = World(seed, live=False)
    world.run()
    assert_every_frame_is_accounted_for(world)
    assert BACKFILLED not in world.statuses().values()


def test_without_faults_what_was_dropped_is_backfilled_and_the_rest_is_live() -> None:
    world = World(7, faults=0)
    world.poison, world.killers, world.not_in_file = set(), set(), set()
    world.run()
    count = Counter(world.statuses().values())
    assert set(count) == {LIVE, BACKFILLED}
    assert world.seen["dropped"] <= count[BACKFILLED] < 30
    assert all(content is None for content in world.ring.values()), "blocks were never given back"


def test_the_same_seed_gives_the_same_run() -> None:
    one, other = World(3), World(3)
    one.run()
    other.run()
    assert (one.rows, one.seen, one.t) == (other.rows, other.seen, other.t)
