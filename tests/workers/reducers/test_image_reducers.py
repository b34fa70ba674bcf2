"""Frames to regions, moments, pieces and previews: numpy's numbers, of chunks and arrays, of any type of pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from haltere.workers.assets import AssetStore
from haltere.workers.errors import ReductionError
from haltere.workers.recipes import checked
from haltere.workers.reducers import moments, preview, roi
from haltere.workers.reducers.base import Batch, Partial, Reducer, Setup
from haltere.workers.reducers.crop import Crop
from haltere.workers.reducers.moments import Moments
from haltere.workers.reducers.preview import Preview
from haltere.workers.reducers.roi import Roi
from haltere.workers.wire.messages import InputSpec

from ..chunks import bslz4

SHAPE = (61, 83)
REGIONS = {"au": {"rows": [3, 20], "columns": [5, 60]}, "cu": {"rows": [10, 61], "columns": [0, 83]}}
TYPES = ["|u1", "<u2", "<u4", "<i4", ">u2", "<f4", "<i8"]


def frames(dtype: str, n: int = 5) -> NDArray[Any]:
    """Return frames with some pixels that have no data."""
    made = np.random.default_rng(7).poisson(4, (n, *SHAPE)).astype(dtype)
    kind = np.dtype(dtype).kind
    made[1, 4:9, 10] = -1 if kind == "i" else np.nan if kind == "f" else np.iinfo(dtype).max
    made[2, 30, 30] = 200
    return made


def ready(kind: type[Reducer], dtype: str, store: Path = Path("nowhere"), **params: Any) -> Reducer:
    """Return a reducer whose parameters went through JSON, set up; it keeps its word."""
    reducer = kind(**json.loads(json.dumps(params)))
    inputs = (InputSpec("image", SHAPE, dtype), InputSpec("flux", (), "<f8"))
    outputs = checked(reducer.outputs(inputs))
    consts = reducer.setup(Setup(inputs, store))
    for name, output in outputs.items():
        if output.kind == "const":
            assert consts.pop(name).shape == output.shape
    assert not consts
    return reducer


def reduce(reducer: Reducer, data: Any) -> Partial:
    """Reduce, and see that what comes is what was announced."""
    partial = reducer.map(Batch(np.arange(len(data)), {"image": data, "flux": np.zeros(len(data))}))
    dtype = data[0].dtype.str
    outputs = reducer.outputs((InputSpec("image", SHAPE, dtype), InputSpec("flux", (), "<f8")))
    for kind, given, lead in (("nav", partial.nav, (len(data),)), ("acc", partial.acc, ())):
        announced = {name: output for name, output in outputs.items() if output.kind == kind}
        assert given.keys() == announced.keys()
        for name, array in given.items():
            assert array.shape == (*lead, *announced[name].shape)
            assert array.dtype == np.dtype(announced[name].dtype)
    return partial


def valid(made: NDArray[Any], cutoff: float = np.inf) -> NDArray[np.bool_]:
    top = made == np.iinfo(made.dtype).max if made.dtype.kind == "u" else ~(made >= 0)
    return ~top & ~(made > cutoff)


def same(one: Partial, other: Partial) -> None:
    for mine, its in ((one.nav, other.nav), (one.acc, other.acc)):
        assert {name: array.tobytes() for name, array in mine.items()} == {
            name: array.tobytes() for name, array in its.items()
        }


@pytest.mark.parametrize("dtype", TYPES)
def test_regions_of_any_type_have_the_counts_that_numpy_has(dtype: str) -> None:
    data = frames(dtype)
    reducer = ready(Roi, dtype, regions=REGIONS, cutoff=100, centres=True, maxima=True, excluded=True)
    nav = reduce(reducer, data).nav
    clean = np.where(valid(data, 100), data, 0).astype(float)
    assert nav["au"].tolist() == clean[:, 3:20, 5:60].sum(axis=(1, 2)).tolist()
    assert nav["cu_max"].tolist() == clean[:, 10:, :].max(axis=(1, 2)).tolist()
    assert nav["au_excluded"].tolist() == [0, 5, 0, 0, 0]
    assert nav["cu_excluded"].tolist() == [0, 0, 1, 0, 0]
    weighted = (clean[:, 10:, :] * np.arange(10, 61)[:, None]).sum(axis=(1, 2))
    np.testing.assert_allclose(nav["cu_y"], weighted / nav["cu"], rtol=1e-15)


@pytest.mark.parametrize("dtype", TYPES)
def test_moments_of_any_type_are_numpys(dtype: str) -> None:
    data = frames(dtype)
    nav = reduce(ready(Moments, dtype, cutoff=100), data).nav
    clean = np.where(valid(data, 100), data, 0).astype(float)
    assert nav["total"].tolist() == clean.sum(axis=(1, 2)).tolist()
    np.testing.assert_allclose(nav["centre_x"], (clean * np.arange(83)).sum(axis=(1, 2)) / nav["total"], rtol=1e-15)
    assert nav["maximum"].tolist() == clean.max(axis=(1, 2)).tolist()
    assert nav["saturated"].tolist() == [0, 0, 1, 0, 0]
    assert nav["excluded"].tolist() == [0, 5, 1, 0, 0]


@pytest.mark.parametrize("dtype", TYPES)
def test_pieces_are_the_frames_own_pixels(dtype: str) -> None:
    data = frames(dtype)
    reducer = ready(Crop, dtype, rows=[3, 20], columns=[5, 60])
    np.testing.assert_array_equal(reduce(reducer, data).nav["image"], data[:, 3:20, 5:60])
    axes = reducer.setup(Setup((InputSpec("image", SHAPE, dtype),), Path("nowhere")))
    assert axes["row"].tolist() == list(range(3, 20))


@pytest.mark.parametrize("dtype", TYPES)
def test_previews_add_up_the_pixels_of_a_cell(dtype: str) -> None:
    data = frames(dtype)
    whole = np.dtype(dtype).kind != "f"
    partial = reduce(ready(Preview, dtype, factor=5, sum=whole), data)
    clean = np.pad(np.where(valid(data), data, 0).astype(float), ((0, 0), (0, 4), (0, 2)))
    cells = clean.reshape(5, 13, 5, 17, 5).sum(axis=(2, 4))
    np.testing.assert_array_equal(partial.nav["image"], cells)
    if whole:
        np.testing.assert_array_equal(partial.acc["sum"], cells.sum(axis=0))
        assert partial.acc["left_out"].sum() == 5
        assert partial.acc["left_out"][0, 2] == 1


@pytest.mark.parametrize("dtype", ["|u1", "<u2", "<u4"])
@pytest.mark.parametrize(
    ("kind", "params"),
    [
        (Roi, {"regions": REGIONS, "centres": True, "cutoff": 5}),
        (Moments, {}),
        (Crop, {"rows": [0, 61], "columns": [80, 83]}),
        (Preview, {"factor": 3, "cutoff": 6}),
    ],
)
def test_chunks_arrays_and_frames_one_by_one_give_the_same_bits(
    dtype: str, kind: type[Reducer], params: dict[str, Any]
) -> None:
    data = frames(dtype, 3)
    reducer = ready(kind, dtype, **params)
    of_array = reduce(reducer, data)
    same(of_array, reduce(reducer, [bslz4(frame) for frame in data]))
    alone = [reduce(reducer, data[at : at + 1]) for at in range(len(data))]
    for name, array in of_array.nav.items():
        assert array.tobytes() == b"".join(one.nav[name].tobytes() for one in alone)
    for name, array in of_array.acc.items():
        np.testing.assert_array_equal(array, sum(one.acc[name] for one in alone))


def test_masks_and_labels_come_from_the_store(tmp_path: Path) -> None:
    store, data = AssetStore(tmp_path), frames("<u2")
    mask = np.zeros(SHAPE, bool)
    mask[:, 40:] = True
    clean = np.where(valid(data), data, 0).astype(float)
    nav = reduce(ready(Moments, "<u2", tmp_path, **moments.recipe_params(mask, assets=store)), data).nav
    assert nav["total"].tolist() == clean[:, :, :40].sum(axis=(1, 2)).tolist()
    params = preview.recipe_params(mask, assets=store, factor=40)
    image = reduce(ready(Preview, "<u2", tmp_path, **params), data).nav["image"]
    assert (image[:, :, 1:] == 2**32 - 1).all()
    labels = np.zeros(SHAPE, int)
    labels[5:9, 10] = labels[60, 82] = 2
    labels[0, 0] = 1
    params = roi.recipe_params(labels, ["corner", "streak"], assets=store)
    nav = reduce(ready(Roi, "<u2", tmp_path, **params), data).nav
    assert nav["streak"].tolist() == (clean[:, 5:9, 10].sum(axis=1) + clean[:, 60, 82]).tolist()
    assert nav["corner"].tolist() == clean[:, 0, 0].tolist()
    with pytest.raises(ReductionError, match="labels go from 0 to 2, and there are 1 names"):
        ready(Roi, "<u2", tmp_path, **{**params, "names": ["all"]})


@pytest.mark.parametrize(
    ("kind", "params", "says"),
    [
        (Roi, {}, "give either regions= or labels="),
        (Roi, {"regions": {}}, "there is no region"),
        (Roi, {"regions": {"a b": REGIONS["au"]}}, "region 'a b' is no name"),
        (Roi, {"regions": {"a": {"rows": [5, 5], "columns": [0, 1]}}}, r"region a has no rows: \[5, 5\) is empty"),
        (Roi, {"regions": {"a": {"rows": [5, 9]}}}, "missing required field `columns`"),
        (Roi, {"regions": {"a": REGIONS["au"], "a_x": REGIONS["cu"]}, "centres": True}, "a_x would be there twice"),
        (Roi, {"labels": "sha256:" + 64 * "0"}, "labels= and names= belong together"),
        (
            Roi,
            {"regions": {"a": {"rows": [5, 62], "columns": [0, 1]}}},
            r"region a: rows \[5, 62\), the frames have 61",
        ),
        (Moments, {"cutof": 3}, "moments has no parameter cutof; there are mask, cutoff, key"),
        (Moments, {"cutoff": 0}, "Expected `float` > 0"),
        (Crop, {"rows": [0, 4]}, "missing required field `columns`"),
        (Crop, {"rows": [4, 4], "columns": [0, 1]}, r"rows \[4, 4\) are empty"),
        (Crop, {"rows": [0, 4], "columns": [0, 84]}, r"columns \[0, 84\), the frames have 83"),
        (Preview, {"factor": 65}, "Expected `int` <= 64"),
        (Preview, {"frames": False, "sum": False}, "neither frames nor sum"),
    ],
)
def test_a_wrong_recipe_is_told_in_one_line(kind: type[Reducer], params: dict[str, Any], says: str) -> None:
    with pytest.raises(ReductionError, match=says) as told:
        kind(**params).outputs((InputSpec("image", SHAPE, "<u2"),))
    assert "\n" not in str(told.value)


def test_a_sum_that_would_not_be_exact_or_small_is_refused() -> None:
    with pytest.raises(ReductionError, match="a sum of frames needs integers, not float32; take sum=false"):
        Preview().outputs((InputSpec("image", SHAPE, "<f4"),))
    with pytest.raises(ReductionError, match="take a greater factor"):
        Preview(factor=1).outputs((InputSpec("image", (2167, 2070), "<u4"),))


def test_counts_that_can_not_be_added_exactly_name_their_frame() -> None:
    data = np.full((1, *SHAPE), 2**62, "<i8")
    with pytest.raises(ReductionError, match="frame 0: regions: 4611686018427387904 counts in a pixel"):
        reduce(ready(Moments, "<i8"), data)
