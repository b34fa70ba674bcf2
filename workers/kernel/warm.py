"""Compile, or load what was compiled, before the first frame is there."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np

from ..reducers.base import Chunk
from .compiling import folder
from .kernel import Kernel


def warm_up() -> None:
    """Make the machine code ready in this process.

    It is compiled once per machine, by the first of several processes that ask for it while the others wait; from then
    on it is loaded, in half a second. There is one machine code for all shapes, types and reductions.
    """
    empty = np.zeros((1, 8), np.uint8)
    with _alone():
        Kernel(empty.shape, empty.dtype, {}).run([Chunk(empty.tobytes(), "none", empty.shape, empty.dtype)])


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
