"""The broker's decisions, one at a time, with a clock that the test moves."""
# ruff: noqa: D102 - the bench speaks for itself

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import pytest

from haltere.workers.broker.batch import Held
from haltere.workers.broker.core import DROPS_AGAIN, MAX_ENDPOINTS, MAX_PEERS, SINK, BrokerCore, Times
from haltere.workers.broker.rings import MAX_RINGS, Rings
from haltere.workers.broker.runs import planned_row
from haltere.workers.wire.messages import (
    LOST,
    MAX_CONTROL,
    MAX_WORK,
    QUARANTINED,
    Beat,
    Block,
    Bye,
    Claim,
    Connect,
    Credit,
    Damaged,
    Done,
    Dropped,
    Drops,
    Expect,
    FileSpan,
    Frames,
    Free,
    Gauge,
    Hello,
    InputSpec,
    LiveLane,
    Message,
    Nack,
    RecipeSpec,
    RunClose,
    RunOpen,
    SeriesGauge,
    Spilled,
    Status,
    StatusReply,
    StreamOpen,
    StreamTotal,
    Welcome,
    Work,
    decode,
    encode,
)

LANE = LiveLane("tcp://eiger", "simplon-1", 12, "image")
IMAGE = InputSpec("image", (2, 3), "<u2")
BATCH = 4
M = TypeVar("M", bound=Message)


class Bench:
    """A broker, and what it has said since it was last asked."""

    def __init__(self) -> None:
        self.now = 100.0
        self.core = BrokerCore(1000)
        self.said: list[tuple[bytes, Message]] = []
        self.serial = 0
        self.closed = False

    def hear(self, peer: bytes, message: Any) -> None:
        self.said += self.core.receive(peer, message, self.now)
        self.said += self.core.pump(self.now)

    def wait(self, seconds: float, *, alive: tuple[bytes, ...] = (), busy: int = -1) -> None:
        """Let time pass in steps of 50 ms; those ``alive`` beat meanwhile."""
        for _ in range(round(seconds / 0.05)):
            self.now += 0.05
            for peer in alive:
                known = self.core.peers.get(peer)
                if known is not None:
                    beat = Beat(known.session, busy, known.sent, held=list(known.leases))
                    self.said += self.core.receive(peer, beat, self.now)
            self.said += self.core.tick(self.now)

    def take(self, kind: type[M]) -> list[tuple[bytes, M]]:
        found = [(peer, message) for peer, message in self.said if isinstance(message, kind)]
        self.said = [each for each in self.said if not isinstance(each[1], kind)]
        return found

    def work(self) -> list[Work]:
        return [message for _, message in self.take(Work)]

    def sink(self, kind: type[Message], *fields: Any) -> None:
        self.serial += 1
        self.hear(SINK, kind(self.serial, *fields))

    def open(
        self, *, live: bool = True, synced: bool = True, inputs: tuple[InputSpec, ...] = (IMAGE,), sums: bool = False
    ) -> None:
        self.sink(RunOpen, "run", "processed", b"{}")
        recipes = [RecipeSpec("xrd", "azimuthal", b"{}")]
        lane = LANE if live else None
        self.sink(StreamOpen, "run", "eiger", "cfg", BATCH, list(inputs), recipes, lane, "drop", None, sums)
        if synced:
            self.done([], full=True)

    def expect(self, first: int, stop: int, *keys: str) -> None:
        spans = [FileSpan(key, "file:///d/a.h5", "data", first, stop - first, first) for key in keys or ("image",)]
        self.sink(Expect, "run", "eiger", first, stop, spans)

    def close(self, total: int) -> None:
        self.sink(RunClose, "run", [StreamTotal("eiger", total)], "success", b"{}")
        self.closed = True
        self.done([], full=True)

    def done(self, ranges: list[tuple[int, int]], *, full: bool = False) -> None:
        self.hear(SINK, Done("run", "eiger", "cfg", ranges, full, self.serial if full else 0, full and self.closed))

    def frames(self, *numbers: int, series: int = 12, ring: str = "ring-1", shape: tuple[int, ...] = (2, 3)) -> None:
        blocks = [Block(number, 64 * number, 12, "bslz4", number) for number in numbers]
        self.hear(b"ingest", Frames(LANE.endpoint, series, ring, shape, "<u2", blocks))

    def ingest(self) -> None:
        self.hear(b"ingest", Hello(1, "ingest", "ingest", 1))

    def worker(self, peer: bytes = b"w", *, credit: int = 100, session: int = 1) -> None:
        self.hear(peer, Hello(1, "worker", peer.decode(), session))
        self.hear(peer, Credit(session, credit))

    def nack(self, work: Work, *, frame: int = -1, reason: str = "why", retryable: bool = False) -> None:
        key = work.run, work.stream, work.first, work.n, work.token
        self.hear(b"w", Nack(*key, frame, reason, retryable))


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- what goes, and when ---------------------------------------------------------------------------------------------


def test_nothing_goes_before_the_sink_has_said_what_is_done(bench: Bench) -> None:
    bench.open(synced=False)
    bench.worker()
    bench.frames(0, 1, 2, 3, 4, 5, 6, 7)
    bench.wait(1, alive=(b"w",))
    assert bench.work() == []
    bench.done([(0, 4)], full=True)
    bench.wait(0.1)
    assert [work.first for work in bench.work()] == [4]


def test_news_of_what_is_done_is_not_yet_all_that_is_done(bench: Bench) -> None:
    bench.open(synced=False)
    bench.worker()
    bench.frames(*range(8))
    bench.done([(4, 8)])
    bench.wait(0.1)
    assert bench.work() == []


def test_a_batch_that_is_in_the_ring_goes_without_a_document(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2)
    assert bench.work() == []
    bench.frames(3)
    (work,) = bench.work()
    assert (work.first, work.n, work.files, work.absent) == (0, 4, [], [])
    assert [block.frame for span in work.ring for block in span.blocks] == [0, 1, 2, 3]


def test_a_batch_that_is_added_up_waits_until_its_frames_are_promised(bench: Bench) -> None:
    bench.open(sums=True)
    bench.worker()
    bench.frames(*range(8))
    bench.expect(0, 6)
    bench.wait(0.1)
    assert [(work.first, work.n) for work in bench.work()] == [(0, 4)]
    bench.close(6)
    bench.wait(0.1)
    assert [(work.first, work.n) for work in bench.work()] == [(4, 2)]  # cut, before anything of it was added


def test_a_stream_without_a_live_lane_goes_as_its_files_are_announced(bench: Bench) -> None:
    bench.open(live=False)
    bench.worker()
    bench.expect(0, 6)
    bench.wait(0.1)
    (work,) = bench.work()
    assert work.files == [FileSpan("image", "file:///d/a.h5", "data", 0, 4, 0)]
    assert work.ring == []


def test_the_short_last_batch_waits_for_the_total(bench: Bench) -> None:
    bench.open(live=False)
    bench.worker()
    bench.expect(0, 6)
    bench.wait(1, alive=(b"w",))
    bench.take(Work)
    bench.close(6)
    bench.wait(0.1, alive=(b"w",))
    assert [(work.first, work.n) for work in bench.work()] == [(4, 2)]


