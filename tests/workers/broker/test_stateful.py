"""The broker against arbitrary interleavings: messages lost, doubled, out of order; workers and brokers that die."""
# ruff: noqa: D102 - rules are named by what happens

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from haltere.workers.broker.batch import State
from haltere.workers.broker.core import SINK, BrokerCore
from haltere.workers.intervals import IntervalSet
from haltere.workers.wire.messages import (
    QUARANTINED,
    Beat,
    Block,
    Bye,
    Credit,
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
    RunClose,
    RunOpen,
    StreamOpen,
    StreamTotal,
    Work,
)

N, B = 22, 4
LANE = LiveLane("tcp://eiger", "simplon-1", 12, "image")
CONTROL: list[Message] = [
    RunOpen(1, "run", "processed", b"{}"),
    StreamOpen(2, "run", "eiger", "cfg", B, [InputSpec("image", (1,), "<u2")], [RecipeSpec("r", "x", b"{}")], LANE),
    *(
        Expect(3 + at, "run", "eiger", 5 * at, min(5 * at + 5, N), [FileSpan("image", "file:///d", "x", 5 * at, 5, 0)])
        for at in range(5)
    ),
    RunClose(8, "run", [StreamTotal("eiger", N)], "success", b"{}"),
]
workers = st.sampled_from([b"a", b"b", b"c"])
frame_numbers = st.integers(0, N - 1)


