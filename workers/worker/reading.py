"""Where a batch's frames are, and how they come: from rings in shared memory, from files."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import numpy as np

from ..errors import FileError
from ..frame_life import Frame, FrameEvent
from ..reducers.base import Array, Batch, Chunk
from ..ring import RingView
from ..wire.messages import Block, FileSpan, InputSpec, StreamOpen, Work

MAX_RINGS: Final = 4
"""Rings kept mapped; there is one per ingest."""


class Unreadable(FileError):
    """Frames that can't be read; ``missing`` are their numbers."""

    def __init__(self, text: str, missing: Sequence[int]) -> None:
        super().__init__(text)
        self.missing = list(missing)


class Reader(Protocol):
    """What reads frames of files: :class:`~..files.frames.FrameReader`."""

    def read(self, span: FileSpan, frames: Sequence[int], spec: InputSpec) -> Array | list[Chunk]:
        """Return these frames."""


@dataclass(frozen=True, slots=True)
class Group:
    """Frames of a batch that come by the same way: where they stand, and what happens to those that can be reduced.

    ``live`` is the data key of which their bytes came live, ``""`` if all of them lie in files.
    """

    frames: list[int]
    before: Frame
    event: FrameEvent
    live: str
    read: Callable[[], Batch]
    given_back: Callable[[], list[int]]
    """Says which frames' blocks were given back since they were read: what was made of them is void."""


class Reading:
    """Rings and files."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._rings: OrderedDict[str, RingView] = OrderedDict()

    def groups(self, stream: StreamOpen, work: Work) -> Iterator[Group]:
        """Yield the frames that are to be reduced, by their ways; one by one if the work is to be isolated.

        Raises
        ------
        Unreadable
            From a group's ``read``: names the frames that can't be read.
        """
        absent = {each.frame for each in work.absent}
        blocks = {block.frame: (span.ring, block) for span in work.ring for block in span.blocks}
        wanted = [number for number in range(work.first, work.first + work.n) if number not in absent]
        live = [number for number in wanted if number in blocks]
        filed = [number for number in wanted if number not in blocks]
        streamed = stream.live.key if stream.live is not None else ""
        by_file = FrameEvent.REDUCED if stream.live is not None else FrameEvent.READ
        for frames, before, event, key in (
            (live, Frame.HELD, FrameEvent.REDUCED, streamed),
            (filed, Frame.OWED, by_file, ""),
        ):
            size = 1 if work.isolate else len(frames)
            for at in range(0, len(frames), size or 1):
                some = frames[at : at + size]
                read = partial(self._read_or_tell, stream, work, some, blocks)
                given_back = partial(self._given_back, some, blocks if key else {})
                yield Group(some, before, event, key, read, given_back)

    def _read_or_tell(
        self, stream: StreamOpen, work: Work, frames: list[int], blocks: dict[int, tuple[str, Block]]
    ) -> Batch:
        try:
            return self._read(stream, work, frames, blocks)
        except FileError as error:
            missing = frames if len(frames) == 1 else []
            for number in frames if len(frames) > 1 else []:
                try:
                    self._read(stream, work, [number], blocks)
                except FileError:
                    missing.append(number)
            # All can be read by now: a file that has just grown. Nothing is missing then; the whole is tried again.
            raise Unreadable(str(error), missing or frames[:1]) from None

    def _read(self, stream: StreamOpen, work: Work, frames: list[int], blocks: dict[int, tuple[str, Block]]) -> Batch:
        data: dict[str, Array | list[Chunk]] = {}
        for spec in stream.inputs:
            if stream.live is not None and spec.key == stream.live.key and frames[0] in blocks:
                data[spec.key] = [self._chunk(*blocks[number], spec) for number in frames]
            else:
                data[spec.key] = self._from_files(work, frames, spec)
        return Batch(np.array(frames, np.int64), data)

    def _chunk(self, ring: str, block: Block, spec: InputSpec) -> Chunk:
        if ring not in self._rings:
            while len(self._rings) >= MAX_RINGS:
                self._rings.popitem(last=False)[1].close()
            self._rings[ring] = RingView.attach(ring)
        self._rings.move_to_end(ring)
        view = self._rings[ring].view(block.offset, block.size)
        if not self._rings[ring].lives(block.offset, block.size, block.life):
            raise FileError(f"frame {block.frame}: its block in ring {ring} was given back")
        return Chunk(view, block.encoding, spec.shape, np.dtype(spec.dtype))

    def _given_back(self, frames: list[int], blocks: dict[int, tuple[str, Block]]) -> list[int]:
        gone = []
        for number in frames if blocks else []:
            ring, block = blocks[number]
            if not self._rings[ring].lives(block.offset, block.size, block.life):
                gone.append(number)
        return gone

    def _from_files(self, work: Work, frames: list[int], spec: InputSpec) -> Array | list[Chunk]:
        parts: list[Array | list[Chunk]] = []
        left = list(frames)
        for span in sorted((each for each in work.files if each.key == spec.key), key=lambda each: each.first):
            mine = [number for number in left if span.first <= number < span.first + span.n]
            if mine:
                parts.append(self._reader.read(span, mine, spec))
                left = [number for number in left if number not in mine]
        if left:
            raise FileError(f"frame {left[0]}: no file was named that has its {spec.key}")
        return _joined(parts)

    def close(self) -> None:
        """Let the rings go."""
        while self._rings:
            with closing(self._rings.popitem()[1]):
                pass


def _joined(parts: list[Array | list[Chunk]]) -> Array | list[Chunk]:
    """Return parts from several files as one; arrays become chunks where some are chunks."""
    if len(parts) == 1:
        return parts[0]
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len(arrays) == len(parts):
        return np.concatenate(arrays)
    joined: list[Chunk] = []
    for part in parts:
        if isinstance(part, np.ndarray):
            joined += [Chunk(row.tobytes(), "none", row.shape, row.dtype) for row in part]
        else:
            joined += part
    return joined
