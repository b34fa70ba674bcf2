"""The sink's books of a run: what is expected, what is done, and how fast."""

from __future__ import annotations

import json
from typing import Any

import pytest

from haltere.workers.intervals import IntervalSet
from haltere.workers.sink.books import MAX_RANGES, Books, Phase, RunEvent, RunState, StreamState, dones
from haltere.workers.sink.books import RUN as RUN_MOVES
from haltere.workers.sink.rates import MAX_PROMISES, SPAN, STEP, Lag, Rate
from haltere.workers.wire.messages import BACKFILLED, LIVE, LOST, Done, RunOpen

from ..flying import EIGER, PILC, RUN


def run(start: dict[str, Any] | None = None) -> RunState:
    state = RunState(RunOpen(1, RUN, "processed", json.dumps(start or {}).encode()))
    for stream in (EIGER, PILC):
        state.streams[stream.stream] = StreamState(stream, {}, Books(), IntervalSet([(0, 8)]))
    return state


def test_a_run_is_done_once_when_every_stream_is_from_its_first_frame_on() -> None:
    state = run()
    for stream in state.streams.values():
        stream.books.mark(0, bytes([LIVE] * 8))
    assert not state.check(), "it isn't closed"
    state.close({"eiger": 8, "pilc": 9})
    assert not state.check()
    assert str(state.phase) == "closed"
    before = RUN_MOVES.taken[Phase.CLOSED, RunEvent.REPEATED]
    state.close({"eiger": 0, "pilc": 0})
    assert RUN_MOVES.taken[Phase.CLOSED, RunEvent.REPEATED] == before + 1
    assert state.totals == {"eiger": 8, "pilc": 9}, "the first word stands"
    state.streams["pilc"].books.mark(8, bytes([LOST]))
    assert [state.check(), state.check()] == [True, False]
    assert str(state.phase) == "finished"


@pytest.mark.parametrize("done", [(1, 8), (0, 7)])
def test_a_run_with_a_gap_is_not_done(done: tuple[int, int]) -> None:
    state = run()
    state.close({"eiger": 8, "pilc": 8})
    for stream in state.streams.values():
        stream.books.done.add(*done)
    assert not state.check()


def test_a_run_says_since_when_it_stands_where_it_does() -> None:
    state = run({"time": 10.0, "scan_id": 3})
    state.read_start()
    assert (state.scan_id, state.since) == (3, 10.0)
    state.close({})
    assert state.since is None
    state.read_stop(b'{"time": 20}')
    state.read_stop(b'{"time": 30}')
    assert state.since == 20.0
    state.completed = 40.0
    assert state.since == 40.0


@pytest.mark.parametrize("start", [{}, {"time": "noon", "scan_id": "three"}, {"time": None}])
def test_a_run_of_which_the_documents_say_nothing_says_nothing(start: dict[str, Any]) -> None:
    state = run(start)
    state.read_start()
    assert (state.scan_id, state.since) == (None, None)


def test_a_report_has_counts_and_rates_of_each_stream() -> None:
    state = run()
    books = state.streams["eiger"].books
    books.mark(0, bytes([LIVE, LIVE, BACKFILLED, LOST]))
    books.rate(bytes([LIVE, LIVE, BACKFILLED, LOST]), 100.0)
    books.lag.promise(8, 97.0)
    report = state.report(100.0)
    assert (report["run"], report["closed"], report["phase"], report["duplicates"]) == (RUN, False, "open", 0)
    eiger = report["streams"]["eiger"]
    assert [eiger[name] for name in ("expected", "live", "backfilled", "lost")] == [8, 2, 1, 1]
    assert [eiger[name] for name in ("live_per_s", "backfilled_per_s", "lag_s")] == [2 / SPAN, 1 / SPAN, 3.0]
    assert "intervals" not in eiger
    state.close({"eiger": 8, "pilc": 8})
    assert state.report(100.0)["closed"] is True


def test_a_restored_run_is_complete() -> None:
    state = run()
    state.close({})
    state.move(RunEvent.RESTORED)
    assert state.phase is Phase.COMPLETED


@pytest.mark.parametrize(("ranges", "messages"), [(0, 1), (1, 1), (MAX_RANGES, 1), (MAX_RANGES + 1, 2)])
def test_what_is_done_is_told_in_messages_that_travel_and_the_last_says_so(ranges: int, messages: int) -> None:
    frames = IntervalSet()
    for number in range(ranges):
        frames.add(2 * number, 2 * number + 1)
    state = run()
    told = list(dones((RUN, "eiger", "c"), frames, state))
    assert len(told) == messages
    assert [each.full for each in told] == [False] * (messages - 1) + [True]
    assert [range_ for each in told for range_ in each.ranges] == frames.ranges()
    assert all(len(each.ranges) <= MAX_RANGES for each in told)
    assert (told[-1].controls, told[-1].closed) == (0, False)
    news = list(dones((RUN, "eiger", "c"), frames))
    assert [each.full for each in news] == [False] * messages
    state.close({})
    assert list(dones((RUN, "eiger", "c"), IntervalSet(), state)) == [Done(RUN, "eiger", "c", [], True, 0, True)]


def test_a_rate_is_of_the_last_seconds_and_its_memory_bounded() -> None:
    rate = Rate()
    for n, now in ((10, 0.0), (10, STEP * 0.9), (0, 1.0), (10, STEP)):
        rate.add(n, 8.0 + now)
    assert len(rate._counts) == 2, "what comes within a step is one, and nothing is nothing"
    assert rate.per_second(8.0 + SPAN - 0.01) == 30 / SPAN
    assert rate.per_second(8.0 + SPAN) == 10 / SPAN
    assert rate.per_second(8.0 + SPAN + STEP) == 0.0
    for number in range(10_000):
        rate.add(1, 100.0 + number * STEP)
    assert len(rate._counts) <= SPAN / STEP + 1


def test_a_lag_is_that_of_the_oldest_promise_that_is_not_kept() -> None:
    lag, done = Lag(), IntervalSet()
    assert lag.seconds(done, 5.0) == 0.0
    lag.promise(10, 1.0)
    lag.promise(12, 1.0 + 0.9 * STEP)
    lag.promise(5, 1.0 + 0.95 * STEP)
    lag.promise(20, 1.0 + STEP)
    done.add(0, 11)
    assert lag.seconds(done, 5.0) == 4.0
    done.add(0, 12)
    assert lag.seconds(done, 5.0) == 4.0 - STEP
    done.add(0, 20)
    assert lag.seconds(done, 5.0) == 0.0
    lag.promise(30, 7.0)
    done.add(21, 30)
    assert lag.seconds(done, 9.0) == 2.0
    assert lag.seconds(done, 7.125) == 0.12, "for people: no more digits"
    assert lag.seconds(IntervalSet([(1, 30)]), 9.0) == 2.0, "the first frame counts too"


def test_the_memory_of_promises_is_bounded() -> None:
    lag = Lag()
    for number in range(MAX_PROMISES + 5):
        lag.promise(number + 1, number * STEP)
    assert len(lag._promised) == MAX_PROMISES
    done = IntervalSet([(0, MAX_PROMISES - 1)])
    assert lag.seconds(done, MAX_PROMISES * STEP) == pytest.approx(STEP, abs=0.01)
    done.add(0, MAX_PROMISES + 4)
    assert lag.seconds(done, MAX_PROMISES * STEP) > 0
    done.add(0, MAX_PROMISES + 5)
    assert lag.seconds(done, MAX_PROMISES * STEP) == 0
