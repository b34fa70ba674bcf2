"""Areas that aren't negative: scipy's, from the unconstrained ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import lsq_linear, nnls

from haltere.workers import basis
from haltere.workers.errors import ReductionError
from haltere.workers.kernel.nnls import ALIKE, UNSETTLED, NonNegative

ALL = np.ones(3, np.bool_)


@st.composite
def fits(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return templates that overlap, weights and spectra: of some components too little or nothing is there."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, width = draw(st.integers(1, 20)), draw(st.sampled_from([2.0, 6.0, 12.0]))
    channel, places = np.arange(200), np.linspace(20, 180, count) + rng.uniform(-1, 1, count)
    templates = np.exp(-(((channel - places[:, None]) / width) ** 2) / 2) * np.exp(rng.uniform(-5, 5, (count, 1)))
    areas = rng.exponential(30, (8, count)) * (rng.random((8, count)) < draw(st.sampled_from([0.0, 0.5, 1.0])))
    return templates, rng.uniform(0.1, 1, 200), rng.poisson(areas @ templates + 0.05).astype(np.float64)


def unconstrained(
    templates: NDArray[np.float64], weights: NDArray[np.float64], spectra: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return areas and their covariance."""
    operator = basis.operator(templates, 1 / weights)
    return spectra @ operator.T, operator / weights @ operator.T


@settings(max_examples=80, deadline=None)
@given(fits())
def test_areas_are_those_of_scipys_fit_to_the_spectrum(fit: Any) -> None:
    templates, weights, spectra = fit
    free, covariance = unconstrained(templates, weights, spectra)
    solver = NonNegative(covariance, np.ones(len(templates), np.bool_))
    found, states = solver.solve(free)
    assert not states.any()
    assert (found >= 0).all()
    sigma, root = np.sqrt(np.diagonal(covariance)), np.sqrt(weights)
    for areas, counts in zip(found, spectra, strict=True):
        expected, misfit = nnls((templates * root).T, counts * root)
        assert np.linalg.norm((counts - areas @ templates) * root) <= misfit * (1 + 1e-9) + 1e-9
        np.testing.assert_allclose(areas / sigma, expected / sigma, atol=1e-6 * (1 + np.abs(expected / sigma).max()))


@settings(max_examples=40, deadline=None)
@given(fits(), st.integers(0, 2**20 - 1))
def test_components_that_may_be_negative_are_left_free(fit: Any, chosen: int) -> None:
    templates, weights, spectra = fit
    bounded = np.array([bool(chosen >> k & 1) for k in range(len(templates))])
    free, covariance = unconstrained(templates, weights, spectra)
    found, states = NonNegative(covariance, bounded).solve(free)
    assert not states.any()
    assert (found[:, bounded] >= 0).all()
    sigma, root = np.sqrt(np.diagonal(covariance)), np.sqrt(weights)
    low = np.where(bounded, 0.0, -np.inf)
    expected = lsq_linear((templates * sigma[:, None] * root).T, spectra[0] * root, (low, np.inf), "bvls", tol=1e-14)
    np.testing.assert_allclose(found[0] / sigma, expected.x, atol=1e-6 * (1 + np.abs(expected.x).max()))


@settings(max_examples=40, deadline=None)
@given(fits(), st.permutations(range(8)))
def test_a_spectrums_areas_have_the_same_bits_in_any_company(fit: Any, order: list[int]) -> None:
    free, covariance = unconstrained(*fit)
    solver = NonNegative(covariance, np.ones(len(covariance), np.bool_))
    together, _ = solver.solve(free[order])
    for k, number in enumerate(order):
        assert together[k].tobytes() == solver.solve(free[number : number + 1])[0].tobytes()


def test_areas_that_are_allowed_are_not_touched() -> None:
    areas = np.array([[1.0, 0.0, 3.0], [-1.0, 2.0, 0.1]])
    found, states = NonNegative(np.eye(3) + 0.1, np.array([False, True, True])).solve(areas)
    np.testing.assert_array_equal(found, areas)
    assert not states.any()


def test_components_too_much_alike_are_told() -> None:
    same = NonNegative(np.ones((3, 3)), ALL)
    assert same.solve(np.array([[-1.0, -2.0, 3.0]]))[1].tolist() == [ALIKE]
    assert "too much alike" in same.reason(ALIKE)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_areas_that_are_no_numbers_are_told_and_cost_no_other_spectrum(bad: float) -> None:
    solver = NonNegative(np.eye(3), ALL)
    found, states = solver.solve(np.array([[bad, -1.0, 1.0], [-1.0, 2.0, 1.0]]))
    assert states.tolist() == [UNSETTLED, 0]
    assert found[1].tolist() == [0, 2, 1]


def overlapping() -> tuple[NonNegative, NDArray[np.float64]]:
    """Return a fit of lines that hardly differ from their neighbours, and areas: exchanges go in circles there."""
    rng = np.random.default_rng(4)
    templates = np.exp(-(((np.arange(200) - np.linspace(20, 180, 18)[:, None]) / 14) ** 2) / 2)
    operator = basis.operator(templates)
    solver = NonNegative(operator @ operator.T, np.ones(18, np.bool_))
    return solver, rng.poisson(rng.exponential(10, (300, 18)) @ templates) @ operator.T


def test_the_search_ends_after_as_many_systems_as_were_said() -> None:
    solver, areas = overlapping()
    assert not solver.solve(areas)[1].any()
    solver.steps = 8
    states = solver.solve(areas)[1]
    assert set(states.tolist()) == {0, UNSETTLED}
    assert "in 8 steps" in solver.reason(UNSETTLED)


def test_areas_and_multipliers_are_those_of_a_minimum_where_lines_overlap_much() -> None:
    solver, areas = overlapping()
    found, _ = solver.solve(areas)
    sigma = solver._sigma
    multipliers = np.linalg.solve(solver._correlation, ((found - areas) / sigma).T).T
    # Kuhn and Tucker: nothing is negative, and of an area and its multiplier one is 0.
    scale = np.abs(multipliers).max()
    assert (found >= 0).all()
    assert (multipliers > -1e-6 * scale).all()
    assert np.abs(np.where(found > 0, multipliers, 0)).max() < 1e-6 * scale


@pytest.mark.parametrize(
    ("covariance", "bounded"),
    [(np.eye(2), ALL), (np.diag([1.0, 0, 1]), ALL), (np.full((3, 3), np.nan), ALL)],
)
def test_what_is_no_covariance_is_refused(covariance: Any, bounded: Any) -> None:
    with pytest.raises(ReductionError, match="variance"):
        NonNegative(covariance, bounded)


def test_areas_of_other_components_are_refused() -> None:
    with pytest.raises(ReductionError, match="for 3 components"):
        NonNegative(np.eye(3), ALL).solve(np.ones((2, 4)))