def test_a_dropped_frame_comes_from_the_file_and_the_others_from_the_ring(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 3)
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(2, 3)], "ring-full"))
    bench.expect(0, 4)
    bench.wait(0.1)
    (work,) = bench.work()
    assert [block.frame for span in work.ring for block in span.blocks] == [0, 1, 3]
    assert [(span.first, span.n, span.offset) for span in work.files] == [(2, 1, 2)]


def test_a_frame_is_waited_for_until_later_ones_have_come_for_half_a_second(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.expect(0, 4)
    bench.frames(0, 1, 3)
    bench.wait(0.4, alive=(b"w",))
    assert bench.work() == []
    bench.wait(0.2, alive=(b"w",))
    assert [work.first for work in bench.work()] == [0]


def test_a_live_lane_that_died_is_given_up_when_what_was_promised_does_not_come(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.expect(0, 4)
    bench.wait(4.5, alive=(b"w",))
    assert bench.work() == []
    bench.wait(1, alive=(b"w",))
    assert [work.first for work in bench.work()] == [0]


def stream_with_total(bench: Bench, total: int) -> None:
    recipes = [RecipeSpec("xrd", "azimuthal", b"{}")]
    bench.sink(StreamOpen, "run", "eiger", "cfg", BATCH, [IMAGE], recipes, LANE, "drop", total)


def test_a_run_that_has_ended_is_read_from_its_files_at_once_and_claims_no_series(bench: Bench) -> None:
    bench.worker()
    bench.sink(RunOpen, "run", "processed", b"{}")
    stream_with_total(bench, 8)
    bench.done([], full=True)
    bench.expect(0, 8)
    bench.wait(0.1, alive=(b"w",))
    assert [(work.first, work.ring) for work in bench.work()] == [(0, []), (4, [])]
    bench.ingest()
    assert bench.take(Connect) == []
    bench.frames(8)
    assert len(bench.core._waiting) == 1  # another run's, whose document is still on its way


def test_a_stream_that_is_told_again_with_its_total_waits_for_no_frame_any_more(bench: Bench) -> None:
    bench.worker()
    bench.open()
    bench.expect(0, 8)
    bench.frames(0, 1)
    bench.wait(0.1, alive=(b"w",))
    assert bench.work() == []
    stream_with_total(bench, 8)
    bench.frames(2, 3)
    bench.wait(0.1, alive=(b"w",))
    held = {work.first: [block.frame for span in work.ring for block in span.blocks] for work in bench.work()}
    assert held == {0: [0, 1], 4: []}  # what was in the ring stays of use; 2 and 3 may be of another run by now


def test_inputs_beside_the_streamed_one_come_from_files(bench: Bench) -> None:
    bench.open(inputs=(IMAGE, InputSpec("flux", (), "<f8")))
    bench.worker()
    bench.frames(0, 1, 2, 3)
    bench.wait(1, alive=(b"w",))
    assert bench.work() == []
    bench.expect(0, 4, "image", "flux")
    bench.wait(0.1)
    (work,) = bench.work()
    assert [span.key for span in work.files] == ["flux"]
    assert len(work.ring[0].blocks) == 4


def test_a_document_that_promises_a_billion_frames_queues_only_a_few_batches(bench: Bench) -> None:
    bench.open(live=False)
    bench.expect(0, 10**9)
    bench.wait(0.2)
    assert len(bench.core._queue) == 32
    assert len(bench.core.runs.streams[0].batches) == 32


def test_files_get_one_turn_in_four_while_frames_come_live(bench: Bench) -> None:
    bench.open()
    bench.expect(0, 400)
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(0, 200)], "chaos"))
    bench.frames(*range(200, 400))
    bench.wait(0.1)
    bench.worker(credit=8)
    first = [work.first for work in bench.work() if not work.ring]
    assert len(first) == 1, "nobody knows yet how long such a batch takes"
    bench.now += 0.05
    bench.done([(first[0], first[0] + 4)])
    bench.hear(b"w", Credit(1, 28))
    from_files = [not work.ring for work in bench.work()]
    assert [sum(from_files[at : at + 4]) for at in range(4, 20, 4)] == [1] * 4  # the first makes up for the wait


def test_where_the_file_is_the_only_lane_it_is_the_live_one_until_the_run_ends(bench: Bench) -> None:
    bench.open(live=False)
    bench.expect(0, 8)
    bench.wait(0.1)
    assert bench.core.snapshot()["queued"] == {"live": 2, "files": 0}
    bench.close(16)
    bench.expect(8, 16)
    bench.wait(0.1)
    assert bench.core.snapshot()["queued"] == {"live": 2, "files": 2}


# --- blocks of the ring ----------------------------------------------------------------------------------------------


def test_blocks_are_freed_when_the_result_is_on_disk_and_not_before(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3)
    bench.wait(10, alive=(b"w",))
    assert bench.take(Free) == []
    bench.done([(0, 4)])
    assert bench.take(Free) == [(b"ingest", Free("ring-1", [0, 64, 128, 192], [0, 1, 2, 3]))]


def test_a_frame_that_is_done_or_came_before_is_freed_at_once(bench: Bench) -> None:
    bench.open()
    bench.done([(0, 4)])
    bench.frames(2)
    bench.frames(5)
    bench.hear(b"ingest", Frames(LANE.endpoint, 12, "ring-1", (2, 3), "<u2", [Block(5, 9999, 12, "bslz4", 9999)]))
    assert [message.offsets for _, message in bench.take(Free)] == [[128], [9999]]
    assert bench.core.runs.streams[0].duplicates == 2


def test_a_block_that_is_announced_again_is_still_held(bench: Bench) -> None:
    bench.open()
    bench.frames(0, 1)
    bench.frames(0, 1)
    assert bench.take(Free) == []


def test_a_block_that_was_given_back_is_given_back_again_when_it_is_announced_again(bench: Bench) -> None:
    bench.open()
    bench.done([(0, 4)])
    bench.frames(2)
    assert bench.take(Free) == [(b"ingest", Free("ring-1", [128], [2]))]
    for numbers in ((2, 5), (2,)):  # the ingest hadn't heard of it, or the message is late
        bench.frames(*numbers)
        assert bench.take(Free) == [(b"ingest", Free("ring-1", [128], [2]))]
    assert bench.core.runs.streams[0].duplicates == 1


def test_saying_again_what_is_held_makes_nothing_wait_longer_for_the_last_frames(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1)
    bench.expect(0, 4)
    bench.close(4)
    for _ in range(8):
        bench.frames(0, 1)
        bench.wait(0.1, alive=(b"w",))
    assert [work.first for work in bench.work()] == [0]


def test_frames_of_an_unknown_series_wait_until_a_document_claims_them(bench: Bench) -> None:
    bench.worker()
    bench.frames(0, 1, 2, 3)
    bench.open()
    bench.wait(0.1)
    assert [work.first for work in bench.work()] == [0]


def test_frames_that_nobody_claims_are_let_go_and_counted(bench: Bench) -> None:
    bench.frames(0, 1, series=99)
    bench.wait(31)
    assert [message.lives for _, message in bench.take(Free)] == [[0, 1]]
    assert bench.core.counts["frames of unknown series let go"] == 2


