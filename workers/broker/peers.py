"""The broker's peers: who is there, who may have work, who has which.

Credit is cumulative, so a lost or repeated grant is harmless. A lease has no deadline of its own (a prefetched unit
behind a slow one isn't late); its worker has one, for progress on what it says it executes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from ..wire.messages import Beat, Gauge, Hello
from .batch import Key

MAX_AHEAD: Final = 1024
"""Most units of credit that count, whatever a worker says."""


@dataclass(slots=True)
class Lease:
    """A unit of work in a worker's hands."""

    token: int
    peer: bytes
    key: Key
    number: int
    """The batch's."""
    backfill: bool
    charged: float = 0.0
    """s of a worker's time that its lane was charged with."""
    at: float = 0.0
    """When it began."""
    nth: int = 0
    """Of the units that its worker was sent in this session; counts from 1."""


@dataclass(slots=True)
class Peer:
    """An ingest or a worker that has said Hello."""

    peer: bytes
    role: str
    name: str
    session: int
    heard: float
    limit: int = 0
    sent: int = 0
    got: int = 0
    busy: int = -1
    progress: float = 0.0
    """When it last began something else, or had nothing to do."""
    received: float = 0.0
    """When the number of units that it got last equalled what was sent, or moved towards it."""
    ended: float = float("-inf")
    """When it last ended a lease."""
    frames: int = 0
    reduce_us: int = 0
    leases: dict[int, Lease] = field(default_factory=dict)
    unheld: dict[int, float] = field(default_factory=dict)
    """Leases, by token, that it got and doesn't hold any more by its own word, and since when it says so."""
    told: set[Key] = field(default_factory=set)
    """Streams whose STREAM_OPEN it was sent."""
    gauge: Gauge | None = None
    """An ingest's last word of its ring."""


