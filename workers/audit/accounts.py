"""Accounts of one run from several sources, compared: what each says became of every frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any

import numpy as np

from ..intervals import IntervalSet
from ..wire.messages import STATUS_NAMES

MOST_SHOWN = 4
"""Ranges of frames that one finding names."""


class Word(StrEnum):
    """What a check came to."""

    agrees = "agrees"
    disagrees = "disagrees"
    unchecked = "unchecked"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one source says of one detector: ``Finding("eiger", "stop document", Word.disagrees, "frames 3–5 …")``."""

    stream: str
    source: str
    word: Word
    text: str = ""


@dataclass(slots=True)
class Account:
    """What a source says became of a detector's frames."""

    expected: int
    sets: tuple[IntervalSet, ...]
    reasons: dict[int, str] = field(default_factory=dict)
    drops: dict[str, int] | None = None
    """Frames that were seen to be dropped on their way, by cause; None: the source doesn't say. They needn't add up."""

    @classmethod
    def told(cls, said: Mapping[str, Any]) -> Account:
        """Return what a stop document, or the ledger's accounting, says of a detector."""
        sets = tuple(IntervalSet(map(tuple, said.get("intervals", {}).get(name, ()))) for name in STATUS_NAMES)
        reasons = {int(key): str(why) for key, why in said.get("reasons", {}).items()}
        return cls(int(said["expected"]), sets, reasons, said.get("drops"))

    @classmethod
    def of_status(cls, status: Any) -> Account:
        """Return what a column of statuses says; numbers that are no status are of no set."""
        sets = tuple(IntervalSet() for _ in STATUS_NAMES)
        column = np.asarray(status)
        ends = [0, *(np.flatnonzero(np.diff(column)) + 1).tolist(), len(column)]
        for first, stop in pairwise(ends):
            if stop > first and 0 <= column[first] < len(sets):
                sets[int(column[first])].add(first, stop)
        return cls(len(column), sets)

    def counts(self) -> dict[str, int]:
        """Return how many frames ended how."""
        counts = {name: len(each) for name, each in zip(STATUS_NAMES, self.sets, strict=True)}
        return {"expected": self.expected, **counts}

    @property
    def bad(self) -> IntervalSet:
        """The frames without a result."""
        return IntervalSet([*self.sets[2].ranges(), *self.sets[3].ranges()])

    def silent(self) -> list[tuple[int, int]]:
        """Return the frames without a result of which nobody says why."""
        frames = (frame for first, stop in self.bad.ranges() for frame in range(first, stop))
        return IntervalSet((frame, frame + 1) for frame in frames if not self.reasons.get(frame)).ranges()

    def faults(self) -> list[str]:
        """Return what is wrong with the account in itself: frames without an end, or with two, or beyond the total."""
        found = []
        seen = IntervalSet()
        for name, frames in zip(STATUS_NAMES, self.sets, strict=True):
            twice = [(a, b) for a, b in frames.ranges() if seen.count(a, b)]
            if twice:
                found.append(f"{ranges(twice)} {name} and something else")
            seen.update(frames.ranges())
        if missing := seen.gaps(0, self.expected):
            found.append(f"{ranges(missing)} without an end")
        if seen.end > self.expected:
            found.append(f"{ranges([(self.expected, seen.end)])} beyond the {self.expected} that were promised")
        return found

    def other_drops(self, other: Account) -> list[str]:
        """Return whether another account, if it says anything of drops, has seen others."""
        if None in (self.drops, other.drops) or self.drops == other.drops:
            return []
        return [f"drops {listed(other.drops or {})}, not {listed(self.drops or {})}"]

    def differences(self, other: Account) -> list[str]:
        """Return where another account says something else."""
        found = []
        if self.expected != other.expected:
            found.append(f"{other.expected} frames, not {self.expected}")
        for name, mine, its in zip(STATUS_NAMES, self.sets, other.sets, strict=True):
            if more := _without(its, mine):
                found.append(f"{ranges(more)} {name}")
            elif less := _without(mine, its):
                found.append(f"{ranges(less)} not {name}")
        return found


def compared(stream: str, source: str, base: Account, other: Account) -> Finding:
    """Return whether a source agrees with the account."""
    wrong = base.differences(other)
    return Finding(stream, source, Word.disagrees if wrong else Word.agrees, "; ".join(wrong))


def judged(stream: str, source: str, faults: Sequence[str]) -> Finding:
    """Return a finding of what is wrong, which may be nothing."""
    return Finding(stream, source, Word.disagrees if faults else Word.agrees, "; ".join(faults[:MOST_SHOWN]))


def listed(drops: Mapping[str, int]) -> str:
    """Return drops by cause in words, the most first.

    >>> listed({"ring-full": 40, "decimated": 1020}), listed({})
    ('1020 decimated, 40 ring-full', 'none')
    """
    causes = sorted(drops.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{frames} {cause}" for cause, frames in causes) or "none"


def ranges(some: Sequence[tuple[int, int]]) -> str:
    """Return ranges of frames in words.

    >>> ranges([(3, 6), (8, 9)]), ranges([(n, n + 1) for n in range(0, 20, 2)])
    ('frames 3–5, 8', 'frames 0, 2, 4, 6 and 6 more')
    """
    joined = IntervalSet(some).ranges()
    words = [str(a) if b == a + 1 else f"{a}–{b - 1}" for a, b in joined[:MOST_SHOWN]]
    more = f" and {len(joined) - MOST_SHOWN} more" if len(joined) > MOST_SHOWN else ""
    return f"frames {', '.join(words)}{more}"


def _without(one: IntervalSet, other: IntervalSet) -> list[tuple[int, int]]:
    """Return the frames of one set that the other hasn't got."""
    return [gap for first, stop in one.ranges() for gap in other.gaps(first, stop)]
