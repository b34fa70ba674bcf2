"""Where a result belongs in a run's NeXus file: names, the planned grid, chunks. No file is touched here."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..reducers.base import Output
from ..wire.messages import FileSpan

CHUNK_BYTES: Final = 256 * 1024
MAX_PIXELS: Final = 1 << 24
"""Points of one map at most; a grid with more has no maps, only the values by frame."""

RESERVED: Final = frozenset({"program", "version", "recipe", "cfg", "status", "maps", "data", "scatter"})
_ERRORS: Final = re.compile(r"(.+)_(?:sigma|errors|error|sem|std)")


@dataclass(frozen=True, slots=True)
class Grid:
    """The planned grid, slowest axis first: ``Grid((40, 60), (False, True), ((0, 20), (0, 30)), ("y", "x"))``.

    ``fields`` are the data keys that the axes plan; ``extents`` are the first and last point of each axis, µm.
    """

    shape: tuple[int, ...]
    snaking: tuple[bool, ...]
    extents: tuple[tuple[float, float], ...]
    fields: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many points it has."""
        return math.prod(self.shape)

    @property
    def names(self) -> tuple[str, ...]:
        """Its axes' names in a map: ``("y", "x")``."""
        return ("z", "y", "x")[-len(self.shape) :]

    def place(self, first: int, n: int) -> NDArray[np.int64]:
        """Return the flat index of frames ``[first, first + n)`` in a map in C order, −1 beyond the grid.

        >>> Grid((2, 3), (False, True), ((0, 1), (0, 2)), ("y", "x")).place(0, 7)
        array([ 0,  1,  2,  5,  4,  3, -1])
        """
        frames = np.arange(first, first + n, dtype=np.int64)
        inside = frames < self.size
        rest, flat, stride = frames.copy(), np.zeros(n, np.int64), self.size
        outer = np.zeros(n, np.int64)
        for length, snakes in zip(self.shape, self.snaking, strict=True):
            stride //= length
            here, rest = np.divmod(rest, stride)
            turned = np.where(snakes & (outer % 2 == 1), length - 1 - here, here)
            flat += turned * stride
            outer = outer * length + here
        return np.where(inside, flat, -1)

    def axis(self, number: int) -> NDArray[np.float64]:
        """Return the planned positions along an axis, µm."""
        return np.linspace(*self.extents[number], self.shape[number])


def grid(start: Mapping[str, Any]) -> Grid | None:
    """Return the grid that a start document plans, or None: it has none, or one that is no grid of up to three axes."""
    shape = start.get("shape")
    if not isinstance(shape, list | tuple) or not 1 <= len(shape) <= 3:
        return None
    if not all(isinstance(length, int) and length > 0 for length in shape) or math.prod(shape) > MAX_PIXELS:
        return None
    snaking = start.get("snaking")
    if not isinstance(snaking, list | tuple) or len(snaking) != len(shape):
        snaking = [False] * len(shape)
    try:
        extents = tuple((float(low), float(high)) for low, high in start["extents"])
    except (KeyError, TypeError, ValueError):
        extents = ()
    if len(extents) != len(shape):
        extents = tuple((0.0, float(length - 1)) for length in shape)
    fields = dimension_fields(start)
    if len(fields) != len(shape):
        fields = ("z", "y", "x")[-len(shape) :]
    return Grid(tuple(shape), tuple(bool(each) for each in snaking), extents, fields)


