"""Frames to bins: what numpy adds up is what the kernel gives, to the last count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from haltere.workers.errors import ChunkError, ReductionError, ShapeMismatch
from haltere.workers.kernel import Bins, BinTable, Kernel

from ..chunks import bslz4

DTYPES = ["<u1", "<u2", "<u4"]


def table(shape: tuple[int, int], bins: int, weighted: bool, seed: int = 0, per_pixel: int = 3) -> BinTable:
    """Return a table that sends a pixel anywhere: far apart, twice to one bin, or nowhere."""
    random = np.random.default_rng(seed)
    pixels = shape[0] * shape[1]
    entries = random.integers(0, pixels * (per_pixel if weighted else 1) + 1)
    pixel = random.integers(0, pixels, entries) if weighted else random.permutation(pixels)[:entries]
    bin_of = random.integers(0, bins, entries)
    order = np.argsort(bin_of, kind="stable")
    norm = random.uniform(0.2, 1, pixels)
    norm[random.random(pixels) < 0.05] = 0
    return BinTable(
        shape=shape,
        coefficients=(random.random(entries) if weighted else np.ones(entries)).astype(np.float32),
        indices=pixel[order].astype(np.int32),
        starts=np.searchsorted(bin_of[order], np.arange(bins + 1)),
        norm=norm,
    )


def dense(table: BinTable) -> NDArray[np.float64]:
    """Return the table's matrix, (bins, pixels); duplicates are one entry."""
    matrix = np.zeros((table.bins, table.norm.size))
    bins = np.repeat(np.arange(table.bins), np.diff(table.starts))
    np.add.at(matrix, (bins, table.indices), table.coefficients.astype(float))
    return matrix * table.used.ravel()


def check(part: Bins, frames: list[NDArray[Any]], out: dict[str, NDArray[Any]]) -> None:
    """Compare with numpy: equal where the weights are 1; else float32 rounds."""
    matrix = dense(part.table)
    exact = bool(np.isin(matrix, (0, 1)).all())
    for k, frame in enumerate(frames):
        most = np.iinfo(frame.dtype).max - 1
        valid = (frame <= (most if part.cutoff is None else min(part.cutoff, most))).ravel()
        counts = np.where(valid, frame.ravel(), 0).astype(float)
        norm = matrix @ (valid * part.table.norm)
        near = {
            "signal": (matrix @ counts, 0 if exact else 5e-7),
            "variance": (matrix**2 @ (np.maximum(counts, 1) * valid), 0 if exact else 5e-7),
            "normalization": (norm, 1e-7),
            "count": (matrix @ valid, 0 if exact else 1e-7),
        }
        for name, (expected, error) in near.items():
            np.testing.assert_allclose(out[name][k], expected, rtol=error, atol=0, err_msg=name)
        assert out["total"][k] == counts[part.table.used.ravel()].sum()
        divided = {"intensity": out["signal"][k], "sigma": np.sqrt(out["variance"][k])}
        for name, above in divided.items():
            quotient = np.divide(above, out["normalization"][k], out=np.zeros_like(above), where=norm > 0)
            np.testing.assert_allclose(out[name][k], quotient, rtol=1e-7)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 97), st.integers(1, 131)),
    dtype=st.sampled_from(DTYPES),
    bins=st.integers(1, 400),
    weighted=st.booleans(),
    mean=st.sampled_from([0.01, 1, 40, 3000]),
    cutoff=st.sampled_from([None, 0.5, 30.0, 255.0, 256.0, 70_000.5]),
    seed=st.integers(0, 1000),
)
def test_sums_equal_numpys(
    shape: tuple[int, int], dtype: str, bins: int, weighted: bool, mean: float, cutoff: float | None, seed: int
) -> None:
    random = np.random.default_rng(seed)
    most = np.iinfo(dtype).max
    frames = [np.minimum(random.poisson(mean * (k + 1), shape), most).astype(dtype) for k in range(3)]
    frames[1][random.random(shape) < 0.02] = most
    frames[2][random.random(shape) < 0.02] = most - 1
    part = Bins(table=table(shape, bins, weighted, seed), variance=True, cutoff=cutoff, sums=True)
    out = Kernel(shape, dtype, {"bins": part}).run(frames)["bins"]
    check(part, frames, out)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_counts_of_all_pixels_in_one_bin_don_t_overflow(dtype: str, weighted: bool) -> None:
    shape = (260, 517)
    frame = np.full(shape, np.iinfo(dtype).max - 1, dtype)
    pixels = frame.size
    coefficients = np.ones(2 * pixels if weighted else pixels, np.float32)
    coefficients[pixels:] = 0.25
    everything = BinTable(
        shape=shape,
        coefficients=coefficients,
        indices=np.resize(np.arange(pixels, dtype=np.int32), coefficients.size),
        starts=np.arange(0, coefficients.size + 1, pixels),
        norm=np.ones(pixels),
    )
    out = Kernel(shape, dtype, {"bins": Bins(table=everything, sums=True)}).run([frame] * 2)["bins"]
    total = float(frame[0, 0]) * pixels
    assert (out["total"] == total).all()
    np.testing.assert_allclose(out["signal"][:, 0], total, rtol=0 if not weighted else 5e-7)
    np.testing.assert_allclose(out["intensity"], float(frame[0, 0]), rtol=5e-7)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_frames_bits_don_t_depend_on_the_frames_beside_it(weighted: bool) -> None:
    random = np.random.default_rng(5)
    shape = (61, 167)
    frames = [random.poisson(10.0 ** random.integers(-2, 5), shape).astype("<u4") for _ in range(33)]
    for frame in frames[::3]:
        frame[random.random(shape) < 0.01] = 2**32 - 1
    kernel = Kernel(shape, "<u4", {"bins": Bins(table=table(shape, 50, weighted), variance=True, cutoff=60_000)})
    alone = [kernel.run([bslz4(frame)])["bins"] for frame in frames]
    for n in (2, 3, 15, 16, 17, 33):
        together = kernel.run([bslz4(frame) for frame in frames[:n]])["bins"]
        for name, values in together.items():
            assert values.tobytes() == b"".join(alone[k][name].tobytes() for k in range(n)), (n, name)


