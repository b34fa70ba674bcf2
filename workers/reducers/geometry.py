"""Where the detector stands: a poni as plain, checked numbers, and the pyFAI integrator made from them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta, Struct

from ..errors import ReductionError, ShapeMismatch

if TYPE_CHECKING:
    from pyFAI.integrator.azimuthal import AzimuthalIntegrator

MAX_PONI = 64 * 1024
"""Most bytes in a poni file; one has 400, a calibration history of ten 4 kB."""

_Side = Annotated[int, Meta(ge=1, le=65536)]


class Geometry(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A poni's numbers: lengths in m, angles in rad, as pyFAI defines them.

    ``detector`` is a name that pyFAI knows, or ``"Detector"`` for plain pixels of ``pixel1`` × ``pixel2``.
    ``shape`` is (rows, columns), None if the poni doesn't tell: then any frame fits.

    >>> Geometry(dist=0.2, poni1=0.04, poni2=0.04, pixel1=75e-6, pixel2=75e-6).detector
    'Detector'
    """

    dist: Annotated[float, Meta(gt=0, lt=1000)]
    poni1: float
    poni2: float
    rot1: float = 0.0
    rot2: float = 0.0
    rot3: float = 0.0
    wavelength: Annotated[float, Meta(gt=1e-13, lt=1e-7)] | None = None
    detector: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _+./-]{0,63}\Z")] = "Detector"
    pixel1: Annotated[float, Meta(gt=1e-8, lt=1)] | None = None
    pixel2: Annotated[float, Meta(gt=1e-8, lt=1)] | None = None
    shape: tuple[_Side, _Side] | None = None
    orientation: Annotated[int, Meta(ge=0, le=4)] = 3

    def fits(self, shape: tuple[int, ...], what: str) -> None:
        """Compare with the shape of ``what``, a data key.

        Raises
        ------
        ShapeMismatch
            The poni is of another detector, or of a cut or binned one.
        """
        if self.shape is not None and tuple(shape) != self.shape:
            raise ShapeMismatch(
                f"the poni describes {self.detector} with {self.shape[0]} × {self.shape[1]} pixels, {what} has "
                f"{' × '.join(map(str, shape))}: calibrate with a frame of this detector, or name its own poni"
            )


def load(poni: Path | str | Mapping[str, Any] | Geometry) -> Geometry:
    """Return a poni file's geometry (a ``Path``, or a ``str`` without a line break), or see :func:`parse`.

    The shape of a named detector is looked up in pyFAI, so that later checks don't need it.
    """
    if isinstance(poni, Path) or (isinstance(poni, str) and "\n" not in poni):
        try:
            with open(poni, encoding="utf-8") as file:
                text = file.read(MAX_PONI + 1)
        except (OSError, UnicodeDecodeError) as error:
            raise ReductionError(f"poni {poni} can't be read: {getattr(error, 'strerror', error)}") from None
        try:
            geometry = parse(text + "\n")
        except ReductionError as error:
            raise ReductionError(f"poni {poni}: {str(error).removeprefix('poni: ')}") from None
    else:
        geometry = parse(poni)
    if geometry.shape is None and geometry.detector != "Detector":
        geometry = msgspec.structs.replace(geometry, shape=_detector(geometry).max_shape)
    return geometry


