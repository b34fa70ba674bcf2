"""Two reductions of the same frames, compared to the bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from .ledger.reader import LedgerReader
from .ledger.rows import BatchRow
from .payload import Piece, unpack
from .reducers.base import Array
from .wire.messages import QUARANTINED


@dataclass(slots=True)
class Comparison:
    """What was compared: ``frames`` of each stream, and those that differ, each with the outputs that do."""

    frames: dict[str, int] = field(default_factory=dict)
    different: dict[str, dict[int, list[str]]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many frames were compared."""
        return sum(self.frames.values())

    @property
    def differing(self) -> int:
        """How many of them differ."""
        return sum(map(len, self.different.values()))

    def add(self, one: BatchRow, other: BatchRow) -> None:
        """Compare two results of one batch; frames that one of them has no result for are left out."""
        both = [k for k in range(min(one.n, other.n)) if max(one.status[k], other.status[k]) < QUARANTINED]
        self.frames[one.stream] = self.frames.get(one.stream, 0) + len(both)
        differing: dict[int, list[str]] = {}
        mine, its = _by_name(one), _by_name(other)
        for key in sorted(mine.keys() | its.keys()):
            name = "/".join(key)
            if key not in mine or key not in its:
                _note(differing, (one.first + k for k in both), name)
            elif mine[key].kind == "nav":
                a, b = mine[key].array, its[key].array
                _note(differing, (one.first + k for k in both if not same(a[k], b[k])), name)
            elif len(both) == one.n == other.n and not same(mine[key].array, its[key].array):
                _note(differing, range(one.first, one.first + one.n), name)  # a sum: any of its frames
        if differing:
            self.different.setdefault(one.stream, {}).update(differing)


def compare(reader: LedgerReader, one: str, other: str) -> Comparison:
    """Compare what the ledger has of two reductions, batch by batch where both have it under one cfg."""
    found = Comparison()
    known = {(stream.stream, stream.cfg) for stream in reader.streams(other)}
    for stream in reader.streams(one):
        if (stream.stream, stream.cfg) not in known:
            continue
        first = 0
        while rows := reader.batches(one, stream.stream, stream.cfg, first, 16):
            until = rows[-1].first + 1
            theirs = {row.first: row for row in reader.batches(other, stream.stream, stream.cfg, first, 16)}
            for row in rows:
                if row.first in theirs:
                    found.add(row, theirs[row.first])
            first = until
    return found


def same(one: Array, other: Array) -> bool:
    """Say whether two arrays are the same to the bit: also in the sign of a zero, and in what a NaN holds.

    >>> same(np.array([0.0, np.nan]), np.array([0.0, np.nan])), same(np.array([0.0]), np.array([-0.0]))
    (True, False)
    """
    one, other = np.ascontiguousarray(one), np.ascontiguousarray(other)
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def _by_name(row: BatchRow) -> Mapping[tuple[str, str], Piece]:
    return {(piece.recipe, piece.name): piece for piece in unpack(row.arrays, row.payload, row.n)}


def _note(differing: dict[int, list[str]], frames: Iterable[int], name: str) -> None:
    for frame in frames:
        differing.setdefault(frame, []).append(name)
