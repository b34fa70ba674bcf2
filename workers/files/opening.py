"""Open an HDF5 file that somebody else may be writing, so that damage to it is an error and not a wait without end."""

from __future__ import annotations

import ctypes
import logging
import os
import struct
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import h5py

log = logging.getLogger(__name__)

ATTEMPTS: Final = 25
"""Tries at a piece of metadata whose checksum is wrong. A writer may be amid it, so a SWMR reader tries again; HDF5's
pauses between tries begin with 1 ns and double. So 25 tries take 0.04 s and 28 take 0.3 s; its own 100 never end."""

SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"
_SUPERBLOCK: Final = 96
"""Bytes of it that are looked at."""


def open_hdf5(path: str, chunk_cache: int) -> h5py.File:
    """Open a file for reading, never locked.

    Parameters
    ----------
    path
        Which.
    chunk_cache
        Bytes of decompressed chunks that HDF5 keeps per dataset.

    Raises
    ------
    OSError, ValueError
        It is no HDF5 file, or isn't whole.
    """
    import h5py
    import hdf5plugin  # noqa: F401 - gives HDF5 the filters that detectors use

    # SWMR reads a file that grows; files in the old format can't be opened so, and need not be. Where this process
    # has the file open already, both must say the same about locking.
    for swmr, unlocked in ((True, True), (False, True)):
        with suppress(OSError, ValueError):
            return h5py.File(_open(path, chunk_cache, swmr=swmr, unlocked=unlocked))
    return h5py.File(_open(path, chunk_cache, swmr=False, unlocked=False))


def _open(path: str, chunk_cache: int, *, swmr: bool, unlocked: bool) -> Any:
    from h5py import h5f, h5p

    access = h5p.create(h5p.FILE_ACCESS)
    access.set_libver_bounds(h5f.LIBVER_LATEST if swmr else h5f.LIBVER_EARLIEST, h5f.LIBVER_LATEST)
    if unlocked:
        access.set_file_locking(False, False)
    _, slots, _, preemption = access.get_cache()
    access.set_cache(0, slots, chunk_cache, preemption)
    limit = _attempts_limiter()
    if limit is not None:
        limit(access.id, ATTEMPTS)
    return h5f.open(path.encode(), h5f.ACC_RDONLY | (h5f.ACC_SWMR_READ if swmr else 0), access)


@cache
def _attempts_limiter() -> Any:
    """Return HDF5's own function, which h5py doesn't show; None where it isn't found."""
    import h5py

    try:
        # By way of h5py's own module: the library that this one is linked to, wherever that lies.
        limit = ctypes.CDLL(h5py.h5p.__file__).H5Pset_metadata_read_attempts
    except (OSError, AttributeError) as error:
        log.warning("damaged files may be read for long: HDF5's tries at them can't be limited: %s", error)
        return None
    limit.argtypes = [ctypes.c_int64, ctypes.c_uint]
    limit.restype = ctypes.c_int
    return limit


def cut(descriptor: int) -> str:
    """Say how much of a file is missing, ``""`` if nothing is: how long it should be stands at its beginning.

    Source: HDF5 File Format Specification 3.0, II.A, "Superblock".
    """
    head = os.pread(descriptor, _SUPERBLOCK, 0)
    if len(head) < _SUPERBLOCK or not head.startswith(SIGNATURE):
        return ""
    version = head[8]
    place, width = (12, head[9]) if version >= 2 else (24 + 4 * version, head[13])
    if width != 8:
        return ""
    base, _, end = struct.unpack_from("<QQQ", head, place)
    size = os.fstat(descriptor).st_size
    return f"the file is cut: {size} bytes of {base + end}" if size < base + end else ""
