"""Turns, and whose time is counted."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest

from haltere.benchmarks.kernel.timing import Competitor, interleave


class Clock:
    """Time that passes when a call says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[str, int]] = []

    def __call__(self) -> float:
        """Return what time it is."""
        return self.now

    def lasting(self, name: str, seconds: float) -> Callable[[int], None]:
        """Return a call that takes so long."""

        def call(turn: int) -> None:
            self.calls.append((name, turn))
            self.now += seconds

        return call


def test_everybody_has_a_turn_in_each_round_and_the_first_call_isnt_counted() -> None:
    clock = Clock()
    slow, fast = Competitor(clock.lasting("slow", 5.0)), Competitor(clock.lasting("fast", 0.25), frames=16)
    times = interleave([slow, fast], seconds=3.0, rounds=3, clock=clock)
    assert [len(each.each) for each in times] == [3, 12]
    assert [name for name, _ in clock.calls] == ["slow", "fast", *(["slow"] + 4 * ["fast"]) * 3]
    assert [turn for name, turn in clock.calls if name == "slow"] == [0, 1, 2, 3]


def test_times_are_per_frame() -> None:
    clock = Clock()
    (times,) = interleave([Competitor(clock.lasting("lot", 8.0), frames=16)], seconds=1.0, rounds=2, clock=clock)
    assert times.each == [0.5, 0.5]
    assert times.median == times.least == 0.5


def test_the_garbage_is_collected_again_whatever_happens() -> None:
    def fail(turn: int) -> None:
        if turn:
            raise RuntimeError("it fails")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="it fails"):
        interleave([Competitor(fail)], seconds=1.0)
    assert gc.isenabled()
