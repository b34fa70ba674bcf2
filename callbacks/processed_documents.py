"""From the ledger's rows to the documents of a processed run; no sockets, no files, no clock.

The documents are a function of the ledger alone: uids are hashes, times are those of the commits, event pages are the
batches. So the same rows give the same documents, to the byte, after any restart.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, Final
from urllib.parse import quote

import numpy as np

from .. import __version__
from ..workers import recipes
from ..workers.errors import ReductionError
from ..workers.ledger.rows import BatchRow, ConstRow
from ..workers.reducers.base import Output
from ..workers.wire.messages import RecipeSpec, StreamOpen
from .processed_cursor import Cursor, Page, Stream, Turn
from .processed_keys import Document, array_key, frames, scalar_key

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
    "supersedes",
    "backfill",
)
"""What a processed run's start document has from the raw run's."""

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
        self.processed = processed
        self.raw = str(start.get("uid", run))
        self._raw_start = start
        self._opened_at = opened_at
        self._nexus = nexus
        self._cursor = Cursor(field for field, _ in self._dimensions())

    def start(self) -> list[Named]:
        """Return the start document."""
        raw = self._raw_start
        used = [each for each in raw.get("recipes") or [] if isinstance(each, dict) and "name" in each]
        doc: Document = {
            "uid": self.processed,
            "time": self._opened_at,
            **{key: raw[key] for key in TAKEN_OVER if key in raw},
            "raw_uid": self.raw,
            "parent_uids": [self.raw],
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

    @property
    def waiting(self) -> int:
        """How many frames are reduced and have no documents yet: one before them is awaited."""
        return self._cursor.waiting

    def open(self, stream: StreamOpen) -> None:
        """Take note of a stream. The same one again changes nothing.

        Raises
        ------
        ReductionError
            A recipe's reducer isn't installed here, or refuses the inputs.
        """
        self._cursor.open(stream)

    def promise(self, stream: str, stop: int) -> list[Named]:
        """Take note that frames up to ``stop`` exist; return the documents that this sets free."""
        return self._compose(self._cursor.promise(stream, stop))

    def close(self, totals: Mapping[str, int]) -> list[Named]:
        """Take the numbers of frames of a run that has ended; return the documents that this sets free."""
        return self._compose(self._cursor.close(totals))

    def lacks_consts(self, row: BatchRow) -> bool:
        """Return whether const outputs of the batch's stream are wanted that haven't been told yet."""
        return self._cursor.lacks_consts(row)

    def batch(self, row: BatchRow, consts: Iterable[ConstRow] = ()) -> list[Named]:
        """Take a committed batch, with its stream's const outputs; return the documents that this sets free.

        ``consts`` : those that were in the ledger with this batch. Later ones belong to a later batch, or documents
        would depend on when the ledger is read.
        """
        return self._compose(self._cursor.batch(row, consts))

    def complete(
        self,
        at: float,
        exit_status: str,
        accounting: Mapping[str, Mapping[str, Any]],
        reason: str = "",
        duplicates: int = 0,
    ) -> list[Named]:
        """Return the last documents: what waited for positions that don't exist, and the stop document.

        Parameters
        ----------
        at
            When the run was complete, s since 1970.
        exit_status, reason
            The raw run's.
        accounting
            :meth:`~haltere.workers.ledger.reader.LedgerReader.accounting`.
        duplicates
            Results that came again and were discarded.
        """
        totals = {name: int(each.get("expected", 0)) for name, each in accounting.items()}
        found = self._compose(self._cursor.complete(totals))
        doc: Document = {
            "uid": self._uid("stop"),
            "run_start": self.processed,
            "time": at,
            "exit_status": exit_status if exit_status in ("success", "abort", "fail") else "fail",
            "num_events": self._cursor.counts(),
            "frames": {name: frames(each) for name, each in accounting.items()},
            "duplicates": duplicates,
        }
        if reason:
            doc["reason"] = reason
        if self._nexus is not None:
            doc["nexus"] = self._nexus
        return [*found, ("stop", doc)]

    # --- documents ---------------------------------------------------------------------------------------------------

    def _compose(self, turns: Iterable[Turn]) -> list[Named]:
        """Return the documents of pages whose turn it is."""
        found: list[Named] = []
        for turn in turns:
            for spec in turn.stream.specs:
                if not turn.stream.described:
                    found += self._describe(turn.stream, spec, turn.joined, turn.page.time)
                found += self._page(turn.stream, spec, turn.joined, turn.page)
            turn.stream.described = True
        return found

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

    def _uid(self, *words: object) -> str:
        return str(uuid.uuid5(recipes.PROCESSED, "\n".join(map(str, (self.processed, *words)))))

    def _describe(self, stream: Stream, spec: RecipeSpec, joined: Sequence[Stream], at: float) -> list[Named]:
        """Return a recipe's descriptor, and the stream resources of its arrays."""
        outputs = stream.outputs[spec.name]
        keys: dict[str, Document] = {
            "frame": scalar_key(spec, Output("nav", (), "<i8", "", "frame number")),
            "status": scalar_key(spec, Output("nav", (), "<i8", "", "0 live, 1 backfilled, 2 quarantined, 3 lost")),
        }
        for each in joined:
            for name in each.chosen:
                if name not in outputs:
                    keys[name] = scalar_key(spec, each.columns[name], joined=each.open.stream)
        for name in stream.scalars[spec.name]:
            keys[name] = scalar_key(spec, outputs[name])
        arrays = stream.arrays[spec.name] if self._nexus is not None else []
        for name in arrays:
            keys[name] = array_key(spec, outputs[name])
        settings: dict[str, Any] = {
            "reducer": spec.reducer,
            "source": stream.open.stream,
            "cfg": _spec_cfg(spec),
            "policy": stream.open.policy,
        }
        setting_keys: dict[str, Document] = {
            name: {"source": f"recipe:{spec.name}", "dtype": "string", "shape": []} for name in settings
        }
        for (recipe, name), values in stream.consts.items():
            if recipe == spec.name and values is not None and name not in settings:
                settings[name] = values
                described = outputs.get(name, Output("const", (len(values),), "<f8"))
                setting_keys[name] = array_key(spec, described, external=False)
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
            size = prod(outputs[name].shape) * np.dtype(outputs[name].dtype).itemsize
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
                            "chunk_shape": [max(CHUNK_BYTES // size, 1) if size else 1],
                        },
                    },
                )
            )
        return found

    def _page(self, stream: Stream, spec: RecipeSpec, joined: Sequence[Stream], page: Page) -> list[Named]:
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


def _cfg(recipe: Mapping[str, Any]) -> str:
    try:
        (parsed,) = recipes.parse([recipe])
    except ReductionError:
        return ""
    return _spec_cfg(parsed.spec())


def _spec_cfg(spec: RecipeSpec) -> str:
    return recipes.cfg_hash([spec])
