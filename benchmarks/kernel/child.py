"""The process that measures: one detector, on one core, with libraries that were told to use one thread.

``python -m haltere.benchmarks.kernel.child '{"detector": …}'`` prints a line of JSON per sample; progress goes to
standard error.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from time import perf_counter
from typing import Any


def main(asked: dict[str, Any]) -> None:
    """Measure what was asked for (:class:`~haltere.benchmarks.kernel.run.Options`, and the ``detector``)."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {asked["core"]})
    logging.getLogger("pyFAI").setLevel(logging.ERROR)
    from . import case, frames
    from .detectors import DETECTORS
    from .pyfai import Integrators

    began = perf_counter()
    detector = DETECTORS[asked["detector"]]
    integrators = Integrators(detector)
    expected = frames.expectation(detector)
    for level in asked["levels"]:
        counts = frames.count(detector, expected, level, asked["frames"])
        for dtype in asked["dtypes"]:
            sample = frames.sample(detector, counts, level, dtype)
            measured = case.measure(sample, integrators, asked["tasks"], asked["seconds"])
            print(json.dumps(measured), flush=True)
            spent = perf_counter() - began
            print(f"{detector.title}, {dtype}, {level:g} counts: measured, {spent:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
