"""What every reducer is: pure, batched, mergeable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..wire.messages import InputSpec

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Chunk:
    """One frame as the detector sent or stored it, still compressed.

    ``data`` : bytes-like; ``encoding`` : ``"bslz4"`` (with the 12-byte HDF5 header), ``"lz4"``, ``"none"``;
    ``shape``, ``dtype`` : what it must decode to.
    """

    data: memoryview | bytes
    encoding: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class Batch:
    """Frames to reduce, all present and readable.

    ``index`` : (n,) int64, frame numbers, ascending.
    ``data`` : per data key either an (n, …) array or a list of n :class:`Chunk`.
    """

    index: NDArray[np.int64]
    data: Mapping[str, Array | list[Chunk]]


@dataclass(frozen=True, slots=True)
class Partial:
    """What a batch gives: ``nav`` has one entry per frame, ``acc`` adds over batches.

    ``nav`` : {name: (n, …)}; ``acc`` : {name: any shape, an integer dtype, so that addition is exact in any order}.
    """

    index: NDArray[np.int64]
    nav: dict[str, Array]
    acc: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Output:
    """One named result: its shape per frame (``nav``) or in all (``acc``, ``const``), and how to label it."""

    kind: str  # "nav", "acc" or "const"
    shape: tuple[int, ...]
    dtype: str
    units: str = ""
    long_name: str = ""
    axes: tuple[str, ...] = ()
    """For each axis of ``shape`` the ``const`` output that labels it, or ``"."``."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a reducer may know of the run: its inputs' shapes and types, and where assets are."""

    inputs: tuple[InputSpec, ...]
    assets: Path


@dataclass(frozen=True, slots=True)
class Walk:
    """What a reducer wants the kernel to make of a data key's frames.

    Reducers whose walks are over the same frames share one: each frame is decoded once for all of them.

    ``key`` : of the frames. ``shape``, ``dtype`` : of each. ``parts`` : what is to be made of it, by a name of the
    reducer's own; see :mod:`haltere.workers.kernel`.
    """

    key: str
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    parts: Mapping[str, Any]


Made = Mapping[str, Mapping[str, Array]]
"""What the kernel made, by part and name; per frame (n, …), unless the part adds frames up."""


class Reducer(ABC):
    """One per recipe and worker. Its result for a frame depends on that frame and the recipe alone, to the bit.

    ``version`` goes into the recipe's hash: raise it whenever a result may change.
    """

    version: ClassVar[int] = 1

    def __init__(self, **params: Any) -> None:  # noqa: B027 - a reducer without parameters has nothing to check
        """Check the parameters; light, because the dispatcher and the sink do it too.

        Raises
        ------
        ReductionError
            A parameter is missing, unknown or out of range: named, with what is allowed.
        """

    @abstractmethod
    def outputs(self, inputs: tuple[InputSpec, ...]) -> dict[str, Output]:
        """Name every result. Light: no geometry, no file."""

    @abstractmethod
    def setup(self, run: Setup) -> dict[str, Array]:
        """Build operators once per worker and run, deterministically. Return the ``const`` outputs."""

    @abstractmethod
    def map(self, batch: Batch) -> Partial:
        """Reduce a batch.

        Raises
        ------
        ReductionError
            A frame can't be reduced. The worker then takes the batch frame by frame and quarantines the culprit.
        """

    def walk(self) -> Walk | None:
        """Say what the kernel is to do, once set up; None: this reducer reads its frames itself.

        With a walk :meth:`map` gives the same, to the bit, as :meth:`finish` of what the kernel made, whoever else
        shared the walk.
        """
        return None

    def finish(self, index: NDArray[np.int64], made: Made) -> Partial:
        """Return the partial result of what the kernel made of these frames for :meth:`walk`'s parts.

        Raises
        ------
        ReductionError
            A frame can't be reduced, as in :meth:`map`.
        """
        raise NotImplementedError(f"{type(self).__name__} has a walk and doesn't say how it ends")
