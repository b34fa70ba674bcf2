"""A pool's folders: made, seen to be usable, and swept when their owners were killed."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from ..errors import SettingsError
from .whereabouts import Life, Whereabouts

SOCKETS: Final = "haltere-pool-"
"""What the folders of Unix sockets are called, with a hash of the pool's directory behind."""

ROOTS: Final = "roots"
"""A file in a pool's directory: the folders that its frames were read from, one in a line."""

OWNER: Final = "owner"
"""A file in such a folder: whose it is."""


def make_sockets(directory: Path) -> Path:
    """Return the folder for a pool's sockets, which only its owner may enter: the same for the same directory.

    So whoever knows the sockets of a pool finds those of the pool that takes its place. A Unix socket's path has 107
    characters at most, so they don't lie in the directory itself.

    Raises
    ------
    SettingsError
        Somebody else has made a folder of that name.
    """
    name = hashlib.sha256(f"{os.getuid()} {directory}".encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"{SOCKETS}{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) != 0o700:
        raise SettingsError(f"{folder} must be a folder that only its owner may enter: remove it")
    (folder / OWNER).write_text(str(Whereabouts.mine()))
    return folder


def sweep_sockets() -> None:
    """Remove the folders of sockets whose owners were killed before they could."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SOCKETS}*"):
        with suppress(OSError):  # it isn't ours, or is being swept by another
            owner = Whereabouts.parse((folder / OWNER).read_text())
            if folder.stat().st_uid == os.getuid() and owner is not None and owner.life() is Life.GONE:
                shutil.rmtree(folder, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Make a folder and see that it can be written.

    Raises
    ------
    SettingsError
        It can't: names it and the reason.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".haltere-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise SettingsError(f"folder {path} can't be written: {error.strerror}; name another, or mend it") from None


def remember_roots(directory: Path, roots: Iterable[Path]) -> None:
    """Note in a pool's directory which folders its frames were read from, for who reduces its runs again.

    Raises
    ------
    SettingsError
        It can't be written.
    """
    known = remembered_roots(directory)
    fresh = [root for root in dict.fromkeys(roots) if root not in known]
    if not fresh:
        return
    path = directory / ROOTS
    try:
        with path.open("a") as file:
            file.writelines(f"{root}\n" for root in fresh)
    except OSError as error:
        raise SettingsError(f"{path} can't be written: {error.strerror}") from None


def remembered_roots(directory: Path) -> list[Path]:
    """Return the folders that frames of the pools in a directory were read from."""
    try:
        return [Path(line) for line in (directory / ROOTS).read_text().splitlines() if line.startswith("/")]
    except OSError:
        return []


def check_shared_memory(ring_bytes: int) -> None:
    """See that the ring fits into shared memory: a page that can't be had later would kill the ingest by SIGBUS.

    Raises
    ------
    SettingsError
        It doesn't fit.
    """
    with suppress(FileNotFoundError):
        free = shutil.disk_usage("/dev/shm").free
        if free < ring_bytes:
            raise SettingsError(
                f"/dev/shm has {free >> 20} MiB free, the ring wants {ring_bytes >> 20}: lower ring_bytes"
            )