def dimension_fields(start: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the data keys that a start document's hints name as its dimensions, slowest first.

    >>> dimension_fields({"hints": {"dimensions": [[["pilc_y"], "primary"], [["pilc_x"], "primary"]]}})
    ('pilc_y', 'pilc_x')
    """
    try:
        return tuple(str(fields[0]) for fields, _ in start["hints"]["dimensions"])
    except (KeyError, TypeError, ValueError, IndexError):
        return ()


def planned_frames(start: Mapping[str, Any]) -> int:
    """Return how many frames a start document plans, 0 if it doesn't say."""
    planned = grid(start)
    if planned is not None:
        return planned.size
    points = start.get("num_points")
    return points if isinstance(points, int) and 0 < points < 2**31 else 0


def recipe_names(start: Mapping[str, Any]) -> list[str]:
    """Return the names of a start document's recipes, in its order.

    >>> recipe_names({"recipes": [{"name": "xrf"}, {"name": "xrd"}]}), recipe_names({"recipes": "none"})
    (['xrf', 'xrd'], [])
    """
    recipes = start.get("recipes")
    found = recipes if isinstance(recipes, list | tuple) else ()
    return [str(each["name"]) for each in found if isinstance(each, Mapping) and "name" in each]


def file_name(start: Mapping[str, Any], run: str, taken: Callable[[str], bool]) -> str:
    """Return the name of a run's file; with eight digits of its uid, or all of them, if a name is taken.

    >>> file_name({"scan_id": 17}, "6f0c7a52-aa", lambda name: name == "scan_00017.nxs")
    'scan_00017-6f0c7a52.nxs'
    """
    scan_id = start.get("scan_id")
    stem = f"scan_{scan_id:05d}" if isinstance(scan_id, int) and scan_id >= 0 else "scan"
    for name in (f"{stem}.nxs", f"{stem}-{run[:8]}.nxs"):
        if not taken(name):
            return name
    return f"{stem}-{run}.nxs"


def dataset_name(output: str) -> str:
    """Return what an output's dataset is called in its recipe's group.

    >>> dataset_name("intensity"), dataset_name("status")
    ('intensity', 'status_')
    """
    return f"{output}_" if output in RESERVED else output


def error_of(name: str, names: Mapping[str, Any]) -> str | None:
    """Return the output whose uncertainty ``name`` is.

    >>> error_of("Fe_Ka_sigma", {"Fe_Ka": 1, "Fe_Ka_sigma": 2})
    'Fe_Ka'
    """
    found = _ERRORS.fullmatch(name)
    return found[1] if found is not None and found[1] in names else None


def fill_value(dtype: np.dtype[Any]) -> Any:
    """Return what stands where no result is: NaN, or for integers −1 or the greatest value."""
    if dtype.kind == "f":
        return dtype.type(np.nan)
    if dtype.kind == "i":
        return dtype.type(-1)
    return dtype.type(np.iinfo(dtype).max) if dtype.kind == "u" else dtype.type(False)


def chunk_rows(frame_bytes: int, batch: int) -> int:
    """Return how many frames share a chunk: whole batches, about a quarter of a megabyte, 4096 at most.

    >>> chunk_rows(4000, 20), chunk_rows(8, 20), chunk_rows(1 << 20, 20)
    (60, 4080, 1)
    """
    fit = CHUNK_BYTES // max(frame_bytes, 1)
    if fit < batch:
        return max(fit, 1)
    return min(fit // batch, max(4096 // batch, 1)) * batch


def of_kind(outputs: Mapping[str, Output], kind: str, *, scalar: bool | None = None) -> Iterator[tuple[str, Output]]:
    """Return the outputs of a kind; with ``scalar`` only those that are one value per frame, or only the others."""
    for name, output in outputs.items():
        if output.kind == kind and (scalar is None or (not output.shape) == scalar):
            yield name, output


def spectra(outputs: Mapping[str, Output]) -> Iterator[tuple[str, str]]:
    """Return the outputs that are sums of spectra, a detector's element in each row, with the name of their axis.

    >>> energy = Output("const", (4096,), "<f8", "keV")
    >>> total = Output("acc", (4, 4096), "<i8", axes=(".", "energy"))
    >>> list(spectra({"spectrum": total, "energy": energy}))
    [('spectrum', 'energy')]
    """
    for name, output in of_kind(outputs, "acc"):
        axis = outputs.get(output.axes[-1]) if len(output.shape) == len(output.axes) == 2 else None
        if axis is not None and axis.kind == "const" and axis.units == "keV" and axis.shape == output.shape[1:]:
            yield name, output.axes[-1]


def joined(spans: Iterable[FileSpan]) -> list[FileSpan]:
    """Return the same frames in as few spans as can be, each key's by themselves, in the order of frames.

    Frames that were told of twice are there once, from the file whose span begins first.

    >>> joined([FileSpan("k", "file:///a.h5", "/d", first, n, first) for first, n in ((5, 5), (0, 5), (10, 5), (0, 8))])
    [FileSpan(key='k', uri='file:///a.h5', dataset='/d', first=0, n=15, offset=0)]
    """
    found: list[FileSpan] = []
    for span in sorted(spans, key=lambda each: (each.key, each.first)):
        last = found[-1] if found and found[-1].key == span.key else None
        end = 0 if last is None else last.first + last.n
        if last is not None and span.first <= end and _place(last) == _place(span):
            found[-1] = msgspec.structs.replace(last, n=max(end, span.first + span.n) - last.first)
            continue
        known = max(end - span.first, 0)
        if known < span.n:
            fresh = {"first": span.first + known, "n": span.n - known, "offset": span.offset + known}
            found.append(msgspec.structs.replace(span, **fresh))
    return found


def _place(span: FileSpan) -> tuple[str, str, int]:
    """Return where a span's frames are: frames of one place go on from each other."""
    return span.uri, span.dataset, span.offset - span.first


def named(spans: Iterable[FileSpan]) -> list[tuple[str, FileSpan]]:
    """Return each dataset that has frames once, with a name: the key, and a number if it has several.

    >>> [name for name, _ in named(FileSpan("k", f"file:///{n}.h5", "/d", n, 1, 0) for n in (0, 1, 1))]
    ['k_000001', 'k_000002']
    """
    found: dict[str, dict[tuple[str, str], FileSpan]] = {}
    for span in joined(spans):
        found.setdefault(span.key, {}).setdefault((span.uri, span.dataset), span)
    return [
        (key if len(datasets) == 1 else f"{key}_{number:06d}", span)
        for key, datasets in found.items()
        for number, span in enumerate(datasets.values(), 1)
    ]


def local_path(uri: str) -> Path:
    """Return the path that a ``file:`` URI names.

    >>> str(local_path("file://localhost/data/a%20b.h5"))
    '/data/a b.h5'
    """
    return Path(unquote(urlsplit(uri).path))
