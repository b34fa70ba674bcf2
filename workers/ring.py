"""The ring: frames in shared memory, which many processes read and one writes.

:class:`Arena` says which bytes are free and touches none; :class:`Ring` is the file behind it in ``/dev/shm``;
:class:`RingView` is what a worker sees of it, read-only.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import mmap
import os
import re
import stat
import struct
from bisect import bisect_left
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from .errors import FileError, SettingsError

log = logging.getLogger(__name__)

FOLDER: Final = Path("/dev/shm")
ALIGNMENT: Final = 64
"""Blocks begin on a cache line."""

PADDING: Final = 64
"""Readable bytes after each block: the kernel's wide copies read past the end of a compressed frame."""

_STAMP: Final = struct.Struct("<8sQ")
"""In the last of a block's bytes, behind the frame: which life it has."""

_MARK: Final = b"haltere\0"

_NAME: Final = re.compile(r"haltere-[0-9]{1,10}-[0-9]{1,6}")
_numbers = itertools.count()


class Arena:
    """Which bytes of a ring are free: first fit, neighbours joined when they are given back.

    >>> arena = Arena(1024)
    >>> arena.allocate(100), arena.allocate(100)
    (0, 192)
    >>> arena.release(0), arena.allocate(64)
    (True, 0)
    >>> arena.allocate(1024) is None
    True
    """

    def __init__(self, size: int) -> None:
        if size < ALIGNMENT + PADDING:
            raise SettingsError(f"a ring of {size} bytes holds no frame: give it at least {ALIGNMENT + PADDING}")
        self.size = size - size % ALIGNMENT
        self._starts = [0]
        self._lengths = [self.size]
        self._held: dict[int, int] = {}
        self.used = 0
        """Bytes in use, padding included."""

    def allocate(self, size: int) -> int | None:
        """Return the offset of ``size`` bytes that nobody else has, or None: no gap is that long."""
        need = _span(size)
        # A few hundred frames wait at most, in few gaps: the scan costs less than a microsecond.
        for place, length in enumerate(self._lengths):
            if length >= need:
                offset = self._starts[place]
                if length == need:
                    del self._starts[place], self._lengths[place]
                else:
                    self._starts[place] += need
                    self._lengths[place] -= need
                self._held[offset] = need
                self.used += need
                return offset
        return None

    def release(self, offset: int) -> bool:
        """Give a block back by its offset. Return whether it was held: a second time is harmless."""
        length = self._held.pop(offset, None)
        if length is None:
            return False
        self.used -= length
        place = bisect_left(self._starts, offset)
        if place < len(self._starts) and offset + length == self._starts[place]:
            length += self._lengths[place]
            del self._starts[place], self._lengths[place]
        if place and self._starts[place - 1] + self._lengths[place - 1] == offset:
            self._lengths[place - 1] += length
        else:
            self._starts.insert(place, offset)
            self._lengths.insert(place, length)
        return True

    @property
    def held(self) -> dict[int, int]:
        """Offset and length of every block in use, padding included."""
        return dict(self._held)

    @property
    def gaps(self) -> list[tuple[int, int]]:
        """Offset and length of every free stretch, ascending, never touching."""
        return list(zip(self._starts, self._lengths, strict=True))


def _span(size: int) -> int:
    """Return how many bytes a block of ``size`` takes: padding, and the rest of its last cache line."""
    need = max(size, 1) + PADDING
    return need + -need % ALIGNMENT


def _stamp(offset: int, size: int) -> int:
    return offset + _span(size) - _STAMP.size


