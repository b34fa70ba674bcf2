"""Azimuthal integration: a powder pattern per frame, as pyFAI defines it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from ..assets import AssetStore
from ..decode import decode
from ..errors import ReductionError, ShapeMismatch
from ..wire.messages import InputSpec
from . import frames, geometry, masks, params
from .base import Array, Batch, Chunk, Output, Partial, Reducer, Setup

UNITS = {
    "2th_deg": ("two_theta", "deg"),
    "2th_rad": ("two_theta", "rad"),
    "q_A^-1": ("q", "1/angstrom"),
    "q_nm^-1": ("q", "1/nm"),
    "r_mm": ("r", "mm"),
}
"""pyFAI's unit → the name and the unit of the radial axis."""


class Parameters(Struct, frozen=True, kw_only=True):
    """What a recipe of this reducer may say.

    ``poni`` : a poni's text or numbers (:func:`recipe_params` reads a file). ``bins``, ``unit``, ``range`` : of the
    radial axis. ``method`` : pyFAI's pixel splitting. ``polarization`` : pyFAI's factor, None to leave it out.
    ``mask`` : reference to an asset, an ``.npy`` array in which not 0 means masked. ``cutoff`` : counts above which a
    pixel is saturated and left out. ``sigma`` : also give the standard error of the mean, from Poisson statistics.
    ``engine`` : ``"pyfai"`` is pyFAI as it comes, to compare with. ``key`` : the frames, if the detector has several.
    """

    poni: dict[str, Any] | str
    bins: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    unit: Literal["2th_deg", "2th_rad", "q_A^-1", "q_nm^-1", "r_mm"] = "2th_deg"
    range: tuple[float, float] | None = None
    method: Literal["bbox", "no", "full"] = "bbox"
    polarization: Annotated[float, Meta(ge=-1, le=1)] | None = None
    mask: Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")] | None = None
    cutoff: Annotated[float, Meta(gt=0)] | None = None
    sigma: bool = False
    engine: Literal["csr", "pyfai"] = "csr"
    key: str | None = None


