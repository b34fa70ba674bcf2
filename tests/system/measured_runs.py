"""Runs that were measured, in a session's folder: what is left of a beamtime when all processes are gone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from haltere.backfill import backfill
from haltere.callbacks.dispatch import Dispatcher
from haltere.callbacks.rewriting import Rewriting
from haltere.workers.ledger.rows import BatchRow
from haltere.workers.settings import Settings, load
from haltere.workshop import Workshop

from ..callbacks.conftest import Measured

PONI = {"dist": 0.1, "poni1": 4e-4, "poni2": 4e-4, "pixel1": 1e-4, "pixel2": 1e-4, "wavelength": 1e-10}
XRD: dict[str, Any] = {"name": "xrd", "reducer": "azimuthal", "source": "eiger", "params": {"poni": PONI, "bins": 16}}
POSITIONS = {"name": "positions", "reducer": "columns", "source": "pilc"}


@dataclass
class Beamtime:
    """A session's folder, and a workshop on it."""

    directory: Path
    shop: Workshop

    @classmethod
    def settings(cls, directory: Path) -> Settings:
        """Return what names the folder."""
        return load(directory=directory, workers=1)

    def measure(self, *, stop: bool = True, **options: Any) -> Scan:
        """Record a run: its files, and its documents in the catalog. No pool is told of it."""
        folder = self.directory / "raw"
        folder.mkdir(exist_ok=True)
        scan = Scan(**{"folder": folder, "recipes": [XRD, POSITIONS], **options})
        write = Rewriting(lambda: self.shop.catalog.raw, batch_size=1 if not stop else 1000)
        for name, doc in scan.documents(step=scan.per_file):
            if name != "stop" or stop:
                write(name, dict(doc))
        return scan

    def tell(self, scan: Scan, until: int) -> None:
        """Tell the pool of a run's first documents, as a session does that is killed then."""
        with closing(Dispatcher(self.shop.pool.endpoints.sink)) as dispatcher:
            for name, doc in list(scan.documents())[:until]:
                dispatcher(name, dict(doc))
            assert dispatcher.wait_idle(60)

    def rows(self, processed: str, stream: str) -> dict[int, BatchRow]:
        """Return what the ledger has of a processed run's detector, by the batches' first frames."""
        reader = self.shop.reader()
        assert reader is not None
        with closing(reader):
            row = reader.run(processed)
            assert row is not None
            (opened,) = [each for each in reader.streams(row.run) if each.stream == stream]
            return {each.first: each for each in reader.batches(row.run, stream, opened.cfg, limit=10_000)}

    def documents(self, processed: str) -> Iterator[tuple[str, Any]]:
        """Give a processed run's documents as the recorder composes them."""
        from haltere.callbacks.recording import Recorder
        from haltere.workers.wire.documents import unpack

        reader = self.shop.reader()
        assert reader is not None
        with closing(reader):
            found = Recorder(reader).find(processed)
            assert found is not None
            yield from (unpack(document) for document in found.documents)


@dataclass
class Scan(Measured):
    """A scan whose images lie in compressed chunks, one a frame, as an Eiger writes them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for number, first in enumerate(range(0, self.frames, self.per_file)):
            with h5py.File(self.image_file(number), "w") as file:
                file.create_dataset(
                    "/entry/data/data",
                    data=self.images[first : first + self.per_file],
                    chunks=(1, *self.images.shape[1:]),
                    **hdf5plugin.Bitshuffle(cname="lz4"),
                )

    def image_file(self, number: int) -> Path:
        """Return the Eiger's file of that number."""
        return self.folder / f"{self.uid}_{number}.h5"

    def spoil(self, frame: int) -> bytes:
        """Damage a frame in its file; return what was there, for :meth:`mend`."""
        with h5py.File(self.image_file(frame // self.per_file)) as file:
            chunk = file["/entry/data/data"].id.get_chunk_info(frame % self.per_file)
        return self._write(frame, chunk.byte_offset, b"\xff" * chunk.size)

    def mend(self, frame: int, data: bytes) -> None:
        """Put back what :meth:`spoil` has damaged."""
        with h5py.File(self.image_file(frame // self.per_file)) as file:
            chunk = file["/entry/data/data"].id.get_chunk_info(frame % self.per_file)
        self._write(frame, chunk.byte_offset, data)

    def _write(self, frame: int, offset: int, data: bytes) -> bytes:
        with self.image_file(frame // self.per_file).open("r+b") as file:
            file.seek(offset)
            before = file.read(len(data))
            file.seek(offset)
            file.write(data)
        return before


def same_bits(one: BatchRow, other: BatchRow) -> bool:
    """Say whether two results are the same to the bit."""
    return one.arrays == other.arrays and bytes(one.payload) == bytes(other.payload)


def table(run: Any, stream: str) -> np.ndarray[Any, Any]:
    """Return what the catalog has of a processed run's stream: (frame, status) per event."""
    data = run[stream].base["internal"].read()
    return np.stack([data["frame"].to_numpy(), data["status"].to_numpy()], axis=1)


def main(directory: Path, frames: int) -> None:
    """Measure a run, say its uid, and backfill it: to be killed meanwhile."""
    (directory / "catalog").mkdir()
    (directory / "catalog" / "catalog.db").touch()
    with Workshop.open(Beamtime.settings(directory)) as shop:
        scan = Beamtime(directory, shop).measure(frames=frames, per_file=1000)
        print(scan.uid, flush=True)
        backfill(shop, scan.uid)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
