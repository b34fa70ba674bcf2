"""What comes live: which frames are given up, when, and why."""

from __future__ import annotations

import pytest

from haltere.workers.broker.lane import MARK, MAX_REASONS, PATIENCE, Lane, Marks

LATE, QUIET = 0.5, 5.0


def lane(*, exists: bool = True, spills: bool = False) -> Lane:
    return Lane(100.0, exists=exists, late=LATE, quiet=QUIET, spills=spills)


def test_marks_say_how_far_it_had_come_a_while_ago() -> None:
    marks = Marks(1.0)
    for frame, now in ((5, 10.0), (3, 10.1), (5, 10.2), (9, 10.0 + 2 * MARK), (12, 10.0 + 2.5 * MARK), (20, 10.5)):
        marks.reach(frame, now)
    assert marks.high == 20
    assert [marks.passed(now) for now in (10.9, 11.0, 10.99 + 2 * MARK, 11.0 + 2 * MARK, 11.5)] == [0, 5, 5, 12, 20]


def test_the_first_mark_is_one_though_it_be_the_first_frame() -> None:
    marks = Marks(1.0)
    assert (marks.high, marks.passed(99.0)) == (0, 0)
    marks.reach(1, 99.0)
    assert (marks.high, marks.passed(100.0)) == (1, 1)


def test_marks_stand_apart_from_a_certain_time_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("haltere.workers.broker.lane.MARK", 0.25)
    marks = Marks(1.0)
    marks.reach(1, 10.0)
    marks.reach(2, 10.25)
    assert marks.passed(11.0) == 1


def test_marks_that_come_close_together_cost_no_memory_each() -> None:
    marks = Marks(1.0)
    for number in range(1000):
        marks.reach(number + 1, 10.0 + number * MARK / 10)
    assert len(marks._marks) <= 101
    assert marks.passed(200.0) == 1000
    for number in range(1000):
        marks.reach(2000 + number, 300.0 + 2 * number * MARK)
    assert len(marks._marks) <= 1.0 / MARK + 1


def test_a_frame_is_gone_when_later_ones_came_a_while_ago_or_it_was_dropped_or_nothing_comes_any_more() -> None:
    one = lane()
    one.came(4, 101.0)
    assert [one.gone(frame, 101.4) for frame in (3, 4)] == [False, False]
    assert [one.gone(frame, 101.5) for frame in (3, 4)] == [True, False]
    one.drop([(8, 10)], "full", 101.6)
    assert [one.gone(frame, 101.6) for frame in (7, 8, 9, 10)] == [False, True, True, False]
    assert one.high == 9
    assert [one.gone(frame, 102.1) for frame in (7, 10)] == [True, False]
    one.close(103.0)
    assert not one.settled(103.4)
    assert one.settled(103.5)
    one.came(11, 103.6)
    assert not one.settled(104.0)
    assert one.settled(104.1)
    assert one.gone(99, 104.1)


def test_what_was_promised_and_never_began_to_come_is_gone_after_a_longer_while() -> None:
    one = lane()
    one.promise(8, 101.0)
    assert one.gone_below(105.9) == 0
    assert one.gone_below(106.0) == 8


def test_without_a_lane_nothing_is_waited_for() -> None:
    assert lane(exists=False).settled(100.0)
    one = lane()
    assert not one.settled(1e9)
    one.end()
    assert one.settled(100.0)


def test_drops_are_counted_once_by_cause_and_the_causes_are_bounded() -> None:
    one = lane()
    one.drop([(0, 4)], "full", 101.0)
    one.drop([(2, 6), (8, 9)], "decimated", 101.0)
    assert one.dropped == {"full": 4, "decimated": 3}
    assert [one.why(frame) for frame in (0, 3, 4, 6, 8)] == ["full", "full", "decimated", None, "decimated"]
    for number in range(MAX_REASONS):
        one.drop([(100 + number, 101 + number)], f"cause {number}", 101.0)
    assert len(one.dropped) == MAX_REASONS + 1
    assert one.dropped["other"] == 2
    assert one.why(99 + MAX_REASONS) == "other"
    one.drop([(50, 51)], "full", 101.0)
    assert one.dropped["full"] == 5
    one.done(0, 4)
    assert (one.why(0), one.why(4)) == (None, "decimated")
    assert not one.gone(0, 99.0)


