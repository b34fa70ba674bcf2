"""Documents for detectors' files that no Bluesky run recorded, so that they are reduced as a run's are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import msgspec
from event_model import compose_run

from ..workers import recipes as recipe_rules
from ..workers.errors import FileError, ReductionError, SettingsError
from ..workers.recipes import Recipe

if TYPE_CHECKING:
    import h5py


Document = dict[str, Any]

KNOWN = ("entry/instrument/detector/data", "entry/data/data", "entry/measurement/data", "exchange/data")
"""Where Lambda, Eiger, ESRF and APS files have their frames: looked at first."""


@dataclass(frozen=True, slots=True)
class Frames:
    """One file's frames: ``n`` of ``shape`` (rows, columns) and ``dtype``, stored in pieces of ``chunks``."""

    path: Path
    dataset: str
    n: int
    shape: tuple[int, int]
    dtype: str
    chunks: tuple[int, ...]


class Writer(Protocol):
    """Records documents; :func:`~haltere.callbacks.catalog.raw_writer` is one."""

    def __call__(self, name: str, doc: Document) -> None:
        """Take a document."""

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything taken is recorded."""


class Dispatch(Protocol):
    """Tells the pool what documents say; :class:`~haltere.callbacks.dispatch.Dispatcher` is one."""

    def __call__(self, name: str, doc: Document) -> Any:
        """Take a document."""


class Follow(Protocol):
    """Knows when a run has been reduced."""

    def wait(self, run: str, timeout: float = 60.0) -> Document:
        """Return the processed run's stop document."""


def reduce_files(
    files: Sequence[Path | str],
    recipes: Sequence[Recipe],
    *,
    write: Writer,
    dispatch: Dispatch,
    follow: Follow,
    timeout: float,
    dataset: str | None = None,
    name: str = "detector",
    md: Mapping[str, Any] | None = None,
) -> tuple[str, Document]:
    """Reduce recorded files by a running pool, and wait until every frame is accounted for.

    Parameters
    ----------
    files, recipes, dataset, name, md
        See :func:`recorded_run`.
    write, dispatch, follow
        The catalog's writer, and what speaks to the pool. The pool must be allowed to read the files' folders.
    timeout
        s, for the reduction.

    Returns
    -------
    The raw run's uid and the processed run's stop document.
    """
    raw_uid = ""
    for kind, doc in recorded_run(files, recipes, dataset=dataset, name=name, md=md):
        raw_uid = raw_uid or doc["uid"]
        write(kind, doc)
        dispatch(kind, doc)
    stop = follow.wait(raw_uid, timeout)
    if not write.flush(timeout):
        raise SettingsError(f"run {raw_uid} was reduced, but isn't in the catalog after {timeout:g} s: is it running?")
    return raw_uid, stop


def recorded_run(
    files: Sequence[Path | str],
    recipes: Sequence[Recipe],
    *,
    dataset: str | None = None,
    name: str = "detector",
    md: Mapping[str, Any] | None = None,
) -> Iterator[tuple[str, Document]]:
    """Return the documents of a run in which detector ``name`` wrote these files. All is checked before the first one.

    Parameters
    ----------
    files
        HDF5 files with a dataset of frames (n, rows, columns), in the order of their frames.
    recipes
        What to make of them; their source is ``name``.
    dataset
        Where the frames are in each file; by default they are looked for.
    md
        Goes into the start document.

    Raises
    ------
    FileError
        A file is missing or no HDF5, has no frames or several datasets that may be, or doesn't fit the first one.
    ReductionError
        A recipe is wrong, or of another source.
    """
    recipes = recipe_rules.parse(recipes)
    for recipe in recipes:
        if recipe.source != name:
            raise ReductionError(f"recipe {recipe.name} is for {recipe.source!r}, the files are of {name!r}")
    return _documents(find_all(files, dataset), recipes, name, md or {})


