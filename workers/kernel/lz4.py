"""One LZ4 block, decoded within its bounds whatever the bytes are.

What is accepted is what liblz4's ``LZ4_decompress_safe`` accepts that fills the output to its end: the last 5 bytes are
literals, and no match begins in the last 12. Only the offset 0, which the format forbids and liblz4 lets pass, is
refused.

Copies are wide: up to ``SPARE`` bytes beyond the output's end are written, so much must be there. Beyond the input's
end nothing is read that isn't in its array.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from .compiling import inner
from .intrinsics import copy16, copy32, copy64, read8, read16, repeat16, write8, write64

SPARE: Final = 64
"""Bytes that must be there behind an output."""

NEAR: Final = 64
"""A sequence that begins nearer than that to the end of the input's array is read byte by byte."""

LAST_LITERALS: Final = 5
LAST_MATCH: Final = 12

LONG: Final = 1024
"""Shortest match of which it is asked whether it can be left out, bytes."""

DAMAGED: Final = -1
"""What :func:`decode_block` returns for a block that isn't one."""


def _orders() -> tuple[Any, Any]:
    orders, steps = np.zeros((16, 16), np.uint8), np.zeros(16, np.int64)
    for offset in range(1, 16):
        orders[offset] = np.arange(16) % offset
        steps[offset] = 16 // offset * offset
    return orders.ravel(), steps


ORDERS, STEPS = _orders()
"""For each offset below 16 the order in which 16 bytes repeat, and how many of them are whole periods."""


@inner
def decode_block(
    source: Any, at: int, end: int, to: Any, size: int, orders: Any, steps: Any, plane: int, run: Any
) -> int:
    """Decode ``source[at:end]`` into ``to[:size]``.

    Parameters
    ----------
    source
        uint8; 0 <= at <= end <= its size.
    to
        uint8, ``size + SPARE`` at least.
    orders, steps
        :data:`ORDERS` and :data:`STEPS`.
    plane
        Bytes of a bit plane, a multiple of 64, if repetitions of it may be left out; else 0.
    run
        (3,) int64, set to what was left out: ``to[run[0]:run[1]]`` repeats the plane at ``run[2]``; or 0.

    Returns
    -------
    0, or :data:`DAMAGED`.
    """
    near = source.size - NEAR
    op = 0
    run[0] = run[1] = 0
    while True:
        if at >= end:
            return DAMAGED
        if at > near:
            return _decode_near(source, at, end, to, op, size)
        token = read8(source, at)
        at += 1
        literals = token >> 4
        if literals < 15:
            copy16(to, op, source, at)
        else:
            more = 255
            while more == 255:
                if at >= end:
                    return DAMAGED
                more = read8(source, at)
                at += 1
                literals += more
            if literals > size - op or literals > end - at:
                return DAMAGED
            if at + literals > near:
                for i in range(literals):
                    write8(to, op + i, read8(source, at + i))
            else:
                i = 0
                while i < literals:
                    copy32(to, op + i, source, at + i)
                    i += 32
        op += literals
        at += literals
        if at >= end:
            return 0 if at == end and op == size else DAMAGED
        if at + 3 > source.size:
            return DAMAGED
        offset = read16(source, at)
        at += 2
        match = token & 15
        if match == 15:
            more = 255
            while more == 255:
                if at >= end:
                    return DAMAGED
                more = read8(source, at)
                at += 1
                match += more
        match += 4
        begin = op - offset
        if offset == 0 or begin < 0 or op > size - LAST_MATCH or op + match > size - LAST_LITERALS:
            return DAMAGED
        if (
            match >= LONG
            and plane > 0
            and _leave_out(source, at, end, to, op, match, offset, orders, steps, plane, run)
        ):
            op += match
            continue
        if offset >= 32:
            i = 0
            while i < match:
                copy32(to, op + i, to, begin + i)
                i += 32
        elif offset >= 16:
            i = 0
            while i < match:
                copy16(to, op + i, to, begin + i)
                i += 16
        else:
            repeat16(to, op, begin, orders, offset * 16, steps[offset], match)
        op += match


@inner
def _leave_out(
    source: Any,
    at: int,
    end: int,
    to: Any,
    op: int,
    match: int,
    offset: int,
    orders: Any,
    steps: Any,
    plane: int,
    run: Any,
) -> bool:
    """Leave out the planes in a long match that repeat one before them, if nothing can refer to them any more.

    The upper bit planes of a frame are all alike: zero, or the detector's gaps. They end in one match, and after that
    there are literals only. Filling 6 of 8 KiB with it, and looking through it, would take a quarter of the time.

    Returns
    -------
    Whether it is done; nothing is otherwise.
    """
    if at >= end or at + 1 + (read8(source, at) >> 4) != end or read8(source, at) >= 15 << 4:
        return False
    begin = op - offset
    if offset < 16 and _all_zero(to, begin, offset):
        begin = op
    elif offset != plane and (offset > plane or plane % offset != 0):
        return False
    stop = op + match
    base = -(-begin // plane) * plane  # the first plane wholly in what repeats
    first = (base // (8 * plane) + 1) * 8 * plane  # a byte plane of which a part is known to differ is made whole
    last = stop // plane * plane
    if first >= last:
        return False
    distance = op - begin if begin < op else 0
    i = op
    if distance == 0:
        while i < first:
            write64(to, i, 0)
            i += 8
    elif distance >= 32:
        while i < first:
            copy32(to, i, to, i - distance)
            i += 32
    elif distance >= 16:
        while i < first:
            copy16(to, i, to, i - distance)
            i += 16
    elif i < first:
        repeat16(to, i, i - distance, orders, distance * 16, steps[distance], first - i)
    i = last
    while i < stop:
        copy32(to, i, to, base + i - last)
        i += 32
    run[0], run[1], run[2] = first, last, base
    return True


@inner
def _all_zero(array: Any, offset: int, count: int) -> bool:
    found = 0
    for i in range(count):
        found |= read8(array, offset + i)
    return found == 0


@inner
def fill_in(to: Any, run: Any, plane: int) -> None:
    """Write what :func:`decode_block` left out."""
    at = run[0]
    while at < run[1]:
        i = 0
        while i < plane:
            copy64(to, at + i, to, run[2] + i)
            i += 64
        at += plane
    run[0] = run[1] = 0


@inner
def _decode_near(source: Any, at: int, end: int, to: Any, op: int, size: int) -> int:
    """Decode the rest byte by byte."""
    while True:
        if at >= end:
            return DAMAGED
        token = read8(source, at)
        at += 1
        literals = token >> 4
        if literals == 15:
            more = 255
            while more == 255:
                if at >= end:
                    return DAMAGED
                more = read8(source, at)
                at += 1
                literals += more
        if literals > size - op or literals > end - at:
            return DAMAGED
        for i in range(literals):
            write8(to, op + i, read8(source, at + i))
        op += literals
        at += literals
        if at == end:
            return 0 if op == size else DAMAGED
        if at + 2 > end:
            return DAMAGED
        offset = read16(source, at)
        at += 2
        match = token & 15
        if match == 15:
            more = 255
            while more == 255:
                if at >= end:
                    return DAMAGED
                more = read8(source, at)
                at += 1
                match += more
        match += 4
        if offset == 0 or offset > op or op > size - LAST_MATCH or op + match > size - LAST_LITERALS:
            return DAMAGED
        for i in range(match):
            write8(to, op + i, read8(to, op + i - offset))
        op += match
