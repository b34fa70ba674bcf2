"""What one core and one table don't tell: start-up, other sets of instructions, threads and processes."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from .process import start
from .tasks import OURS, TITLES

if TYPE_CHECKING:
    from .run import Options

SETS: Final = {
    "this CPU": {},
    "haswell (AVX2)": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ""},
    "x86-64 (SSE2)": {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""},
}
"""For whom it is compiled. The name alone would leave Numba the features of the CPU at hand."""

ROUNDS: Final = 5


def measure(options: Options) -> dict[str, Any]:
    """Return start-up, sets of instructions and scaling, for the first detector, the last dtype and 5 counts or so."""
    with tempfile.TemporaryDirectory(prefix="haltere-bench-") as folder:
        environment = {"NUMBA_CACHE_DIR": folder}
        started = {when: startup(environment) for when in ("cold", "cached")}
        chosen = {
            **asdict(options),
            "detector": options.detectors[0],
            "dtype": options.dtypes[-1],
            "level": min(options.levels, key=lambda level: abs(level - 5)),
        }
        return {
            "startup": started,
            "instruction_sets": sets(chosen, environment),
            "scaling": scaling({**chosen, "core": None}, environment),
        }


def startup(environment: dict[str, str]) -> dict[str, Any]:
    """Return how long a process takes until it could reduce."""
    print("start-up …", file=sys.stderr, flush=True)
    with start("startup", {}, environment) as process:
        return process.answer()


def sets(chosen: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """Return frames per s compiled for each of :data:`SETS`, and whether all give the same bits."""
    print(f"compiled for {', '.join(SETS)} …", file=sys.stderr, flush=True)
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(start("turns", chosen, {**environment, **compiled}))
            for name, compiled in SETS.items()
        }
        digests = {name: process.answer()["digests"] for name, process in processes.items()}
        times: dict[str, dict[str, list[float]]] = {name: {} for name in processes}
        for _ in range(ROUNDS):
            for name, process in processes.items():
                turn = process.ask({"do": "turn", "seconds": chosen["seconds"] / ROUNDS})
                for task, each in turn.items():
                    times[name].setdefault(task, []).extend(each)
    first = next(iter(digests.values()))
    return {
        name: {
            "frames_per_s": {task: round(1 / median(each), 1) for task, each in found.items()},
            "same_bits": digests[name] == first,
        }
        for name, found in times.items()
    }


def scaling(chosen: dict[str, Any], environment: dict[str, str], seconds: float = 1.0) -> dict[str, Any]:
    """Return frames per s of wall time: one thread, two threads, two processes, in turns; and how they scale."""
    print("threads and processes …", file=sys.stderr, flush=True)
    task = next((task for task in ("no", *TITLES) if task in chosen["tasks"]), "decode")
    found: dict[str, list[float]] = {"one": [], "two_threads": [], "two_processes": []}
    question = {**chosen, "tasks": [task]}
    with start("turns", question, environment) as one, start("turns", question, environment) as other:
        for each in (one, other):
            each.answer()
        for _ in range(ROUNDS):
            alone = {"do": "together", "task": task, "threads": 1, "seconds": seconds}
            found["one"].append(_rate([one.ask(alone)]))
            found["two_threads"].append(_rate([one.ask({**alone, "threads": 2})]))
            for each in (one, other):
                each.tell(alone)
            found["two_processes"].append(_rate([one.answer(), other.answer()]))
    rates = {name: round(median(each), 1) for name, each in found.items()}
    return {
        "task": task,
        "engine": OURS,
        "cores": os.cpu_count(),
        "frames_per_s": rates,
        "two_threads": round(rates["two_threads"] / rates["one"], 2),
        "two_processes": round(rates["two_processes"] / rates["one"], 2),
    }


def _rate(answers: list[dict[str, Any]]) -> float:
    return sum(float(each["frames"] / each["wall_s"]) for each in answers)
