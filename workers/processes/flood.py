"""What goes wrong too often to be told each time."""

from __future__ import annotations


class Flood:
    """Counts what is wrong, and says which of it is worth a line: the 1st, 2nd, 4th, 8th … A flood fills no log.

    >>> flood = Flood()
    >>> [flood.tell() for _ in range(9)]
    [True, True, False, True, False, False, False, True, False]
    >>> flood.count
    9
    """

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def tell(self) -> bool:
        """Count one more; return whether to speak of it."""
        self.count += 1
        return self.count & (self.count - 1) == 0
