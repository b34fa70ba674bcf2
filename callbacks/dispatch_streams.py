"""What documents say of a detector's frames: which there are, and in which files they lie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import msgspec
import numpy as np

from ..workers.errors import WireError
from ..workers.intervals import IntervalSet
from ..workers.wire.messages import MAX_BATCH, MAX_CONTROL, Expect, FileSpan, InputSpec, Policy, decode, encode

BATCH_SECONDS: Final = 0.1
"""A batch holds about this long a piece of the scan: a result is never older than that by batching alone."""

DEFAULT_BATCH: Final = 16
BATCH_BYTES: Final = 288 << 20
"""Most bytes of a batch, not compressed: 16 frames of an Eiger 4M at 32 bits, which the kernel walks over together.
Compressed, as they are in the ring, several such batches find room in its 256 MiB, so that in an overload whole ones
can be left out; if frames compress so badly that they don't, `haltere status` says so."""
MAX_SPANS: Final = 256
MAX_EXPECT: Final = MAX_CONTROL - 64
"""Most bytes of an Expect before it is numbered."""
BEYOND: Final = 2**40
"""No frame has this number."""
UNNUMBERED: Final = 0
"""Serial of a message until the window numbers it."""


@dataclass(slots=True)
class File:
    """A stream resource. ``base`` is the index that its first frame was given. Without a URI it is no file."""

    key: str
    uri: str
    dataset: str
    base: int | None = None


@dataclass(slots=True)
class Key:
    """A data key: which frames were promised, and where they lie."""

    promised: IntervalSet = field(default_factory=IntervalSet)
    spans: list[FileSpan] = field(default_factory=list)
    """Of frames that no Expect has named yet."""
    rows: int = 0
    """Frames in all its files so far."""

    def promise(self, file: File, first: int, n: int, index: int) -> bool:
        """Take ``n`` frames from ``first`` on, which lie from ``index`` on; return whether they are new."""
        if file.base is None:
            # Indices count within the resource. Some devices count over all the files of a key: then a later file's
            # first index is what the files before it hold.
            file.base = index if index == self.rows else 0
        self.rows += n
        if self.promised.gaps(first, first + n) != [(first, first + n)]:
            return False
        self.promised.add(first, first + n)
        if not file.uri:
            return True
        offset = index - file.base
        last = self.spans[-1] if self.spans else None
        if (
            last is not None
            and (last.uri, last.dataset) == (file.uri, file.dataset)
            and last.first + last.n == first
            and last.offset + last.n == offset
        ):
            self.spans[-1] = msgspec.structs.replace(last, n=last.n + n)
        else:
            self.spans.append(FileSpan(file.key, file.uri, file.dataset, first, n, offset))
        return True


@dataclass(slots=True)
class Stream:
    """A detector in a run."""

    name: str
    keys: dict[str, Key]
    policy: Policy = "drop"
    next: int = 0
    """The first frame that no Expect has named yet."""
    refused: bool = False
    """Whether what its documents say can't be told to the pool; its further frames are left out."""

    def promised(self) -> int:
        """Return where the frames end that every key has promised without a gap from ``next`` on."""
        if self.refused:
            return self.next
        gaps = (key.promised.gaps(self.next, BEYOND) for key in self.keys.values())
        return min((each[0][0] if each else BEYOND for each in gaps), default=self.next)

    def expect(self, run: str) -> Expect:
        """Take what one message can say of the frames that no Expect has named yet; its serial is 0.

        Raises
        ------
        WireError
            Not even of one frame can it be said where it lies. The stream is refused from then on.
        """
        first, stop = self.next, self.promised()
        while True:
            spans = [cut(span, first, stop) for key in self.keys.values() for span in key.spans]
            files = [span for span in spans if span is not None]
            message = Expect(UNNUMBERED, run, self.name, first, stop, files)
            size = len(encode(message))
            if len(files) <= MAX_SPANS and size <= MAX_EXPECT:
                break
            if stop - first == 1:
                self.refused = True
                raise WireError(
                    f"frame {first} lies in {len(files)} files or datasets, to name them takes {size} bytes, and "
                    f"{MAX_SPANS} and {MAX_EXPECT} can be: fewer data keys, or shorter paths, would do"
                )
            stop = first + (stop - first) // 2
        try:
            decode(encode(message))
        except WireError:
            self.refused = True
            raise
        self.next = stop
        for key in self.keys.values():
            rest = [cut(span, stop, BEYOND) for span in key.spans]
            key.spans = [span for span in rest if span is not None]
        return message


def input_spec(key: str, described: Mapping[str, Any]) -> InputSpec:
    """Return a data key's shape and type of one frame.

    Raises
    ------
    ValueError
        Its type isn't a number's, or its shape isn't fixed.

    >>> input_spec("det_image", {"shape": [1, 514, 1030], "dtype_numpy": "<u2"})
    InputSpec(key='det_image', shape=(514, 1030), dtype='<u2')
    """
    shape = list(described.get("shape") or ())
    if any(not isinstance(n, int | np.integer) for n in shape):
        raise ValueError(f"shape {shape} isn't fixed")
    if shape[:1] == [1]:
        shape = shape[1:]
    named = described.get("dtype_numpy")
    if not isinstance(named, str):
        raise ValueError(f"dtype_numpy {named!r} isn't one number's; the device must describe it")
    dtype = np.dtype(named)
    if dtype.kind not in "biuf":
        raise ValueError(f"type {dtype} isn't a number's")
    return InputSpec(key, tuple(int(n) for n in shape), dtype.str)


def batch_size(dwell: Any, inputs: Iterable[InputSpec] = ()) -> int:
    """Return how many frames go together, for this dwell in seconds and frames that consist of ``inputs``.

    >>> batch_size(0.005), batch_size(1.0), batch_size(1e-4), batch_size(None)
    (20, 1, 64, 16)
    >>> large = [InputSpec("eiger_image", (2167, 2070), "<u4")]
    >>> batch_size(0.005, large), batch_size(1.0, large), batch_size(None, large)
    (16, 1, 16)
    """
    size = sum(prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in inputs)
    most = max(min(BATCH_BYTES // size, MAX_BATCH), 1) if size else MAX_BATCH
    if not isinstance(dwell, int | float) or not dwell > 0:
        return min(DEFAULT_BATCH, most)
    return int(min(max(round(BATCH_SECONDS / dwell), 1), most))


def cut(span: FileSpan, first: int, stop: int) -> FileSpan | None:
    """Return the part of a span within ``[first, stop)``."""
    low, high = max(span.first, first), min(span.first + span.n, stop)
    if low >= high:
        return None
    return FileSpan(span.key, span.uri, span.dataset, low, high - low, span.offset + low - span.first)
