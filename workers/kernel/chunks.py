"""Chunks, checked before compiled code sees them; and what that found wrong, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..decode import check_header, decode
from ..errors import ChunkError, ShapeMismatch
from ..reducers.base import Chunk
from .parts import TILE_BYTES, Layout
from .walk import BLOCKS, CUT, LEFT_OVER, PIXELS

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Opened:
    """A frame's bytes as a walk takes them.

    ``index`` : the frame's number; ``content`` : its bytes; ``kind`` : what they are, :data:`.walk.BLOCKS` or
    :data:`.walk.PIXELS`; ``decoded`` : how many of them were made here; ``what`` : for a message.
    """

    index: int
    content: NDArray[np.uint8]
    kind: int
    decoded: int
    what: str


def opened(item: Chunk | Array, layout: Layout, index: int) -> Opened:
    """Return a frame's bytes, decoded if a walk doesn't read them as they are.

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
        content = np.ascontiguousarray(item).reshape(-1).view(np.uint8)
        return Opened(index, content, PIXELS, 0, "frame")
    try:
        if item.encoding == "bslz4":
            data = memoryview(item.data).cast("B")
            if check_header(data, layout.pixels * layout.itemsize, "bslz4") == TILE_BYTES:
                return Opened(index, np.frombuffer(data, np.uint8), BLOCKS, 0, f"bslz4 chunk of {len(data)} bytes")
        content = decode(item).reshape(-1).view(np.uint8)
    except ChunkError as error:
        raise ChunkError(f"frame {index}: {error}") from None
    made = 0 if item.encoding == "none" else content.size
    return Opened(index, content, PIXELS, made, f"{item.encoding} chunk")


def refused(status: int, block: int, frame: Opened) -> ChunkError:
    """Return what a walk's status means."""
    if status == CUT:
        what = f"block {block} reaches beyond its end"
    elif status == LEFT_OVER:
        what = "bytes are left over behind its last block"
    else:
        what = f"block {block} isn't LZ4, or not of its size"
    return ChunkError(f"frame {frame.index}: {frame.what} is damaged or cut: {what}")
