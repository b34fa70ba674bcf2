"""One stream of the broker's: which of its batches can go, and when."""

from __future__ import annotations

import msgspec
import pytest

from haltere.workers.broker.batch import DEATHS, State
from haltere.workers.broker.stream import Stream
from haltere.workers.frame_life import FrameEvent
from haltere.workers.wire.messages import (
    Block,
    Claim,
    Expect,
    FileSpan,
    InputSpec,
    LiveLane,
    RecipeSpec,
    StreamOpen,
    encode,
)

SIZE = 4


def filed(frames: int) -> Stream:
    """Return a stream whose frames lie in a file."""
    recipes = [RecipeSpec("r", "x", b"{}")]
    opened = StreamOpen(1, "run", "eiger", "cfg", SIZE, [InputSpec("image", (1,), "<u2")], recipes, None)
    stream = Stream(opened, 0.0, late=0.5, quiet=5.0, row=0)
    stream.finish([], full=True)
    span = FileSpan("image", "file:///d", "x", 0, frames, 0)
    stream.expect(Expect(2, "run", "eiger", 0, frames, [span]), 0.0)
    stream.close(frames, 0.0)
    return stream


def test_a_scan_looks_at_so_many_batches_and_the_next_goes_on_from_there_and_begins_anew_at_the_end() -> None:
    stream = filed(15 * SIZE)
    scans = [list(stream.scan(1.0, 100, steps=10)) for _ in range(4)]
    assert scans == [list(range(10)), list(range(10, 15)), list(range(10)), list(range(10, 15))]


def test_a_scan_finds_no_more_than_there_is_room_for() -> None:
    stream = filed(15 * SIZE)
    assert list(stream.scan(1.0, 3)) == [0, 1, 2]
    assert list(stream.scan(1.0, 0)) == []
    assert list(stream.scan(1.0, 2)) == [3, 4]


def test_what_is_done_is_passed_over() -> None:
    stream = filed(6 * SIZE)
    stream.finish([(SIZE, 3 * SIZE), (17, 18)], full=False)
    found = []
    for number in stream.scan(1.0, 100):
        stream.queue(number)
        found.append(number)
    assert found == [0, 3, 4, 5]


def test_a_range_beyond_all_frames_gives_back_what_is_held_at_the_cost_of_what_is_held() -> None:
    stream = filed(3 * SIZE)
    stream.arrive("ring", Block(5, 0, 1, "none", 1), 0.0)
    assert stream.finish([(0, 2**39)], full=False) == [1]
    assert [held.block.frame for held in stream.freed] == [5]


def test_a_batch_that_waits_goes_when_its_time_has_come() -> None:
    stream = filed(SIZE)
    stream.arrive("ring", Block(1, 0, 1, "none", 1), 0.0)
    stream.batches[0].not_before = 3.0
    assert [stream.ready(0, now) for now in (2.9, 3.0, 3.1)] == [False, True, True]


def test_no_batch_is_tried_while_its_recipes_cannot_be_set_up() -> None:
    stream = filed(2 * SIZE)
    for _ in range(5):
        stream.cannot_set_up(b"w", [b"w"], "died", 10.0)
    until = stream._untried[1]
    for number, now, absent in ((0, until - 0.1, SIZE), (1, until, 0)):
        stream.queue(number)
        work = stream.work(number, number, now)
        assert work is not None
        assert len(work.absent) == absent
    assert stream.work(1, 9, until) is None, "it is out"


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_bounds_of_batches_end_at_the_total(number: int) -> None:
    assert filed(6).bounds(number) == [(0, 4), (4, 6), (8, 8)][number]


def arrive(stream: Stream, *frames: int) -> None:
    for frame in frames:
        stream.arrive("ring", Block(frame, 64 * frame, 3, "none", frame), 0.0)


def freed(stream: Stream) -> list[int]:
    frames = [held.block.frame for held in stream.freed]
    stream.freed.clear()
    return frames


def flying() -> Stream:
    """Return a stream whose frames come live, of which nothing is promised yet."""
    recipes = [RecipeSpec("r", "x", b"{}")]
    live = LiveLane("tcp://eiger", "simplon-1", 12, "image")
    opened = StreamOpen(1, "run", "eiger", "cfg", SIZE, [InputSpec("image", (1,), "<u2")], recipes, live)
    stream = Stream(opened, 0.0, late=0.5, quiet=5.0, row=0)
    stream.finish([], full=True)
    return stream


