"""Whose turn it is: live batches and those of a backfill share the workers' time."""

from __future__ import annotations

from typing import Final

SHARE: Final = 0.25
"""Of the workers' time, which a backfill has while live batches wait."""

FIRST_COST: Final = 0.05
"""Seconds that a batch is believed to take before any has been seen to end."""

SMOOTH: Final = 8
"""About so many batches back a lane's cost remembers."""


class Turns:
    """Two lanes, each with a credit of the workers' time.

    A batch is charged when it goes, with what those before it took, and corrected when it ends: so a lane whose batches
    are slow gets fewer turns, not more time. A lane that waits for nothing saves nothing up.

    Parameters
    ----------
    share
        The backfill's part of the workers' time while both lanes wait, above 0 and below 1.

    >>> turns = Turns(0.25)
    >>> [turns.next(backfilling=0) for _ in range(8)]
    [False, True, False, False, False, True, False, False]
    """

    def __init__(self, share: float = SHARE) -> None:
        self.cost = {False: FIRST_COST, True: FIRST_COST}
        """Seconds that a batch of each lane takes at present; True is the backfill."""
        self._weight = {False: 1.0 - share, True: share}
        self._spent = {False: 0.0, True: 0.0}
        self._known = False

    def next(self, *, backfilling: int) -> bool:
        """Charge the lane whose turn it is, both waiting, and return whether it is the backfill.

        ``backfilling`` : its batches that are with workers; before one of them has ended there is no second, because
        nobody knows how long they take.
        """
        backfill = self._spent[True] < self._spent[False] and (self._known or not backfilling)
        self.charge(backfill)
        return backfill

    def alone(self, backfill: bool) -> None:
        """Charge a lane while the other one waits for nothing."""
        self.charge(backfill)
        self._spent[not backfill] = self._spent[backfill]

    def charge(self, backfill: bool) -> None:
        """Charge a lane with a batch."""
        self._spent[backfill] += self.cost[backfill] / self._weight[backfill]

    def refund(self, backfill: bool, charged: float) -> None:
        """Take note that a batch that was charged so much took no time: it was done already."""
        self._spent[backfill] -= charged / self._weight[backfill]

    def ended(self, backfill: bool, charged: float, seconds: float) -> None:
        """Take note that a batch that was charged so much has ended, having taken a worker these ``seconds``."""
        self.refund(backfill, charged - seconds)
        self.cost[backfill] += (seconds - self.cost[backfill]) / SMOOTH
        self._known |= backfill
