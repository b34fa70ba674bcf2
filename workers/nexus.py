"""A run's NeXus file, written while it is read (SWMR): everything in it is made at once, then only filled.

::

    /entry                      NXentry, default → the first recipe's group
        title, start_time, end_time, experiment_identifier, exit_status, user, sample, instrument
        raw_data                NXcollection: per stream a table of (key, first, n, offset, dataset, uri), and `links`
        <recipe>                NXprocess, default → maps, else data
            program, version, recipe, cfg
            status              (n,) u1: 0 live, 1 backfilled, 2 quarantined, 3 lost, 255 not yet
            <output>            nav: (n, …), NaN where there is no result; const, acc: as they are
            data                NXdata: the frames' arrays with their axes
            maps                NXdata on the planned grid, one map per scalar output
            scatter             NXdata: the same at the measured positions
            total_<output>      NXdata: an acc output with its axes

``raw_data/links`` leads to a file of external links, written when the run is complete: SWMR allows no new link.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from . import nexus_layout as layout
from .ledger import BatchRow, ConstRow, RunRow
from .payload import unpack
from .reducers.base import Output
from .wire.messages import FileSpan, RecipeSpec, StreamOpen

log = logging.getLogger(__name__)

Outputs = Mapping[str, Mapping[str, Output]]
FILE_SPAN: Final = np.dtype(
    [("key", "S64"), ("first", "i8"), ("n", "i8"), ("offset", "i8"), ("dataset", "S256"), ("uri", "S1024")]
)
NOT_YET: Final = 255
GROW: Final = 1024
"""Frames by which datasets grow when more come than were planned."""


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
        self._recipes: dict[tuple[str, str], list[_RecipeGroup]] = {}
        self._raw: dict[str, h5py.Dataset] = {}
        self._spans: list[tuple[str, FileSpan]] = []
        # A new inode: who still reads an unfinished file of before keeps that one, unharmed.
        path.unlink(missing_ok=True)
        self._file = h5py.File(path, "w", libver=("v110", "v110"))
        try:
            self._build(streams)
            self._file.swmr_mode = True
        except BaseException:
            with suppress(OSError, RuntimeError):
                self._file.close()
            raise

    # --- the structure -----------------------------------------------------------------------------------------------

    def _build(self, streams: Sequence[tuple[StreamOpen, Outputs]]) -> None:
        start = self._run.start
        root = self._file
        root.attrs.update({"NX_class": "NXroot", "default": "entry", "creator": "haltere"})
        entry = _group(root, "entry", "NXentry")
        plan = start.get("plan_name", "run")
        entry["title"] = str(start.get("title", f"{plan}, scan {start.get('scan_id', '?')}"))
        entry["experiment_identifier"] = self._run.run
        entry["processed_identifier"] = self._run.processed
        entry["start_time"] = _iso(start.get("time"))
        entry["plan"] = str(plan)
        for name in ("end_time", "exit_status"):
            entry.create_dataset(name, shape=(), dtype="S64")
        _describe(entry, "user", "NXuser", start.get("user", start.get("operator")))
        _describe(entry, "sample", "NXsample", start.get("sample", start.get("sample_name")))
        instrument = _group(entry, "instrument", "NXinstrument")
        instrument["name"] = str(start.get("beamline", "haltere"))
        raw = _group(entry, "raw_data", "NXcollection")
        for stream, _ in streams:
            detector = _group(instrument, stream.stream, "NXdetector")
            detector["local_name"] = stream.stream
            self._raw[stream.stream] = raw.create_dataset(
                stream.stream, shape=(0,), maxshape=(None,), chunks=(16,), dtype=FILE_SPAN
            )
        raw["links"] = h5py.ExternalLink(str(self._links_path.relative_to(self.path.parent)), "/")
        groups = []
        for stream, outputs in streams:
            for spec in stream.recipes:
                group = _RecipeGroup(
                    entry, stream, spec, outputs.get(spec.name, {}), max(self._frames, stream.batch), self._grid
                )
                groups.append(group)
                self._recipes.setdefault((stream.stream, stream.cfg), []).append(group)
        self._link_positions(groups)
        plotted = [group for group in groups if group.default]
        # What the scan was flown for comes before where it went: positions have no array and no line.
        best = sorted(plotted, key=lambda group: (group.is_positions, not group.has_maps))
        if best:
            entry.attrs["default"] = best[0].group.name.rsplit("/", 1)[1]

    def _link_positions(self, groups: Sequence[_RecipeGroup]) -> None:
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

    # --- filling -----------------------------------------------------------------------------------------------------

    def has(self, stream: str, cfg: str) -> bool:
        """Return whether results of that stream have a place here."""
        return (stream, cfg) in self._recipes

    def write(self, row: BatchRow) -> None:
        """Write one batch. Each may come once only: acc outputs are added up here."""
        pieces = unpack(row.arrays, row.payload, row.n)
        for group in self._recipes[row.stream, row.cfg]:
            group.write_status(row.first, row.status)
            for piece in pieces:
                if piece.recipe == group.name:
                    group.write(row.first, piece.kind, piece.name, piece.array)

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
        table = self._raw.get(stream)
        if table is None or not spans:
            return
        rows = np.array(
            [
                (
                    span.key.encode(),
                    span.first,
                    span.n,
                    span.offset,
                    span.dataset.encode(errors="replace"),
                    span.uri.encode(errors="replace"),
                )
                for span in spans
            ],
            FILE_SPAN,
        )
        n = table.shape[0]
        table.resize((n + len(rows),))
        table[n:] = rows
        self._spans += [(stream, span) for span in spans]

    def flush(self) -> None:
        """Let readers see everything that was written."""
        for groups in self._recipes.values():
            for group in groups:
                group.flush()
        self._file.flush()

    def close(self, totals: Mapping[str, int] | None = None) -> None:
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
        self.flush()
        self._file.close()
        self._write_links()

    def finish(self, run: RunRow) -> None:
        """Close it for good, with what the run's end has told."""
        self._run = run
        self.close(run.totals)

    def discard(self) -> None:
        """Let go of a file that can't be written any more."""
        with suppress(OSError, RuntimeError, ValueError):
            self._file.close()

    @property
    def _links_path(self) -> Path:
        return self.path.parent / "raw_links" / f"{self.path.stem}.h5"

    def _write_links(self) -> None:
        if not self._spans:
            return
        self._links_path.parent.mkdir(exist_ok=True)
        with h5py.File(self._links_path, "w") as file:
            for stream, span in self._spans:
                group = file.require_group(stream)
                name = f"{span.key}_{span.first:06d}"
                if name not in group:
                    group[name] = h5py.ExternalLink(str(layout.local_path(span.uri)), span.dataset)


