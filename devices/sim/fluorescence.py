"""What a four-element silicon drift detector counts at a position of the sample.

Line energies (Kα1, Kα2, Kβ1) and relative intensities are those of the X-ray Data Booklet (Lawrence Berkeley National
Laboratory, LBNL/PUB-490 Rev. 3), tables 1-2 and 1-3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .sample import Sample

LINES: Final = {  # keV, share
    "Ca": ((3.69168, 100.0), (3.68809, 50.0), (4.0127, 13.0)),
    "Ti": ((4.51084, 100.0), (4.50486, 50.0), (4.93181, 15.0)),
    "Mn": ((5.89875, 100.0), (5.88765, 50.0), (6.49045, 17.0)),
    "Fe": ((6.40384, 100.0), (6.39084, 50.0), (7.05798, 17.0)),
    "Ni": ((7.47815, 100.0), (7.46089, 51.0), (8.26466, 17.0)),
    "Cu": ((8.04778, 100.0), (8.02783, 51.0), (8.90529, 17.0)),
    "Zn": ((8.63886, 100.0), (8.61578, 51.0), (9.5720, 17.0)),
}

BINS: Final = 4096
GAIN: Final = 0.01  # keV per channel; channel k is centred at k·GAIN
NOISE: Final = 0.08  # keV, FWHM of the electronics
FANO: Final = 0.114  # silicon
PAIR: Final = 0.00385  # keV per electron–hole pair in silicon, as PyMca has it
BEAM: Final = 18.0  # keV
COMPTON: Final = BEAM / (1.0 + BEAM / 510.999)  # keV, at 90°
COMPTON_FWHM: Final = 0.35  # keV; Doppler broadening, larger than the detector's

CLOCK: Final = 80e6  # ticks/s
EVENT_WIDTH: Final = 6  # ticks; dead = allevent·(EVENT_WIDTH + 1) + resetticks
RESET_TICKS: Final = 400  # per reset
RESET_RATE: Final = 200.0  # resets/s

ELEMENT_RATE: Final = {
    "Ca": 14e3,
    "Ti": 20e3,
    "Mn": 28e3,
    "Fe": 62e3,
    "Ni": 32e3,
    "Cu": 48e3,
    "Zn": 40e3,
}
"""Photons/s per detector element at a density of 1."""
OTHER_RATE: Final = {"background": 8e3, "elastic": 8e3, "compton": 22e3}
SOLID_ANGLE: Final = (1.0, 0.94, 0.97, 0.91, 0.99, 0.93, 0.96, 0.92)
"""What each detector element sees, relative to the first."""

WINDOWS: Final = ((620, 661), (785, 826))
"""Channels of the two in-window counters: Fe Kα and Cu Kα."""

SCALERS: Final = (
    "allevent",
    "allgood",
    "inwindow0",
    "inwindow1",
    "pileup",
    "resetcounts",
    "resetticks",
    "time",
    "totalticks",
)

_STEPS: Final = 65536


def sigma(energy: float) -> float:
    """Return the detector's standard deviation at ``energy``, both in keV.

    >>> round(2.3548 * sigma(5.895), 3)
    0.144
    """
    return float(np.sqrt((NOISE / 2.3548) ** 2 + PAIR * FANO * energy))


def line_shape(lines: tuple[tuple[float, float], ...], width: float | None = None) -> NDArray[np.float64]:
    """Return (4096,) the spectrum of lines (keV, share), with a sum of 1."""
    energy = np.arange(BINS) * GAIN
    total = np.zeros(BINS)
    for place, share in lines:
        spread = sigma(place) if width is None else np.hypot(sigma(place), width)
        total += share / spread * np.exp(-((energy - place) ** 2) / (2.0 * spread**2))
    return np.asarray(total / total.sum())


def _background() -> NDArray[np.float64]:
    energy = np.arange(BINS) * GAIN
    shape: NDArray[np.float64] = np.where((energy > 0.8) & (energy < BEAM), 0.3 + np.exp(-energy / 5.0), 0.0)
    return np.asarray(shape / shape.sum())


@dataclass(frozen=True)
class Reading:
    """One frame: histograms (channels, 4096) int32, scalers (channels, 9) float32 in the order of SCALERS."""

    histograms: NDArray[np.int32]
    scalers: NDArray[np.float32]


class Spectrometer:
    """The detector before the sample.

    A photon's channel is drawn from its component's table of 65,536 equally likely channels, so a frame costs as many
    look-ups as it has counts: 4 × 150 at 1 ms, where Poisson draws of 4 × 4096 channels would cost a third of a core.

    Parameters
    ----------
    sample : Sample
    seed : int
    channels : int
        Detector elements.
    """

    def __init__(self, sample: Sample, seed: int = 0, channels: int = 4) -> None:
        self.sample = sample
        self.seed = seed
        self.channels = channels
        shapes = [line_shape(LINES[name]) for name in ELEMENT_RATE]
        shapes += [_background(), line_shape(((BEAM, 1.0),)), line_shape(((COMPTON, 1.0),), COMPTON_FWHM / 2.3548)]
        quantiles = (np.arange(_STEPS) + 0.5) / _STEPS
        self._tables = np.stack([np.searchsorted(np.cumsum(shape), quantiles) for shape in shapes]).astype(np.int32)
        self._flat = self._tables.ravel()
        self._rows = np.tile(np.arange(len(shapes)) * _STEPS, channels)
        self._firsts = np.arange(channels) * BINS
        self._angles = np.asarray(SOLID_ANGLE[:channels])[:, None]

    def rates(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (n, components) photons/s on an element of full solid angle, at n positions in µm."""
        densities = self.sample.elements(x, y)
        columns = [densities[name] * rate for name, rate in ELEMENT_RATE.items()]
        columns += [np.full(np.shape(x), rate) for rate in OTHER_RATE.values()]
        # Rounded: the last bit of exp depends on the processor and on how many positions are asked at once.
        return np.asarray(np.stack(columns, axis=-1).round(3), np.float64)

    def expectation(self, rates: NDArray[np.float64], seconds: float) -> NDArray[np.float64]:
        """Return (4096,) mean counts of an element of full solid angle without dead time, from one row of rates."""
        spectra = np.stack([np.bincount(table, minlength=BINS) for table in self._tables]) / _STEPS
        return np.asarray(seconds * rates @ spectra)

    def read(self, number: int, x: float, y: float, rates: NDArray[np.float64], seconds: float) -> Reading:
        """Return frame ``number`` of the acquisition, gated open for ``seconds`` at (x, y).

        A pure function of the seed and its arguments. ``rates`` is the row of :meth:`rates` for (x, y).
        """
        picometres = [round(value * 1e6) & 0xFFFF_FFFF_FFFF for value in (x, y)]
        rng = np.random.default_rng([self.seed & 0xFFFF_FFFF_FFFF, 1, number, *picometres])
        channels = self.channels
        ticks = seconds * CLOCK
        resets = rng.poisson(RESET_RATE * seconds, channels)
        reset_ticks = np.minimum(resets * RESET_TICKS, ticks)
        arriving = self._angles * rates
        # Paralysable: a photon is counted if none came within the event width before it.
        open_share = np.exp(-arriving.sum(axis=1) * (EVENT_WIDTH + 1) / CLOCK) * (1.0 - reset_ticks / ticks)
        counts = rng.poisson(arriving * seconds * open_share[:, None])
        total = counts.sum(axis=1)
        draws = rng.integers(0, _STEPS, size=int(total.sum()), dtype=np.uint16)
        bins = self._flat[np.repeat(self._rows, counts.ravel()) + draws] + np.repeat(self._firsts, total)
        histograms = np.zeros((channels, BINS), np.int32)
        np.add.at(histograms.reshape(-1), bins, np.int32(1))  # a plain 1 would be ten times slower
        pileup = rng.binomial(total, 1.0 - np.sqrt(open_share))
        scalers = np.empty((channels, len(SCALERS)), np.float32)
        columns = (
            total,
            total - pileup,
            histograms[:, slice(*WINDOWS[0])].sum(axis=1),
            histograms[:, slice(*WINDOWS[1])].sum(axis=1),
            pileup,
            resets,
            reset_ticks,
            np.full(channels, ticks),
            np.full(channels, ticks),
        )
        for index, column in enumerate(columns):
            scalers[:, index] = column
        return Reading(histograms, scalers)
