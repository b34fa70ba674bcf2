"""File references from documents: which file a URI may open, and the open descriptor."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

from ..errors import FileError, FileLate

SUFFIXES = (".h5", ".hdf5", ".nxs", ".nx", ".cxi")
STREAMED = "application/x-haltere-stream"
"""The type of a stream resource that is no file: its frames went by, and who saw them has them."""

_HOSTS = ("", "localhost")


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A regular file below a root, open for reading.

    ``path`` : where it really is; ``fd`` : the descriptor that was checked. ``via`` opens that very file again (by
    name it might be another one by now).
    """

    path: Path
    fd: int

    @property
    def via(self) -> str:
        """A path to the open descriptor, for libraries that want a path."""
        return f"/proc/self/fd/{self.fd}"

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def resolve(uri: str, roots: Iterable[Path | str], suffixes: tuple[str, ...] = SUFFIXES) -> OpenFile:
    """Open the file that ``uri`` names, if it lies below one of ``roots``.

    Links and ``..`` are followed first and the outcome is checked; the descriptor is checked once more after opening,
    so that a link swapped in between gains nothing. Devices, pipes and folders are refused without blocking.

    Parameters
    ----------
    uri
        ``file:///data/scan_1.h5`` or ``file://localhost/data/scan_1.h5``.
    roots
        Folders in which detectors write.

    Raises
    ------
    FileError
        The reference is not one that may be opened.
    FileLate
        There is no such file (yet).
    """
    path = _path(uri)
    allowed = [os.path.realpath(root) for root in roots]
    real = os.path.realpath(path)
    shown = real if len(real) <= 300 else f"{real[:297]}…"
    if not _below(real, allowed):
        raise FileError(
            f"{_short(uri)} leads to {shown}, outside the data roots ({', '.join(allowed) or 'none given'})"
        )
    if not real.endswith(suffixes):
        raise FileError(f"{_short(uri)}: not a data file by its name ({', '.join(suffixes)})")
    try:
        fd = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        raise FileLate(f"{shown} doesn't exist (yet)") from None
    except OSError as error:
        raise FileError(f"{shown} can't be opened: {error.strerror}") from None
    opened = OpenFile(Path(real), fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        opened.close()
        raise FileError(f"{shown} is not a regular file")
    if not _below(os.readlink(opened.via), allowed):
        opened.close()
        raise FileError(f"{shown} was swapped while it was opened, and leads outside the data roots")
    return opened


def _path(uri: str) -> str:
    if len(uri) > 4096:
        raise FileError(f"{_short(uri)}: a reference of {len(uri)} characters is too long")
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise FileError(f"{_short(uri)}: {error}") from None
    if parts.scheme != "file" or parts.query or parts.fragment:
        raise FileError(f"{_short(uri)}: only file:///path can be read")
    if parts.netloc not in _HOSTS:
        raise FileError(f"{_short(uri)} is on host {parts.netloc!r}; only this host's files can be read")
    path = unquote(parts.path)
    if "\0" in path or not path.startswith("/"):
        raise FileError(f"{_short(uri)}: not an absolute path")
    return path


def _below(path: str, roots: list[str]) -> bool:
    return any(os.path.commonpath([root, path]) == root for root in roots)


def _short(uri: str) -> str:
    return repr(uri if len(uri) <= 200 else uri[:197] + "…")
