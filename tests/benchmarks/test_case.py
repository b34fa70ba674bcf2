"""All competitors at a small detector: they answer the same questions, and rightly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from haltere.benchmarks.kernel import case, frames
from haltere.benchmarks.kernel.detectors import Detector
from haltere.benchmarks.kernel.pyfai import Integrators
from haltere.benchmarks.kernel.tasks import OURS, TITLES
from haltere.benchmarks.kernel.turns import digest

pytestmark = pytest.mark.timeout(300)  # the kernel may have to be compiled first
SMALL = Detector("small", "Small", (122, 166), 5e-4, (60.4, -10.2), gaps=((0, 40, 46), (1, 80, 84)))


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    counts = frames.count(SMALL, frames.expectation(SMALL), 5.0, 3)
    return case.measure(frames.sample(SMALL, counts, 5.0, "uint32"), Integrators(SMALL), tuple(TITLES), seconds=0.001)


def test_everybody_answers_rightly(measured: dict[str, Any]) -> None:
    for row in measured["rows"]:
        for name, found in row["agreement"].items():
            right = found.get("equal", found.get("deviation", 0) < 2e-5)  # scipy's sums are in float32
            assert right, f"{row['task']}, {row['engine']}: {name} {found}"


def test_the_kernel_is_at_each_task_and_agrees_to_1e_6(measured: dict[str, Any]) -> None:
    ours = {row["task"]: row["agreement"] for row in measured["rows"] if row["engine"] == OURS}
    assert list(ours) == list(TITLES)
    for task in ("no", "variance", "cake", "all"):
        assert ours[task]["sums"] == {"equal": True}
    for task in ("no", "variance", "bbox", "full", "cake", "all"):
        assert ours[task]["intensity"]["deviation"] < 1e-6
    assert ours["variance"]["sem"]["deviation"] < 1e-6


def test_ratios_are_of_medians_of_the_same_task(measured: dict[str, Any]) -> None:
    ours = {row["task"]: row["median_ms"] for row in measured["rows"] if row["engine"] == OURS}
    for row in measured["rows"]:
        assert row["ratio"] == pytest.approx(row["median_ms"] / ours[row["task"]], rel=0.05, abs=0.01)


def test_a_digest_is_of_every_bit() -> None:
    one = {"xrd": {"intensity": np.zeros(3, np.float32)}}
    other = {"xrd": {"intensity": np.array([0, -0.0, 0], np.float32)}}
    assert digest(one) == digest({"xrd": {"intensity": np.zeros(3, np.float32)}})
    assert digest(one) != digest(other)
