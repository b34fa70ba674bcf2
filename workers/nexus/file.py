"""A run's NeXus file, written while it is read (SWMR): everything in it is made at once, then only filled.

::

    /entry                      NXentry, default → the first recipe's group
        title, start_time, end_time, experiment_identifier, exit_status, user, sample
        instrument              NXinstrument: an NXdetector per stream, and one per row of a sum of spectra, with its
                                `data`, `channels` and `calibration`, as PyMca reads them
        raw_data                NXcollection: per stream a table of (key, first, n, offset, dataset, uri), and `links`
        ledger                  NXcollection: what became of every frame, see :mod:`.account`
        <recipe>                NXprocess, default → maps, else data
            program, version, recipe, cfg
            status              (n,) u1: 0 live, 1 backfilled, 2 quarantined, 3 lost, 255 not yet
            <output>            nav: (n, …), NaN where there is no result; const, acc: as they are
            data                NXdata: the frames' arrays with their axes
            maps                NXdata on the planned grid, one map per scalar output
            scatter             NXdata: the same at the measured positions
            total_<output>      NXdata: an acc output with its axes

``raw_data/links/<stream>/<key>`` (``<key>_000001`` and so on, if it has several files) leads to the detector's own
data, by way of a file of external links, written when the run is complete: SWMR allows no new link.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from ..ledger.rows import BatchRow, ConstRow, RunRow
from ..payload import unpack
from ..reducers.base import Output
from ..wire.messages import QUARANTINED, FileSpan, StreamOpen
from . import layout
from .account import LedgerGroup
from .recipe import RecipeGroup, nx_group

Outputs = Mapping[str, Mapping[str, Output]]
FILE_SPAN: Final = np.dtype(
    [("key", "S64"), ("first", "i8"), ("n", "i8"), ("offset", "i8"), ("dataset", "S256"), ("uri", "S1024")]
)

_abandoned: Final[deque[NexusFile]] = deque(maxlen=16)
"""Files that must not be closed, while memory allows: the oldest is let go of, and should that crash the process, the
ledger has everything."""


class NexusFile:
    """One file, open for writing until :meth:`close`. It replaces whatever has its path.

    Parameters
    ----------
    path
        Where.
    run
        The run, as the ledger has it.
    streams
        Each with what its recipes give: ``{recipe: {output: Output}}``.

    Raises
    ------
    OSError
        The folder can't be written, or is full. Also from every method.
    """

    def __init__(self, path: Path, run: RunRow, streams: Sequence[tuple[StreamOpen, Outputs]]) -> None:
        self.path = path
        self._run = run
        self._grid = layout.grid(run.start)
        self._frames = layout.planned_frames(run.start)
        self._recipes: dict[tuple[str, str], list[RecipeGroup]] = {}
        self._raw: dict[str, h5py.Dataset] = {}
        self._spans: dict[str, list[FileSpan]] = {}
        # A new inode: who still reads an unfinished file of before keeps that one, unharmed.
        path.unlink(missing_ok=True)
        self._file = h5py.File(path, "w", libver=("v110", "v110"))
        try:
            self._build(streams)
            self._file.swmr_mode = True
        except BaseException:
            self.abandon()
            raise

    # --- the structure -----------------------------------------------------------------------------------------------

    def _build(self, streams: Sequence[tuple[StreamOpen, Outputs]]) -> None:
        start = self._run.start
        root = self._file
        root.attrs.update({"NX_class": "NXroot", "default": "entry", "creator": "haltere"})
        entry = nx_group(root, "entry", "NXentry")
        plan = start.get("plan_name", "run")
        entry["title"] = str(start.get("title", f"{plan}, scan {start.get('scan_id', '?')}"))
        entry["experiment_identifier"] = self._run.raw
        entry["processed_identifier"] = self._run.processed
        if "supersedes" in start:
            entry["supersedes"] = str(start["supersedes"])
        entry["start_time"] = _iso(start.get("time"))
        entry["plan"] = str(plan)
        for name in ("end_time", "exit_status"):
            entry.create_dataset(name, shape=(), dtype="S64")
        _describe(entry, "user", "NXuser", start.get("user", start.get("operator")))
        _describe(entry, "sample", "NXsample", start.get("sample", start.get("sample_name")))
        instrument = nx_group(entry, "instrument", "NXinstrument")
        instrument["name"] = str(start.get("beamline", "haltere"))
        raw = nx_group(entry, "raw_data", "NXcollection")
        for stream, _ in streams:
            detector = nx_group(instrument, stream.stream, "NXdetector")
            detector["local_name"] = stream.stream
            self._raw[stream.stream] = raw.create_dataset(
                stream.stream, shape=(0,), maxshape=(None,), chunks=(16,), dtype=FILE_SPAN
            )
        self._ledger = LedgerGroup(entry)
        raw["links"] = h5py.ExternalLink(str(self._links_path.relative_to(self.path.parent)), "/")
        groups = []
        for stream, outputs in streams:
            for spec in stream.recipes:
                group = RecipeGroup(
                    entry, stream, spec, outputs.get(spec.name, {}), max(self._frames, stream.batch), self._grid
                )
                group.add_spectra(instrument)
                groups.append(group)
                mine = self._recipes.setdefault((stream.stream, stream.cfg), [])
                if not mine:
                    self._ledger.add(stream, group.status)
                mine.append(group)
        self._link_positions(groups)
        plotted = [group for group in groups if group.default]
        order = layout.recipe_names(start)
        # What the scan was flown for comes before where it went: positions have no array and no line.
        best = min(
            plotted,
            key=lambda group: (
                group.is_positions,
                not group.has_maps,
                order.index(group.name) if group.name in order else len(order),
            ),
            default=None,
        )
        if best is not None:
            entry.attrs["default"] = best.group.name.rsplit("/", 1)[1]

    def _link_positions(self, groups: Sequence[RecipeGroup]) -> None:
        fields = layout.dimension_fields(self._run.start)
        found = []
        for field in fields[-2:]:
            for group in groups:
                if field in group.scalars:
                    found.append((field, group))
                    break
        if len(found) != 2:
            return
        (slow, slow_group), (fast, fast_group) = found
        for group in groups:
            if group in (slow_group, fast_group):
                group.is_positions = True
            elif group.scalars:
                group.add_scatter(fast_group.group[fast], slow_group.group[slow])
        for dataset in (slow_group.group[slow], fast_group.group[fast]):
            if "units" not in dataset.attrs:  # of what the plan calls positions, and plans in µm
                dataset.attrs["units"] = "um"

    # --- filling -----------------------------------------------------------------------------------------------------

    def has(self, stream: str, cfg: str) -> bool:
        """Return whether results of that stream have a place here."""
        return (stream, cfg) in self._recipes

    def write(self, row: BatchRow) -> None:
        """Write one batch. Each may come once only: acc outputs are added up here."""
        pieces = unpack(row.arrays, row.payload, row.n)
        absent = np.frombuffer(row.status, np.uint8) >= QUARANTINED
        for group in self._recipes[row.stream, row.cfg]:
            group.write_status(row.first, row.status)
            for piece in pieces:
                if piece.recipe == group.name:
                    array = piece.array
                    if piece.kind == "nav" and absent.any():
                        # One recipe may have a value for a frame that another can't reduce: the frame has none.
                        array = array.copy()
                        array[absent] = layout.fill_value(array.dtype)
                    group.write(row.first, piece.kind, piece.name, array)

    def withdraw(self, row: BatchRow) -> None:
        """Take a batch that was written back out of what is added up: its frames were never promised."""
        for piece in unpack(row.arrays, row.payload, row.n):
            for group in self._recipes[row.stream, row.cfg]:
                if piece.recipe == group.name and piece.kind == "acc":
                    group.subtract(piece.name, piece.array)

    def write_const(self, row: ConstRow) -> None:
        """Write an output that is the same for the whole run."""
        for piece in unpack([row.spec], row.payload):
            for group in self._recipes[row.stream, row.cfg]:
                if piece.recipe == group.name:
                    group.write(0, "const", piece.name, piece.array)

    def add_spans(self, stream: str, spans: Sequence[FileSpan]) -> None:
        """Note in which files a detector's frames are."""
        if stream in self._raw:
            self._spans.setdefault(stream, []).extend(spans)

    def flush(self) -> None:
        """Let readers see everything that was written."""
        for groups in self._recipes.values():
            for group in groups:
                group.flush()
        self._file.flush()

    def close(
        self, totals: Mapping[str, int] | None = None, account: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """Finish the file. With ``totals`` (frames per stream) nothing stays of frames beyond them.

        What such frames have added to sums stays, unless :meth:`withdraw` took it back.
        """
        if not self._file:
            return
        for (stream, _), groups in self._recipes.items():
            for group in groups:
                group.finish((totals or {}).get(stream))
        entry = self._file["entry"]
        stop = self._run.stop or {}
        entry["end_time"][()] = _iso(stop.get("time")).encode()
        entry["exit_status"][()] = (self._run.exit_status or "").encode()
        for stream, spans in self._spans.items():
            rows = layout.joined(spans)
            self._raw[stream].resize((len(rows),))
            self._raw[stream][:] = np.array([_span_row(span) for span in rows], FILE_SPAN)
        if account is not None:
            self._ledger.finish(account, self._run.duplicates)
        self.flush()
        self._file.close()
        self._write_links()

    def finish(self, run: RunRow, account: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Close it for good, with what the run's end has told.

        Parameters
        ----------
        account
            What became of every frame, :meth:`~..ledger.reader.LedgerReader.accounting`.
        """
        self._run = run
        self.close(run.totals, account)

    def discard(self) -> None:
        """Let go of a file that isn't wanted any more, as it is."""
        with suppress(OSError, RuntimeError, ValueError):
            self._file.close()

    def abandon(self) -> None:
        """Let go of a file of which a write has failed, without closing it.

        HDF5 2.0 crashes the process when it closes such a file, or anything in it (SIGSEGV after ENOSPC).
        """
        _abandoned.append(self)

    @property
    def _links_path(self) -> Path:
        return self.path.parent / "raw_links" / f"{self.path.stem}.h5"

    def _write_links(self) -> None:
        if not self._spans:
            return
        self._links_path.parent.mkdir(exist_ok=True)
        with h5py.File(self._links_path, "w") as file:
            for stream, spans in self._spans.items():
                group = file.create_group(stream)
                for name, span in layout.named(spans):
                    group[name] = h5py.ExternalLink(str(layout.local_path(span.uri)), span.dataset)


def _describe(entry: h5py.Group, name: str, nx_class: str, what: Any) -> None:
    """Add a group for what a start document says of its sample or user: a name, or a mapping of plain values."""
    group = nx_group(entry, name, nx_class)
    for key, value in what.items() if isinstance(what, Mapping) else [("name", what)]:
        if isinstance(value, str | int | float) and "/" not in str(key) and str(key):
            group[str(key)] = value


def _span_row(span: FileSpan) -> tuple[Any, ...]:
    dataset, uri = (text.encode(errors="replace") for text in (span.dataset, span.uri))
    return span.key.encode(), span.first, span.n, span.offset, dataset, uri


def _iso(time: Any) -> str:
    return datetime.fromtimestamp(time, UTC).isoformat() if isinstance(time, int | float) else ""
