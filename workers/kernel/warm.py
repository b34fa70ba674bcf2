"""Compile, or load what was compiled, before the first frame is there."""

from __future__ import annotations

import numpy as np

from ..reducers.base import Chunk
from .kernel import Kernel


def warm_up() -> None:
    """Make the machine code ready in this process.

    It is compiled once per machine, 10 s; from then on it is loaded, 0.3 s. There is one machine code for all shapes,
    types and reductions.
    """
    empty = np.zeros((1, 8), np.uint8)
    Kernel(empty.shape, empty.dtype, {}).run([Chunk(empty.tobytes(), "none", empty.shape, empty.dtype)])