def test_no_more_than_4096_frames_of_unknown_series_wait(bench: Bench) -> None:
    for first in range(0, 4096 + 100, 100):
        bench.frames(*range(first, first + 100), series=99)
    freed = sum(len(message.lives) for _, message in bench.take(Free))
    assert freed == 200
    assert len(bench.core._waiting) == 4000


def test_frames_beyond_the_total_are_let_go_and_counted(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3, 4, 5)
    bench.expect(0, 5)
    bench.close(5)
    bench.frames(6)
    bench.wait(1, alive=(b"w",))
    assert [(work.first, work.n) for work in bench.work()] == [(0, 4), (4, 1)]
    bench.done([(0, 5)])
    freed = [frame for _, message in bench.take(Free) for frame in message.lives]
    assert sorted(freed) == [0, 1, 2, 3, 4, 5, 6]
    assert bench.core.runs.streams[0].surplus == 2


def test_a_close_gives_back_what_lies_beyond_the_total(bench: Bench) -> None:
    bench.open()
    bench.frames(0, 1, 4, 5)
    bench.sink(RunClose, "run", [StreamTotal("eiger", 1)], "success", b"{}")
    assert [sorted(message.lives) for _, message in bench.take(Free)] == [[4, 5]], "1 goes with its batch"


def test_frames_of_another_shape_than_announced_are_owed_to_the_file(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3, shape=(3, 2))
    assert [message.lives for _, message in bench.take(Free)] == [[0, 1, 2, 3]]
    bench.expect(0, 4)
    bench.wait(0.1)
    (work,) = bench.work()
    assert work.ring == []
    assert bench.core.runs.streams[0].lane.dropped == {"came as (3, 2) <u2, announced as (2, 3) <u2": 4}


def test_what_was_dropped_is_counted_once_by_its_reason(bench: Bench) -> None:
    bench.open()
    for _ in range(2):
        bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(2, 3), (8, 10)], "ring-full"))
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(20, 21)], "chaos"))
    assert bench.core.runs.streams[0].lane.dropped == {"ring-full": 3, "chaos": 1}


def test_what_was_dropped_before_its_stream_was_known_is_counted_when_it_is(bench: Bench) -> None:
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(2, 3)], "ring-full"))
    bench.open()
    assert bench.core.runs.streams[0].lane.dropped == {"ring-full": 1}


# --- what can't be reduced -------------------------------------------------------------------------------------------


def test_a_frame_that_is_nowhere_is_lost_with_the_evidence(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 3)
    bench.expect(0, 2)
    bench.expect(3, 4)
    bench.close(4)
    bench.wait(1, alive=(b"w",))
    (work,) = bench.work()
    assert [(each.frame, each.status) for each in work.absent] == [(2, LOST)]
    assert work.absent[0].reason == "it didn't come live, and no file was announced that has image"


def test_the_sink_is_told_of_drops_when_there_are_more_and_now_and_then(bench: Bench) -> None:
    bench.open()
    bench.ingest()
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(2, 3), (8, 10)], "ring-full"))
    bench.wait(1.0, alive=(b"ingest",))
    told = Drops("run", "eiger", 1000, [("ring-full", 3)])
    assert bench.take(Drops) == [(SINK, told)]
    bench.wait(5.0, alive=(b"ingest",))
    assert bench.take(Drops) == [(SINK, told)]  # should the word have been lost
    bench.hear(SINK, Welcome(1, 7, 5000, 500))
    bench.wait(0.05)
    assert bench.take(Drops) == [(SINK, told)]  # should the sink have been


def test_the_sink_is_told_of_drops_again_after_a_while(bench: Bench) -> None:
    bench.open()
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(2, 3)], "ring-full"))
    again = 100.0 + DROPS_AGAIN
    told = [
        now
        for now in (100.0, again - 0.25, again, again + 0.25)
        if any(isinstance(message, Drops) for _, message in bench.core.tick(now))
    ]
    assert told == [100.0, again]


def test_drops_are_told_in_numbers_that_travel(bench: Bench) -> None:
    bench.open()
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(0, 2**40)], "ring-full"))
    bench.wait(0.05)
    assert bench.take(Drops) == [(SINK, Drops("run", "eiger", 1000, [("ring-full", 2**40 - 1)]))]


def test_a_drop_that_is_told_after_its_frame_was_done_is_not_counted(bench: Bench) -> None:
    bench.open()
    bench.done([(0, 8)])
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(2, 3), (7, 9)], "ring-full"))
    assert bench.core.runs.streams[0].lane.dropped == {"ring-full": 1}


def test_a_dropped_frame_that_no_file_has_is_lost_and_says_why(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 3)
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(1, 2)], "ring-full"))
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(1, 3)], "decimated"))
    bench.sink(Expect, "run", "eiger", 0, 4, [])
    bench.close(4)
    bench.wait(1, alive=(b"w",))
    (work,) = bench.work()
    nowhere = "and no file was announced that has image"
    assert [(each.frame, each.status, each.reason) for each in work.absent] == [
        (1, LOST, f"dropped: ring-full, {nowhere}"),
        (2, LOST, f"dropped: decimated, {nowhere}"),
    ]


def spilling(bench: Bench) -> None:
    bench.ingest()
    bench.sink(RunOpen, "run", "processed", b"{}")
    recipes = [RecipeSpec("xrd", "azimuthal", b"{}")]
    bench.sink(StreamOpen, "run", "eiger", "cfg", BATCH, [IMAGE], recipes, LANE, "spill")
    bench.done([], full=True)
    bench.worker()
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(0, 4)], "spilling"))
    bench.sink(Expect, "run", "eiger", 0, 4, [])
    bench.close(4)
    nothing_left(bench)


def nothing_left(bench: Bench) -> None:
    """Let the ingest say that the ledger knows all that it has spilled."""
    bench.hear(b"ingest", Gauge(1, [SeriesGauge(LANE.endpoint, 12, 1.0)]))


def test_only_an_ingest_that_begins_anew_leaves_doubt_of_what_it_has_spilled(bench: Bench) -> None:
    spilling(bench)
    lane = bench.core.runs.streams[0].lane
    bench.wait(1.1, alive=(b"w", b"ingest"))
    nothing_left(bench)
    bench.wait(0.1, alive=(b"w", b"ingest"))
    bench.worker(b"another")
    bench.ingest()
    assert not lane.may_be_spilled(99, bench.now)
    bench.hear(b"other", Hello(1, "ingest", "other", 1))
    assert lane.may_be_spilled(99, bench.now), "it may have been here before the broker was"
    nothing_left(bench)
    assert not lane.may_be_spilled(99, bench.now)
    bench.wait(0.1, alive=(b"ingest",))
    bench.hear(b"ingest", Hello(1, "ingest", "ingest", 2))
    assert lane.may_be_spilled(99, bench.now)


def test_an_ingest_that_is_lost_leaves_doubt_of_what_it_has_spilled(bench: Bench) -> None:
    spilling(bench)
    lane = bench.core.runs.streams[0].lane
    bench.wait(1.1, alive=(b"ingest",))
    nothing_left(bench)
    bench.wait(3, alive=(b"ingest",))
    assert bench.core.peers.get(b"w") is None
    assert not lane.may_be_spilled(99, bench.now), "a worker has spilled nothing"
    bench.wait(4)
    assert lane.may_be_spilled(99, bench.now)


