"""Competitors take turns: whatever else the machine does meanwhile, each has its share of it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

ROUNDS: Final = 7


def thread_time() -> float:
    """Return the CPU time of this thread so far, s: another program's share of the core isn't in it."""
    return time.clock_gettime(time.CLOCK_THREAD_CPUTIME_ID)


@dataclass(frozen=True, slots=True)
class Competitor:
    """``call(turn)`` reduces ``frames`` frames; ``turn`` counts the calls, to choose which."""

    call: Callable[[int], Any]
    frames: int = 1


@dataclass(slots=True)
class Times:
    """Seconds per frame, of each call."""

    each: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of all calls."""
        return median(self.each)

    @property
    def least(self) -> float:
        """Of all calls."""
        return min(self.each)


def interleave(
    competitors: Iterable[Competitor],
    seconds: float,
    *,
    rounds: int = ROUNDS,
    clock: Callable[[], float] = thread_time,
) -> list[Times]:
    """Let each have ``rounds`` turns, and in a turn as many calls as fit into its part of ``seconds``, at least one.

    A first call of each isn't counted: it may build tables, compile, or touch memory for the first time.
    """
    measured = [(each, Times()) for each in competitors]
    for competitor, _ in measured:
        competitor.call(0)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for competitor, times in measured:
                take_turn(competitor, times, seconds / rounds, clock)
    finally:
        if collecting:
            gc.enable()
    return [times for _, times in measured]


def take_turn(competitor: Competitor, times: Times, seconds: float, clock: Callable[[], float]) -> None:
    """Let one call until what is left of ``seconds`` is less than a call takes, at least once."""
    spent = 0.0
    while True:
        began = clock()
        competitor.call(len(times.each) + 1)
        took = clock() - began
        times.each.append(took / competitor.frames)
        spent += took
        if spent + took > seconds:
            return
