"""The sample is a function of position and seed."""

import numpy as np
import pytest

from haltere.devices.sim.sample import ELEMENTS, Sample

GRID = np.meshgrid(np.linspace(-50, 50, 41), np.linspace(-50, 50, 31))


def test_the_same_seed_gives_the_same_sample() -> None:
    first, second = Sample(3), Sample(3)
    for name, density in first.elements(*GRID).items():
        assert np.array_equal(density, second.elements(*GRID)[name])
    assert np.array_equal(first.phases(*GRID), second.phases(*GRID))


def test_another_seed_gives_another_sample() -> None:
    first, second = Sample(1).elements(*GRID), Sample(2).elements(*GRID)
    assert all(not np.allclose(first[name], second[name], atol=0.05) for name in ELEMENTS)


def test_a_point_asked_alone_is_as_it_is_in_the_map() -> None:
    sample = Sample(0)
    x, y = GRID
    whole = sample.elements(x, y)
    for row, column in ((0, 0), (7, 12), (30, 40)):
        alone = sample.elements(x[row, column], y[row, column])
        for name in ELEMENTS:
            assert float(alone[name]) == pytest.approx(float(whole[name][row, column]), abs=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 99])
def test_densities_and_phases_stay_within_their_bounds_everywhere(seed: int) -> None:
    sample = Sample(seed)
    far = np.linspace(-5000, 5000, 101)
    for x, y in (GRID, np.meshgrid(far, far)):
        for density in sample.elements(x, y).values():
            assert density.shape == x.shape
            assert density.min() >= 0.02
            assert density.max() <= 1.0
        first, second = sample.phases(x, y)
        assert min(first.min(), second.min()) >= 0
        assert (first + second).max() <= 1 + 1e-12


def test_each_element_has_a_pattern_of_its_own() -> None:
    densities = Sample(0).elements(*GRID)
    assert len(densities) >= 6
    correlation = np.corrcoef([density.ravel() for density in densities.values()])
    assert np.abs(correlation - np.eye(len(densities))).max() < 0.95


def test_calcium_rises_along_one_direction_across_the_sample() -> None:
    calcium = Sample(0).elements(*GRID)["Ca"]
    x, y = GRID
    slopes = np.linalg.lstsq(np.stack([x.ravel(), y.ravel(), np.ones(x.size)], axis=1), calcium.ravel(), rcond=None)[0]
    assert np.hypot(slopes[0], slopes[1]) * 100 > 0.3
