"""Areas that aren't negative: from an unconstrained fit to the constrained one, without the spectrum.

The unconstrained fit gives areas a and their covariance C, up to a factor. A fit that holds the areas of a set at 0
differs from it by C·λ with one λ for each of the set, from C_ss·λ = −a_s: a system as large as the set, which is small
where most components are there. The set that is sought has λ ≥ 0 in it and areas ≥ 0 outside (Kuhn and Tucker). It is
found by exchanging all that are wrong at once (block pivoting: Portugal, Júdice, Vicente, Math. Comp. 63 (1994) 625).
Where that goes in circles, because components overlap much, λ is found by Lawson and Hanson's method (Solving Least
Squares Problems, 1974, chapter 23): one more component at a time, and each step brings the fit closer.

Every sum is made in a fixed order, without fused operations: the same areas give the same bits everywhere.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ReductionError
from .compiling import Packed, entry, inner
from .intrinsics import square_root

TOLERANCE: Final = 1e-10
"""What counts as 0, beside the largest area; all in units of their uncertainties."""

PIVOT: Final = 1e-12
"""Components whose correlation leaves less than this can't be told apart."""

TRIES: Final = 3
"""Exchanges of all at once that may fail to make fewer wrong."""

SOLVED, UNSETTLED, ALIKE = range(3)


class _FitTerms(NamedTuple):
    """``sigma`` : uncertainties of the unconstrained areas. ``bounded`` : which mayn't be negative."""

    sigma: NDArray[np.float64]
    correlation: NDArray[np.float64]
    bounded: NDArray[np.bool_]


class _FitSpace(NamedTuple):
    """What one thread works in. ``held`` : which are held at 0; ``chosen`` lists them, ``factor`` is their system's."""

    start: NDArray[np.float64]
    now: NDArray[np.float64]
    reached: NDArray[np.float64]
    multipliers: NDArray[np.float64]
    held: NDArray[np.bool_]
    chosen: NDArray[np.int64]
    factor: NDArray[np.float64]


