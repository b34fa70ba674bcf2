"""A reducer that misbehaves on frames by name. Installed, as far as the pool can tell, where this folder is a path."""

from __future__ import annotations

import ctypes
import threading
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from haltere.workers.decode import decode
from haltere.workers.errors import ReductionError
from haltere.workers.reducers import params
from haltere.workers.reducers.base import Array, Batch, Output, Partial, Reducer, Setup
from haltere.workers.wire.messages import InputSpec

BINS = 8
POINTS = 40

FrameNumbers = Annotated[list[int], Meta(max_length=1000)]


class Parameters(Struct, frozen=True, kw_only=True):
    """Which frames it raises on, crashes on, and never returns from. ``delay`` : s that each frame takes besides."""

    raises: FrameNumbers = []
    segfaults: FrameNumbers = []
    hangs: FrameNumbers = []
    delay: Annotated[float, Meta(ge=0)] = 0.0


class Chaos(Reducer):
    """Sums of a frame's eight bands of rows (``bands``, ``mean``, in all ``total``), and a projection (``pattern``).

    Its results depend on no parameter. Unlike a real reducer it needs no library that takes seconds to load, so that
    what is measured after a fault is the pool's own time.
    """

    def __init__(self, **given: Any) -> None:
        self.params = params.read(Parameters, "chaos", given)

    def outputs(self, inputs: tuple[InputSpec, ...]) -> dict[str, Output]:
        """Name the results."""
        return {
            "bands": Output("nav", (BINS,), "<i8", "counts", axes=("band",)),
            "pattern": Output("nav", (POINTS,), "<f4", "counts", axes=("point",)),
            "mean": Output("nav", (), "<f8", "counts"),
            "total": Output("acc", (BINS,), "<i8", "counts", axes=("band",)),
            "band": Output("const", (BINS,), "<f8"),
            "point": Output("const", (POINTS,), "<f8"),
        }

    def setup(self, run: Setup) -> dict[str, Array]:
        """Make the projection."""
        self._key, shape = next((spec.key, spec.shape) for spec in run.inputs if len(spec.shape) == 2)
        self._projection = np.random.default_rng(3).normal(size=(POINTS, shape[0] * shape[1]))
        return {"band": np.arange(BINS, dtype=float), "point": np.linspace(0, 1, POINTS)}

    def map(self, batch: Batch) -> Partial:
        """Reduce, or not."""
        rows, patterns = [], []
        for number, chunk in zip(batch.index.tolist(), batch.data[self._key], strict=True):
            self._misbehave(number)
            frame = chunk if isinstance(chunk, np.ndarray) else decode(chunk)
            rows.append(frame.reshape(BINS, -1).sum(1, dtype=np.int64))
            patterns.append((self._projection @ frame.reshape(-1).astype(np.float64)).astype(np.float32))
        bands = np.array(rows)
        nav = {"bands": bands, "pattern": np.array(patterns), "mean": bands.mean(1)}
        return Partial(batch.index, nav, {"total": bands.sum(0)})

    def _misbehave(self, number: int) -> None:
        if self.params.delay:
            threading.Event().wait(self.params.delay)
        if number in self.params.raises:
            raise ReductionError(f"frame {number} is poison")
        if number in self.params.segfaults:
            ctypes.string_at(0)
        if number in self.params.hangs:
            threading.Event().wait()
