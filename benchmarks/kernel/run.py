"""The measurement as a whole: what was asked for, a process per detector, and one result."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from time import perf_counter
from typing import Any, Final

from ...workers.errors import SettingsError
from .detectors import DETECTORS
from .process import start
from .tasks import TITLES

DTYPES: Final = ("uint16", "uint32")
LEVELS: Final = (0.05, 0.5, 5.0, 50.0)
FRAMES: Final = 16
SECONDS: Final = 0.3

EXTRA: Final = {"bitshuffle": "bitshuffle", "bslz4_to_sparse": "bslz4-to-sparse"}
"""Modules that only this benchmark needs, and whose they are."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure.

    ``seconds`` : CPU time of each competitor at each sample; ``frames`` : of a sample; ``core`` : the CPU to use.
    """

    detectors: tuple[str, ...] = tuple(DETECTORS)
    dtypes: tuple[str, ...] = DTYPES
    levels: tuple[float, ...] = LEVELS
    tasks: tuple[str, ...] = tuple(TITLES)
    seconds: float = SECONDS
    frames: int = FRAMES
    core: int = 0
    beyond: bool = True
    """Also start-up, sets of instructions, threads and processes."""
    spectra: bool = True
    """Also fluorescence."""


QUICK: Final = Options(
    detectors=("eiger4m",),
    dtypes=("uint32",),
    levels=(5.0,),
    tasks=tuple(task for task in TITLES if task != "full"),
    seconds=0.15,
    beyond=False,
    spectra=False,
)


def choose_core(core: int | None) -> int:
    """Return the CPU to measure on, by default the last one that this process may use.

    Raises
    ------
    SettingsError
        It may not use that one.
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if core is not None and core not in allowed:
        raise SettingsError(f"--core {core}: this process may use {', '.join(map(str, allowed))}")
    return allowed[-1] if core is None else core


def check(options: Options) -> None:
    """See that it can be measured.

    Raises
    ------
    SettingsError
        A name is unknown, or a package isn't installed.
    """
    for what, given, known in (
        ("detector", options.detectors, tuple(DETECTORS)),
        ("dtype", options.dtypes, DTYPES),
        ("task", options.tasks, tuple(TITLES)),
    ):
        if wrong := [each for each in given if each not in known]:
            raise SettingsError(f"haltere bench kernel knows no {what} {wrong[0]!r}; there are {', '.join(known)}")
    if not all(0 < level < 1e4 for level in options.levels):
        raise SettingsError("haltere bench kernel: a level is the mean count of a pixel, above 0 and below 10000")
    needed = {**EXTRA, "PyMca5": "PyMca5"} if options.spectra else EXTRA
    if missing := [package for module, package in needed.items() if find_spec(module) is None]:
        raise SettingsError(
            f"haltere bench kernel compares with {' and '.join(missing)}, not installed here: "
            "pip install 'haltere[bench]'" + (" (or --no-spectra)" if missing == ["PyMca5"] else "")
        )


def measure(options: Options) -> dict[str, Any]:
    """Measure all of it and return the figures; progress goes to standard error.

    Raises
    ------
    SettingsError
        As :func:`check`.
    PoolError
        A process that measures died.
    """
    check(options)
    from . import machine

    began = perf_counter()
    described = machine.describe()
    print(machine.line(described), file=sys.stderr, flush=True)
    cases: list[dict[str, Any]] = []
    for name in options.detectors:
        with start("child", {**asdict(options), "detector": name}) as process:
            cases += process.answers()
    others: dict[str, Any] = {}
    if options.spectra:
        with start("spectra", asdict(options)) as process:
            others |= process.answer()
    if options.beyond:
        from . import beyond

        others |= beyond.measure(options)
    return {
        "benchmark": "kernel",
        "machine": described,
        "options": asdict(options),
        "cases": cases,
        **others,
        "seconds": round(perf_counter() - began, 1),
    }