def test_a_batch_that_is_out_when_the_total_is_told_is_cut_when_it_comes_back() -> None:
    stream = flying()
    arrive(stream, *range(12))
    for number in (1, 2):
        stream.queue(number)
        assert stream.work(number, number, 0.0) is not None
    stream.close(6, 0.0)
    assert freed(stream) == []
    stream.give_back(1)
    stream.give_back(2)
    assert freed(stream) == [8, 9, 10, 11]
    assert sorted(stream.batches) == [0, 1]
    stream.queue(1)
    work = stream.work(1, 3, 0.0)
    assert work is not None
    assert ([block.frame for block in work.ring[0].blocks], work.n) == ([4, 5], 2)
    assert stream.surplus == 6
    stream.finish([(4, 6)], full=False)
    assert sorted(freed(stream)) == [4, 5, 6, 7], "whoever had it for work may have read them until now"


def test_a_batch_that_ends_where_the_total_begins_is_let_go() -> None:
    stream = flying()
    arrive(stream, *range(8))
    stream.close(4, 0.0)
    assert (freed(stream), sorted(stream.batches)) == ([4, 5, 6, 7], [0])


def test_what_is_absent_beyond_the_total_is_not_told() -> None:
    stream = flying()
    for _ in range(5):
        stream.cannot_set_up(b"w", [b"w"], "died", 0.0)
    arrive(stream, *range(4))
    stream.queue(0)
    assert stream.work(0, 1, 0.0) is not None
    stream.close(2, 0.0)
    stream.give_back(0)
    stream.queue(0)
    work = stream.work(0, 2, 0.0)
    assert work is not None
    assert [each.frame for each in work.absent] == [0, 1]


def test_only_what_is_out_can_be_given_back() -> None:
    stream = filed(2 * SIZE)
    arrive(stream, 0)
    stream.give_back(0)
    stream.give_back(1)
    assert list(stream.batches) == [0]


def test_a_stream_is_complete_when_all_from_the_first_frame_to_the_last_is_done() -> None:
    stream = filed(6)
    for range_, complete in (((1, 6), False), ((0, 1), True)):
        stream.finish([range_], full=False)
        assert stream.complete is complete


def test_the_summary_counts_each_frame_once() -> None:
    stream = filed(10)
    stream.finish([(0, 4), (6, 7)], full=False)
    arrive(stream, 5, 0, 11)
    assert freed(stream) == [0, 11]
    stream.queue(2)
    known = {name: stream.summary()[name] for name in ("total", "expected", "done", "held", "held_bytes", "owed")}
    assert known == {"total": 10, "expected": 10, "done": 5, "held": 1, "held_bytes": 3, "owed": 4}
    assert [stream.summary()[name] for name in ("queued", "leased", "duplicates", "surplus")] == [1, 0, 1, 1]
    assert stream.work(2, 1, 0.0) is not None
    assert [stream.summary()[name] for name in ("queued", "leased", "complete", "live")] == [0, 1, False, False]
    stream.finish([(4, 10)], full=False)
    assert [stream.summary()[name] for name in ("done", "held", "owed", "complete")] == [10, 0, 0, True]


def test_while_the_total_is_unknown_what_is_owed_is_counted_to_the_newest_that_is_known() -> None:
    stream = flying()
    arrive(stream, 4, 5)
    assert (stream.summary()["owed"], stream.summary()["total"]) == (4, None)
    stream.expect(Expect(2, "run", "eiger", 0, 9, []), 0.0)
    assert stream.summary()["owed"] == 7
    stream.finish([(5, 6)], full=False)  # it is held and done: counted once
    assert stream.summary()["owed"] == 7


def test_deaths_at_setting_up_are_forgotten_when_a_batch_is_reduced_and_not_when_it_is_only_told_of() -> None:
    for absent, untried in (((), False), (range(SIZE), True)):
        stream = flying()
        arrive(stream, *range(2 * SIZE))
        batch = stream.batches[0]
        for _ in range(DEATHS - 1):
            stream.cannot_set_up(b"w", [b"w"], "died", 0.0)
        batch.condemn(absent, FrameEvent.UNTRIED, "why")
        stream.finish([(0, SIZE)], full=False)
        assert batch.state is State.GONE
        stream.cannot_set_up(b"w", [b"w"], "died", 0.0)
        assert (stream._untried[0] == "died") is untried


