"""Two results agree only if every bit does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from haltere.workers.comparing import Comparison
from haltere.workers.ledger.rows import BatchRow
from haltere.workers.payload import pack, unpack
from haltere.workers.wire.messages import LOST

from .flying import row


def changed(before: BatchRow, output: str, at: Sequence[int], bit: int = 1) -> BatchRow:
    """Return the row with one bit of an output turned."""
    pieces = []
    for piece in unpack(before.arrays, before.payload, before.n):
        array = piece.array.copy()
        if piece.name == output:
            flat = array.reshape(-1).view(f"u{array.dtype.itemsize}")
            flat[np.ravel_multi_index(tuple(at), array.shape)] ^= bit
        pieces.append(piece._replace(array=array))
    arrays, payload = pack(pieces)
    return replace(before, arrays=arrays, payload=payload)


def compared(one: BatchRow, other: BatchRow) -> Comparison:
    found = Comparison()
    found.add(one, other)
    return found


def test_the_same_results_agree() -> None:
    found = compared(row(0), row(0))
    assert (found.count, found.differing) == (4, 0)


def test_one_bit_of_one_frame_is_found_and_named() -> None:
    found = compared(row(4), changed(row(4), "intensity", (2, 5)))
    assert found.different == {"eiger": {6: ["xrd/intensity"]}}


def test_a_sum_that_differs_is_of_all_its_frames() -> None:
    found = compared(row(4), changed(row(4), "sum", (3,)))
    assert found.different == {"eiger": {frame: ["xrd/sum"] for frame in range(4, 8)}}


def test_frames_without_a_result_are_not_compared_and_sums_with_them_neither() -> None:
    bad = replace(changed(row(4), "sum", (3,)), status=bytes([0, LOST, 0, 0]))
    found = compared(row(4), bad)
    assert (found.count, found.differing) == (3, 0)
