"""The image parts of a walk, gathered into one table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from . import operations as op
from .left_out import void_of
from .operations import CROP, FIELDS, LANES, NUMBERS, PAD, REGIONS, RUN, SHRINK, SUM, ImagePlan, ImageState
from .parts import LOT, Array, Layout
from .runs import Runs

INACTIVE = (
    ImagePlan(*(np.zeros(1, dtype) for dtype in ("i8", "i8", "i8", "i4", "u2", "i8", "i8"))),
    ImageState(*(np.zeros(1, dtype) for dtype in ("i8", "i8", "u4", "u2", "i8", "i8", "i8", "u4", "u1"))),
)
"""Of a walk without image parts."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A row of the table, and its runs.

    ``kind``, ``limit``, ``factor``, ``wide``, ``peaks`` : as in :mod:`.operations`. ``targets`` : for each run.
    ``shape`` : of what it makes of a frame: (regions,), a piece's rows and columns, or rows and columns of cells.
    ``cells`` : pixels that count in each cell of a smaller frame.
    """

    kind: int
    runs: Runs
    targets: NDArray[np.int64]
    shape: tuple[int, ...]
    limit: int = 0
    factor: int = 1
    wide: bool = False
    peaks: bool = False
    cells: NDArray[np.uint16] = field(default_factory=lambda: np.empty(0, np.uint16))

    @property
    def size(self) -> int:
        """Regions, pixels or cells."""
        return int(np.prod(self.shape))


class ImagePart(ABC):
    """A reduction of frames as images, for :class:`Images` to gather."""

    adds: ClassVar[bool] = False
    """Whether its results are of all frames together."""

    @abstractmethod
    def coverage(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return the pixels that it wants.

        Raises
        ------
        ReductionError
            Frames of this shape can't be reduced so.
        """

    @abstractmethod
    def operation(self, layout: Layout) -> Operation:
        """Return what the walk is to do."""

    @abstractmethod
    def outputs(self, layout: Layout, frames: int) -> dict[str, Array]:
        """Return room for results, per frame (frames, …), or zeros for what adds up.

        Pieces and smaller frames are ``frames``: the walk writes each where it belongs.
        """

    @abstractmethod
    def reference(self, frame: Array) -> dict[str, Array]:
        """Return the same of one decoded frame of any type of pixels, by numpy.

        Raises
        ------
        ReductionError
            It can't be done exactly.
        """


class Tally(ImagePart):
    """An image part that counts or adds up. Of other parts nothing is to be read: the walk writes what they give."""

    @abstractmethod
    def take(self, results: Array, missing: Array, at: int, out: dict[str, Array]) -> None:
        """Read the results of a lot.

        Parameters
        ----------
        results
            (frames, regions, :data:`.operations.NUMBERS`) int64; of a sum (rows, columns) int64.
        missing
            Of a sum how many pixels were left out, (rows, columns) int64.
        at
            Row of the lot's first frame.
        out
            As :meth:`outputs` gave it.
        """


