"""When an answer is right, and how far it is from it."""

from __future__ import annotations

import math

import numpy as np

from haltere.benchmarks.kernel.agreement import compare, deviation, words


def test_integers_are_equal_or_not() -> None:
    right = {"sums": np.array([1, 2**40], np.int64)}
    assert compare({"sums": np.array([1, 2**40], np.uint64)}, right) == {"sums": {"equal": True}}
    assert compare({"sums": np.array([1, 2**40 + 1], np.int64)}, right) == {"sums": {"equal": False}}
    assert words(compare({"sums": np.array([1], np.int64)}, right)) == "sums DIFFER"


def test_a_bin_of_nothing_deviates_by_nothing() -> None:
    assert deviation(np.array([1000.0, 1e-9]), np.array([1000.0, 0.0])) < 1e-5
    assert deviation(np.array([1001.0, 0.0]), np.array([1000.0, 0.0])) == 0.001


def test_a_value_where_there_should_be_none_is_no_small_deviation() -> None:
    assert math.isnan(deviation(np.array([1.0, np.nan]), np.array([1.0, 2.0])))
    assert deviation(np.array([1.0, np.nan]), np.array([1.0, np.nan])) == 0
