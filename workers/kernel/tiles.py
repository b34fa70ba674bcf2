"""Decoded bytes to tiles: a byte plane for each byte of a pixel."""

from __future__ import annotations

from typing import Any

from .compiling import inner
from .intrinsics import (
    covered1,
    covered64,
    read8,
    transpose16,
    transpose32,
    write8,
    write64,
)
from .parts import LOT


@inner
def any_covered(block: Any, offset: int, plane: int, begin: int, end: int, cover: Any, cover_offset: int) -> bool:
    """Return whether one of 8 bit planes has a bit set in a covered pixel, of bytes ``begin`` to ``end`` of a plane."""
    at = begin
    while at + 64 <= end:
        if covered64(block, offset + at, plane, cover, cover_offset + at) != 0:
            return True
        at += 64
    while at < end:
        if covered1(block, offset + at, plane, cover, cover_offset + at) != 0:
            return True
        at += 1
    return False


@inner
def untranspose(block: Any, offset: int, plane: int, begin: int, end: int, to: Any, to_offset: int) -> None:
    """Make 8 bit planes of ``plane`` bytes, ``begin`` to ``end`` of each, into 8 times as many, one per pixel."""
    at = begin
    while at + 32 <= end:
        transpose32(block, offset + at, plane, to, to_offset + 8 * at)
        at += 32
    if at + 16 <= end:
        transpose16(block, offset + at, plane, to, to_offset + 8 * at)
        at += 16
    while at < end:
        for k in range(8):
            value = 0
            for i in range(8):
                value |= (read8(block, offset + i * plane + at) >> k & 1) << i
            write8(to, to_offset + 8 * at + k, value)
        at += 1


@inner
def spread_block(
    block: Any,
    pixels: int,
    itemsize: int,
    cover: Any,
    first: int,
    begin: int,
    end: int,
    px: Any,
    stride: int,
    lane: int,
) -> int:
    """Make a block of bit planes into a frame's tile, its pixels from ``begin`` to ``end``, multiples of 8.

    Returns
    -------
    Byte planes that may have a bit in covered pixels; only these are written.
    """
    plane = pixels // 8
    begin, end = min(begin // 8, plane), min(end // 8, plane)
    high = itemsize
    while high > 0 and not any_covered(block, (high - 1) * 8 * plane, plane, begin, end, cover, first // 8):
        high -= 1
    for j in range(high):
        untranspose(block, j * 8 * plane, plane, begin, end, px, (j * LOT + lane) * stride)
    return high


@inner
def spread_pixels(
    source: Any,
    offset: int,
    begin: int,
    pixels: int,
    itemsize: int,
    cover: Any,
    first: int,
    px: Any,
    stride: int,
    lane: int,
    high: int,
) -> int:
    """Make plain pixels into a frame's tile, from the tile's pixel ``begin`` on; before it are ``high`` byte planes.

    Returns
    -------
    Byte planes of the tile that may have a bit in covered pixels.
    """
    found = 0
    for i in range(pixels):
        place = begin + i
        if read8(cover, (first + place) >> 3) >> ((first + place) & 7) & 1:
            j = itemsize
            while j > found and read8(source, offset + i * itemsize + j - 1) == 0:
                j -= 1
            found = max(found, j)
    if found > high:  # what was not written before these pixels is 0
        for j in range(high, found):
            clear(px, (j * LOT + lane) * stride, begin)
        high = found
    for j in range(high):
        row = (j * LOT + lane) * stride + begin
        for i in range(pixels):
            write8(px, row + i, read8(source, offset + i * itemsize + j))
    return high


@inner
def clear(px: Any, offset: int, count: int) -> None:
    """Set bytes to 0."""
    at = 0
    while at + 8 <= count:
        write64(px, offset + at, 0)
        at += 8
    while at < count:
        write8(px, offset + at, 0)
        at += 1
