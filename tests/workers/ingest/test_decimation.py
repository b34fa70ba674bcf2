"""Under overload whole batches go live, as many as the workers manage, spread evenly over rows and columns."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haltere.workers.ingest.core import DECIMATED, RING_FULL
from haltere.workers.ingest.decimation import (
    FLOOR,
    GLUT,
    GOLDEN,
    HUNGRY,
    LOW,
    OPEN,
    QUEUE,
    SILVER,
    SPAN,
    STALE,
    Decimator,
    Load,
    Verdict,
    phase,
)

from ..overload import Overload


def kept(fraction: float, unit: int, row: int, pieces: int) -> list[int]:
    return [number for number in range(pieces) if phase(number * unit, unit, row) < fraction]


@pytest.mark.parametrize("fraction", [0.03, 0.1, 0.2, 0.37, 0.5, 0.9])
@pytest.mark.parametrize("row", [0, *(20 * pieces for pieces in (1, 2, 5, 8, 13, 21, 34, 55)), 30, 50, 101, 333])
def test_as_many_are_kept_as_are_to_be_and_never_long_none(fraction: float, row: int) -> None:
    numbers = kept(fraction, 20, row, 4000)
    assert len(numbers) == pytest.approx(4000 * fraction, rel=0.02, abs=4)
    assert max(np.diff(numbers)) <= 8 / fraction + 1


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.3, 0.5])
@pytest.mark.parametrize("pieces", [1, 2, 3, 5, 8, 10, 13, 16, 20, 21, 32, 34, 55])
def test_no_column_of_a_grid_is_left_out_for_long(fraction: float, pieces: int) -> None:
    rows = 100
    numbers = np.array(kept(fraction, 20, 20 * pieces, rows * pieces))
    for column in range(pieces):
        covered = [-1, *(numbers[numbers % pieces == column] // pieces), rows]
        assert max(np.diff(covered)) <= 6 / fraction + 1, f"column {column}"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_below_low_water_nothing_is_left_out_and_a_batch_is_never_parted(data: st.DataObject) -> None:
    batch = data.draw(st.integers(1, 64))
    load, decimator = Load(1000 * batch), Decimator(batch, data.draw(st.integers(0, 500)))
    seen: dict[int, Verdict] = {}
    now, fuller = 0.0, False
    for frame in range(data.draw(st.integers(1, 80))):
        now += data.draw(st.floats(0, 0.1))
        load.came(10, now)
        if data.draw(st.booleans()):
            load.freed(data.draw(st.integers(0, 20)), now)
            load.waiting(data.draw(st.integers(0, 2 * GLUT)), now)
        used = data.draw(st.floats(0, load.size))
        verdict = decimator.follow(frame, 10, now)
        if verdict is None:
            assert frame // batch not in seen
            verdict = seen[frame // batch] = decimator.choose(frame, load, used, now)
            fuller |= used > LOW * load.size
            assert fuller or verdict is Verdict.LIVE
        assert verdict is seen[frame // batch]
        assert 0 <= decimator.reserved(now) <= batch * 10


@given(came=st.floats(1, 1e9), freed=st.floats(0, 1e9), queued=st.integers(HUNGRY + 1, 1000))
def test_the_fuller_the_ring_and_the_longer_the_queue_the_less_is_kept(came: float, freed: float, queued: int) -> None:
    load = Load(1000)
    load.came(int(came), 0.0)
    load.freed(int(freed), 0.0)
    by_fill = [load.fraction(used, 0.0) for used in range(0, 1001, 10)]
    assert by_fill == sorted(by_fill, reverse=True)
    assert by_fill[0] == 1
    assert by_fill[-1] == 0
    load.waiting(queued, 0.0)
    assert load.fraction(900, 0.0) <= by_fill[90]
    assert load.fraction(100, 0.0) > 0, "a hole for as long as the queue is long"


@pytest.mark.parametrize("ratio", [1.5, 5.0, 12.0])
@pytest.mark.parametrize("columns", [60, 100, 260])
def test_under_overload_what_the_workers_manage_is_kept_and_spread_evenly(ratio: float, columns: int) -> None:
    flown = Overload(ratio, rows=24000 // columns, columns=columns).fly()
    settled = [number for number in flown.whole if number > 400]
    assert len(settled) / (24000 // 20 - 400) == pytest.approx(1 / ratio, rel=0.15)
    assert max(np.diff(settled)) <= 6 * ratio
    assert flown.mixed == 0
    assert set(flown.core.dropped) == {DECIMATED}


def test_five_times_too_fast_the_old_way_and_this_one() -> None:
    """Taking what finds room leaves stretches out, and half of what it takes is whole by chance only."""
    greedy = Overload(5.0, claimed=False).fly()
    even = Overload(5.0).fly()
    assert len(even.done) >= 0.95 * len(greedy.done)
    assert even.mixed == 0
    assert greedy.mixed > 50
    assert set(greedy.core.dropped) == {RING_FULL}
    assert even.hole() < 0.5 * greedy.hole()
    assert np.mean(even.late[-10:]) < 0.5 * np.mean(greedy.late[-10:])


def test_workers_that_follow_are_given_everything() -> None:
    flown = Overload(0.9).fly()
    assert not flown.core.dropped


def test_when_the_overload_ends_nothing_more_is_left_out_soon() -> None:
    flown = Overload(5.0, rows=120, relief=(6000, 0.5)).fly()
    assert set(range(400, 600)) <= set(flown.whole), "from 10 s after the relief on, everything"
    assert not set(range(200, 300)) <= set(flown.whole)


@pytest.mark.parametrize("ring_batches", [1, 2, 3])
def test_a_ring_that_holds_few_batches_lets_no_fewer_frames_through(ring_batches: int) -> None:
    greedy, even = (Overload(0.5, ring_batches=ring_batches, rows=20, claimed=c).fly() for c in (False, True))
    assert sum(map(len, even.blocks.values())) >= sum(map(len, greedy.blocks.values()))


def load_of(came: int, freed: int) -> Load:
    """Return the load of a ring of 1000 bytes."""
    load = Load(1000)
    load.came(came, 0.0)
    load.freed(freed, 0.0)
    return load


def test_what_the_workers_manage_is_a_part_of_what_comes_and_never_none() -> None:
    assert Load(1000).ratio == 1.0
    assert load_of(1, 0).ratio == FLOOR
    assert load_of(10, 0).ratio == FLOOR
    assert load_of(100, 25).ratio == 0.25
    assert load_of(100, 101).ratio == 1.0


def test_what_came_and_was_freed_long_ago_counts_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("haltere.workers.ingest.decimation.SPAN", 2.0)
    load = Load(1000)
    load.freed(80, 0.0)
    load.came(100, 2.0)
    assert load.ratio == pytest.approx(0.8 * exp(-1.0))
    load.came(100, 2.0)
    assert load.ratio == pytest.approx(0.4 * exp(-1.0))
    load.freed(100, 1.0)  # by a clock that stood still
    assert load.ratio == pytest.approx(0.4 * exp(-1.0) + 0.5)
    load.came(0, 3.0)
    load.freed(8, 4.0)
    load.came(100, 4.0)
    freed, came = 100 + 80 * exp(-1.0), 200.0
    assert load.ratio == pytest.approx((freed * exp(-1.0) + 8) / (came * exp(-1.0) + 100))


def test_by_the_fill_everything_is_kept_at_first_and_nothing_at_last() -> None:
    load = load_of(500, 100)
    assert load.fraction(600, 0.0) == 1.0
    assert not load.lasting
    fractions = [load.fraction(used, 0.0) for used in (650, 700, 800, 900, 1000, 1100)]
    assert fractions == pytest.approx([0.2**0.25, 0.2**0.5, 0.2, 0.1, 0.0, 0.0])
    assert load.lasting
    assert load.fraction(500, 0.0) == 1.0


def test_by_the_queue_everything_is_kept_at_first_and_half_of_what_is_managed_at_last() -> None:
    load = load_of(500, 100)
    load.fraction(700, 0.0)
    for queued, kept in (
        (HUNGRY, 1.0),
        (HUNGRY + 3, 0.2**0.5),
        (QUEUE, 0.2),
        ((QUEUE + GLUT) // 2, 0.15),
        (GLUT, 0.1),
        (2 * GLUT, 0.1),
    ):
        load.waiting(queued, 0.0)
        assert load.fraction(500, 0.0) == pytest.approx(kept)
        assert load.fraction(900, 0.0) == pytest.approx(1.0 if queued <= HUNGRY else 0.1)
    load.waiting(HUNGRY, 0.0)
    assert load.fraction(900, 0.9 * SPAN) == 1.0
    assert load.fraction(900, SPAN) == pytest.approx(0.1), "the broker's word is too old"


def test_an_overload_lasts_until_the_workers_are_hungry_and_manage_what_comes() -> None:
    for came, freed, queued, lasting in ((100, 94, 0, True), (100, 95, HUNGRY + 1, True), (100, 95, HUNGRY, False)):
        load = load_of(came, freed)
        load.fraction(601, 0.0)
        assert load.lasting
        load.waiting(queued, 0.0)
        load.fraction(601, 0.0)
        assert load.lasting
        load.fraction(600, 0.0)
        assert load.lasting is lasting


def test_the_phase_is_the_golden_one_along_a_row_and_the_silver_one_from_row_to_row() -> None:
    assert [phase(first, 20, 0) for first in (0, 20, 60)] == pytest.approx([0.0, GOLDEN, 3 * GOLDEN - 1])
    assert phase(40, 20, 19) == pytest.approx(2 * GOLDEN - 1)
    assert phase(40, 20, 20) == pytest.approx(2 * SILVER)
    assert phase(60, 20, 40) == pytest.approx(SILVER + GOLDEN - 1)
    assert phase(40, 20, 30) == pytest.approx(SILVER + GOLDEN / 2)


def decide(decimator: Decimator, load: Load, frame: int, used: float = 0.0, size: int = 100) -> Verdict:
    """Return what becomes of a frame at 0 s."""
    return decimator.follow(frame, size, 0.0) or decimator.choose(frame, load, used, 0.0)


def test_a_batch_that_comes_in_has_room_for_what_is_still_to_come_of_it() -> None:
    load, decimator = load_of(500, 100), Decimator(4)
    reserved = []
    for frame in (0, 1, 3, 4, 5, 6, 7, 8):
        assert decide(decimator, load, frame) is Verdict.LIVE
        reserved.append(decimator.reserved(0.0))
    assert reserved == [300, 200, 100, 300, 200, 100, 0, 300]
    assert decimator.reserved(STALE / 2) == 300
    assert decimator.reserved(STALE) == 0
    decide(decimator, load, 2)
    assert decimator.reserved(0.0) == 300, "a late frame of a batch before has its room"
    decimator.spoil(4)
    assert decimator.reserved(0.0) == 300
    decimator.spoil(9)
    assert decimator.reserved(0.0) == 0
    assert [decide(decimator, load, frame) for frame in (3, 5, 10)] == [Verdict.LIVE, Verdict.NO_ROOM, Verdict.NO_ROOM]


def test_nothing_is_reserved_for_a_batch_that_is_left_out_nor_for_an_older_one() -> None:
    load, decimator = load_of(500, 100), Decimator(4)
    decide(decimator, load, 8)
    assert decimator.follow(0, 100, 0.0) is None
    decimator.choose(0, load, 0.0, 0.0)
    assert decimator.reserved(0.0) == 300
    assert decimator.follow(12, 100, 0.0) is None
    assert decimator.choose(12, load, 1300.0, 0.0) is Verdict.DECIMATED
    assert decimator.reserved(0.0) == 0


def test_a_batch_is_let_in_if_it_finds_room_while_the_workers_free_some() -> None:
    load = load_of(500, 250)
    load.waiting(0, 0.0)  # hungry: everything is to be kept that finds room
    for used, verdict in ((800, Verdict.LIVE), (801, Verdict.NO_ROOM), (600, Verdict.LIVE)):
        assert decide(Decimator(4), load, 0, used) is verdict
    large = Decimator(4)
    assert decide(large, load, 0, 600, size=125) is Verdict.LIVE
    full = Load(1000)
    full.came(1, 0.0)
    full.waiting(0, 0.0)
    assert decide(Decimator(4), full, 0, 600, size=125) is Verdict.LIVE, "up to low water whatever it needs"
    assert decide(Decimator(4), full, 0, 601, size=125) is Verdict.NO_ROOM


def test_the_room_of_the_batch_before_is_not_held_against_the_next() -> None:
    load, decimator = load_of(500, 250), Decimator(4)
    load.waiting(0, 0.0)
    decide(decimator, load, 0)
    assert decide(decimator, load, 4, 800 + decimator.reserved(0.0)) is Verdict.LIVE
    assert decide(decimator, load, 8, 801 + decimator.reserved(0.0)) is Verdict.NO_ROOM


def test_which_part_goes_live_is_a_mean_over_the_last_batches() -> None:
    load, decimator = load_of(500, 100), Decimator(4)
    decide(decimator, load, 0)
    assert decimator.kept == 1.0
    decide(decimator, load, 4, 1300.0)
    assert decimator.kept == 15 / 16
    decide(decimator, load, 8, 0.0)
    assert decimator.kept == 15 / 16 + 1 / 256


def test_of_the_last_batches_it_is_remembered_what_becomes_of_them() -> None:
    load, decimator = Load(10000), Decimator(4)
    for number in range(OPEN + 1):
        decide(decimator, load, 4 * number)
    known = [decimator.follow(4 * number, 100, 0.0) is not None for number in range(OPEN + 2)]
    assert known == [False, *[True] * OPEN, False]


def test_the_size_of_a_frame_follows_what_comes() -> None:
    decimator = Decimator(4)
    decimator.follow(0, 800, 0.0)
    decimator.choose(0, Load(10000), 0.0, 0.0)
    assert decimator.reserved(0.0) == 3 * 800
    decimator.follow(1, 1600, 0.0)
    assert decimator.reserved(0.0) == 2 * 900


def test_batches_are_parted_until_two_pieces_fit_and_whole_again_when_three_do() -> None:
    decimator = Decimator(8)
    for size, unit, needs in ((62, 8, 0.0), (63, 4, 1008.0), (42, 4, 672.0), (41, 8, 0.0)):
        decimator._size = 0.0
        decimator.follow(0, size, 0.0)
        decimator.choose(0, Load(1000), 0.0, 0.0)
        assert (decimator._unit, decimator.needs) == (unit, needs)
    for size in (500, 501, 10**6):
        decimator._size = 0.0
        decimator.follow(0, size, 0.0)
        decimator.choose(0, Load(1000), 0.0, 0.0)
        assert decimator._unit == 1
        assert decimator.needs == 16 * size


def test_when_batches_are_parted_what_was_known_of_them_is_forgotten() -> None:
    load, decimator = load_of(500, 250), Decimator(4)
    load.waiting(0, 0.0)
    decide(decimator, load, 8)
    decimator._size = 0.0
    decimator.follow(12, 200, 0.0)
    decimator.choose(12, load, 0.0, 0.0)  # pieces of two: the 6th
    assert decimator.reserved(0.0) == 200
    assert decimator.follow(4, 200, 0.0) is None, "which was the piece that frame 8 began"
    decimator._size = 0.0
    decimator.follow(4, 10, 0.0)
    decimator.choose(4, load, 0.0, 0.0)  # whole again
    assert decimator.reserved(0.0) == 30


def test_the_newest_batch_has_its_room_even_when_it_was_forgotten() -> None:
    load, decimator = Load(10000), Decimator(4)
    decide(decimator, load, 4 * OPEN)
    for number in range(OPEN):
        decide(decimator, load, 4 * number)
    decimator.follow(4 * OPEN + 1, 100, 5.0)
    assert decimator.choose(4 * OPEN + 1, load, 0.0, 5.0) is Verdict.LIVE
    assert decimator.reserved(5.5) == 200


def test_of_a_full_ring_not_even_the_first_batch_is_a_part() -> None:
    load = load_of(500, 100)
    assert decide(Decimator(4), load, 0, 1000.0) is Verdict.DECIMATED


def test_three_batches_may_fill_the_ring() -> None:
    decimator = Decimator(8)
    for size, unit in ((64, 4), (42, 8)):
        decimator._size = 0.0
        decimator.follow(0, size, 0.0)
        decimator.choose(0, Load(3 * 8 * 42), 0.0, 0.0)
        assert decimator._unit == unit
