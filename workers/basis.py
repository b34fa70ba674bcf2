"""An XRF basis as numbers: how each line looks in a spectrum, and the matrix that gives its area."""

from __future__ import annotations

import io
import math
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .errors import FileError, ReductionError

FORMAT: Final = 2
MAX_CHANNELS: Final = 16384
MAX_COMPONENTS: Final = 256
KINDS: Final = ("line", "scatter", "background")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]{0,47}")
_KINDS = {
    "components": "U",
    "kinds": "U",
    "source": "U",
    "templates": "f",
    "operator": "f",
    "energy": "f",
    "weights": "f",
}
_MEMBERS = {1: {"format", *_KINDS} - {"weights"}, 2: {"format", *_KINDS}}
"""What each format holds; the first had no weights."""

_MAX_BYTES = 8 * MAX_CHANNELS * (2 * MAX_COMPONENTS + 1) + 65536


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """A linear model of a spectrum: counts ≈ areas @ templates.

    components
        A name for each, such as ``Fe_Ka``.
    kinds
        For each ``"line"``, ``"scatter"`` or ``"background"``.
    templates
        (components, channels) float64: the counts that area 1 gives in each channel.
    operator
        (components, channels) float64: areas = operator @ spectrum. Its weights are frozen in it, so that the same
        spectrum gives the same areas on every host and in every run.
    energy
        (zero, gain) in keV: channel c is at zero + gain·c.
    source
        What it was made from, for people.
    weights
        (channels,) float64, positive: how much a channel's squared misfit counts; None if that isn't known.
    """

    components: tuple[str, ...]
    kinds: tuple[str, ...]
    templates: NDArray[np.float64]
    operator: NDArray[np.float64]
    energy: tuple[float, float]
    source: str = ""
    weights: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        """Check it.

        Raises
        ------
        ReductionError
            Names, kinds, shapes or numbers don't fit each other.
        """
        n = len(self.components)
        if not 0 < n <= MAX_COMPONENTS or len(set(self.components)) != n or len(self.kinds) != n:
            raise ReductionError(f"basis: {n} components, {len(set(self.components))} names, {len(self.kinds)} kinds")
        if bad := [name for name in self.components if not _NAME.fullmatch(name)]:
            raise ReductionError(f"basis: {bad[0]!r} can't name a component (letters, digits and _)")
        if bad := [kind for kind in self.kinds if kind not in KINDS]:
            raise ReductionError(f"basis: {bad[0]!r} is no kind; there are {', '.join(KINDS)}")
        for name in ("templates", "operator"):
            array: NDArray[Any] = getattr(self, name)
            if array.ndim != 2 or array.shape[0] != n or not 0 < array.shape[1] <= MAX_CHANNELS:
                raise ReductionError(f"basis: {name} of {array.shape} for {n} components")
            if array.dtype != np.float64 or not np.isfinite(array).all():
                raise ReductionError(f"basis: {name} must be finite float64")
        if self.templates.shape != self.operator.shape:
            raise ReductionError(f"basis: templates {self.templates.shape}, operator {self.operator.shape}")
        if self.weights is not None and not _are_weights(self.weights, self.channels):
            raise ReductionError(f"basis: weights of {self.weights.shape}, expected {self.channels}, positive, finite")
        if not (len(self.energy) == 2 and np.isfinite(self.energy).all() and self.energy[1] > 0):
            raise ReductionError(f"basis: {self.energy} is no energy calibration")

    @property
    def channels(self) -> int:
        """Channels of the spectra it is for."""
        return int(self.templates.shape[1])

    def of_kind(self, *kinds: str) -> tuple[str, ...]:
        """Return the components of these kinds."""
        return tuple(name for name, kind in zip(self.components, self.kinds, strict=True) if kind in kinds)

    def covariance(self) -> NDArray[np.float64]:
        """Return the (components, components) covariance of the areas, where a channel's variance is 1 / weight.

        Added in the order of the channels, not by a BLAS: it is the same to the bit on every host.

        Raises
        ------
        ReductionError
            The basis has no weights.
        """
        if self.weights is None:
            raise ReductionError("the basis has no weights: make it anew (haltere basis CFG)")
        found = np.zeros((len(self.components),) * 2)
        for k, row in enumerate(self.operator):
            products = self.operator[k:] * (row / self.weights)
            found[k, k:] = found[k:, k] = np.add.accumulate(products, axis=1)[:, -1]
        return found

    def save(self, path: Path | str) -> None:
        """Write it as ``.npz``; equal bases give equal bytes."""
        try:
            Path(path).write_bytes(self.to_bytes())
        except OSError as error:
            raise FileError(f"{path}: the basis can't be written: {error.strerror}") from None

    def to_bytes(self) -> bytes:
        """Return it as the bytes of an ``.npz``."""
        content = io.BytesIO()
        members: dict[str, Any] = {
            "format": np.int64(1 if self.weights is None else FORMAT),
            "components": np.array(self.components),
            "kinds": np.array(self.kinds),
            "templates": self.templates,
            "operator": self.operator,
            "energy": np.array(self.energy, np.float64),
            "source": np.array(self.source),
        }
        if self.weights is not None:
            members["weights"] = self.weights
        np.savez_compressed(content, **members)
        return content.getvalue()


