"""What the ingest spills: what is on its way to a file, what is in one, and what the broker has yet to confirm.

A frame goes through here like this::

    put ──► queued ──(written)──► told ──(heard back from the broker: it is in the ledger)──► forgotten
              └──(refused: no room on the disk)──► dropped
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from ..ring import Arena
from ..wire.messages import Claim, FileSpan, Spilled
from .pipe import Kind, Order, Put, Refused, Search, Searched, Written

RESEND: Final = 1.0
"""Seconds until what the broker hasn't confirmed is said again."""

ABANDON: Final = 600.0
"""Seconds until what nobody confirms is let go: its run is unknown there."""

PATIENCE: Final = 120.0
"""Seconds that a frame may wait for the disk; then it is given up, so that its run can end."""

MAX_SPANS: Final = 100
MAX_BYTES: Final = 40_000
"""Spans and bytes of them in one SPILLED: below what a message may have."""

StreamName = tuple[str, str]


@dataclass(slots=True)
class _Told:
    message: Spilled
    since: float
    sent: float


@dataclass(slots=True)
class _Stream:
    """A stream that spills."""

    claim: Claim
    searched: bool = False
    spilled: int = 0
    bytes: int = 0
    told: OrderedDict[tuple[FileSpan, ...], _Told] = field(default_factory=OrderedDict)


class SpillBook:
    """The books of what is spilled; the bytes lie in a ring of their own until they are written.

    Parameters
    ----------
    size
        Bytes of that ring.
    """

    def __init__(self, size: int) -> None:
        self.arena = Arena(size)
        self.abandoned = 0
        self._queued: OrderedDict[int, Put] = OrderedDict()
        self._since: dict[int, float] = {}
        """Of those that aren't given up."""
        self._streams: dict[StreamName, _Stream] = {}

    def claim(self, claim: Claim) -> Search | None:
        """Take note of a stream; return what is to be looked for if it is new."""
        name = claim.run, claim.stream
        if name in self._streams:
            return None
        self._streams[name] = _Stream(claim)
        return Search(*name)

    def put(
        self, claim: Claim, shape: tuple[int, ...], dtype: str, encoding: str, frame: int, size: int, now: float
    ) -> Put | None:
        """Return what the spiller is to be told, None if there is no room: the disk is too slow."""
        offset = self.arena.allocate(size)
        if offset is None:
            return None
        order = Put(Kind(claim.run, claim.stream, claim.key, shape, dtype, encoding), frame, offset, size)
        self._queued[offset] = order
        self._since[offset] = now
        return order

    def written(self, answer: Written, now: float) -> list[Spilled]:
        """Take note of what is in files; return what the broker is to be told."""
        stream = self._streams.get((answer.run, answer.stream))
        for offset in answer.offsets:
            order = self._queued.pop(offset, None)
            self._since.pop(offset, None)
            if order is not None:
                self.arena.release(offset)
                if stream is not None:
                    stream.bytes += order.size
        if stream is None:
            return []
        stream.spilled += sum(span.n for span in answer.files)
        messages = []
        for files in _parted(answer.files):
            message = Spilled(0, answer.run, answer.stream, files)
            stream.told[tuple(files)] = _Told(message, now, now)
            messages.append(message)
        return messages

    def refused(self, answer: Refused) -> list[tuple[Claim, int]]:
        """Take note of what can't be written; return which frames these are."""
        found = []
        for offset in answer.offsets:
            order = self._queued.pop(offset, None)
            waited = self._since.pop(offset, None) is not None
            if order is not None:
                self.arena.release(offset)
                stream = self._streams.get((order.kind.run, order.kind.stream))
                if stream is not None and waited:
                    found.append((stream.claim, order.frame))
        return found

    def overdue(self, now: float) -> list[tuple[Claim, int]]:
        """Give up what has waited too long for the disk; return which frames. Written after all, they count."""
        late = [offset for offset, since in self._since.items() if now - since > PATIENCE]
        found = []
        for offset in late:
            del self._since[offset]
            kind = self._queued[offset].kind
            found.append((self._streams[kind.run, kind.stream].claim, self._queued[offset].frame))
        return found

    def searched(self, answer: Searched) -> None:
        """Take note that all that was spilled before has been found."""
        stream = self._streams.get((answer.run, answer.stream))
        if stream is not None:
            stream.searched = True

    def confirmed(self, message: Spilled) -> None:
        """Take note that the ledger has it."""
        stream = self._streams.get((message.run, message.stream))
        if stream is not None:
            stream.told.pop(tuple(message.files), None)

    def due(self, now: float, *, everything: bool = False) -> list[Spilled]:
        """Return what is to be said again; with ``everything`` all that isn't confirmed, to a new broker."""
        messages = []
        for stream in self._streams.values():
            for key, told in list(stream.told.items()):
                if now - told.since > ABANDON:
                    self.abandoned += 1
                    del stream.told[key]
                elif everything or now - told.sent >= RESEND:
                    told.sent = now
                    messages.append(told.message)
        return messages

    def pending(self) -> list[tuple[Claim, int, int]]:
        """Return the frames that are on their way, or written and not confirmed: claim, first and stop."""
        found = [
            (self._streams[order.kind.run, order.kind.stream].claim, order.frame, order.frame + 1)
            for offset, order in self._queued.items()
            if offset in self._since
        ]
        for stream in self._streams.values():
            for told in stream.told.values():
                found += [(stream.claim, span.first, span.first + span.n) for span in told.message.files]
        return found

    def again(self) -> list[Order]:
        """Return what a new spiller is to be told: the one before died."""
        searches = [Search(*name) for name, stream in self._streams.items() if not stream.searched]
        return [*searches, *self._queued.values()]

    def account(self, claim: Claim) -> tuple[int, int, bool]:
        """Return how many frames and bytes of a stream were spilled, and whether the ledger has all of it.

        What isn't in any file would else be called lost beside what nobody knows of yet: what an ingest before this one
        spilled, what is being written, what wasn't confirmed.
        """
        name = claim.run, claim.stream
        stream = self._streams.get(name)
        if stream is None:
            return 0, 0, False
        waiting = (self._queued[offset].kind for offset in self._since)
        writing = any((kind.run, kind.stream) == name for kind in waiting)
        return stream.spilled, stream.bytes, stream.searched and not stream.told and not writing

    def summary(self) -> dict[str, int]:
        """Return numbers for a person."""
        return {
            "spilled": sum(stream.spilled for stream in self._streams.values()),
            "spilled_bytes": sum(stream.bytes for stream in self._streams.values()),
            "spilling": len(self._queued),
            "unconfirmed": sum(len(stream.told) for stream in self._streams.values()),
            "abandoned": self.abandoned,
        }


def _parted(files: Iterable[FileSpan]) -> Iterable[list[FileSpan]]:
    part: list[FileSpan] = []
    size = 0
    for span in files:
        more = len(span.uri) + len(span.dataset) + 60
        if part and (len(part) >= MAX_SPANS or size + more > MAX_BYTES):
            yield part
            part, size = [], 0
        part.append(span)
        size += more
    if part:
        yield part
