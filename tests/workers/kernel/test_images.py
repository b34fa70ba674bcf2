"""What the kernel makes of frames as images: exactly what numpy makes of them, whatever the lot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from haltere.workers.errors import ReductionError
from haltere.workers.kernel import Crop, Kernel, Moments, Rectangle, Regions, Shrink, Sum
from haltere.workers.kernel.gathering import ImagePart

from ..chunks import bslz4

pytestmark = pytest.mark.timeout(300)  # the first one compiles the kernel, if nobody has

MEANS = (0.0, 0.01, 3.0, 300.0, 70_000.0, 3e9)


def picture(shape: tuple[int, int], dtype: str, mean: float, void: float, seed: int) -> NDArray[Any]:
    """Return a frame with some pixels without data, and some that are as great as can be."""
    rng, most = np.random.default_rng(seed), np.iinfo(dtype).max
    frame = np.minimum(rng.poisson(mean, shape), most - 1).astype(dtype)
    frame[rng.random(shape) < void] = most
    frame[rng.random(shape) < void / 4] = most - 1
    return frame


@st.composite
def rectangles(draw: st.DrawFn, shape: tuple[int, int]) -> Rectangle:
    sides = []
    for length in shape:
        first = draw(st.integers(0, length - 1))
        sides.append((first, draw(st.integers(first + 1, length))))
    return Rectangle(*sides)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[NDArray[Any]], dict[str, ImagePart]]:
    """Draw frames, and parts that fit them."""
    shape = draw(st.tuples(st.integers(1, 90), st.integers(1, 300)))
    dtype = draw(st.sampled_from(["|u1", "<u2", "<u4"]))
    seed = draw(st.integers(0, 1 << 32))
    frames = [
        picture(shape, dtype, draw(st.sampled_from(MEANS)), draw(st.sampled_from([0, 0.02, 1])), seed + number)
        for number in range(draw(st.integers(1, 4)))
    ]
    mask = np.random.default_rng(seed).random(shape) < draw(st.sampled_from([0.0, 0.1]))
    mask[draw(st.integers(0, shape[0])) :] |= draw(st.booleans())  # whole rows of cells
    mask[0, 0] = False
    labels = np.random.default_rng(seed).integers(0, 4, shape)
    labels[0, 0] = 3
    cutoffs = st.sampled_from([None, 0.5, 2.0, 300.0, 1e5, 5e9])
    several = tuple(draw(st.lists(rectangles(shape), min_size=1, max_size=3)))
    factors = st.integers(1, 12) | st.sampled_from([15, 16, 17, 24, 40, 64])
    return frames, {
        "rectangles": Regions(
            several, mask=mask if draw(st.booleans()) else None, cutoff=draw(cutoffs), peaks=True, centres=True
        ),
        "labels": Regions(labels=labels, cutoff=draw(cutoffs), centres=True),
        "moments": Moments(mask if draw(st.booleans()) else None, draw(cutoffs)),
        "crop": Crop(draw(rectangles(shape))),
        "shrink": Shrink(draw(factors), draw(cutoffs), mask),
        "smaller": Shrink(draw(factors)),
        "sum": Sum(draw(factors), draw(cutoffs), mask if draw(st.booleans()) else None),
    }


def by_numpy(frames: list[NDArray[Any]], part: ImagePart) -> dict[str, NDArray[Any]]:
    """Return what the reference makes of the frames."""
    each = [part.reference(frame) for frame in frames]
    together = {name: np.stack([one[name] for one in each]) for name in each[0]}
    return {name: array.sum(axis=0) for name, array in together.items()} if part.adds else together


@given(scenes())
@settings(max_examples=60, deadline=None)
def test_every_part_equals_numpy_alone_and_with_the_others(
    scene: tuple[list[NDArray[Any]], dict[str, ImagePart]],
) -> None:
    frames, parts = scene
    shape, dtype = frames[0].shape, frames[0].dtype
    together = Kernel(shape, dtype, parts).run([bslz4(frame) for frame in frames])
    assert together.keys() == parts.keys()
    for name, part in parts.items():
        alone = Kernel(shape, dtype, {name: part}).run(frames)[name]
        expected = by_numpy(frames, part)
        assert together[name].keys() == alone.keys() == expected.keys()
        for output, array in expected.items():
            np.testing.assert_array_equal(together[name][output], array, err_msg=f"{name} {output}")
            assert alone[output].tobytes() == together[name][output].tobytes()


@pytest.mark.parametrize("lot", [1, 5, 16, 21])
def test_a_frame_gives_the_same_bits_in_any_lot(lot: int) -> None:
    frames = [picture((70, 131), "<u2", mean, 0.01, seed) for seed, mean in enumerate([0.02, 5, 3000] * 7)]
    parts: dict[str, ImagePart] = {
        "roi": Regions((Rectangle((3, 40), (5, 100)),), cutoff=3010, peaks=True, centres=True),
        "crop": Crop(Rectangle((60, 70), (0, 131))),
        "small": Shrink(4),
    }
    kernel = Kernel((70, 131), "<u2", parts)
    whole = kernel.run(frames)
    for first in range(0, len(frames), lot):
        for name, outputs in kernel.run(frames[first : first + lot]).items():
            for output, array in outputs.items():
                assert array.tobytes() == whole[name][output][first : first + lot].tobytes()


@pytest.mark.parametrize("dtype", ["<u1", "<u4"])
def test_the_reference_is_what_the_words_say(dtype: str) -> None:
    frame = np.arange(12, dtype=dtype).reshape(3, 4)
    frame[0, 1] = void = np.iinfo(dtype).max
    whole = Regions((Rectangle((0, 3), (0, 4)), Rectangle((0, 1), (1, 2))), cutoff=9, peaks=True, centres=True)
    made = whole.reference(frame)
    assert made["sum"].tolist() == [44, 0]
    assert made["excluded"].tolist() == [3, 1]
    assert made["saturated"].tolist() == [2, 0]
    assert made["maximum"].tolist() == [9, 0]
    counted = [(value, y, x) for y, row in enumerate(frame.tolist()) for x, value in enumerate(row) if value <= 9]
    assert made["x"][0] == sum(value * x for value, _, x in counted) / 44
    assert made["y"][0] == sum(value * y for value, y, _ in counted) / 44
    assert np.isnan(made["x"][1])
    assert Shrink(2).reference(frame)["frames"].tolist() == [[9, 18], [17, 21]]
    assert Shrink(1).reference(frame)["frames"][0, 1] == 2**32 - 1 if dtype == "<u1" else 2**64 - 1
    assert Sum(3).reference(frame)["left_out"].tolist() == [[1, 0]]
    assert Crop(Rectangle((0, 1), (1, 3))).reference(frame)["frames"].tolist() == [[void, 2]]


def test_sums_stay_exact_where_every_pixel_is_as_great_as_can_be() -> None:
    frame = np.full((400, 500), 2**32 - 2, "<u4")
    made = Kernel(frame.shape, frame.dtype, {"all": Moments(), "cells": Shrink(64), "sum": Sum(64)}).run([frame] * 17)
    assert made["all"]["total"].tolist() == [int(frame.sum(dtype=np.uint64))] * 17
    assert made["all"]["x"].tolist() == [249.5] * 17
    assert made["cells"]["frames"][16, 0, 0] == 64 * 64 * (2**32 - 2)
    assert made["sum"]["sum"][0, 0] == 17 * 64 * 64 * (2**32 - 2)


@pytest.mark.parametrize("dtype", ["<i4", "<f4", ">u2", "<i8", "<f8"])
def test_other_types_are_reduced_by_numpy_alone(dtype: str) -> None:
    frame = np.random.default_rng(0).poisson(3, (40, 30)).astype(dtype)
    void = frame.copy()
    void[3, 4] = void[10] = -1 if dtype[1] == "i" else np.nan if dtype[1] == "f" else 65535
    made = Moments(cutoff=8).reference(void)
    counted = (void >= 0) & (void <= 8)
    assert made["total"] == void[counted].sum(dtype="f8" if dtype[1] == "f" else "i8")
    assert made["excluded"] == np.count_nonzero(~counted)
    assert made["saturated"] == made["excluded"] - 31
    small = Shrink(1).reference(void)["frames"]
    assert small[3, 4] == -1 or np.isnan(small[3, 4]) or small[3, 4] == 2**32 - 1
    np.testing.assert_array_equal(small[20:], void[20:])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Regions(), "give either rectangles or labels"),
        (lambda: Regions((Rectangle((5, 5), (0, 1)),)), r"rows \[5, 5\): expected 0 ≤ first < stop"),
        (lambda: Regions(labels=np.zeros((3, 3), int)), "there are 0, 1 to 4096 can be"),
        (lambda: Regions(labels=np.full((3, 3), -1)), "integers from 0 on"),
        (lambda: Shrink(65), "1 to 64 along each axis"),
        (lambda: Sum(2, mask=np.ones((3, 3), bool)), "every pixel is masked"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, says: str) -> None:
    with pytest.raises(ReductionError, match=says):
        make()


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (Crop(Rectangle((0, 5), (0, 4))), r"rows \[0, 5\) of a frame of 4 × 4"),
        (Regions(labels=np.ones((3, 4), int)), r"labels have \(3, 4\) pixels"),
        (Moments(np.zeros((3, 4), bool)), r"mask has \(3, 4\) pixels"),
        (Shrink(2, mask=np.zeros((3, 4), bool)), r"mask has \(3, 4\) pixels"),
    ],
)
def test_what_does_not_fit_the_frames_is_refused(part: Any, says: str) -> None:
    with pytest.raises(ReductionError, match=says):
        Kernel((4, 4), "<u2", {"part": part})
