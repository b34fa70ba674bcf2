"""Spectra to areas: the kernel beside PyMca, scipy and numpy, in turns on one core.

Spectra of 4096 channels, fitted over all of them by 25 templates that PyMca makes of a configuration: Ka and Kb of nine
elements, elastic and Compton peak, a background of five terms. Half of the elements are missing in each spectrum.

``python -m haltere.benchmarks.kernel.spectra '{"core": 0, "seconds": 0.3}'`` prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...workers import basis
from ...workers.reducers.base import Batch, Setup
from ...workers.wire.messages import InputSpec
from .tasks import OURS
from .timing import Competitor, Times, interleave

CHANNELS: Final = 4096
ELEMENTS: Final = ("Ca", "Ti", "Mn", "Fe", "Ni", "Cu", "Zn", "Se", "Sr")
BATCH: Final = 64
COUNTS: Final = 20_000
"""Of a spectrum."""

MAP: Final = 4096
"""Spectra that PyMca gets at once. It sets up its fit in each call; what that takes is told by a call for BATCH."""

TITLES: Final = {
    "least squares": "least squares, one element, dead time",
    "sigma": "the same with standard deviations",
    "four": "least squares with standard deviations, four elements, dead time",
    "nonnegative": "no negative areas, one element, dead time",
    "reducer": "the reducer: four elements, dead time, standard deviations, sum of all spectra, three regions",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One who competes. ``areas`` makes of what its call gave (n, components) areas of the first spectra."""

    task: str
    engine: str
    competitor: Competitor
    areas: Callable[[Any], NDArray[np.float64]] | None = None


@dataclass(frozen=True, slots=True)
class Data:
    """``found`` : the basis. ``counts`` : (BATCH, 4, CHANNELS) uint32. ``factors`` : (BATCH, 4), of dead time."""

    found: basis.Basis
    counts: NDArray[np.uint32]
    factors: NDArray[np.float64]


def configuration() -> str:
    """Return PyMca's configuration: the simulated beamline's, for more elements and all channels."""
    text = Path(str(files("haltere.devices.sim") / "demo_xrf.cfg")).read_text()
    for old, new in (("energy = 18.0", "energy = 38.0"), ("xmin = 250", "xmin = 0"), ("xmax = 1900", "xmax = 4095")):
        if old not in text:
            raise AssertionError(f"demo_xrf.cfg no longer says {old}")
        text = text.replace(old, new)
    peaks = "\n".join(f"{element} = Ka, Kb" for element in ELEMENTS)
    return f"[peaks]\n{peaks}\n\n{text[text.index('[fit]') :]}"


def make_data(cfg: Path) -> Data:
    """Return the same spectra every time."""
    from ...workers.reducers.pymca_basis import make_basis

    found = make_basis(cfg, channels=CHANNELS)
    rng = np.random.default_rng(20)
    lines = np.array([kind != "background" for kind in found.kinds])
    areas = rng.exponential(1.0, (BATCH, 4, len(lines))) * (rng.random((BATCH, 1, len(lines))) < 0.5) * lines
    expected = areas @ found.templates + 2e-4
    expected *= COUNTS / expected.sum(axis=2, keepdims=True)
    return Data(found, rng.poisson(expected).astype(np.uint32), 1 + rng.uniform(0, 0.3, (BATCH, 4)))


def ours(data: Data) -> list[Entry]:
    """Return the kernel's entries."""
    from ...workers.kernel.nnls import NonNegative
    from ...workers.kernel.spectra import Projection

    found = data.found
    alone, factors = [np.ascontiguousarray(data.counts[:, 0])], data.factors[:, :1]
    four = [np.ascontiguousarray(data.counts[:, element]) for element in range(4)]
    areas, both = Projection(found.operator, []), Projection(found.operator)
    solver = NonNegative(found.covariance(), np.ones(len(found.components), np.bool_))

    def nonnegative(turn: int) -> NDArray[np.float64]:
        settled, states = solver.solve(areas.run(alone, factors).areas)
        if states.any():
            raise AssertionError(solver.reason(int(states.max())))
        return settled

    def made(projected: Any) -> NDArray[np.float64]:
        return np.asarray(projected.areas)

    return [
        Entry("least squares", OURS, Competitor(lambda turn: areas.run(alone, factors), BATCH), made),
        Entry("sigma", OURS, Competitor(lambda turn: both.run(alone, factors), BATCH), made),
        Entry("four", OURS, Competitor(lambda turn: both.run(four, data.factors), 4 * BATCH), made),
        Entry("nonnegative", OURS, Competitor(nonnegative, BATCH), np.asarray),
    ]


