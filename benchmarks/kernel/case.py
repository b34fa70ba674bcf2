"""One sample, all competitors: who takes how long, and whose answer is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .agreement import References, compare
from .baselines import Baselines
from .frames import Sample
from .ours import kernel_rows
from .pyfai import Integrators
from .tasks import OURS, Row
from .timing import Times, interleave


def measure(sample: Sample, integrators: Integrators, tasks: Sequence[str], seconds: float) -> dict[str, Any]:
    """Return the figures of one sample, units in the keys.

    ``rows``: per task and engine ms per frame (median and least of all calls), frames per s of the median, how many
    times faster the kernel is (``ratio``, medians) and its ``agreement``.
    """
    rows = [*kernel_rows(sample, integrators, tasks), *Baselines(sample, integrators).rows(tasks)]
    rows.sort(key=lambda row: tasks.index(row.task))  # stable: the kernel's own comes first
    times = interleave([row.competitor for row in rows], seconds)
    references = References(sample, integrators)
    ours = {row.task: each.median for row, each in zip(rows, times, strict=True) if row.engine == OURS}
    return {
        "detector": sample.detector.name,
        "dtype": sample.dtype.name,
        "level": sample.level,
        "frame_bytes": sample.frames[0].nbytes,
        "chunk_bytes": sample.chunk_bytes,
        "compression": round(sample.compression, 2),
        "rows": [figures(row, each, references, ours) for row, each in zip(rows, times, strict=True)],
    }


def figures(row: Row, times: Times, references: References, ours: dict[str, float]) -> dict[str, Any]:
    """Return one row's."""
    found: dict[str, Any] = {
        "task": row.task,
        "engine": row.engine,
        "frames_per_s": round(1 / times.median, 1),
        "median_ms": round(1e3 * times.median, 4),
        "least_ms": round(1e3 * times.least, 4),
        "calls": len(times.each),
        "agreement": compare(row.answer(row.competitor.call(0)), references.answer(row.task)),
    }
    if row.task in ours:
        found["ratio"] = round(times.median / ours[row.task], 2)
    return found
