"""Areas of spectra: right, and the same to the bit in any company and on any CPU."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from haltere.workers.errors import ReductionError, ShapeMismatch
from haltere.workers.kernel.factoring import factored
from haltere.workers.kernel.places import LANES
from haltere.workers.kernel.plan import BLOCK
from haltere.workers.kernel.spectra import Projected, Projection

RNG = np.random.default_rng(7)


def by_hand(operator: NDArray[np.float64], elements: list[Any], factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return areas by numpy, one operation after the other: each is rounded, nothing is fused or reordered."""
    n, channels = elements[0].shape
    scale = np.ldexp(1.0, np.frexp(np.abs(operator).max(axis=1))[1])
    alone = len(elements) == 1
    spectra = elements[0].astype(np.float32) if alone else np.zeros((n, channels), np.float32)
    for counts, weight in zip(elements, factors.T.astype(np.float32), strict=True):
        if not alone:
            spectra += counts.astype(np.float32) * weight[:, None]
    padded = np.pad(operator / scale[:, None], ((0, 0), (0, -channels % LANES)))
    spectra = np.pad(spectra, ((0, 0), (0, -channels % LANES)))
    areas = np.zeros((n, len(operator)))
    for start in range(0, channels, BLOCK):
        weights, rows = factored(padded[:, start : start + BLOCK])
        products = spectra[:, None, start : start + BLOCK] * rows.astype(np.float32)
        groups = products.reshape(n, len(rows), products.shape[2] // LANES, LANES)
        lanes = np.add.accumulate(groups, axis=2)[:, :, -1].astype(np.float64)
        halves = lanes[:, :, :4] + lanes[:, :, 4:]
        quarters = halves[:, :, :2] + halves[:, :, 2:]
        for weight, total in zip((weights * scale[:, None]).T, (quarters[:, :, 0] + quarters[:, :, 1]).T, strict=True):
            areas += weight * total[:, None]
    return areas * factors if alone else areas


@st.composite
def measurements(draw: st.DrawFn) -> tuple[NDArray[np.float64], list[Any], NDArray[np.float64]]:
    """Return an operator, each element's counts and factors: a few counts or very many, with empty stretches."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, channels = draw(st.integers(1, 19)), draw(st.sampled_from([1, 7, 8, 100, BLOCK, 1100, 2048]))
    templates, count = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    mean, dtype = draw(st.sampled_from([0.01, 3.0, 1e5, 4e8])), draw(st.sampled_from([np.uint32, np.int32]))
    operator = rng.normal(size=(templates, channels)) * np.exp(rng.uniform(-20, 20, (templates, 1)))
    operator[:, rng.random(channels) < 0.3] = 0
    elements = [rng.poisson(mean, (n, channels)).astype(dtype) for _ in range(count)]
    for counts in elements:
        counts[:, channels // 3 : 2 * channels // 3] = 0
    return operator, elements, rng.uniform(1, 2, (n, count))


@settings(max_examples=60, deadline=None)
@given(measurements())
def test_areas_are_those_of_a_sum_in_a_fixed_order_to_the_bit(measured: Any) -> None:
    operator, elements, factors = measured
    made = Projection(operator).run(elements, factors)
    np.testing.assert_array_equal(made.areas, by_hand(operator, elements, factors))


@settings(max_examples=60, deadline=None)
@given(measurements())
def test_areas_and_variances_are_as_good_as_float32(measured: Any) -> None:
    operator, elements, factors = measured
    made = Projection(operator).run(elements, factors)
    counts = sum(each * factor[:, None] for each, factor in zip(elements, factors.T, strict=True))
    spread = sum(each * factor[:, None] ** 2 for each, factor in zip(elements, factors.T, strict=True))
    error = np.abs(made.areas - counts @ operator.T)
    assert (error <= 2e-7 * counts.sum(axis=1, keepdims=True) * np.abs(operator).max(axis=1)).all()
    np.testing.assert_allclose(made.variances, spread @ (operator**2).T, rtol=1e-6)
    np.testing.assert_array_equal(made.total, [each.sum(axis=0, dtype=np.int64) for each in elements])


@settings(max_examples=40, deadline=None)
@given(measurements(), st.lists(st.integers(0, 100), min_size=1, max_size=40))
def test_a_spectrum_has_the_same_bits_in_any_company(measured: Any, picked: list[int]) -> None:
    operator, elements, factors = measured
    chosen = np.array(picked) % len(factors)
    projection = Projection(operator)
    together = projection.run([each[chosen] for each in elements], factors[chosen])
    for k, number in enumerate(chosen):
        alone = projection.run([each[number : number + 1] for each in elements], factors[number : number + 1])
        for one, other in zip(together[:2], alone[:2], strict=True):
            assert one[k].tobytes() == other[0].tobytes()


def test_a_variance_has_the_same_bits_whichever_templates_there_are() -> None:
    operator, counts = RNG.normal(size=(13, 1024)), RNG.poisson(3, (5, 1024)).astype("u4")
    made = Projection(operator).run([counts], np.ones((5, 1)))
    picked = Projection(operator[[11, 3]], variances=[1]).run([counts], np.ones((5, 1)))
    np.testing.assert_array_equal(picked.variances, made.variances[:, [3]])
    np.testing.assert_allclose(picked.areas, made.areas[:, [11, 3]], atol=1e-3)


def test_templates_alike_beside_their_lines_cost_few_sums() -> None:
    channel = np.arange(4096) / 4096
    lines = np.exp(-(((channel - np.linspace(0.1, 0.4, 20)[:, None]) * 500) ** 2))
    operator = lines + RNG.normal(size=(20, 3)) @ [channel**0, channel, channel**2]
    plan = Projection(operator, [])._plan
    assert len(plan.table) < 0.4 * operator.size
    counts = RNG.poisson(3, (5, 4096)).astype("u4")
    made = Projection(operator, []).run([counts], np.ones((5, 1)))
    np.testing.assert_allclose(made.areas, counts @ operator.T, rtol=1e-6)


def test_an_operator_of_nothing_gives_areas_of_0() -> None:
    made = Projection(np.zeros((2, 600))).run([np.ones((4, 600), "u4")], np.ones((4, 1)))
    assert not made.areas.any()
    assert not made.variances.any()
    assert made.total.tolist() == [[4] * 600]


@pytest.mark.parametrize("most", [2**27, 2**28, 2**32])
def test_totals_are_exact_however_large_counts_are(most: int) -> None:
    counts = RNG.integers(most // 2, most, (23, 600), dtype=np.uint32)
    made = Projection(np.ones((1, 600))).run([counts, counts[::-1]], np.ones((23, 2)))
    np.testing.assert_array_equal(made.total, 2 * [counts.sum(axis=0, dtype=np.int64)])
    np.testing.assert_allclose(made.areas[:, 0], (counts.astype(float) + counts[::-1]).sum(axis=1), rtol=1e-6)


def test_where_spectra_lie_in_memory_does_not_matter() -> None:
    frames = RNG.poisson(3, (9, 4, 520)).astype("u4")
    projection, factors = Projection(RNG.normal(size=(6, 520))), np.ones((9, 1))
    expected = projection.run([frames[:, 2].copy()], factors)
    shifted = np.frombuffer(b"\0" + frames[:, 2].tobytes(), np.uint8)[1:].view("u4").reshape(9, 520)
    assert not shifted.flags.aligned
    for given_ in (frames[:, 2], np.asfortranarray(frames[:, 2]), frames[::-1, 2][::-1], shifted):
        np.testing.assert_array_equal(projection.run([given_], factors).areas, expected.areas)


def test_no_spectra_give_no_areas() -> None:
    made = Projection(np.ones((3, 64))).run([np.zeros((0, 64), "u4")], np.ones((0, 1)))
    assert made.areas.shape == made.variances.shape == (0, 3)
    assert not made.total.any()


def test_bits_tell_empty_and_negative_spectra() -> None:
    counts = np.zeros((3, 4096), "i4")
    counts[1, 4000], counts[2, 7] = 6, -1
    bits = Projection(np.ones((1, 4096))).run([counts], np.ones((3, 1))).bits[:, 0]
    assert bits.tolist() == [0, 6, 2**32 - 1]


@pytest.mark.parametrize(
    ("elements", "factors"),
    [
        ([np.zeros((3, 63), "u4")], np.ones((3, 1))),
        ([np.zeros((2, 64), "u4")], np.ones((3, 1))),
        ([np.zeros((3, 64), "u8")], np.ones((3, 1))),
        ([np.zeros((3, 64), ">u4")], np.ones((3, 1))),
        ([np.zeros((3, 64), "u4")], np.ones((3, 2))),
        ([], np.ones((3, 0))),
    ],
)
def test_what_does_not_fit_is_refused(elements: list[Any], factors: Any) -> None:
    with pytest.raises(ShapeMismatch, match=r"expected|factors"):
        Projection(np.ones((2, 64))).run(elements, factors)


@pytest.mark.parametrize("operator", [np.ones(4), np.ones((0, 4)), np.full((1, 4), np.nan)])
def test_an_operator_that_is_none_is_refused(operator: Any) -> None:
    with pytest.raises(ReductionError, match="operator"):
        Projection(operator)


def digest() -> str:
    """Return a digest of areas, variances and constrained areas of many spectra."""
    from haltere.workers.kernel.nnls import NonNegative

    rng = np.random.default_rng(11)
    operator, counts = rng.random((21, 2048)) - 0.5, [rng.integers(0, 9, (40, 2048), np.uint32) for _ in range(2)]
    found = hashlib.sha256()
    for elements in (counts, counts[:1]):
        made: Projected = Projection(operator).run(elements, 1 + rng.random((40, len(elements))))
        settled, states = NonNegative(np.eye(21) + 0.3, np.arange(21) > 2).solve(made.areas)
        assert not states.any()
        assert (settled != made.areas).any()
        for each in (made.areas, made.variances, settled):
            found.update(each.tobytes())
    return found.hexdigest()


X86 = platform.machine() in ("x86_64", "AMD64")


ENVIRONMENTS = (
    {"NUMBA_CPU_NAME": "generic", "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 X86_V3 AVX512F X86_V4"},
    {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "", "HALTERE_KERNEL_CHECKED": "1"},
)


@pytest.mark.timeout(300)  # it compiles
@pytest.mark.parametrize("environment", ENVIRONMENTS if X86 else [{"HALTERE_KERNEL_CHECKED": "1"}])
def test_bits_do_not_depend_on_the_instruction_set(environment: dict[str, str]) -> None:
    here = os.path.dirname(__file__)
    code = f"import sys; sys.path.insert(0, {here!r}); import test_spectra; print(test_spectra.digest())"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    assert ran.stdout.strip() == digest()