class Ring:
    """Shared memory that this process writes. It holds a lock on it, so that others know it lives."""

    def __init__(self, name: str, descriptor: int, memory: mmap.mmap) -> None:
        self.name = name
        self.size = len(memory)
        self.buffer = memoryview(memory)
        self._memory = memory
        self._descriptor = descriptor

    @classmethod
    def create(cls, size: int) -> Self:
        """Make a ring, every page of it in place: a page that can't be had later would kill by SIGBUS.

        Raises
        ------
        SettingsError
            There isn't so much shared memory.
        """
        sweep()
        while True:
            name = f"haltere-{os.getpid()}-{next(_numbers)}"
            path = FOLDER / name
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileExistsError:
                continue
            except OSError as error:
                raise SettingsError(f"{FOLDER} can't be written: {error.strerror}") from None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_nlink:  # else another process swept it before it was locked
                    os.posix_fallocate(descriptor, 0, size)
                    return cls(name, descriptor, mmap.mmap(descriptor, size))
            except BlockingIOError:
                log.debug("%s was being swept when it was made: making another", name)
            except OSError as error:
                os.close(descriptor)
                path.unlink(missing_ok=True)
                raise SettingsError(f"{FOLDER}: no room for a ring of {size >> 20} MiB ({error.strerror})") from None
            os.close(descriptor)

    def write(self, offset: int, data: memoryview | bytes, life: int) -> None:
        """Copy ``data`` (contiguous bytes) to ``offset``, into a block of that life and size."""
        self.buffer[offset : offset + len(data)] = data
        _STAMP.pack_into(self.buffer, _stamp(offset, len(data)), _MARK, life)

    def clear(self, offset: int, size: int) -> None:
        """Take a block's life away: who still reads it sees that. Do it before the bytes are used again."""
        _STAMP.pack_into(self.buffer, _stamp(offset, size), bytes(8), 0)

    def close(self) -> None:
        """Let go of it and remove its name; who has it mapped keeps it. May be called again."""
        if self._descriptor < 0:
            return
        (FOLDER / self.name).unlink(missing_ok=True)
        self.buffer.release()
        self._memory.close()
        os.close(self._descriptor)
        self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RingView:
    """Another process's ring, to read."""

    def __init__(self, name: str, memory: mmap.mmap) -> None:
        self.name = name
        self._memory = memory
        self._buffer = memoryview(memory)

    @classmethod
    def attach(cls, name: str) -> Self:
        """Map the ring of that name.

        Raises
        ------
        FileError
            There is none (its ingest died), or what has the name is no ring of this user's.
        """
        if not _NAME.fullmatch(name):
            raise FileError(f"ring {name!r}: not the name of a ring")
        try:
            descriptor = os.open(FOLDER / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise FileError(f"ring {name}: {error.strerror} (has its ingest died?)") from None
        try:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode) or about.st_uid != os.getuid() or not about.st_size:
                raise FileError(f"ring {name}: not a ring of this user's")
            return cls(name, mmap.mmap(descriptor, about.st_size, prot=mmap.PROT_READ))
        finally:
            os.close(descriptor)

    def view(self, offset: int, size: int) -> memoryview:
        """Return ``size`` bytes from ``offset`` on, read-only, not copied; :data:`PADDING` more can be read.

        Raises
        ------
        FileError
            They aren't all in the ring.
        """
        if offset < 0 or size < 0 or offset + size + PADDING > len(self._buffer):
            raise FileError(f"ring {self.name}: bytes [{offset}, {offset + size}) aren't in its {len(self._buffer)}")
        return self._buffer[offset : offset + size]

    def lives(self, offset: int, size: int, life: int) -> bool:
        """Return whether the block still has this life, and so whether what was read of it until now is its frame."""
        at = _stamp(offset, size)
        return at + _STAMP.size <= len(self._buffer) and _STAMP.unpack_from(self._buffer, at) == (_MARK, life)

    def close(self) -> None:
        """Unmap it. Views that are still held keep the memory until they go."""
        self._buffer.release()
        with suppress(BufferError):
            self._memory.close()


def sweep() -> list[str]:
    """Remove the rings of processes that died without removing them; return their names."""
    swept = []
    for path in FOLDER.glob("haltere-*"):
        if not _NAME.fullmatch(path.name):
            continue
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # another user's, or gone meanwhile
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            swept.append(path.name)
        except OSError:  # its owner lives
            pass
        finally:
            os.close(descriptor)
    if swept:
        log.info("removed %d rings whose ingest had died: %s", len(swept), ", ".join(swept))
    return swept