class _RecipeGroup:
    """A recipe's part of the file."""

    def __init__(
        self,
        entry: h5py.Group,
        stream: StreamOpen,
        spec: RecipeSpec,
        outputs: Mapping[str, Output],
        frames: int,
        grid: layout.Grid | None,
    ) -> None:
        self.name = spec.name
        self.outputs = outputs
        self.is_positions = False
        self.has_maps = False
        self.default: str | None = None
        self._grid = grid
        self._length = frames
        self._nav: dict[str, h5py.Dataset] = {}
        self._maps: dict[str, tuple[h5py.Dataset, np.ndarray[Any, Any]]] = {}
        self._dirty: tuple[int, int] | None = None
        self._totals: dict[str, tuple[h5py.Dataset, np.ndarray[Any, Any]]] = {}
        self.group = _group(entry, spec.name if spec.name not in entry else f"{spec.name}_", "NXprocess")
        self.group["program"] = "haltere"
        self.group["version"] = version("haltere")
        self.group["recipe"] = f'{{"reducer": "{spec.reducer}", "params": {spec.params.decode()}}}'
        self.group["cfg"] = stream.cfg
        self._status = self.group.create_dataset(
            "status",
            shape=(frames,),
            maxshape=(None,),
            chunks=(layout.chunk_rows(1, stream.batch),),
            dtype="u1",
            fillvalue=NOT_YET,
        )
        self._status.attrs["long_name"] = "0 live, 1 backfilled, 2 quarantined, 3 lost, 255 not yet"
        for name, output in outputs.items():
            self._create(name, output, stream.batch)
        self._plot_arrays()
        self._plot_maps()
        self._plot_totals()
        if self.default is not None:
            self.group.attrs["default"] = self.default

    @property
    def scalars(self) -> dict[str, Output]:
        """The outputs of which each frame has one value."""
        return dict(layout.of_kind(self.outputs, "nav", scalar=True))

    def _create(self, name: str, output: Output, batch: int) -> None:
        dtype = np.dtype(output.dtype)
        path = layout.dataset_name(name)
        shape = tuple(output.shape)
        if output.kind == "nav":
            rows = layout.chunk_rows(int(np.prod(shape)) * dtype.itemsize, batch)
            dataset = self._nav[name] = self.group.create_dataset(
                path,
                shape=(self._length, *shape),
                maxshape=(None, *shape),
                chunks=(rows, *shape),
                dtype=dtype,
                fillvalue=layout.fill_value(dtype),
            )
        elif output.kind == "acc":
            dataset = self.group.create_dataset(path, shape=shape, dtype=dtype, fillvalue=0)
            self._totals[name] = (dataset, np.zeros(shape, dtype))
        else:
            dataset = self.group.create_dataset(path, shape=shape, dtype=dtype, fillvalue=layout.fill_value(dtype))
        if output.units:
            dataset.attrs["units"] = output.units
        dataset.attrs["long_name"] = output.long_name or name

    def _plot_arrays(self) -> None:
        arrays = dict(layout.of_kind(self.outputs, "nav", scalar=False))
        main = next((name for name in arrays if layout.error_of(name, arrays) is None), None)
        if main is None:
            return
        data = self._data("data", main, [".", *self._axes(self.outputs[main])])
        data.attrs["interpretation"] = "spectrum" if len(self.outputs[main].shape) == 1 else "image"
        for name, output in arrays.items():
            uncertain = main if name in ("sigma", "errors") else layout.error_of(name, arrays)
            if name != main and uncertain == main and output.shape == self.outputs[main].shape:
                data[f"{layout.dataset_name(main)}_errors"] = self._nav[name]
        self.default = "data"

    def _plot_maps(self) -> None:
        grid, scalars = self._grid, self.scalars
        values = [name for name in scalars if layout.error_of(name, scalars) is None]
        if grid is None or not values:
            return
        maps = _group(self.group, "maps", "NXdata")
        maps.attrs["signal"] = values[0]
        if len(values) > 1:
            maps.attrs["auxiliary_signals"] = values[1:]
        names = [name if name not in scalars else f"{name}_planned" for name in grid.names]
        maps.attrs["axes"] = names
        for number, (axis, field) in enumerate(zip(names, grid.fields, strict=True)):
            maps[axis] = grid.axis(number)
            maps[axis].attrs.update({"units": "um", "long_name": field})
        for name, output in scalars.items():
            of = layout.error_of(name, scalars)
            dtype = np.dtype(output.dtype) if np.dtype(output.dtype).kind == "f" else np.dtype("f8")
            rows = max(min(grid.shape[0], layout.CHUNK_BYTES // (grid.size // grid.shape[0] * dtype.itemsize)), 1)
            dataset = maps.create_dataset(
                name if of is None else f"{of}_errors",
                shape=grid.shape,
                chunks=(rows, *grid.shape[1:]),
                dtype=dtype,
                fillvalue=np.nan,
            )
            if output.units:
                dataset.attrs["units"] = output.units
            dataset.attrs["long_name"] = output.long_name or name
            self._maps[name] = (dataset, np.full(grid.shape, np.nan, dtype))
        self.has_maps = True
        self.default = "maps"

    def _plot_totals(self) -> None:
        for name, output in layout.of_kind(self.outputs, "acc"):
            if output.shape:
                data = self._data(f"total_{name}", name, self._axes(output))
                if data.attrs["axes"][-1] != ".":
                    data.attrs["interpretation"] = "spectrum"
                self.default = self.default or f"total_{name}"

    def add_scatter(self, x: h5py.Dataset, y: h5py.Dataset) -> None:
        """Add the scalar outputs at the measured positions."""
        scalars = self.scalars
        values = [name for name in scalars if layout.error_of(name, scalars) is None]
        if not values:
            return
        axes = [name if name not in scalars else f"{name}_measured" for name in ("x", "y")]
        scatter = self._data("scatter", values[0], axes)
        for name in values[1:]:
            scatter[name] = self._nav[name]
        if len(values) > 1:
            scatter.attrs["auxiliary_signals"] = values[1:]
        scatter[axes[0]], scatter[axes[1]] = x, y

    def _axes(self, output: Output) -> list[str]:
        names = list(output.axes) if len(output.axes) == len(output.shape) else ["."] * len(output.shape)
        known = {name for name, _ in layout.of_kind(self.outputs, "const")}
        return [layout.dataset_name(name) if name in known else "." for name in names]

    def _data(self, path: str, signal: str, axes: Sequence[str]) -> h5py.Group:
        data = _group(self.group, path, "NXdata")
        signal = layout.dataset_name(signal)
        data[signal] = self.group[signal]
        data.attrs["signal"] = signal
        data.attrs["axes"] = list(axes)
        for axis in axes:
            if axis != "." and axis in self.outputs and axis not in data:
                data[axis] = self.group[axis]
        return data

    # --- filling -----------------------------------------------------------------------------------------------------

    def write_status(self, first: int, status: bytes) -> None:
        """Write what became of the frames."""
        stop = first + len(status)
        if stop > self._length:
            self._resize(stop + GROW)
        self._status[first:stop] = np.frombuffer(status, np.uint8)

    def write(self, first: int, kind: str, name: str, array: np.ndarray[Any, Any]) -> None:
        """Write an array of a batch that begins at ``first``."""
        if kind == "nav":
            self._nav[name][first : first + len(array)] = array
            if name in self._maps:
                self._write_map(self._maps[name][1], first, array)
        elif kind == "acc":
            self._totals[name][1][...] += array
        else:
            self.group[layout.dataset_name(name)][...] = array

    def subtract(self, name: str, array: np.ndarray[Any, Any]) -> None:
        """Take back what was added."""
        self._totals[name][1][...] -= array

    def _write_map(self, values: np.ndarray[Any, Any], first: int, array: np.ndarray[Any, Any]) -> None:
        assert self._grid is not None
        places = self._grid.place(first, len(array))
        inside = places >= 0
        if not inside.any():
            return
        values.reshape(-1)[places[inside]] = array[inside]
        stride = self._grid.size // self._grid.shape[0]
        low, high = int(places[inside].min()) // stride, int(places[inside].max()) // stride + 1
        known = self._dirty or (low, high)
        self._dirty = min(known[0], low), max(known[1], high)

    def _resize(self, length: int) -> None:
        self._length = length
        for dataset in (self._status, *self._nav.values()):
            dataset.resize(length, axis=0)

    def flush(self) -> None:
        """Write what is kept in memory: maps, totals."""
        if self._dirty is not None:
            low, high = self._dirty
            for dataset, values in self._maps.values():
                dataset[low:high] = values[low:high]
            self._dirty = None
        for dataset, total in self._totals.values():
            dataset[...] = total

    def finish(self, total: int | None) -> None:
        """Give every dataset its true length, and empty the maps where no frame was promised."""
        if total is None:
            return
        if total != self._length:
            self._resize(total)
        if self._grid is not None and self._maps and total < self._grid.size:
            beyond = self._grid.place(total, self._grid.size - total)
            for _, values in self._maps.values():
                values.reshape(-1)[beyond] = np.nan
            self._dirty = 0, self._grid.shape[0]


def _group(parent: h5py.Group, name: str, nx_class: str) -> h5py.Group:
    group = parent.create_group(name)
    group.attrs["NX_class"] = nx_class
    return group


def _describe(entry: h5py.Group, name: str, nx_class: str, what: Any) -> None:
    """Add a group for what a start document says of its sample or user: a name, or a mapping of plain values."""
    group = _group(entry, name, nx_class)
    for key, value in what.items() if isinstance(what, Mapping) else [("name", what)]:
        if isinstance(value, str | int | float) and "/" not in str(key) and str(key):
            group[str(key)] = value


def _iso(time: Any) -> str:
    return datetime.fromtimestamp(time, UTC).isoformat() if isinstance(time, int | float) else ""
