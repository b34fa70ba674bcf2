"""Blocks of an ingest's ring: held while they are needed, then given back, each once."""

from __future__ import annotations

from haltere.workers.broker.batch import Held
from haltere.workers.broker.rings import MAX_RINGS, Rings
from haltere.workers.wire.messages import Block, Frames, Free, RunClose, StreamTotal

from .bench import LANE, Bench


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
