"""From the ledger's rows to the documents of a processed run; no sockets, no files, no clock.

The documents are a function of the ledger alone: uids are hashes, times are those of the commits, event pages are the
batches. So the same rows give the same documents, to the byte, after any restart.
"""

from __future__ import annotations

import uuid
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan, prod
from typing import Any, Final
from urllib.parse import quote

import numpy as np

from .. import __version__
from ..workers import recipes
from ..workers.errors import ReductionError
from ..workers.ledger_rows import BatchRow, ConstRow
from ..workers.payload import unpack
from ..workers.reducers.base import Output
from ..workers.wire.messages import QUARANTINED, RecipeSpec, StreamOpen

Document = dict[str, Any]
Named = tuple[str, Document]
"""A document and its name."""

TAKEN_OVER: Final = (
    "scan_id",
    "plan_name",
    "plan_type",
    "plan_args",
    "motors",
    "detectors",
    "shape",
    "extents",
    "snaking",
    "num_points",
    "dwell",
    "sample",
    "data_session",
    "proposal",
    "beamline_id",
    "owner",
    "group",
    "project",
)
"""What a processed run's start document has from the raw run's."""

BOOKKEEPING: Final = ("frame", "status")
MOST_INTERVALS: Final = 1000
"""Most intervals of one status in a stop document; a stream that alternates more often says so instead."""

MOST_AXIS: Final = 65_536
"""Longest axis that is put into a descriptor; longer ones stand in the NeXus file alone."""

CHUNK_BYTES: Final = 4 << 20
"""Of the pieces in which the catalog reads arrays from the NeXus file."""


