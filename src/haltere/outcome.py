"""What came of a run, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .workers.errors import PoolError
from .workers.pool.view import PoolView


@dataclass(frozen=True, slots=True)
class Outcome:
    """Counts are summed over the detectors that a recipe reads. ``frames_per_s`` is over ``wall_s``."""

    raw_uid: str
    processed_uid: str
    expected: int
    live: int
    backfilled: int
    quarantined: int
    lost: int
    duplicates: int
    wall_s: float
    frames_per_s: float
    nexus: str
    catalog: str

    @property
    def whole(self) -> bool:
        """Whether every expected frame was reduced."""
        return self.expected > 0 and self.live + self.backfilled == self.expected

    def json(self) -> dict[str, Any]:
        """Return it as one JSON object."""
        return asdict(self)


def outcome(raw_uid: str, stop: Mapping[str, Any], pool: PoolView, wall: float, catalog: Path) -> Outcome:
    """Return the outcome that a processed run's stop document tells of.

    Raises
    ------
    PoolError
        The sink doesn't answer.
    """
    sink = pool.status()["sink"]
    if sink is None:
        raise PoolError(f"the sink doesn't answer: duplicates can't be counted (see {pool.directory}/logs/sink.log)")
    counts = {
        name: sum(int(accounts[name]) for accounts in stop["frames"].values())
        for name in ("expected", "live", "backfilled", "quarantined", "lost")
    }
    return Outcome(
        raw_uid=raw_uid,
        processed_uid=stop["run_start"],
        **counts,
        duplicates=sink["duplicates"],
        wall_s=round(wall, 3),
        frames_per_s=round(counts["expected"] / wall, 1),
        nexus=stop.get("nexus", ""),
        catalog=str(catalog),
    )