def test_what_is_being_spilled_is_waited_for_until_it_is_in_a_file_or_its_ingest_ends() -> None:
    one = lane(spills=True)
    one.gauge(True, 100.0)
    one.spilling("i", [(0, 4)], 101.0)
    one.spilling("j", [(4, 8)], 101.0)
    assert one.high == 7
    assert [one.may_be_spilled(frame, 101.0) for frame in (0, 7, 8)] == [True, True, False]
    one.spill(0, 2, 102.0)
    one.drop([(2, 3)], "failed", 102.0)
    assert [one.may_be_spilled(frame, 102.0) for frame in range(5)] == [False, False, False, True, True]
    assert [one.gone(frame, 101.0) for frame in range(4)] == [True, True, True, False]
    assert one.spilled == 2
    one.spill(0, 2, 102.0)
    assert one.spilled == 2
    one.doubt("i", 110.0)
    assert one.why(3) == "it was being spilled when its ingest ended"
    assert one.why(4) is None
    assert one.may_be_spilled(99, 110.0 + PATIENCE - 0.1)
    assert not one.may_be_spilled(99, 110.0 + PATIENCE)
    assert not one.may_be_spilled(4, 110.0 + PATIENCE), "its ingest has not said so for long"
    one.spilling("j", [(4, 8)], 111.0)
    assert one.may_be_spilled(4, 110.0 + PATIENCE)
    one.spilling("j", [(0, 2)], 112.0)
    assert not one.may_be_spilled(0, 110.0 + PATIENCE), "a late word: it is in a file already"


@pytest.mark.parametrize(("spills", "until"), [(True, PATIENCE), (False, 0.0)])
def test_at_first_nobody_knows_what_ingests_before_have_spilled(spills: bool, until: float) -> None:
    one = lane(spills=spills)
    assert one.may_be_spilled(0, 100.0 + until - 0.1) is spills
    assert not one.may_be_spilled(0, 100.0 + until)
    one.doubt("i", 200.0)
    assert one.may_be_spilled(0, 200.0) is spills


def test_what_is_in_a_file_of_the_pool_had_come_and_a_word_of_one_under_way_lasts_for_a_while() -> None:
    one = lane(spills=True)
    one.gauge(True, 100.0)
    one.spill(4, 8, 100.0)
    assert one.high == 7
    one.spilling("i", [(8, 9)], 128.0)
    assert [one.may_be_spilled(8, 128.0 + seconds) for seconds in (PATIENCE - 1.0, PATIENCE)] == [True, False]


def test_who_spills_what_of_a_stream_that_is_not_known_is_not_known_either() -> None:
    one = lane(spills=True)
    one.gauge(True, 100.0)
    one.spilling("", [(0, 2)], 101.0)
    one.doubt("any", 102.0)
    one.gauge(True, 102.0)
    assert not one.may_be_spilled(0, 102.0)
    assert one.why(1) == "it was being spilled when its ingest ended"


def test_when_nothing_more_comes_an_ingest_has_to_say_that_it_has_nothing_left() -> None:
    one = lane(spills=True)
    one.gauge(True, 101.0)
    one.came(3, 110.0)
    assert not one.may_be_spilled(4, 110.0), "the run goes on, and so it isn't lost yet"
    one.close(109.0)
    ends = 110.0 + 2 * LATE
    assert one.may_be_spilled(4, ends), "a word of it may have been lost since"
    one.gauge(True, ends - 0.1)
    assert one.may_be_spilled(4, ends), "the ingest may not have had the last frame then"
    one.gauge(True, ends)
    assert not one.may_be_spilled(4, ends)
    one.gauge(False, ends + 1.0)
    assert one.may_be_spilled(4, ends + PATIENCE + 0.9), "it is patience with an ingest that is silent"
    assert not one.may_be_spilled(4, ends + PATIENCE + 1.0)
    one.end()
    one.gauge(True, 200.0)
    assert not one.may_be_spilled(4, 200.0)


def test_what_is_said_again_is_no_sign_that_anything_comes() -> None:
    one = lane(spills=True)
    one.spill(0, 4, 100.0)
    one.close(101.0)
    one.gauge(True, 101.0 + 2 * LATE)
    one.spill(1, 3, 130.0)
    assert one.settled(130.0)
    assert not one.may_be_spilled(9, 130.0)
    one.spill(3, 5, 131.0)
    assert not one.settled(131.0)


def test_of_a_lane_that_is_no_more_it_is_enough_what_was_said_before() -> None:
    one = lane(spills=True)
    one.gauge(True, 101.0)
    one.close(109.0)
    one.end()
    assert not one.may_be_spilled(4, 109.0)
