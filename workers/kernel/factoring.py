"""Stretches of a matrix's columns as products, of fewer rows: beside its lines a template tells what a background does.

Over a few hundred channels the operator of a fit has as many directions as there are terms of the background and lines
in reach, however many rows it has. Rows that span those are found by Gram and Schmidt's method, what is told worst
first. All sums are made in a fixed order and nothing by a BLAS: the same rows come out everywhere.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

PRECISE: Final = 2.0**-28
"""What may be left of a value: a tenth of what rounding 1 to float32 leaves. Results depend on it."""

MOST: Final = 64
"""Rows after which no more are looked for: a matrix that has so many directions is its own product. Results depend on
it."""


class Factors(NamedTuple):
    """``weights`` : (m, r) float64. ``rows`` : (r, columns) float64, of length 1 and at right angles to each other.

    Or the rows are the matrix's.
    """

    weights: NDArray[np.float64]
    rows: NDArray[np.float64]


def factored(matrix: NDArray[np.float64]) -> Factors:
    """Return (m, columns) float64, of values up to about 1, as ``weights @ rows``, with as few rows as that takes."""
    left = matrix.copy()
    weights, rows = np.zeros((len(matrix), 0)), np.zeros((0, matrix.shape[1]))
    while len(rows) < min(matrix.shape):
        far = np.abs(left).max(axis=1)
        worst = far.argmax()
        if far[worst] <= PRECISE:
            break
        if len(rows) == MOST:
            return Factors(np.eye(len(matrix)), matrix)
        row = left[worst] / far[worst]
        for other in rows:  # a small remainder isn't quite at right angles to them
            row -= _sums(other * row) * other
        row /= np.sqrt(_sums(row * row))
        weight = _sums(left * row)
        left -= weight[:, None] * row
        weights, rows = np.column_stack((weights, weight)), np.vstack((rows, row))
    return Factors(weights, rows)


def _sums(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums of rows, each from left to right."""
    added: NDArray[np.float64] = np.add.accumulate(products, axis=-1)[..., -1]
    return added