def reducer(data: Data, folder: Path) -> Entry:
    """Return the reducer as a worker runs it."""
    from ...workers.assets import AssetStore
    from ...workers.reducers.fluorescence import SCALERS, Fluorescence, recipe_params

    keys = [f"sim_channel{element:02}" for element in range(4)]
    inputs = [InputSpec(key, (CHANNELS,), "<u4") for key in keys]
    inputs += [InputSpec(f"{key}_{name}", (), "<f4") for key in keys for name in SCALERS]
    regions = {"low": (300, 400), "middle": (600, 700), "high": (900, 1000)}
    reduce = Fluorescence(**recipe_params(data.found, AssetStore(folder), rois=regions))
    reduce.setup(Setup(tuple(inputs), folder))
    columns: dict[str, Any] = {}
    for element, key in enumerate(keys):
        columns[key] = np.ascontiguousarray(data.counts[:, element])
        ticks = np.full(BATCH, 80_000.0)
        dead = ticks - ticks / data.factors[:, element]
        for name, values in zip(SCALERS, (np.zeros(BATCH), dead, ticks), strict=True):
            columns[f"{key}_{name}"] = values.astype("<f4")
    batch = Batch(np.arange(BATCH), columns)
    return Entry("reducer", OURS, Competitor(lambda turn: reduce.map(batch), 4 * BATCH))


def others(data: Data) -> list[Entry]:
    """Return numpy's and scipy's entries."""
    from scipy.optimize import nnls

    counts, factors, templates = data.counts[:, 0], data.factors[:, :1], data.found.templates
    single = np.ascontiguousarray(data.found.operator.T, np.float32)
    double = np.ascontiguousarray(data.found.operator.T)
    columns = np.ascontiguousarray(templates.T)

    def by_scipy(turn: int) -> NDArray[np.float64]:
        first = turn % BATCH
        return np.array([nnls(columns, counts[first] * factors[first])[0]])

    return [
        Entry(
            "least squares",
            "numpy, float32",
            Competitor(lambda turn: (counts.astype(np.float32) @ single) * factors, BATCH),
            np.asarray,
        ),
        Entry(
            "least squares",
            "numpy, float64",
            Competitor(lambda turn: (counts.astype(np.float64) @ double) * factors, BATCH),
            np.asarray,
        ),
        Entry("nonnegative", "scipy nnls", Competitor(by_scipy), np.asarray),
    ]


