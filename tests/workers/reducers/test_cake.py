"""Frames to pictures of azimuth and radius, against pyFAI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from haltere.workers.assets import AssetStore
from haltere.workers.errors import ReductionError
from haltere.workers.recipes import Recipe, build
from haltere.workers.reducers.base import Batch, Partial, Setup
from haltere.workers.reducers.cake import Cake, recipe_params
from haltere.workers.wire.messages import InputSpec

from ..chunks import bslz4

TILTED = {
    "dist": 0.02,
    "poni1": 0.002,
    "poni2": 0.003,
    "rot1": 0.3,
    "rot2": -0.2,
    "rot3": 0.5,
    "pixel1": 1e-4,
    "pixel2": 1e-4,
    "wavelength": 1e-10,
}


def ready(
    shape: tuple[int, int], dtype: str, assets: Path = Path("nowhere"), **params: Any
) -> tuple[Cake, dict[str, NDArray[Any]]]:
    """Return a reducer that went through JSON and is set up, and its axes."""
    if "mask" in params:
        params["assets"] = AssetStore(assets)
    recipe = Recipe("cake", "cake", "eiger", json.loads(json.dumps(recipe_params(**params))))
    reducer = build(recipe.spec())
    assert isinstance(reducer, Cake)
    return reducer, reducer.setup(Setup((InputSpec("image", shape, np.dtype(dtype).str),), assets))


def agree(frames: NDArray[Any], **params: Any) -> Partial:
    """Reduce by each engine, and compare with pyFAI."""
    made = {}
    for engine in ("kernel", "csr", "pyfai"):
        reducer, axes = ready(frames.shape[1:], frames.dtype.str, engine=engine, **params)
        made[engine] = reducer.map(Batch(np.arange(len(frames)), {"image": frames}))
        outputs = reducer.outputs((InputSpec("image", frames.shape[1:], frames.dtype.str),))
        for name, output in outputs.items():
            values = axes[name] if output.kind == "const" else made[engine].nav[name][0]
            assert np.shape(values) == output.shape
            assert output.kind == "const" or made[engine].nav[name].dtype.str == output.dtype
        assert outputs["intensity"].axes == tuple(axes)
    # Splitting fully leaves bins with no more of a pixel than rounding, less than nothing, or only the first one.
    operator = reducer._engine._operator  # type: ignore[attr-defined]
    norm = np.bincount(
        np.repeat(np.arange(operator.bins), np.diff(operator.starts)),
        operator.coefficients * operator.norm[operator.indices],
        operator.bins,
    )
    filled = (abs(norm) > 1e-6) | (params.get("method") != "full")
    for engine in ("kernel", "csr"):
        for name, values in made["pyfai"].nav.items():
            ours = made[engine].nav[name]
            if values.ndim > 1:
                ours, values = (each.reshape(len(frames), -1)[:, filled] for each in (ours, values))
            np.testing.assert_allclose(ours, values, rtol=1e-6, atol=1e-9, err_msg=f"{engine} {name}")
    assert made["kernel"].nav["intensity"].any()
    return made["kernel"]


@pytest.mark.parametrize("method", ["no", "bbox", "full"])
@pytest.mark.parametrize("sector", [None, (-60.0, 45.0)])
def test_pictures_equal_pyfais(method: str, sector: tuple[float, float] | None) -> None:
    frames = np.random.default_rng(1).poisson(20, (3, 61, 107)).astype("<u2")
    frames[1, 10:20] = 65535
    params = {"bins": 50, "azimuthal_bins": 36, "method": method, "sigma": True, "polarization": 0.9}
    agree(frames, poni=TILTED, azimuth_range=sector, unit="q_nm^-1", **params)


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.integers(8, 50), st.integers(8, 70)),
    dtype=st.sampled_from(["<u1", "<u2", "<u4"]),
    orientation=st.integers(1, 4),
    method=st.sampled_from(["no", "bbox"]),
    solid_angle=st.booleans(),
    poni=st.tuples(st.floats(-0.01, 0.02), st.floats(-0.01, 0.02)),
    cutoff=st.sampled_from([None, 12.0]),
)
def test_pictures_equal_pyfais_for_any_shape_orientation_and_place_of_the_beam(
    shape: tuple[int, int],
    dtype: str,
    orientation: int,
    method: str,
    solid_angle: bool,
    poni: tuple[float, float],
    cutoff: float | None,
) -> None:
    frames = np.random.default_rng(2).poisson(9, (2, *shape)).astype(dtype)
    place = {**TILTED, "orientation": orientation, "poni1": poni[0], "poni2": poni[1]}
    options: dict[str, Any] = {"method": method, "solid_angle": solid_angle, "cutoff": cutoff, "sigma": True}
    agree(frames, poni=place, bins=20, azimuthal_bins=12, **options)


def test_the_pixel_of_which_pyfai_has_no_certain_coefficients_does_not_count(tmp_path: Path) -> None:
    shape, dark = (40, 50), np.zeros((40, 50), np.uint8)
    dark[:3] = 1
    dark[3, :7] = 1
    frames = np.ones((1, *shape), "<u2")
    for mask, first in ((None, 0), (dark, 157)):
        counted = []
        for method in ("bbox", "full"):
            params: dict[str, Any] = {"poni": TILTED, "bins": 30, "azimuthal_bins": 12, "method": method}
            if mask is not None:
                params["mask"] = mask
            reducer, _ = ready(shape, "<u2", assets=tmp_path, **params)
            frames[0].ravel()[first] = 1000
            counted.append(reducer.map(Batch(np.arange(1), {"image": frames})).nav["total"][0])
            frames[0].ravel()[first] = 1
        assert counted[0] - counted[1] == 1000


def test_chunks_give_the_bits_of_frames() -> None:
    frames = np.random.default_rng(1).poisson(20, (5, 61, 107)).astype("<u4")
    reducer, _ = ready((61, 107), "<u4", poni=TILTED, bins=40, azimuthal_bins=30)
    one = reducer.map(Batch(np.arange(5), {"image": frames})).nav
    other = reducer.map(Batch(np.arange(5), {"image": [bslz4(frame) for frame in frames]})).nav
    for name in one:
        assert one[name].tobytes() == other[name].tobytes()


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"bins": 100_000, "azimuthal_bins": 3600}, "3600 × 100000 bins are more than 4,000,000"),
        ({"azimuth_range": [40, 20]}, "ascending"),
        ({"azimuthal_bins": 0}, "azimuthal_bins"),
    ],
)
def test_a_wrong_parameter_is_named(params: dict[str, Any], says: str) -> None:
    with pytest.raises(ReductionError, match=says):
        Cake(poni=TILTED, **params)