def _documents(
    found: Sequence[Frames], recipes: Sequence[Recipe], name: str, md: Mapping[str, Any]
) -> Iterator[tuple[str, Document]]:
    total, key = sum(each.n for each in found), f"{name}_image"
    run: Any = compose_run(
        metadata={
            "plan_name": "recorded",
            "detectors": [name],
            "num_points": total,
            "recipes": [msgspec.to_builtins(recipe) for recipe in recipes],
            **md,
        }
    )
    yield "start", dict(run.start_doc)
    described = {
        "source": f"file:{found[0].dataset}",
        "dtype": "array",
        "dtype_numpy": found[0].dtype,
        "shape": list(found[0].shape),
        "external": "STREAM:",
        "object_name": name,
    }
    stream = run.compose_descriptor(
        name="primary",
        data_keys={key: described},
        object_keys={name: [key]},
        configuration={name: {"data": {}, "timestamps": {}, "data_keys": {}}},
        hints={name: {"fields": []}},
    )
    yield "descriptor", dict(stream.descriptor_doc)
    first = 0
    for each in found:
        resource = run.compose_stream_resource(
            mimetype="application/x-hdf5",
            uri=f"file://localhost{quote(str(each.path))}",
            data_key=key,
            # One chunk shape for all files, as the catalog joins them; it need not be the files' own.
            parameters={"dataset": each.dataset, "swmr": False, "chunk_shape": [1, *each.shape]},
        )
        yield "stream_resource", dict(resource.stream_resource_doc)
        datum = resource.compose_stream_datum(
            indices={"start": 0, "stop": each.n},
            seq_nums={"start": first + 1, "stop": first + each.n + 1},
            descriptor=stream.descriptor_doc,
        )
        yield "stream_datum", dict(datum)
        first += each.n
    # The frames are events of the stream, although there is no Event for them.
    yield "stop", {**run.compose_stop(), "num_events": {"primary": total}}


def find_all(files: Sequence[Path | str], dataset: str | None = None) -> list[Frames]:
    """Return each file's frames; they have one shape and type.

    Raises
    ------
    FileError
        See :func:`recorded_run`.
    """
    if not files:
        raise FileError("no file to reduce: name at least one")
    paths = [Path(each).resolve() for each in files]
    if twice := sorted({str(each) for each in paths if paths.count(each) > 1}):
        raise FileError(f"{twice[0]} is named twice")
    found = [find_frames(paths[0], dataset)]
    for path in paths[1:]:
        found.append(find_frames(path, found[0].dataset))
        for what in ("shape", "dtype"):
            here, there = getattr(found[-1], what), getattr(found[0], what)
            if here != there:
                raise FileError(f"{path}: {what} {here}, but {found[0].path.name} has {there}; reduce them apart")
    return found


def find_frames(path: Path, dataset: str | None = None) -> Frames:
    """Return what ``path`` has at ``dataset``, or wherever its frames are.

    Raises
    ------
    FileError
        See :func:`recorded_run`.
    """
    import h5py

    if not path.is_file():
        raise FileError(f"{path}: there is no such file")
    if not h5py.is_hdf5(path):
        raise FileError(f"{path} is no HDF5 file; single images (tif, edf, cbf) must first be put into one")
    try:
        with h5py.File(path, "r", locking=False) as file:
            name = _search(file, path) if dataset is None else dataset.strip("/")
            with suppress(KeyError):
                if _has_frames(frames := file[name]):
                    return _described(path, name, frames)
            there = _listed(_candidates(file))
            raise FileError(f"{path}: /{name} is no dataset of frames (n, rows, columns); {there}")
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path} can't be read: {error} (is it still being written?)") from None


def _search(file: h5py.File, path: Path) -> str:
    import h5py

    candidates = _candidates(file)
    known = [name for name in KNOWN if name in candidates]
    if len(candidates) == 1 or known:
        return (known or list(candidates))[0]
    if candidates:
        raise FileError(f"{path}: {_listed(candidates)}; name one with --dataset")
    data = file.get("entry/data")
    if data is not None and any(isinstance(data.get(key, getlink=True), h5py.ExternalLink) for key in data):
        raise FileError(f"{path} is a master file: name the data files that it links to, in their order")
    raise FileError(f"{path}: {_listed(candidates)}")


def _has_frames(item: Any) -> bool:
    import h5py

    return isinstance(item, h5py.Dataset) and item.ndim == 3 and item.dtype.kind in "uif" and item.shape[0] > 0


def _candidates(file: h5py.File) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}

    def visit(name: str, item: Any) -> None:
        if _has_frames(item):
            found[name] = item.shape

    file.visititems(visit)
    return found


def _listed(candidates: Mapping[str, tuple[int, ...]]) -> str:
    if not candidates:
        return "it has no dataset of frames (n, rows, columns)"
    shown = [f"/{name} {'×'.join(map(str, shape))}" for name, shape in list(candidates.items())[:8]]
    return f"it has {', '.join(shown)}{' …' if len(candidates) > 8 else ''}"


def _described(path: Path, name: str, frames: h5py.Dataset) -> Frames:
    n, rows, columns = frames.shape
    return Frames(path, f"/{name}", n, (rows, columns), frames.dtype.str, frames.chunks or (1, rows, columns))
