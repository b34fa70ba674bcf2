"""HDF5 files that others read while they grow: nobody sees one before it can be read.

HDF5 locks a file while it is made and lets go when SWMR begins. A reader that opens it in between, say a device that
looks for the first frame, holds a shared lock for that moment, and the writer's own is then refused ("Resource
temporarily unavailable"). So a file is made under another name, and gets its own when SWMR has begun.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import h5py


def create(path: Path, libver: Any = "latest") -> h5py.File:
    """Return a new file, to be filled with what it is to have and then revealed.

    Raises
    ------
    FileExistsError
        There is one of that name.
    OSError
        The folder can't be written.
    """
    if path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    return h5py.File(_hidden(path), "w", libver=libver)


def reveal(file: h5py.File, path: Path) -> None:
    """Begin SWMR, and give the file its name."""
    file.swmr_mode = True
    os.rename(_hidden(path), path)


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}")
