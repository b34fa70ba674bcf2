"""What there is without the kernel: decoders alone, and behind the fastest of them pyFAI, scipy and numpy."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import bitshuffle
import dectris.compression
import h5py
import hdf5plugin
import numpy as np
from bslz4_to_sparse import chunk2sparse, chunk2sparseCSC

from .frames import Sample
from .pyfai import Integrators
from .tasks import Answer, Array, Row, crop, moments, region_sums, regions, shrunk
from .timing import Competitor

PYFAI = {
    "no": [("no", "csc"), ("no", "csr"), ("bbox", "csr")],
    "variance": [("no", "csc"), ("no", "csr"), ("bbox", "csr")],
    "bbox": [("bbox", "csc"), ("bbox", "csr")],
    "full": [("full", "csc"), ("full", "csr")],
    "cake": [("no", "csc"), ("no", "csr")],
}
"""Per task the methods of pyFAI's that are tried; bbox,csr is its default in one dimension."""

_SPLITTING = {"bbox": "bbox", "full": "full"}


class Baselines:
    """Competitors of the kernel's for one sample."""

    def __init__(self, sample: Sample, integrators: Integrators) -> None:
        self.sample, self.integrators = sample, integrators
        self.detector = sample.detector
        self.mask = self.detector.mask()
        self.counted = ~self.mask

    def rows(self, tasks: Sequence[str]) -> Iterator[Row]:
        """Yield those that compete at these tasks."""
        if "decode" in tasks:
            yield from self._decoders()
        for task in tasks:
            yield from (self._integrate(task, *method) for method in PYFAI.get(task, ()))
        for split in {"no", "bbox"}.intersection(tasks):
            yield from self._sparse(split)
        yield from (row for row in self._numpy() if row.task in tasks)

    def chunk(self, turn: int) -> bytes:
        """Return the chunk of that turn."""
        return self.sample.chunks[turn % len(self.sample.chunks)]

    def frame(self, turn: int) -> Array:
        """Decode the chunk of that turn with the fastest decoder that there is."""
        dtype = self.sample.dtype
        plain = dectris.compression.decompress(self.chunk(turn), "bslz4", elem_size=dtype.itemsize)
        return np.frombuffer(plain, dtype).reshape(self.detector.shape)

    def _decoders(self) -> Iterator[Row]:
        shape, dtype = self.detector.shape, self.sample.dtype

        def one(engine: str, call: Callable[[int], Any]) -> Row:
            return Row("decode", engine, Competitor(call), lambda frame: {"frame": frame})

        def shuffled(turn: int) -> Array:
            blocks = np.frombuffer(self.chunk(turn), np.uint8, offset=12)
            frame: Array = bitshuffle.decompress_lz4(blocks, shape, dtype, 0)
            return frame

        yield one("dectris-compression", self.frame)
        yield one("bitshuffle", shuffled)
        dataset = self._stored()
        yield one("hdf5plugin", lambda turn: dataset[turn % len(self.sample.chunks)])
        sparse = chunk2sparse(self.counted.astype(np.uint8), dtype)

        def dense(result: Any) -> Answer:
            n, (values, where) = result
            frame = np.zeros(self.detector.pixels, dtype)
            frame[where[:n]] = values[:n]
            return {"counted": frame.reshape(shape)}

        yield Row("decode", "bslz4-to-sparse", Competitor(lambda turn: sparse(self.chunk(turn), 0)), dense)

    def _stored(self) -> Any:
        """Return a dataset in memory that holds the chunks as they are."""
        shape = self.detector.shape
        file = h5py.File(io.BytesIO(), "w")
        data = file.create_dataset(
            "data",
            (len(self.sample.chunks), *shape),
            self.sample.dtype,
            chunks=(1, *shape),
            **hdf5plugin.Bitshuffle(),
        )
        for k, chunk in enumerate(self.sample.chunks):
            data.id.write_direct_chunk((k, 0, 0), chunk)
        return data

    def _integrate(self, task: str, split: str, algorithm: str) -> Row:
        dimensions, variance = 2 if task == "cake" else 1, task == "variance"

        def call(turn: int) -> Any:
            return self.integrators.run(dimensions, split, algorithm, self.frame(turn), variance=variance)

        def answer(result: Any) -> Answer:
            given = {"intensity": result.intensity} | ({"sem": result.sem} if variance else {})
            return given if split == _SPLITTING.get(task, "no") else {}  # else it answers another question

        return Row(task, f"pyFAI {split},{algorithm}", Competitor(call), answer)

    def _sparse(self, split: str) -> Iterator[Row]:
        # No pixel is above it: the list of those isn't what is asked for. It is a C int.
        none = min(np.iinfo(self.sample.dtype).max, np.iinfo(np.int32).max)
        engine = self.integrators.engine(1, split, "csc")
        product = chunk2sparseCSC(self.counted.astype(np.uint8), engine, self.sample.dtype)

        def fused(turn: int) -> Array:
            signal: Array = product(self.chunk(turn), none)[2]
            return signal

        matrix = self.integrators.matrix(1, split)

        def multiplied(turn: int) -> Array:
            signal: Array = matrix @ self.frame(turn).ravel().astype(np.float32)
            return signal

        for engine_name, call in (("bslz4-to-sparse", fused), ("scipy CSR", multiplied)):
            yield Row(split, engine_name, Competitor(call), lambda signal: {"signal": signal})

    def _numpy(self) -> Iterator[Row]:
        boxes, cut = regions(self.detector), crop(self.detector).slices

        def summed(turn: int) -> Array:
            return region_sums(self.frame(turn), self.mask, boxes)

        def together(turn: int) -> tuple[Any, Array, Answer]:
            frame = self.frame(turn)
            pattern = self.integrators.run(1, "no", "csc", frame)
            return pattern, region_sums(frame, self.mask, boxes), moments(frame, self.mask)

        yield Row("roi", "numpy", Competitor(summed), lambda sums: {"regions": sums})
        yield Row("crop", "numpy", Competitor(lambda k: self.frame(k)[cut].copy()), lambda each: {"crop": each})
        yield Row("moments", "numpy", Competitor(lambda k: moments(self.frame(k), self.mask)), dict)
        yield Row("shrink", "numpy", Competitor(lambda k: shrunk(self.frame(k), self.mask)), lambda f: {"shrunk": f})
        yield Row(
            "all",
            "pyFAI no,csc + numpy",
            Competitor(together),
            lambda given: {"intensity": given[0].intensity, "regions": given[1], **given[2]},
        )
