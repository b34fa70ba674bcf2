"""A recipe's part of a NeXus file: its outputs by frame, as maps, at the measured positions, and added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

import h5py
import numpy as np

from ..reducers.base import Output
from ..wire.messages import RecipeSpec, StreamOpen
from . import layout

NOT_YET: Final = 255
"""The status of a frame that hasn't come."""

GROW: Final = 1024
"""Frames by which datasets grow when more come than were planned."""


class RecipeGroup:
    """One recipe of one stream."""

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
        self._calibrations: dict[str, list[h5py.Dataset]] = {}
        self._stream = stream.stream
        self.group = nx_group(entry, spec.name if spec.name not in entry else f"{spec.name}_", "NXprocess")
        self.group["program"] = "haltere"
        self.group["version"] = version("haltere")
        self.group["recipe"] = f'{{"reducer": "{spec.reducer}", "params": {spec.params.decode()}}}'
        self.group["cfg"] = stream.cfg
        self.status = self.group.create_dataset(
            "status",
            shape=(frames,),
            maxshape=(None,),
            chunks=(layout.chunk_rows(1, stream.batch),),
            dtype="u1",
            fillvalue=NOT_YET,
        )
        self.status.attrs["long_name"] = "0 live, 1 backfilled, 2 quarantined, 3 lost, 255 not yet"
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
        maps = nx_group(self.group, "maps", "NXdata")
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
                labelled = [axis for axis in data.attrs["axes"] if axis != "."]
                if data.attrs["axes"][-1] != ".":
                    data.attrs["interpretation"] = "image" if len(labelled) > 1 else "spectrum"
                self.default = self.default or f"total_{name}"

    def add_spectra(self, instrument: h5py.Group) -> None:
        """Add an NXdetector per row of each sum of spectra, as PyMca looks for them: the same counts, not a copy."""
        for name, axis in layout.spectra(self.outputs):
            rows, channels = self.outputs[name].shape
            total = self.group[layout.dataset_name(name)]
            for row in range(rows):
                path = f"{self._stream}_{name}{row:02d}"
                if path in instrument:  # two recipes add up the same detector's spectra: one is enough
                    continue
                detector = nx_group(instrument, path, "NXdetector")
                detector["description"] = f"{total.attrs['long_name']}, row {row} of {total.name}"
                counts = h5py.VirtualLayout((channels,), total.dtype)
                counts[:] = h5py.VirtualSource(total)[row]
                data = detector.create_virtual_dataset("data", counts, fillvalue=0)
                data.attrs.update({"interpretation": "spectrum", "units": "counts", "long_name": "counts"})
                detector["channels"] = np.arange(channels, dtype="i4")
                calibration = detector.create_dataset("calibration", data=[0.0, 1.0, 0.0])
                calibration.attrs["long_name"] = "keV = [0] + [1] channel + [2] channel²"
                self._calibrations.setdefault(axis, []).append(calibration)

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
        data = nx_group(self.group, path, "NXdata")
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
        self.status[first:stop] = np.frombuffer(status, np.uint8)

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
            for calibration in self._calibrations.get(name, ()):
                calibration[...] = [array[0], (array[-1] - array[0]) / max(len(array) - 1, 1), 0.0]

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
        for dataset in (self.status, *self._nav.values()):
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


def nx_group(parent: h5py.Group, name: str, nx_class: str) -> h5py.Group:
    """Make a group of a NeXus class."""
    group = parent.create_group(name)
    group.attrs["NX_class"] = nx_class
    return group
