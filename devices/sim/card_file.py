"""The small NeXus files that PiLC cards write: one dataset of rows per channel in ``/entry/data``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ...workers.errors import FileError


def reason(error: Exception) -> str:
    """Return why the system or HDF5 refused, in a few words."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else str(error).splitlines()[0]


class CardFiles:
    """Names and writes ``<folder>/<prefix>_%05d.nxs``; the index counts up while folder and prefix stay.

    An index whose file is there already (from a process before this one) is passed over: nothing is overwritten.
    """

    def __init__(self) -> None:
        self._stem: tuple[str, str] | None = None
        self._index = 0
        self.last = ""
        """The latest file's name, without its folder."""

    def check(self, folder: str) -> None:
        """Make ``folder`` if need be; raises FileError if it can't be written."""
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"folder {folder} can't be made: {reason(error)}") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise FileError(f"folder {folder} can't be written: permission denied")

    def write(self, folder: str, prefix: str, rows: int, per_file: int, columns: Mapping[str, Any]) -> list[Path]:
        """Write ``rows`` rows, ``per_file`` to a file (0: all to one); arrays are cut, scalars repeated.

        Raises
        ------
        FileError
            The folder can't be written, or is full.
        """
        if (folder, prefix) != self._stem:
            self._stem, self._index = (folder, prefix), 0
        step = per_file if per_file > 0 else max(rows, 1)
        written = []
        for first in range(0, max(rows, 1), step):
            written.append(self._write_one(folder, prefix, slice(first, min(first + step, rows)), columns))
        return written

    def _write_one(self, folder: str, prefix: str, part: slice, columns: Mapping[str, Any]) -> Path:
        while (path := Path(folder) / f"{prefix}_{self._index:05d}.nxs").exists():
            self._index += 1
        try:
            with h5py.File(path, "x", libver="latest") as file:
                entry = file.create_group("entry")
                entry.attrs["NX_class"] = "NXentry"
                data = entry.create_group("data")
                data.attrs["NX_class"] = "NXdata"
                for name, values in columns.items():
                    array = np.asarray(values)
                    data[name] = array if array.ndim == 0 else array[part]
        except (OSError, RuntimeError) as error:
            raise FileError(f"folder {folder}: {path.name} can't be written: {reason(error)}") from None
        self._index += 1
        self.last = path.name
        return path
