"""A map that fills while the scan flies."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .gridding import Grid, Tally, position_names
from .plot import MapImage, label, position_label, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

FOLD = 4096
"""Rows that wait at most before they are put on the grid."""


class LiveMap:
    """Draw one scalar result of the processed run while its documents come.

    Documents only add to arrays, under a lock: the thread that brings them, and the RunEngine, wait for no drawing.
    With a window, its own event loop draws, every ``period``; without one (Agg), a thread does. What is drawn is what
    there is then; at the end of the run it is drawn once more. Missing pixels are hatched until they are backfilled.
    A new run takes the map over; documents of the one before it are then left aside.

    Parameters
    ----------
    name :
        A scalar result, such as ``"Fe_Ka"``; the first stream that has it is drawn.
    ax :
        Axes to draw on; by default a window of its own, or a bare figure where there are no windows.
    period :
        Shortest time between two drawings, s. Drawing takes a quarter of one core at most.
    """

    def __init__(self, name: str, ax: Axes | None = None, period: float = 0.25, *, cmap: str = "viridis"):
        self.name = name
        self.period = period
        self.drawn = threading.Event()
        """Set when a run has ended and its last image is drawn."""
        self._image = MapImage(ax if ax is not None else _axes(), cmap)
        self._lock = threading.Lock()  # guards what the documents change: the scan, its tally, what waits
        self._drawing = threading.Lock()  # guards the figure
        self._scan: _Scan | None = None
        self._closed = False
        self._free_at = 0.0
        """When the next drawing is allowed, by the monotonic clock."""
        self._timer: Any = None
        canvas: Any = self.ax.figure.canvas
        if getattr(canvas, "required_interactive_framework", None):
            self._timer = canvas.new_timer(interval=max(int(1e3 * period), 1))
            self._timer.add_callback(self._tick)
            self._timer.start()
            canvas.mpl_connect("close_event", lambda _event: self.close())

    @property
    def ax(self) -> Axes:
        """The axes; the image is ``ax.images[-1]`` once something has been drawn."""
        return self._image.ax

    # --- documents: any thread, never waits for a drawing

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Take a document of a processed run; those that say nothing of the map are passed over."""
        match name:
            case "start":
                self._start(doc)
            case "descriptor":
                self._descriptor(doc)
            case "event_page":
                self._points(doc["descriptor"], doc["data"])
            case "event":
                self._points(doc["descriptor"], {column: [value] for column, value in doc["data"].items()})
            case "stop":
                self._stop(doc)

    def _start(self, doc: Mapping[str, Any]) -> None:
        """Begin a new map, on the grid that the run planned."""
        grid, names = Grid.planned(doc), position_names(doc)
        if grid is None or names is None:
            logger.warning("scan %s plans no grid to draw on; plot_map draws it afterwards", doc.get("scan_id", "?"))
        scan = _Scan(doc, self.name, names, Tally(grid)) if grid and names and not self._closed else None
        with self._lock:
            before, self._scan = self._scan, scan
            self.drawn.clear()
        if before is not None:
            before.release()
        if scan is not None and self._timer is None:
            threading.Thread(target=self._draw, args=(scan,), name=f"LiveMap {self.name}", daemon=True).start()

    def _descriptor(self, doc: Mapping[str, Any]) -> None:
        """Note the stream that has the result."""
        with self._lock:
            if self._scan is not None and doc["run_start"] == self._scan.start["uid"]:
                self._scan.describe(doc)

    def _points(self, descriptor: str, data: Mapping[str, Any]) -> None:
        with self._lock:
            if self._scan is not None and descriptor == self._scan.descriptor:
                self._scan.append(data)

    def _stop(self, doc: Mapping[str, Any]) -> None:
        """End the map: one last drawing is due."""
        with self._lock:
            scan = self._scan
            if scan is None or doc["run_start"] != scan.start["uid"]:
                return
            scan.ended = scan.dirty = True
        if scan.descriptor is None:
            logger.warning("scan %s has no %r to draw", scan.start.get("scan_id", "?"), self.name)
        scan.release()

    # --- drawing: the window's event loop, or our own thread

    def update(self) -> bool:
        """Draw what there is, if it is more than what is shown. Say whether it was."""
        with self._drawing:
            with self._lock:
                scan = self._scan
                if scan is None or not scan.dirty or self._closed:
                    return False
                scan.fold()
                shown, ended = scan.tally.copy(), scan.ended
                scan.dirty = False
            began = time.monotonic()
            self._image.show(shown, *scan.labels, title(scan.start, self.name))
            canvas: Any = self.ax.figure.canvas
            canvas.draw()
            if self._timer is not None:
                canvas.flush_events()
            now = time.monotonic()
            self._free_at = now + max(self.period, 3 * (now - began))
            with self._lock:
                if ended and scan is self._scan:
                    self.drawn.set()
            return True

    def close(self) -> None:
        """Draw no more, and take no more documents."""
        self._closed = True
        if self._timer is not None:
            self._timer.stop()
        with self._lock:
            scan, self._scan = self._scan, None
        if scan is not None:
            scan.release()

    def _tick(self) -> bool:
        if time.monotonic() >= self._free_at:
            self.update()
        return not self._closed

    def _draw(self, scan: _Scan) -> None:
        """Draw one run to its end, or until another takes its place."""
        while self._scan is scan and not self.drawn.is_set():
            scan.news.wait()
            scan.news.clear()
            self.update()
            scan.over.wait(max(0.0, self._free_at - time.monotonic()))


class _Scan:
    """One run on its grid."""

    def __init__(self, start: Mapping[str, Any], name: str, positions: tuple[str, str], tally: Tally):
        self.start = start
        self.tally = tally
        self.descriptor: str | None = None
        self.labels = (name, *positions)
        self.dirty = False
        self.ended = False
        self.news = threading.Event()
        self.over = threading.Event()
        self._columns = (*positions, name)
        self._waiting: list[tuple[Any, ...]] = []
        self._rows = 0

    def describe(self, doc: Mapping[str, Any]) -> None:
        """Take this descriptor's stream if it has the result and the positions."""
        keys = doc["data_keys"]
        if self.descriptor is None and set(self._columns) <= set(keys):
            self.descriptor = doc["uid"]
            slow, fast, value = self._columns
            self.labels = (
                label(keys[value], value),
                position_label(keys[slow], slow),
                position_label(keys[fast], fast),
            )

    def append(self, data: Mapping[str, Any]) -> None:
        """Keep a page's rows; put them on the grid once they are many."""
        columns = tuple(data[each] for each in self._columns)
        self._waiting.append((*columns, data.get("status", [0] * len(columns[0]))))
        self._rows += len(columns[0])
        self.dirty = True
        self.news.set()
        if self._rows >= FOLD:
            self.fold()

    def fold(self) -> None:
        """Put the rows that wait on the grid."""
        if self._waiting:
            columns = zip(*self._waiting, strict=True)
            self.tally.add(*(np.concatenate([np.asarray(part, float) for part in column]) for column in columns))
            self._waiting, self._rows = [], 0

    def release(self) -> None:
        """Let the thread that draws this run go on to its end."""
        self.over.set()
        self.news.set()


def _axes() -> Axes:
    """Return axes in a window; where the backend has none, on a figure that no other thread draws."""
    import matplotlib
    from matplotlib import pyplot

    if matplotlib.get_backend().lower() in {"agg", "pdf", "svg", "ps", "cairo"}:
        from matplotlib.figure import Figure

        return Figure(layout="constrained").subplots()
    _figure, ax = pyplot.subplots(layout="constrained")
    pyplot.show(block=False)
    return ax
