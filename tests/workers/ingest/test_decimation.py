"""Under overload whole batches go live, as many as the workers manage, spread evenly over rows and columns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haltere.workers.ingest.core import DECIMATED, RING_FULL
from haltere.workers.ingest.decimation import GLUT, HUNGRY, LOW, Decimator, Load, Verdict, phase

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
