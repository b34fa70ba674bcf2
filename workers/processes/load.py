"""What processes use: CPU over the last seconds, and memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from time import monotonic, time
from typing import Final, NamedTuple

import psutil

SPAN: Final = 2.0
"""Seconds at least over which CPU is averaged."""


class Used(NamedTuple):
    """``cpu`` in % of a core; ``rss`` in bytes, shared memory counted in each process that has it."""

    cpu: float
    rss: int


class _Sample(NamedTuple):
    at: float
    cpu_s: float


class Load:
    """Looks at processes now and then. Ask it every few seconds, or whenever somebody wants to know."""

    def __init__(self) -> None:
        self._samples: dict[int, tuple[_Sample, _Sample]] = {}
        """By pid: an earlier look, and a later one."""

    def look(self, pids: Mapping[str, Iterable[int]]) -> dict[str, Used]:
        """Return what each name's processes use, added up; those that are gone use nothing."""
        now = monotonic()
        found: dict[str, Used] = {}
        seen: set[int] = set()
        for name, group in pids.items():
            cpu, rss = 0.0, 0
            for pid in group:
                with suppress(psutil.Error):
                    process = psutil.Process(pid)
                    with process.oneshot():
                        times = process.cpu_times()
                        rss += process.memory_info().rss
                        born = process.create_time()
                    cpu += self._percent(pid, _Sample(now, times.user + times.system), born)
                    seen.add(pid)
            found[name] = Used(round(100 * cpu, 1), rss)
        self._samples = {pid: samples for pid, samples in self._samples.items() if pid in seen}
        return found

    def _percent(self, pid: int, sample: _Sample, born: float) -> float:
        before, last = self._samples.get(pid, (None, None))
        if before is None or last is None:
            age = max(time() - born, 1.0)  # the first time: since it began
            self._samples[pid] = (sample, sample)
            return sample.cpu_s / age
        if sample.at - last.at >= SPAN:
            before, last = last, sample
            self._samples[pid] = (before, last)
        elapsed = max(sample.at - before.at, 1e-3)
        return max(sample.cpu_s - before.cpu_s, 0.0) / elapsed
