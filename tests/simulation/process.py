"""A process as the network sees it: it lives, is stopped for a while, is killed, and starts anew knowing nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .network import Link
    from .world import World

Parts = Sequence[bytes]


class Process:
    """What all of them have in common. A subclass holds a core and does what its shell does in the product.

    Parameters
    ----------
    world
        Where it lives.
    name
        What it is called in the log.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.life = 0
        self.alive = False
        self.links: list[Link] = []
        """Its connections to others, which it opens."""
        self.served: dict[bytes, Link] = {}
        """Others' connections to it that are up, by their routing id."""
        self._thaw = 0.0
        self._waiting: deque[tuple[int, Callable[..., None], tuple[Any, ...]]] = deque()
        """What came while it was stopped, in this order."""

    # --- life and death ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start, or start anew."""
        assert not self.alive
        self.life += 1
        self.alive = True
        self._thaw = self.world.now
        self._waiting.clear()
        self.world.note("%s starts", self.name)
        self.begin()
        for link in self.links:
            link.open(0.005)
        for link in self.world.links_to(self):
            link.open(link.random.uniform(0.01, 0.4))

    def kill(self) -> None:
        """Die, as by SIGKILL."""
        if not self.alive:
            return
        self.world.note("%s dies", self.name)
        self.alive = False
        for link in (*self.links, *self.world.links_to(self)):
            link.cut(dead=self)
        self.end()

    def freeze(self, seconds: float) -> None:
        """Stop, as by SIGSTOP; what comes meanwhile waits."""
        self._thaw = max(self._thaw, self.world.now + seconds)
        self.world.time.at(self._thaw, self._go_on_living)

    def begin(self) -> None:
        """Make the core, and plan what is done from time to time."""

    def end(self) -> None:
        """Let go of what the kernel would close."""

    # --- what happens to it ------------------------------------------------------------------------------------------

    def receive(self, peer: bytes, parts: Parts) -> None:
        """Take a message that came to it as a server."""
        raise NotImplementedError

    def hear(self, server: Process, parts: Parts) -> None:
        """Take a message from a server that it is connected to."""
        raise NotImplementedError

    def connected(self, server: Process) -> None:
        """Take note that a connection is up."""

    def now_or_later(self, do: Callable[..., None], *args: Any) -> None:
        """Do something in this life, as soon as it isn't stopped."""
        self._do(self.life, do, args)

    def after(self, seconds: float, do: Callable[..., None], *args: Any) -> None:
        """Do something in a while, in this life."""
        self.world.time.after(seconds, self._do, self.life, do, args)

    def every(self, period: float, do: Callable[[], None]) -> None:
        """Do something now, and then from time to time."""
        do()
        self.after(period, self.every, period, do)

    def _do(self, life: int, do: Callable[..., None], args: tuple[Any, ...]) -> None:
        if not self.alive or self.life != life:
            return
        if self._waiting or self.world.now < self._thaw:
            self._waiting.append((life, do, args))
        else:
            do(*args)

    def _go_on_living(self) -> None:
        while self._waiting and self.world.now >= self._thaw:
            life, do, args = self._waiting.popleft()
            if self.alive and self.life == life:
                do(*args)
