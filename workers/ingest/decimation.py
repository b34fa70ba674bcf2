"""Which batches go live when frames come faster than they are reduced: as many as can, spread evenly over the scan.

A full ring that lets in whatever finds room takes a long stretch, then nothing for long, and seldom a whole batch: a
batch of which one frame was dropped is read from memory *and* from the file, and waits for both. So the choice is made
ahead, for whole batches. :class:`Load` says which fraction can be kept, :class:`Decimator` which batches these are.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum
from math import exp, sqrt
from typing import Final

LOW: Final = 0.6
"""Up to this fill of the ring nothing is left out, unless it was fuller: bursts and pauses pass through."""

AIM: Final = 0.8
"""The fill at which no more is let in than the workers manage."""

HUNGRY: Final = 2
"""Batches waiting for a worker up to which more are always welcome."""

QUEUE: Final = 8
"""Batches waiting for a worker that a lasting overload settles at: a result is not older than these take."""

GLUT: Final = 20
"""Batches waiting for a worker from which on half of what the workers manage is let in: less would leave a hole."""

OVER: Final = 0.95
"""An overload is over when the workers manage this part of what comes, and are hungry."""

SPAN: Final = 1.0
"""Seconds over which what comes is compared with what is freed, and for which a word of the broker's counts."""

FLOOR: Final = 1 / 64
"""The least fraction that the workers are believed to manage: at the start they haven't freed anything yet."""

STALE: Final = 1.0
"""Seconds after which a batch that stopped coming has no claim to room any more."""

GOLDEN: Final = (sqrt(5) - 1) / 2
SILVER: Final = sqrt(2) - 1
OPEN: Final = 8
"""Batches whose choice is remembered: frames come in order but for a few."""


class Verdict(Enum):
    """What becomes of a frame."""

    LIVE = "live"
    DECIMATED = "decimated"
    NO_ROOM = "no room"


class Load:
    """How full a ring is, how many batches wait for a worker, and how much of what comes is freed again.

    Parameters
    ----------
    size
        The ring's bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.lasting = False
        """The ring was full beyond :data:`LOW`, and the workers haven't caught up since."""
        self._came = 0.0
        self._freed = 0.0
        self._at = 0.0
        self._queued = 0
        self._told = float("-inf")

    def came(self, size: int, now: float) -> None:
        """Note bytes that came, whatever became of them. ``now`` : s of a monotonic clock, as in every method."""
        self._decay(now)
        self._came += size

    def freed(self, size: int, now: float) -> None:
        """Note bytes that are free again: the workers have done so much."""
        self._decay(now)
        self._freed += size

    def waiting(self, queued: int, now: float) -> None:
        """Note how many batches wait for a worker."""
        self._queued = queued
        self._told = now

    @property
    def ratio(self) -> float:
        """Which part of what comes the workers manage, by the last second or so; at most 1."""
        return min(max(self._freed / self._came, FLOOR), 1.0) if self._came > 0 else 1.0

    def fraction(self, used: float, now: float) -> float:
        """Return which part of the batches may be kept while ``used`` bytes are taken, 0 to 1.

        By the ring's fill: everything up to :data:`LOW`, what the workers manage at :data:`AIM`, nothing when it is
        full, and between these without a step. In a lasting overload also by the batches that wait for a worker, in the
        same way: a ring full of them would only make results late.

        >>> load = Load(1000)
        >>> load.came(500, now=0.0), load.freed(100, now=0.0)
        (None, None)
        >>> [round(load.fraction(used, 0.0), 2) for used in (600, 700, 800, 900, 1000)]
        [1.0, 0.45, 0.2, 0.1, 0.0]
        """
        fill, told = used / self.size, now - self._told < SPAN
        hungry = told and self._queued <= HUNGRY
        if fill > LOW:
            self.lasting = True
        elif hungry and self.ratio >= OVER:
            self.lasting = False
        if hungry or not self.lasting:
            return 1.0
        by_fill = self._curve(fill, LOW, AIM, 1.0, 0.0)
        return min(by_fill, self._curve(self._queued, HUNGRY, QUEUE, GLUT, 0.5)) if told else by_fill

    def _curve(self, value: float, low: float, aim: float, high: float, least: float) -> float:
        """Return 1 up to ``low``, what the workers manage at ``aim``, and ``least`` of that from ``high`` on."""
        if value <= aim:
            return float(self.ratio ** max((value - low) / (aim - low), 0.0))
        part = min(max((value - aim) / (high - aim), 0.0), 1.0)
        return float(self.ratio * (1.0 - part * (1.0 - least)))

    def _decay(self, now: float) -> None:
        if now > self._at:
            factor = exp((self._at - now) / SPAN)
            self._came *= factor
            self._freed *= factor
            self._at = now


