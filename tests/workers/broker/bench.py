"""A broker to talk to, with a clock that the test moves."""
# ruff: noqa: D102 - the bench speaks for itself

from __future__ import annotations

from typing import Any, TypeVar

from haltere.workers.broker.core import SINK, BrokerCore
from haltere.workers.wire.messages import (
    Beat,
    Block,
    Credit,
    Done,
    Expect,
    FileSpan,
    Frames,
    Gauge,
    Hello,
    InputSpec,
    LiveLane,
    Message,
    Nack,
    RecipeSpec,
    RunClose,
    RunOpen,
    SeriesGauge,
    StreamOpen,
    StreamTotal,
    Work,
)

LANE = LiveLane("tcp://eiger", "simplon-1", 12, "image")
IMAGE = InputSpec("image", (2, 3), "<u2")
BATCH = 4
M = TypeVar("M", bound=Message)


class Bench:
    """A broker, and what it has said since it was last asked."""

    def __init__(self) -> None:
        self.now = 100.0
        self.core = BrokerCore(1000)
        self.said: list[tuple[bytes, Message]] = []
        self.serial = 0
        self.closed = False

    def hear(self, peer: bytes, message: Any) -> None:
        self.said += self.core.receive(peer, message, self.now)
        self.said += self.core.pump(self.now)

    def wait(self, seconds: float, *, alive: tuple[bytes, ...] = (), busy: int = -1) -> None:
        """Let time pass in steps of 50 ms; those ``alive`` beat meanwhile."""
        for _ in range(round(seconds / 0.05)):
            self.now += 0.05
            for peer in alive:
                known = self.core.peers.get(peer)
                if known is not None:
                    beat = Beat(known.session, busy, known.sent, held=list(known.leases))
                    self.said += self.core.receive(peer, beat, self.now)
            self.said += self.core.tick(self.now)

    def take(self, kind: type[M]) -> list[tuple[bytes, M]]:
        found = [(peer, message) for peer, message in self.said if isinstance(message, kind)]
        self.said = [each for each in self.said if not isinstance(each[1], kind)]
        return found

    def work(self) -> list[Work]:
        return [message for _, message in self.take(Work)]

    def sink(self, kind: type[Message], *fields: Any) -> None:
        self.serial += 1
        self.hear(SINK, kind(self.serial, *fields))

    def open(
        self, *, live: bool = True, synced: bool = True, inputs: tuple[InputSpec, ...] = (IMAGE,), sums: bool = False
    ) -> None:
        self.sink(RunOpen, "run", "processed", b"{}")
        recipes = [RecipeSpec("xrd", "azimuthal", b"{}")]
        lane = LANE if live else None
        self.sink(StreamOpen, "run", "eiger", "cfg", BATCH, list(inputs), recipes, lane, "drop", None, sums)
        if synced:
            self.done([], full=True)

    def expect(self, first: int, stop: int, *keys: str) -> None:
        spans = [FileSpan(key, "file:///d/a.h5", "data", first, stop - first, first) for key in keys or ("image",)]
        self.sink(Expect, "run", "eiger", first, stop, spans)

    def close(self, total: int) -> None:
        self.sink(RunClose, "run", [StreamTotal("eiger", total)], "success", b"{}")
        self.closed = True
        self.done([], full=True)

    def done(self, ranges: list[tuple[int, int]], *, full: bool = False) -> None:
        self.hear(SINK, Done("run", "eiger", "cfg", ranges, full, self.serial if full else 0, full and self.closed))

    def frames(self, *numbers: int, series: int = 12, ring: str = "ring-1", shape: tuple[int, ...] = (2, 3)) -> None:
        blocks = [Block(number, 64 * number, 12, "bslz4", number) for number in numbers]
        self.hear(b"ingest", Frames(LANE.endpoint, series, ring, shape, "<u2", blocks))

    def ingest(self) -> None:
        self.hear(b"ingest", Hello(1, "ingest", "ingest", 1))

    def worker(self, peer: bytes = b"w", *, credit: int = 100, session: int = 1) -> None:
        self.hear(peer, Hello(1, "worker", peer.decode(), session))
        self.hear(peer, Credit(session, credit))

    def nack(self, work: Work, *, frame: int = -1, reason: str = "why", retryable: bool = False) -> None:
        key = work.run, work.stream, work.first, work.n, work.token
        self.hear(b"w", Nack(*key, frame, reason, retryable))


def nothing_left(bench: Bench) -> None:
    """Let the ingest say that the ledger knows all that it has spilled."""
    bench.hear(b"ingest", Gauge(1, [SeriesGauge(LANE.endpoint, 12, 1.0)]))