def pymca(data: Data, cfg: Path) -> list[tuple[Entry, Entry]]:
    """Return PyMca's entries, each for a batch and for a map, by FastXRFLinearFit."""
    from PyMca5.PyMcaPhysics.xrf import FastXRFLinearFit

    from ...workers.reducers.pymca_basis import linear_configuration

    fit = FastXRFLinearFit.FastXRFLinearFit()
    fit.setFitConfiguration(linear_configuration(cfg))
    channels = np.arange(CHANNELS, dtype=np.float64)
    corrected = (data.counts[:, 0] * data.factors[:, :1]).astype(np.float32)[None]
    many = np.tile(corrected, (1, MAP // BATCH, 1))

    def fitted(spectra: NDArray[np.float32], again: bool) -> Callable[[int], Any]:
        return lambda turn: fit.fitMultipleSpectra(x=channels, y=spectra, weight=0, refit=again, save=False)

    def areas(result: Any) -> NDArray[np.float64]:
        made = np.asarray(result["parameters"], np.float64)
        return made.reshape(len(made), -1).T

    return [
        tuple(  # type: ignore[misc]  # it has two
            Entry(task, engine, Competitor(fitted(spectra, again), spectra.shape[1]), areas)
            for spectra in (corrected, many)
        )
        for task, engine, again in (
            ("least squares", f"PyMca FastXRFLinearFit, {MAP} spectra", False),
            ("nonnegative", f"PyMca FastXRFLinearFit with refit, {MAP} spectra", True),
        )
    ]


def right_answers(data: Data) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return (BATCH, components) areas by numpy's and scipy's float64 fits to each spectrum, and σ by counting."""
    from scipy.optimize import nnls

    columns = data.found.templates.T
    norms = np.linalg.norm(columns, axis=0)
    found = {}
    for task, elements in (("least squares", slice(1)), ("four", slice(4))):
        scaled = data.counts[:, elements] * data.factors[:, elements, None]
        areas = np.linalg.lstsq(columns / norms, scaled.sum(axis=1).T, rcond=None)[0].T / norms
        variances = (scaled * data.factors[:, elements, None]).sum(axis=1) @ (data.found.operator**2).T
        found[task] = areas, np.sqrt(variances)
    alone = data.counts[:, 0] * data.factors[:, :1]
    settled = np.array([nnls(columns / norms, each)[0] for each in alone]) / norms
    sigma = found["least squares"][1]
    return {**found, "sigma": found["least squares"], "nonnegative": (settled, sigma)}


def measure(seconds: float) -> list[dict[str, Any]]:
    """Return a row per task and engine.

    ``name``, ``engine``; ``spectra_per_s`` per core, of the median; ``median_us``, ``least_us`` per spectrum of an
    element; ``ratio``: how many times faster the kernel is, of medians; ``deviation``: of areas from float64 fits to
    each spectrum, the largest, in standard deviations.
    """
    with tempfile.TemporaryDirectory(prefix="haltere-bench-") as folder:
        cfg = Path(folder) / "bench.cfg"
        cfg.write_text(configuration())
        data = make_data(cfg)
        pairs = pymca(data, cfg)
        entries = [*ours(data), reducer(data, Path(folder)), *others(data), *(each for pair in pairs for each in pair)]
        taken = interleave([each.competitor for each in entries], seconds)
        times = {id(each): spent for each, spent in zip(entries, taken, strict=True)}
        expected = right_answers(data)
        batches = [id(batch) for batch, _ in pairs]
        rows = [_row(each, times[id(each)], expected) for each in entries if id(each) not in batches]
        for batch, whole in pairs:
            row = _row(whole, _without_setting_up(times[id(batch)], times[id(whole)]), expected)
            rows.append({**row, "engine": f"{row['engine']}, its setting-up left out"})
    own = {row["name"]: row["median_us"] for row in rows if row["engine"] == OURS}
    for row in rows:
        row["ratio"] = round(row["median_us"] / own[row["name"]], 2)
    return sorted(rows, key=lambda row: list(TITLES).index(row["name"]))


def _row(
    entry: Entry, spent: Times, expected: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": entry.task,
        "engine": entry.engine,
        "spectra_per_s": round(1 / spent.median),
        "median_us": round(1e6 * spent.median, 3),
        "least_us": round(1e6 * spent.least, 3),
    }
    if entry.areas is not None:
        found, (areas, sigma) = entry.areas(entry.competitor.call(0)), expected[entry.task]
        n = min(len(found), BATCH)
        row["deviation"] = float((np.abs(found[:n] - areas[:n]) / sigma[:n]).max())
    return row


def _without_setting_up(batch: Times, whole: Times) -> Times:
    """Return seconds per spectrum, of what a map takes more than a batch."""
    setting_up = median(batch.each) * BATCH
    return Times([(each * MAP - setting_up) / (MAP - BATCH) for each in whole.each])


def text(rows: list[dict[str, Any]]) -> list[str]:
    """Return the rows as lines for a terminal."""
    lines = []
    for name, title in TITLES.items():
        lines.append(f"  {title}")
        for row in (each for each in rows if each["name"] == name):
            ratio = "" if row["engine"] == OURS else f"{row['ratio']:.3g} ×"
            far = f"within {row['deviation']:.1g} σ" if "deviation" in row else ""
            lines.append(f"    {row['engine']:66}{row['spectra_per_s']:>10} spectra/s{ratio:>10}  {far}")
    return lines


def main(asked: dict[str, Any]) -> None:
    """Measure on the ``core``, with ``seconds`` of CPU time for each who competes."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {asked["core"]})
    print(json.dumps({"spectra": measure(asked["seconds"])}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
