"""What a backfill says: how far it is, and in the end what came of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .workers.wire.messages import STATUS_NAMES


@dataclass(frozen=True, slots=True)
class Advance:
    """How far it is: frames done of those owed, frames per second, and how many seconds it will take at that rate."""

    done: int
    owed: int
    rate: float
    eta_s: float | None


@dataclass(slots=True)
class Backfilled:
    """What came of it. Counts are summed over the detectors; ``frames`` has each one's."""

    raw_uid: str
    processed_uid: str
    mode: str
    frames: dict[str, dict[str, int]] = field(default_factory=dict)
    supersedes: str | None = None
    reduced: int = 0
    """Frames that were reduced now."""
    taken_over: int = 0
    """Frames whose results were taken over from the run that this one supersedes."""
    compared: int | None = None
    different: int | None = None
    differences: dict[str, list[int]] = field(default_factory=dict)
    reasons: dict[str, dict[str, str]] = field(default_factory=dict)
    """Why frames are quarantined or lost, per detector."""
    nothing_to_do: bool = False
    nexus: str = ""
    wall_s: float = 0.0

    @property
    def expected(self) -> int:
        """Frames that were promised."""
        return sum(each["expected"] for each in self.frames.values())

    def count(self, status: str) -> int:
        """Return how many frames ended so."""
        return sum(each[status] for each in self.frames.values())

    @property
    def owed(self) -> int:
        """Frames without an end."""
        return self.expected - sum(self.count(status) for status in STATUS_NAMES)

    @property
    def whole(self) -> bool:
        """Whether nothing is left to be done of what was asked for."""
        left = self.owed + self.count("lost") + (0 if self.mode == "owed" else self.count("quarantined"))
        return left == 0 and not self.different

    @property
    def words(self) -> str:
        """What came of it in one line."""
        left = "".join(
            f", {n} {what}"
            for what, n in (("owed", self.owed), *((name, self.count(name)) for name in ("quarantined", "lost")))
            if n
        )
        if self.nothing_to_do:
            return f"nothing to do: processed run {self.processed_uid} is complete{left}"
        taken = f", {self.taken_over} taken over" if self.taken_over else ""
        return f"processed run {self.processed_uid}: {self.reduced} frames reduced{taken}{left}"

    def json(self) -> dict[str, Any]:
        """Return it as one JSON object."""
        counts = {"expected": self.expected, **{status: self.count(status) for status in STATUS_NAMES}}
        return {**asdict(self), **counts, "owed": self.owed, "whole": self.whole}
