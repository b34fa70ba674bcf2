"""Whose turn it is: batches come as they are committed, and leave in the order of frames; no sockets, no clock."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import nan
from typing import Any, Final

import numpy as np

from ..workers import recipes
from ..workers.errors import ReductionError
from ..workers.ledger.rows import BatchRow, ConstRow
from ..workers.payload import unpack
from ..workers.reducers.base import Output
from ..workers.states import StateTable
from ..workers.wire.messages import QUARANTINED, RecipeSpec, StreamOpen
from .processed_keys import axis

BOOKKEEPING: Final = ("frame", "status")
"""Columns that every stream has."""


class Place(StrEnum):
    """Where the cursor of a stream stands."""

    HOLE = "at a hole"
    THERE = "there"
    AHEAD = "ahead"
    APART = "apart"
    ENDED = "ended"


class CursorEvent(StrEnum):
    """What happens to it."""

    CAME = "came"
    UNPROMISED = "unpromised"
    UNPLACED = "unplaced"
    TURN = "turn"
    SURPLUS = "surplus"
    COMPLETE = "complete"


_P, _E = Place, CursorEvent

CURSOR: Final = StateTable(
    "cursor",
    {
        _P.HOLE: "The next batch isn't on disk.",
        _P.THERE: "The next batch is on disk.",
        _P.AHEAD: "It is, but no document has promised its frames: the detector may be ahead of the scan.",
        _P.APART: "It is, but the positions of its frames aren't.",
        _P.ENDED: "No batch is awaited any more.",
    },
    [
        ([_P.HOLE], _E.CAME, _P.THERE, "The sink has committed it."),
        ([_P.THERE], _E.UNPROMISED, _P.AHEAD, "Not all of its frames were promised."),
        ([_P.THERE, _P.AHEAD], _E.UNPLACED, _P.APART, "A stream that gives positions isn't as far."),
        ([_P.THERE, _P.AHEAD, _P.APART], _E.TURN, _P.HOLE, "Nothing holds it back: its documents come."),
        ([_P.THERE, _P.AHEAD, _P.APART], _E.SURPLUS, _P.ENDED, "The run has ended before its first frame."),
        ([_P.HOLE], _E.COMPLETE, _P.ENDED, "Every promised frame is on disk, and has had its turn."),
    ],
)

_STANDS: Final = {CursorEvent.UNPROMISED: Place.AHEAD, CursorEvent.UNPLACED: Place.APART}
"""Where it already stands when the same holds it back once more."""


@dataclass(slots=True)
class Stream:
    """One detector's stream: what its recipes give, what waits, and its columns so far if others join them."""

    open: StreamOpen
    outputs: dict[str, dict[str, Output]] = field(init=False)
    specs: list[RecipeSpec] = field(init=False)
    scalars: dict[str, list[str]] = field(init=False)
    arrays: dict[str, list[str]] = field(init=False)
    columns: dict[str, Output] = field(init=False)
    """Columns that others may join."""
    chosen: list[str] = field(default_factory=list)
    """Those that they do."""
    consts: dict[tuple[str, str], list[Any] | None] = field(default_factory=dict)
    waiting: dict[int, Page] = field(default_factory=dict)
    joined: list[Stream] | None = None
    described: bool = False
    place: Place = Place.HOLE
    next: int = 0
    _givers: dict[str, str] = field(default_factory=dict)
    """For each of the columns its recipe; if more than one has it, the first."""
    _kept: dict[str, array[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.specs = list(self.open.recipes)
        self.outputs, self.scalars, self.arrays, self.columns = {}, {}, {}, {}
        for spec in self.specs:
            outputs = recipes.outputs(spec, self.open.inputs)
            if taken := sorted(set(outputs) & set(BOOKKEEPING)):
                raise ReductionError(f"recipe {spec.name}: {', '.join(taken)} can't be the name of an output")
            self.outputs[spec.name] = outputs
            navs = {name: each for name, each in outputs.items() if each.kind == "nav"}
            self.scalars[spec.name] = [name for name, each in navs.items() if each.shape == ()]
            self.arrays[spec.name] = [name for name, each in navs.items() if each.shape != ()]
            for name in self.scalars[spec.name] if spec.reducer == "columns" else []:
                self.columns.setdefault(name, outputs[name])
                self._givers.setdefault(name, spec.name)

    @property
    def lacks_consts(self) -> bool:
        """Whether there are const outputs, none of which has come."""
        return not self.consts and any(
            output.kind == "const" for outputs in self.outputs.values() for output in outputs.values()
        )

    def choose(self, wanted: set[str]) -> bool:
        """Fix the columns that others join: those wanted, or all if nothing is. Return whether there are any."""
        self.chosen = [name for name in self.columns if not wanted or name in wanted]
        return bool(self.chosen)

    def reaches(self, stop: int) -> bool:
        """Return whether the columns of frames before ``stop`` are known, as far as they ever will be."""
        return self.next >= stop or self.place is Place.ENDED

    def move(self, event: CursorEvent) -> None:
        """Go where the table says. At the end nothing waits any more: what lies beyond was never promised."""
        if _STANDS.get(event) is not self.place:
            self.place = CURSOR.move(self.place, event)
        if self.place is Place.ENDED:
            self.waiting.clear()

    def end(self) -> None:
        """Await no batch any more."""
        if self.place is not Place.ENDED:
            self.move(CursorEvent.COMPLETE)

    def remember(self, page: Page) -> None:
        """Keep the page's columns for others."""
        for name, recipe in self._givers.items():
            self._kept.setdefault(name, array("d")).extend(page.columns[recipe, name])

    def positions(self, name: str, first: int, stop: int) -> list[float]:
        """Return a column for frames ``[first, stop)``, NaN where there is none."""
        found = self._kept.get(name, array("d"))[first:stop].tolist()
        return found + [nan] * (stop - first - len(found))


class Page:
    """A batch's scalar columns; its arrays stay in the NeXus file."""

    __slots__ = ("columns", "first", "status", "stop", "time")

    def __init__(self, row: BatchRow, stream: Stream) -> None:
        self.first = row.first
        self.stop = row.first + row.n
        self.time = row.committed_at
        self.status = list(row.status)
        absent = [place for place, status in enumerate(row.status) if status >= QUARANTINED]
        pieces = {(piece.recipe, piece.name): piece.array for piece in unpack(row.arrays, row.payload)}
        self.columns: dict[tuple[str, str], list[Any]] = {}
        for recipe, names in stream.scalars.items():
            for name in names:
                floating = np.dtype(stream.outputs[recipe][name].dtype).kind == "f"
                values = pieces.get((recipe, name))
                if values is None:  # nothing of the batch could be reduced
                    column = [nan if floating else 0] * row.n
                else:
                    column = values.astype(np.float64 if floating else np.int64).tolist()
                    if floating:
                        for place in absent:
                            column[place] = nan
                self.columns[recipe, name] = column

    def cut(self, total: int) -> None:
        """Leave out frames that were never promised: those from ``total`` on."""
        n = max(min(self.stop, total) - self.first, 0)
        self.stop = self.first + n
        self.status = self.status[:n]
        self.columns = {key: values[:n] for key, values in self.columns.items()}


@dataclass(frozen=True, slots=True)
class Turn:
    """A page whose turn it is, its stream, and the streams whose positions go with it."""

    stream: Stream
    page: Page
    joined: list[Stream]


class Cursor:
    """One place per stream: before it every page has had its turn, each once.

    A page has its turn when those before it in its stream have had theirs, its frames were promised (a detector may be
    ahead of the scan when that ends), and their positions are there.

    Parameters
    ----------
    wanted
        The columns that are positions; if none are named, all that streams with the reducer ``columns`` give.
    """

    def __init__(self, wanted: Iterable[str] = ()) -> None:
        self.streams: dict[str, Stream] = {}
        self._wanted = set(wanted)
        self._promised: dict[str, int] = {}
        self._totals: Mapping[str, int] | None = None

    def open(self, stream: StreamOpen) -> None:
        """Take note of a stream. The same one again changes nothing.

        Raises
        ------
        ReductionError
            A recipe's reducer isn't installed here, or refuses the inputs.
        """
        known = self.streams.get(stream.stream)
        if known is None or known.open.cfg != stream.cfg:
            self.streams[stream.stream] = Stream(stream)

    def promise(self, stream: str, stop: int) -> Iterator[Turn]:
        """Take note that frames up to ``stop`` exist; give the pages whose turn has come."""
        self._promised[stream] = max(stop, self._promised.get(stream, 0))
        return self._turns()

    def close(self, totals: Mapping[str, int]) -> Iterator[Turn]:
        """Take the numbers of frames of a run that has ended; give the pages whose turn has come."""
        self._totals = dict(totals)
        return self._turns()

    def lacks_consts(self, row: BatchRow) -> bool:
        """Return whether const outputs of the batch's stream are wanted that haven't been told yet."""
        stream = self.streams.get(row.stream)
        return stream is not None and row.cfg == stream.open.cfg and stream.lacks_consts

    def batch(self, row: BatchRow, consts: Iterable[ConstRow]) -> Iterator[Turn]:
        """Take a committed batch, with its stream's const outputs; give the pages whose turn has come."""
        stream = self.streams.get(row.stream)
        if stream is None or row.cfg != stream.open.cfg or stream.place is Place.ENDED:
            return iter(())
        if row.first < stream.next or row.first in stream.waiting:
            return iter(())
        if not stream.consts:
            stream.consts = {(each.spec.recipe, each.spec.name): axis(each) for each in consts}
        stream.waiting[row.first] = Page(row, stream)
        return self._turns()

    def complete(self, totals: Mapping[str, int]) -> Iterator[Turn]:
        """Give every page that is left: positions that aren't there now never will be."""
        yield from self.close(totals)
        for position in self._position_streams():
            position.end()
        yield from self._turns()
        for stream in self.streams.values():
            stream.end()

    @property
    def waiting(self) -> int:
        """How many frames have come and haven't had their turn."""
        return sum(page.stop - page.first for stream in self.streams.values() for page in stream.waiting.values())

    def counts(self) -> dict[str, int]:
        """Return how many frames have had their turn, per recipe; recipes that had none don't count."""
        return {spec.name: stream.next for stream in self.streams.values() for spec in stream.specs if stream.next}

    def _total(self, stream: Stream) -> int | None:
        """Return how many frames the stream has, None while that isn't known."""
        name = stream.open.stream
        return None if self._totals is None else self._totals.get(name, self._promised.get(name, 0))

    def _turns(self) -> Iterator[Turn]:
        moved = True
        while moved:
            moved = False
            for stream in self.streams.values():
                while stream.place is not Place.ENDED and (page := stream.waiting.get(stream.next)) is not None:
                    if stream.place is Place.HOLE:
                        stream.move(CursorEvent.CAME)
                    stream.move(event := self._event(stream, page))
                    if event is not CursorEvent.TURN:
                        break
                    del stream.waiting[stream.next]
                    yield Turn(stream, page, self._joined(stream))
                    stream.remember(page)
                    stream.next = page.stop
                    moved = True

    def _event(self, stream: Stream, page: Page) -> CursorEvent:
        """Say what becomes of the next page."""
        total = self._total(stream)
        if total is not None:
            page.cut(total)
            if page.stop == page.first:
                return CursorEvent.SURPLUS
        elif page.stop > self._promised.get(stream.open.stream, 0):
            return CursorEvent.UNPROMISED
        if all(each.reaches(page.stop) for each in self._joined(stream)):
            return CursorEvent.TURN
        return CursorEvent.UNPLACED

    def _position_streams(self) -> list[Stream]:
        return [each for each in self.streams.values() if each.columns]

    def _joined(self, stream: Stream) -> list[Stream]:
        """Return the streams whose positions go into this one's pages; fixed when its first batch comes."""
        if stream.joined is None:
            positions = [] if stream.columns else self._position_streams()
            stream.joined = [each for each in positions if each.choose(self._wanted)]
        return stream.joined
