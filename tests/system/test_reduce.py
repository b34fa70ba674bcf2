"""Recorded detector files go the scan's own way, from the command line, and equal pyFAI."""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401 - registers the detectors' compressions
import numpy as np
import pytest

from haltere.callbacks.access import processed
from haltere.callbacks.catalog import Catalog

LAMBDA = "lambda2m_petra"


@pytest.mark.timeout(200)
def test_lambda_files_are_reduced_to_what_pyfai_gives(tmp_path: Path, measurements: Path) -> None:
    import pyFAI

    files = sorted((measurements / LAMBDA).glob("*.nxs"))
    poni = measurements / LAMBDA / "L2.poni"
    options = ["--recipe", "azimuthal", "--poni", str(poni), "--keep", str(tmp_path / "reduced"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "haltere", "reduce", *map(str, files), *options],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["expected"] == outcome["live"] == 10 * len(files) == 50

    integrator = pyFAI.load(str(poni))
    expected = []
    for path in files:
        with h5py.File(path) as file:
            for frame in file["entry/instrument/detector/data"][()]:
                reference = integrator.integrate1d_ng(
                    frame.astype(np.float32),
                    1000,
                    unit="2th_deg",
                    method=("bbox", "csr", "cython"),
                    mask=(frame < 0).astype(np.int8),
                )
                expected.append(reference.intensity)
    with h5py.File(outcome["nexus"]) as file:
        found = file["entry/xrd/intensity"][()]
    np.testing.assert_allclose(found, np.stack(expected), rtol=2e-6, atol=1e-6)

    with Catalog.start(
        Path(outcome["catalog"]), readable=[measurements / LAMBDA, tmp_path / "reduced" / "nexus"]
    ) as catalog:
        run = catalog.raw[outcome["raw_uid"]]
        np.testing.assert_array_equal(processed(run)["xrd"].read()["intensity"].values, found)


def test_a_file_without_frames_is_refused_in_one_line(tmp_path: Path) -> None:
    empty = tmp_path / "empty.h5"
    with h5py.File(empty, "w") as file:
        file["entry/answer"] = 42
    done = subprocess.run(
        [sys.executable, "-m", "haltere", "reduce", str(empty), "--keep", str(tmp_path / "reduced")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (1, 2)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("haltere: ")
    assert str(empty) in line
    assert not (tmp_path / "reduced").exists()
