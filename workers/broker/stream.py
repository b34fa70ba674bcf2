"""One stream as the broker sees it: which frames are in a ring, which in files, which batches can go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

from ..frame_life import FrameEvent
from ..intervals import IntervalSet
from ..wire.messages import (
    MAX_FILES,
    MAX_WORK,
    Block,
    Claim,
    Expect,
    Frames,
    Nack,
    RingSpan,
    Spilled,
    StreamOpen,
    Work,
    encode,
)
from .batch import DEATHS, SETUP_AGAIN, Batch, Event, Held, Key, State
from .files import FileMap
from .lane import SPILLING, Lane

SHORT_WORK: Final = 24
"""So many pieces of files and reasons fit into a WORK, however long each of them may be."""


class Stream:
    """The frames of one detector in one run.

    Parameters
    ----------
    opened
        What was asked for.
    now
        Seconds of a monotonic clock, as in every method.
    late, quiet
        See :class:`~.lane.Lane`.
    row
        Points in a row of the planned grid, 0 if there is none.
    """

    def __init__(self, opened: StreamOpen, now: float, *, late: float = 0.5, quiet: float = 5.0, row: int = 0) -> None:
        self.opened = opened
        self.row = row
        self.key = Key(opened.run, opened.stream, opened.cfg)
        self.size = opened.batch
        self.total: int | None = None
        self.done = IntervalSet()
        self.synced = False
        """The sink has said once what is done: nothing is dispatched before."""
        self.confirmed = False
        """The sink has said that every EXPECT has come: a frame without a file now has none."""
        self.batches: dict[int, Batch] = {}
        self.files = FileMap(spec.key for spec in opened.inputs)
        flies = opened.live is not None and opened.total is None
        self.lane = Lane(now, exists=flies, late=late, quiet=quiet, spills=flies and opened.policy == "spill")
        self.duplicates = 0
        self.surplus = 0
        self.freed: list[Held] = []
        """Blocks that nobody needs any more, for the broker to take."""
        live = opened.live
        self._streamed = next((spec for spec in opened.inputs if live is not None and spec.key == live.key), None)
        self._beside = [key for key in self.files.keys if live is not None and key != live.key]
        """Inputs that come by file although the stream has a live lane."""
        self._cursor = 0
        self._setup_deaths: Counter[bytes] = Counter()
        """By worker, since a batch was last reduced."""
        self._untried = ("", float("-inf"))
        """Why batches aren't tried, and until when."""

    # --- what comes in -----------------------------------------------------------------------------------------------

    def arrive(self, ring: str, block: Block, now: float) -> int | None:
        """Take a frame that came live; return its batch's number if that can go now."""
        frame, held = block.frame, Held(ring, block)
        number = frame // self.size
        batch = self.batches.get(number)
        if batch is not None and batch.holds(frame, held):
            return None  # the ingest says again what it holds
        self.lane.came(frame, now)
        if self.total is not None and frame >= self.total:
            self.surplus += 1
            self.freed.append(held)
            return None
        if frame in self.done:
            self.duplicates += 1
            self.freed.append(held)
            return None
        if batch is None:
            batch = self.batches[number] = Batch()
        if not batch.take(frame, held):
            self.duplicates += 1
            self.freed.append(held)
            return None
        whole = len(batch.held) == self.size and batch.state is State.OPEN
        return number if whole and self.ready(number, now) else None

    def misfit(self, message: Frames) -> str | None:
        """Say how streamed frames differ from what the document announced; None if they don't."""
        spec = self._streamed
        if spec is None or (message.shape, message.dtype.lstrip("<|=")) == (spec.shape, spec.dtype.lstrip("<|=")):
            return None
        return f"came as {message.shape} {message.dtype}, announced as {spec.shape} {spec.dtype}"

    @property
    def backfills(self) -> bool:
        """Whether what is read from its files is late: of a run that flies, the file may be the only lane."""
        return self.opened.live is not None or self.total is not None or self.opened.total is not None

    @property
    def claim(self) -> Claim | None:
        """How an ingest is to treat its frames; None if they don't come live."""
        live, opened = self.opened.live, self.opened
        if live is None or opened.total is not None:
            return None
        where, what = (live.endpoint, live.series), (opened.run, opened.stream, live.key)
        return Claim(*where, *what, opened.batch, opened.policy, self.row)

    def expect(self, message: Expect, now: float) -> None:
        """Take what was promised, and where files have it. Said again, it changes nothing."""
        self.files.expect(message)
        self.lane.promise(message.stop, now)

    def let_go(self, ingest: str, ranges: Sequence[tuple[int, int]], reason: str, now: float) -> None:
        """Take word of frames that an ingest dropped, or that are on their way to a file of its."""
        if reason == SPILLING:
            self.lane.spilling(ingest, ranges, now)
        else:
            # What is done was dropped before, if at all: said late, or twice, it isn't counted again.
            fresh = [gap for first, stop in ranges for gap in self.done.gaps(first, stop)]
            self.lane.drop(fresh, reason, now)

    def spill(self, message: Spilled, now: float) -> None:
        """Take where frames lie that were spilled, as the sink has it on disk."""
        self.files.spill(message.files)
        for span in message.files:
            self.lane.spill(span.first, span.first + span.n, now)

    def close(self, total: int, now: float) -> None:
        """Take the number of frames that were promised in all; what lies beyond is let go."""
        if self.total is not None:
            return
        self.total = total
        self.confirmed = False
        self.lane.close(now)
        for number in list(self.batches):
            # What is leased is being read: its result is whole, and whoever reads that cuts it at the total.
            if self.batches[number].state is not State.LEASED:
                self._cut(number)

    def finish(self, ranges: Iterable[tuple[int, int]], *, full: bool) -> list[int]:
        """Take what is on disk; free its blocks and return the numbers of the batches that are done by it."""
        finished = []
        for first, stop in ranges:
            for start, end in self.done.gaps(first, stop):
                self.done.add(start, end)
                touched: Collection[int] = range(start // self.size, -(-end // self.size))
                if len(touched) > len(self.batches):  # a range of 2**39 frames must not cost as many steps
                    touched = [number for number in self.batches if number in touched]
                for number in touched:
                    if number in self.batches and self.done.covers(*self.bounds(number)):
                        self._finish(number, Event.DONE)
                        finished.append(number)
            self.lane.done(first, stop)
        self.synced |= full
        return finished

    # --- what can go -------------------------------------------------------------------------------------------------

    def bounds(self, number: int) -> tuple[int, int]:
        """Return ``(first, stop)`` of a batch; the last one is short."""
        first = number * self.size
        return first, first + self.size if self.total is None else max(first, min(first + self.size, self.total))

    def ready(self, number: int, now: float) -> bool:
        """Say whether a batch can go; frames that turn out to be lost are marked so."""
        first, stop = self.bounds(number)
        if first == stop or not self.synced:
            return False
        batch = self.batches.get(number)
        if batch is not None and now < batch.not_before:
            return False
        if self.opened.sums and self.total is None and not self.files.expected.covers(first, stop):
            return False
        if batch is not None and len(batch.held) == stop - first and not self._beside:
            return True
        if self.files.covered.covers(first, stop) and (self.lane.settled(now) or stop <= self.lane.gone_below(now)):
            return True
        return all(self._ready_frame(number, frame, now) for frame in range(first, stop))

    def _ready_frame(self, number: int, frame: int, now: float) -> bool:
        batch = self.batches.get(number)
        if batch is not None and frame in batch.absent:
            return True
        held = batch is not None and frame in batch.held
        lacking = self.files.lacking(frame, self._beside if held else None)
        if not lacking:
            promised = frame in self.files.expected or self.lane.settled(now)
            return held or (promised and self.lane.gone(frame, now))
        if not (self.confirmed and self.lane.settled(now)) or self.lane.may_be_spilled(frame, now):
            return False
        batch = batch or self.batches.setdefault(number, Batch())
        came = "it came live" if held or frame in batch.damaged else self._why_not(frame)
        batch.lose(frame, f"{came}, and no file was announced that has {', '.join(lacking)}")
        return True

    def _why_not(self, frame: int) -> str:
        """Say why a frame isn't there though it was promised."""
        if self.opened.live is None:
            return "it has no live lane"
        if self.opened.total is not None:
            return "it comes live no more"
        why = self.lane.why(frame)
        return "it didn't come live" if why is None else f"dropped: {why}"

    def scan(self, now: float, room: int, steps: int = 512) -> Iterator[int]:
        """Yield the batches that can go and aren't queued.

        Of those that come from files alone at most ``room``, and no more than ``steps`` are looked at: the next scan
        goes on from there. So a document that promises a million frames costs no more at once than one of ten.
        """
        if not self.synced:
            return
        partly = [n for n, batch in self.batches.items() if batch.held and batch.state is State.OPEN]
        yield from (number for number in sorted(partly) if self.ready(number, now))
        end = self.files.covered.end if self.total is None else self.total
        for first, stop in self.done.gaps(self._cursor * self.size, end):
            for number in range(first // self.size, -(-stop // self.size)):
                if room <= 0 or steps <= 0:
                    self._cursor = number
                    return
                steps -= 1
                batch = self.batches.get(number)
                untouched = batch is None or (batch.state is State.OPEN and not batch.held)
                if untouched and self.ready(number, now):
                    room -= 1
                    yield number
        self._cursor = 0

    def queue(self, number: int) -> bool:
        """Mark a batch as queued; return whether any of it is in a ring."""
        batch = self.batches.setdefault(number, Batch())
        batch.move(Event.READY)
        return bool(batch.held)

    def work(self, number: int, token: int, now: float) -> Work | None:
        """Return the batch as work and mark it leased; None if it isn't queued (any more)."""
        batch = self.batches.get(number)
        if batch is None or batch.state is not State.QUEUED:
            return None
        batch.move(Event.SENT)
        first, stop = self.bounds(number)
        batch.owe(frame for frame in range(first, stop) if frame not in batch.held and frame not in batch.absent)
        if now < self._untried[1]:
            batch.condemn(range(first, stop), FrameEvent.UNTRIED, self._untried[0])
        work = self._work(batch, first, stop, token)
        long = len([*work.files, *work.absent, *work.damaged]) > SHORT_WORK  # else there is no need to look
        if long and (len(work.files) > MAX_FILES or len(encode(work)) > MAX_WORK):
            reason = (
                f"frames {first} to {stop - 1} lie in {len(work.files)} pieces of files, more than a message can name: "
                "let the detector have fewer data keys, fewer files or shorter paths"
            )
            batch.condemn(range(first, stop), FrameEvent.UNSAYABLE, reason)
            work = self._work(batch, first, stop, token)
        return work

    def _work(self, batch: Batch, first: int, stop: int, token: int) -> Work:
        wanted = [frame for frame in range(first, stop) if frame not in batch.held and frame not in batch.absent]
        rings: dict[str, list[Block]] = {}
        for frame in sorted(batch.held):
            rings.setdefault(batch.held[frame].ring, []).append(batch.held[frame].block)
        files = []
        for key in self.files.keys:
            if key in self._beside and (wanted or batch.held):
                files += self.files.spans(key, first, stop)
            elif wanted:
                files += self.files.spans(key, wanted[0], wanted[-1] + 1)
        spans = [RingSpan(ring, blocks) for ring, blocks in rings.items()]
        absent = [batch.absent[frame] for frame in sorted(batch.absent) if first <= frame < stop]
        damaged = [each for frame, each in sorted(batch.damaged.items()) if frame in wanted]
        return Work(*self.key, first, stop - first, token, spans, files, absent, batch.isolate, damaged)

    # --- what comes back ---------------------------------------------------------------------------------------------

    def give_back(self, number: int, *, suspect: bool = False) -> None:
        """Open a leased batch again: its worker is gone. ``suspect``: it was being executed then."""
        batch = self.batches.get(number)
        if batch is not None and batch.state is State.LEASED:
            batch.move(Event.BACK)
            batch.isolate |= suspect
            self._cut(number)

    def refuse(self, number: int, nack: Nack, now: float) -> None:
        """Open a leased batch again: its worker couldn't do it."""
        self.give_back(number)
        batch = self.batches.get(number)
        if batch is None:
            return
        frames = range(*self.bounds(number))
        if nack.retryable:
            batch.unreadable(nack, frames, now, final=self.confirmed and self.lane.settled(now))
        else:
            batch.strike(nack, frames)

    def cannot_set_up(self, worker: bytes, workers: Collection[bytes], reason: str, now: float) -> None:
        """Note that a worker died when it set the recipes up; ``workers`` : all that are there.

        When each of them has, and none has reduced a batch meanwhile, it isn't for want of a good worker.
        """
        self._setup_deaths[worker] += 1
        if self._setup_deaths.total() >= DEATHS and all(self._setup_deaths[each] for each in workers):
            self._untried = reason, now + SETUP_AGAIN

    # --- accounts ----------------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether every frame that was promised is on disk."""
        return self.total is not None and self.synced and self.done.covers(0, self.total)

    @property
    def held_bytes(self) -> int:
        """Bytes of its frames in rings."""
        return sum(batch.bytes for batch in self.batches.values())

    def release(self) -> None:
        """Free every block: the stream is forgotten."""
        for number in list(self.batches):
            self._finish(number, Event.LET_GO)

    def summary(self) -> dict[str, object]:
        """Return the stream's numbers. ``owed`` are frames that are neither done nor held."""
        states = [batch.state for batch in self.batches.values()]
        held = {frame for batch in self.batches.values() for frame in batch.held}
        end = self.total if self.total is not None else max(self.files.expected.end, self.lane.high)
        done = self.done.count(0, end)
        return {
            "total": self.total,
            "expected": len(self.files.expected),
            "done": done,
            "held": len(held),
            "held_bytes": self.held_bytes,
            "owed": max(end - done - sum(frame < end and frame not in self.done for frame in held), 0),
            "queued": states.count(State.QUEUED),
            "leased": states.count(State.LEASED),
            "dropped": dict(self.lane.dropped),
            "duplicates": self.duplicates,
            "surplus": self.surplus,
            "live": self.lane.exists,
            "policy": self.opened.policy,
            "spilled": self.lane.spilled,
            "complete": self.complete,
        }

    # --- inside ------------------------------------------------------------------------------------------------------

    def _cut(self, number: int) -> None:
        """Let the frames beyond the total go."""
        if self.total is None:
            return
        batch = self.batches[number]
        for frame in [each for each in batch.held if each >= self.total]:
            self.surplus += 1
            batch.spoil(frame, FrameEvent.CUT)
        if number * self.size >= self.total:
            self._finish(number, Event.CUT)

    def _finish(self, number: int, event: Event) -> None:
        batch = self.batches.pop(number)
        if event is Event.DONE and len(batch.absent) < self.size:
            self._setup_deaths.clear()
        batch.move(event)
        self.freed += batch.blocks
