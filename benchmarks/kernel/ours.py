"""The kernel itself, at each task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...workers.kernel import LOT, Kernel, Layout, Part, binning
from ...workers.reducers.base import Chunk
from .frames import Sample
from .pyfai import Integrators
from .tasks import OURS, Answer, Array, Row
from .timing import Competitor

Results = dict[str, dict[str, Array]]


class Ours:
    """The kernel's rows for one sample: each a kernel of its own, which gets lots of 16 chunks."""

    def __init__(self, sample: Sample, integrators: Integrators) -> None:
        self.sample, self.integrators = sample, integrators
        self.detector = sample.detector
        self.mask = self.detector.mask()
        self.chunks = [Chunk(each, "bslz4", self.detector.shape, sample.dtype) for each in sample.chunks]

    def rows(self, tasks: Sequence[str]) -> Iterator[Row]:
        """Yield those of these tasks."""
        makers: dict[str, Callable[[], Row]] = {
            "decode": lambda: self.row("decode", {"counted": Decoded(~self.mask)}, lambda results: {})
        }
        for task in tasks:
            if task in makers:
                yield makers[task]()

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

    def reset(self, plan: Any, state: Any) -> None:
        """There is nothing to be made ready."""

    def outputs(self, layout: Layout, frames: int) -> dict[str, Array]:
        """Return no results."""
        return {}

    def take(self, plan: Any, state: Any, frames: int, at: int, out: dict[str, Array]) -> None:
        """There is nothing to be read."""


def kernel_rows(sample: Sample, integrators: Integrators, tasks: Sequence[str]) -> list[Row]:
    """Return the kernel's rows."""
    return list(Ours(sample, integrators).rows(tasks))