def test_a_stream_that_is_forgotten_gives_back_its_blocks() -> None:
    stream = flying()
    arrive(stream, 0, 5)
    batches = list(stream.batches.values())
    for _ in range(DEATHS - 1):
        stream.cannot_set_up(b"w", [b"w"], "died", 0.0)
    stream.release()
    assert (sorted(freed(stream)), stream.batches) == ([0, 5], {})
    assert {batch.state for batch in batches} == {State.GONE}
    assert stream._setup_deaths.total() == DEATHS - 1


def test_a_frame_that_no_file_has_and_no_lane_could_bring_is_missing_for_that_reason() -> None:
    stream = filed(2)
    stream.total = None
    stream.expect(Expect(3, "run", "eiger", 2, 3, []), 0.0)
    stream.close(3, 0.0)
    assert not stream.ready(0, 9.0), "nobody has said yet that every promise was heard"
    stream.confirmed = True
    assert stream.ready(0, 9.0)
    assert {frame: each.reason for frame, each in stream.batches[0].absent.items()} == {
        2: "it has no live lane, and no file was announced that has image"
    }


def test_frames_from_the_total_on_are_surplus() -> None:
    stream = filed(6)
    arrive(stream, 5, 6)
    assert (freed(stream), stream.surplus) == ([6], 1)


def test_a_frame_that_comes_says_of_its_batch_only_that_it_is_whole_and_waits_for_nothing_else() -> None:
    stream = filed(2 * SIZE)
    numbers = [stream.arrive("ring", Block(frame, frame, 1, "none", frame), 9.0) for frame in range(4)]
    assert numbers == [None, None, None, 0]
    stream.queue(1)
    numbers = [stream.arrive("ring", Block(frame, frame, 1, "none", frame), 9.0) for frame in range(4, 8)]
    assert numbers == [None] * 4, "it goes already"


def test_that_every_promise_was_heard_has_to_be_said_again_after_the_close() -> None:
    stream = flying()
    stream.confirmed = True
    stream.close(4, 0.0)
    assert not stream.confirmed


@pytest.mark.parametrize(("files", "size", "whole"), [(0, 0, True), (-1, 0, False), (0, -1, False)])
def test_work_that_just_fits_into_a_message_goes(
    files: int, size: int, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = filed(2 * SIZE)
    stream.queue(0)
    first = stream.work(0, 1, 0.0)
    assert first is not None
    monkeypatch.setattr("haltere.workers.broker.stream.SHORT_WORK", 0)
    monkeypatch.setattr("haltere.workers.broker.stream.MAX_FILES", len(first.files) + files)
    monkeypatch.setattr("haltere.workers.broker.stream.MAX_WORK", len(encode(first)) + size)
    stream.give_back(0)
    stream.queue(0)
    work = stream.work(0, 1, 0.0)
    assert work is not None
    assert (work.absent == []) is whole


def test_what_was_dropped_and_is_done_is_no_reason_any_more() -> None:
    stream = flying()
    stream.let_go("i", [(0, 2)], "full", 0.0)
    stream.finish([(0, 1)], full=False)
    assert [stream.lane.why(frame) for frame in (0, 1)] == [None, "full"]


def test_a_frame_of_a_run_that_is_over_comes_live_no_more() -> None:
    stream = flying()
    stream.opened = msgspec.structs.replace(stream.opened, total=1)
    stream.lane.end()
    stream.expect(Expect(3, "run", "eiger", 0, 1, []), 0.0)
    stream.close(1, 0.0)
    stream.confirmed = True
    assert stream.ready(0, 9.0)
    assert stream.batches[0].absent[0].reason.startswith("it comes live no more, and no file")


def test_only_what_comes_live_is_claimed() -> None:
    recipes = [RecipeSpec("r", "x", b"{}")]
    opened = StreamOpen(1, "run", "eiger", "cfg", SIZE, [InputSpec("image", (1,), "<u2")], recipes, None)
    live = LiveLane("tcp://eiger", "simplon-1", 12, "image")
    flies = Stream(msgspec.structs.replace(opened, live=live), 0.0, row=5).claim
    assert flies == Claim("tcp://eiger", 12, "run", "eiger", "image", SIZE, "drop", 5)
    assert Stream(opened, 0.0).claim is None
    assert Stream(msgspec.structs.replace(opened, total=8), 0.0).claim is None
    assert Stream(msgspec.structs.replace(opened, live=live, total=8), 0.0).claim is None
