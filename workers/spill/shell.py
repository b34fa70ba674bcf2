"""The ingest's spilling: memory for frames on their way, their books, and the child that writes them to files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import zmq

from ..broker.lane import SPILLING
from ..errors import SettingsError, WireError
from ..ingest.core import IngestCore, Source
from ..ring import Ring
from ..wire.messages import Claim, Gauge, Message, Spilled
from .child import SpillerProcess
from .core import SpillBook
from .pipe import FAILED, Refused, Written

if TYPE_CHECKING:
    from ..ingest.process import IngestSettings

log = logging.getLogger(__name__)

SPILL_SLOW: Final = "spill-slow"


class Spill:
    """What an ingest spills. Memory and child are made when the first run asks for it.

    Parameters
    ----------
    say
        Tells the broker.
    """

    def __init__(self, settings: IngestSettings, core: IngestCore, say: Callable[[Message], bool]) -> None:
        self._settings = settings
        self._core = core
        self._say = say
        self._ring: Ring | None = None
        self._book = SpillBook(settings.spill_ring)
        self._spiller: SpillerProcess | None = None
        self._polled = -1

    @property
    def summary(self) -> dict[str, Any]:
        """What the process says of it with its beats."""
        return {} if self._spiller is None else self._book.summary() | {"children": [self._spiller.pid]}

    def claim(self, claim: Claim) -> None:
        """Take note of a stream, if it is one that spills."""
        if claim.policy != "spill" or not self._settings.spill:
            return
        if self._spiller is None:
            try:
                self._ring = Ring.create(self._settings.spill_ring)
            except SettingsError as error:
                log.error("frames of %s that find no room are dropped: %s", claim.stream, error)
                return
            limits = self._settings.spill_bytes, self._settings.spill_spare
            self._spiller = SpillerProcess(self._settings.spill, self._ring.name, *limits)
        search = self._book.claim(claim)
        if search is not None and self._spiller.channel is not None:
            self._spiller.tell(search)

    def take(self, source: Source, frame: int, encoding: str, data: memoryview, now: float) -> None:
        """Have a frame written, or drop it if that can't be."""
        endpoint, series = source.endpoint, source.series
        known = self._core.claims.get(endpoint, series)
        if known is None or self._ring is None or self._spiller is None:
            return self._core.drop(endpoint, series, frame, FAILED)
        order = self._book.put(known.claim, source.shape, source.dtype, encoding, frame, data.nbytes, now)
        if order is None:
            return self._core.drop(endpoint, series, frame, SPILL_SLOW)
        self._ring.write(order.offset, data, 0)
        if self._spiller.channel is not None:
            self._spiller.tell(order)
        return self._core.name(endpoint, series, frame, frame + 1, SPILLING)

    def turn(self, poller: zmq.Poller, events: dict[Any, int], now: float) -> None:
        """Take what the child says; see that there is one."""
        spiller = self._spiller
        if spiller is None:
            return
        if spiller.start(now) and spiller.channel is not None:
            self._polled = spiller.channel.fileno()
            for order in self._book.again():
                spiller.tell(order)
        if self._polled in events:
            spiller.flush()
            self._hear(spiller, poller, now)
        if self._polled >= 0:
            poller.register(self._polled, zmq.POLLIN | (zmq.POLLOUT if spiller.writing else 0))

    def _hear(self, spiller: SpillerProcess, poller: zmq.Poller, now: float) -> None:
        before = self._polled
        try:
            answers = spiller.read(now)
        except WireError as error:
            log.error("%s; killed", error)
            spiller.kill()
            return
        if answers is None:
            poller.unregister(before)
            self._polled = -1
            return
        for answer in answers:
            if isinstance(answer, Written):
                for message in self._book.written(answer, now):
                    self._say(message)
            elif isinstance(answer, Refused):
                for claim, frame in self._book.refused(answer):
                    self._core.drop(claim.endpoint, claim.series, frame, answer.reason)
            else:
                self._book.searched(answer)

    def beat(self, now: float) -> None:
        """Say again what isn't confirmed; give up what the disk doesn't take."""
        for claim, frame in self._book.overdue(now):
            self._core.drop(claim.endpoint, claim.series, frame, SPILL_SLOW)
        for message in self._book.due(now):
            self._say(message)

    def told(self, message: Spilled) -> None:
        """Take the broker's word that the ledger has it."""
        self._book.confirmed(message)

    def name(self) -> None:
        """Let a new broker be told which frames are on their way to files."""
        for claim, first, stop in self._book.pending():
            self._core.name(claim.endpoint, claim.series, first, stop, SPILLING)

    def tell(self, now: float) -> None:
        """Tell a new broker what is in files."""
        for message in self._book.due(now, everything=True):
            self._say(message)

    def gauge(self, session: int, now: float) -> Gauge:
        """Return what becomes of each series."""
        return self._core.gauge(session, now, self._account)

    def _account(self, claim: Claim) -> tuple[int, int, bool]:
        frames, size, known = self._book.account(claim)
        return frames, size, known or self._spiller is None  # it can't: nothing is to be waited for

    def close(self) -> None:
        """Have what is left written, and end."""
        if self._spiller is not None:
            self._spiller.close()
        if self._ring is not None:
            self._ring.close()
