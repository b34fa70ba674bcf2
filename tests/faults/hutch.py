"""A detector and its card as the pool sees them: a stream, growing files, documents. No RunEngine, no devices."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any, Final, Self

import h5py
import hdf5plugin
import msgspec
import zmq
from event_model import compose_run

from haltere.devices.growing import create, reveal
from haltere.workers.files.references import STREAMED
from haltere.workers.wire import simplon

from .scan import SHAPE, Scan, chunks, positions

SERIES: Final = 7
DATA: Final = "/entry/data/data"

Document = dict[str, Any]
Listener = Callable[[str, Document], Any]


class Hutch:
    """Flies one scan in a thread of its own, at the scan's rate.

    Parameters
    ----------
    scan
        What.
    folder
        Where the files go; made if it isn't there.
    tell
        Takes the raw run's documents.
    ready
        Waits, after the descriptor, until the first frame may be taken: while nobody knows that they are to be spilled
        those that find no room are dropped.
    """

    def __init__(self, scan: Scan, folder: Path, tell: Listener, ready: Callable[[], Any] = lambda: None) -> None:
        self.scan = scan
        self.uid = str(uuid.uuid4())
        self.unsent = 0
        """Frames that found nobody to take them off the stream."""
        self._folder = folder
        self._tell = tell
        self._ready = ready
        self._flown = 0
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._context = zmq.Context()
        self._stream = self._context.socket(zmq.PUSH)
        self._stream.linger = 0
        self._stream.sndhwm = 50
        self.endpoint = f"tcp://127.0.0.1:{self._stream.bind_to_random_port('tcp://127.0.0.1')}"
        self._thread = threading.Thread(target=self._work, name="hutch", daemon=True)

    def start(self) -> None:
        """Begin to fly."""
        self._folder.mkdir(parents=True, exist_ok=True)
        chunks(self.scan.frames)  # made now, so that the first frames don't come late and in a burst
        self._thread.start()

    @property
    def flown(self) -> int:
        """Frames that have been taken."""
        return self._flown

    def wait_flown(self, frames: int, timeout: float = 60.0) -> None:
        """Wait until so many frames have been taken."""
        with self._changed:
            reached = self._changed.wait_for(lambda: self._flown >= frames or self._error, timeout)
        self._raise(bool(reached))

    def wait(self, timeout: float = 120.0) -> None:
        """Wait until all documents are out, and all files are there."""
        self._thread.join(timeout)
        self._raise(not self._thread.is_alive())

    def close(self) -> None:
        """End the flight, if it goes on."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._context.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *of_the_flight: object) -> None:
        self.close()

    def _raise(self, reached: bool) -> None:
        if self._error is not None:
            raise self._error
        if not reached:
            raise TimeoutError(f"the hutch hangs after {self._flown} frames")

    # --- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            for name, doc in self._flight():
                self._tell(name, doc)
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _flight(self) -> Iterator[tuple[str, Document]]:
        """Take frames; yield documents as a run's devices do, of what the files hold by then, or should."""
        scan = self.scan
        run: Any = compose_run(uid=self.uid, metadata=start_document(scan))
        yield "start", dict(run.start_doc)
        stream = run.compose_descriptor(name="primary", **described(self.endpoint))
        yield "descriptor", dict(stream.descriptor_doc)
        self._ready()
        card = Card(self._folder / "pilc.h5", scan)
        columns = [resource(run, f"pilc_{axis}", card.path, f"/{axis}") for axis in "xy"]
        for each in columns:
            yield "stream_resource", dict(each.stream_resource_doc)
        began = monotonic()
        for number, frames in enumerate((range(scan.split), range(scan.split, scan.frames)), 1):
            path = self._folder / f"eiger_{number}.h5"
            file = Images(path, hidden=number == 2 and scan.hides) if scan.stored else None
            image = resource(run, "eiger_image", path, DATA) if scan.stored else self._streamed(run)
            yield "stream_resource", dict(image.stream_resource_doc)
            for first in range(frames.start, frames.stop, scan.step):
                stop = min(first + scan.step, frames.stop)
                for frame in range(first, stop):
                    self._closing.wait(max(began + frame / scan.rate - monotonic(), 0.0))
                    self._expose(frame, file)
                if file is not None:
                    file.flush()
                card.extend(stop)
                for source, base in ((image, frames.start), *((each, 0) for each in columns)):
                    datum = source.compose_stream_datum(
                        indices={"start": first - base, "stop": stop - base},
                        seq_nums={"start": first + 1, "stop": stop + 1},
                        descriptor=stream.descriptor_doc,
                    )
                    yield "stream_datum", dict(datum)
            if file is not None:
                file.close()
        card.close()
        if scan.cut and file is not None:
            file.cut()
            file.show()
        yield "stop", dict(run.compose_stop())
        if scan.late and file is not None:
            self._closing.wait(scan.late)
            file.show()

    def _streamed(self, run: Any) -> Any:
        return run.compose_stream_resource(mimetype=STREAMED, uri=self.endpoint, data_key="eiger_image", parameters={})

    def _expose(self, frame: int, file: Images | None) -> None:
        scan = self.scan
        blob = chunks(scan.frames)[frame]
        if frame not in scan.unstreamed:
            image = simplon.Image(SERIES, frame, SHAPE, "<u2", "bslz4", blob, 0, 1, 1, len(blob))
            try:
                self._stream.send_multipart(simplon.encode(image), zmq.NOBLOCK)
            except zmq.Again:  # a detector keeps little, and waits for nobody
                self.unsent += 1
        if file is not None and frame < scan.frames - scan.short:
            file.append(blob)
        with self._changed:
            self._flown = frame + 1
            self._changed.notify_all()


