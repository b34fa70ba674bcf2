"""Frames that are measured are the same at each run, and what they are said to be."""

from __future__ import annotations

import numpy as np
import pytest

from haltere.benchmarks.kernel import frames
from haltere.benchmarks.kernel.detectors import DETECTORS, Detector
from haltere.workers.decode import decode
from haltere.workers.reducers.base import Chunk

SMALL = Detector("small", "Small", (61, 83), 1e-3, (30.2, -5.1), gaps=((0, 20, 23), (1, 40, 42)))


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_chunks_decode_to_the_frames_with_gaps_and_hot_pixels(dtype: str) -> None:
    counts = frames.count(SMALL, frames.expectation(SMALL), 5.0, 2)
    sample = frames.sample(SMALL, counts, 5.0, dtype)
    most = np.iinfo(dtype).max
    assert sample.dtype == dtype
    for frame, chunk in zip(sample.frames, sample.chunks, strict=True):
        assert np.array_equal(decode(Chunk(chunk, "bslz4", SMALL.shape, np.dtype(dtype))), frame)
        assert (frame[20:23] == most).all()
        assert (frame[:, 40:42] == most).all()
        assert (frame[~SMALL.mask()] < most - 1).all()
    assert sample.compression == pytest.approx(sample.frames[0].nbytes / len(sample.chunks[0]), rel=0.1)


def test_the_same_counts_come_again_and_their_mean_is_the_level() -> None:
    expected = frames.expectation(SMALL)
    (first,), (again,) = (frames.count(SMALL, expected, 5.0, 1) for _ in range(2))
    assert np.array_equal(first, again)
    assert first.mean() == pytest.approx(5.0, rel=0.05)
    assert not np.array_equal(first, frames.count(SMALL, expected, 5.0, 2)[1])


@pytest.mark.parametrize("detector", DETECTORS.values(), ids=list(DETECTORS))
def test_detectors_have_bad_pixels_and_a_geometry_of_their_shape(detector: Detector) -> None:
    gap, mask = detector.gap(), detector.mask()
    assert (mask & ~gap).any()
    assert mask.mean() < 0.1
    assert detector.integrator().detector.shape == detector.shape
