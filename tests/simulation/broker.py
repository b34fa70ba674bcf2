"""The broker: its core, in a shell with virtual sockets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from haltere.workers.broker.core import SINK, BrokerCore
from haltere.workers.broker.core import Send as BrokerSend
from haltere.workers.wire.messages import (
    decode,
    encode,
)

from .process import Parts, Process

if TYPE_CHECKING:
    pass

TICK = 0.05


class Broker(Process):
    """As ``workers/broker/process.py``."""

    core: BrokerCore

    def begin(self) -> None:
        """Make the core."""
        self._heard = 0
        self.core = BrokerCore(self.world.epoch(), self.world.scenario.times)
        self.after(0.0, self.every, TICK, self._tick)

    def receive(self, peer: bytes, parts: Parts) -> None:
        """Take a message of a worker or an ingest."""
        self._take(peer, decode(parts[0]))

    def hear(self, server: Process, parts: Parts) -> None:
        """Take a message of the sink."""
        self._take(SINK, decode(parts[0]))

    def connected(self, server: Process) -> None:
        """Have the sink tell everything."""
        self.core.sink_connected()

    def _take(self, peer: bytes, message: Any) -> None:
        self._say(self.core.receive(peer, message, self.world.now))
        self._say(self.core.pump(self.world.now))
        self._heard += 1
        if self._heard % 4 == 0:
            self.world.checks.broker(self.core)

    def _tick(self) -> None:
        self._say(self.core.tick(self.world.now))
        self.world.checks.broker(self.core)

    def _say(self, sends: Iterable[BrokerSend]) -> None:
        for peer, message in sends:
            if peer == SINK:
                self.links[0].to_server(encode(message))
            elif peer in self.served:
                self.served[peer].to_client(encode(message))
            else:
                self.core.unreachable(peer, message, self.world.now)
