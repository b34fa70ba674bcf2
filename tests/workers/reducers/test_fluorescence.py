"""Spectra to areas."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from haltere.workers import basis
from haltere.workers.assets import AssetStore
from haltere.workers.errors import ReductionError, ShapeMismatch
from haltere.workers.recipes import Recipe, build
from haltere.workers.reducers.base import Batch, Chunk, Setup
from haltere.workers.reducers.fluorescence import SCALERS, Fluorescence, recipe_params
from haltere.workers.wire import xspress3
from haltere.workers.wire.messages import InputSpec

DEMO = Path(str(files("haltere.devices.sim") / "demo_xrf.npz"))
BASIS = basis.load(DEMO)
KEYS = [f"xspress3_channel0{element}" for element in range(4)]
TICKS = 400_000.0
REF = "sha256:" + 64 * "0"

INPUTS = (
    *(InputSpec(key, (4096,), "<i4") for key in KEYS),
    *(InputSpec(f"{key}_{name}", (), "<f4") for key in KEYS for name in SCALERS),
)


def ready(directory: Path, inputs: tuple[InputSpec, ...] = INPUTS, source: Any = DEMO, **params: Any) -> Fluorescence:
    """Return a reducer that went through JSON and is set up."""
    store = AssetStore(directory)
    recipe = Recipe("xrf", "fluorescence", "xspress3", json.loads(json.dumps(recipe_params(source, store, **params))))
    reducer = build(recipe.spec())
    assert isinstance(reducer, Fluorescence)
    consts = reducer.setup(Setup(inputs, directory))
    assert consts.keys() == {name for name, output in reducer.outputs(inputs).items() if output.kind == "const"}
    return reducer


def measurement(n: int, areas: NDArray[np.float64], seed: int = 0, event_width: int = 6) -> Batch:
    """Return n frames of these areas, shared by 4 elements, of which 0.1 % to 30 % are lost in dead time."""
    rng = np.random.default_rng(seed)
    data: dict[str, Any] = {}
    for key in KEYS:
        dead = np.rint(TICKS * rng.uniform(0.001, 0.3, n))
        reset = np.rint(dead * 0.1)
        allevent = np.rint((dead - reset) / (event_width + 1))
        dead = allevent * (event_width + 1) + reset
        live = 1 - dead / TICKS
        data[key] = rng.poisson((areas @ BASIS.templates / 4)[None] * live[:, None]).astype("<i4")
        data[f"{key}_allevent"] = allevent.astype("<f4")
        data[f"{key}_resetticks"] = reset.astype("<f4")
        data[f"{key}_totalticks"] = np.full(n, TICKS, "<f4")
    return Batch(np.arange(n), data)


def truth() -> NDArray[np.float64]:
    areas = np.linspace(100, 3000, len(BASIS.components))
    return np.where([kind == "background" for kind in BASIS.kinds], [0.5] + 20 * [0.0], areas)


def test_areas_equal_the_truth_within_statistics_whatever_the_dead_time(tmp_path: Path) -> None:
    reducer = ready(tmp_path)
    batch = measurement(400, truth())
    nav = reducer.map(batch).nav
    for name, area in zip(BASIS.components, truth(), strict=True):
        if name not in nav:
            continue
        pulls = (nav[name] - area) / nav[f"{name}_sigma"]
        assert abs(pulls.mean()) < 5 / np.sqrt(400), name
        assert 0.85 < pulls.std() < 1.15, name
        # Without the correction every area would be too small by a seventh: the test can fail.
        assert np.abs(nav[name].mean() / area - 1) < 0.1


def test_dead_time_is_the_fraction_of_ticks_in_which_the_elements_could_not_count(tmp_path: Path) -> None:
    batch = measurement(7, truth())
    column = {key: np.asarray(values) for key, values in batch.data.items()}
    dead = [column[f"{key}_allevent"] * 7.0 + column[f"{key}_resetticks"] for key in KEYS]
    np.testing.assert_allclose(ready(tmp_path).map(batch).nav["dead_time"], np.mean(dead, axis=0) / TICKS)


def test_the_event_width_is_the_detectors(tmp_path: Path) -> None:
    batch = measurement(200, truth(), event_width=10)
    nav = ready(tmp_path, event_width=10).map(batch).nav
    area = truth()[BASIS.components.index("Fe_Ka")]
    assert nav["Fe_Ka"].mean() == pytest.approx(area, abs=5 * nav["Fe_Ka_sigma"].mean() / np.sqrt(200))


def test_the_spectrum_of_each_element_adds_up_as_measured(tmp_path: Path) -> None:
    batch = measurement(7, truth())
    spectrum = ready(tmp_path).map(batch).acc["spectrum"]
    assert spectrum.dtype == np.int64
    np.testing.assert_array_equal(spectrum, [np.asarray(batch.data[key]).sum(axis=0) for key in KEYS])


def test_what_comes_out_is_what_was_announced(tmp_path: Path) -> None:
    reducer = ready(tmp_path)
    partial = reducer.map(measurement(3, truth()))
    outputs = reducer.outputs(INPUTS)
    for name, array in (partial.nav | partial.acc).items():
        shape = (3, *outputs[name].shape) if outputs[name].kind == "nav" else outputs[name].shape
        assert (array.shape, array.dtype.str) == (shape, outputs[name].dtype), name
    assert outputs.keys() - {"energy"} == partial.nav.keys() | partial.acc.keys()
    assert {"Fe_Ka", "Fe_Ka_sigma", "Zn_Kb", "Scatter_Compton000", "dead_time", "spectrum"} < outputs.keys()


def test_areas_kept_from_being_negative_are_those_of_scipys_fit(tmp_path: Path) -> None:
    areas = truth() * np.tile([0, 1], len(BASIS.components))[: len(BASIS.components)] / 20
    batch = measurement(5, areas)
    partial = ready(tmp_path, nonnegative=True).map(batch)
    free = ready(tmp_path).map(batch)
    factor = [1 / (1 - dead) for dead in _dead_fractions(batch)]
    scaled = [np.asarray(batch.data[key]) * each[:, None] for key, each in zip(KEYS, factor, strict=True)]
    low = [-np.inf if kind == "background" else 0.0 for kind in BASIS.kinds]
    norms = np.linalg.norm(BASIS.templates, axis=1)
    found, clamped = np.column_stack([partial.nav[name] for name in partial.nav if name in BASIS.components]), 0
    for row, measured in zip(found, np.sum(scaled, axis=0), strict=True):
        fit = lsq_linear((BASIS.templates / norms[:, None]).T, measured, (low, np.inf), method="bvls", tol=1e-14)
        expected = (fit.x / norms)[[BASIS.components.index(name) for name in BASIS.of_kind("line", "scatter")]]
        np.testing.assert_allclose(row, expected, atol=1e-3, rtol=1e-6)
        clamped += (row == 0).sum()
    assert clamped > 8
    for name, values in free.nav.items():
        if name.endswith("_sigma") or name == "dead_time":
            np.testing.assert_array_equal(partial.nav[name], values)


def _dead_fractions(batch: Batch) -> list[NDArray[np.float64]]:
    column = {key: np.asarray(values, np.float64) for key, values in batch.data.items() if "_channel" in key}
    return [(column[f"{key}_allevent"] * 7 + column[f"{key}_resetticks"]) / TICKS for key in KEYS]


def test_a_fit_without_negative_areas_depends_on_components_that_nobody_asked_for(tmp_path: Path) -> None:
    batch = measurement(40, truth() / 300)
    every = ready(tmp_path, nonnegative=True).map(batch).nav
    some = ready(tmp_path, nonnegative=True, components=["Zn_Ka", "Ti_Kb"]).map(batch).nav
    for name in ("Zn_Ka", "Zn_Ka_sigma", "Ti_Kb", "Ti_Kb_sigma"):
        np.testing.assert_array_equal(some[name], every[name])


def test_a_basis_without_weights_fits_but_not_without_negative_areas(tmp_path: Path) -> None:
    old = dataclasses.replace(BASIS, weights=None)
    ready(tmp_path, source=old)
    with pytest.raises(ReductionError, match="no weights: make it anew"):
        ready(tmp_path, source=old, nonnegative=True)


def test_regions_are_summed_as_measured_for_each_element(tmp_path: Path) -> None:
    batch = measurement(9, truth())
    reducer = ready(tmp_path, rois={"Fe": (620, 660), "all": (0, 4096)}, elements=[3, 1])
    nav = reducer.map(batch).nav
    spectra = np.stack([np.asarray(batch.data[KEYS[element]]) for element in (3, 1)], axis=1)
    np.testing.assert_array_equal(nav["roi_Fe"], spectra[:, :, 620:660].sum(axis=2))
    np.testing.assert_array_equal(nav["roi_all"], spectra.sum(axis=2))
    assert reducer.outputs(INPUTS)["roi_Fe"].shape == (2,)
    assert nav["roi_Fe"].dtype.str == reducer.outputs(INPUTS)["roi_Fe"].dtype


@pytest.mark.parametrize("nonnegative", [False, True])
def test_spectra_without_a_count_have_areas_of_0(tmp_path: Path, nonnegative: bool) -> None:
    batch = measurement(4, 0 * truth())
    nav = ready(tmp_path, nonnegative=nonnegative).map(batch).nav
    assert not any(values.any() for name, values in nav.items() if name != "dead_time")


@pytest.mark.parametrize("dtype", ["<u1", "<u2", "<i2", ">i4", "<u4", "<i8", "<u8"])
def test_counts_of_any_integer_type_give_the_same_bits(tmp_path: Path, dtype: str) -> None:
    spectra = np.random.default_rng(0).poisson(truth() / 100 @ BASIS.templates, (3, 4096))
    reducer = ready(tmp_path, (InputSpec("a_channel00", (4096,), dtype),))
    expected = ready(tmp_path, (InputSpec("a_channel00", (4096,), "<i4"),))
    made = reducer.map(Batch(np.arange(3), {"a_channel00": spectra.astype(dtype)}))
    wanted = expected.map(Batch(np.arange(3), {"a_channel00": spectra.astype("<i4")}))
    for name, values in (wanted.nav | wanted.acc).items():
        np.testing.assert_array_equal((made.nav | made.acc)[name], values)


@pytest.mark.parametrize(
    ("dtype", "count", "says"),
    [
        ("<i4", -1, "frame 7: a negative number of counts"),
        ("<i2", -1, "frame 7: a negative number of counts"),
        ("<i8", -1, "frame 7: a negative number of counts"),
        ("<u8", 2**32, "frame 7: 4294967296 counts in a channel, more than 4294967295"),
    ],
)
def test_counts_that_cannot_be_name_the_frame(tmp_path: Path, dtype: str, count: int, says: str) -> None:
    spectra = np.ones((3, 4096), dtype)
    spectra[2, 4095] = count
    with pytest.raises(ReductionError, match=says):
        ready(tmp_path, (InputSpec("a_channel00", (4096,), dtype),)).map(
            Batch(np.array([3, 5, 7]), {"a_channel00": spectra})
        )


def test_a_dead_time_factor_beyond_all_bounds_names_the_frame(tmp_path: Path) -> None:
    batch = measurement(5, truth())
    data = {key: np.asarray(values) for key, values in batch.data.items()}
    data |= {key: values.astype("<f8") for key, values in data.items() if values.ndim == 1}
    for name, value in zip(SCALERS, (0.0, 1 - 2.0**-53, 1.0), strict=True):
        data[f"{KEYS[0]}_{name}"][2] = value
    data[KEYS[0]][2] = 2**31 - 1
    with pytest.raises(ReductionError, match=r"frame 2: areas too large for a number, with counts times 9\.01e\+15"):
        ready(tmp_path).map(Batch(batch.index, data))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Fluorescence:
    """Return a reducer that has seen many batches."""
    return ready(tmp_path_factory.mktemp("assets"))


SPARSE_AND_FULL = (measurement(12, truth() / 2000), measurement(12, truth()))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 11), min_size=1, max_size=64), st.sampled_from(SPARSE_AND_FULL))
def test_a_frames_result_is_the_same_to_the_bit_in_any_batch(
    shared: Fluorescence, picked: list[int], frames: Batch
) -> None:
    def reduce(numbers: list[int]) -> dict[str, Any]:
        columns = {key: np.asarray(column)[numbers] for key, column in frames.data.items()}
        return shared.map(Batch(np.array(numbers), columns)).nav

    together = reduce(picked)
    for k, number in enumerate(picked):
        for name, value in reduce([number]).items():
            assert together[name][k].tobytes() == value[0].tobytes(), name


def test_chosen_components_come_in_the_order_asked_for(tmp_path: Path) -> None:
    reducer = ready(tmp_path, components=["Zn_Ka", "Ca_Ka"])
    nav = reducer.map(measurement(2, truth())).nav
    assert list(nav) == ["Zn_Ka", "Zn_Ka_sigma", "Ca_Ka", "Ca_Ka_sigma", "dead_time"]
    np.testing.assert_array_equal(nav["Zn_Ka"], ready(tmp_path).map(measurement(2, truth())).nav["Zn_Ka"])


@pytest.mark.parametrize("packed", [False, True])
def test_one_key_for_all_elements_is_read_with_a_factor_of_one(tmp_path: Path, packed: bool) -> None:
    spectra = np.random.default_rng(0).poisson(truth() @ BASIS.templates, (3, 2, 4096)).astype("<u4")
    inputs = (InputSpec("xspress3_spectra", (2, 4096), "<u4"),)
    data: Any = spectra
    if packed:
        data = [Chunk(frame.tobytes(), "none", (2, 4096), np.dtype("<u4")) for frame in spectra]
    partial = ready(tmp_path, inputs).map(Batch(np.arange(3), {"xspress3_spectra": data}))
    assert "dead_time" not in partial.nav
    np.testing.assert_array_equal(partial.acc["spectrum"], spectra.sum(axis=0))
    expected = spectra.sum(axis=1) @ BASIS.operator[BASIS.components.index("Fe_Ka")]
    assert (np.abs(partial.nav["Fe_Ka"] - expected) < 1e-4 * partial.nav["Fe_Ka_sigma"]).all()
    one = ready(tmp_path, inputs, elements=[1]).map(Batch(np.arange(3), {"xspress3_spectra": data}))
    np.testing.assert_array_equal(one.acc["spectrum"], spectra[:, 1:].sum(axis=0))


@pytest.mark.parametrize(
    ("name", "value"),
    [("totalticks", 0), ("totalticks", np.inf), ("totalticks", np.nan), ("allevent", 1e9), ("resetticks", np.nan)],
)
def test_scalers_that_cannot_be_right_name_the_frame_and_the_element(tmp_path: Path, name: str, value: float) -> None:
    batch = measurement(5, truth())
    np.asarray(batch.data[f"{KEYS[2]}_{name}"])[3] = value
    with pytest.raises(ReductionError, match=f"frame 3: {KEYS[2]} was dead for"):
        ready(tmp_path).map(batch)


def test_negative_counts_name_the_frame(tmp_path: Path) -> None:
    batch = measurement(5, truth())
    np.asarray(batch.data[KEYS[1]])[4, 100] = -1
    with pytest.raises(ReductionError, match="frame 4: a negative number of counts"):
        ready(tmp_path).map(batch)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ((InputSpec("pilc_x", (), "<f8"),), "finds no spectra, say which with keys="),
        (INPUTS[:-1], "not every one of"),
        ((InputSpec("a_channel00", (4096,), "<f8"),), "counts are needed"),
        ((InputSpec("a_channel00", (4096,), "<i4"), InputSpec("a_channel01", (2048,), "<i4")), "have shapes"),
    ],
)
def test_a_detector_without_proper_spectra_is_refused(inputs: tuple[InputSpec, ...], says: str) -> None:
    with pytest.raises(ReductionError, match=says):
        Fluorescence(basis=REF, components=["Fe_Ka"]).outputs(inputs)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        (
            {"nonneg": True},
            "no parameter nonneg; there are basis, components, keys, elements, event_width, nonnegative, rois",
        ),
        ({"basis": "demo.npz"}, "basis"),
        ({"components": []}, "components"),
        ({"components": ["Fe_Ka", "Fe_Ka"]}, "each once"),
        ({"components": ["Fe Ka"]}, "must be names"),
        ({"event_width": -1}, "event_width"),
        ({"elements": [0, 0]}, "each once"),
        ({"elements": [4]}, "0 to 3"),
        ({"rois": {"Fe": [640, 640]}}, "rois Fe"),
        ({"rois": {"Fe": [-1, 640]}}, "rois Fe"),
        ({"rois": {"Fe Ka": [600, 640]}}, "rois Fe Ka"),
        ({"rois": {"Fe": [600, 4097]}}, "rois Fe ends at 4097; there are 4096 channels"),
    ],
)
def test_a_wrong_parameter_is_named(params: dict[str, Any], says: str) -> None:
    with pytest.raises(ReductionError, match=says):
        Fluorescence(**{"basis": REF, "components": ["Fe_Ka"], **params}).outputs(INPUTS)


def test_a_basis_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReductionError, match="Au_L isn't in the basis; there are A0"):
        ready(tmp_path, components=["Au_L"])
    with pytest.raises(ShapeMismatch, match="basis is for 4096 channels, a_channel00 has 2048"):
        ready(tmp_path, (InputSpec("a_channel00", (2048,), "<i4"),))


def test_the_captured_stream_of_a_gold_sample_shows_gold(measured: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("PyMca5")
    from haltere.workers.reducers.pymca_basis import make_basis

    # Element 1: zero and gain from its Si, Cl, Cr and Cu lines. Element 0 has its zero elsewhere, so it needs its own.
    text = DEMO.with_suffix(".cfg").read_text()
    peaks = "[peaks]\nSi = K\nP = K\nAu = M\nS = K\nCl = K\nAg = L\nCa = K\nCr = K\nCu = K\n\n"
    text = peaks + text[text.index("[fit]") :]
    for old, new in (
        ("energy = 18.0", "energy = 10.0"),
        ("scatterflag = 1", "scatterflag = 0"),
        ("xmin = 250", "xmin = 150"),
        ("xmax = 1900", "xmax = 900"),
        ("zero = 0.0", "zero = -0.019"),
        ("gain = 0.01\n", "gain = 0.01005\n"),
    ):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "gold.cfg").write_text(text)
    decoder, images = xspress3.Decoder(), {}
    with measured("streams/xspress3mini-dump20.cbors").open("rb") as file:
        for _ in range(68):
            message = decoder.decode(cbor2.load(file))
            if isinstance(message, xspress3.Image):
                images[message.frame] = message
    chunks = [Chunk(each.blob, each.encoding, each.shape, np.dtype(each.dtype)) for each in images.values()]
    inputs = (InputSpec("mini_spectra", (2, 4096), "<u4"),)
    reducer = ready(tmp_path, inputs, make_basis(tmp_path / "gold.cfg"), elements=[1])
    nav = reducer.map(Batch(np.array(list(images)), {"mini_spectra": chunks})).nav
    total = {name: nav[name].sum() for name in reducer.params.components}
    sigma = {name: np.sqrt((nav[f"{name}_sigma"] ** 2).sum()) for name in reducer.params.components}
    assert total["Au_M"] > 10 * sigma["Au_M"]
    for neighbour in ("P_K", "S_K", "Ag_L"):
        assert total["Au_M"] > 5 * total[neighbour]