class Images:
    """Image parts as one part of a walk. Outputs are named ``part/output``."""

    slot: ClassVar[str] = "images"

    def __init__(self, parts: Mapping[str, ImagePart]) -> None:
        self.parts = dict(parts)

    def coverage(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return what any of them wants."""
        covered = np.zeros(shape, bool)
        for part in self.parts.values():
            covered |= part.coverage(shape)
        return covered

    def plan(self, layout: Layout) -> ImagePlan:
        """Return the tables. Those with the same limit stand together: a tile is cleaned once for them."""
        made = {name: part.operation(layout) for name, part in self.parts.items()}
        self._operations = dict(sorted(made.items(), key=lambda item: (item[1].kind == CROP, item[1].limit)))
        self._table = np.zeros((len(made), FIELDS), np.int64)
        self._lanes = np.zeros(LANES, np.int64)
        self._sums = self._tiles = 0
        self._cells = 1
        for number, (row, each) in enumerate(zip(self._table, self._operations.values(), strict=True)):
            row[op.TARGETS] = number * LOT
            self._place(row, each, layout)
        runs, first = _joined(list(self._operations.values()), layout)
        smaller = [each.cells.ravel() for each in self._operations.values() if each.kind == SHRINK]
        cells = np.concatenate([np.zeros(1, np.uint16), *smaller])
        void = np.array([void_of(layout.dtype)], np.int64)
        return ImagePlan(np.ones(1, np.int64), self._table.ravel(), first, runs, cells, self._lanes, void)

    def _place(self, row: NDArray[np.int64], each: Operation, layout: Layout) -> None:
        """Fill a row of the table: where an operation's results and its memory are."""
        row[[op.KIND, op.LIMIT, op.FACTOR]] = each.kind, each.limit, each.factor
        row[[op.WIDE, op.PEAKS, op.WIDTH]] = each.wide, each.peaks, each.shape[-1]
        row[op.LAST] = each.runs.tile[-1] if len(each.runs.tile) else -1
        if each.kind == SUM:
            row[op.FIRST], self._sums = self._sums, self._sums + each.size
            row[op.TILE], self._tiles = self._tiles, self._tiles + layout.tile + PAD
        elif each.kind == REGIONS:
            row[op.FIRST] = self._lanes[op.NUMBERS_LANE]
            self._lanes[op.NUMBERS_LANE] += each.size * NUMBERS
        elif each.kind == CROP:
            row[op.BYTES] = each.size * layout.itemsize
        else:
            width = each.shape[1]
            row[op.BYTES] = each.size * (8 if each.wide else 4)
            row[op.TOPS] = width * (each.factor // 2 if each.factor % 2 == 0 else each.factor) + PAD
            for column, lane, size in (
                (op.ROWS, op.ROWS_LANE, row[op.TOPS] + 1 + width),
                (op.LEFT, op.LEFT_LANE, width + 1),
                (op.GROUP, op.GROUPS_LANE, 1),
            ):
                row[column], self._lanes[lane] = self._lanes[lane], self._lanes[lane] + size
            row[op.CELLS], self._cells = self._cells, self._cells + each.size

    def state(self, layout: Layout, plan: ImagePlan) -> ImageState:
        """Return memory for a lot."""
        size = LOT * plan.lanes + PAD
        return ImageState(
            numbers=np.zeros(size[op.NUMBERS_LANE], np.int64),
            targets=np.zeros(len(self._operations) * LOT, np.int64),
            rows=np.zeros(size[op.ROWS_LANE], np.uint32),
            left=np.zeros(size[op.LEFT_LANE], np.uint16),
            group=np.zeros(size[op.GROUPS_LANE], np.int64),
            totals=np.zeros(self._sums + PAD, np.int64),
            missing=np.zeros(self._sums + PAD, np.int64),
            tile=np.zeros(self._tiles + PAD, np.uint32),
            cleaned=np.zeros(6 * layout.stride + PAD, np.uint8),
        )

    def reset(self, plan: ImagePlan, state: ImageState, frames: int, at: int, out: dict[str, Array]) -> None:
        """Set everything to 0, and say where pieces and smaller frames are written to."""
        for array in (state.numbers, state.rows, state.left, state.totals, state.missing, state.tile):
            array.fill(0)
        state.group.fill(-1)
        apart = self.apart(out)
        for number, (name, each) in enumerate(self._operations.items()):
            if each.kind in (CROP, SHRINK):
                written = apart[name]["frames"][at : at + frames]
                first = written.ctypes.data + np.arange(frames) * self._table[number, op.BYTES]
                state.targets[number * LOT : number * LOT + frames] = first

    def outputs(self, layout: Layout, frames: int) -> dict[str, Array]:
        """Return room for the results of all."""
        return {
            f"{name}/{output}": array
            for name, part in self.parts.items()
            for output, array in part.outputs(layout, frames).items()
        }

    def take(self, plan: ImagePlan, state: ImageState, frames: int, at: int, out: dict[str, Array]) -> None:
        """Read the results of a lot."""
        apart = self.apart(out)
        for number, (name, each) in enumerate(self._operations.items()):
            part, first = self.parts[name], int(self._table[number, op.FIRST])
            if not isinstance(part, Tally):
                continue
            if each.kind == SUM:
                cells = slice(first, first + each.size)
                results, missing = state.totals[cells].reshape(each.shape), state.missing[cells].reshape(each.shape)
            else:
                numbers = state.numbers[: LOT * plan.lanes[op.NUMBERS_LANE]].reshape(LOT, -1)
                results = numbers[:frames, first : first + each.size * NUMBERS].reshape(frames, each.size, NUMBERS)
                missing = np.empty(0, np.int64)
            part.take(results, missing, at, apart[name])

    def apart(self, out: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
        """Return each part's outputs under its name."""
        found: dict[str, dict[str, Array]] = {name: {} for name in self.parts}
        for key, array in out.items():
            name, _, output = key.rpartition("/")
            found[name][output] = array
        return found


def _joined(operations: list[Operation], layout: Layout) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the runs of all by tile and operation, and where those of each begin."""
    number = np.repeat(np.arange(len(operations)), [len(each.runs.tile) for each in operations])
    tile, start, length, row, column = (
        np.concatenate([getattr(each.runs, name) for each in operations])
        for name in ("tile", "start", "length", "row", "column")
    )
    target = np.concatenate([each.targets for each in operations])
    place = tile * len(operations) + number
    order = np.argsort(place, kind="stable")
    runs = np.stack([start, length, row, column, target], axis=1)[order].astype(np.int32)
    assert runs.shape[1] == RUN
    first = np.searchsorted(place[order], np.arange(layout.tiles * len(operations) + 1)).astype(np.int64)
    return runs.ravel(), first