def test_a_frame_on_its_way_to_a_file_is_waited_for_and_read_from_there(bench: Bench) -> None:
    spilling(bench)
    for _ in range(3):
        bench.wait(2, alive=(b"w", b"ingest"))
    assert bench.work() == []
    said = Spilled(0, "run", "eiger", [FileSpan("image", "file:///spill/a.h5", "data", 0, 4, 7)])
    bench.hear(b"ingest", said)
    assert bench.take(Spilled) == [(SINK, said)], "it isn't on disk yet"
    bench.hear(SINK, said)
    assert bench.take(Spilled) == [(b"ingest", said)]
    bench.wait(0.1, alive=(b"w",))
    (work,) = bench.work()
    assert (work.files, work.absent) == (said.files, [])
    bench.hear(b"ingest", said)
    assert bench.take(Spilled) == [(b"ingest", said)], "it is known: the sink needn't be asked again"
    assert bench.core.snapshot()["runs"]["run"]["streams"]["eiger"]["spilled"] == 4


def test_what_an_ingest_had_in_hand_is_lost_when_its_successor_has_looked_for_it(bench: Bench) -> None:
    spilling(bench)
    bench.hear(b"other", Hello(1, "ingest", "ingest", 2))
    bench.hear(b"other", Gauge(2, [SeriesGauge(LANE.endpoint, 12, 1.0, searched=False)]))
    for _ in range(3):
        bench.wait(1, alive=(b"w", b"other"))
    assert bench.work() == []
    bench.hear(b"other", Gauge(2, [SeriesGauge(LANE.endpoint, 12, 1.0)]))
    bench.wait(0.1, alive=(b"w",))
    (work,) = bench.work()
    assert {each.reason for each in work.absent} == {
        "dropped: it was being spilled when its ingest ended, and no file was announced that has image"
    }


@pytest.mark.parametrize("late", [True, False], ids=["said late", "said again"])
def test_what_could_not_be_spilled_is_lost_in_whatever_order_that_is_said(bench: Bench, late: bool) -> None:
    spilling(bench)
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(0, 4)], "spill-full"))
    if late:
        bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(0, 4)], "spilling"))
    bench.wait(1.1, alive=(b"w", b"ingest"))
    assert bench.work() == []
    nothing_left(bench)
    bench.wait(0.1, alive=(b"w", b"ingest"))
    (work,) = bench.work()
    assert {each.reason for each in work.absent} == {"dropped: spill-full, and no file was announced that has image"}


def test_an_ingest_that_says_no_more_of_frames_on_their_way_has_them_no_more(bench: Bench) -> None:
    spilling(bench)
    for _ in range(20):  # that it gave them up was lost on the way
        bench.wait(2, alive=(b"w", b"ingest"))
    (work,) = bench.work()
    assert [each.frame for each in work.absent] == [0, 1, 2, 3]


def test_nothing_is_called_lost_while_a_document_may_be_missing(bench: Bench) -> None:
    bench.open(live=False)
    bench.worker()
    bench.serial += 1  # an EXPECT that is on disk and never came
    bench.close(4)
    bench.wait(3, alive=(b"w",))
    assert bench.work() == []
    assert [message.role for peer, message in bench.take(Hello) if peer == SINK], "it didn't ask"


def test_a_file_that_is_late_is_tried_again_until_it_is_there(bench: Bench) -> None:
    bench.open(live=False)
    bench.worker()
    bench.expect(0, 4)
    bench.wait(0.1, alive=(b"w",))
    for _ in range(20):
        (work,) = bench.work()
        bench.nack(work, reason="not there yet", retryable=True)
        bench.wait(0.6, alive=(b"w",))
    (work,) = bench.work()
    assert work.absent == []


def test_a_frame_that_no_file_gives_is_lost_after_three_more_tries_when_the_run_is_closed(bench: Bench) -> None:
    bench.open(live=False)
    bench.worker()
    bench.expect(0, 4)
    bench.close(4)
    bench.wait(0.1, alive=(b"w",))
    for _ in range(4):
        (work,) = bench.work()
        assert work.absent == []
        key = work.run, work.stream, work.first, work.n, work.token
        bench.hear(b"w", Nack(*key, -1, "a.h5 has 2 frames", True, [2, 3]))
        bench.wait(2.1, alive=(b"w",))
    (work,) = bench.work()
    assert [(each.frame, each.status, each.reason) for each in work.absent] == [
        (2, LOST, "a.h5 has 2 frames"),
        (3, LOST, "a.h5 has 2 frames"),
    ]


def test_frames_of_a_ring_that_is_gone_come_from_the_file(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3)
    (work,) = bench.work()
    bench.expect(0, 8)
    bench.frames(4)
    key = work.run, work.stream, work.first, work.n, work.token
    bench.hear(b"w", Nack(*key, -1, "ring-1 is gone", True, [0, 1, 2, 3]))
    bench.wait(1, alive=(b"w",))
    (again,) = [each for each in bench.work() if each.first == 0]
    assert (again.ring, [(span.first, span.n) for span in again.files]) == ([], [(0, 4)])
    assert bench.take(Free) == [], "a worker thought dead may still read them"
    bench.done([(0, 4)])
    assert [message.lives for _, message in bench.take(Free)] == [[0, 1, 2, 3]]


def damaged(bench: Bench, work: Work, *frames: int) -> None:
    """Refuse a batch: these frames' bytes in the ring don't decode."""
    key = work.run, work.stream, work.first, work.n, work.token
    found = [Damaged(frame, "chunk of 9 bytes") for frame in frames]
    bench.hear(b"w", Nack(*key, -1, "came damaged", True, list(frames), found))


def test_a_frame_that_came_damaged_is_read_from_its_file(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3)
    (work,) = bench.work()
    bench.expect(0, 8)
    bench.frames(4)
    damaged(bench, work, 2)
    bench.wait(1, alive=(b"w",))
    (again,) = [each for each in bench.work() if each.first == 0]
    assert [block.frame for block in again.ring[0].blocks] == [0, 1, 3]
    assert [(span.first, span.n) for span in again.files] == [(2, 1)]
    assert again.damaged == [Damaged(2, "chunk of 9 bytes")]
    assert again.absent == []
    assert bench.core.counts["frames that came damaged"] == 1


def test_a_frame_that_came_damaged_and_that_no_file_has_is_quarantined_and_not_lost(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3)
    (work,) = bench.work()
    damaged(bench, work, 2)
    bench.expect(0, 2)
    bench.expect(3, 4)
    bench.close(4)
    bench.wait(1, alive=(b"w",))
    (work,) = bench.work()
    (absent,) = work.absent
    assert (absent.frame, absent.status) == (2, QUARANTINED)
    assert absent.reason == ("it came live, and no file was announced that has image; what came live: chunk of 9 bytes")


def test_a_frame_that_came_damaged_and_that_its_file_never_gives_is_quarantined_and_not_lost(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3)
    (work,) = bench.work()
    damaged(bench, work, 2)
    bench.expect(0, 4)
    bench.close(4)
    for _ in range(4):
        bench.wait(2.1, alive=(b"w",))
        (work,) = bench.work()
        assert work.absent == []
        key = work.run, work.stream, work.first, work.n, work.token
        bench.hear(b"w", Nack(*key, -1, "a.h5 has 2 frames", True, [2]))
    (work,) = bench.work()
    assert [(each.frame, each.status, each.reason) for each in work.absent] == [
        (2, QUARANTINED, "a.h5 has 2 frames; what came live: chunk of 9 bytes")
    ]


