"""Compile, or load what was compiled, before the first frame is there."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np

from ..reducers.base import Chunk
from .bins import Bins
from .kept import folder
from .kernel import Kernel
from .nnls import NonNegative
from .spectra import Projection
from .tables import BinTable


def warm_up() -> None:
    """Make the machine code ready in this process.

    It is compiled once per machine, by the first of several processes that ask for it while the others wait; from then
    on it is loaded, at once. There is one machine code for all shapes, types and reductions of images, and one for
    spectra.
    """
    empty = np.zeros((1, 8), np.uint8)
    table = BinTable(
        shape=empty.shape,
        coefficients=np.full(8, 0.5, np.float32),
        indices=np.arange(8, dtype=np.int32),
        starts=np.array([0, 8]),
        norm=np.ones(8),
    )
    with _alone():
        Kernel(empty.shape, empty.dtype, {"bins": Bins(table=table)}).run(
            [Chunk(empty.tobytes(), "none", empty.shape, empty.dtype)]
        )
        areas = Projection(np.ones((1, 8))).run([np.zeros((1, 8), np.uint32)], np.ones((1, 1))).areas
        NonNegative(np.eye(1), np.ones(1, np.bool_)).solve(areas - 1)


@contextmanager
def _alone() -> Iterator[None]:
    """Wait until no other process compiles."""
    kept = folder()
    if kept is None:
        yield
        return
    with open(kept / "lock", "w") as file:
        with suppress(OSError):  # a network file system without locks: then each compiles, which does no harm
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
