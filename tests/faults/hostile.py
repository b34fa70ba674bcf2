"""Whoever shouldn't be there: garbage, half-open connections, oversized and endless messages on any socket.

:func:`flood` attacks a socket that listens, :class:`HostileDetector` one that connects to it. Both are functions of a
seed.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

import zmq

from haltere.workers.payload import MAX_PAYLOAD
from haltere.workers.wire import documents, simplon
from haltere.workers.wire.messages import (
    LIVE,
    Beat,
    Block,
    Bye,
    Credit,
    Done,
    Dropped,
    Expect,
    Frames,
    Free,
    Hello,
    Message,
    Nack,
    Result,
    RunClose,
    Status,
    Welcome,
    encode,
)

GREETING: Final = b"\xff\0\0\0\0\0\0\0\1\x7f\3\1NULL" + bytes(16) + bytes(32)
"""ZMTP 3.1, no security, as a client: 64 bytes."""

HALF_OPEN: Final = 20
"""Connections at a time that say nothing more."""

OVERSIZED: Final = 2 << 20


def ready(kind: str) -> bytes:
    """Return the command that ends the handshake."""
    said = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind.encode()
    return bytes([4, len(said)]) + said


def dial(endpoint: str) -> socket.socket:
    """Return a plain connection to a ZMQ endpoint (``tcp://`` or ``ipc://``)."""
    kind, _, address = endpoint.partition("://")
    if kind == "ipc":
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(1.0)
        made.connect(address)
        return made
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=1.0)


def greet(peer: socket.socket, kind: str) -> None:
    """Shake hands as a ZMQ socket of that kind."""
    peer.sendall(GREETING + ready(kind))
    left = len(GREETING)
    while left > 0 and (got := peer.recv(left)):
        left -= len(got)


def send_parts(peer: socket.socket, parts: Sequence[bytes]) -> None:
    """Send a message, after the handshake."""
    for place, part in enumerate(parts):
        more = place + 1 < len(parts)
        peer.sendall(bytes([2 | more]) + len(part).to_bytes(8, "big") + part)


def garbage(rng: random.Random) -> list[bytes]:
    """Return the parts of a message that nobody understands, or that nobody should believe."""
    kind = rng.randrange(7)
    if kind == 0:
        return [rng.randbytes(rng.randrange(300)) for _ in range(rng.randrange(1, 6))]
    if kind == 1:
        return [b""]
    if kind == 2:
        return [rng.randbytes(3)] * rng.randrange(20, 200)
    data = bytearray(encode(rng.choice(STRANGE)))
    if kind == 3:  # cut
        return [bytes(data[: rng.randrange(len(data))])]
    if kind == 4:  # damaged
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return [bytes(data)]
    if kind == 5:  # a message for somebody else
        return [documents.encode(documents.Fetch(1, -1, [], 1000, 60_000))]
    return [bytes(data), rng.randbytes(100)]


STRANGE: Final[Sequence[Message]] = (
    Hello(1, "worker", "nobody", 1),
    Hello(1, "viewer", "nobody", 2**61),
    Welcome(1, 5, 0, 0),
    Credit(7, 2**39),
    Beat(7, 12, 3, 4, 5, [1, 2, 3]),
    Bye(7),
    Status(1),
    Free("haltere-1-1", [0, 64], [1, 2]),
    Frames("tcp://127.0.0.1:1", 2**61, "haltere-1-1", (2**30, 2**30), "<u2", [Block(2**39, 2**39, 2**30, "bslz4")]),
    Dropped("tcp://127.0.0.1:1", 3, [(0, 2**39), (2**39, 5)], "boredom"),
    Done("no-such-run", "eiger", "cfg", [(0, 2**39)], True, 2**39),
    Nack("no-such-run", "eiger", 0, 4, 1, -1, "I don't like it", False),
    Expect(1, "no-such-run", "eiger", 0, 2**39, []),
    RunClose(2, "no-such-run", [], "success", b"{}"),
    Result("no-such-run", "eiger", "cfg", 0, 4, 1, "nobody", bytes([LIVE] * 4), [], []),
)
"""Messages that keep to the form, about things that aren't."""


