"""A batch reduced apart from any pool, by a worker's own child: to try a frame again, or to look whether it agrees."""

from __future__ import annotations

import select
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Final, Self

from ..errors import ReductionError
from ..ledger.rows import BatchRow
from ..processes.death import describe_exit
from ..wire.messages import LOST, QUARANTINED, Absent, FileSpan, StreamOpen, Work
from .pipe import Failed, Ready, Reduced
from .process import Child, WorkerSettings

STALL: Final = 60.0
"""Seconds that a batch may take."""


DEATHS: Final = 8


class ReducerDied(ReductionError):
    """Of this batch."""


class Apart:
    """Reduces from files, in a process of its own: a frame that kills the reducer kills nothing else.

    Parameters
    ----------
    assets
        Where recipes' assets are.
    roots
        The folders that frames may be read from.
    stall
        Seconds that a batch may take.
    reducing
        What to run as the reducer.
    log
        Where its standard error goes; by default to this process's.
    """

    def __init__(
        self,
        assets: Path,
        roots: Sequence[Path],
        *,
        stall: float = STALL,
        reducing: tuple[str, ...] = (sys.executable, "-m", "haltere.workers.worker.reducing"),
        log: Path | None = None,
    ) -> None:
        self._log = log
        self._settings = WorkerSettings(
            name="apart",
            broker="",
            sink="",
            assets=str(assets),
            roots=[str(root) for root in roots],
            log="ERROR",
            stall=stall,
            reducing=reducing,
        )
        self._child: Child | None = None
        self._tokens = count(1)

    def reduce(
        self, stream: StreamOpen, spans: Iterable[FileSpan], first: int, n: int, only: Iterable[int] | None = None
    ) -> BatchRow:
        """Return a batch as the ledger would have it.

        Parameters
        ----------
        spans
            Where the stream's frames are.
        only
            The frames that are to be reduced; by default all.

        Raises
        ------
        ReductionError
            It can't be read.
        ReducerDied
            The reducer died of it, or hung.
        """
        frames = range(first, first + n)
        wanted = set(frames if only is None else only)
        absent = [Absent(frame, LOST, "not asked for") for frame in frames if frame not in wanted]
        files = [span for span in spans if span.first < first + n and span.first + span.n > first]
        work = Work(stream.run, stream.stream, stream.cfg, first, n, next(self._tokens), [], files, absent)
        record, payload = self._asked(stream, work)
        if isinstance(record, Failed):
            raise ReductionError(record.nack.reason)
        result = record.result
        return BatchRow(
            *(result.run, result.stream, result.cfg, result.first, result.n, result.status, list(result.reasons)),
            *(result.token, "apart", [spec for spec in result.arrays if spec.kind != "const"], payload),
        )

    def _asked(self, stream: StreamOpen, work: Work) -> tuple[Reduced | Failed, bytes]:
        child = self._child = self._child or Child(self._settings, self._log)
        key = stream.run, stream.stream, stream.cfg
        if key not in child.told:
            child.send(stream)
            child.told[key] = None
        child.send(work)
        deadline = monotonic() + self._settings.stall
        while True:
            writing = [child.channel] if child.writing else []
            select.select([child.channel], writing, [], max(deadline - monotonic(), 0))
            child.flush()
            records = child.read()
            if records is None:
                self._child = None
                raise ReducerDied(f"the reducer died, {describe_exit(child.end())}")
            for record, payload in records:
                if isinstance(record, Reduced | Failed):
                    return record, payload
                if isinstance(record, Ready):
                    deadline = monotonic() + self._settings.stall
            if monotonic() >= deadline:
                self._child = None
                child.kill()
                child.end()
                raise ReducerDied(f"no result in {self._settings.stall:g} s")

    def close(self) -> None:
        """End the reducer."""
        if self._child is not None:
            self._child.kill()
            self._child.end()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def reducible(
    apart: Apart, stream: StreamOpen, spans: Sequence[FileSpan], frames: Iterable[int]
) -> Iterator[tuple[int, bool]]:
    """Try each of these frames alone; give it, and whether it can be reduced.

    A reducer that dies or hangs of every frame isn't asked of all of them: after a few in a row the rest can't either.
    """
    in_a_row = 0
    for frame in frames:
        if in_a_row >= DEATHS:
            yield frame, False
            continue
        try:
            row = apart.reduce(stream, spans, frame, 1)
        except ReducerDied:
            in_a_row += 1
            yield frame, False
        except ReductionError:
            yield frame, False
        else:
            in_a_row = 0
            yield frame, row.status[0] < QUARANTINED