class World(RuleBasedStateMachine):
    """Frames, documents, workers and a sink, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.epoch = 0
        self.told = 0  # control messages on the sink's disk
        self.sessions: dict[bytes, int] = {}
        self.out: list[tuple[bytes, Work]] = []
        self.tokens: set[int] = set()
        self.committed = IntervalSet()
        self.unsaid: list[tuple[int, int]] = []
        self.held: dict[int, int] = {}  # frame: the life of its block
        self.lives = 0
        self.new_broker()

    def new_broker(self) -> None:
        self.epoch += 10**6
        self.core = BrokerCore(self.epoch)

    def act(self, sends: list[Any]) -> None:
        for peer, message in sends:
            if isinstance(message, Work):
                assert message.token not in self.tokens, "a token was used twice"
                assert all(each.status == QUARANTINED for each in message.absent), "called lost, and a file has it"
                self.tokens.add(message.token)
                self.out.append((peer, message))
            elif isinstance(message, Free):
                read = {block.life for _, work in self.out for span in work.ring for block in span.blocks}
                for frame, life in zip(message.offsets, message.lives, strict=True):
                    assert frame in self.committed or life not in read, "freed while a worker may read it"
                    if self.held.get(frame) == life:
                        del self.held[frame]

    def hear(self, peer: bytes, message: Any) -> None:
        self.act(self.core.receive(peer, message, self.now))
        self.act(self.core.pump(self.now))

    @rule(how_many=st.integers(1, 8))
    def documents(self, how_many: int) -> None:
        for message in CONTROL[self.told : self.told + how_many]:
            self.hear(SINK, message)
        self.told = min(self.told + how_many, len(CONTROL))

    @rule(at=st.integers(0, len(CONTROL) - 1))
    def document_again(self, at: int) -> None:
        if at < self.told:
            self.hear(SINK, CONTROL[at])

    @rule()
    def sink_tells_everything(self) -> None:
        for message in CONTROL[: self.told]:
            self.hear(SINK, message)
        self.hear(
            SINK, Done("run", "eiger", "cfg", self.committed.ranges(), True, self.told, self.told == len(CONTROL))
        )
        self.unsaid.clear()

    @rule(frame=frame_numbers)
    def frame_comes(self, frame: int) -> None:
        if frame not in self.held:
            self.lives += 1
            self.held[frame] = self.lives
        self.frame_is_announced(frame, self.held[frame])

    def frame_is_announced(self, frame: int, life: int) -> None:
        self.hear(b"i", Frames(LANE.endpoint, 12, "ring", (1,), "<u2", [Block(frame, frame, 2, "none", life)]))

    @precondition(lambda self: self.lives)
    @rule(data=st.data(), frame=frame_numbers)
    def frame_is_announced_late(self, data: st.DataObject, frame: int) -> None:
        life = self.held.get(frame, data.draw(st.integers(1, self.lives)))
        if life not in self.held.values() or self.held.get(frame) == life:
            self.frame_is_announced(frame, life)

    @rule(frame=frame_numbers)
    def frame_is_dropped(self, frame: int) -> None:
        if frame not in self.held:
            self.hear(b"i", Dropped(LANE.endpoint, 12, [(frame, frame + 1)], "chaos"))

    @rule(worker=workers, more=st.integers(0, 3))
    def worker_asks(self, worker: bytes, more: int) -> None:
        session = self.sessions.setdefault(worker, 1)
        self.hear(worker, Hello(1, "worker", worker.decode(), session))
        self.hear(worker, Credit(session + 1, 10**6))  # of another life
        self.hear(worker, Credit(session, self.core.peers[worker].sent + more))

    @rule(worker=workers, clean=st.booleans())
    def worker_dies(self, worker: bytes, clean: bool) -> None:
        if clean and worker in self.sessions:
            self.hear(worker, Bye(self.sessions[worker]))
        self.out = [each for each in self.out if each[0] != worker]
        self.sessions[worker] = self.sessions.get(worker, 0) + 1

    @precondition(lambda self: self.out)
    @rule(data=st.data(), fate=st.sampled_from(["done", "done", "again", "lost", "unreadable", "crash"]))
    def worker_ends(self, data: st.DataObject, fate: str) -> None:
        at = data.draw(st.integers(0, len(self.out) - 1))
        worker, work = self.out[at]
        if fate != "again":
            del self.out[at]
        key = work.run, work.stream, work.first, work.n, work.token
        if fate in ("done", "again"):
            self.committed.add(work.first, work.first + work.n)
            self.unsaid.append((work.first, work.first + work.n))
        elif fate == "unreadable":
            self.hear(worker, Nack(*key, -1, "late", True))
        elif fate == "crash":
            self.hear(worker, Nack(*key, work.first if work.isolate else -1, "SIGSEGV", False))

    @precondition(lambda self: self.unsaid)
    @rule(data=st.data(), lost=st.booleans())
    def sink_says_done(self, data: st.DataObject, lost: bool) -> None:
        range_ = data.draw(st.sampled_from(self.unsaid))
        self.unsaid.remove(range_)
        if not lost:
            self.hear(SINK, Done("run", "eiger", "cfg", [range_]))

    @rule(seconds=st.sampled_from([0.1, 0.6, 2.0, 6.0]), beating=st.booleans())
    def time_passes(self, seconds: float, beating: bool) -> None:
        self.now += seconds
        for worker, session in self.sessions.items() if beating else ():
            mine = [work.token for peer, work in self.out if peer == worker]
            peer = self.core.peers.get(worker)
            self.hear(worker, Beat(session, mine[0] if mine else -1, peer.sent if peer else 0, held=mine))
        self.act(self.core.tick(self.now))

    @rule()
    def broker_dies(self) -> None:
        self.new_broker()
        for frame in sorted(self.held):  # the ingest says what it holds
            self.frame_comes(frame)

    @invariant()
    def books_agree(self) -> None:
        leases = sorted((lease.key, lease.number) for lease in self.core.peers._leases.values())
        leased = sorted(
            (stream.key, number)
            for stream in self.core.runs.streams
            for number, batch in stream.batches.items()
            if batch.state is State.LEASED
        )
        assert leases == leased
        assert self.core.peers.backfilling == sum(each.backfill for each in self.core.peers._leases.values())
        for peer in self.core.peers.of("worker"):
            assert peer.sent <= peer.limit

    def teardown(self) -> None:
        """From wherever this is, one healthy worker completes the run."""
        self.out.clear()
        for _ in range(60):
            self.told = len(CONTROL)
            self.sink_tells_everything()
            if not self.core.runs or all(stream.complete for stream in self.core.runs.streams):
                assert not self.held, "blocks were never given back"
                return
            self.now += 1.0
            self.hear(b"z", Hello(1, "worker", "z", 1))
            self.hear(b"z", Credit(1, self.core.peers[b"z"].sent + 4))
            self.act(self.core.tick(self.now))
            for _, work in self.out:
                self.committed.add(work.first, work.first + work.n)
            self.out.clear()
        raise AssertionError(f"it doesn't end: {self.core.snapshot()}")


TestWorld = World.TestCase
TestWorld.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
