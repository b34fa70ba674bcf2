"""A process that measures when it is told to, so that several can take turns: the kernel alone, without the others.

``python -m haltere.benchmarks.kernel.turns '{…}'`` makes a sample (:class:`.run.Options`, of one detector, dtype and
level) and answers a line of JSON with a line of JSON until the end of its input. First it gives digests of its results:
``{"digests": {task: sha256}}``.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from time import perf_counter
from typing import Any

import numpy as np

from . import frames
from .detectors import DETECTORS
from .ours import Results, kernel_rows
from .pyfai import Integrators
from .tasks import Row
from .timing import Competitor, Times, take_turn, thread_time


def main(asked: dict[str, Any]) -> None:
    """Answer until the end of the input."""
    if asked["core"] is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {asked["core"]})
    detector = DETECTORS[asked["detector"]]
    counts = frames.count(detector, frames.expectation(detector), asked["level"], asked["frames"])
    sample = frames.sample(detector, counts, asked["level"], asked["dtype"])
    rows = {row.task: row for row in kernel_rows(sample, Integrators(detector), asked["tasks"])}
    say({"digests": {task: digest(row.competitor.call(0)) for task, row in rows.items()}})
    for line in sys.stdin:
        say(answer(rows, json.loads(line)))


def say(words: dict[str, Any]) -> None:
    """Print a line."""
    print(json.dumps(words), flush=True)


def answer(rows: dict[str, Row], command: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked: ``turn`` (each task for ``seconds`` of CPU time) or ``together`` (``threads`` at one task)."""
    if command["do"] == "turn":
        return {task: _turn(row.competitor, command["seconds"]) for task, row in rows.items()}
    return together(rows[command["task"]].competitor, command["threads"], command["seconds"])


def _turn(competitor: Competitor, seconds: float) -> list[float]:
    times = Times()
    take_turn(competitor, times, seconds, thread_time)
    return times.each


def together(competitor: Competitor, threads: int, seconds: float) -> dict[str, Any]:
    """Let so many threads reduce at once for so many seconds of wall time; return how many frames they did."""
    begin = threading.Barrier(threads + 1)
    calls = [0] * threads
    end = threading.Event()

    def work(mine: int) -> None:
        begin.wait()
        while not end.is_set():
            competitor.call(calls[mine])
            calls[mine] += 1

    workers = [threading.Thread(target=work, args=(mine,)) for mine in range(threads)]
    for worker in workers:
        worker.start()
    begin.wait()
    began = perf_counter()
    end.wait(seconds)
    end.set()
    for worker in workers:
        worker.join()
    return {"frames": competitor.frames * sum(calls), "wall_s": perf_counter() - began}


def digest(results: Results) -> str:
    """Return a digest of all results, to the bit."""
    found = hashlib.sha256()
    for part, outputs in sorted(results.items()):
        for name, array in sorted(outputs.items()):
            found.update(f"{part} {name} {array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
