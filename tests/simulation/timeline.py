"""Virtual time: what happens next happens now."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Timeline:
    """Events in the order of their times; those of one time in the order in which they were planned."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0

    def at(self, time: float, do: Callable[..., None], *args: Any) -> None:
        """Let something happen at a time (at once, if that has passed)."""
        self._number += 1
        heapq.heappush(self._events, (max(time, self.now), self._number, do, args))

    def after(self, seconds: float, do: Callable[..., None], *args: Any) -> None:
        """Let something happen in a while."""
        self.at(self.now + seconds, do, *args)

    def step(self) -> None:
        """Let the next event happen."""
        self.now, _, do, args = heapq.heappop(self._events)
        do(*args)