def start_document(scan: Scan) -> Document:
    """Return what the start document says."""
    return {
        "plan_name": "fly_grid",
        "dwell": 1 / scan.rate,
        "shape": [scan.rows, scan.columns],
        "extents": [[0, scan.rows - 1], [0, scan.columns - 1]],
        "snaking": [False, True],
        "hints": {"dimensions": [[["pilc_y"], "primary"], [["pilc_x"], "primary"]], "gridding": "rectilinear"},
        "recipes": [msgspec.to_builtins(recipe) for recipe in scan.recipes],
    }


def described(endpoint: str) -> Document:
    """Return what the descriptor says."""
    image = {"source": "sim", "dtype": "array", "dtype_numpy": "<u2", "shape": list(SHAPE), "external": "STREAM:"}
    scalar = {"source": "sim", "dtype": "number", "dtype_numpy": "<f8", "shape": [], "external": "STREAM:"}
    lane = {"eiger_stream_endpoint": endpoint, "eiger_stream_protocol": "simplon-1", "eiger_series": SERIES}
    keys = {key: {"source": "sim", "dtype": "string", "shape": []} for key in lane}
    return {
        "data_keys": {
            "eiger_image": {**image, "object_name": "eiger"},
            "pilc_x": {**scalar, "units": "um", "object_name": "pilc"},
            "pilc_y": {**scalar, "units": "um", "object_name": "pilc"},
        },
        "object_keys": {"eiger": ["eiger_image"], "pilc": ["pilc_x", "pilc_y"]},
        "configuration": {"eiger": {"data": lane, "timestamps": dict.fromkeys(lane, 0.0), "data_keys": keys}},
    }


def resource(run: Any, key: str, path: Path, dataset: str) -> Any:
    """Compose the stream resource of a data key."""
    return run.compose_stream_resource(
        mimetype="application/x-hdf5",
        uri=f"file://localhost{path}",
        data_key=key,
        parameters={"dataset": dataset, "swmr": True, "chunk_shape": [1]},
    )


class Images:
    """The Eiger's file: it grows by a chunk per frame. A hidden one has another name until :meth:`show`."""

    def __init__(self, path: Path, *, hidden: bool) -> None:
        self.path = path
        self._written_to = path.with_name(f"not-yet-{path.name}") if hidden else path
        self._file = create(self._written_to)
        self._data = self._file.create_dataset(
            DATA, (0, *SHAPE), "<u2", maxshape=(None, *SHAPE), chunks=(1, *SHAPE), **hdf5plugin.Bitshuffle()
        )
        reveal(self._file, self._written_to)

    def append(self, blob: bytes) -> None:
        """Write a frame."""
        n = self._data.shape[0]
        self._data.resize(n + 1, 0)
        self._data.id.write_direct_chunk((n, 0, 0), blob)

    def flush(self) -> None:
        """Let readers see what was written."""
        self._data.flush()

    def close(self) -> None:
        """Let it be whole."""
        self._file.close()

    def cut(self) -> None:
        """Take its second half away."""
        os.truncate(self._written_to, self._written_to.stat().st_size // 2)

    def show(self) -> None:
        """Give it its name."""
        self._written_to.rename(self.path)


class Card:
    """The PiLC's file: two columns that grow."""

    def __init__(self, path: Path, scan: Scan) -> None:
        self.path = path
        self._file: h5py.File = create(path)
        self._values = positions(scan.rows, scan.columns)
        for axis in self._values:
            self._file.create_dataset(axis, (0,), "<f8", maxshape=(None,), chunks=(1024,))
        reveal(self._file, path)

    def extend(self, stop: int) -> None:
        """Write the values up to a frame, and let readers see them."""
        for axis, values in self._values.items():
            data = self._file[axis]
            first = data.shape[0]
            data.resize(stop, 0)
            data[first:] = values[first:stop]
            data.flush()

    def close(self) -> None:
        """Let it be whole."""
        self._file.close()
