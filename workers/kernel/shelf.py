"""Memory of results that nobody holds any more, for the next ones."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

LEAST: Final = 1 << 25
"""Bytes. What is smaller, malloc keeps for the next one itself; larger memory it gives back to the system, and has the
system set new memory to 0, page by page: without huge pages that takes longer than to decode the frames."""


class Shelf:
    """Arrays, the last of which that was let go of gives its memory to the next one.

    An array's memory is here again when nothing refers to it: no view of it, nor anything that has its buffer.
    """

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an array that holds anything."""
        size = math.prod(shape) * dtype.itemsize
        if size < LEAST:
            return np.empty(shape, dtype)
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(0, np.uint8)
        if not size <= memory.size <= 2 * size:
            memory = np.empty(size, np.uint8)
        return np.asarray(_Lent(memory, self._free))[:size].view(dtype).reshape(shape)


class _Lent:
    """What an array refers to as long as it, or a view of it, is there."""

    def __init__(self, memory: NDArray[np.uint8], free: list[NDArray[np.uint8]]) -> None:
        self.__array_interface__ = memory.__array_interface__
        self._memory, self._free = memory, free

    def __del__(self) -> None:
        self._free[:] = [self._memory]
