"""Chunks, checked before compiled code sees them; and what that found wrong, in words."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..decode import check_header, decode
from ..errors import ChunkError, ReductionError, ShapeMismatch
from ..reducers.base import Chunk
from .parts import TILE_BYTES, Layout
from .walk import BLOCKS, CUT, LEFT_OVER, PIXELS

Array = NDArray[Any]


def opened(item: Chunk | Array, layout: Layout, index: int) -> tuple[NDArray[np.uint8], int]:
    """Return a frame's bytes, and what they are: :data:`.walk.BLOCKS` or :data:`.walk.PIXELS`.

    Parameters
    ----------
    item
        A chunk, or a frame that is decoded.
    index
        The frame's number.

    Raises
    ------
    ChunkError
        It isn't what it says it is.
    ShapeMismatch
        It is of another shape or type.
    """
    if item.shape != layout.shape or item.dtype != layout.dtype:
        raise ShapeMismatch(
            f"frame {index}: {item.shape} {item.dtype}, the stream was announced with {layout.shape} {layout.dtype}"
        )
    if not isinstance(item, Chunk):
        return np.ascontiguousarray(item).reshape(-1).view(np.uint8), PIXELS
    try:
        if item.encoding == "bslz4":
            size = layout.pixels * layout.itemsize
            if check_header(memoryview(item.data).cast("B"), size, "bslz4") == TILE_BYTES:
                return np.frombuffer(item.data, np.uint8), BLOCKS
        return decode(item).reshape(-1).view(np.uint8), PIXELS
    except ChunkError as error:
        raise ChunkError(f"frame {index}: {error}") from None


def refused(status: int, index: int, block: int, item: Chunk | Array) -> ReductionError:
    """Return what a walk's status means."""
    size = len(memoryview(item.data).cast("B")) if isinstance(item, Chunk) else item.nbytes
    encoding = item.encoding if isinstance(item, Chunk) else "array"
    if status == CUT:
        what = f"block {block} reaches beyond its end"
    elif status == LEFT_OVER:
        what = "bytes are left over behind its last block"
    else:
        what = f"block {block} isn't LZ4, or not of its size"
    return ChunkError(f"frame {index}: {encoding} chunk of {size} bytes is damaged or cut: {what}")
