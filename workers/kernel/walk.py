"""The loop: over the tiles of a lot of frames, decode what somebody needs and hand it on while it is in the cache."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .binning import add_bins
from .compiling import entry, inner, merged
from .images import add_images
from .intrinsics import memory, prefetch, read32_big
from .lz4 import ORDERS, SPARE, STEPS, decode_block
from .parts import LOT, SLACK, TILE_BYTES, Layout
from .tiles import clear, spread_block, spread_pixels
from .whole import add_whole

HEADER: Final = 12
"""Bytes before the first block of a chunk."""

BLOCKS, PIXELS = 0, 1
"""What a lane's bytes are: a bslz4 chunk with blocks of :data:`TILE_BYTES`, or plain pixels."""

GROUP: Final = 256
"""Pixels of which 8 bit planes are made into bytes at once."""

CUT, BAD_BLOCK, LEFT_OVER, REFUSED = 1, 2, 3, 4
"""What can be wrong: a block reaches beyond the chunk, it isn't LZ4 or not of its size, bytes are left over at the end,
a consumer refused."""

WELL: Final = -1
"""Instead of a lane in which something is wrong."""


class Frames(NamedTuple):
    """The lanes of a lot.

    ``address``, ``size`` : (16,) int64, where its bytes are, and how many; ``kind`` : (16,) int64.
    """

    address: NDArray[np.int64]
    size: NDArray[np.int64]
    kind: NDArray[np.int64]


class Scratch(NamedTuple):
    """Memory of a walk."""

    px: NDArray[np.uint8]
    block: NDArray[np.uint8]
    at: NDArray[np.int64]
    high: NDArray[np.int64]
    wrong: NDArray[np.int64]
    """(2,): the lane in which something is wrong, and the block."""


class Tables(NamedTuple):
    """What a walk looks up.

    ``cover`` : 1 bit per pixel that somebody wants; ``needed`` : uint8 per tile; ``begins``, ``ends`` : per tile,
    between which of its pixels all those are, multiples of :data:`GROUP`; ``orders``, ``steps`` : of LZ4.
    """

    cover: NDArray[np.uint8]
    needed: NDArray[np.uint8]
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    orders: NDArray[np.uint8]
    steps: NDArray[np.int64]


def make_scratch(layout: Layout) -> Scratch:
    """Return memory for walks over frames of this layout."""
    return Scratch(
        np.zeros(layout.itemsize * LOT * layout.stride, np.uint8),
        np.zeros(TILE_BYTES + SPARE, np.uint8),
        np.zeros(LOT, np.int64),
        np.zeros(LOT, np.int64),
        np.zeros(2, np.int64),
    )


