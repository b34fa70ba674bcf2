"""What integrations have in common: a geometry, pyFAI's operator of it, and the engine that applies this to frames."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from ..assets import AssetStore
from ..errors import ReductionError
from ..wire.messages import InputSpec
from . import geometry, masks, params
from .base import Array, Batch, Made, Output, Partial, Reducer, Setup, Walk
from .engines import Engine, InKernel, Reference, Sparse
from .frames import frames_of, in_kernel
from .operator import Operator

UNITS = {
    "2th_deg": ("two_theta", "deg"),
    "2th_rad": ("two_theta", "rad"),
    "q_A^-1": ("q", "1/angstrom"),
    "q_nm^-1": ("q", "1/nm"),
    "r_mm": ("r", "mm"),
}
"""pyFAI's unit → the name and the unit of the radial axis."""


class Parameters(Struct, frozen=True, kw_only=True):
    """What a recipe of any integration may say.

    ``poni`` : a poni's text or numbers (:func:`recipe_params` reads a file). ``bins``, ``unit``, ``range`` : of the
    radial axis. ``azimuth_range`` : degrees, None for the whole circle. ``method`` : pyFAI's pixel splitting.
    ``polarization`` : pyFAI's factor, None to leave it out. ``solid_angle`` : correct for it. ``mask`` : reference to
    an asset, an ``.npy`` array in which not 0 means masked. ``cutoff`` : counts above which a pixel is saturated and
    left out. ``sigma`` : also give the standard error of the mean, from Poisson statistics. ``engine`` : ``"kernel"``
    reduces frames of uint8, uint16 and uint32 while they are compressed, and others like ``"csr"``, a sparse product in
    float64; ``"pyfai"`` is pyFAI as it comes, to compare with. ``key`` : the frames, if the detector has several.
    """

    poni: dict[str, Any] | str
    bins: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    unit: Literal["2th_deg", "2th_rad", "q_A^-1", "q_nm^-1", "r_mm"] = "2th_deg"
    range: tuple[float, float] | None = None
    azimuth_range: tuple[float, float] | None = None
    method: Literal["bbox", "no", "full"] = "bbox"
    polarization: Annotated[float, Meta(ge=-1, le=1)] | None = None
    solid_angle: bool = True
    mask: Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")] | None = None
    cutoff: Annotated[float, Meta(gt=0)] | None = None
    sigma: bool = False
    engine: Literal["kernel", "csr", "pyfai"] = "kernel"
    key: str | None = None


