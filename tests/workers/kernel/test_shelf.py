"""Memory is used again when nobody holds it, never before."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from haltere.workers.kernel.shelf import LEAST, Shelf

WIDE, NARROW = np.dtype("<u8"), np.dtype("<u4")


def address(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


def test_the_next_array_gets_the_memory_of_the_last_that_was_let_go_of() -> None:
    shelf = Shelf()
    first = shelf.array((2, LEAST // 8), WIDE)
    place = address(first)
    beside = shelf.array((2, LEAST // 8), WIDE)
    assert address(beside) != place
    del first
    gc.collect()
    other = shelf.array((3, LEAST // 8), NARROW)  # of another shape and type, and not much smaller
    assert address(other) == place
    assert (other.shape, other.dtype, other.flags.c_contiguous) == ((3, LEAST // 8), NARROW, True)
    del other
    gc.collect()
    assert address(shelf.array((3, LEAST // 8), WIDE)) != place  # it is too small


@pytest.mark.parametrize("hold", [lambda array: array[1:, 3:5], memoryview, lambda array: array.view("<u2")])
def test_what_anybody_holds_is_never_given_away(hold: Callable[[NDArray[Any]], Any]) -> None:
    shelf = Shelf()
    array = shelf.array((4, LEAST // 16), NARROW)
    array[:] = 7
    held = hold(array)
    expected = bytes(np.asarray(held))
    del array
    gc.collect()
    shelf.array((4, LEAST // 16), NARROW)[:] = 9
    assert bytes(np.asarray(held)) == expected
