"""One batch: what it holds, what it lacks, and what becomes of its frames."""

from __future__ import annotations

from collections import Counter

import pytest

from haltere.workers.broker.batch import DEATHS, LATE_FILE, RETRIES, STRIKES, Batch, Event, Held
from haltere.workers.frame_life import FRAME, Frame, FrameEvent
from haltere.workers.wire.messages import LOST, QUARANTINED, Block, Damaged, Nack

FRAMES = range(4)


def held(frame: int, life: int | None = None, ring: str = "ring") -> Held:
    return Held(ring, Block(frame, 0, 5, "none", frame if life is None else life))


def filled(*frames: int) -> Batch:
    batch = Batch()
    for frame in frames:
        assert batch.take(frame, held(frame))
    return batch


def out(*frames: int) -> Batch:
    """Return a batch that is with a worker; what it doesn't hold its files are to give."""
    batch = filled(*frames)
    batch.move(Event.READY)
    batch.move(Event.SENT)
    batch.owe(frame for frame in FRAMES if frame not in batch.held)
    return batch


def nack(frame: int = -1, *, missing: list[int] | None = None, damaged: list[Damaged] | None = None) -> Nack:
    return Nack("run", "eiger", 0, 4, 1, frame, "why", True, missing or [], damaged or [])


def absent(batch: Batch) -> dict[int, int]:
    return {frame: each.status for frame, each in batch.absent.items()}


def test_a_block_is_held_by_its_frame_life_and_ring_though_it_isn_t_read_any_more() -> None:
    batch = out(0, 1)
    batch.move(Event.BACK)
    batch.unreadable(nack(missing=[1]), FRAMES, 0.0, final=False)
    assert [batch.holds(frame, held(frame)) for frame in (0, 1, 2)] == [True, True, False]
    assert not batch.holds(0, held(0, life=9))
    assert not batch.holds(0, held(0, ring="other"))
    assert not batch.holds(0, held(1)), "another frame's"
    assert not batch.holds(1, held(1, ring="other"))
    assert batch.bytes == 5
    assert [each.block.frame for each in batch.blocks] == [0, 1]


def test_a_frame_is_taken_once_and_not_while_its_batch_is_out() -> None:
    batch = filled(0)
    assert not batch.take(0, held(0, life=7))
    assert batch.held[0].block.life == 0
    batch = out(0)
    assert not batch.take(1, held(1))
    batch.move(Event.BACK)
    assert batch.take(1, held(1)), "its file was to give it, now it is there"
    assert batch.owed == {2, 3}


def test_a_frame_that_comes_after_it_was_called_lost_is_of_use() -> None:
    batch = filled(0)
    batch.lose(1, "nowhere")
    assert absent(batch) == {1: LOST}
    assert batch.take(1, held(1))
    assert batch.absent == {}


def test_a_frame_is_quarantined_when_it_was_named_twice_alone() -> None:
    batch = out(*FRAMES)
    batch.move(Event.BACK)
    assert not batch.isolate
    for strike in range(STRIKES):
        assert absent(batch) == {}, strike
        batch.strike(nack(2), FRAMES)
        assert batch.isolate
    assert absent(batch) == {2: QUARANTINED}
    assert sorted(batch.held) == [0, 1, 3]
    assert (batch.deaths, len(batch.blocks)) == (0, 4)


@pytest.mark.parametrize("frame", [-1, 4])
def test_a_batch_is_quarantined_when_it_killed_too_often_one_by_one_and_no_frame_was_named(frame: int) -> None:
    batch = out(*FRAMES)
    batch.move(Event.BACK)
    batch.strike(nack(frame), FRAMES)
    assert batch.deaths == 0, "it was not alone"
    for death in range(DEATHS):
        assert absent(batch) == {}, death
        batch.strike(nack(frame), FRAMES)
    assert absent(batch) == dict.fromkeys(FRAMES, QUARANTINED)


def test_files_that_are_late_are_tried_again_and_when_nothing_more_comes_a_few_times_only() -> None:
    batch = out(0)
    batch.move(Event.BACK)
    for _ in range(9):
        batch.unreadable(nack(missing=[2]), FRAMES, 10.0, final=False)
        assert (batch.not_before, batch.tries) == (10.0 + LATE_FILE, 0)
    for tries, pause in enumerate(RETRIES):
        assert (batch.tries, absent(batch)) == (tries, {})
        batch.unreadable(nack(missing=[2]), FRAMES, 20.0, final=True)
        assert batch.not_before == 20.0 + pause
    batch.unreadable(nack(missing=[2, 9]), FRAMES, 30.0, final=True)
    assert absent(batch) == {2: LOST}


def test_a_nack_that_names_no_frame_means_all_of_them() -> None:
    batch = out()
    batch.move(Event.BACK)
    for _ in range(len(RETRIES) + 1):
        batch.unreadable(nack(), FRAMES, 0.0, final=True)
    assert absent(batch) == dict.fromkeys(FRAMES, LOST)


def test_what_came_and_can_t_be_read_is_read_from_a_file_and_if_that_fails_quarantined_for_both_reasons() -> None:
    batch = out(0, 1, 2)
    batch.move(Event.BACK)
    chunk = Damaged(1, "chunk of 9 bytes")
    batch.unreadable(nack(missing=[1, 2], damaged=[chunk, Damaged(3, "never held")]), FRAMES, 5.0, final=True)
    assert (sorted(batch.held), batch.owed, batch.damaged) == ([0], {1, 2, 3}, {1: chunk})
    assert (batch.not_before, batch.tries) == (0.0, 0), "a file may have it at once"
    batch.lose(1, "x" * 600)
    batch.lose(2, "no file")
    assert absent(batch) == {1: QUARANTINED, 2: LOST}
    assert batch.absent[1].reason == "x" * 360 + "; what came live: chunk of 9 bytes"
    batch.lose(2, "another reason")
    assert batch.absent[2].reason == "no file", "what was said first stands"


def test_each_move_of_a_frame_is_one_of_the_tables() -> None:
    before = Counter(FRAME.taken)
    batch = out(0, 1, 2)
    batch.move(Event.BACK)
    batch.unreadable(nack(missing=[0, 1, 2], damaged=[Damaged(1, "cut")]), FRAMES, 5.0, final=True)
    assert Counter(FRAME.taken) - before == {
        (Frame.UNSEEN, FrameEvent.CAME): 3,
        (Frame.UNSEEN, FrameEvent.PASSED): 1,
        (Frame.HELD, FrameEvent.UNREADABLE): 2,
        (Frame.HELD, FrameEvent.DAMAGED): 1,
    }


def test_a_frame_that_came_damaged_and_comes_again_is_not_damaged_any_more() -> None:
    batch = out(0)
    batch.move(Event.BACK)
    batch.unreadable(nack(missing=[0], damaged=[Damaged(0, "cut")]), FRAMES, 5.0, final=True)
    assert batch.take(0, held(0, life=9))
    assert (batch.damaged, batch.owed) == ({}, {1, 2, 3})
