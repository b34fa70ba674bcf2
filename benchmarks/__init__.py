"""Measurements, each side by side with a baseline in one run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ..workers.errors import SettingsError


def _path(frames: int, workers: int) -> dict[str, Any]:
    from .path import measure

    return measure(frames, workers)


BENCHMARKS: Final[dict[str, Callable[[int, int], dict[str, Any]]]] = {"path": _path}


def run(name: str, *, frames: int, workers: int) -> dict[str, Any]:
    """Run the benchmark of that name and return its figures, units in the keys.

    Raises
    ------
    SettingsError
        There is none of that name.
    """
    if name not in BENCHMARKS:
        raise SettingsError(f"there is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name](frames, workers)
