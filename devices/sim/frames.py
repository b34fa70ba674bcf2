"""A library of frames made ahead: compressed once, replayed at any rate.

Synthesis can't keep up with a detector (10 ms for Poisson noise on an Eiger 500k alone), so every frame that may be
shown exists before the scan. Which one is shown depends on the seed, the frame's number and the sample's position
alone: two runs with the same seed give the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import combinations_with_replacement
from math import asin, isqrt, sqrt
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...workers.errors import SettingsError
from .eiger_geometry import GAP, MODULE, Model, default_poni, model, wavelength

Phases = Callable[[float, float], tuple[float, float]]
"""The sample: how much of each of two phases, in [0, 1], stands in the beam at (x, y) in µm."""

Position = tuple[float, float]
Floats = NDArray[np.float64]

RINGS: Final = {"CeO2": 5.411651e-10, "Ni": 3.52387e-10}
"""The two phases, and the edges of their cells, m. Both are face-centred cubic."""

LEVELS: Final = 4
"""Each phase's amount is rounded to one of so many levels."""

_COUNTS = 40.0  # at the strongest ring's crest, for an amount of 1
_RING_SIGMA = np.radians(0.06)  # a pixel of 75 µm at 0.1 m is 0.043°
_SPOTS = 60
_MASK_64 = 2**64 - 1


def both_everywhere(x: float, y: float) -> tuple[float, float]:
    """Say that all of both phases is everywhere: the sample of those who give none."""
    return 1.0, 1.0


def compress(frame: NDArray[Any]) -> bytes:
    """Return a frame as bitshuffle-lz4 chunk with HDF5's 12-byte header: what a DCU sends and its FileWriter stores."""
    import h5py
    import hdf5plugin

    filters = hdf5plugin.Bitshuffle(nelems=0, cname="lz4")
    with h5py.File("frame.h5", "w", driver="core", backing_store=False) as file:
        stored = file.create_dataset("data", data=frame, chunks=frame.shape, **filters)
        return bytes(stored.id.read_direct_chunk((0,) * frame.ndim)[1])


