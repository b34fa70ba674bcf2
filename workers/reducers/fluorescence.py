"""X-ray fluorescence: a spectrum per frame to the areas of its lines, by one matrix."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from .. import basis
from ..assets import AssetStore, is_ref
from ..decode import decode
from ..errors import ReductionError, ShapeMismatch
from ..wire.messages import InputSpec
from . import params
from .base import Array, Batch, Chunk, Output, Partial, Reducer, Setup

_HISTOGRAM = re.compile(r"(.+)_channel(\d+)")
SCALERS = ("allevent", "resetticks", "totalticks")


class Parameters(Struct, frozen=True, kw_only=True):
    """What a recipe of this reducer may say.

    ``basis`` : reference to an asset, a :class:`haltere.workers.basis.Basis`. ``components`` : those of the basis to
    give, in this order (:func:`recipe_params` lists them). ``keys`` : the data keys with spectra, None for all named
    ``<device>_channelNN``, or the one of (elements, channels). ``elements`` : those to use, counted from 0, None for
    all; a basis is for elements of the same calibration. ``event_width`` : of the Xspress3, in ticks.
    ``nonnegative`` : keep areas of lines and of scatter peaks from being negative (not those of the background).
    ``rois`` : by name the first channel of a region and the one after its last.
    """

    basis: Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
    components: Annotated[list[str], Meta(min_length=1, max_length=basis.MAX_COMPONENTS)]
    keys: list[str] | None = None
    elements: Annotated[list[Annotated[int, Meta(ge=0, lt=256)]], Meta(min_length=1)] | None = None
    event_width: Annotated[int, Meta(ge=0, le=1023)] = 6
    nonnegative: bool = False
    rois: Annotated[dict[str, tuple[int, int]], Meta(max_length=64)] = {}


def recipe_params(source: basis.Basis | Path | str, assets: AssetStore, **others: Any) -> dict[str, Any]:
    """Return a recipe's parameters, with the basis put into the store.

    Parameters
    ----------
    source
        A basis, its file, or a reference to one that is in the store.
    assets
        Where the pool keeps its assets.
    others
        Further :class:`Parameters`; ``components`` are all lines and scatter peaks unless given.
    """
    if isinstance(source, str) and is_ref(source):
        ref, found = source, basis.load(assets.read(source))
    else:
        found = source if isinstance(source, basis.Basis) else basis.load(source)
        ref = assets.put(found.to_bytes())
    given = {"basis": ref, "components": list(found.of_kind("line", "scatter")), **others}
    Fluorescence(**given)
    return given


class _Source(NamedTuple):
    """Where spectra are: one key per element, or one key for all; and which elements to use."""

    keys: tuple[str, ...]
    elements: tuple[int, ...]
    channels: int
    scalers: bool


class Fluorescence(Reducer):
    """Spectra to areas.

    Outputs per frame, float64: for each component its area in counts (``Fe_Ka``) and the standard deviation that
    counting gives it (``Fe_Ka_sigma``); ``dead_time``, the fraction of time in which the elements couldn't count (if
    the detector tells). For each region (elements,) int64, its counts as measured (``roi_Fe``). In all: ``spectrum``,
    (elements, channels) int64, counts as measured.

    Each element's counts are scaled by ticks / (ticks − dead), dead = allevent·(event_width + 1) + resetticks (the
    Xspress3 driver's formula), then added. Without scalers the factor is 1.

    With ``nonnegative`` the fit is that with the least weighted squares among those without negative areas; standard
    deviations remain those of the unconstrained one.

    Machine code makes the areas (:mod:`haltere.workers.kernel.spectra`): a BLAS would give other last bits for other
    batch sizes, and on other processors.
    """

    version = 3

    def __init__(self, **given: Any) -> None:
        self.params = params.read(Parameters, "fluorescence", given)
        names = self.params.components
        if len(set(names)) != len(names) or not all(re.fullmatch(r"[A-Za-z0-9]\w{0,47}", name) for name in names):
            raise ReductionError(f"fluorescence: components {names} must be names, each once")
        for name, (first, stop) in self.params.rois.items():
            if not re.fullmatch(r"\w{1,48}", name) or not 0 <= first < stop <= basis.MAX_CHANNELS:
                raise ReductionError(
                    f"fluorescence: rois {name}: {first, stop} must be a name, a first channel and one beyond the last"
                )

    def outputs(self, inputs: tuple[InputSpec, ...]) -> dict[str, Output]:
        """Name the results.

        Raises
        ------
        ReductionError
            There are no spectra, they aren't integers, or only some elements have scalers.
        """
        source = self._source(inputs)
        named = {}
        for name in self.params.components:
            label = name.replace("_", " ")
            named[name] = Output("nav", (), "<f8", "counts", f"{label}, area")
            named[f"{name}_sigma"] = Output("nav", (), "<f8", "counts", f"{label}, standard deviation of the area")
        if source.scalers:
            named["dead_time"] = Output("nav", (), "<f8", "", "fraction of time dead, mean of the elements")
        for name, (_, stop) in self.params.rois.items():
            if stop > source.channels:
                raise ReductionError(f"fluorescence: rois {name} ends at {stop}; there are {source.channels} channels")
            named[f"roi_{name}"] = Output("nav", (len(source.elements),), "<i8", "counts", f"{name}, per element")
        shape = (len(source.elements), source.channels)
        named["spectrum"] = Output("acc", shape, "<i8", "counts", "sum of all spectra", (".", "energy"))
        named["energy"] = Output("const", (source.channels,), "<f8", "keV", "energy")
        return named

    def setup(self, run: Setup) -> dict[str, Array]:
        """Load the basis. Return the energy axis."""
        found = basis.load(AssetStore(run.assets).read(self.params.basis))
        self._inputs = self._source(run.inputs)
        if found.channels != self._inputs.channels:
            raise ShapeMismatch(
                f"the basis is for {found.channels} channels, {self._inputs.keys[0]} has {self._inputs.channels}: make "
                f"one for this detector (haltere basis CFG --channels {self._inputs.channels})"
            )
        if missing := sorted(set(self.params.components) - set(found.components)):
            raise ReductionError(
                f"fluorescence: {', '.join(missing)} isn't in the basis; there are {', '.join(found.components)}"
            )
        # Numba is loaded and the machine code made ready here, not where a recipe is only looked at.
        from ..kernel.nnls import NonNegative
        from ..kernel.spectra import Projection

        rows = [found.components.index(name) for name in self.params.components]
        # All areas are made, those that nobody asked for too: the sums that they share are the same whatever is asked.
        self._chosen, self._fit = np.array(rows), None
        self._projection = Projection(found.operator, rows)
        if self.params.nonnegative:
            self._fit = NonNegative(found.covariance(), np.array([kind != "background" for kind in found.kinds]))
            self._fit.solve(np.full((1, len(found.components)), -1.0))
        self._projection.run([np.zeros((1, found.channels), np.uint32)], np.ones((1, 1)))
        zero, gain = found.energy
        return {"energy": zero + gain * np.arange(found.channels)}

    def map(self, batch: Batch) -> Partial:
        """Scale, add and project the spectra of all frames."""
        source, n = self._inputs, len(batch.index)
        spectra = self._spectra(batch)
        factors, dead_time = self._factors(batch) if source.scalers else (np.ones((n, len(spectra))), None)
        made = self._projection.run(spectra, factors)
        for element, counts in zip(made.bits.T, spectra, strict=True):
            if counts.dtype.kind == "i" and (negative := element >> 31 != 0).any():
                raise ReductionError(f"frame {batch.index[negative.argmax()]}: a negative number of counts")
        areas = self._settled(batch, made.areas) if self._fit else made.areas
        columns = np.ascontiguousarray(areas.T[self._chosen])
        sigma = np.sqrt(made.variances.T, order="C")
        if not (np.isfinite(columns).all() and np.isfinite(sigma).all()):
            at = (~np.isfinite(columns) | ~np.isfinite(sigma)).any(axis=0).argmax()
            raise ReductionError(
                f"frame {batch.index[at]}: areas too large for a number, with counts times {factors[at].max():.3g} for "
                "dead time"
            )
        nav: dict[str, Array] = {}
        for name, area, deviation in zip(self.params.components, columns, sigma, strict=True):
            nav[name], nav[f"{name}_sigma"] = area, deviation
        if dead_time is not None:
            nav["dead_time"] = dead_time
        for name, (first, stop) in self.params.rois.items():
            sums = nav[f"roi_{name}"] = np.empty((n, len(spectra)), np.int64)
            for counts, total in zip(spectra, sums.T, strict=True):
                counts[:, first:stop].sum(axis=1, dtype=np.int64, out=total)
        return Partial(batch.index, nav, {"spectrum": made.total})

    def _settled(self, batch: Batch, areas: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the areas of the fit without negative ones."""
        assert self._fit is not None
        found, states = self._fit.solve(areas)
        if states.any():
            at = int(states.argmax())
            raise ReductionError(f"frame {batch.index[at]}: {self._fit.reason(int(states[at]))}")
        return found

    def _source(self, inputs: tuple[InputSpec, ...]) -> _Source:
        specs = {spec.key: spec for spec in inputs}
        keys = self.params.keys
        if keys is None:
            keys = sorted(key for key, spec in specs.items() if len(spec.shape) == 1 and _HISTOGRAM.fullmatch(key))
            keys = keys or [key for key, spec in specs.items() if len(spec.shape) == 2]
        if not keys or not set(keys) <= specs.keys():
            raise ReductionError(f"fluorescence finds no spectra, say which with keys=; there are {', '.join(specs)}")
        chosen = [specs[key] for key in keys]
        if any(np.dtype(spec.dtype).kind not in "iu" for spec in chosen):
            raise ReductionError(f"fluorescence: {keys[0]} has no integers: counts are needed, not corrected spectra")
        shapes = {spec.shape for spec in chosen}
        shape = chosen[0].shape
        if len(shapes) != 1 or len(shape) not in (1, 2) or (len(shape) == 2 and len(keys) != 1):
            raise ReductionError(
                f"fluorescence: {', '.join(keys)} have shapes {sorted(shapes)}; expected (channels,) each, or one key "
                "of (elements, channels)"
            )
        count = shape[0] if len(shape) == 2 else len(keys)
        elements = tuple(range(count) if self.params.elements is None else self.params.elements)
        if len(set(elements)) != len(elements) or max(elements) >= count:
            raise ReductionError(f"fluorescence: elements {elements}: each once, of 0 to {count - 1}")
        if len(shape) == 2:
            return _Source(tuple(keys), elements, shape[1], scalers=False)
        keys = [keys[element] for element in elements]
        there = [f"{key}_{name}" in specs for key in keys for name in SCALERS]
        if any(there) and not all(there):
            raise ReductionError(f"fluorescence: not every one of {', '.join(keys)} has {', '.join(SCALERS)}")
        return _Source(tuple(keys), elements, shape[0], scalers=all(there))

    def _spectra(self, batch: Batch) -> list[Array]:
        """Return each element's (n, channels) counts, of 32 bits."""
        found = []
        for key in self._inputs.keys:
            data = batch.data[key]
            if not isinstance(data, np.ndarray):
                data = np.stack([decode(chunk) if isinstance(chunk, Chunk) else chunk for chunk in data])
            if data.ndim == 3 and data.shape[1] <= max(self._inputs.elements):
                raise ShapeMismatch(f"{key}: spectra of {data.shape[1]} elements, expected more")
            found.extend([data] if data.ndim == 2 else [data[:, element] for element in self._inputs.elements])
        shape = (len(batch.index), self._inputs.channels)
        for spectra in found:
            if spectra.shape != shape or spectra.dtype.kind not in "iu":
                raise ShapeMismatch(f"spectra of {spectra.shape} {spectra.dtype}, expected {shape} of integers")
        return [_of_32_bits(spectra, batch.index) for spectra in found]

    def _factors(self, batch: Batch) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the dead-time factors, (n, elements), and the fraction of time dead, (n,)."""
        keys = self._inputs.keys
        allevent, resetticks, ticks = (
            np.array([batch.data[f"{key}_{name}"] for key in keys], np.float64) for name in SCALERS
        )
        dead = allevent * (self.params.event_width + 1) + resetticks
        live = ticks - dead
        good = (live > 0) & (dead >= 0) & np.isfinite(ticks)
        if not good.all():
            element = int(good.all(axis=1).argmin())
            at = int(good[element].argmin())
            raise ReductionError(
                f"frame {batch.index[at]}: {keys[element]} was dead for {dead[element, at]:.0f} of "
                f"{ticks[element, at]:.0f} ticks: its scalers can't be right, or it counted nothing but dead time"
            )
        fractions = np.zeros(len(batch.index))
        for fraction in dead / ticks:  # a sum over an axis has an order of its own for a single frame
            fractions += fraction
        return (ticks / live).T, fractions / len(keys)


def _of_32_bits(spectra: Array, index: NDArray[np.int64]) -> Array:
    """Return counts as uint32 or int32.

    Raises
    ------
    ReductionError
        A count is too large for that, or negative.
    """
    kind = np.dtype(np.int32 if spectra.dtype.kind == "i" and spectra.dtype.itemsize <= 4 else np.uint32)
    if spectra.dtype.itemsize == 8 and spectra.size:
        limit = np.iinfo(np.uint32).max
        if (wrong := ((spectra < 0) | (spectra > limit)).any(axis=1)).any():
            at = int(wrong.argmax())
            low, high = spectra[at].min(), spectra[at].max()
            culprit = "a negative number of counts" if low < 0 else f"{high} counts in a channel, more than {limit}"
            raise ReductionError(f"frame {index[at]}: {culprit}")
    return spectra.astype(kind, copy=False)