def _are_weights(weights: NDArray[np.float64], channels: int) -> bool:
    return bool(
        weights.shape == (channels,)
        and weights.dtype == np.float64
        and np.isfinite(weights).all()
        and (weights > 0).all()
    )


def weights(channels: int, reference: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Return how much each channel's squared misfit counts: as :func:`operator` has it."""
    return np.ones(channels) if reference is None else 1 / np.maximum(reference, 1.0)


def operator(templates: NDArray[np.float64], reference: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Return the matrix of the weighted least-squares fit.

    Parameters
    ----------
    templates
        (components, channels) float64.
    reference
        (channels,), counts of a typical spectrum; each channel weighs 1 / max(counts, 1), so that small lines don't
        drown in the noise of large ones. None: all channels weigh the same. Areas are unbiased either way.

    Raises
    ------
    ReductionError
        The templates aren't independent: some component is a mixture of others, or empty.
    """
    weight = np.sqrt(weights(templates.shape[1], reference))
    weighted = (templates * weight).T
    norms = np.linalg.norm(weighted, axis=0)
    if not norms.all() or np.linalg.cond(weighted / norms) > 1e8:
        raise ReductionError("basis: a component is empty, or a mixture of others: leave it out of the configuration")
    # Columns of length 1 first: areas and backgrounds differ by orders of magnitude.
    inverse: NDArray[np.float64] = np.linalg.pinv(weighted / norms) / norms[:, None] * weight
    return inverse


def load(source: Path | str | bytes) -> Basis:
    """Read a basis from a file or from its bytes.

    Raises
    ------
    FileError
        The file can't be read.
    ReductionError
        It isn't a basis.
    """
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise FileError(f"{source!s}: the basis can't be read: {error.strerror}") from None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {info.filename.removesuffix(".npy") for info in archive.infolist()}
            size = sum(info.file_size for info in archive.infolist())
            if members not in _MEMBERS.values() or size > _MAX_BYTES:
                raise ReductionError(f"not a basis: it holds {', '.join(sorted(members))[:200]}, {size} bytes")
            found = {name: _array(archive.read(f"{name}.npy")) for name in members}
    except ReductionError:
        raise
    except Exception as error:  # whatever zipfile, zlib and numpy have to say of bytes that aren't theirs
        raise ReductionError(f"not a basis: {error} (make one with: haltere basis CFG)") from None
    written = found["format"]
    if written.shape or written.dtype.kind != "i" or _MEMBERS.get(int(written)) != members:
        raise ReductionError(f"a basis of format {written}, expected {FORMAT}: make it anew (haltere basis CFG)")
    if any(found[name].dtype.kind != kind for name, kind in _KINDS.items() if name in found):
        raise ReductionError("not a basis: its names aren't text, or its numbers no numbers")
    return Basis(
        tuple(map(str, found["components"].ravel())),
        tuple(map(str, found["kinds"].ravel())),
        np.ascontiguousarray(found["templates"]),
        np.ascontiguousarray(found["operator"]),
        tuple(float(value) for value in found["energy"].ravel()),  # type: ignore[arg-type]
        str(found["source"]),
        found.get("weights"),
    )


def _array(content: bytes) -> NDArray[Any]:
    """Return the array that a member of the archive holds: no more is taken than there is."""
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array of another format than 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    data = content[file.tell() :]
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"an array of {shape} {dtype} with {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
