"""The interval set against Python's own set."""

from itertools import pairwise

import hypothesis.strategies as st
from hypothesis import given

from haltere.workers.intervals import IntervalSet

changes = st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.integers(-2, 12)))


@given(changes)
def test_it_holds_what_a_set_would_hold(ops: list[tuple[bool, int, int]]) -> None:
    ours, model = IntervalSet(), set[int]()
    for add, first, length in ops:
        if add:
            ours.add(first, first + length)
            model.update(range(first, first + length))
        else:
            ours.discard(first, first + length)
            model.difference_update(range(first, first + length))
        assert {i for a, b in ours.ranges() for i in range(a, b)} == model
        assert len(ours) == len(model)
        assert bool(ours) == bool(model)
        assert ours.end == max(model, default=-1) + 1
        assert [i in ours for i in range(80)] == [i in model for i in range(80)]


@given(changes)
def test_its_ranges_are_sorted_and_never_touch(ops: list[tuple[bool, int, int]]) -> None:
    ours = IntervalSet()
    for add, first, length in ops:
        (ours.add if add else ours.discard)(first, first + length)
    ranges = ours.ranges()
    assert all(a < b for a, b in ranges)
    assert all(b < c for (_, b), (c, _) in pairwise(ranges))


@given(changes, st.integers(0, 70), st.integers(0, 70))
def test_gaps_counts_and_covers_agree_with_a_set(ops: list[tuple[bool, int, int]], first: int, stop: int) -> None:
    ours = IntervalSet()
    for add, a, length in ops:
        (ours.add if add else ours.discard)(a, a + length)
    inside = {i for i in range(first, stop) if i in ours}
    gaps = ours.gaps(first, stop)
    assert {i for a, b in gaps for i in range(a, b)} == set(range(first, stop)) - inside
    assert all(a < b for a, b in gaps)
    assert ours.count(first, stop) == len(inside)
    assert ours.covers(first, stop) == (len(inside) == max(stop - first, 0))


def test_taking_nothing_out_splits_no_range() -> None:
    ours = IntervalSet([(0, 10)])
    ours.discard(5, 5)
    ours.discard(6, 4)
    ours.add(20, 20)
    assert ours.ranges() == [(0, 10)]


def test_a_range_of_half_a_trillion_frames_costs_no_more_than_a_short_one() -> None:
    ours = IntervalSet([(0, 2**39)])
    ours.discard(5, 6)
    assert ours.ranges() == [(0, 5), (6, 2**39)]
    assert len(ours) == 2**39 - 1


def test_a_range_covers_itself_to_its_very_ends() -> None:
    ours = IntervalSet([(4, 8)])
    assert ours.covers(4, 8)
    assert not ours.covers(3, 8)
    assert not ours.covers(4, 9)
    assert ours.covers(20, 20)


def test_sets_are_equal_by_what_they_hold_and_to_nothing_else() -> None:
    ours = IntervalSet([(0, 4), (6, 8)])
    assert ours == IntervalSet([(6, 8), (0, 2), (2, 4)])
    assert ours != IntervalSet([(0, 4)])
    assert ours != [(0, 4), (6, 8)]
    assert repr(ours) == "IntervalSet([(0, 4), (6, 8)])"
