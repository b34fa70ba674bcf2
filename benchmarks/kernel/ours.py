"""The kernel itself, at each task."""

from __future__ import annotations

from collections.abc import Sequence

from .frames import Sample
from .pyfai import Integrators
from .tasks import Row


def kernel_rows(sample: Sample, integrators: Integrators, tasks: Sequence[str]) -> list[Row]:
    """Return the kernel's rows."""
    return []