def phase(first: int, unit: int, row: int) -> float:
    """Return a number from 0 to 1 for a piece of the scan: the piece is kept if it is below the fraction to keep.

    The multiples of an irrational number modulo 1 fill that range evenly, so whatever the fraction is, the pieces that
    are kept lie evenly: along a row by the golden ratio, the most even of all, and from row to row by the silver one.
    One number alone would not do: 13 steps of the golden ratio are 8.03, so in rows of 13 pieces the same columns would
    be left out in twenty rows on end.

    Parameters
    ----------
    first
        The piece's first frame.
    unit
        Its frames.
    row
        Frames in a row of the scan; 0: it has none, or shorter ones than a piece.

    >>> [round(phase(first, 20, 0), 3) for first in (0, 20, 40, 60)]
    [0.0, 0.618, 0.236, 0.854]
    """
    if row < unit:
        return first // unit * GOLDEN % 1.0
    number, place = divmod(first, row)
    return (place / unit * GOLDEN + number * SILVER) % 1.0


class Decimator:
    """The choice for one series: which of its batches go live.

    Parameters
    ----------
    batch
        Frames in a batch; the k-th begins with frame ``k * batch``.
    row
        Frames in a row of the scan, 0 if it has none.
    """

    def __init__(self, batch: int, row: int = 0) -> None:
        self.batch = batch
        self.row = row
        self.kept = 1.0
        """Which part of the batches goes live at present."""
        self._size = 0.0
        self._unit = batch
        self._open: OrderedDict[int, Verdict] = OrderedDict()
        self._left = 0
        """Frames of the newest batch that goes live which are still to come."""
        self._newest = -1
        self.heard = float("-inf")
        """When a frame of it came last."""

    @property
    def needs(self) -> float:
        """Bytes of the two batches that a ring has to hold so that whole ones can be left out; 0 if it does."""
        return 2 * self.batch * self._size if self._unit < self.batch else 0.0

    def reserved(self, now: float) -> float:
        """Return how many bytes will still be taken by the batch that is coming in."""
        return self._left * self._size if now - self.heard < STALE else 0.0

    def follow(self, frame: int, size: int, now: float) -> Verdict | None:
        """Return what becomes of a frame of ``size`` bytes, None if its batch is new: then :meth:`choose`."""
        self._size += (size - self._size) / 8 if self._size else size
        self.heard = now
        number = frame // self._unit
        if number == self._newest and self._left:
            self._left -= 1
        return self._open.get(number)

    def choose(self, frame: int, load: Load, used: float, now: float) -> Verdict:
        """Return what becomes of a frame that begins a batch, while ``used`` bytes are taken or reserved."""
        used -= self.reserved(now)  # by the batch before, which is over
        self._choose_unit(load.size)
        number = frame // self._unit
        verdict = self._open[number] = self._judge(number, load, used, now)
        while len(self._open) > OPEN:
            self._open.popitem(last=False)
        if number > self._newest:
            self._newest = number
            self._left = self._unit - 1 if verdict is Verdict.LIVE else 0
        self.kept += ((verdict is Verdict.LIVE) - self.kept) / 16
        return verdict

    def spoil(self, frame: int) -> None:
        """Let the rest of a frame's batch go: this frame found no room, so all of it is read from the file anyway."""
        number = frame // self._unit
        self._open[number] = Verdict.NO_ROOM
        if number == self._newest:
            self._left = 0

    def _judge(self, number: int, load: Load, used: float, now: float) -> Verdict:
        fraction = load.fraction(used, now)
        if phase(number * self._unit, self._unit, self.row) >= fraction:
            return Verdict.DECIMATED
        # While it comes in, the workers free as much as they manage of what comes.
        needed = self._unit * self._size * (1.0 - load.ratio)
        return Verdict.LIVE if used <= LOW * load.size or used + needed <= load.size else Verdict.NO_ROOM

    def _choose_unit(self, size: int) -> None:
        """Choose pieces of batches where two whole ones don't fit into the ring, batches again where three do."""
        unit = self._unit
        while unit > 1 and 2 * unit * self._size > size:
            unit //= 2
        if unit < self.batch and 3 * self.batch * self._size <= size:
            unit = self.batch
        if unit != self._unit:
            self._unit = unit
            self._open.clear()
            self._newest, self._left = -1, 0