def make_tables(layout: Layout, coverage: NDArray[np.bool_]) -> Tables:
    """Return the tables for these pixels."""
    padded = np.zeros(layout.tiles * layout.tile, bool)
    padded[: layout.pixels] = coverage.ravel()
    groups: NDArray[np.bool_] = np.any(padded.reshape(layout.tiles, layout.tile // GROUP, GROUP), axis=2)
    needed: NDArray[np.uint8] = np.any(groups, axis=1).astype(np.uint8)
    begins = GROUP * groups.argmax(axis=1)
    ends = layout.tile - GROUP * groups[:, ::-1].argmax(axis=1)
    bits: NDArray[np.uint8] = np.packbits(padded, bitorder="little")
    cover = np.concatenate((bits, np.zeros(64, np.uint8)))
    return Tables(cover, needed, begins, ends, ORDERS, STEPS)


@entry
def walk(
    frames: int,
    pixels: int,
    itemsize: int,
    lanes: Any,
    tables: Any,
    scratch: Any,
    bins_plan: Any,
    bins_state: Any,
    images_plan: Any,
    images_state: Any,
    whole_plan: Any,
    whole_state: Any,
) -> int:
    """Walk over a lot.

    Parameters
    ----------
    frames
        In the lot, 1 to 16.
    pixels, itemsize
        Of a frame.

    Returns
    -------
    0, or what is wrong; ``scratch.wrong`` says where then.
    """
    per_tile = TILE_BYTES // itemsize
    stride = per_tile + SLACK
    px, high, at = scratch.px, scratch.high, scratch.at
    scratch.wrong[1] = -1
    for lane in range(frames):
        at[lane] = HEADER if lanes.kind[lane] == BLOCKS else 0
    zero: Any = np.int64(0)  # a plain 0 has a type of its own: all that gets it is compiled twice
    tile = zero
    first = zero
    while first < pixels:
        count = min(per_tile, pixels - first)
        if tables.needed[tile] == 0:
            lane = _pass_over(frames, count, itemsize, lanes, at)
            if lane != WELL:
                scratch.wrong[0], scratch.wrong[1] = lane, tile
                return CUT
        else:
            top = zero
            for lane in range(frames):
                status = _tile(lane, tile, first, count, itemsize, stride, lanes, tables, scratch)
                if status != 0:
                    scratch.wrong[0], scratch.wrong[1] = lane, tile
                    return status
                top = max(top, high[lane])
            for lane in range(frames):
                for j in range(high[lane], top):
                    clear(px, (j * LOT + lane) * stride, count)
                if whole_plan.active[0] != 0:
                    add_whole(px, stride, itemsize, high[lane], lane, first, count, pixels * itemsize, whole_state)
            if images_plan.active[0] != 0:
                add_images(px, stride, itemsize, high, frames, tile, count, images_plan, images_state)
            if bins_plan.active[0] != 0:
                status = add_bins(px, stride, itemsize, top, high, frames, tile, first, count, bins_plan, bins_state)
                if status != 0:
                    return REFUSED
        tile += 1
        first += count
    for lane in range(frames):
        # Where the last pixels are compressed, dectris-compression lets more bytes follow, and so do HDF5's filters.
        if at[lane] != lanes.size[lane] and (pixels & 7 != 0 or lanes.kind[lane] != BLOCKS):
            scratch.wrong[0] = lane
            return LEFT_OVER
    return 0


@inner
def _pass_over(frames: int, count: int, itemsize: int, lanes: Any, at: Any) -> int:
    """Pass over a tile that nobody needs, by the lengths of its blocks.

    The next block's length is brought into the cache meanwhile: the time is that of the memory otherwise.

    Returns
    -------
    :data:`WELL`, or the lane whose bytes end too early.
    """
    tail = (count & 7) * itemsize
    for lane in range(frames):
        place = at[lane]
        if lanes.kind[lane] == BLOCKS:
            if count >= 8:
                if place + 4 > lanes.size[lane]:
                    return lane
                source = memory(lanes.address[lane], lanes.size[lane])
                place += 4 + read32_big(source, place)
                prefetch(source, place)
            place += tail
        else:
            place += count * itemsize
        if place > lanes.size[lane]:
            return lane
        at[lane] = place
    return WELL


@merged
def _tile(
    lane: int, tile: int, first: int, count: int, itemsize: int, stride: int, lanes: Any, tables: Any, scratch: Any
) -> int:
    """Bring a tile of one frame into ``px``."""
    source = memory(lanes.address[lane], lanes.size[lane])
    at = scratch.at[lane]
    high = 0
    tail = count
    if lanes.kind[lane] == BLOCKS:
        tail = count & 7  # the elements after the last group of 8 aren't compressed
        whole = count - tail
        if whole > 0:
            if at + 4 > source.size:
                return CUT
            end = at + 4 + read32_big(source, at)
            if end > source.size:
                return CUT
            prefetch(source, end)  # the next block's length, for the next tile
            status = decode_block(source, at + 4, end, scratch.block, whole * itemsize, tables.orders, tables.steps)
            if status != 0:
                return BAD_BLOCK
            begin, stop = tables.begins[tile], tables.ends[tile]
            high = spread_block(
                scratch.block, whole, itemsize, tables.cover, first, begin, stop, scratch.px, stride, lane
            )
            at = end
    if tail > 0:
        if at + tail * itemsize > source.size:
            return CUT
        high = spread_pixels(
            source, at, count - tail, tail, itemsize, tables.cover, first, scratch.px, stride, lane, high
        )
        at += tail * itemsize
    scratch.at[lane] = at
    scratch.high[lane] = high
    return 0
