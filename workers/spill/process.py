"""The spiller: the ingest's child that writes frames to files. A disk that stalls it stalls no detector's socket.

Run by the ingest only: ``python -m haltere.workers.spill.process '{…}'`` with a socket as an inherited descriptor. When
the ingest dies it writes what it was given, and ends.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from ..errors import FileError
from ..ring import RingView
from .file import SpillFile, found_in
from .pipe import (
    FAILED,
    FULL,
    MAX_RECORD,
    Answer,
    Kind,
    Order,
    Put,
    Refused,
    Search,
    Searched,
    Written,
    decode_order,
    encode,
)

log = logging.getLogger(__name__)

TURN: Final = 64
"""Frames that are written before readers are shown them."""

KEEP_OPEN: Final = 8
LOOK: Final = 0.5
"""Seconds between two looks for files that others still write."""

ENDING: Final = 30
"""Seconds that it may take to write what it has, after the ingest has ended."""


class SpillingSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the ingest tells it at the start. ``most`` : bytes of a stream; ``spare`` : bytes to be left on the disk."""

    fd: int
    ring: str
    folder: str
    most: Annotated[int, Meta(ge=0)]
    spare: Annotated[int, Meta(ge=0)]


class Spiller:
    """Orders to files; answers go to ``say``."""

    def __init__(self, settings: SpillingSettings, ring: RingView, say: Callable[[Answer], None]) -> None:
        self._folder = Path(settings.folder)
        self._settings = settings
        self._ring = ring
        self._say = say
        self._open: OrderedDict[Kind, SpillFile] = OrderedDict()
        self._bytes: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._searches: list[tuple[Search, set[str]]] = []

    @property
    def searching(self) -> bool:
        """Whether files are looked for that others still write."""
        return bool(self._searches)

    def work(self, orders: Sequence[Order]) -> None:
        """Do what was ordered, and look once more for what wasn't found yet."""
        written: dict[Kind, list[int]] = {}
        for order in orders:
            if isinstance(order, Search):
                self._searches.append((order, {str(file.path) for file in self._open.values()}))
            elif self._write(order):
                written.setdefault(order.kind, []).append(order.offset)
            elif order.kind not in self._open and order.kind in written:
                self._say(Refused(written.pop(order.kind), FAILED))  # its file failed after them
        for kind, offsets in written.items():
            self._show(kind, offsets)
        self._searches = [each for each in self._searches if not self._search(*each)]

    def _write(self, order: Put) -> bool:
        kind = order.kind
        stream = kind.run, kind.stream
        try:
            about = os.statvfs(self._folder)
            free = about.f_bavail * about.f_frsize
            if self._bytes[stream] + order.size > self._settings.most or free - order.size < self._settings.spare:
                self._say(Refused([order.offset], FULL))
                return False
            self._file(kind).add(order.frame, self._ring.view(order.offset, order.size))
        except (OSError, RuntimeError, ValueError) as error:
            self._fail(kind, [order.offset], error)
            return False
        self._bytes[stream] += order.size
        return True

    def _show(self, kind: Kind, offsets: list[int]) -> None:
        if kind not in self._open:  # it made room for others: closed, and shown
            return
        try:
            files = self._open[kind].flush()
        except (OSError, RuntimeError, ValueError) as error:
            self._fail(kind, offsets, error)
            return
        self._say(Written(kind.run, kind.stream, files, offsets))

    def _fail(self, kind: Kind, offsets: list[int], error: Exception) -> None:
        """Let go of frames that can't be written, and of the file: what was shown of it stays."""
        log.error("%s/%s: frames can't be spilled: %s", kind.run, kind.stream, error)
        self._say(Refused(offsets, FAILED))
        file = self._open.pop(kind, None)
        if file is not None:
            self._close(file)

    def _file(self, kind: Kind) -> SpillFile:
        if kind not in self._open:
            while len(self._open) >= KEEP_OPEN:
                self._close(self._open.popitem(last=False)[1])
            self._open[kind] = SpillFile(self._folder, kind)
        self._open.move_to_end(kind)
        return self._open[kind]

    def _close(self, file: SpillFile) -> None:
        try:
            file.close()
        except (OSError, RuntimeError, ValueError) as error:
            log.error("%s: not closed well: %s", file.path, error)

    def _search(self, order: Search, known: set[str]) -> bool:
        """Look for files; return whether all were found that there are."""
        whole = True
        for path in sorted(self._folder.glob(f"{order.run}.{order.stream}.*.h5")):
            if str(path) in known or any(file.path == path for file in self._open.values()):
                continue
            try:
                files = found_in(path, order.run, order.stream)
            except BlockingIOError:
                whole = False
                continue
            except (FileError, OSError) as error:
                log.error("%s", error)
                files = []
            known.add(str(path))
            self._bytes[order.run, order.stream] += path.stat().st_size
            for at in range(0, len(files), TURN):
                self._say(Written(order.run, order.stream, files[at : at + TURN], []))
        if whole:
            self._say(Searched(order.run, order.stream))
        return whole

    def close(self) -> None:
        """Close every file."""
        while self._open:
            self._close(self._open.popitem()[1])


def serve(channel: socket.socket, settings: SpillingSettings) -> None:
    """Write until the other end closes, and then what is left."""
    there = True

    def say(answer: Answer) -> None:
        nonlocal there
        try:
            if there:
                channel.send(encode(answer))
        except (BrokenPipeError, ConnectionResetError):
            there = False

    Path(settings.folder).mkdir(parents=True, exist_ok=True)
    spiller = Spiller(settings, RingView.attach(settings.ring), say)
    ended = False
    while not ended:
        select.select([channel], [], [], LOOK if spiller.searching else None)
        orders: list[Order] = []
        while len(orders) < TURN:
            try:
                data = channel.recv(MAX_RECORD, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            if not data:
                ended = True
                signal.alarm(ENDING)
                break
            orders.append(decode_order(data))
        spiller.work(orders)
    spiller.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run until the ingest closes the channel or dies."""
    (argument,) = sys.argv[1:] if argv is None else argv
    settings = msgspec.json.decode(argument, type=SpillingSettings)
    for number in (signal.SIGINT, signal.SIGTERM):  # the ingest decides: what it gave is written first
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s spiller %(levelname)s %(message)s")
    with socket.socket(fileno=settings.fd) as channel:
        serve(channel, settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
