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
from .intrinsics import copy16, copy32, fill32, read8, read16, repeat16, write8

SPARE: Final = 64
"""Bytes that must be there behind an output."""

NEAR: Final = 64
"""A sequence that begins nearer than that to the end of the input's array is read byte by byte."""

LAST_LITERALS: Final = 5
LAST_MATCH: Final = 12

DAMAGED: Final = -1
"""What :func:`decode_block` returns for a block that isn't one."""


def _orders() -> tuple[Any, Any]:
    orders, steps = np.zeros((16, 32), np.uint8), np.zeros(16, np.int64)
    for offset in range(1, 16):
        orders[offset] = np.arange(32) % offset
        steps[offset] = 32 // offset * offset
    return orders.ravel(), steps


ORDERS, STEPS = _orders()
"""For each offset below 16 the order in which 32 bytes repeat, and how many of them are whole periods."""


@inner
def decode_block(source: Any, at: int, end: int, to: Any, size: int, orders: Any, steps: Any) -> int:
    """Decode ``source[at:end]`` into ``to[:size]``.

    Parameters
    ----------
    source
        uint8; 0 <= at <= end <= its size.
    to
        uint8, ``size + SPARE`` at least.
    orders, steps
        :data:`ORDERS` and :data:`STEPS`.

    Returns
    -------
    0, or :data:`DAMAGED`.
    """
    near = source.size - NEAR
    op = 0
    while True:
        if at >= end:
            return DAMAGED
        if at > near:
            return _decode_near(source, at, end, to, op, size)
        token = read8(source, at)
        at += 1
        literals = token >> 4
        copy16(to, op, source, at)
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
        # A load that reaches into what was just stored waits for it. Branches that are foretold well enough cost less
        # than ways that are the same for all offsets and lengths, each of which waits.
        if offset >= 16:
            copy16(to, op, to, begin)
            if match > 16:
                i = 16
                if offset >= 32:
                    while i < match:
                        copy32(to, op + i, to, begin + i)
                        i += 32
                else:
                    while i < match:
                        copy16(to, op + i, to, begin + i)
                        i += 16
        elif match <= 16:
            repeat16(to, op, to, begin, orders, offset * 32)
        else:
            fill32(to, op, op + match, begin, orders, offset * 32, steps[offset])
        op += match


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