def recipe_params(
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
        Further :class:`Parameters`.

    >>> recipe_params({"dist": 0.2, "poni1": 0, "poni2": 0, "pixel1": 1e-4, "pixel2": 1e-4}, bins=500)["bins"]
    500
    """
    given: dict[str, Any] = {"poni": msgspec.to_builtins(geometry.load(poni)), **others}
    if mask is not None:
        given["mask"] = masks.put(mask, assets, "azimuthal")
    Azimuthal(**given)
    return given


class Azimuthal(Reducer):
    """Frames to patterns.

    Outputs: ``intensity`` per frame, (bins,) float32, counts per pixel of the solid angle at the point of normal
    incidence, 0 in bins without a pixel (as pyFAI); ``sigma`` likewise, on request; ``total`` per frame, counts in the
    pixels used; the radial axis, (bins,) float64, once, named after its unit (:data:`UNITS`).

    The operator is pyFAI's own (bin weights, solid angle, polarization), applied as a sparse product in float64:
    9–17 ms for an Eiger 4M frame against pyFAI's 80. Left out of a frame, in the numerator and in the normalisation,
    are masked pixels, those with all bits set (gaps, dead ones), negative ones of signed types, and those above
    ``cutoff``.
    """

    def __init__(self, **given: Any) -> None:
        self.params = params.read(Parameters, "azimuthal", given)
        self.geometry = geometry.parse(self.params.poni)
        if self.params.unit.startswith("q") and self.geometry.wavelength is None:
            raise ReductionError(f"azimuthal: unit {self.params.unit} needs a wavelength, the poni has none")
        if self.params.range is not None and not 0 <= self.params.range[0] < self.params.range[1] < np.inf:
            raise ReductionError(f"azimuthal: range {self.params.range} is empty or not finite")

    def outputs(self, inputs: tuple[InputSpec, ...]) -> dict[str, Output]:
        """Name the results.

        Raises
        ------
        ShapeMismatch
            The poni is of a detector of another shape.
        ReductionError
            There is no 2-D input, or several.
        """
        spec = self._input(inputs)
        self.geometry.fits(spec.shape, spec.key)
        axis, units = UNITS[self.params.unit]
        bins = (self.params.bins,)
        named = {
            axis: Output("const", bins, "<f8", units, axis.replace("_", " ")),
            "intensity": Output("nav", bins, "<f4", "counts", "intensity", (axis,)),
            "total": Output("nav", (), "<f8", "counts", "counts in all pixels used"),
        }
        if self.params.sigma:
            named["sigma"] = Output("nav", bins, "<f4", "counts", "standard error of the intensity", (axis,))
        return named

    def setup(self, run: Setup) -> dict[str, Array]:
        """Let pyFAI make the operator: 0.2 s for an Eiger 500k, 2 s for a 4M. Return the radial axis."""
        spec = self._input(run.inputs)
        self.geometry.fits(spec.shape, spec.key)
        self._key, self._shape, self._dtype = spec.key, spec.shape, np.dtype(spec.dtype)
        shape = (self._shape[0], self._shape[1])
        self._integrator = geometry.integrator(self.geometry, shape)
        self._mask = self._read_static_mask(run.assets, shape)
        result = self._integrator.integrate1d_ng(np.ones(shape, np.float32), **self._options())
        if self.params.engine == "csr":
            self._take_operator()
        return {UNITS[self.params.unit][0]: np.asarray(result.radial, np.float64)}

    def map(self, batch: Batch) -> Partial:
        """Reduce frame by frame; one decoded frame is in memory at a time."""
        n = len(batch.index)
        nav: dict[str, Array] = {"intensity": np.empty((n, self.params.bins), np.float32), "total": np.empty(n)}
        if self.params.sigma:
            nav["sigma"] = np.empty((n, self.params.bins), np.float32)
        one = self._csr if self.params.engine == "csr" else self._pyfai
        for k, frame in enumerate(self._frames(batch)):
            for name, value in one(frame).items():
                nav[name][k] = value
        return Partial(batch.index, nav)

    def _input(self, inputs: tuple[InputSpec, ...]) -> InputSpec:
        return frames.frames_of(inputs, self.params.key, "azimuthal")

    def _options(self) -> dict[str, Any]:
        return {
            "npt": self.params.bins,
            "unit": self.params.unit,
            "radial_range": self.params.range,
            "method": (self.params.method, "csr", "cython"),
            "polarization_factor": self.params.polarization,
            "mask": self._mask,
        }

    def _read_static_mask(self, assets: Path, shape: tuple[int, int]) -> NDArray[np.int8]:
        gaps = self._integrator.detector.mask
        mask = np.zeros(shape, bool) if gaps is None else np.asarray(gaps).astype(bool)
        if self.params.mask is not None:
            mask = mask | (masks.load(AssetStore(assets), self.params.mask, shape, "azimuthal") != 0)
        if mask.all():
            raise ReductionError("azimuthal: every pixel is masked (is the mask inverted? not 0 means masked)")
        return mask.astype(np.int8)

    def _take_operator(self) -> None:
        from scipy import sparse

        engines = self._integrator.engines.items()
        engine = next(value.engine for method, value in engines if method.algo_lower == "csr" and method.dim == 1)
        csr = sparse.csr_matrix(
            (np.asarray(engine.data, np.float64), engine.indices, engine.indptr),
            shape=(self.params.bins, self._mask.size),
        )
        csr.sum_duplicates()
        # By columns: the frame is read once in its order, the bins stay in the first-level cache.
        self._operator = csr.tocsc()
        self._squared = self._operator.power(2) if self.params.sigma else None
        self._used = (self._mask.ravel() == 0).astype(np.float64)
        norm = np.asarray(self._integrator.solidAngleArray(self._mask.shape), np.float64).ravel()
        if self.params.polarization is not None:
            norm = norm * self._integrator.polarization(self._mask.shape, self.params.polarization).ravel()
        self._norm = norm * self._used
        self._denominator: NDArray[np.float64] = self._operator @ self._norm
        self._known = (np.empty(0, np.int64), self._denominator)
        # pyFAI's tables are not needed any more: 150 MB for an Eiger 4M.
        self._integrator.reset()

    def _frames(self, batch: Batch) -> Iterator[Array]:
        data = batch.data[self._key]
        for k, index in enumerate(batch.index):
            item = data[k]
            frame = decode(item) if isinstance(item, Chunk) else np.asarray(item)
            if frame.shape != self._shape or frame.dtype != self._dtype:
                raise ShapeMismatch(
                    f"frame {index}: {frame.shape} {frame.dtype}, the stream was announced with {self._shape} "
                    f"{self._dtype}"
                )
            yield frame.ravel()

    def _excluded(self, frame: Array) -> NDArray[np.int64]:
        """Return the pixels of this frame that don't count."""
        if frame.dtype.kind == "f":
            bad = ~np.isfinite(frame)
            return np.flatnonzero(bad if self.params.cutoff is None else bad | (frame > self.params.cutoff))
        # One comparison does: seen as unsigned, a negative number is above every positive one.
        unsigned = np.dtype(f"u{frame.dtype.itemsize}")
        limit = np.iinfo(frame.dtype).max - (frame.dtype.kind == "u")
        if self.params.cutoff is not None:
            limit = min(limit, int(self.params.cutoff))
        return np.flatnonzero(frame.view(unsigned) > unsigned.type(limit))

    def _denominator_without(self, excluded: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the normalisation with these pixels left out.

        A function of the set alone. The last one is remembered, since gaps and dead pixels stay from frame to frame.
        """
        left_out = excluded[self._used[excluded] > 0]
        if not left_out.size:
            return self._denominator
        if not np.array_equal(left_out, self._known[0]):
            norm = self._norm.copy()
            norm[left_out] = 0
            self._known = (left_out, np.asarray(self._operator @ norm, np.float64))
        denominator: NDArray[np.float64] = self._known[1]
        return denominator

    def _csr(self, frame: Array) -> dict[str, Any]:
        native = frame.astype(frame.dtype.newbyteorder("="), copy=False)
        excluded = self._excluded(native)
        counts = native.astype(np.float64)
        counts[excluded] = 0
        denominator = self._denominator_without(excluded)
        filled = denominator > 0

        def per_bin(total: NDArray[np.float64]) -> NDArray[np.float64]:
            empty = np.zeros_like(total)
            return np.divide(total, denominator, out=empty, where=filled)

        result: dict[str, Any] = {"intensity": per_bin(self._operator @ counts), "total": counts @ self._used}
        if self._squared is not None:
            variance = np.maximum(counts, 1.0)  # pyFAI's Poisson model: a pixel without a count has variance 1
            variance[excluded] = 0
            result["sigma"] = per_bin(np.sqrt(self._squared @ variance))
        return result

    def _pyfai(self, frame: Array) -> dict[str, Any]:
        native = frame.astype(frame.dtype.newbyteorder("="), copy=False)
        counts = native.astype(np.float64)
        counts[self._excluded(native)] = np.nan  # pyFAI leaves these out
        model = "poisson" if self.params.sigma else None
        image = counts.astype(np.float32).reshape(self._shape)
        result = self._integrator.integrate1d_ng(image, error_model=model, **self._options())
        used = np.isfinite(counts) & (self._mask.ravel() == 0)
        named = {"intensity": result.intensity, "total": counts[used].sum()}
        return named | ({"sigma": result.sigma} if self.params.sigma else {})