class FrameLibrary:
    """Prepared frames of one detector. Make one with :meth:`synthetic` or :meth:`from_file`.

    Attributes
    ----------
    shape : (rows, columns)
    dtype : ``"<u2"`` or ``"<u4"``; masked pixels have all bits set, as an Eiger's have.
    blobs : bslz4 chunks with the 12-byte HDF5 header.
    mask : (rows, columns) uint32, DECTRIS bits: 0 gap, 1 dead.
    model : what the detector says it is.
    poni : text of a .poni file that fits the frames, None if only the user can know.
    """

    def __init__(
        self,
        expected: Callable[[float, float], Floats],
        mask: NDArray[np.uint32],
        *,
        model: Model,
        dtype: str = "<u2",
        seed: int = 0,
        phases: Phases = both_everywhere,
        realisations: int = 2,
        poni: str | None = None,
    ) -> None:
        """Make them all: ``LEVELS``² mixes of the phases, each with ``realisations`` of its noise.

        ``expected(w1, w2)`` gives the counts to expect, (rows, columns), for the phases' amounts.
        """
        if not 1 <= realisations <= 64:
            raise SettingsError(f"realisations: {realisations} isn't in [1, 64]")
        self.shape: tuple[int, int] = (mask.shape[0], mask.shape[1])
        self.dtype = np.dtype(dtype).newbyteorder("<").str
        self.mask, self.model, self.poni = mask, model, poni
        self.seed, self.phases, self.realisations = seed, phases, realisations
        nodata = int(np.iinfo(self.dtype).max)
        self.saturation = nodata - 2
        blobs = []
        for mix in range(LEVELS**2):
            counts = expected(mix // LEVELS / (LEVELS - 1), mix % LEVELS / (LEVELS - 1))
            for realisation in range(realisations):
                noise = np.random.default_rng([seed, mix, realisation])
                frame = np.minimum(noise.poisson(counts), self.saturation).astype(self.dtype)
                frame[mask != 0] = nodata
                blobs.append(compress(frame))
        self.blobs: tuple[bytes, ...] = tuple(blobs)
        self.hashes = tuple(hashlib.md5(blob, usedforsecurity=False).hexdigest() for blob in blobs)

    @classmethod
    def synthetic(
        cls,
        model_name: str = "500k",
        *,
        phases: Phases = both_everywhere,
        seed: int = 0,
        dtype: str = "<u2",
        realisations: int = 2,
    ) -> FrameLibrary:
        """Make frames of two powders' rings, some spots and a background, for the geometry of :func:`default_poni`."""
        known = model(model_name)
        mask = _synthetic_mask(known, seed)
        angles = _two_theta(known)
        rings = [_rings(angles, edge, known.photon_energy) for edge in RINGS.values()]
        spots = _spots(known.shape, seed)
        background = 2.0 * np.exp(-angles / 0.25) + 0.05

        def expected(first: float, second: float) -> Floats:
            mixed: Floats = _COUNTS * (first * rings[0] + second * rings[1]) + first * spots + background
            return mixed

        return cls(
            expected,
            mask,
            model=known,
            dtype=dtype,
            seed=seed,
            phases=phases,
            realisations=realisations,
            poni=default_poni(model_name),
        )

    @classmethod
    def from_file(
        cls,
        path: Path | str,
        *,
        flip: str | None = None,
        phases: Phases = both_everywhere,
        seed: int = 0,
        dataset: str | None = None,
        dtype: str | None = None,
        realisations: int = 2,
        pixel_size: float = 75e-6,
    ) -> FrameLibrary:
        """Make frames like a recorded one: its counts are expected, times 0.25 + 0.75 × the phases' mean amount.

        Parameters
        ----------
        path
            Any image that fabio reads, or an HDF5 file; of a stack the first frame is taken.
        flip
            ``"ud"`` turns it upside down, ``"lr"`` left to right.
        dataset
            Which one of an HDF5 file; else the first with frames in it.
        dtype
            Without it ``"<u2"`` if the counts fit, else ``"<u4"``. Pixels that are negative or not finite are masked.

        Raises
        ------
        SettingsError
            The file can't be read, holds no frame, or ``flip`` is unknown.
        """
        frame = read_frame(Path(path), dataset)
        if flip not in (None, "ud", "lr"):
            raise SettingsError(f"flip {flip!r}: expected ud, lr or none")
        frame = frame[::-1] if flip == "ud" else frame[:, ::-1] if flip == "lr" else frame
        kind = frame.dtype.kind
        bad = frame == np.iinfo(frame.dtype).max if kind == "u" else ~np.isfinite(frame) | (frame < 0)
        counts = np.where(bad, 0, frame).astype(np.float64)
        if dtype is None:
            # Noise goes a few sigma beyond what is expected.
            highest = counts.max(initial=0.0)
            dtype = "<u2" if highest + 8 * np.sqrt(highest) < np.iinfo("u2").max - 2 else "<u4"

        def expected(first: float, second: float) -> Floats:
            scaled: Floats = counts * (0.25 + 0.75 * (first + second) / 2)
            return scaled

        title = f"Dectris Eiger X, replaying {Path(path).name}"
        shape = (counts.shape[0], counts.shape[1])
        return cls(
            expected,
            bad.astype(np.uint32),
            model=Model("replay", title, shape, 1 / 9000, "Detector", pixel_size=pixel_size),
            dtype=dtype,
            seed=seed,
            phases=phases,
            realisations=realisations,
        )

    def index(self, frame: int, position: Position) -> int:
        """Return which of :attr:`blobs` is shown as frame number ``frame`` with the sample at ``position``, µm."""
        first, second = self.phases(*position)
        top = LEVELS - 1
        mix = min(max(round(first * top), 0), top) * LEVELS + min(max(round(second * top), 0), top)
        # One round of splitmix64 over seed and frame: well mixed, and the same on every machine.
        word = (frame * 0x9E3779B97F4A7C15 + self.seed * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & _MASK_64
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK_64
        return mix * self.realisations + (word ^ (word >> 31)) % self.realisations

    def blob(self, frame: int, position: Position) -> bytes:
        """Return the compressed frame that is shown then."""
        return self.blobs[self.index(frame, position)]


def _two_theta(known: Model) -> Floats:
    """Return each pixel's centre's 2θ, (rows, columns), radian: a detector at right angles to the beam."""
    rows, columns = known.shape
    y = (np.arange(rows) + 0.5 - rows * known.beam[0]) * known.pixel_size
    x = (np.arange(columns) + 0.5 - columns * known.beam[1]) * known.pixel_size
    angles: Floats = np.arctan2(np.hypot(y[:, None], x[None, :]), known.distance)
    return angles


def _rings(angles: Floats, edge: float, photon_energy: float) -> Floats:
    """Return a powder's rings, the strongest 1 high. Strengths fall with the angle; they are not the phase's own."""
    grid = np.linspace(0.0, float(angles.max()), 20_000)
    profile = np.zeros_like(grid)
    for order, angle in enumerate(ring_angles(edge, wavelength(photon_energy))):
        if angle > grid[-1]:
            break
        strength = (1.0, 0.35, 0.7, 0.55)[order % 4] * np.exp(-order / 8)
        profile += strength * np.exp(-0.5 * ((grid - angle) / _RING_SIGMA) ** 2)
    rings: Floats = np.interp(angles, grid, profile)
    return rings


def ring_angles(edge: float, wave: float) -> list[float]:
    """Return 2θ of the rings of a face-centred cubic powder, radian, in order; ``edge`` and ``wave`` length in m.

    pyFAI knows them too, but takes longer to import than all the frames to make.

    >>> [round(float(np.degrees(angle)), 2) for angle in ring_angles(5.411651e-10, 0.6888e-10)[:3]]
    [12.66, 14.62, 20.74]
    """
    most = int((2 * edge / wave) ** 2)
    indices = combinations_with_replacement(range(isqrt(most) + 1), 3)
    squares = {sum(i * i for i in hkl) for hkl in indices if len({i % 2 for i in hkl}) == 1}  # all even or all odd
    return [2 * asin(sqrt(square) * wave / (2 * edge)) for square in sorted(squares) if 0 < square <= most]


def _spots(shape: tuple[int, int], seed: int) -> Floats:
    """Return reflections of a few crystals, counts: Gaussian spots of 1.4 pixels, most of them weak."""
    noise = np.random.default_rng([seed, 1])
    counts = np.zeros(shape)
    reach = np.arange(-7, 8)
    rows, columns = shape
    where = zip(noise.uniform(8, rows - 8, _SPOTS), noise.uniform(8, columns - 8, _SPOTS), strict=True)
    for (y, x), total in zip(where, np.minimum(noise.lognormal(6.0, 1.2, _SPOTS), 2e4), strict=True):
        row, column = int(y), int(x)
        spot = np.exp(-((reach[:, None] - (y - row)) ** 2 + (reach[None, :] - (x - column)) ** 2) / (2 * 1.4**2))
        counts[row - 7 : row + 8, column - 7 : column + 8] += total * spot / spot.sum()
    return counts


def _synthetic_mask(known: Model, seed: int) -> NDArray[np.uint32]:
    """Return gaps between modules (bit 0) and a few dead pixels (bit 1)."""
    rows, columns = (
        np.arange(size) % (module + gap) >= module for size, module, gap in zip(known.shape, MODULE, GAP, strict=True)
    )
    mask = (rows[:, None] | columns).astype(np.uint32)
    mask[np.random.default_rng([seed, 2]).random(known.shape) < 2e-5] |= 2
    return mask


def read_frame(path: Path, dataset: str | None = None) -> NDArray[Any]:
    """Return the frame in an image or an HDF5 file, of a stack the first one: (rows, columns).

    Raises
    ------
    SettingsError
        The file can't be read, or holds no frame.
    """
    import h5py

    try:
        if h5py.is_hdf5(path):
            return _read_hdf5(path, dataset)
        import fabio

        frame = np.asarray(fabio.open(str(path)).data)
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise SettingsError(f"{path}: no frame can be read from it: {error}") from None
    if frame.ndim != 2 or frame.size == 0:
        raise SettingsError(f"{path}: an image of shape {frame.shape} is no frame")
    return frame


def _read_hdf5(path: Path, dataset: str | None) -> NDArray[Any]:
    import h5py
    import hdf5plugin  # noqa: F401 - registers the filters

    with h5py.File(path) as file:
        found = file[dataset] if dataset else _first_stack(file)
        if not isinstance(found, h5py.Dataset) or found.ndim < 2 or found.size == 0:
            raise SettingsError(f"{path}: {dataset or 'no dataset in it'} is no frame or stack of frames")
        return np.asarray(found[(0,) * (found.ndim - 2)])


def _first_stack(file: Any) -> Any:
    import h5py

    stacks: list[Any] = []
    file.visititems(lambda _, item: stacks.append(item) if isinstance(item, h5py.Dataset) and item.ndim > 1 else None)
    # A file of frames also has masks and tables; the frames are the deepest stack.
    return max(stacks, key=lambda item: item.ndim, default=None)
