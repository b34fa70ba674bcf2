"""Frames to patterns, against pyFAI on real and synthetic frames."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fabio
import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from haltere.workers.assets import AssetStore
from haltere.workers.errors import ReductionError, ShapeMismatch
from haltere.workers.recipes import Recipe, build
from haltere.workers.reducers.azimuthal import Azimuthal, recipe_params
from haltere.workers.reducers.base import Batch, Partial, Setup
from haltere.workers.wire.messages import InputSpec

from ..chunks import bslz4

SMALL = {"dist": 0.02, "poni1": 0.002, "poni2": 0.003, "pixel1": 1e-4, "pixel2": 1e-4, "wavelength": 1e-10}
TILTED = {**SMALL, "rot1": 0.3, "rot2": -0.2, "rot3": 0.5}
EIGER = {"dist": 0.2, "poni1": 0.02, "poni2": 0.04, "rot1": 0.2, "rot2": -0.1, "wavelength": 1e-10}
RINGS = (7.462, 8.618, 12.199, 14.315, 14.955, 17.285, 18.849, 19.344)


def ready(shape: tuple[int, int], dtype: Any, store: AssetStore | None = None, **params: Any) -> Azimuthal:
    """Return a reducer that went through JSON and is set up."""
    recipe = Recipe("xrd", "azimuthal", "eiger", json.loads(json.dumps(recipe_params(assets=store, **params))))
    reducer = build(recipe.spec())
    assert isinstance(reducer, Azimuthal)
    inputs = (InputSpec("image", shape, np.dtype(dtype).str),)
    consts = reducer.setup(Setup(inputs, store.directory if store else Path("nowhere")))
    outputs = reducer.outputs(inputs)
    assert {name for name, output in outputs.items() if output.kind == "const"} == consts.keys()
    return reducer


def reduce(reducer: Azimuthal, frames: NDArray[Any]) -> Partial:
    partial = reducer.map(Batch(np.arange(len(frames)), {"image": frames}))
    outputs = reducer.outputs((InputSpec("image", frames.shape[1:], frames.dtype.str),))
    for name, array in partial.nav.items():
        assert array.shape == (len(frames), *outputs[name].shape)
        assert array.dtype.str == outputs[name].dtype
    return partial


def agree(frames: NDArray[Any], **params: Any) -> Partial:
    """Reduce in the kernel, by the sparse product and by pyFAI itself, and compare."""
    ours, product, theirs = (
        reduce(ready(frames.shape[1:], frames.dtype, engine=engine, **params), frames)
        for engine in ("kernel", "csr", "pyfai")
    )
    assert ours.nav.keys() == product.nav.keys() == theirs.nav.keys()
    for name in ours.nav:
        np.testing.assert_allclose(ours.nav[name], theirs.nav[name], rtol=1e-6, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(product.nav[name], theirs.nav[name], rtol=1e-6, atol=1e-9, err_msg=name)
    assert ours.nav["intensity"].any()
    return ours


def poisson(shape: tuple[int, ...], mean: float = 5, dtype: str = "<u2", seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).poisson(mean, shape).astype(dtype)


@pytest.fixture(scope="module")
def ceo2(measured: Callable[[str], Path]) -> tuple[NDArray[np.int32], Path]:
    """Return the CeO2 frame as its poni wants it, and the poni."""
    with fabio.open(str(measured("ceo2_pilatus1m/CeO2_Pilatus1M.tif"))) as image:
        return image.data[::-1].copy(), measured("ceo2_pilatus1m/CeO2_Pilatus1M.poni")


def test_eight_rings_of_ceo2_are_where_the_tables_have_them(ceo2: tuple[NDArray[np.int32], Path]) -> None:
    frame, poni = ceo2
    reducer = ready(frame.shape, frame.dtype, poni=poni, bins=2000)
    axis = reducer.setup(Setup((InputSpec("image", frame.shape, "<i4"),), Path()))["two_theta"]
    pattern = reduce(reducer, frame[None]).nav["intensity"][0]
    for ring in RINGS:
        near = np.abs(axis - ring) < 0.15
        assert abs(axis[near][pattern[near].argmax()] - ring) < 0.02
        assert pattern[near].max() > 5 * np.median(pattern)


@pytest.mark.parametrize(
    "params",
    [
        {"bins": 2000, "sigma": True},
        {"bins": 500, "method": "no", "polarization": 0.99, "unit": "q_A^-1"},
        {"bins": 500, "method": "full", "polarization": -0.5, "unit": "q_nm^-1", "sigma": True},
        {"cutoff": 5000.0, "unit": "r_mm", "range": (10.0, 60.0)},
    ],
    ids=str,
)
def test_ceo2_equals_pyfai(ceo2: tuple[NDArray[np.int32], Path], params: dict[str, Any]) -> None:
    frame, poni = ceo2
    agree(frame[None], poni=poni, **params)


def test_lambda_frames_equal_pyfai(measured: Callable[[str], Path]) -> None:
    frames = []
    for number in range(5):
        with h5py.File(measured(f"lambda2m_petra/testasapo1_1009_00002_m1_part0000{number}.nxs")) as file:
            frames += list(file["entry/instrument/detector/data"][::5])
    agree(np.stack(frames), poni=measured("lambda2m_petra/L2.poni"), unit="q_nm^-1", polarization=0.95)


def test_synthetic_eiger_frames_equal_pyfai_with_gaps_dead_and_saturated_pixels() -> None:
    frames = poisson((3, 514, 1030))
    frames[:, 256:258] = 65535
    frames[1, 100, 200:210] = 65535
    frames[1, 5, 5] = 60000
    frames[2] = 65535
    partial = agree(frames, poni={**EIGER, "detector": "Eiger500k"}, sigma=True, polarization=0.95, cutoff=50_000)
    assert partial.nav["total"][2] == 0
    assert not partial.nav["intensity"][2].any()


def test_a_synthetic_eiger_4m_frame_equals_pyfai() -> None:
    agree(poisson((1, 2167, 2070), dtype="<u4"), poni={**EIGER, "poni1": 0.08, "detector": "Eiger4M"})


@pytest.mark.parametrize("orientation", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["<u1", "<i2", ">u4", "<f4"])
def test_odd_geometries_and_types_equal_pyfai(orientation: int, dtype: str) -> None:
    frames = poisson((2, 41, 67), dtype=dtype)
    frames[0, 3] = -1 if dtype[1] == "i" else np.nan if dtype[1] == "f" else np.iinfo(dtype).max
    agree(frames, poni={**TILTED, "orientation": orientation}, bins=50, sigma=True)


@pytest.mark.parametrize("dtype", ["<u2", "<i2", "<u4", "<f4"])
def test_pixels_without_data_count_neither_above_nor_below_the_line(dtype: str) -> None:
    flat = np.full((2, 41, 67), 7, dtype)
    flat[1, 5:20, 10:40] = np.nan if dtype == "<f4" else np.array(-1).astype(dtype)
    reducer = ready((41, 67), dtype, poni=TILTED, bins=20)
    one, other = reduce(reducer, flat).nav["intensity"]
    both = (one > 0) & (other > 0)
    # A flat frame is 7 per solid angle of the bin's pixels: only the mean solid angle of those left may shift.
    np.testing.assert_allclose(one[both], other[both], rtol=0.05)
    assert reduce(reducer, flat).nav["total"][0] == 7 * 41 * 67
    assert reduce(reducer, flat).nav["total"][1] == 7 * (41 * 67 - 15 * 30)


def test_a_mask_from_the_store_leaves_its_pixels_out(tmp_path: Path) -> None:
    store, frames = AssetStore(tmp_path), poisson((1, 41, 67))
    mask = np.zeros((41, 67), bool)
    mask[10:20] = True
    masked = ready((41, 67), "<u2", store, poni=SMALL, bins=30, mask=mask)
    theirs = ready((41, 67), "<u2", store, poni=SMALL, bins=30, mask=mask, engine="pyfai")
    marked = frames.copy()
    marked[0, mask] = 65535
    plain = ready((41, 67), "<u2", poni=SMALL, bins=30)
    ours = reduce(masked, frames).nav
    np.testing.assert_allclose(ours["intensity"], reduce(theirs, frames).nav["intensity"], rtol=1e-6)
    assert ours["total"] == reduce(plain, marked).nav["total"] == frames[0, ~mask].sum()
    np.save(tmp_path / "mask.npy", mask)
    again = recipe_params(SMALL, mask=tmp_path / "mask.npy", assets=store)["mask"]
    assert again == recipe_params(SMALL, mask=again)["mask"] == masked.params.mask


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 11), min_size=1, max_size=20), st.booleans())
def test_a_frames_result_is_the_same_to_the_bit_in_any_batch(picked: list[int], compressed: bool) -> None:
    reducer, alone = _batches()
    frames = _frames()[picked]
    data = [bslz4(frame) for frame in frames] if compressed else frames
    partial = reducer.map(Batch(np.array(picked), {"image": data}))
    for k, number in enumerate(picked):
        for name, array in partial.nav.items():
            assert array[k].tobytes() == alone[number].nav[name][0].tobytes()


_cache: dict[str, Any] = {}


def _frames() -> NDArray[Any]:
    frames = poisson((12, 41, 67), seed=3)
    for k in range(12):  # different pixels without data, so that what is remembered of one frame could harm the next
        frames[k, k % 3 : k % 3 + 2, 5:30] = 65535
    return frames


def _batches() -> tuple[Azimuthal, list[Partial]]:
    if not _cache:
        _cache["reducer"] = ready((41, 67), "<u2", poni=TILTED, bins=40, sigma=True, polarization=0.9)
        _cache["alone"] = [
            reduce(ready((41, 67), "<u2", poni=TILTED, bins=40, sigma=True, polarization=0.9), frame[None])
            for frame in _frames()
        ]
    return _cache["reducer"], _cache["alone"]


def test_a_poni_of_another_detector_is_refused_before_anything_is_set_up() -> None:
    reducer = Azimuthal(**recipe_params({**EIGER, "detector": "Eiger500k"}))
    with pytest.raises(ShapeMismatch, match="514 × 1030 pixels, eiger_image has 2167 × 2070"):
        reducer.outputs((InputSpec("eiger_image", (2167, 2070), "<u2"),))


def test_a_frame_of_another_shape_or_type_is_refused() -> None:
    reducer = ready((41, 67), "<u2", poni=SMALL, bins=10)
    for frames in (poisson((1, 67, 41)), poisson((1, 41, 67), dtype="<u4")):
        with pytest.raises(ShapeMismatch, match="frame 5: "):
            reducer.map(Batch(np.array([5]), {"image": frames}))


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"bin": 10}, "no parameter bin; there are poni, bins, unit, range, azimuth_range"),
        ({"bins": 0}, "bins"),
        ({"unit": "furlong"}, "furlong"),
        ({"range": [2, 1]}, "empty"),
        ({"mask": "/etc/passwd"}, "mask"),
        ({"engine": "gpu"}, "gpu"),
        ({"poni": "geo.poni"}, "recipe_params reads a file"),
        ({"poni": {**SMALL, "wavelength": None}, "unit": "q_A^-1"}, "needs a wavelength"),
    ],
)
def test_a_wrong_parameter_is_named(params: dict[str, Any], says: str) -> None:
    with pytest.raises(ReductionError, match=says) as caught:
        Azimuthal(**{"poni": SMALL, **params})
    assert "\n" not in str(caught.value)


def test_a_detector_with_no_or_several_images_must_say_which() -> None:
    both = (InputSpec("a", (41, 67), "<u2"), InputSpec("b", (41, 67), "<u2"))
    for inputs in (both, (InputSpec("x", (), "<f8"),)):
        with pytest.raises(ReductionError, match="say which with key="):
            Azimuthal(poni=SMALL).outputs(inputs)
    assert "intensity" in Azimuthal(poni=SMALL, key="b").outputs(both)


def test_a_mask_of_another_detector_or_of_everything_is_refused(tmp_path: Path) -> None:
    store = AssetStore(tmp_path)
    for mask, says in ((np.ones((5, 5)), "use this detector's"), (np.ones((41, 67)), "every pixel is masked")):
        with pytest.raises(ReductionError, match=says):
            ready((41, 67), "<u2", store, poni=SMALL, mask=mask)
    with pytest.raises(ReductionError, match=r"no \.npy array"):
        ready((41, 67), "<u2", store, poni=SMALL, mask=store.put(b"hello"))
    with pytest.raises(ReductionError, match="needs assets="):
        recipe_params(SMALL, mask=np.ones((41, 67)))