def recipe_params(
    reducer: type[Integration],
    poni: Path | str | Mapping[str, Any],
    *,
    mask: Path | str | Array | None = None,
    assets: AssetStore | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Return a recipe's parameters with the poni's numbers written out, so that they travel and hash as numbers.

    Parameters
    ----------
    poni
        A poni file, its text, or a mapping.
    mask
        A mask file (any that fabio reads, or ``.npy``), an array or a reference; not 0 means masked.
    assets
        Where the pool keeps assets; needed with a mask that is no reference.
    others
        Further parameters of the reducer.
    """
    given: dict[str, Any] = {"poni": msgspec.to_builtins(geometry.load(poni)), **others}
    if mask is not None:
        given["mask"] = masks.put(mask, assets, reducer.name)
    reducer(**given)
    return given


class Integration(Reducer):
    """Frames to sums over bins, divided by the pixels' normalisation.

    The operator is pyFAI's own: which pixel counts how much in which bin, solid angle, polarization. Left out of a
    frame, in the numerator and in the normalisation, are masked pixels, those with all bits set (gaps, dead ones),
    negative ones of signed types, and those above ``cutoff``.
    """

    version: ClassVar[int] = 2  # the kernel sums in another order, and `total` counts the pixels that are in any bin
    name: ClassVar[str]
    kind: ClassVar[type[Parameters]]
    dimensions: ClassVar[int]

    def __init__(self, **given: Any) -> None:
        self.params: Any = params.read(self.kind, self.name, given)
        self.geometry = geometry.parse(self.params.poni)
        if self.params.unit.startswith("q") and self.geometry.wavelength is None:
            raise ReductionError(f"{self.name}: unit {self.params.unit} needs a wavelength, the poni has none")
        if self.params.range is not None and not 0 <= self.params.range[0] < self.params.range[1] < np.inf:
            raise ReductionError(f"{self.name}: range {self.params.range} is empty or not finite")
        sector = self.params.azimuth_range
        if sector is not None and not (-360 <= sector[0] < sector[1] <= 360 and sector[1] - sector[0] <= 360):
            raise ReductionError(f"{self.name}: azimuth_range {sector} is no range of up to 360 degrees, ascending")

    @property
    @abstractmethod
    def bins(self) -> tuple[int, ...]:
        """Return the shape of a frame's result."""

    @abstractmethod
    def axes(self) -> dict[str, Output]:
        """Return the axes of :attr:`bins`, in their order."""

    @abstractmethod
    def integrate(self, integrator: Any, image: Array, **options: Any) -> tuple[Any, list[Array]]:
        """Let pyFAI integrate; return its result, and the axes' values."""

    def outputs(self, inputs: tuple[InputSpec, ...]) -> dict[str, Output]:
        """Name the results.

        Raises
        ------
        ShapeMismatch
            The poni is of a detector of another shape.
        ReductionError
            There is no 2-D input, or several.
        """
        frames = frames_of(inputs, self.params.key, self.name)
        self.geometry.fits(frames.shape, frames.key)
        axes = self.axes()
        named = axes | {
            "intensity": Output("nav", self.bins, "<f4", "counts", "intensity", tuple(axes)),
            "total": Output("nav", (), "<f8", "counts", "counts in all pixels used"),
        }
        if self.params.sigma:
            long_name = "standard error of the intensity"
            named["sigma"] = Output("nav", self.bins, "<f4", "counts", long_name, tuple(axes))
        return named

    def setup(self, run: Setup) -> dict[str, Array]:
        """Let pyFAI make the operator: 0.3 s for an Eiger 500k, 4 s for a 4M. Return the axes."""
        frames = frames_of(run.inputs, self.params.key, self.name)
        self.geometry.fits(frames.shape, frames.key)
        shape, dtype = (frames.shape[0], frames.shape[1]), np.dtype(frames.dtype)
        self._key, self._shape, self._dtype = frames.key, shape, dtype
        integrator = geometry.integrator(self.geometry, shape)
        mask = self._mask(run.assets, integrator, shape)
        options = {
            "unit": self.params.unit,
            "radial_range": self.params.range,
            "azimuth_range": self.params.azimuth_range,
            "method": (self.params.method, "csr", "cython"),
            "polarization_factor": self.params.polarization,
            "correctSolidAngle": self.params.solid_angle,
            "mask": mask,
        }
        _, axes = self.integrate(integrator, np.ones(shape, np.float32), **options)
        left_out = mask != 0
        if self.dimensions == 2 and self.params.method == "full":
            # Of the first pixel that it splits so, pyFAI's table (2026.9) has whatever was in memory before.
            left_out.ravel()[left_out.argmin()] = True
        operator = Operator.of(integrator, self.dimensions, left_out, self.params.polarization, self.params.solid_angle)
        sigma, cutoff = self.params.sigma, self.params.cutoff
        if self.params.engine == "pyfai":
            integrate = partial(self.integrate, integrator, **options)
            self._engine: Engine = Reference(operator, dtype, sigma, cutoff, integrate)
        else:
            integrator.reset()  # pyFAI's tables are not needed any more: 150 MB for an Eiger 4M
            in_its_way = InKernel if self.params.engine == "kernel" and in_kernel(dtype) else Sparse
            self._engine = in_its_way(operator, dtype, sigma, cutoff)
        return dict(zip(self.axes(), (np.asarray(axis, np.float64) for axis in axes), strict=True))

    def walk(self) -> Walk | None:
        """Return what the kernel is to do, if it reads such frames."""
        if not isinstance(self._engine, InKernel):
            return None
        return Walk(self._key, self._shape, self._dtype, {"bins": self._engine.part})

    def finish(self, index: NDArray[np.int64], made: Made) -> Partial:
        """Give the results their shape."""
        n = len(index)
        nav = {name: each if each.ndim == 1 else each.reshape(n, *self.bins) for name, each in made["bins"].items()}
        return Partial(index, nav)

    def map(self, batch: Batch) -> Partial:
        """Reduce frames."""
        return self.finish(batch.index, {"bins": self._engine.reduce(batch.data[self._key], batch.index)})

    def _mask(self, assets: Path, integrator: Any, shape: tuple[int, int]) -> NDArray[np.int8]:
        gaps = integrator.detector.mask
        mask = np.zeros(shape, bool) if gaps is None else np.asarray(gaps).astype(bool)
        if self.params.mask is not None:
            mask = mask | (masks.load(AssetStore(assets), self.params.mask, shape, self.name) != 0)
        if mask.all():
            raise ReductionError(f"{self.name}: every pixel is masked (is the mask inverted? not 0 means masked)")
        return mask.astype(np.int8)
