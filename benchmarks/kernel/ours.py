"""The kernel itself, at each task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...workers.kernel import (
    LOT,
    Bins,
    Crop,
    Kernel,
    Layout,
    Moments,
    Part,
    Rectangle,
    Regions,
    Shrink,
    binning,
)
from ...workers.reducers.base import Chunk
from .frames import Sample
from .pyfai import Integrators
from .tasks import CAKE, OURS, SHRINK, Answer, Array, Box, Row, crop, regions
from .timing import Competitor

Results = dict[str, dict[str, Array]]
Made = tuple[dict[str, Any], Callable[[Results], Answer]]
"""Parts of a kernel, and what its results are as an answer."""


class Ours:
    """The kernel's rows for one sample: each a kernel of its own, which gets lots of 16 chunks."""

    def __init__(self, sample: Sample, integrators: Integrators) -> None:
        self.sample, self.integrators = sample, integrators
        self.detector = sample.detector
        self.mask = self.detector.mask()
        self.most = float(np.iinfo(sample.dtype).max - 2)  # hot pixels are above it
        self.chunks = [Chunk(each, "bslz4", self.detector.shape, sample.dtype) for each in sample.chunks]

    def rows(self, tasks: Sequence[str]) -> Iterator[Row]:
        """Yield those of these tasks."""
        for task in tasks:
            yield self.row(task, *self._makers[task](self))

    def _decode(self) -> Made:
        return {"all": Decoded(~self.mask)}, lambda results: {}

    def _bins(self, dimensions: int, split: str, *, variance: bool = False) -> Made:
        table = self.integrators.table(dimensions, split)
        part, telling = (Bins(table=table, variance=variance, sums=sums) for sums in (False, True))
        shape = (-1,) if dimensions == 1 else CAKE

        def answer(results: Results) -> Answer:
            # What is asked for is the intensity; the sums it comes from are asked for once, to be compared.
            kernel = Kernel(self.detector.shape, self.sample.dtype, {"bins": telling})
            first = {name: values[0] for name, values in kernel.run(self.chunks[:1])["bins"].items()}
            if not np.array_equal(first["intensity"], results["bins"]["intensity"][0]):
                return {"intensity": results["bins"]["intensity"][0]}
            given = {"intensity": first["intensity"].reshape(shape).T, "signal": first["signal"].reshape(shape).T}
            if split == "no":
                given["sums"] = first["signal"].astype(np.int64)
            if variance:
                given |= {"sem": first["sigma"], "variance": first["variance"]}
            return given

        return {"bins": part}, answer

    def _regions(self) -> Made:
        boxes = tuple(_rectangle(box) for box in regions(self.detector))
        return {"roi": Regions(boxes, cutoff=self.most)}, lambda results: {"regions": results["roi"]["sum"][0]}

    def _crop(self) -> Made:
        return {"crop": Crop(_rectangle(crop(self.detector)))}, lambda results: {"crop": results["crop"]["frames"][0]}

    def _moments(self) -> Made:
        names = ("total", "x", "y", "maximum")
        part = Moments(mask=self.mask)
        return {"moments": part}, lambda results: {name: results["moments"][name][0] for name in names}

    def _shrink(self) -> Made:
        def answer(results: Results) -> Answer:
            cells = results["small"]["frames"][0]
            return {"shrunk": np.where(cells == np.iinfo(cells.dtype).max, 0, cells)}

        return {"small": Shrink(SHRINK, mask=self.mask)}, answer

    def _all(self) -> Made:
        made = [self._bins(1, "no"), self._regions(), self._moments()]
        parts = {name: part for each, _ in made for name, part in each.items()}
        return parts, lambda results: {name: value for _, answer in made for name, value in answer(results).items()}

    _makers: ClassVar[dict[str, Callable[[Ours], Made]]] = {
        "decode": _decode,
        "no": lambda self: self._bins(1, "no"),
        "variance": lambda self: self._bins(1, "no", variance=True),
        "bbox": lambda self: self._bins(1, "bbox"),
        "full": lambda self: self._bins(1, "full"),
        "cake": lambda self: self._bins(2, "no"),
        "roi": _regions,
        "crop": _crop,
        "moments": _moments,
        "shrink": _shrink,
        "all": _all,
    }

    def row(self, task: str, parts: Mapping[str, Part], answer: Callable[[Results], Answer]) -> Row:
        """Return the row of a kernel of these parts."""
        kernel = Kernel(self.detector.shape, self.sample.dtype, parts)
        n = len(self.chunks)

        def call(turn: int) -> Results:
            return kernel.run([self.chunks[(LOT * turn + k) % n] for k in range(LOT)])

        return Row(task, OURS, Competitor(call, LOT), answer)


@dataclass(frozen=True, slots=True)
class Decoded:
    """Frames decoded tile by tile for nobody: what any reduction of the covered pixels costs at least."""

    cover: Array
    slot: str = "bins"

    def coverage(self, shape: tuple[int, ...]) -> Array:
        """Return the pixels whose tiles and byte planes are decoded."""
        return self.cover

    def plan(self, layout: Layout) -> Any:
        """Return the tables of a walk without bins."""
        return binning.INACTIVE[0]

    def state(self, layout: Layout, plan: Any) -> Any:
        """Return the memory of a walk without bins."""
        return binning.INACTIVE[1]

    def reset(self, plan: Any, state: Any, frames: int, at: int, out: dict[str, Array]) -> None:
        """There is nothing to be made ready."""

    def outputs(self, layout: Layout, frames: int) -> dict[str, Array]:
        """Return no results."""
        return {}

    def take(self, plan: Any, state: Any, frames: int, at: int, out: dict[str, Array]) -> None:
        """There is nothing to be read."""


def kernel_rows(sample: Sample, integrators: Integrators, tasks: Sequence[str]) -> list[Row]:
    """Return the kernel's rows."""
    return list(Ours(sample, integrators).rows(tasks))


def _rectangle(box: Box) -> Rectangle:
    rows, columns = box.slices
    return Rectangle((rows.start, rows.stop), (columns.start, columns.stop))