def test_a_frame_is_quarantined_when_it_alone_has_killed_two_workers(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3)
    (work,) = bench.work()
    assert not work.isolate
    bench.nack(work, reason="worker died, killed by SIGSEGV")
    (work,) = bench.work()
    assert work.isolate
    bench.nack(work, frame=2, reason="worker died, killed by SIGSEGV")
    (work,) = bench.work()
    assert work.absent == []
    bench.nack(work, frame=2, reason="worker died, killed by SIGSEGV")
    (work,) = bench.work()
    assert [(each.frame, each.status) for each in work.absent] == [(2, QUARANTINED)]
    assert [block.frame for block in work.ring[0].blocks] == [0, 1, 3]


def test_workers_that_die_of_something_else_quarantine_nobody(bench: Bench) -> None:
    bench.open()
    bench.frames(0, 1, 2, 3)
    for life in range(20):
        bench.worker(session=life + 1)
        (work,) = bench.work()
        bench.wait(0.5, alive=(b"w",), busy=work.token)
        bench.wait(4)
    bench.worker(session=99)
    (work,) = bench.work()
    assert work.absent == []
    assert work.isolate


def test_a_batch_that_kills_every_worker_before_a_frame_is_named_ends_in_quarantine(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3)
    for _ in range(6):
        (work,) = bench.work()
        assert work.absent == []
        bench.nack(work, reason="worker died, exit code 3")
    (work,) = bench.work()
    assert [each.status for each in work.absent] == [QUARANTINED] * 4


def test_a_batch_whose_files_no_message_can_name_is_quarantined_and_said_so(bench: Bench) -> None:
    keys = [f"k{number}" for number in range(200)]
    bench.open(live=False, inputs=tuple(InputSpec(key, (), "<f8") for key in keys))
    bench.worker()
    folder = "file:///" + "long/" * 60
    for frame in range(8):
        for some in (keys[:100], keys[100:]):  # the second batch lies in one file, the first one in many
            where = [FileSpan(key, f"{folder}{max(4 - frame, 0)}.h5", key, frame, 1, frame) for key in some]
            bench.sink(Expect, "run", "eiger", frame, frame + 1, where)
    bench.close(8)
    bench.wait(0.5, alive=(b"w",))
    first, second = sorted(bench.work(), key=lambda work: work.first)
    assert len(encode(first)) <= MAX_CONTROL
    assert [each.status for each in first.absent] == [QUARANTINED] * 4
    assert "frames 0 to 3 lie in 800 pieces of files, more than a message can name" in first.absent[0].reason
    assert second.absent == []
    assert MAX_CONTROL < len(encode(second)) <= MAX_WORK
    assert decode(encode(second), MAX_WORK) == second


def setup_died(bench: Bench, work: Work, peer: bytes = b"w") -> None:
    key = work.run, work.stream, work.first, work.n, work.token
    bench.hear(peer, Nack(*key, -1, "died while it was set up", False, setup=True))


def test_recipes_that_no_worker_can_set_up_are_not_tried_for_a_while(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3)
    for _ in range(5):
        (work,) = bench.work()
        assert work.absent == []
        assert not work.isolate, "no frame is suspected"
        setup_died(bench, work)
    (work,) = bench.work()
    assert [(each.status, each.reason) for each in work.absent] == [(QUARANTINED, "died while it was set up")] * 4
    assert (work.ring, work.files) == ([], [])
    bench.done([(0, 8)])
    bench.wait(61, alive=(b"w",))
    bench.frames(8, 9, 10, 11)
    (work,) = bench.work()
    assert work.absent == [], "the recipes may be mended"
    setup_died(bench, work)
    (work,) = bench.work()
    assert len(work.absent) == 4, "one more death is enough"


def test_recipes_that_one_worker_cannot_set_up_and_others_can_cost_no_frame(bench: Bench) -> None:
    bench.open()
    bench.worker(b"ill", credit=100)
    bench.worker(b"slow", credit=0)
    bench.frames(0, 1, 2, 3)
    for _ in range(20):
        (work,) = bench.work()
        assert work.absent == []
        setup_died(bench, work, b"ill")


# --- workers ---------------------------------------------------------------------------------------------------------


def test_a_worker_gets_no_more_than_its_credit_however_often_it_says_it(bench: Bench) -> None:
    bench.open()
    bench.frames(*range(40))
    bench.worker(credit=2)
    for limit in (2, 1, 2):
        bench.hear(b"w", Credit(1, limit))
    assert len(bench.work()) == 2
    bench.hear(b"w", Credit(1, 3))
    assert len(bench.work()) == 1


def test_credit_of_a_former_life_of_the_worker_counts_for_nothing(bench: Bench) -> None:
    bench.open()
    bench.frames(*range(40))
    bench.worker(credit=0, session=2)
    bench.hear(b"w", Credit(1, 100))
    assert bench.work() == []


def test_tokens_go_on_from_the_epoch_so_that_no_two_brokers_share_one(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3)
    (work,) = bench.work()
    assert work.token > bench.core.epoch


def test_workers_take_turns(bench: Bench) -> None:
    bench.open()
    bench.worker(b"a")
    bench.worker(b"b")
    bench.frames(*range(16))
    assert [peer for peer, _ in bench.take(Work)] == [b"a", b"b", b"a", b"b"]


def test_a_worker_learns_of_a_stream_before_its_first_work_in_each_session(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3, 4, 5, 6, 7)
    assert [type(message) for peer, message in bench.said if peer == b"w"] == [Welcome, StreamOpen, Work, Work]
    bench.said.clear()
    bench.worker(session=2)
    assert [type(message) for peer, message in bench.said if peer == b"w"] == [Welcome, StreamOpen, Work, Work]


def test_a_stranger_is_told_to_begin_anew(bench: Bench) -> None:
    bench.hear(b"w", Beat(1))
    bench.hear(b"w", Credit(1, 5))
    assert bench.said == [(b"w", Welcome(1, 1000, 0, 0))] * 2
    assert bench.core.counts["unknown session"] == 2


def test_every_dispatch_has_a_token_of_its_own_and_an_old_one_counts_for_nothing(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3)
    (old,) = bench.work()
    bench.worker(session=2)
    (new,) = bench.work()
    assert new.token > old.token
    bench.nack(old, frame=1)
    assert bench.work() == []
    bench.nack(new, retryable=True)
    assert (bench.core.counts["stale NACK"], bench.core.counts["NACK"]) == (1, 1)


def test_a_silent_worker_loses_its_work_to_another(bench: Bench) -> None:
    bench.open()
    bench.worker(b"a", credit=1)
    bench.frames(0, 1, 2, 3)
    bench.take(Work)
    bench.worker(b"b", credit=1)
    bench.wait(2.5, alive=(b"b",))
    assert bench.work() == []
    bench.wait(1, alive=(b"b",))
    assert [(peer, work.first) for peer, work in bench.take(Work)] == [(b"b", 0)]


