"""A poni to checked numbers, and to pyFAI's integrator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from haltere.workers.errors import ReductionError, ShapeMismatch
from haltere.workers.reducers.geometry import Geometry, integrator, load, parse

TEXT = """# Calibration done on Sun Nov 22 11:05:08 2026
poni_version: 2.1
Detector: Eiger500k
Detector_config: {"pixel1": 7.5e-05, "pixel2": 7.5e-05, "orientation": 3}
Distance: 0.2
Poni1: 0.02
Poni2: 0.04
Rot1: 0.1
Rot2: -0.2
Rot3: 0.3
Wavelength: 1e-10
"""
PLAIN: dict[str, Any] = {"dist": 0.2, "poni1": 0.02, "poni2": 0.04, "pixel1": 1e-4, "pixel2": 1e-4}


def test_a_poni_text_and_its_numbers_are_the_same_geometry() -> None:
    geometry = parse(TEXT)
    assert geometry == parse(msgspec.to_builtins(geometry))
    assert (geometry.dist, geometry.rot2, geometry.wavelength) == (0.2, -0.2, 1e-10)
    assert load(TEXT).shape == (514, 1030)


def test_the_last_calibration_in_a_file_counts(tmp_path: Path) -> None:
    (tmp_path / "a.poni").write_text(TEXT + TEXT.replace("Distance: 0.2", "Distance: 0.3"))
    assert load(tmp_path / "a.poni").dist == 0.3
    assert load(str(tmp_path / "a.poni")).dist == 0.3


@pytest.mark.parametrize("name", ["ceo2_pilatus1m/CeO2_Pilatus1M.poni", "lambda2m_petra/L2.poni"])
def test_a_real_poni_gives_pyfais_own_angles(measured: Callable[[str], Path], name: str) -> None:
    import pyFAI

    theirs, shape = pyFAI.load(str(measured(name))), (50, 60)
    theirs.detector.max_shape = shape
    ours = integrator(load(measured(name)), shape)
    np.testing.assert_array_equal(ours.center_array(shape, unit="2th_rad"), theirs.center_array(shape, unit="2th_rad"))


def test_the_integrator_carries_the_detectors_gaps_and_orientation() -> None:
    ai = integrator(load(TEXT.replace("Eiger500k", "Eiger4M").replace(": 3}", ": 2}")), (2167, 2070))
    assert ai.detector.mask.any()
    assert ai.detector.orientation == 2


@pytest.mark.parametrize(
    ("poni", "says"),
    [
        ({**PLAIN, "dist": -1}, "dist"),
        ({**PLAIN, "poni1": float("nan")}, "isn't finite"),
        ({**PLAIN, "poni1": "abc"}, "poni1"),
        ({**PLAIN, "wavelength": 1.0}, "wavelength"),
        ({**PLAIN, "colour": 1}, "colour"),
        ({**PLAIN, "detector": "/etc/passwd"}, "detector"),
        ({**PLAIN, "detector": "NoSuchDetector"}, "knows no detector"),
        ({**PLAIN, "detector": "NexusDetector"}, "knows no detector"),
        ({**PLAIN, "detector": "Eiger500k"}, "is binned there"),
        ({**PLAIN, "splinefile": "/tmp/x.spline"}, "spline file"),
        ({**PLAIN, "detector_config": {"x_offset_file": "/tmp/x"}}, "x_offset_file isn't supported"),
        ({**PLAIN, "detector_config": "{"}, "no JSON"),
        ({**PLAIN, "parallax": True}, "parallax"),
        ({"dist": 0.2, "poni1": 0, "poni2": 0}, "neither a detector nor pixel sizes"),
        ({"poni1": 0}, "dist"),
        ("no/such/file.poni", "can't be read"),
        ("Distance: 1\n", "poni1"),
        (17, "expected the text"),
    ],
)
def test_a_poni_that_cannot_be_used_says_why_in_one_line(poni: Any, says: str) -> None:
    with pytest.raises(ReductionError, match=says) as caught:
        integrator(load(poni), (10, 10))
    assert "\n" not in str(caught.value)


def test_a_poni_of_another_detector_names_both_shapes() -> None:
    with pytest.raises(ShapeMismatch, match="514 × 1030 pixels, eiger_image has 512 × 1028"):
        load(TEXT).fits((512, 1028), "eiger_image")
    with pytest.raises(ShapeMismatch, match="514 × 1030"):
        integrator(parse(TEXT), (512, 1028))
    Geometry(**PLAIN).fits((512, 1028), "eiger_image")