class Peers:
    """Everybody who has said Hello.

    Parameters
    ----------
    lease
        Seconds without progress on what a worker says it executes until its work goes to another.
    liveness
        Seconds without a word until a peer is held to be gone.
    grace
        Seconds that a lease may be out which its worker, by its beats, no longer holds.
    """

    def __init__(self, *, lease: float = 90.0, liveness: float = 3.0, grace: float = 1.0) -> None:
        self.lease = lease
        self.liveness = liveness
        self.grace = grace
        self._peers: dict[bytes, Peer] = {}
        self._willing: deque[bytes] = deque()
        self._leases: dict[int, Lease] = {}
        self.backfilling = 0
        """Leases of a backfill's batches."""
        self._ended: list[tuple[Lease, float]] = []

    def __getitem__(self, peer: bytes) -> Peer:
        return self._peers[peer]

    def __len__(self) -> int:
        return len(self._peers)

    def get(self, peer: bytes) -> Peer | None:
        """Return a peer that said Hello."""
        return self._peers.get(peer)

    def of(self, role: str) -> Iterator[Peer]:
        """Yield the peers of a role."""
        return (peer for peer in list(self._peers.values()) if peer.role == role)

    @property
    def leases(self) -> int:
        """How many units are in workers' hands."""
        return len(self._leases)

    def hello(self, peer: bytes, message: Hello, now: float) -> list[Lease]:
        """Meet a peer, or meet it anew; return the leases that end by it."""
        ended: list[Lease] = []
        known = self._peers.get(peer)
        if known is not None and (known.role, known.session) == (message.role, message.session):
            known.heard = now
            return ended
        for other in self.of(message.role):
            if other.name == message.name or other.peer == peer:
                ended += self.lose(other.peer)
        self._peers[peer] = Peer(peer, message.role, message.name, message.session, now, progress=now, received=now)
        return ended

    def knows(self, peer: bytes, session: int, now: float) -> Peer | None:
        """Return the peer if this is its session, and note that it lives."""
        known = self._peers.get(peer)
        if known is None or known.session != session:
            return None
        known.heard = now
        return known

    def grant(self, peer: Peer, limit: int, now: float) -> None:
        """Take a worker's credit; less than before is an old message."""
        peer.limit = max(peer.limit, min(limit, peer.sent + MAX_AHEAD))
        if peer.sent < peer.limit and peer.peer not in self._willing:
            self._willing.append(peer.peer)

    def beat(self, peer: Peer, message: Beat, now: float) -> None:
        """Take a sign of life."""
        if message.busy != peer.busy or message.busy < 0:
            peer.progress = now
        peer.busy = message.busy
        if message.got > peer.got or message.got == peer.sent:
            peer.received = now
        peer.got = max(peer.got, message.got)
        peer.frames, peer.reduce_us = message.frames, message.reduce_us
        held = set(message.held)
        gone = [token for token, lease in peer.leases.items() if lease.nth <= message.got and token not in held]
        peer.unheld = {token: peer.unheld.get(token, now) for token in gone}

    def next(self) -> Peer | None:
        """Return the worker whose turn it is, among those with credit."""
        while self._willing:
            peer = self._peers.get(self._willing[0])
            if peer is not None and peer.sent < peer.limit:
                return peer
            self._willing.popleft()
        return None

    def assign(self, lease: Lease, now: float) -> None:
        """Note that a worker was sent a unit; the next one's turn is then another's."""
        peer = self._peers[lease.peer]
        if peer.sent == peer.got:
            peer.received = now
        if not peer.leases:
            peer.progress = now
        peer.sent += 1
        lease.nth, lease.at = peer.sent, now
        peer.leases[lease.token] = lease
        self._leases[lease.token] = lease
        self.backfilling += lease.backfill
        self._willing.rotate(-1)

    def find(self, token: int, peer: bytes) -> Lease | None:
        """Return the lease of that token if it is that peer's."""
        lease = self._leases.get(token)
        return lease if lease is not None and lease.peer == peer else None

    def end(self, lease: Lease, now: float) -> None:
        """End a lease; ended before, it changes nothing."""
        if self._leases.pop(lease.token, None) is None:
            return
        self.backfilling -= lease.backfill
        peer = self._peers.get(lease.peer)
        if peer is not None:
            peer.leases.pop(lease.token, None)
            peer.progress = now
            # A worker does one after the other: this one began when the one before it ended, or when it came.
            self._ended.append((lease, now - max(lease.at, peer.ended)))
            peer.ended = now

    def take_ended(self) -> list[tuple[Lease, float]]:
        """Return the leases that ended since the last call, and how many seconds each took its worker."""
        ended, self._ended = self._ended, []
        return ended

    def finish(self, key: Key, numbers: set[int], now: float) -> None:
        """End the leases of these batches: they are on disk."""
        for peer in self.of("worker") if numbers else ():
            for lease in [each for each in peer.leases.values() if each.key == key and each.number in numbers]:
                self.end(lease, now)

    def forget(self, key: Key, now: float) -> None:
        """Forget a stream, and the leases of it."""
        for peer in self.of("worker"):
            peer.told.discard(key)
            for lease in [each for each in peer.leases.values() if each.key == key]:
                self.end(lease, now)

    def lose(self, peer: bytes) -> list[Lease]:
        """Forget a peer; return the leases that end by it, the first sent first."""
        known = self._peers.pop(peer, None)
        if known is None:
            return []
        for lease in known.leases.values():
            self._leases.pop(lease.token, None)
            self.backfilling -= lease.backfill
        return list(known.leases.values())

    def unheld(self, now: float) -> list[Lease]:
        """Return the leases that their workers no longer hold, though nobody said so: the NACK was lost.

        If it was the DONE that is late the work is done again for nothing, and known for a duplicate.
        """
        return [
            peer.leases[token]
            for peer in self.of("worker")
            for token, since in peer.unheld.items()
            if token in peer.leases and now - since > self.grace
        ]

    def failing(self, now: float) -> Iterator[tuple[Peer, str]]:
        """Yield the peers that are to be given up, and why."""
        for peer in list(self._peers.values()):
            if now - peer.heard > self.liveness:
                yield peer, "silent"
            elif peer.leases and peer.busy >= 0 and now - peer.progress > self.lease:
                yield peer, "no progress"
            elif peer.got < peer.sent and now - peer.received > self.liveness:
                yield peer, "work was lost on the way"