def test_a_worker_that_beats_without_progress_loses_its_work(bench: Bench) -> None:
    bench.open()
    bench.worker(b"a", credit=1)
    bench.frames(0, 1, 2, 3)
    (work,) = bench.work()
    bench.wait(89, alive=(b"a",), busy=work.token)
    assert b"a" in [peer.peer for peer in bench.core.peers.of("worker")]
    bench.wait(2, alive=(b"a",), busy=work.token)
    assert bench.core.counts["worker lost: no progress"] == 1


def test_a_worker_that_waits_for_the_sink_is_not_hung(bench: Bench) -> None:
    bench.open()
    bench.worker(credit=1)
    bench.frames(0, 1, 2, 3)
    bench.wait(200, alive=(b"w",), busy=-1)
    assert bench.core.peers.leases == 1


def test_an_unreachable_worker_loses_its_work_at_once(bench: Bench) -> None:
    bench.open()
    bench.worker(b"a", credit=1)
    bench.frames(0, 1, 2, 3)
    ((_, work),) = bench.take(Work)
    bench.worker(b"b", credit=1)
    bench.core.unreachable(b"a", work, bench.now)
    bench.wait(0.05)
    assert [(peer, again.first) for peer, again in bench.take(Work)] == [(b"b", 0)]


def test_an_ingest_of_which_frames_come_lives(bench: Bench) -> None:
    bench.ingest()
    bench.open()
    for number in range(8):
        bench.frames(number)
        bench.wait(2)
    assert bench.core.peers.get(b"ingest") is not None
    bench.wait(4)
    assert bench.core.peers.get(b"ingest") is None


def test_a_welcome_says_how_long_a_lease_is_and_how_often_the_broker_speaks() -> None:
    core = BrokerCore(1000, Times(beat=2.0, lease=8.0))
    assert core.receive(b"w", Hello(1, "worker", "w", 1), 100.0) == [(b"w", Welcome(1, 1000, 8000, 2000))]


def test_workers_hear_of_the_broker_so_often_that_they_know_that_it_lives(bench: Bench) -> None:
    bench.worker()
    bench.take(Welcome)
    heard = []
    for now in (100.0, 100.25, 100.5, 100.75, 101.0):
        said = bench.core.tick(now)
        heard += [now for peer, message in said if peer == b"w" and message == Welcome(1, 1000, 90_000, 500)]
    assert heard == [100.0, 100.5, 101.0]


def test_what_comes_back_goes_before_what_waits(bench: Bench) -> None:
    bench.open()
    bench.worker(credit=1)
    bench.frames(*range(8))
    assert [work.first for work in bench.work()] == [0]
    bench.worker(session=2, credit=1)
    assert [work.first for work in bench.work()] == [0]


def test_what_comes_back_and_lies_beyond_the_total_is_given_back(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3)
    bench.sink(RunClose, "run", [StreamTotal("eiger", 0)], "success", b"{}")
    assert bench.take(Free) == []
    bench.hear(b"w", Bye(1))
    assert [sorted(message.lives) for _, message in bench.take(Free)] == [[0, 1, 2, 3]]


def test_work_that_was_lost_on_the_way_is_sent_again(bench: Bench) -> None:
    bench.open()
    bench.worker(credit=1)
    bench.frames(0, 1, 2, 3)
    bench.take(Work)
    for _ in range(80):
        bench.now += 0.05
        bench.core.receive(b"w", Beat(1, -1, got=0), bench.now)
        bench.said += bench.core.tick(bench.now)
    assert (b"w", Welcome(1, 1000, 0, 0)) in bench.said
    bench.worker(session=2, credit=1)
    assert [work.first for work in bench.work()] == [0]


def test_a_nack_that_was_lost_is_seen_by_the_beats(bench: Bench) -> None:
    bench.open()
    bench.worker(credit=2)
    bench.frames(0, 1, 2, 3)
    bench.take(Work)
    for _ in range(30):
        bench.now += 0.05
        bench.core.receive(b"w", Beat(1, -1, got=1, held=[]), bench.now)
        bench.said += bench.core.tick(bench.now)
    assert [(work.first, work.isolate) for work in bench.work()] == [(0, False)]
    assert bench.core.counts["NACK lost on the way"] == 1


def test_a_worker_that_leaves_gives_its_work_back(bench: Bench) -> None:
    bench.open()
    bench.worker(b"a", credit=1)
    bench.frames(0, 1, 2, 3)
    bench.take(Work)
    bench.worker(b"b", credit=1)
    bench.hear(b"a", Bye(1))
    assert [(peer, work.isolate) for peer, work in bench.take(Work)] == [(b"b", False)]


# --- the sink and the ingest -----------------------------------------------------------------------------------------


def test_the_ingest_is_told_what_to_pull_whoever_came_first(bench: Bench) -> None:
    bench.ingest()
    bench.open()
    connect = (b"ingest", Connect(LANE.endpoint, LANE.protocol))
    assert bench.take(Connect) == [connect]
    bench.hear(b"other", Hello(1, "ingest", "other", 1))
    assert bench.take(Connect) == [(b"other", connect[1])]


def test_the_ingest_is_told_how_to_treat_a_series_until_it_says_that_it_does(bench: Bench) -> None:
    bench.ingest()
    bench.sink(RunOpen, "run", "processed", b'{"shape": [40, 60]}')
    recipes = [RecipeSpec("xrd", "azimuthal", b"{}")]
    bench.sink(StreamOpen, "run", "eiger", "cfg", BATCH, [IMAGE], recipes, LANE, "spill")
    claim = Claim(LANE.endpoint, LANE.series, "run", "eiger", LANE.key, BATCH, "spill", 60)
    assert bench.take(Claim) == [(b"ingest", claim)]
    bench.hear(b"ingest", Gauge(1, []))
    assert bench.take(Claim) == [(b"ingest", claim)]
    bench.hear(b"ingest", Gauge(1, [SeriesGauge(LANE.endpoint, LANE.series, 0.25, 1500)]))
    assert bench.take(Claim) == []
    stream = bench.core.snapshot()["runs"]["run"]["streams"]["eiger"]
    assert (stream["policy"], stream["kept"], stream["blocked_s"]) == ("spill", 0.25, 1.5)
    bench.hear(b"other", Hello(1, "ingest", "other", 1))
    assert bench.take(Claim) == [(b"other", claim)]


def test_a_gauge_of_a_session_that_is_not_known_makes_the_ingest_begin_anew(bench: Bench) -> None:
    bench.hear(b"ingest", Gauge(7, []))
    assert bench.take(Welcome) == [(b"ingest", Welcome(1, 1000, 0, 0))]


def test_with_freed_blocks_goes_word_of_the_batches_that_wait(bench: Bench) -> None:
    bench.ingest()
    bench.open()
    bench.worker(credit=1)
    bench.frames(*range(12))
    bench.done([(0, 4)])
    (freed,) = bench.take(Free)
    assert freed[1].queued == 2


def test_the_sink_is_asked_at_the_start_and_when_it_is_silent(bench: Bench) -> None:
    bench.wait(0.05)
    assert [peer for peer, _ in bench.take(Hello)] == [SINK]
    bench.wait(2)
    assert bench.take(Hello) == []
    bench.wait(1)
    assert [peer for peer, _ in bench.take(Hello)] == [SINK]


