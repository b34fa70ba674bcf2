"""What the sink has told the broker: runs, their streams, and whether anything of it was lost on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

import msgspec
from msgspec import Struct

from ..wire.messages import Done, Expect, RunClose, RunOpen, Spilled, StreamOpen, Welcome, encode
from .batch import Key
from .stream import Stream

Control = RunOpen | StreamOpen | Expect | RunClose | Spilled

MAX_RUNS: Final = 64
UNNUMBERED: Final = 0
DIGEST_BYTES: Final = 12


@dataclass(slots=True)
class Run:
    """A run that the sink told of."""

    processed: str
    totals: dict[str, int] | None = None
    streams: list[Stream] = field(default_factory=list)
    row: int = 0
    """Points in a row of the planned grid, 0 if there is none."""
    complete_at: float | None = None
    seen: set[bytes] = field(default_factory=set)
    """Digests of its control messages: has every one come?"""
    told_at: int = 0
    """How often it had when it last spoke of the run."""

    @property
    def complete(self) -> bool:
        """Whether it is closed and every frame of it is on disk."""
        return self.totals is not None and all(stream.complete for stream in self.streams)


class Runs:
    """The runs that are open, and for a while those that are complete.

    Parameters
    ----------
    late, quiet
        See :class:`~.lane.Lane`.
    keep
        Seconds that a complete run is remembered.
    """

    def __init__(self, *, late: float, quiet: float, keep: float) -> None:
        self.lacking = True
        """Something wasn't heard, or may not have been: the sink is to tell everything."""
        self._late = late
        self._quiet = quiet
        self._keep = keep
        self._runs: dict[str, Run] = {}
        self._streams: dict[Key, Stream] = {}
        self._tellings = 0

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[tuple[str, Run]]:
        return iter(list(self._runs.items()))

    @property
    def streams(self) -> list[Stream]:
        """Every stream of every run."""
        return list(self._streams.values())

    def stream(self, key: Key) -> Stream | None:
        """Return a stream by its key."""
        return self._streams.get(key)

    def welcome(self, message: Welcome) -> list[str]:
        """Begin to hear everything: each open run's messages follow. Return the runs that are to be forgotten."""
        if not message.lease_ms:
            self.lacking = True
            return []
        self._tellings += 1
        # Twice not spoken of: it is complete, and the DONE that would have said so was lost.
        return [uid for uid, run in self._runs.items() if self._tellings - run.told_at > 2]

    def opening(self, message: RunOpen) -> str | None:
        """Return the run that is to be forgotten before this one is opened."""
        known = self._runs.get(message.run)
        if known is not None:
            return message.run if known.processed != message.processed else None  # the same raw run, by other recipes
        if len(self._runs) < MAX_RUNS:
            return None
        idle = (uid for uid, run in self._runs.items() if not any(stream.batches for stream in run.streams))
        return next(idle, next(iter(self._runs)))

    def open(self, message: RunOpen) -> None:
        """Take note of a run."""
        run = self._runs.setdefault(message.run, Run(message.processed, row=planned_row(message.start)))
        run.told_at = self._tellings
        run.seen.add(_digest(message))

    def open_stream(self, message: StreamOpen, now: float) -> Stream | None:
        """Take note of a stream; return it if it is new. Said again with its total its live lane is no more."""
        run = self._known(message)
        key = Key(message.run, message.stream, message.cfg)
        if run is not None and key in self._streams and message.total is not None:
            self._streams[key].lane.end()
        if run is None or key in self._streams:
            return None
        stream = self._streams[key] = Stream(message, now, late=self._late, quiet=self._quiet, row=run.row)
        run.streams.append(stream)
        run.complete_at = None
        self.lacking = True  # what of it is done already? nothing is dispatched before that is known
        if run.totals is not None:
            stream.close(run.totals.get(message.stream, 0), now)
        return stream

    def expect(self, message: Expect, now: float) -> None:
        """Take note of frames that exist."""
        run = self._runs.get(message.run)
        streams = [each for each in run.streams if each.key.stream == message.stream] if run is not None else []
        if run is None or not streams:
            self.lacking = True  # its RUN_OPEN or STREAM_OPEN was lost, or is late: this is no use yet, and not seen
            return
        run.told_at = self._tellings
        run.seen.add(_digest(message))
        for stream in streams:
            stream.expect(message, now)

    def spilled(self, message: Spilled, now: float) -> None:
        """Take note of frames that are in files of the pool's."""
        run = self._known(message)
        for stream in run.streams if run is not None else []:
            if stream.key.stream == message.stream:
                stream.spill(message, now)

    def has_spilled(self, message: Spilled) -> bool:
        """Say whether the sink has told already all that an ingest says."""
        streams = [each for each in self.streams if each.key[:2] == (message.run, message.stream)]
        return any(all(stream.files.has_spilled(span) for span in message.files) for stream in streams)

    def close(self, message: RunClose, now: float) -> list[Stream]:
        """Take note of a run's end; return its streams."""
        run = self._known(message)
        if run is None or run.totals is not None:
            return []
        run.totals = {total.stream: total.n for total in message.totals}
        for stream in run.streams:
            stream.close(run.totals.get(stream.key.stream, stream.files.expected.end), now)
            # Before a frame is called lost the sink has to say that every EXPECT has come.
            self.lacking |= not stream.files.covered.covers(0, stream.total or 0)
        return run.streams

    def done(self, message: Done) -> tuple[Stream, set[int]] | None:
        """Take note of what is on disk; return the stream, and which of its batches are done by it."""
        run = self._runs.get(message.run)
        stream = self._streams.get(Key(message.run, message.stream, message.cfg))
        if run is None or stream is None:
            self.lacking |= message.full  # it is open, and was never heard of here
            return None
        finished = set(stream.finish(message.ranges, full=message.full))
        if message.full:
            run.told_at = self._tellings
            lacking = message.controls > len(run.seen)
            self.lacking |= lacking
            # What was said before the run was closed may come late: it doesn't count the messages since.
            stream.confirmed |= run.totals is not None and message.closed and not lacking
        return stream, finished

    def stale(self, now: float) -> list[str]:
        """Return the runs that have been complete for long."""
        found = []
        for uid, run in self._runs.items():
            if not run.complete:
                continue
            if run.complete_at is None:
                run.complete_at = now
            elif now - run.complete_at > self._keep:
                found.append(uid)
        return found

    def forget(self, uid: str) -> list[Stream]:
        """Forget a run; return its streams, their blocks let go."""
        streams = self._runs.pop(uid).streams
        for stream in streams:
            del self._streams[stream.key]
            stream.release()
        return streams

    def _known(self, message: StreamOpen | RunClose | Spilled) -> Run | None:
        run = self._runs.get(message.run)
        if run is None:
            self.lacking = True  # its RUN_OPEN was lost
        else:
            run.told_at = self._tellings
            run.seen.add(_digest(message))
        return run


class _Plan(Struct):
    shape: list[int] = []


_plan: Final = msgspec.json.Decoder(_Plan)


def planned_row(start: bytes) -> int:
    """Return how many points a row of the planned grid has, by the start document; 0 if it plans no grid.

    >>> planned_row(b'{"shape": [40, 60]}'), planned_row(b'{"shape": [60]}'), planned_row(b'{"shape": "wide"}')
    (60, 0, 0)
    """
    try:
        shape = _plan.decode(start).shape
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0  # only where it matters to what is done with frames is it checked
    return shape[-1] if len(shape) > 1 and 0 < shape[-1] < 2**40 else 0


def _digest(message: Control) -> bytes:
    """Return what tells messages apart; said again by another dispatcher only the serial differs."""
    return blake2b(encode(msgspec.structs.replace(message, serial=UNNUMBERED)), digest_size=DIGEST_BYTES).digest()
