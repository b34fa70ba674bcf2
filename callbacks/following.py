"""Brings processed documents into the session: to live plots, or to any other bluesky callback."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from itertools import count
from time import monotonic
from typing import Any, Final

import zmq

from ..workers.errors import PoolError, WireError
from ..workers.processes import sockets
from ..workers.processes.flood import Flood
from ..workers.wire.documents import MAX_ANSWER, Cursor, Documents, Fetch, Part, decode, encode, unpack

log = logging.getLogger(__name__)

Document = dict[str, Any]
Callback = Callable[[str, Document], Any]

WAIT: Final = 5.0
"""Seconds for which the recorder may keep a question; a run that is new to us is then asked for at once."""

PATIENCE: Final = 3.0
"""Seconds beyond that after which a question is asked again: the recorder died, or is starting."""

LIMIT: Final = 500
MOST_RUNS: Final = 64
REMEMBERED: Final = 256
"""Finished runs whose stop documents are kept."""


class Follower:
    """Calls bluesky callbacks with the documents of processed runs: in order, each once, from a thread of its own.

    Followed are the runs opened after it was made. A callback gets the runs that start after it was subscribed. An
    error of one is logged and keeps neither the others from their documents nor itself from the next.

    Parameters
    ----------
    recorder
        The recorder's endpoint.
    timeout
        Seconds to wait for the recorder's first answer.

    Raises
    ------
    PoolError
        It didn't answer.
    """

    def __init__(self, recorder: str, timeout: float = 30.0) -> None:
        self._endpoint = recorder
        self._changed = threading.Condition()
        self._callbacks: dict[int, _Subscription] = {}
        self._tokens = count()
        self._cursors: dict[str, int] = {}  # followed runs, by processed uid: the next document
        self._stops: dict[str, Document] = {}  # by processed uid
        self._faults: dict[str, str] = {}  # by processed uid: why it has no documents
        self._raw: dict[str, str] = {}  # raw uid: processed uid
        self._after = -1  # the number of the last run that is, or was, followed
        self._before = -1  # runs up to this number are from before this follower
        self._ready = False
        self._closing = False
        self.errors = 0
        """Errors of callbacks so far; each stands in the log."""
        self._context = zmq.Context()
        self._wake_in = self._context.socket(zmq.PAIR)
        self._wake_in.bind("inproc://wake")
        self._wake_out = self._context.socket(zmq.PAIR)
        self._wake_out.connect("inproc://wake")
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)
        self._thread.start()
        with self._changed:
            answered = self._changed.wait_for(lambda: self._ready, timeout)
        if not answered:
            self.close()
            raise PoolError(f"the recorder at {recorder} didn't answer within {timeout:.0f} s; is the pool running?")

    def subscribe(self, callback: Callback, name: str = "all") -> int:
        """Call ``callback(name, doc)`` with the documents of that name, or all. Return a token for unsubscribing."""
        with self._changed:
            token = next(self._tokens)
            self._callbacks[token] = _Subscription(callback, name)
            return token

    def unsubscribe(self, token: int) -> None:
        """Call it no more."""
        with self._changed:
            self._callbacks.pop(token, None)

    def wait(self, run: str, timeout: float = 60.0) -> Document:
        """Wait until a run is reduced, and the callbacks have got its documents; return its stop document.

        Parameters
        ----------
        run
            Its uid, or that of its processed run. One from before this follower is looked up, not given to callbacks.
        timeout
            Seconds.

        Raises
        ------
        PoolError
            It isn't complete by then.
        """
        until = monotonic() + timeout
        if not self._is_followed(run) and (stop := self._look_up(run, until)) is not None:
            return stop
        with self._changed:
            self._changed.wait_for(
                lambda: self._closing or self._stop_of(run) is not None or self._fault_of(run), until - monotonic()
            )
            found, fault = self._stop_of(run), self._fault_of(run)
            come = self._cursors.get(self._raw.get(run, run))
        if found is not None:
            return found
        if fault:
            raise PoolError(f"run {run} has no processed documents: {fault}")
        how_far = "the recorder doesn't know it" if come is None else f"{come} documents so far"
        raise PoolError(f"run {run} isn't reduced after {timeout:.0f} s: {how_far}; see pool.status()")

    def documents(self, run: str, timeout: float = 60.0) -> Iterator[tuple[str, Document]]:
        """Give all documents of any run, from its start, as they come, until its stop document.

        Raises
        ------
        PoolError
            Nothing new came for ``timeout`` seconds, or the run has no documents.
        """
        first, until = 0, monotonic() + timeout
        with zmq.Context() as context, _Asking(context, self._endpoint) as asking:
            while True:
                answer = asking.ask(-1, {run: first}, min(WAIT, max(until - monotonic(), 0.0)))
                for part in answer.parts if answer is not None else ():
                    if part.fault:
                        raise PoolError(f"run {run}: {part.fault}")
                    for document in part.documents:
                        yield unpack(document)
                    first += len(part.documents)
                    until = monotonic() + timeout
                    if part.complete:
                        return
                if monotonic() >= until:
                    raise PoolError(f"run {run}: {first} documents came, then none for {timeout:.0f} s")

    def close(self) -> None:
        """End the thread. May be called again."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._wake()
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:  # it is, if a callback closes us
            self._thread.join()
            self._wake_out.close()
            self._context.term()

    def _is_followed(self, run: str) -> bool:
        with self._changed:
            return self._raw.get(run, run) in self._cursors or self._stop_of(run) is not None

    def _look_up(self, run: str, until: float) -> Document | None:
        """Wait until the recorder knows a run; of one from before this follower return the stop document."""
        with zmq.Context() as context, _Asking(context, self._endpoint) as asking:
            while (left := until - monotonic()) > 0 and not self._is_followed(run) and not self._closing:
                answer = asking.ask(-1, {run: 0}, min(WAIT, left))
                for part in answer.parts if answer is not None else ():
                    if part.fault:
                        raise PoolError(f"run {run} has no processed documents: {part.fault}")
                    if part.number > self._before:
                        return None
                    stop = [doc for name, doc in self.documents(run, left) if name == "stop"]
                    return stop[0]
        return None

    # --- the thread --------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        asking = _Asking(self._context, self._endpoint, self._wake_in)
        try:
            while not self._closing:
                cursors = dict(list(self._cursors.items())[:MOST_RUNS])
                answer = asking.ask(self._after, cursors, WAIT)
                if answer is None:
                    continue
                if self._after < 0:
                    self._after = self._before = max(answer.newest, 0)
                for part in answer.parts:
                    self._take(part)
                with self._changed:
                    self._ready = True
                    self._changed.notify_all()
        finally:
            asking.close()
            self._wake_in.close()

    def _take(self, part: Part) -> None:
        """Give a part's documents to the callbacks, and move the cursor on."""
        if part.first != self._cursors.get(part.processed, 0):
            return
        with self._changed:
            self._raw[part.run] = part.processed
            self._cursors[part.processed] = part.first
            if part.fault:
                log.error("run %s has no processed documents: %s", part.run, part.fault)
                self._faults[part.processed] = part.fault
        for place, document in enumerate(part.documents, part.first):
            try:
                name, doc = unpack(document)
            except WireError as error:
                log.error("run %s, document %d: %s", part.run, place, error)
                continue
            self._call(part.processed, name, doc)
            with self._changed:
                self._cursors[part.processed] = place + 1
                if name == "stop":
                    self._stops[part.processed] = doc
        if part.complete:
            with self._changed:
                del self._cursors[part.processed]
                while len(self._stops) > REMEMBERED:
                    oldest = next(iter(self._stops))
                    del self._stops[oldest]
                    self._raw = {raw: uid for raw, uid in self._raw.items() if uid != oldest}
        # New runs are told in the order of their numbers, so none between is passed over.
        self._after = max(self._after, part.number)

    def _call(self, run: str, name: str, doc: Document) -> None:
        with self._changed:
            subscriptions = list(self._callbacks.values())
        for each in subscriptions:
            if name == "start":
                each.runs.add(run)
            if run in each.runs and each.name in ("all", name):
                try:
                    each.callback(name, doc)
                except Exception:
                    self.errors += 1
                    log.exception("%r failed with a %s document of run %s", each.callback, name, run)
            if name == "stop":
                each.runs.discard(run)

    def _stop_of(self, run: str) -> Document | None:
        return self._stops.get(self._raw.get(run, run))

    def _fault_of(self, run: str) -> str:
        return self._faults.get(self._raw.get(run, run), "")

    def _wake(self) -> None:
        try:
            self._wake_out.send(b"", zmq.NOBLOCK)
        except zmq.ZMQError as error:
            log.debug("the follower's thread isn't woken: %s", error)


