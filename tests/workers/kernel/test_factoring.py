"""Matrices as products: the matrix, of as few rows as it has directions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haltere.workers.kernel.factoring import MOST, PRECISE, factored


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 64), st.integers(0, 8), st.sampled_from([0, 1e-7, 1]))
def test_the_product_is_the_matrix(seed: int, rows: int, columns: int, rank: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns)) + noise * rng.normal(size=(rows, columns))
    matrix /= max(1, np.abs(matrix).max())
    found = factored(matrix)
    assert np.abs(found.weights @ found.rows - matrix).max() <= PRECISE + 1e-14
    np.testing.assert_allclose(found.rows @ found.rows.T, np.eye(len(found.rows)), atol=1e-14)
    assert len(found.rows) <= (min(rank, rows, columns) if noise == 0 else min(rows, columns))


@pytest.mark.parametrize("far", [1e-6, 1e-3])
def test_a_row_that_hardly_differs_from_another_is_told_from_it(far: float) -> None:
    rng = np.random.default_rng(3)
    matrix = rng.uniform(-1, 1, (1, 200)).repeat(3, axis=0)
    matrix[1] += far * rng.uniform(-1, 1, 200)
    found = factored(matrix)
    assert len(found.rows) == 2
    np.testing.assert_allclose(found.rows @ found.rows.T, np.eye(2), atol=1e-14)
    assert np.abs(found.weights @ found.rows - matrix).max() <= 1e-14


def test_nothing_is_a_product_of_no_rows() -> None:
    found = factored(np.full((4, 16), PRECISE))
    assert found.weights.shape == (4, 0)
    assert found.rows.shape == (0, 16)


@pytest.mark.parametrize(("rank", "rows"), [(MOST, MOST), (MOST + 1, 100)])
def test_a_matrix_of_too_many_directions_is_its_own_product(rank: int, rows: int) -> None:
    rng = np.random.default_rng(5)
    matrix = rng.normal(size=(100, rank)) @ rng.normal(size=(rank, 200)) / 100
    found = factored(matrix)
    assert len(found.rows) == rows
    assert np.abs(found.weights @ found.rows - matrix).max() <= PRECISE
