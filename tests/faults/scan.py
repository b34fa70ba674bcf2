"""The scan that every fault is tried on: what is flown, and what every frame of it holds."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from haltere.workers.recipes import Recipe

SHAPE: Final = (48, 64)
POSITIONS: Final = Recipe("positions", "columns", "pilc")
SOURCES: Final = {"chaos": "eiger", "positions": "pilc"}
"""Recipe: its detector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What is flown.

    Attributes
    ----------
    rate
        Frames/s.
    step
        Frames between two flushes of the files, and between two documents.
    gap
        The part of the flight of which the Eiger's stream brings nothing, from and to: 1 is its end.
    late
        s from the end of the flight until the second file shows; None: it never does.
    short
        Frames that the second file lacks at its end.
    cut
        The second file shows after the flight, and without its second half.
    stored
        Whether the Eiger writes files; without them its recipe's policy is to spill.
    chaos
        Parameters of the test reducer.
    """

    rows: int = 24
    columns: int = 50
    rate: float = 400.0
    step: int = 40
    gap: tuple[float, float] = (0, 0)
    late: float | None = 0.0
    short: int = 0
    cut: bool = False
    stored: bool = True
    chaos: dict[str, Any] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        """How many there are."""
        return self.rows * self.columns

    @property
    def split(self) -> int:
        """The frame with which the Eiger's second file begins."""
        return 2 * self.frames // 3

    @property
    def unstreamed(self) -> range:
        """Frames that the Eiger's stream doesn't bring."""
        return range(round(self.gap[0] * self.frames), round(self.gap[1] * self.frames))

    @property
    def hides(self) -> bool:
        """Whether the second file doesn't show while it is written."""
        return self.late != 0 or self.cut

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """What is made of them."""
        return Recipe("chaos", "chaos", "eiger", self.chaos, "drop" if self.stored else "spill"), POSITIONS


@cache
def images(n: int) -> NDArray[np.uint16]:
    """Return the Eiger's frames, (n, 48, 64): every scan gets the same ones."""
    rings = 20 + 15 * np.cos(np.hypot(*np.indices(SHAPE)) / 3)
    made = np.random.default_rng(1).poisson(rings, (n, *SHAPE)).astype("<u2")
    made[:, 0, 0] = np.arange(n)
    return made


@cache
def chunks(n: int) -> list[bytes]:
    """Return the frames as the detector compresses them."""
    with h5py.File(io.BytesIO(), "w") as file:
        data = file.create_dataset("data", data=images(n), chunks=(1, *SHAPE), **hdf5plugin.Bitshuffle())
        return [data.id.read_direct_chunk((number, 0, 0))[1] for number in range(n)]


@cache
def positions(rows: int, columns: int) -> dict[str, NDArray[np.float64]]:
    """Return x and y of each frame, µm: a snake with jitter."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    column = np.where(row % 2, columns - 1 - column, column)
    jitter = np.random.default_rng(2).uniform(-0.1, 0.1, (2, rows * columns))
    return {"x": column + jitter[0], "y": row + jitter[1]}