class ProcessedDocuments:
    """Composes one processed run: tell it what the ledger has, in that order; take documents in the order of frames.

    A batch's documents come when those before it in its stream have come, its frames were promised (a detector may be
    ahead of the scan when that ends), and their positions are there. Positions are the scalar columns that the plan's
    hints name as dimensions (all of them, if it names none) of the recipes whose reducer is ``columns``; they are
    joined by frame number.

    Parameters
    ----------
    run, processed
        The uids.
    start
        The raw run's start document, as the dispatcher sent it: ``recipes`` are those in use.
    opened_at
        When the run came into the ledger, s since 1970.
    nexus
        The file that holds the arrays; without one there are scalar columns only.
    """

    def __init__(self, run: str, processed: str, start: Document, opened_at: float, nexus: str | None) -> None:
        self.run = run
        self.processed = processed
        self._raw_start = start
        self._opened_at = opened_at
        self._nexus = nexus
        self._streams: dict[str, _Stream] = {}
        self._promised: dict[str, int] = {}
        self._totals: Mapping[str, int] | None = None

    def start(self) -> list[Named]:
        """Return the start document."""
        raw = self._raw_start
        used = [each for each in raw.get("recipes") or [] if isinstance(each, dict) and "name" in each]
        doc: Document = {
            "uid": self.processed,
            "time": self._opened_at,
            **{key: raw[key] for key in TAKEN_OVER if key in raw},
            "raw_uid": self.run,
            "parent_uids": [self.run],
            "analysis_stage": "reduced",
            "provenance": {
                "haltere": __version__,
                "recipes": used,
                "cfg": {each["name"]: _cfg(each) for each in used},
            },
        }
        if hints := self._hints(used):
            doc["hints"] = hints
        return [("start", doc)]

    def open(self, stream: StreamOpen) -> None:
        """Take note of a stream. The same one again changes nothing.

        Raises
        ------
        ReductionError
            A recipe's reducer isn't installed here, or refuses the inputs.
        """
        known = self._streams.get(stream.stream)
        if known is None or known.open.cfg != stream.cfg:
            self._streams[stream.stream] = _Stream(stream)

    def promise(self, stream: str, stop: int) -> list[Named]:
        """Take note that frames up to ``stop`` exist; return the documents that this sets free."""
        self._promised[stream] = max(stop, self._promised.get(stream, 0))
        return self._free()

    def close(self, totals: Mapping[str, int]) -> list[Named]:
        """Take the numbers of frames of a run that has ended; return the documents that this sets free."""
        self._totals = dict(totals)
        return self._free()

    def batch(self, row: BatchRow, consts: Iterable[ConstRow] = ()) -> list[Named]:
        """Take a committed batch, with its stream's const outputs; return the documents that this sets free."""
        stream = self._streams.get(row.stream)
        if stream is None or row.cfg != stream.open.cfg or row.first < stream.next or row.first in stream.waiting:
            return []
        if not stream.consts:
            stream.consts = {(each.spec.recipe, each.spec.name): _values(each) for each in consts}
        stream.waiting[row.first] = _Page(row, stream)
        return self._free()

    def complete(
        self, at: float, exit_status: str, accounting: Mapping[str, Mapping[str, Any]], reason: str = ""
    ) -> list[Named]:
        """Return the last documents: what waited for positions that don't exist, and the stop document.

        Parameters
        ----------
        at
            When the run was complete, s since 1970.
        exit_status, reason
            The raw run's.
        accounting
            :meth:`~haltere.workers.ledger_reader.LedgerReader.accounting`.
        """
        found = self.close({name: int(each.get("expected", 0)) for name, each in accounting.items()})
        for position in self._position_streams():
            position.ended = True
        found += self._free()
        for stream in self._streams.values():
            stream.ended = True
        doc: Document = {
            "uid": self._uid("stop"),
            "run_start": self.processed,
            "time": at,
            "exit_status": exit_status if exit_status in ("success", "abort", "fail") else "fail",
            "num_events": {
                spec.name: stream.next for stream in self._streams.values() for spec in stream.specs if stream.next
            },
            "frames": {name: _frames(each) for name, each in accounting.items()},
        }
        if reason:
            doc["reason"] = reason
        if self._nexus is not None:
            doc["nexus"] = self._nexus
        return [*found, ("stop", doc)]

    # --- streams -----------------------------------------------------------------------------------------------------

    def _total(self, stream: _Stream) -> int | None:
        """Return how many frames the stream has, None while that isn't known."""
        name = stream.open.stream
        return None if self._totals is None else self._totals.get(name, self._promised.get(name, 0))

    def _free(self) -> list[Named]:
        """Return the documents of every page whose turn it is."""
        found: list[Named] = []
        moved = True
        while moved:
            moved = False
            for stream in self._streams.values():
                total = self._total(stream)
                while (page := stream.waiting.get(stream.next)) is not None:
                    if total is not None:
                        page.cut(total)
                    elif page.stop > self._promised.get(stream.open.stream, 0):
                        break
                    joined = self._joined(stream)
                    if any(not each.reaches(page.stop) for each in joined):
                        break
                    del stream.waiting[stream.next]
                    if page.stop == page.first:
                        break  # nothing of it was promised
                    for spec in stream.specs:
                        if not stream.described:
                            found += self._describe(stream, spec, joined, page.time)
                        found += self._page(stream, spec, joined, page)
                    stream.described = True
                    stream.remember(page)
                    stream.next = page.stop
                    moved = True
        return found

    def _position_streams(self) -> list[_Stream]:
        return [each for each in self._streams.values() if each.columns]

    def _joined(self, stream: _Stream) -> list[_Stream]:
        """Return the streams whose positions go into this one's pages; fixed when its first batch comes."""
        if stream.joined is None:
            wanted = {field for field, _ in self._dimensions()}
            stream.joined = [] if stream.columns else [each for each in self._position_streams() if each.choose(wanted)]
        return stream.joined

    def _dimensions(self) -> list[tuple[str, str]]:
        """Return (field, stream) of the plan's dimensions."""
        found = []
        hints = self._raw_start.get("hints")
        dimensions = hints.get("dimensions") if isinstance(hints, dict) else None
        for fields, stream in dimensions or []:
            found += [(each, stream) for each in fields]
        return found

    def _hints(self, used: Sequence[Mapping[str, Any]]) -> Document:
        """Return the plan's hints, its dimensions now being columns of the first stream that holds positions."""
        hints = self._raw_start.get("hints")
        if not isinstance(hints, dict) or "dimensions" not in hints:
            return dict(hints) if isinstance(hints, dict) else {}
        columns = [each["name"] for each in used if each.get("reducer") == "columns"]
        if not columns:
            return dict(hints)
        return {**hints, "dimensions": [[list(fields), columns[0]] for fields, _ in hints["dimensions"]]}

    # --- documents ---------------------------------------------------------------------------------------------------

    def _uid(self, *words: object) -> str:
        return str(uuid.uuid5(recipes.PROCESSED, "\n".join(map(str, (self.processed, *words)))))

    def _describe(self, stream: _Stream, spec: RecipeSpec, joined: Sequence[_Stream], at: float) -> list[Named]:
        """Return a recipe's descriptor, and the stream resources of its arrays."""
        outputs = stream.outputs[spec.name]
        keys: dict[str, Document] = {
            "frame": _scalar_key(spec, Output("nav", (), "<i8", "", "frame number")),
            "status": _scalar_key(spec, Output("nav", (), "<i8", "", "0 live, 1 backfilled, 2 quarantined, 3 lost")),
        }
        for each in joined:
            for name in each.chosen:
                if name not in outputs:
                    keys[name] = _scalar_key(spec, each.columns[name], joined=each.open.stream)
        for name in stream.scalars[spec.name]:
            keys[name] = _scalar_key(spec, outputs[name])
        arrays = stream.arrays[spec.name] if self._nexus is not None else []
        for name in arrays:
            keys[name] = _array_key(spec, outputs[name])
        settings: dict[str, Any] = {"reducer": spec.reducer, "source": stream.open.stream, "cfg": _spec_cfg(spec)}
        setting_keys: dict[str, Document] = {
            name: {"source": f"recipe:{spec.name}", "dtype": "string", "shape": []} for name in settings
        }
        for (recipe, name), values in stream.consts.items():
            if recipe == spec.name and values is not None and name not in settings:
                settings[name] = values
                described = outputs.get(name, Output("const", (len(values),), "<f8"))
                setting_keys[name] = _array_key(spec, described, external=False)
        uid = self._uid("descriptor", spec.name)
        found: list[Named] = [
            (
                "descriptor",
                {
                    "uid": uid,
                    "run_start": self.processed,
                    "time": at,
                    "name": spec.name,
                    "data_keys": {key: {**value, "object_name": spec.name} for key, value in keys.items()},
                    "object_keys": {spec.name: list(keys)},
                    "configuration": {
                        spec.name: {
                            "data": settings,
                            "timestamps": dict.fromkeys(settings, at),
                            "data_keys": setting_keys,
                        }
                    },
                    "hints": {spec.name: {"fields": list(stream.scalars[spec.name])}},
                },
            )
        ]
        for name in arrays:
            size = max(prod(outputs[name].shape) * np.dtype(outputs[name].dtype).itemsize, 1)
            found.append(
                (
                    "stream_resource",
                    {
                        "uid": self._uid("stream_resource", spec.name, name),
                        "run_start": self.processed,
                        "data_key": name,
                        "mimetype": "application/x-hdf5",
                        "uri": f"file://localhost{quote(str(self._nexus))}",
                        "parameters": {
                            "dataset": f"/entry/{spec.name}/{name}",
                            "swmr": True,
                            "chunk_shape": [max(CHUNK_BYTES // size, 1)],
                        },
                    },
                )
            )
        return found

    def _page(self, stream: _Stream, spec: RecipeSpec, joined: Sequence[_Stream], page: _Page) -> list[Named]:
        """Return a batch's event page, and the stream datums of its arrays."""
        outputs = stream.outputs[spec.name]
        first, n = page.first, page.stop - page.first
        data: dict[str, list[Any]] = {"frame": list(range(first, page.stop)), "status": page.status}
        for each in joined:
            for name in each.chosen:
                if name not in outputs:
                    data[name] = each.positions(name, first, page.stop)
        for name in stream.scalars[spec.name]:
            data[name] = page.columns[spec.name, name]
        descriptor = self._uid("descriptor", spec.name)
        times = [page.time] * n
        found: list[Named] = [
            (
                "event_page",
                {
                    "descriptor": descriptor,
                    "uid": [self._uid("event", spec.name, frame) for frame in range(first, page.stop)],
                    "seq_num": list(range(first + 1, page.stop + 1)),
                    "time": times,
                    "data": data,
                    "timestamps": dict.fromkeys(data, times),
                    "filled": {},
                },
            )
        ]
        if self._nexus is not None:
            for name in stream.arrays[spec.name]:
                found.append(
                    (
                        "stream_datum",
                        {
                            "uid": self._uid("stream_datum", spec.name, name, first),
                            "stream_resource": self._uid("stream_resource", spec.name, name),
                            "descriptor": descriptor,
                            "indices": {"start": first, "stop": page.stop},
                            "seq_nums": {"start": first + 1, "stop": page.stop + 1},
                        },
                    )
                )
        return found


@dataclass(slots=True)
class _Stream:
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
    waiting: dict[int, _Page] = field(default_factory=dict)
    joined: list[_Stream] | None = None
    described: bool = False
    ended: bool = False
    next: int = 0
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
            if spec.reducer == "columns":
                self.columns.update({name: outputs[name] for name in self.scalars[spec.name]})

    def choose(self, wanted: set[str]) -> bool:
        """Fix the columns that others join: those wanted, or all if nothing is. Return whether there are any."""
        self.chosen = [name for name in self.columns if not wanted or name in wanted]
        return bool(self.chosen)

    def reaches(self, stop: int) -> bool:
        """Return whether the columns of frames before ``stop`` are known, as far as they ever will be."""
        return self.next >= stop or self.ended

    def remember(self, page: _Page) -> None:
        """Keep the page's columns for others."""
        for spec in self.specs:
            for name in self.scalars[spec.name]:
                if spec.reducer == "columns" and name in self.columns:
                    self._kept.setdefault(name, array("d")).extend(page.columns[spec.name, name])

    def positions(self, name: str, first: int, stop: int) -> list[float]:
        """Return a column for frames ``[first, stop)``, NaN where there is none."""
        found = self._kept.get(name, array("d"))[first:stop].tolist()
        return found + [nan] * (stop - first - len(found))


class _Page:
    """A batch's scalar columns; its arrays stay in the NeXus file."""

    __slots__ = ("columns", "first", "status", "stop", "time")

    def __init__(self, row: BatchRow, stream: _Stream) -> None:
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
        if self.first + n < self.stop:
            self.stop = self.first + n
            self.status = self.status[:n]
            self.columns = {key: values[:n] for key, values in self.columns.items()}


def _scalar_key(spec: RecipeSpec, output: Output, joined: str = "") -> Document:
    """Return a scalar's data key. It's a 64-bit number in the catalog's tables, whatever it was in the reducer."""
    floating = np.dtype(output.dtype).kind == "f"
    return _labelled(
        {
            "source": f"stream:{joined}" if joined else f"recipe:{spec.name}",
            "dtype": "number" if floating else "integer",
            "dtype_numpy": "<f8" if floating else "<i8",
            "shape": [],
        },
        output,
    )


def _array_key(spec: RecipeSpec, output: Output, *, external: bool = True) -> Document:
    key: Document = {
        "source": f"recipe:{spec.name}",
        "dtype": "array",
        "dtype_numpy": np.dtype(output.dtype).newbyteorder("<").str,
        "shape": list(output.shape),
    }
    if external:
        key["external"] = "STREAM:"
        if len(output.axes) == len(output.shape):
            key["dims"] = [
                f"{spec.name}_{number}" if axis == "." else axis for number, axis in enumerate(output.axes, 1)
            ]
    return _labelled(key, output)


def _labelled(key: Document, output: Output) -> Document:
    if output.units:
        key["units"] = output.units
    if output.long_name:
        key["long_name"] = output.long_name
    return key


def _values(const: ConstRow) -> list[Any] | None:
    """Return a const output as a list, None if it is too long for a document or no axis."""
    if len(const.spec.shape) != 1 or const.spec.shape[0] > MOST_AXIS:
        return None
    (piece,) = unpack([const.spec], const.payload)
    values: list[Any] = piece.array.tolist()
    return values


def _frames(account: Mapping[str, Any]) -> Document:
    """Return what became of a stream's frames, in a size that a document may have."""
    intervals = account.get("intervals", {})
    reasons = account.get("reasons", {})
    shown = {name: ranges[:MOST_INTERVALS] for name, ranges in intervals.items()}
    doc = {**account, "intervals": shown, "reasons": dict(list(reasons.items())[:MOST_INTERVALS])}
    if hidden := {n: len(r) - MOST_INTERVALS for n, r in intervals.items() if len(r) > MOST_INTERVALS}:
        doc["intervals_left_out"] = hidden
    return doc


def _cfg(recipe: Mapping[str, Any]) -> str:
    try:
        (parsed,) = recipes.parse([recipe])
    except ReductionError:
        return ""
    return _spec_cfg(parsed.spec())


def _spec_cfg(spec: RecipeSpec) -> str:
    return recipes.cfg_hash([spec])
