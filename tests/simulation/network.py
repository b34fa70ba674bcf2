"""Connections as ZeroMQ's: in order while nothing is wrong; and then messages are lost, doubled, late, out of order."""

from __future__ import annotations

from collections import deque
from random import Random
from typing import TYPE_CHECKING, Final

from .process import Parts, Process

if TYPE_CHECKING:
    from .world import World

HWM: Final = 1000
"""Messages that wait at a client for a server that is away."""

LATEST: Final = 1.5
"""Most seconds that a message is late."""


class Link:
    """A DEALER's connection to a ROUTER.

    Parameters
    ----------
    identity
        The client's routing id; without one it has another each time that it connects.
    immediate
        Nothing waits at the client while the server is away: sending fails.
    """

    def __init__(
        self, world: World, client: Process, server: Process, *, identity: bytes | None, immediate: bool
    ) -> None:
        self.world = world
        self.client = client
        self.server = server
        self.name = f"{client.name}-{server.name}"
        self.random = Random(f"{world.scenario.seed} {self.name}")
        self.up = False
        self._identity = identity
        self._immediate = immediate
        self._peer = identity or b""
        self._generation = 0
        self._survivors: set[int] = set()
        self._queue: deque[Parts] = deque()
        self._last = {True: 0.0, False: 0.0}
        client.links.append(self)

    def open(self, seconds: float) -> None:
        """Connect in a while, if both ends live then."""
        self.world.time.after(seconds, self._connect, self._generation)

    def cut(self, *, dead: Process | None = None) -> None:
        """Lose the connection. Of what a dead client had sent some arrives; a live client connects again."""
        self.world.note("%s is cut", self.name)
        if dead is self.client:
            self._queue.clear()
            if self.random.random() < 0.5:
                self._survivors.add(self._generation)
        if self.up:
            self.server.served.pop(self._peer, None)
        self.up = False
        self._generation += 1
        if dead is None:
            self.open(self.random.uniform(0.01, 0.5))

    def ask_anew(self) -> None:
        """Close the socket and open another: what was under way is lost."""
        self._queue.clear()
        self.cut()

    def to_server(self, *parts: bytes) -> bool:
        """Send; return whether the socket took it."""
        if self.up:
            self._carry(True, parts)
            return True
        if self._immediate or len(self._queue) >= HWM:
            return False
        self._queue.append(parts)
        return True

    def to_client(self, *parts: bytes) -> None:
        """Send; the connection is up."""
        self._carry(False, parts)

    def _connect(self, generation: int) -> None:
        if self.up or generation != self._generation or not (self.client.alive and self.server.alive):
            return
        self.up = True
        self._generation += 1
        if self._identity is None:
            self._peer = b"%s/%d" % (self.client.name.encode(), self._generation)
        self.server.served[self._peer] = self
        while self._queue:
            self._carry(True, self._queue.popleft())
        self.client.now_or_later(self.client.connected, self.server)

    def _carry(self, to_server: bool, parts: Parts) -> None:
        world, random = self.world, self.random
        troubled = world.troubled
        rates = world.scenario.network
        world.counts["messages"] += 1
        if troubled and random.random() < rates.loss:
            world.counts["lost"] += 1
            world.tell(self, to_server, parts, "LOST")
            return
        delay = random.choice((0.0002, 0.0002, 0.001, 0.01))
        due = self._last[to_server] = max(self._last[to_server], world.now + delay)
        if troubled and random.random() < rates.late:
            world.counts["late"] += 1
            due += random.uniform(0.01, LATEST)  # those after it overtake it
        ends = self.client.life, self.server.life, self._generation, self._peer
        world.time.at(due, self._arrive, to_server, parts, ends)
        if troubled and random.random() < rates.twice:
            world.counts["doubled"] += 1
            world.time.at(due + random.uniform(0.0, LATEST), self._arrive, to_server, parts, ends)

    def _arrive(self, to_server: bool, parts: Parts, ends: tuple[int, int, int, bytes]) -> None:
        client_life, server_life, generation, peer = ends
        if generation != self._generation and not (to_server and generation in self._survivors):
            return
        if to_server:
            if self.server.alive and self.server.life == server_life:
                self.world.tell(self, to_server, parts, "")
                self.server.now_or_later(self.server.receive, peer, parts)
        elif self.client.life == client_life:
            self.world.tell(self, to_server, parts, "")
            self.client.now_or_later(self.client.hear, self.server, parts)
