"""Ingest without its sockets: which frames are in the ring, which were let go, and what the broker is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

from ..intervals import IntervalSet
from ..ring import PADDING, Arena
from ..wire.messages import Block, Claim, Dropped, Frames, Gauge
from .decimation import Load, Verdict
from .series import BLOCK_AT, RESUME_AT, Claims, Series

RING_FULL: Final = "ring-full"
DECIMATED: Final = "decimated"
TOO_LARGE: Final = "too-large"
MALFORMED: Final = "malformed"
CHAOS: Final = "chaos"
MAX_TOLD: Final = 4
"""Series of which it is said that the ring is too small for them."""

MAX_RANGES: Final = 1000
"""Ranges in one DROPPED: well below what the message may hold."""


class Source(NamedTuple):
    """What the frames of one FRAMES message have in common."""

    endpoint: str
    series: int
    shape: tuple[int, ...]
    dtype: str


class Fate(Enum):
    """What becomes of a frame that has no place in the ring."""

    DROPPED = "dropped"
    WAIT = "wait"
    """It is to be kept in hand, and nothing more fetched from its detector, until there is room."""
    SPILL = "spill"
    """It is to be written to a file, or, if that can't be, to be dropped."""


class IngestCore:
    """The books of one ring. Every frame that comes is announced, or counted and named as dropped.

    A block lives until the broker frees it. The broker may die: :meth:`held` announces everything anew to the next.
    A message may be lost: :meth:`remind` announces anew what has been held for long.

    ``now`` is in seconds of a monotonic clock, in every method.

    Parameters
    ----------
    ring
        The ring's name, as it stands in messages.
    size
        Its bytes.
    group
        At most so many frames go into one message.
    drop_every, drop_group
        Chaos, for tests: of every ``drop_every`` aligned groups of ``drop_group`` frames the last is dropped.
    """

    def __init__(
        self, ring: str, size: int, *, group: int = 64, drop_every: int | None = None, drop_group: int = 20
    ) -> None:
        self.ring = ring
        self.arena = Arena(size)
        self.load = Load(self.arena.size)
        self.claims = Claims()
        self.frames = 0
        self.bytes = 0
        self.dropped: Counter[str] = Counter()
        self.malformed = 0
        self.stray_frees = 0
        self._group = group
        self._drop_every = drop_every
        self._drop_group = drop_group
        self._held: dict[int, tuple[Source, Block]] = {}
        self._waiting: dict[Source, list[Block]] = {}
        self._full: list[Frames] = []
        self._drops: dict[tuple[str, int, str], IntervalSet] = {}
        self._lives = 0
        self._old = 0
        """The last life that there was at the last reminder: what is held from before is old at the next."""

    def claim(self, claim: Claim) -> None:
        """Take word of which run a series is, and how it wants its frames treated."""
        self.claims.take(claim)

    def place(self, source: Source, frame: int, size: int, encoding: str, now: float) -> Block | Fate:
        """Return the block of the ring that the frame's bytes belong into, or what becomes of it instead.

        The bytes must be there before the next :meth:`take`.
        """
        series = self.claims.get(source.endpoint, source.series)
        waits = series is not None and series.claim.policy == "block"
        reason = self._refuse(series, frame, size, now) if not waits else self._misfit(size)
        offset = None
        if reason is None:
            offset = self.arena.allocate(size)
            if offset is None and series is not None:
                if waits:
                    series.wait(True, now)
                    return Fate.WAIT
                series.decimator.spoil(frame)
        self.frames += 1
        self.bytes += size
        self.load.came(size, now)
        if offset is None and series is not None and series.claim.policy == "spill":
            return Fate.SPILL
        if offset is None:
            self.drop(source.endpoint, source.series, frame, reason or RING_FULL)
            return Fate.DROPPED
        self._lives += 1
        block = Block(frame, offset, size, encoding, self._lives)
        self._held[offset] = (source, block)
        blocks = self._waiting.setdefault(source, [])
        blocks.append(block)
        if len(blocks) >= self._group:
            self._full.append(self._announce(source, self._waiting.pop(source)))
        return block

    def _misfit(self, size: int) -> str | None:
        return TOO_LARGE if size + PADDING > self.arena.size else None

    def _refuse(self, series: Series | None, frame: int, size: int, now: float) -> str | None:
        """Return why a frame isn't to go into the ring, if so."""
        if self._drop_every and (frame // self._drop_group) % self._drop_every == self._drop_every - 1:
            return CHAOS
        misfit = self._misfit(size)
        if misfit is not None or series is None:
            if series is not None:
                series.refuse(size, now)
            return misfit
        verdict = series.decimator.follow(frame, size, now)
        if verdict is None:
            verdict = series.decimator.choose(frame, self.load, self._taken(now), now)
        return {Verdict.LIVE: None, Verdict.DECIMATED: DECIMATED, Verdict.NO_ROOM: RING_FULL}[verdict]

    def _taken(self, now: float) -> float:
        """Return the bytes that are taken, or will be by batches that are coming in."""
        return self.arena.used + sum(series.decimator.reserved(now) for series in self.claims)

    def fetches(self, endpoint: str, now: float) -> bool:
        """Return whether to fetch from a detector: always, but for one that can wait while there is little room."""
        series = self.claims.newest(endpoint)
        if series is None or series.claim.policy != "block":
            return True
        limit = BLOCK_AT if series.blocked_since is None else RESUME_AT
        series.wait(self.arena.used > limit * self.arena.size, now)
        return series.blocked_since is None

    def drop(self, endpoint: str, series: int, frame: int, reason: str) -> None:
        """Let a frame go, and note it."""
        self.dropped[reason] += 1
        self.name(endpoint, series, frame, frame + 1, reason)

    def name(self, endpoint: str, series: int, first: int, stop: int, reason: str) -> None:
        """Let the broker be told of frames that aren't in the ring."""
        self._drops.setdefault((endpoint, series, reason), IntervalSet()).add(first, stop)

    def garble(self, endpoint: str, series: int, frame: int) -> None:
        """Note a message that couldn't be read; ``series`` and ``frame`` are −1 where even they are unknown."""
        self.malformed += 1
        if series >= 0 and frame >= 0:
            self.drop(endpoint, series, frame, MALFORMED)

    def free(self, ring: str, offsets: Sequence[int], lives: Sequence[int], now: float) -> list[Block]:
        """Take blocks back, and return them: they are to be cleared before the next is placed.

        What isn't held, has another life or is of a former ring is counted and left alone.
        """
        freed: list[Block] = []
        if len(lives) != len(offsets):
            self.stray_frees += len(offsets)
            return freed
        for offset, life in zip(offsets, lives, strict=True):
            held = self._held.get(offset)
            if ring != self.ring or held is None or life != held[1].life:
                self.stray_frees += 1
                continue
            del self._held[offset]
            self.arena.release(offset)
            self.load.freed(held[1].size, now)
            freed.append(held[1])
        return freed

    def summary(self) -> dict[str, Any]:
        """Return how full the ring is, in bytes, and what came since this process began."""
        return {
            "ring_bytes": self.arena.size,
            "ring_used": self.arena.used,
            "frames": self.frames,
            "bytes": self.bytes,
            "dropped": dict(self.dropped),
            "malformed": self.malformed,
        }

    def misfits(self, now: float) -> list[str]:
        """Say of the newest series that come just now, a line each, if the ring is too small for them."""
        lines = (series.misfit(self.arena.size, now) for series in list(self.claims)[-MAX_TOLD:])
        return [line for line in lines if line is not None]

    @property
    def pending(self) -> bool:
        """Whether anything waits to be announced."""
        return bool(self._waiting or self._full or self._drops)

    def take(self, *, everything: bool) -> list[Frames | Dropped]:
        """Return what the broker is to be told now: full groups, and with ``everything`` also what is incomplete."""
        messages: list[Frames | Dropped] = list(self._full)
        self._full.clear()
        if everything:
            messages += [self._announce(source, blocks) for source, blocks in self._waiting.items()]
            self._waiting.clear()
            for (endpoint, series, reason), frames in self._drops.items():
                ranges = frames.ranges()
                for start in range(0, len(ranges), MAX_RANGES):
                    messages.append(Dropped(endpoint, series, ranges[start : start + MAX_RANGES], reason))
            self._drops.clear()
        return messages

    def untake(self, messages: Iterable[Frames | Dropped]) -> None:
        """Take back what couldn't be sent: it goes with the next :meth:`take`."""
        for message in messages:
            if isinstance(message, Frames):
                self._full.append(message)
            else:
                drops = self._drops.setdefault((message.endpoint, message.series, message.reason), IntervalSet())
                for first, stop in message.ranges:
                    drops.add(first, stop)

    def held(self) -> list[Frames]:
        """Return announcements of every block in the ring, for a broker that knows of none."""
        self._full.clear()
        self._waiting.clear()
        return self._announced(self._held.values())

    def remind(self) -> list[Frames]:
        """Return announcements of the blocks that were held at the last call, and still are.

        Call it every few seconds. The announcement may have been lost, or the word that frees them.
        """
        old = [(source, block) for source, block in self._held.values() if block.life <= self._old]
        self._old = self._lives
        return self._announced(old)

    def _announced(self, held: Iterable[tuple[Source, Block]]) -> list[Frames]:
        by_source: dict[Source, list[Block]] = {}
        for source, block in held:
            by_source.setdefault(source, []).append(block)
        return [
            self._announce(source, blocks[start : start + self._group])
            for source, blocks in by_source.items()
            for start in range(0, len(blocks), self._group)
        ]

    def gauge(
        self, session: int, now: float, spilled: Callable[[Claim], tuple[int, int, bool]] = lambda _: (0, 0, False)
    ) -> Gauge:
        """Return what becomes of each series; ``spilled`` : frames, bytes, and whether the ledger knows of all."""
        return Gauge(session, self.claims.gauges(now, spilled))

    def _announce(self, source: Source, blocks: list[Block]) -> Frames:
        return Frames(source.endpoint, source.series, self.ring, source.shape, source.dtype, blocks)
