"""A detector's growing HDF5 files as stream assets: which frames can be read, and the documents that say so.

Shared by all flyers. Indices count the detector's frames from 0 on over all of its files, and ``seq_nums`` (which
the RunEngine fills in) are those plus one. Tiled's consolidators want it so: they count on over the resources of a
data key. The place within one file is the index minus the first index that was promised of that file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import h5py
from event_model import StreamRange, compose_stream_resource

from ..workers.errors import DetectorError
from ..workers.files.references import STREAMED


@dataclass(frozen=True, slots=True, kw_only=True)
class FlyInfo:
    """What ``prepare`` is told, in the words of ophyd-async's TriggerInfo.

    ``n`` : events planned; ``livetime``, ``deadtime`` : s, exposure and pause of each; ``spare`` : events that may come
    beyond ``n``, of lines that are flown again; ``prefix`` : what the names of this scan's files begin with.
    """

    n: int
    trigger: Literal["external", "internal"] = "external"
    livetime: float
    deadtime: float = 0.0
    exposures_per_event: int = 1
    spare: int = 0
    prefix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LineInfo(FlyInfo):
    """What a trigger source is told before each line: ``n`` triggers from ``start`` on, one each ``step``, µm.

    ``encoder`` : number of the encoder that triggers; ``lines`` : how many such lines the scan has.
    """

    start: float
    step: float
    encoder: int
    lines: int = 1


@dataclass(frozen=True, slots=True)
class Look:
    """What a file shows now: ``frames`` that can be read, and each dataset's ``chunks``."""

    frames: int
    chunks: dict[str, tuple[int, ...]]


class StreamAssets:
    """The files of one detector during one scan.

    Parameters
    ----------
    datasets
        Data key → dataset in each file, frames along its first axis.
    file
        Says where the k-th file is (k = 0, 1, …).
    per_file
        Frames in each file but the last; 0: one file takes all.
    """

    def __init__(self, datasets: Mapping[str, str], file: Callable[[int], Path], *, per_file: int = 0) -> None:
        self.datasets = dict(datasets)
        self.emitted = 0
        self._file = file
        self._per_file = per_file
        self._readable = 0
        self._chunks: dict[int, dict[str, tuple[int, ...]]] = {}
        self._bundles: dict[int, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def readable(self) -> int:
        """Look at the files and return how many frames can be read in all."""
        with self._lock:
            while True:
                number = self._readable // self._per_file if self._per_file else 0
                look = self.look(self._file(number))
                if look is None:
                    return self._readable
                self._chunks[number] = look.chunks
                full = self._per_file > 0 and look.frames >= self._per_file
                frames = self._per_file if full else look.frames
                self._readable = max(self._readable, number * self._per_file + frames)
                if not full:
                    return self._readable

    def index(self) -> int:
        """Return up to which frame one ``collect`` may go: never beyond the file that it begins in.

        So each collect has one stream_datum per data key, all equally wide, as the RunEngine demands.
        """
        readable = self.readable()
        if not self._per_file:
            return readable
        return min(readable, (self.emitted // self._per_file + 1) * self._per_file)

    def documents(self, index: int | None = None) -> Iterator[tuple[str, Any]]:
        """Yield the documents of frames not yet promised, up to ``index`` at most."""
        stop = self.index()
        stop = stop if index is None else min(stop, index)
        if stop <= self.emitted:
            return
        number = self.emitted // self._per_file if self._per_file else 0
        if number not in self._bundles:
            self._bundles[number] = self._resources(number)
            for bundle in self._bundles[number].values():
                yield "stream_resource", bundle.stream_resource_doc
        indices = StreamRange(start=self.emitted, stop=stop)
        self.emitted = stop
        for bundle in self._bundles[number].values():
            yield "stream_datum", bundle.compose_stream_datum(indices)

    def last(self, key: str) -> Any:
        """Return the newest frame of a data key, decoded.

        Raises
        ------
        DetectorError
            Its file can't be read.
        """
        frame = self.readable() - 1
        number = frame // self._per_file if self._per_file else 0
        path = self._file(number)
        try:
            import hdf5plugin  # noqa: F401 - registers the detectors' compressions

            with h5py.File(path, "r", libver="latest", swmr=True) as file:
                return file[self.datasets[key]][frame - number * self._per_file]
        except (OSError, KeyError, IndexError) as error:
            raise DetectorError(f"{path}: frame {frame} can't be read: {error}") from None

    def _resources(self, number: int) -> dict[str, Any]:
        path = self._file(number).resolve()
        return {
            key: compose_stream_resource(
                mimetype="application/x-hdf5",
                uri=f"file://localhost{quote(str(path))}",
                data_key=key,
                parameters={"dataset": dataset, "swmr": True, "chunk_shape": list(self._chunks[number][key])},
            )
            for key, dataset in self.datasets.items()
        }

    def look(self, path: Path) -> Look | None:
        """Open a file and see what it holds; None if there is nothing to be read yet."""
        try:
            with h5py.File(path, "r", libver="latest", swmr=True) as file:
                found = {key: file[dataset] for key, dataset in self.datasets.items()}
                frames = min(dataset.shape[0] for dataset in found.values())
                chunks = {key: tuple(dataset.chunks or dataset.shape) for key, dataset in found.items()}
        except (OSError, KeyError):
            # Not there yet, or its writer hasn't got far enough to let others look: no frames so far.
            return None
        return Look(frames, chunks) if frames else None


class StreamedAssets(StreamAssets):
    """Frames that are streamed and kept in no file: one for each trigger that was given, whoever saw it.

    The detector doesn't count them. It promises as many as others do, and these are the trigger source's.

    Parameters
    ----------
    key
        The data key.
    endpoint, protocol, series
        Where they are streamed, in which protocol, and as which series of the detector's.
    planned, most
        Frames that were planned, and frames that may come.
    """

    def __init__(self, key: str, endpoint: str, protocol: str, series: int, *, planned: int, most: int) -> None:
        super().__init__({key: ""}, _no_file)
        self._where = (endpoint, protocol, series)
        self._planned = planned
        self._most = most

    def readable(self) -> int:
        """Return how many frames there may be."""
        return self._most

    def documents(self, index: int | None = None) -> Iterator[tuple[str, Any]]:
        """Yield the documents of frames not yet promised, up to ``index``; alone, of those that were planned."""
        yield from super().documents(self._planned if index is None else index)

    def last(self, key: str) -> Any:
        """Raise a DetectorError: there is no frame to be read."""
        raise DetectorError(f"{key}: its frames are streamed and kept in no file")

    def _resources(self, number: int) -> dict[str, Any]:
        endpoint, protocol, series = self._where
        return {
            key: compose_stream_resource(
                mimetype=STREAMED, uri=endpoint, data_key=key, parameters={"protocol": protocol, "series": series}
            )
            for key in self.datasets
        }


def _no_file(number: int) -> Path:
    raise DetectorError(f"file {number} of a detector that keeps none")