def asked(core: BrokerCore, *times: float) -> list[float]:
    """Return at which of these times the sink is asked to tell everything."""
    return [now for now in times if any(isinstance(message, Hello) for _, message in core.tick(now))]


def test_the_sink_is_asked_when_something_is_lacking_when_it_was_silent_and_after_half_a_minute() -> None:
    times = Times(beat=1.25)
    core = BrokerCore(1000, times)
    assert asked(core, 100.0) == [100.0]
    core.receive(SINK, Welcome(1, 7, 5000, 500), 100.0)
    assert asked(core, 102.0, 100.0 + times.silent) == [100.0 + times.silent]
    core.receive(SINK, Welcome(1, 7, 5000, 500), 102.5)
    core.sink_connected()
    assert asked(core, 102.71875, 102.75, 103.0) == [102.75]
    for now in range(103, 133):
        core.receive(SINK, Welcome(1, 7, 5000, 500), float(now))
        assert asked(core, float(now)) == []
    assert asked(core, 102.75 + times.sync) == [102.75 + times.sync]


def test_a_sink_that_is_connected_anew_is_told_who_is_here(bench: Bench) -> None:
    bench.wait(0.2)
    bench.take(Hello)
    bench.wait(0.5)
    assert bench.take(Hello) == []
    bench.core.sink_connected()
    bench.wait(0.2)
    assert bench.take(Hello) == [(SINK, Hello(1, "broker", "broker", 1000))]


def test_a_sink_that_speaks_is_not_asked_to_tell_everything_all_the_time(bench: Bench) -> None:
    bench.open()
    bench.wait(0.2)
    bench.take(Hello)
    for _ in range(10):
        bench.wait(2)
        bench.done([], full=True)
    assert bench.take(Hello) == []


def test_only_the_sink_says_what_is_done(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3)
    bench.hear(b"w", Done("run", "eiger", "cfg", [(0, 4)]))
    assert bench.take(Free) == []
    assert bench.core.counts["refused Done"] == 1


def test_a_promise_that_comes_before_its_stream_is_asked_for_again(bench: Bench) -> None:
    bench.sink(RunOpen, "run", "processed", b"{}")
    bench.expect(0, 4)
    bench.take(Hello)
    recipes = [RecipeSpec("xrd", "azimuthal", b"{}")]
    bench.sink(StreamOpen, "run", "eiger", "cfg", BATCH, [IMAGE], recipes, None)
    bench.close(4)
    bench.worker()
    bench.wait(0.2, alive=(b"w",))
    assert bench.work() == [], "called lost, though its promise is only to be told again"
    assert bench.take(Hello)


def test_what_was_said_before_the_close_and_comes_late_confirms_nothing(bench: Bench) -> None:
    bench.open(live=False)
    bench.serial += 1  # an EXPECT that is on disk and never came
    late = Done("run", "eiger", "cfg", [], True, bench.serial)
    bench.sink(RunClose, "run", [StreamTotal("eiger", 4)], "success", b"{}")
    bench.hear(SINK, late)
    bench.worker()
    bench.wait(1.0, alive=(b"w",))
    assert bench.work() == []


def test_control_messages_may_come_twice(bench: Bench) -> None:
    for _ in range(2):
        bench.open(live=False)
        bench.expect(0, 8)
        bench.close(8)
    bench.worker()
    bench.wait(0.1)
    assert [(work.first, len(work.files)) for work in bench.work()] == [(0, 1), (4, 1)]


def test_a_complete_run_is_forgotten_after_a_while(bench: Bench) -> None:
    bench.open(live=False)
    bench.expect(0, 4)
    bench.close(4)
    bench.done([(0, 4)])
    bench.wait(29)
    assert len(bench.core.runs) == 1
    bench.wait(2)
    assert len(bench.core.runs) == 0


def test_a_run_that_the_sink_no_longer_speaks_of_is_complete(bench: Bench) -> None:
    bench.open()
    bench.frames(0, 1, 2, 3)
    for _ in range(3):
        bench.hear(SINK, Welcome(1, 1, 5000, 500))
    assert len(bench.core.runs) == 0
    assert bench.core.counts["runs that the sink closed unheard"] == 1
    assert [message.lives for _, message in bench.take(Free)] == [[0, 1, 2, 3]]


def test_the_oldest_idle_run_makes_room(bench: Bench) -> None:
    bench.open()
    bench.frames(0)
    for number in range(70):
        bench.sink(RunOpen, f"run-{number}", "p", b"{}")
    assert len(bench.core.runs) == 64
    assert "run" in dict(bench.core.runs), "it was not idle"
    assert bench.core.counts["runs let go"] == 7


def test_of_a_run_that_is_let_go_nothing_is_kept_and_of_others_everything(bench: Bench) -> None:
    bench.ingest()
    bench.open()
    bench.sink(RunOpen, "other", "its", b"{}")
    lane = msgspec.structs.replace(LANE, series=13)
    recipes = [RecipeSpec("xrd", "azimuthal", b"{}")]
    bench.sink(StreamOpen, "other", "eiger", "cfg", BATCH, [IMAGE], recipes, lane, "drop")
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(8, 9)], "ring-full"))
    bench.worker(credit=1)
    bench.frames(*range(8))
    bench.wait(0.05)
    core, worker = bench.core, bench.core.peers.get(b"w")
    assert worker is not None
    assert (len(core._queue), len(core._told_drops), len(core._series), len(worker.leases)) == (1, 1, 2, 1)
    bench.sink(RunOpen, "run", "by other recipes", b"{}")
    assert (len(core._queue), core._told_drops, len(worker.leases)) == (0, {}, 0)
    assert [key.run for key in core._series.values()] == ["other"]
    (freed,) = bench.take(Free)
    assert sorted(freed[1].lives) == list(range(8))


def test_the_status_names_no_more_ingests_than_fit(bench: Bench) -> None:
    for number in range(20):
        bench.hear(b"%d" % number, Hello(1, "ingest", f"ingest-{number}", 1))
    assert len(bench.core.snapshot()["ingests"]) == 16


def test_status_says_how_things_stand_and_fits_into_its_message(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3, 4)
    bench.hear(b"?", Status(7))
    ((peer, reply),) = bench.take(StatusReply)
    encode(reply)
    body = msgspec.json.decode(reply.body)
    stream = body["runs"]["run"]["streams"]["eiger"]
    assert (peer, reply.serial) == (b"?", 7)
    assert (stream["held"], stream["leased"], body["ring_bytes"]) == (5, 1, 60)
    assert body["workers"]["w"]["leases"] == 1


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_who_is_neither_worker_nor_ingest_is_refused_and_counted(bench: Bench) -> None:
    bench.hear(b"x", Hello(1, "recorder", "x", 1))
    assert bench.said == []
    assert len(bench.core.peers) == 0
    assert bench.core.counts["refused a role"] == 1


def test_peers_beyond_the_bound_are_refused_and_those_that_are_known_are_not(bench: Bench) -> None:
    for number in range(MAX_PEERS + 2):
        bench.hear(b"%d" % number, Hello(1, "worker", f"w{number}", 1))
    assert len(bench.core.peers) == MAX_PEERS
    assert bench.core.counts["refused a peer: too many"] == 2
    bench.said.clear()
    bench.hear(b"0", Hello(1, "worker", "w0", 2))
    assert [peer for peer, _ in bench.take(Welcome)] == [b"0"]