def test_a_frame_without_data_is_0_and_harms_no_other() -> None:
    shape = (40, 70)
    part = Bins(table=table(shape, 20, weighted=False), variance=True)
    kernel = Kernel(shape, "<u2", {"bins": part})
    frame, none = np.full(shape, 7, "<u2"), np.full(shape, 65535, "<u2")
    out = kernel.run([frame, none, frame])["bins"]
    again = kernel.run([frame])["bins"]
    for name, values in out.items():
        assert not values[1].any()
        assert values[0].tobytes() == values[2].tobytes() == again[name][0].tobytes()
        assert values[0].any()


@pytest.mark.parametrize("weighted", [False, True])
def test_what_a_damaged_frame_leaves_behind_is_in_no_later_sum(weighted: bool) -> None:
    random = np.random.default_rng(6)
    shape = (90, 211)  # several tiles
    frames = [random.poisson(300, shape).astype("<u2") for _ in range(2)]
    frames[1][random.random(shape) < 0.01] = 65535
    chunks = [bslz4(frame) for frame in frames]
    cut = replace(chunks[1], data=bytes(chunks[1].data)[:-200])
    kernel = Kernel(shape, "<u2", {"bins": Bins(table=table(shape, 50, weighted), variance=True, sums=True)})
    expected = kernel.run(chunks)["bins"]
    with pytest.raises(ChunkError, match="frame 1"):
        kernel.run([chunks[0], cut])
    for name, values in kernel.run(chunks)["bins"].items():
        assert values.tobytes() == expected[name].tobytes(), name


def test_a_wrong_table_or_cutoff_is_refused() -> None:
    good = table((4, 5), 3, weighted=True)
    with pytest.raises(ShapeMismatch, match=r"of frames of \(4, 5\), these have \(5, 4\)"):
        Kernel((5, 4), "<u2", {"bins": Bins(table=good)})
    with pytest.raises(ReductionError, match="above 0"):
        Bins(table=good, cutoff=0)
    for wrong, says in (
        ({"norm": np.ones(21)}, "21 norms"),
        ({"indices": good.indices + 20}, "outside of"),
        ({"starts": good.starts[::-1]}, "ascend"),
        ({"coefficients": good.coefficients * np.float32("nan")}, "not finite"),
    ):
        fields: dict[str, Any] = {
            name: getattr(good, name) for name in ("shape", "coefficients", "indices", "starts", "norm")
        }
        with pytest.raises(ReductionError, match=says):
            BinTable(**(fields | wrong))
