"""A backfill has its own credit: live frames keep their share of the workers, and the backfill still goes on."""

from __future__ import annotations

import heapq
import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haltere.workers.broker.batch import Key
from haltere.workers.broker.queue import Queue, Taken
from haltere.workers.broker.turns import FIRST_COST, SMOOTH, Turns

LIVE, OLD = Key("run", "eiger", "a"), Key("old", "eiger", "a")


class Pool:
    """Workers that take batches as the broker's do: two at a time, one after the other."""

    def __init__(self, workers: int, seconds: dict[bool, float], share: float = 0.25) -> None:
        self.queue = Queue(share)
        self.seconds = seconds
        self.now = 0.0
        self.busy = {False: 0.0, True: 0.0}
        """Seconds of the workers' time that each lane has had."""
        self._random = random.Random(1)
        self._hands: list[deque[Taken]] = [deque() for _ in range(workers)]
        self._ends: list[tuple[float, int, float]] = []

    def work(self, until: float, *, live: bool = True, backfill: bool = True) -> None:
        """Let them work, with batches of these lanes always waiting."""
        while self.now < until:
            for number in range(2):
                if live and not self.queue.live:
                    self.queue.put(LIVE, number, backfill=False, filed=False)
                if backfill and len(self.queue) - self.queue.live < 2:
                    self.queue.put(OLD, number, backfill=True, filed=True)
            for worker, hand in sorted(enumerate(self._hands), key=lambda each: len(each[1])):
                if len(hand) < 2 and self.queue:
                    self._give(worker, hand)
                    break
            else:
                self._end()

    def _give(self, worker: int, hand: deque[Taken]) -> None:
        hand.append(self.queue.take(sum(each.backfill for other in self._hands for each in other)))
        if len(hand) == 1:
            self._begin(worker)

    def _begin(self, worker: int) -> None:
        took = self.seconds[self._hands[worker][0].backfill] * self._random.uniform(0.5, 1.5)
        heapq.heappush(self._ends, (self.now + took, worker, took))

    def _end(self) -> None:
        self.now, worker, took = heapq.heappop(self._ends)
        done = self._hands[worker].popleft()
        self.busy[done.backfill] += took
        self.queue.ended(done.backfill, done.charged, took)
        if self._hands[worker]:
            self._begin(worker)


@settings(max_examples=20, deadline=None)
@given(
    workers=st.integers(1, 8),
    share=st.sampled_from([0.1, 0.25, 0.5]),
    slow=st.floats(0.2, 30.0),
)
def test_live_batches_keep_their_share_however_slow_the_files_are(workers: int, share: float, slow: float) -> None:
    pool = Pool(workers, {False: 0.5, True: 0.5 * slow}, share)
    pool.work(1000.0)
    total = sum(pool.busy.values())
    assert pool.busy[False] / total >= 1 - share - 0.05
    assert pool.busy[True] / total >= 0.5 * share, "the backfill starves"


@pytest.mark.parametrize("lane", [False, True])
def test_a_lane_that_is_alone_has_all_workers(lane: bool) -> None:
    pool = Pool(4, {False: 0.1, True: 0.1})
    pool.work(60.0, live=not lane, backfill=lane)
    assert pool.busy[lane] == pytest.approx(4 * 60.0, rel=0.02)


def test_a_long_backfill_owes_nothing_to_the_scan_that_follows_nor_the_scan_to_it() -> None:
    pool = Pool(2, {False: 0.1, True: 0.3})
    pool.work(300.0, live=False)
    before = pool.busy[True]
    pool.work(360.0)
    live = pool.busy[False]
    assert live / (live + pool.busy[True] - before) == pytest.approx(0.75, abs=0.07)
    before = pool.busy[True]
    pool.work(400.0, live=False)
    assert pool.busy[True] - before >= 0.9 * 80.0


def test_no_more_of_a_stream_is_queued_from_files_than_there_is_room_for() -> None:
    queue = Queue()
    for number in range(32):
        queue.put(OLD, number, backfill=True, filed=True)
    assert queue.room(OLD) == 0
    assert queue.take(0).number == 0
    assert queue.room(OLD) == 1
    queue.put(OLD, 0, backfill=True, filed=True, first=True)
    assert queue.take(0).number == 0
    queue.forget(OLD)
    assert (len(queue), queue.room(OLD)) == (0, 32)


def lanes(queue: Queue, turns: int) -> list[bool]:
    """Return which lane has each turn while both wait."""
    for number in range(turns):
        queue.put(LIVE, number, backfill=False, filed=False)
        queue.put(OLD, number, backfill=True, filed=True)
    queue.ended(True, 0.05, 0.05)  # so that one is known
    return [queue.take(0).backfill for _ in range(turns)]


def test_what_a_lane_had_too_much_is_forgotten_when_it_is_alone() -> None:
    queue = Queue()
    queue.put(LIVE, 0, backfill=False, filed=False)
    assert lanes(queue, 2) == [False, True]
    queue.forget(OLD)
    queue.take(0)
    queue.forget(LIVE)
    assert lanes(queue, 4) == [False, True, False, False]


def test_a_batch_that_did_not_go_costs_its_lane_no_turn() -> None:
    queue = Queue()
    queue.put(LIVE, 0, backfill=False, filed=False)
    queue.put(OLD, 0, backfill=True, filed=True)
    taken = queue.take(0)
    queue.let_go(taken.backfill, taken.charged)
    assert lanes(queue, 4) == [False, True, False, False]


def test_what_a_batch_costs_follows_what_those_before_it_took() -> None:
    turns = Turns(0.25)
    costs = []
    for _ in range(40):
        turns.charge(True)
        turns.ended(True, turns.cost[True], 2.0)
        costs.append(turns.cost[True])
    assert costs == sorted(costs)
    assert costs[0] == pytest.approx(FIRST_COST + (2.0 - FIRST_COST) / SMOOTH)
    assert costs[-1] == pytest.approx(2.0, rel=0.01)
    assert turns.cost[False] == FIRST_COST
    assert turns._spent[True] == pytest.approx(40 * 2.0 / 0.25), "it is charged with what it took"