class NonNegative:
    """The non-negative least-squares fit that belongs to an unconstrained one.

    Parameters
    ----------
    covariance
        (components, components) float64: (T·W·Tᵀ)⁻¹ of the unconstrained fit, up to a factor.
    bounded
        (components,) bool: which mayn't be negative; the others are free.
    """

    def __init__(self, covariance: NDArray[np.float64], bounded: NDArray[np.bool_]) -> None:
        variances = np.diagonal(covariance)
        if covariance.shape != (len(bounded), len(bounded)) or not np.isfinite(covariance).all():
            raise ReductionError(f"a covariance of {covariance.shape} for {len(bounded)} components")
        if not (variances > 0).all():
            raise ReductionError("a component without variance: its template is empty")
        self._sigma = np.sqrt(variances)
        self._correlation = np.ascontiguousarray(covariance / np.outer(self._sigma, self._sigma))
        self._bounded = np.array(bounded, np.bool_)
        self._packed = Packed(_FitTerms(self._sigma, self._correlation, self._bounded))
        self._idle: list[Packed] = []
        self.steps = 10 * len(bounded) + 20
        """Most systems that each way may solve for a spectrum; one to three are usual."""

    def reason(self, state: int) -> str:
        """Say why a spectrum wasn't SOLVED."""
        if state == UNSETTLED:
            return (
                f"no areas that aren't negative were found in {self.steps} steps: its counts or factors can't be right"
            )
        return "components too much alike for areas that aren't negative: leave some out of the basis"

    def solve(self, areas: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
        """Return the (n, components) areas of the constrained fit, and for each spectrum whether it was SOLVED.

        Parameters
        ----------
        areas
            (n, components) float64, of the unconstrained fit.
        """
        found = np.array(areas, np.float64, order="C")
        if found.ndim != 2 or found.shape[1] != len(self._bounded):
            raise ReductionError(f"areas of {found.shape} for {len(self._bounded)} components")
        states = np.zeros(len(found), np.uint8)
        mine = self._idle.pop() if self._idle else self._space()
        _solve(found, self._packed, self.steps, states, mine)
        self._idle.append(mine)
        return found, states

    def _space(self) -> Packed:
        count = len(self._bounded)
        start, now, reached, multipliers = np.empty((4, count))
        held, chosen, factor = np.empty(count, np.bool_), np.empty(count, np.int64), np.empty((count, count))
        return Packed(_FitSpace(start, now, reached, multipliers, held, chosen, factor))


@entry
def _solve(areas: Any, fit: Any, steps: int, states: Any, space: Any) -> None:
    """Replace the areas that aren't allowed, and what depends on them."""
    sigma, correlation, bounded = fit
    start, now, reached, multipliers, held, chosen, factor = space
    n, components = areas.shape
    for frame in range(n):
        wrong, largest, sound = 0, 0.0, True
        for k in range(components):
            start[k] = areas[frame, k] / sigma[k]
            sound &= np.isfinite(start[k])
            largest = max(largest, abs(start[k]))
            held[k] = bounded[k] and start[k] < 0.0
            wrong += held[k]
        if not sound:
            states[frame] = UNSETTLED
            continue
        if wrong == 0:
            continue
        tolerance = TOLERANCE * largest
        states[frame] = _settle(
            start, now, reached, held, bounded, correlation, tolerance, steps, chosen, factor, multipliers
        )
        for k in range(components):
            areas[frame, k] = 0.0 if bounded[k] and (held[k] or now[k] < 0.0) else now[k] * sigma[k]


@inner
def _settle(
    start: Any,
    now: Any,
    reached: Any,
    held: Any,
    bounded: Any,
    correlation: Any,
    tolerance: float,
    steps: int,
    chosen: Any,
    factor: Any,
    multipliers: Any,
) -> int:
    """Exchange all that are wrong between those held at 0 and the others, until none is.

    Where that doesn't help any more, begin anew: hold one more component at 0 at a time, and let go of those whose
    multiplier would become negative.
    """
    components = len(start)
    fewest, tries, slowly, left = components + 1, TRIES, False, steps
    while left > 0:
        left -= 1
        size = _choose(held, chosen)
        if not _multipliers(start, correlation, chosen, size, factor, multipliers):
            return ALIKE
        if slowly:
            way, first = 1.0, -1
            for j in range(size):
                before = reached[chosen[j]]
                if multipliers[j] <= 0.0 and before / (before - multipliers[j]) < way:
                    way, first = before / (before - multipliers[j]), chosen[j]
            for j in range(size):
                reached[chosen[j]] += way * (multipliers[j] - reached[chosen[j]])
            if first >= 0:
                reached[first] = 0.0
                held[first] = False
                continue
        _move(start, now, correlation, chosen, size, multipliers)
        for j in range(size):
            now[chosen[j]] = multipliers[j]  # of those held at 0 it is the multiplier that mayn't be negative
        wrong, worst = 0, 0
        for k in range(components):
            if bounded[k] and now[k] < -tolerance:
                wrong += 1
                worst = k if wrong == 1 or now[k] < now[worst] else worst
        if wrong == 0:
            return SOLVED
        if slowly:
            held[worst] = True
            continue
        tries = TRIES if wrong < fewest else tries - 1
        fewest = min(fewest, wrong)
        slowly = tries < 0
        if slowly:
            left = steps
        for k in range(components):
            reached[k] = 0.0
            held[k] = not slowly and held[k] != (bounded[k] and now[k] < -tolerance)
    return UNSETTLED


@inner
def _choose(held: Any, chosen: Any) -> int:
    """List the components held at 0; return how many there are."""
    size = 0
    for k in range(len(held)):
        if held[k]:
            chosen[size] = k
            size += 1
    return size


@inner
def _move(start: Any, now: Any, correlation: Any, chosen: Any, size: int, multipliers: Any) -> None:
    """Write the areas that these multipliers give."""
    for k in range(len(start)):
        now[k] = start[k]
    for j in range(size):
        row, multiplier = chosen[j], multipliers[j]
        for k in range(len(start)):
            now[k] += correlation[row, k] * multiplier


@inner
def _multipliers(start: Any, correlation: Any, chosen: Any, size: int, factor: Any, multipliers: Any) -> bool:
    """Solve correlation·multipliers = −start for those chosen, by Cholesky's factors; False if it can't be.

    The diagonal of ``factor`` has the inverse of theirs.
    """
    for i in range(size):
        for j in range(i + 1):
            total = correlation[chosen[i], chosen[j]]
            for k in range(j):
                total -= factor[i, k] * factor[j, k]
            if j < i:
                factor[i, j] = total * factor[j, j]
            elif total > PIVOT:
                factor[i, i] = 1.0 / square_root(total)
            else:
                return False
        total = -start[chosen[i]]
        for k in range(i):
            total -= factor[i, k] * multipliers[k]
        multipliers[i] = total * factor[i, i]
    for i in range(size - 1, -1, -1):
        total = multipliers[i]
        for k in range(i + 1, size):
            total -= factor[k, i] * multipliers[k]
        multipliers[i] = total * factor[i, i]
    return True
