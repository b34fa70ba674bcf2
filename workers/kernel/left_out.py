"""Which pixels of a frame don't count: those without data, and those above a cutoff."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def void_of(dtype: np.dtype[Any]) -> int:
    """Return the value of a pixel without data, all bits set: a gap, a dead pixel.

    >>> void_of(np.dtype("<u2"))
    65535
    """
    return int(np.iinfo(dtype).max)


def limit_of(dtype: np.dtype[Any], cutoff: float | None) -> int:
    """Return the greatest value of an unsigned type that counts.

    >>> limit_of(np.dtype("<u2"), None), limit_of(np.dtype("<u2"), 1000.5), limit_of(np.dtype("u1"), 1e9)
    (65534, 1000, 254)
    """
    most = void_of(dtype) - 1
    return most if cutoff is None else min(most, int(min(cutoff, float(most))))


def left_out(frame: NDArray[Any], cutoff: float | None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which pixels don't count, and which of them have no data: all bits set, negative, or not finite."""
    if frame.dtype.kind == "f":
        void = ~np.isfinite(frame)
    elif frame.dtype.kind == "i":
        void = np.asarray(frame < 0)
    else:
        void = np.asarray(frame == void_of(frame.dtype))
    if cutoff is None:
        return void, void
    with np.errstate(invalid="ignore"):
        above = frame > (cutoff if frame.dtype.kind == "f" else int(min(cutoff, 2.0**63)))
    return void | above, void


def counted(frame: NDArray[Any], bad: NDArray[np.bool_]) -> NDArray[Any]:
    """Return a frame to be added up, int64 or float64, 0 where a pixel doesn't count.

    Raises
    ------
    OverflowError
        The sum of all its pixels might not fit.
    """
    clean = np.where(bad, frame.dtype.type(0), frame)
    if frame.dtype.kind == "f":
        return clean.astype(np.float64)
    if clean.size and int(clean.max()) * clean.size >= 2**63:
        raise OverflowError
    return clean.astype(np.int64)
