"""Tells the pool what documents say: which runs there are, what is wanted of them, which frames exist, and where."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from time import monotonic, time_ns
from typing import Any, Final

import zmq
from event_model import DocumentRouter
from event_model.documents import Event, EventPage

from ..workers.errors import WireError
from ..workers.pool.whereabouts import Whereabouts
from ..workers.processes import sockets
from ..workers.processes.flood import Flood
from ..workers.recipes import Recipe
from ..workers.wire.messages import MAX_CONTROL, VERSION, Ack, Beat, Bye, Hello, Welcome, decode, encode
from .buffer import join_datums
from .dispatch_core import DispatchCore
from .reduction import Reduction

log = logging.getLogger(__name__)

Document = dict[str, Any]

TICK: Final = 0.2  # s
BEAT: Final = 1.0  # s
LINGER_MS: Final = 200
BOUND: Final = 100_000
"""Most documents that wait for the dispatcher's thread. stream_datums join while they do, so a full queue is a bug."""


class Dispatcher(DocumentRouter):
    """What ``RE.subscribe`` takes so that the pool reduces what the RunEngine measures.

    It never blocks the RunEngine and never raises into it: documents are queued, a thread of its own talks to the sink.
    Without a sink it waits; what the documents said is sent when there is one.

    Parameters
    ----------
    sink
        The sink's endpoint.
    recipes
        What is reduced when a run's start document has no ``recipes`` of its own. A recipe is used in the runs that
        have its source.
    roots
        The folders that the workers may read from; files elsewhere are warned of.
    reduction
        Of a run that has ended: only its documents are taken, and reduced as this says.
    """

    def __init__(
        self,
        sink: str,
        *,
        recipes: Iterable[Recipe] = (),
        roots: Iterable[Path] = (),
        reduction: Reduction | None = None,
    ) -> None:
        super().__init__()
        self.lost = 0
        """Documents that found the queue full."""
        self.passed_over = 0
        """Documents that couldn't be read; the log says which and why."""
        self._name = str(Whereabouts.mine())
        self._beat_at = 0.0
        self._core = DispatchCore(time_ns() // 1000, recipes, [root.resolve() for root in roots], reduction)
        self._waiting: list[tuple[str, Document]] = []
        self._datums: dict[str | None, int] = {}
        self._busy = False
        self._closing = False
        self._flood = Flood()
        self._changed = threading.Condition()
        self._context = zmq.Context()
        self._socket = sockets.make(self._context, zmq.DEALER, MAX_CONTROL)
        self._socket.reconnect_ivl = 50
        self._socket.reconnect_ivl_max = 1000
        self._socket.connect(sink)
        self._wake_out = self._context.socket(zmq.PAIR)
        self._wake_in = self._context.socket(zmq.PAIR)
        self._wake_in.bind("inproc://wake")
        self._wake_out.connect("inproc://wake")
        self._thread = threading.Thread(target=self._talk, name="dispatcher", daemon=True)
        self._thread.start()

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """What is reduced by default; set it to change that for the runs to come."""
        return self._core.recipes

    @recipes.setter
    def recipes(self, recipes: Iterable[Recipe]) -> None:
        self._core.recipes = tuple(recipes)

    def start(self, doc: Any) -> None:
        """Queue it."""
        self._put("start", doc)

    def descriptor(self, doc: Any) -> None:
        """Queue it."""
        self._put("descriptor", doc)

    def stream_resource(self, doc: Any) -> None:
        """Queue it."""
        self._put("stream_resource", doc)

    def stream_datum(self, doc: Any) -> None:
        """Queue it, or lengthen the one before it."""
        with self._changed:
            resource = doc.get("stream_resource")
            place = self._datums.get(resource)
            joined = None if place is None else join_datums(self._waiting[place][1], doc)
            if place is not None and joined is not None:
                self._waiting[place] = ("stream_datum", joined)
                return
            self._datums[resource] = len(self._waiting)
            self._put("stream_datum", doc)

    def stop(self, doc: Any) -> None:
        """Queue it."""
        self._put("stop", doc)

    def event(self, doc: Event) -> Event:
        """Pass over it: frames are promised by stream_datums."""
        return doc

    def event_page(self, doc: EventPage) -> EventPage:
        """Pass over it."""
        return doc

    def wait_acknowledged(self, run: str, timeout: float = 30.0) -> bool:
        """Wait until all that the documents said of a run, to its end, is on the sink's disk; False after ``timeout``.

        A run that asks for no reduction has nothing to wait for.
        """
        with self._changed:
            return self._changed.wait_for(
                lambda: not self._waiting and not self._busy and self._core.is_acknowledged(run), timeout
            )

    def wait_idle(self, timeout: float = 30.0) -> bool:
        """Wait until all that the documents said so far is on the sink's disk; False after ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(self._idle, timeout)

    def close(self, timeout: float = 2.0) -> None:
        """End the thread, after at most ``timeout`` seconds for what isn't acknowledged yet. May be called again."""
        with self._changed:
            if self._closing:
                return
            done = self._changed.wait_for(self._idle, timeout)
            self._closing = True
        if not done:
            log.error("the sink hasn't acknowledged everything: the last runs may never be reduced (is the pool up?)")
        self._wake()
        self._thread.join()
        self._wake_out.close()
        self._context.term()

    def _idle(self) -> bool:
        return not self._waiting and not self._busy and self._core.idle

    def _put(self, name: str, doc: Document) -> None:
        with self._changed:
            if self._closing:
                return
            if len(self._waiting) >= BOUND:
                self.lost += 1
                if self.lost == 1:
                    log.error("%d documents wait for the dispatcher: the next are lost and counted", BOUND)
                return
            self._waiting.append((name, doc))
            self._wake()

    def _wake(self) -> None:
        # Only one thread at a time may use a socket: callers hold the lock, or are the last.
        with suppress(zmq.Again):  # it has been woken a thousand times, and will look
            self._wake_out.send(b"", zmq.NOBLOCK)

    def _talk(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_in, zmq.POLLIN)
        try:
            while not self._closing:
                events = dict(poller.poll(int(1000 * TICK)))
                if self._wake_in in events:
                    while self._wake_in.poll(0):
                        self._wake_in.recv()
                try:
                    self._turn(self._socket in events)
                except Exception:
                    # Whatever went wrong in one turn, the next runs must still be told of.
                    log.exception("the dispatcher's turn failed")
        finally:
            # Nobody is left to close what is still open: the sink need not wait for it.
            self._send(encode(Bye(self._core.session)))
            self._socket.close(LINGER_MS)
            self._wake_in.close()

    def _turn(self, heard: bool) -> None:
        core = self._core
        now = monotonic()
        greet = False
        while heard and self._socket.poll(0):
            try:
                message = decode(self._socket.recv())
            except WireError as error:
                if self._flood.tell():
                    log.warning("the sink says what can't be read: %s (%d so far)", error, self._flood.count)
                continue
            if isinstance(message, Welcome | Ack):
                greet |= core.heard(message, now)
        with self._changed:
            batch, self._waiting = self._waiting, []
            self._datums.clear()
            self._busy = bool(batch)
        try:
            for name, doc in batch:
                try:
                    core.document(name, doc)
                except Exception:
                    self.passed_over += 1
                    log.exception("the dispatcher passes over a %s document", name)
            if greet or core.impatient(now):
                self._send(encode(Hello(VERSION, "dispatcher", self._name, core.session)))
            elif now >= self._beat_at:
                # While it lives, its runs are open; a sink that is new says that it doesn't know it.
                self._beat_at = now + BEAT
                self._send(encode(Beat(core.session)))
            for data in core.outgoing(now):
                self._send(data)
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _send(self, data: bytes) -> None:
        with suppress(zmq.Again):  # the sink is away; it is told again when it is back
            self._socket.send(data, zmq.NOBLOCK)