class _Subscription:
    __slots__ = ("callback", "name", "runs")

    def __init__(self, callback: Callback, name: str) -> None:
        self.callback = callback
        self.name = name
        self.runs: set[str] = set()
        """Runs whose start document it was there for."""


class _Asking:
    """One conversation with the recorder: question, answer. Use it in one thread."""

    def __init__(self, context: zmq.Context[Any], endpoint: str, wake: Any = None) -> None:
        self._context = context
        self._endpoint = endpoint
        self._wake = wake
        self._serials = count(1)
        self._flood = Flood()
        self._socket: Any = None

    def ask(self, after: int, cursors: dict[str, int], wait: float) -> Documents | None:
        """Return the answer; None if none came in time, or if somebody woke us."""
        socket = self._connected()
        serial = next(self._serials)
        wanted = [Cursor(run, first) for run, first in cursors.items()]
        socket.send(encode(Fetch(serial, after, wanted, LIMIT, int(1000 * wait))))
        until = monotonic() + wait + PATIENCE
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        if self._wake is not None:
            poller.register(self._wake, zmq.POLLIN)
        while (left := until - monotonic()) > 0:
            events = dict(poller.poll(int(1000 * left) + 1))
            if socket in events:
                answer = self._answer(socket.recv())
                if answer is not None and answer.serial == serial:
                    return answer
            if self._wake is not None and self._wake in events:
                while self._wake.poll(0):
                    self._wake.recv()
                return None
        # What was asked may still be answered, or be lost with a recorder that died: a new socket has no past.
        self.close()
        return None

    def _answer(self, data: bytes) -> Documents | None:
        try:
            answer = decode(data)
        except WireError as error:
            if self._flood.tell():
                log.warning("the recorder says what can't be read: %s (%d so far)", error, self._flood.count)
            return None
        return answer if isinstance(answer, Documents) else None

    def _connected(self) -> Any:
        if self._socket is None:
            self._socket = sockets.make(self._context, zmq.DEALER, MAX_ANSWER)
            self._socket.reconnect_ivl = 50
            self._socket.reconnect_ivl_max = 1000
            self._socket.connect(self._endpoint)
        return self._socket

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> _Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
