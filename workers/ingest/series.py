"""What the ingest knows of each series: which run has claimed it, and so how its frames are treated."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import ceil
from typing import Final

from ..wire.messages import Claim, SeriesGauge
from .decimation import Decimator

MAX_CLAIMS: Final = 256
MAX_GAUGED: Final = 64

RECENT: Final = 10.0
"""Seconds after its last frame for which it is said that a series doesn't fit into the ring."""

BLOCK_AT: Final = 0.95
"""From this fill of the ring on nothing more is fetched from a detector that can wait."""

RESUME_AT: Final = 0.85
"""Below this fill it is fetched from again. What others overload it with stays below :data:`.ingest_decimation.AIM`."""


@dataclass(slots=True)
class Series:
    """A claimed series."""

    claim: Claim
    decimator: Decimator = field(init=False)
    blocked: float = 0.0
    """Seconds in which its detector was made to wait, up to the last pause's end."""
    blocked_since: float | None = None
    too_large: int = 0
    """Bytes of its largest frame that doesn't fit into the ring."""
    _refused: float = float("-inf")

    def __post_init__(self) -> None:
        self.decimator = Decimator(self.claim.batch, self.claim.row)

    def wait(self, blocked: bool, now: float) -> None:
        """Note whether its detector is made to wait."""
        if blocked and self.blocked_since is None:
            self.blocked_since = now
        elif not blocked and self.blocked_since is not None:
            self.blocked += now - self.blocked_since
            self.blocked_since = None

    def refuse(self, size: int, now: float) -> None:
        """Note a frame that doesn't fit into the ring."""
        self.too_large = max(self.too_large, size)
        self._refused = now

    def misfit(self, ring: int, now: float) -> str | None:
        """Say in a line in how far what comes doesn't fit into a ring of so many bytes, and what would help."""
        if now - max(self._refused, self.decimator.heard) > RECENT:
            return None
        what, here = f"{self.claim.stream} of run {self.claim.run}", f"the {_mib(ring)} MiB of shared memory"
        if self.too_large:
            remedy = f"raise ring_bytes to {8 * self.too_large} or more"
            return f"{what}: a frame of {self.too_large} bytes doesn't fit into {here}, and never comes live: {remedy}"
        if self.decimator.needs > 0:
            batches = f"two batches of {self.claim.batch} frames ({_mib(self.decimator.needs)} MiB)"
            remedy = f"raise ring_bytes to {ceil(1.5 * self.decimator.needs)} or more"
            return f"{what}: {batches} don't fit into {here}: an overload leaves out pieces of batches: {remedy}"
        return None

    def gauge(self, now: float, spilled: tuple[int, int, bool]) -> SeriesGauge:
        """Return how it does; ``spilled`` : frames, bytes, and whether the ledger knows of all of them."""
        waiting = 0.0 if self.blocked_since is None else now - self.blocked_since
        kept = min(max(self.decimator.kept, 0.0), 1.0)
        where = self.claim.endpoint, self.claim.series
        frames, size, known = spilled
        return SeriesGauge(*where, kept, int(1000 * (self.blocked + waiting)), frames, size, known)


def _mib(size: float) -> str:
    return f"{size / (1 << 20):.4g}"


class Claims:
    """The series that runs have claimed, the newest last."""

    def __init__(self) -> None:
        self._series: OrderedDict[tuple[str, int], Series] = OrderedDict()
        self._newest: dict[str, Series] = {}

    def __iter__(self) -> Iterator[Series]:
        return iter(list(self._series.values()))

    def take(self, claim: Claim) -> Series:
        """Take a claim; said again it changes nothing."""
        key = claim.endpoint, claim.series
        known = self._series.get(key)
        if known is None or known.claim != claim:
            known = self._series[key] = Series(claim)
            self._newest[claim.endpoint] = known
            while len(self._series) > MAX_CLAIMS:
                _, gone = self._series.popitem(last=False)
                if self._newest.get(gone.claim.endpoint) is gone:
                    del self._newest[gone.claim.endpoint]
        return known

    def get(self, endpoint: str, series: int) -> Series | None:
        """Return a series, None if no run has claimed it (yet)."""
        return self._series.get((endpoint, series))

    def newest(self, endpoint: str) -> Series | None:
        """Return the series of an endpoint that was claimed last: what comes from there is of it."""
        return self._newest.get(endpoint)

    def gauges(self, now: float, spilled: Callable[[Claim], tuple[int, int, bool]]) -> list[SeriesGauge]:
        """Return how the newest do."""
        newest = list(self._series.values())[-MAX_GAUGED:]
        return [series.gauge(now, spilled(series.claim)) for series in newest]