def parse(poni: str | Mapping[str, Any] | Geometry) -> Geometry:
    """Return the geometry in a poni's text (the last of several calibrations), in a mapping of its keys, or in a
    mapping of :class:`Geometry`'s fields.

    Raises
    ------
    ReductionError
        A number is missing, no number or out of range, or the geometry refers to a file.
    """  # noqa: D205
    if isinstance(poni, Geometry):
        return poni
    if isinstance(poni, str):
        if len(poni) > MAX_PONI or "\n" not in poni:
            raise ReductionError("poni: expected the text of a poni file or a mapping (recipe_params reads a file)")
        found: dict[str, Any] = dict(re.findall(r"^\s*(\w+)\s*:\s*(.*?)\s*$", poni, re.MULTILINE))
    elif isinstance(poni, Mapping):
        found = dict(poni)
    else:
        raise ReductionError(f"poni: expected the text of a poni file or a mapping, got {type(poni).__name__}")
    fields = {_RENAMED.get(str(key).lower(), str(key).lower()): value for key, value in found.items()}
    fields = {key: value for key, value in fields.items() if value not in (None, "", "None")}
    fields |= _configuration(fields.pop("detector_config", {}))
    for key in ("poni_version", "version"):
        fields.pop(key, None)
    if str(fields.pop("parallax", "")).lower() not in ("", "false", "0"):
        raise ReductionError("poni: it corrects for parallax, which isn't supported: calibrate without")
    if "splinefile" in fields:
        raise ReductionError("poni: it refers to a spline file, which workers don't open: use a poni without one")
    try:
        geometry = msgspec.convert(fields, Geometry, strict=False)
    except msgspec.ValidationError as error:
        raise ReductionError(f"poni: {error}") from None
    numbers = (geometry.poni1, geometry.poni2, geometry.rot1, geometry.rot2, geometry.rot3)
    if not all(math.isfinite(number) for number in numbers):
        raise ReductionError(f"poni: a number isn't finite: {numbers}")
    if geometry.detector == "Detector" and None in (geometry.pixel1, geometry.pixel2):
        raise ReductionError("poni: it names neither a detector nor pixel sizes")
    return geometry


def integrator(geometry: Geometry, shape: tuple[int, int]) -> AzimuthalIntegrator:
    """Return pyFAI's integrator for frames of ``shape``."""
    from pyFAI.integrator.azimuthal import AzimuthalIntegrator

    detector = _detector(geometry)
    if detector.max_shape is None:
        detector.max_shape = shape
    msgspec.structs.replace(geometry, shape=tuple(detector.max_shape)).fits(shape, "the stream")
    numbers = (geometry.dist, geometry.poni1, geometry.poni2, geometry.rot1, geometry.rot2, geometry.rot3)
    return AzimuthalIntegrator(*numbers, detector=detector, wavelength=geometry.wavelength)


_RENAMED = {"distance": "dist", "pixelsize1": "pixel1", "pixelsize2": "pixel2", "max_shape": "shape"}


def _configuration(value: Any) -> dict[str, Any]:
    """Return the detector's configuration as fields of a geometry."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ReductionError(f"poni: Detector_config is no JSON: {error}") from None
    if not isinstance(value, Mapping):
        raise ReductionError("poni: Detector_config is no mapping")
    config: dict[str, Any] = {_RENAMED.get(str(key), str(key)): item for key, item in value.items() if item is not None}
    if others := sorted(config.keys() - {"pixel1", "pixel2", "shape", "orientation"}):
        raise ReductionError(f"poni: the detector's {', '.join(others)} isn't supported; use a mask instead of files")
    return config


def _detector(geometry: Geometry) -> Any:
    """Return pyFAI's detector. Its own factory would open a file of that name, so the name is looked up here."""
    from pyFAI import detectors

    if geometry.detector == "Detector":
        shape = None if geometry.shape is None else list(geometry.shape)
        return detectors.Detector(geometry.pixel1, geometry.pixel2, max_shape=shape, orientation=geometry.orientation)
    known: dict[str, type] = detectors.ALL_DETECTORS
    name = geometry.detector.lower()
    kind = known.get(name) or known.get(name.replace(" ", "_"))
    if kind is None or kind is detectors.NexusDetector:
        raise ReductionError(f"poni: pyFAI knows no detector {geometry.detector!r}")
    try:
        detector = kind(orientation=geometry.orientation)
    except TypeError:
        raise ReductionError(f"poni: detector {geometry.detector!r} can't be made from numbers alone") from None
    declared = (geometry.pixel1 or detector.pixel1, geometry.pixel2 or detector.pixel2)
    if not all(map(math.isclose, declared, (detector.pixel1, detector.pixel2))):
        raise ReductionError(
            f"poni: {geometry.detector} is binned there (pixels of {declared} m), which isn't supported"
        )
    return detector
