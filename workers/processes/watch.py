"""A child under supervision, without the child: what it says and the time go in; when to kill it and start it, out."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from ..states import StateTable

STORM: Final = 10
"""So many deaths within :data:`STORM_SECONDS` are a storm: the process is given up, and its last words are shown."""

STORM_SECONDS: Final = 60.0
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 5.0

LAST_RESORT: Final = 60.0
"""Seconds between two trials of one that is given up: what ails it (a full disk, say) may have been mended."""

PATIENCE: Final = 15.0
"""Seconds without a beat, after the first, until a process is held to hang."""

STARTING: Final = 120.0
"""Seconds within which one that was started again has to be ready."""


class Life(StrEnum):
    """Where a child stands."""

    DOWN = "down"
    STARTING = "starting"
    RUNNING = "running"
    SILENT = "silent"
    GIVEN_UP = "given up"
    TRIED = "tried again"
    ENDED = "ended"


class LifeEvent(StrEnum):
    """What happens to it."""

    STARTED = "started"
    READY = "ready"
    SILENCE = "silence"
    BEAT = "beat"
    DIED = "died"
    STORM = "storm"
    STILLBORN = "stillborn"
    PROVEN = "proven"
    CLOSED = "closed"


_L, _E = Life, LifeEvent

PROCESS: Final = StateTable(
    "process",
    {
        _L.DOWN: "It isn't there, and is started after a pause.",
        _L.STARTING: "It is there, and not ready.",
        _L.RUNNING: "It is ready, and beats if it ever did.",
        _L.SILENT: "It hasn't beaten for a third of the patience that there is with it.",
        _L.GIVEN_UP: "It isn't there, and is tried now and then: what ails it may be mended.",
        _L.TRIED: "It is there again, and not to be trusted yet.",
        _L.ENDED: "It isn't there, and isn't started again.",
    },
    [
        ([_L.DOWN], _E.STARTED, _L.STARTING, "The pause is over."),
        ([_L.STARTING], _E.READY, _L.RUNNING, "It prints the line that says so."),
        ([_L.RUNNING], _E.SILENCE, _L.SILENT, "No beat comes."),
        ([_L.SILENT], _E.BEAT, _L.RUNNING, "It beats again."),
        ([_L.STARTING, _L.RUNNING, _L.SILENT], _E.DIED, _L.DOWN, "It dies, or is killed because it hangs."),
        ([_L.STARTING, _L.RUNNING, _L.SILENT], _E.STORM, _L.GIVEN_UP, "It dies again and again within a minute."),
        ([_L.STARTING], _E.STILLBORN, _L.GIVEN_UP, "It was never ready, so it never will be: settings, most likely."),
        ([_L.GIVEN_UP], _E.STARTED, _L.TRIED, "A minute is over."),
        ([_L.TRIED], _E.DIED, _L.GIVEN_UP, "It dies once more."),
        ([_L.TRIED], _E.PROVEN, _L.RUNNING, "It has been ready for a minute."),
        (
            [_L.DOWN, _L.STARTING, _L.RUNNING, _L.SILENT, _L.GIVEN_UP, _L.TRIED],
            _E.CLOSED,
            _L.ENDED,
            "It is told to end, or has ended and isn't to be started again.",
        ),
    ],
)


class Watch:
    """What is known of a child.

    Parameters
    ----------
    restart
        Whether it is started again when it dies.
    patience
        Seconds between two beats after which it is held to hang.
    """

    def __init__(self, *, restart: bool = True, patience: float = PATIENCE) -> None:
        self.state = Life.DOWN
        self.ready: dict[str, Any] | None = None
        """The line that it printed when it was ready; of several lives the last."""
        self.said: Mapping[str, Any] = {}
        """What its last beat said."""
        self.born = 0.0
        self.heard = 0.0
        """When it last said something."""
        self.restarts = 0
        self.hung = 0
        self.last_exit: int | None = None
        self.last_words = ""
        self._restart = restart
        self._patience = patience
        self._is_ready = self._beats = False
        self._deaths: deque[float] = deque(maxlen=STORM)
        self._pause = FIRST_PAUSE

    @property
    def gave_up(self) -> bool:
        """Whether nobody counts on it."""
        return self.state in (Life.GIVEN_UP, Life.TRIED)

    @property
    def over(self) -> bool:
        """Whether it isn't started again."""
        return self.state is Life.ENDED or (self.state is Life.GIVEN_UP and self.ready is None)

    def started(self, now: float) -> None:
        """Note that it is there."""
        self._move(LifeEvent.STARTED)
        self.born = self.heard = now
        self._is_ready = self._beats = False
        self.said = {}

    def hear(self, words: Mapping[str, Any], now: float) -> bool:
        """Take what it says; return whether that was that it is ready."""
        self.heard = now
        if "beat" in words:
            self._beats = True
            self.said = words["beat"] if isinstance(words["beat"], dict) else {}
            if self.state is Life.SILENT:
                self._move(LifeEvent.BEAT)
            return False
        self.ready = dict(words)
        self._is_ready = True
        if self.state is Life.STARTING:
            self._move(LifeEvent.READY)
        return True

    def slept(self, now: float) -> None:
        """Note that it was the watcher who heard nothing, having stood still."""
        self.heard = now

    def tick(self, now: float) -> bool:
        """Do what time brings; return whether it hangs, so that it is to be killed."""
        silent = now - self.heard
        if self.state is Life.TRIED and self._is_ready and now - self.born > STORM_SECONDS:
            self._move(LifeEvent.PROVEN)
            self.restarts += 1
        if self.state is Life.RUNNING and self._beats and silent > self._patience / 3:
            self._move(LifeEvent.SILENCE)
        again = self.ready is not None  # the first start has a deadline of its own, with whoever waits for it
        return (self._beats and silent > self._patience) or (
            again and not self._is_ready and now - self.born > STARTING
        )

    def killed(self, now: float) -> None:
        """Note that it is killed because it hangs."""
        self.hung += 1
        self.heard = now

    def died(self, code: int, words: str, now: float) -> float | None:
        """Take note of its end; return the seconds until it is started again, None if it isn't.

        ``code`` : its exit code, negative if a signal killed it; ``words`` : the last of its log.
        """
        self.last_exit, self.last_words = code, words
        if self.state is Life.ENDED:
            return None
        self._deaths.append(now)
        storm = len(self._deaths) == STORM and now - self._deaths[0] < STORM_SECONDS
        if self.ready is None:
            self._move(LifeEvent.STILLBORN)
            return None
        if not self._restart:
            self._move(LifeEvent.CLOSED)
            return None
        self._move(LifeEvent.STORM if storm and self.state is not Life.TRIED else LifeEvent.DIED)
        if self.state is Life.GIVEN_UP:
            return LAST_RESORT
        self.restarts += 1
        self._pause = FIRST_PAUSE if now - self.born > LONGEST_PAUSE else min(2 * self._pause, LONGEST_PAUSE)
        return self._pause

    def close(self) -> None:
        """Note that it is told to end."""
        if self.state is not Life.ENDED:
            self._move(LifeEvent.CLOSED)

    def _move(self, event: LifeEvent) -> None:
        self.state = PROCESS.move(self.state, event)
