"""Where a pool can be found: a small file in its directory, beside a lock that its owner holds."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from ..errors import PoolError, SettingsError
from ..processes.locks import Lock, is_held
from .whereabouts import Life, Whereabouts

FILE: Final = "pool.json"
LOCK: Final = "pool.lock"
HANDOVER: Final = 1.0
"""Seconds that a lock may be held by who only looks whether it is."""


class Endpoints(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the pool's processes listen: Unix sockets in a folder that only their owner may enter."""

    pool: str
    broker: str
    sink: str
    recorder: str


class CatalogAddress(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the catalog is that the recorder writes to; the key stands in a file of mode 0600."""

    uri: str
    api_key_file: str


class PoolFile(Struct, frozen=True, kw_only=True):
    """What ``pool.json`` says. ``since`` : s since 1970. ``stays`` : it outlives sessions, which may attach to it."""

    version: Literal[1] = 1
    owner: Annotated[str, Meta(max_length=64)]
    since: float
    stays: bool
    directory: str
    nexus: str
    roots: list[str] = []
    """The folders that detectors' files may be read from."""
    endpoints: Endpoints
    catalog: CatalogAddress | None = None

    @property
    def pid(self) -> int:
        """The owner's."""
        found = Whereabouts.parse(self.owner)
        return -1 if found is None else found.pid


class Place:
    """A pool's directory, which one pool may have at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = Lock(directory / LOCK)

    def take(self) -> None:
        """Take it, for as long as this process lives.

        Raises
        ------
        SettingsError
            Another pool has it: says whose it is. Or it can't be written.
        """
        try:
            taken = self._lock.take(HANDOVER)
        except OSError as error:
            raise SettingsError(
                f"{self.directory / LOCK} can't be made: {error.strerror}; name another folder"
            ) from None
        if not taken:
            raise SettingsError(f"{self.directory} has a pool already{whose(self._read())}: one pool per directory")

    def _read(self) -> PoolFile | None:
        try:
            return read(self.directory)
        except PoolError:  # whose it is isn't worth another error
            return None

    def publish(self, file: PoolFile) -> None:
        """Let others find the pool."""
        path = self.directory / FILE
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(msgspec.json.format(msgspec.json.encode(file)) + b"\n")
        fresh.replace(path)

    def hide(self) -> None:
        """Let others find the pool no more."""
        if self._lock.held:
            (self.directory / FILE).unlink(missing_ok=True)

    def leave(self) -> None:
        """Give it up. May be called again."""
        self.hide()
        self._lock.release()


def find(directory: Path) -> PoolFile | None:
    """Return the pool that runs for ``directory``; None if none does.

    Raises
    ------
    PoolError
        It runs on another host, where its sockets are; or what says where it is can't be read.
    """
    found = read(directory)
    if found is None:
        return None
    held = is_held(directory / LOCK)
    owner = Whereabouts.parse(found.owner)
    if owner is None or owner.host_name != Whereabouts.mine().host_name:
        # Whether a lock is seen across hosts is the file system's affair.
        raise PoolError(
            f"{directory} has a pool elsewhere{whose(found)}: ask there, or remove {directory / FILE} if it is gone"
        )
    return found if held and owner.life() is Life.LIVES else None


def read(directory: Path) -> PoolFile | None:
    """Return what the file says, true or not; None without one.

    Raises
    ------
    PoolError
        It can't be read.
    """
    path = directory / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=PoolFile)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise PoolError(f"{path} can't be read: {error}; remove it if no pool runs there") from None


def whose(file: PoolFile | None) -> str:
    """Return whose pool it is, for a person: ``" (pid 4031 on nano1, since Nov 22 14:02)"``."""
    if file is None:
        return ""
    owner = Whereabouts.parse(file.owner)
    host = "" if owner is None else f" on {owner.host_name}"
    return f" (pid {file.pid}{host}, since {time.strftime('%b %d %H:%M', time.localtime(file.since))})"
