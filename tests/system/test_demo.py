"""The whole path, as a person starts it: the demo with and without chaos, and with a recorded frame."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from haltere.callbacks.access import processed
from haltere.callbacks.catalog import Catalog

GRID = ("--rows", "10", "--columns", "25", "--dwell", "0.004", "--seed", "7")
FRAMES = 250
DETECTORS = 3

CEO2 = (7.462, 8.618, 12.199, 14.315, 14.955, 17.285, 18.849, 19.344)
"""Tabulated 2θ of the strongest rings at λ = 0.4066 Å, degrees."""

Outcome = dict[str, Any]


def demo(folder: Path, *options: str) -> Outcome:
    command = [sys.executable, "-m", "haltere", "demo", "--headless", "--json", "--keep", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    outcome: Outcome = json.loads(done.stdout.splitlines()[-1])
    return outcome


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return demo(tmp_path_factory.mktemp("quiet"), *GRID)


@pytest.fixture(scope="module")
def stormy(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return demo(tmp_path_factory.mktemp("stormy"), *GRID, "--chaos")


@pytest.fixture(scope="module")
def catalog(quiet: Outcome) -> Iterator[Catalog]:
    folder = Path(quiet["catalog"])
    opened = Catalog.start(folder, readable=[folder.parent / "raw", folder.parent / "nexus"])
    yield opened
    opened.close()


@pytest.mark.timeout(300)
def test_every_frame_is_accounted_for(quiet: Outcome) -> None:
    assert quiet["expected"] == DETECTORS * FRAMES
    assert quiet["live"] + quiet["backfilled"] == quiet["expected"]
    assert quiet["quarantined"] == quiet["lost"] == 0


@pytest.mark.timeout(300)
def test_chaos_is_mended_from_the_files(stormy: Outcome) -> None:
    assert stormy["expected"] == DETECTORS * FRAMES
    # Groups of 20 frames, one in ten dropped: 20 of the Eiger's first 250, whatever else the kills cost.
    assert stormy["backfilled"] >= 20
    assert stormy["live"] + stormy["backfilled"] == stormy["expected"]
    assert stormy["lost"] == stormy["quarantined"] == 0


@pytest.mark.timeout(300)
def test_chaos_changes_no_bit_of_the_result(quiet: Outcome, stormy: Outcome) -> None:
    calm, storm = results(quiet), results(stormy)
    assert calm.keys() == storm.keys()
    assert {"xrd/intensity", "xrf/Fe_Ka", "positions/pilc_x"} <= calm.keys()
    differing = [name for name in calm if calm[name].tobytes() != storm[name].tobytes()]
    assert not differing


def results(outcome: Outcome) -> dict[str, Any]:
    """Return every dataset that a recipe gave; how a frame came (status) may differ, what it gave may not."""
    found = {}
    with h5py.File(outcome["nexus"]) as file:
        for recipe in ("xrd", "xrf", "positions"):
            for name, item in file["entry"][recipe].items():
                if isinstance(item, h5py.Dataset) and name not in ("status", "date") and item.dtype.kind in "fiu":
                    found[f"{recipe}/{name}"] = item[()]
    return found


@pytest.mark.timeout(300)
def test_the_catalog_has_raw_frames_and_results(quiet: Outcome, catalog: Catalog) -> None:
    raw = catalog.raw[-1]
    assert raw.start["uid"] == quiet["raw_uid"]
    assert raw["primary"]["eiger_image"][FRAMES - 1].shape == (514, 1030)
    reduced = processed(raw)
    assert reduced.start["uid"] == quiet["processed_uid"]
    patterns = reduced["xrd"].read()
    np.testing.assert_array_equal(patterns["frame"], np.arange(FRAMES))
    assert patterns["intensity"].shape == (FRAMES, 1000)
    areas = reduced["xrf"].read()
    assert {"Fe_Ka", "Ca_Ka", "Zn_Ka", "pilc_x", "pilc_y"} <= set(areas.variables)
    assert np.isfinite(areas["Fe_Ka"]).all()


@pytest.mark.timeout(300)
def test_a_run_is_found_by_its_metadata(quiet: Outcome, catalog: Catalog) -> None:
    from databroker.queries import Key

    found = catalog.raw.search(Key("plan_name") == "fly_grid")
    assert [run.start["uid"] for run in found.values()] == [quiet["raw_uid"]]
    assert len(catalog.raw.search(Key("plan_name") == "count")) == 0


@pytest.mark.timeout(300)
def test_positions_are_where_the_grid_was_planned(quiet: Outcome) -> None:
    with h5py.File(quiet["nexus"]) as file:
        x, y = (file[f"entry/positions/pilc_{axis}"][()].reshape(10, 25) for axis in "xy")
    x[1::2] = x[1::2, ::-1]
    np.testing.assert_allclose(x, np.broadcast_to(np.linspace(-30, 30, 25), x.shape), atol=0.02)
    np.testing.assert_allclose(y, np.broadcast_to(np.linspace(-20, 20, 10)[:, None], y.shape), atol=0.02)


@pytest.mark.timeout(300)
def test_a_recorded_ceo2_frame_shows_its_rings(tmp_path: Path, measurements: Path) -> None:
    folder = measurements / "ceo2_pilatus1m"
    recording = ("--frames", str(folder / "CeO2_Pilatus1M.tif"), "--flip", "ud", "--poni")
    outcome = demo(
        tmp_path, "--rows", "3", "--columns", "10", "--dwell", "0.01", *recording, str(folder / "CeO2_Pilatus1M.poni")
    )
    with h5py.File(outcome["nexus"]) as file:
        patterns, angles = (file[f"entry/xrd/{name}"][()] for name in ("intensity", "two_theta"))
    assert patterns.shape == (30, 1000)
    for pattern in patterns:
        for ring in CEO2:
            assert crest(angles, pattern, ring) == pytest.approx(ring, abs=0.02)


def crest(angles: Any, pattern: Any, ring: float) -> float:
    """Return where a ring near 2θ = ``ring`` stands: the centre of mass of what is above half its height."""
    near = np.abs(angles - ring) < 0.15
    x, y = angles[near], pattern[near] - np.median(pattern)
    high = y > y.max() / 2
    return float(np.average(x[high], weights=y[high]))
