"""The spiller as its ingest sees it, and its files: they stay, whoever dies; what wasn't shown is gone."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from haltere.workers.spill.file import spans
from haltere.workers.spill.pipe import FULL, Answer, Kind, Order, Put, Refused, Search, Searched, Written

if TYPE_CHECKING:
    from .ingest import Ingest
    from .world import World

TURN = 4
"""Frames that are written before they are shown."""

LOOK = 0.5


@dataclass(slots=True)
class SpillFile:
    """A file of frames as they came; readers see those that were shown."""

    kind: Kind
    path: Path
    writer: Spiller | None
    rows: list[int] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)


class Spiller:
    """As ``workers/spill/process.py``. It outlives its ingest until it has written what it was given.

    Parameters
    ----------
    memory
        What lies where in the memory that it shares with its ingest.
    """

    def __init__(self, world: World, ingest: Ingest, memory: dict[int, bytes]) -> None:
        self.world = world
        self.alive = True
        self._ingest: Ingest | None = ingest
        self._memory = memory
        self._orders: deque[Order] = deque()
        self._searches: list[tuple[Search, set[Path]]] = []
        self._open: dict[Kind, SpillFile] = {}
        self._busy = False
        world.time.after(LOOK, self._look)

    def tell(self, order: Order) -> None:
        """Give it an order."""
        self._orders.append(order)
        self._soon()

    def kill(self) -> None:
        """Let it die: what it hadn't shown is gone."""
        self.alive = False
        self._end()

    def orphan(self) -> None:
        """Let its ingest be dead: it writes what it was given, and ends."""
        self._ingest = None
        self._soon()

    def _end(self) -> None:
        for file in self._open.values():
            file.writer = None
        self._open.clear()

    def _soon(self) -> None:
        if self.alive and not self._busy:
            self._busy = True
            self.world.time.after(self.world.random.choice((0.001, 0.01, 0.2)), self._turn)

    def _turn(self) -> None:
        if not self.alive:
            return
        self._busy = False
        some = [self._orders.popleft() for _ in range(min(TURN, len(self._orders)))]
        puts = [order for order in some if isinstance(order, Put)]
        self._searches += [(order, set()) for order in some if isinstance(order, Search)]
        if self.world.spills_full and puts:
            self._say(Refused([order.offset for order in puts], FULL))
        else:
            for kind in dict.fromkeys(order.kind for order in puts):
                self._write(kind, [order for order in puts if order.kind == kind])
        self._searches = [each for each in self._searches if not self._search(*each)]
        if self._orders:
            self._soon()
        elif self._ingest is None:
            self.alive = False
            self._end()

    def _write(self, kind: Kind, puts: list[Put]) -> None:
        file = self._open.get(kind)
        if file is None:
            path = Path(f"/spill/{kind.stem}{len(self.world.spills)}-0.h5")
            file = self._open[kind] = SpillFile(kind, path, self)
            self.world.spills.append(file)
            self.world.files.spill(file)
        first = len(file.rows)
        file.rows += [put.frame for put in puts]
        file.data += [self._memory[put.offset] for put in puts]
        self.world.checks.spilled(kind, [put.frame for put in puts])
        found = spans(kind.key, file.path, file.rows[first:], first)
        self._say(Written(kind.run, kind.stream, found, [put.offset for put in puts]))

    def _look(self) -> None:
        if self.alive:
            self._searches = [each for each in self._searches if not self._search(*each)]
            self.world.time.after(LOOK, self._look)

    def _search(self, order: Search, known: set[Path]) -> bool:
        whole = True
        for file in self.world.spills:
            kind = file.kind
            if (kind.run, kind.stream) != (order.run, order.stream) or file.path in known or file.writer is self:
                continue
            if file.writer is not None:
                whole = False
                continue
            known.add(file.path)
            self._say(Written(order.run, order.stream, spans(kind.key, file.path, file.rows), []))
        if whole:
            self._say(Searched(order.run, order.stream))
        return whole

    def _say(self, answer: Answer) -> None:
        if self._ingest is not None:
            self._ingest.after(self.world.random.choice((0.0005, 0.02)), self._ingest.answered, self, answer)