class _Attack:
    """What one flood does; each method is one blow."""

    def __init__(self, endpoint: str, seed: int, most: int) -> None:
        self.endpoint = endpoint
        self.most = most
        self.rng = random.Random(seed)
        self.done: Counter[str] = Counter()
        self._open: list[socket.socket] = []
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.linger = 0
        self._dealer.sndhwm = 1000
        self._dealer.connect(endpoint)

    def messages(self) -> None:
        """Send messages in good form whose content is none."""
        for _ in range(self.rng.randrange(1, 50)):
            with suppress(zmq.Again):
                self._dealer.send_multipart(garbage(self.rng), zmq.NOBLOCK)
                self.done["messages"] += 1
        while self._dealer.poll(0):  # answers are read: a peer that stalls is another fault
            self._dealer.recv_multipart()

    def half_open(self) -> None:
        """Connect and say nothing, or half of a greeting, or stop after it; keep the connection."""
        said = self.rng.choice([b"", GREETING[: self.rng.randrange(64)], GREETING, GREETING + ready("DEALER")[:9]])
        with suppress(OSError):
            made = dial(self.endpoint)
            self._open.append(made)
            made.sendall(said)
            self.done["half-open"] += 1
        while len(self._open) > HALF_OPEN:
            self._open.pop(self.rng.randrange(len(self._open))).close()

    def noise(self) -> None:
        """Send bytes that aren't even ZMQ, or that begin as it."""
        with suppress(OSError), dial(self.endpoint) as made:
            start = self.rng.choice([b"", b"GET / HTTP/1.1\r\n\r\n", GREETING, GREETING + ready("DEALER")])
            made.sendall(start + self.rng.randbytes(self.rng.randrange(2000)))
            self.done["noise"] += 1

    def announced(self) -> None:
        """Announce a part of many bytes, and send few: memory must not be had for the asking."""
        size = self.rng.choice([self.most + 1, 2**40, 2**63 - 1])
        with suppress(OSError), dial(self.endpoint) as made:
            made.sendall(GREETING + ready("DEALER") + b"\x02" + size.to_bytes(8, "big") + self.rng.randbytes(5000))
            self.done["announced"] += 1

    def oversized(self) -> None:
        """Send a whole message that is too long."""
        with self._context.socket(zmq.DEALER) as sender:
            sender.linger = 0
            sender.sndtimeo = 1000
            sender.connect(self.endpoint)
            with suppress(zmq.Again):
                sender.send(bytes(OVERSIZED))
                self.done["oversized"] += 1
            sender.poll(20)

    def close(self) -> None:
        for each in self._open:
            each.close()
        self._context.destroy(linger=0)


def flood(endpoint: str, seconds: float, seed: int, *, most: int = MAX_PAYLOAD) -> Counter[str]:
    """Attack a listening socket for a while; return how often it was done what.

    Parameters
    ----------
    endpoint
        ``ipc://…`` or ``tcp://host:port``.
    seconds
        How long.
    seed
        The same gives the same blows, in the same order.
    most
        A part of more bytes is announced, now and then.
    """
    attack = _Attack(endpoint, seed, most)
    blows: tuple[Callable[[], None], ...] = (
        *(attack.messages,) * 4,
        *(attack.half_open,) * 4,
        *(attack.noise,) * 2,
        attack.announced,
        attack.oversized,
    )
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            attack.rng.choice(blows)()
            attack._dealer.poll(5)  # so that it takes 5 ms at least: the machine is needed for the run, too
    finally:
        attack.close()
    return attack.done


def stream_garbage(rng: random.Random) -> list[bytes]:
    """Return the parts of a message that looks more or less like a detector's."""
    kind = rng.randrange(6)
    image = simplon.Image(
        rng.randrange(2**61), rng.randrange(2**39), (3, 4), "<u2", "bslz4", rng.randbytes(40), 0, 1, 1
    )
    parts = [bytes(part) for part in simplon.encode(image)]
    if kind == 0:
        return [rng.randbytes(rng.randrange(200)) for _ in range(rng.randrange(1, 7))]
    if kind == 1:
        return parts[: rng.randrange(1, len(parts))]
    if kind == 2:
        at = rng.randrange(len(parts))
        parts[at] = parts[at][: rng.randrange(len(parts[at]))]
    elif kind == 3:
        parts[1] = simplon.describe((2**31 - 1, 2**31 - 1), "<u8", "bslz4", 40)
    elif kind == 4:
        parts *= 100
    return parts


class HostileDetector:
    """What a PULL socket may find at the other end: noise, half greetings, endless parts; and garbage in good form.

    It listens at ``endpoint``. Whoever connects gets, by turns, a peer that says nothing, one that says what isn't ZMQ,
    one that announces a huge part, and one that sends messages of which none is a frame of a known series.
    """

    def __init__(self, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self._rng = random.Random(seed)
        self._closing = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(0.1)
        self.endpoint = f"tcp://127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, name="hostile detector")
        self._thread.start()

    def _serve(self) -> None:
        for turn in range(1 << 30):
            try:
                peer, _ = self._listening.accept()
            except TimeoutError:
                if self._closing.is_set():
                    return
                continue
            with peer, suppress(OSError):
                peer.settimeout(0.5)
                (self._silent, self._noisy, self._endless, self._wordy)[turn % 4](peer)
            if self._closing.is_set():
                return

    def _silent(self, peer: socket.socket) -> None:
        peer.sendall(GREETING[: self._rng.randrange(64)])
        self._closing.wait(0.3)
        self.done["silent"] += 1

    def _noisy(self, peer: socket.socket) -> None:
        peer.sendall(self._rng.randbytes(3000))
        self.done["noisy"] += 1

    def _endless(self, peer: socket.socket) -> None:
        greet(peer, "PUSH")
        peer.sendall(b"\x02" + (2**62).to_bytes(8, "big") + self._rng.randbytes(5000))
        self.done["endless"] += 1
        self._closing.wait(0.1)

    def _wordy(self, peer: socket.socket) -> None:
        greet(peer, "PUSH")
        for _ in range(200):
            send_parts(peer, stream_garbage(self._rng))
            self.done["messages"] += 1
        self._closing.wait(0.2)

    def close(self) -> None:
        """End it."""
        self._closing.set()
        self._thread.join()
        self._listening.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
