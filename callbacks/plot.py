"""Maps of a run's results, drawn where they were measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .gridding import Floats, Grid, Tally, position_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_map(run: Any, name: str, ax: Axes | None = None, *, cmap: str = "viridis") -> Axes:
    """Draw the map of one scalar result of a run, raw or processed, by measured positions.

    Pixels without a point, and those whose frames are quarantined or lost, stay hatched. If the plan's extents don't
    fit what was measured, the map covers what was measured.

    Parameters
    ----------
    run :
        From the catalog: ``plot_map(db[-1], "Fe_Ka")``.
    name :
        A scalar result, such as an element line.

    Returns
    -------
    The axes; the image is ``ax.images[-1]``, its array (rows, columns) float64, masked where nothing was measured.

    Raises
    ------
    KeyError
        The run has no such result, has not been reduced, or its positions were not measured.
    """
    from .access import columns, processed

    reduced = processed(run)
    there = columns(reduced)
    if name not in there:
        raise KeyError(f"{scan(reduced.start)} has no {name!r}; it has {_listed(there)}")
    stream = reduced[there[name]]
    names = position_names(reduced.start)
    keys = stream.metadata["data_keys"]
    if names is None or not set(names) <= set(keys):
        raise KeyError(
            f"{scan(reduced.start)}: {there[name]} has no measured positions"
            f"{f' {names[0]}, {names[1]}' if names else ''}; add a recipe 'columns' on the position card, or plot "
            f"processed(run)[{there[name]!r}].read()[{name!r}] against frame"
        )
    data = stream.read(variables=[name, "status", *names])
    y, x, value, status = (data[each].values for each in (*names, name, "status"))
    tally = gridded(reduced.start, names, y, x, value, status)
    image = MapImage(ax, cmap)
    slow, fast = (position_label(keys[each], each) for each in names)
    image.show(tally, label(keys[name], name), slow, fast, title(reduced.start, name))
    return image.ax


def gridded(
    start: Mapping[str, Any], names: tuple[str, str], y: Floats, x: Floats, value: Floats, status: Any = None
) -> Tally:
    """Return the values on the planned grid; on one over what was measured if most points miss the planned one."""
    planned = Grid.planned(start)
    if planned is not None:
        tally = Tally(planned)
        tally.add(y, x, value, status)
        if tally.outside <= tally.counts.sum():
            return tally
    tally = Tally(Grid.covering(names, y, x, start.get("shape")))
    tally.add(y, x, value, status)
    return tally


class MapImage:
    """One map on its axes, with colour bar and title; ``show`` it again to bring it up to date."""

    def __init__(self, ax: Axes | None = None, cmap: str = "viridis"):
        import matplotlib

        if ax is None:
            from matplotlib import pyplot

            _figure, ax = pyplot.subplots(layout="constrained")
        self.ax = ax
        self._cmap = matplotlib.colormaps[cmap].with_extremes(bad="none")
        self._image: Any = None
        self._bar: Any = None

    def show(self, tally: Tally, value: str, slow: str, fast: str, title: str) -> None:
        """Draw ``tally``; the labels say what the colours and the axes are."""
        mean = np.ma.masked_invalid(tally.mean())
        grid = tally.grid
        if self._image is None:
            self._image = self.ax.imshow(mean, cmap=self._cmap, origin="lower", interpolation="nearest")
            self.ax.patch.set(facecolor="0.93", hatch="////", edgecolor="0.75", linewidth=0)
            figure = self.ax.get_figure()
            assert figure is not None
            # Beside the axes, as tall as the map, whatever its proportions.
            self._bar = figure.colorbar(self._image, cax=self.ax.inset_axes((1.03, 0, 0.04, 1)))
        self._image.set_data(mean)
        self._image.set_extent(grid.extent)
        if mean.count():
            self._image.set_clim(mean.min(), mean.max())
        self.ax.set_aspect("equal" if grid.slow.n > 1 and grid.fast.n > 1 else "auto")
        self.ax.set(xlabel=fast, ylabel=slow)
        self.ax.set_title(f"{title}\n{counted(tally)}", fontsize="medium", loc="left")
        self._bar.set_label(value)


def counted(tally: Tally) -> str:
    """Return how much of the map is there, in words.

    >>> from haltere.callbacks.gridding import Axis
    >>> counted(Tally(Grid(Axis("y", 0, 1, 2), Axis("x", 0, 2, 3))))
    '0 of 6 pixels'
    """
    filled, pixels = int(np.count_nonzero(tally.counts)), tally.counts.size
    words = [f"{filled} of {pixels} pixels" if filled < pixels else f"{pixels} pixels"]
    if tally.masked:
        words.append(f"{tally.masked} frames without a result")
    if tally.outside:
        words.append(f"{tally.outside} outside the plan")
    return " · ".join(words)


def label(key: Mapping[str, Any], name: str) -> str:
    """Return a data key's name with its unit.

    >>> label({"units": "um"}, "pilc_x")
    'pilc_x (µm)'
    """
    units = {"um": "µm", "deg": "°", "": None}.get(key.get("units") or "", key.get("units"))
    return f"{name} ({units})" if units else name


def position_label(key: Mapping[str, Any], name: str) -> str:
    """Return a position's name with its unit; encoders count in µm unless they say otherwise.

    >>> position_label({}, "pilc_y")
    'pilc_y (µm)'
    """
    return label({"units": key.get("units") or "um"}, name)


def scan(start: Mapping[str, Any]) -> str:
    """Return what a person calls a run.

    >>> scan({"scan_id": 17}), scan({"uid": "3c85db75-619c"})
    ('scan 17', 'run 3c85db75')
    """
    return f"scan {start['scan_id']}" if "scan_id" in start else f"run {start['uid'][:8]}"


def title(start: Mapping[str, Any], name: str) -> str:
    """Return a map's title: the scan, its plan, what is drawn."""
    words = [scan(start), start.get("plan_name"), name]
    return " · ".join(str(word) for word in words if word)


def _listed(there: Mapping[str, str]) -> str:
    streams: dict[str, list[str]] = {}
    for column, stream in there.items():
        if column.removesuffix("_sigma") not in there or column.removesuffix("_sigma") == column:
            streams.setdefault(stream, []).append(column)
    return "; ".join(f"{stream}: {', '.join(names)}" for stream, names in streams.items()) or "no scalar result"