def test_a_detector_may_be_pulled_from_before_any_run_names_it(bench: Bench) -> None:
    bench.ingest()
    connect = Connect("tcp://eiger", "simplon-1")
    bench.hear(b"session", connect)
    assert bench.take(Connect) == [(b"ingest", connect)]
    bench.hear(b"later", Hello(1, "ingest", "later", 1))
    assert bench.take(Connect) == [(b"later", connect)]


def test_detectors_beyond_the_bound_are_not_pulled_from(bench: Bench) -> None:
    bench.ingest()
    for number in range(MAX_ENDPOINTS + 2):
        bench.hear(b"session", Connect(f"tcp://{number}", "simplon-1"))
    assert len(bench.take(Connect)) == MAX_ENDPOINTS
    assert bench.core.counts["endpoints beyond the bound"] == 2
    bench.hear(b"session", Connect("tcp://0", "simplon-2"))
    assert bench.take(Connect) == [(b"ingest", Connect("tcp://0", "simplon-2"))]
    bench.hear(b"later", Hello(1, "ingest", "later", 1))
    assert (b"later", Connect("tcp://0", "simplon-2")) in bench.take(Connect)


def test_a_batch_that_was_done_while_it_waited_goes_to_nobody_and_costs_no_turn(bench: Bench) -> None:
    bench.open()
    bench.frames(0, 1, 2, 3)
    bench.done([(0, 4)])
    spent = dict(bench.core._queue._turns._spent)
    bench.worker()
    assert bench.work() == []
    assert len(bench.core._queue) == 0
    assert bench.core._queue._turns._spent[False] == pytest.approx(spent[False])
    bench.frames(4, 5, 6, 7)
    assert [work.first for work in bench.work()] == [4]


def test_blocks_go_back_to_no_ring_whose_ingest_is_gone_and_are_counted(bench: Bench) -> None:
    bench.ingest()
    bench.open()
    bench.frames(0, 1, 2, 3)
    bench.core.unreachable(b"ingest", Free("ring-1", [], []), bench.now)
    assert bench.core.counts["unreachable"] == 1
    assert bench.core.counts["ingest lost: unreachable"] == 1
    bench.done([(0, 4)])
    assert bench.take(Free) == []
    assert bench.core._rings.orphans == 4


def test_more_rings_than_the_bound_push_out_the_one_that_was_silent_longest() -> None:
    rings = Rings()
    for number in range(MAX_RINGS):
        rings.met(f"r{number}", b"i")
        rings.free([Held(f"r{number}", Block(0, 0, 1, "none", 7))])
    assert len(list(rings.take(0))) == MAX_RINGS
    rings.met("r0", b"i")
    rings.free([Held("r0", Block(0, 0, 1, "none", 8))])
    rings.met("new", b"i")
    rings.free([Held("new", Block(0, 0, 1, "none", 7))])
    list(rings.take(0))
    late = [Block(0, 0, 1, "none", 7)]
    assert rings.living("r0", late) == []
    assert rings.living("new", late) == []
    assert rings.living("r1", late) == late, "its past was pushed out"
    rings.free([Held("r1", late[0])])
    rings.free([Held("r2", late[0])])
    assert [free.ring for _, free in rings.take(0)] == ["r0", "new", "r2"]
    assert rings.orphans == 1


def test_a_sink_that_knows_nothing_of_this_broker_is_told_hello_again(bench: Bench) -> None:
    bench.open()
    bench.wait(0.3)
    bench.take(Hello)
    bench.hear(SINK, Welcome(1, 8, 0, 0))
    bench.wait(0.2)
    assert [peer for peer, _ in bench.take(Hello)] == [SINK]


def test_a_stream_that_is_told_after_the_close_of_its_run_has_its_total(bench: Bench) -> None:
    bench.sink(RunOpen, "run", "processed", b"{}")
    bench.close(2)
    bench.open(live=False)
    bench.expect(0, 2)
    bench.worker()
    bench.wait(0.1)
    assert [(work.first, work.n) for work in bench.work()] == [(0, 2)]
    recipes = [RecipeSpec("xrd", "azimuthal", b"{}")]
    bench.sink(StreamOpen, "run", "other", "cfg", BATCH, [IMAGE], recipes, None)  # of which the close said nothing
    assert [stream.total for stream in bench.core.runs.streams] == [2, 0]


@pytest.mark.parametrize("plan", [b'{"shape": "wide"}', b"no json", b"\xff"])
def test_a_plan_that_cannot_be_read_has_no_rows(plan: bytes) -> None:
    assert planned_row(plan) == 0


@pytest.mark.parametrize(
    ("shape", "row"),
    [
        ([], 0), ([9], 0), ([3, 0], 0), ([3, -2], 0), ([3, 2**40], 0),
        ([3, 1], 1), ([0, 5], 5), ([2, 0, 5], 5), ([3, 2**40 - 1], 2**40 - 1),
    ],
)  # fmt: skip
def test_the_row_of_a_plan_is_its_last_axis_if_it_has_more_than_one(shape: list[int], row: int) -> None:
    assert planned_row(msgspec.json.encode({"shape": shape})) == row


def test_the_status_says_what_workers_and_ingests_do(bench: Bench) -> None:
    for name in ("ingest", "other"):
        bench.hear(name.encode(), Hello(1, "ingest", name, 1))
    bench.open()
    bench.worker(credit=5)
    bench.frames(*range(8))
    (first, _) = bench.work()
    beat = Beat(1, first.token, 2, 40, 9000, [first.token])
    bench.hear(b"w", beat)
    ours, others = SeriesGauge(LANE.endpoint, 12, 0.5, 1500), SeriesGauge(LANE.endpoint, 13, 0.1, 99)
    bench.hear(b"ingest", Gauge(1, [ours, others]))
    bench.hear(b"other", Gauge(1, [SeriesGauge(LANE.endpoint, 12, 0.12345, 250), SeriesGauge("tcp://else", 12, 0.1)]))
    said = bench.core.snapshot()
    assert said["workers"] == {"w": {"busy": True, "leases": 2, "credit": 3, "frames": 40, "reduce_us": 9000}}
    assert said["ingests"] == ["ingest", "other"]
    run = said["runs"]["run"]
    assert (run["closed"], run["complete"]) == (False, False)
    assert (run["streams"]["eiger"]["kept"], run["streams"]["eiger"]["blocked_s"]) == (0.123, 1.75)
    bench.close(8)
    bench.done([(0, 8)])
    bench.hear(b"w", Beat(1, -1, 2, 40, 9000, []))
    said = bench.core.snapshot()
    assert (said["runs"]["run"]["closed"], said["runs"]["run"]["complete"]) == (True, True)
    assert (said["workers"]["w"]["busy"], said["workers"]["w"]["leases"]) == (False, 0)
    bench.hear(b"w", Beat(1, 0, 2, 40, 9000, []))
    assert bench.core.snapshot()["workers"]["w"]["busy"] is True


def test_a_stream_of_which_no_ingest_says_anything_has_no_gauge(bench: Bench) -> None:
    bench.ingest()
    bench.open()
    bench.hear(b"ingest", Gauge(1, []))
    assert "kept" not in bench.core.snapshot()["runs"]["run"]["streams"]["eiger"]
