"""The simulated world: one seed, one exactly reproducible run of the whole pool."""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from zlib import crc32

import msgspec

from haltere.workers.ingest.core import Source
from haltere.workers.wire import documents as wire
from haltere.workers.wire.messages import decode
from haltere.workers.worker import reading, reducing

from .beamline import HELD, RECIPES, Run
from .broker import Broker
from .checks import Checks
from .ends import Catalog, RecorderProcess, Session
from .faults import Faults
from .ingest import Ingest
from .model import Detector, Files, Mapped, Memory, installed
from .network import Link
from .process import Parts, Process
from .scenario import HEALED, Scenario, draw
from .sink import Sink
from .spiller import SpillFile
from .timeline import Timeline
from .worker import Worker

EPOCH = 1_800_000_000.0
"""The wall clock when virtual time begins, s since 1970."""

SHM = Path("/dev/shm")


class World:
    """Everything there is. Make it within :func:`prepared`, and :meth:`run` it.

    Parameters
    ----------
    scenario
        What happens.
    folder
        For ledger and journal.
    rings
        Where the rings go, by their names.
    log
        Called with each line of what happens.
    """

    def __init__(
        self, scenario: Scenario, folder: Path, rings: dict[str, Memory], log: Callable[[str], None] | None = None
    ) -> None:
        self.scenario = scenario
        self.time = Timeline()
        self.random = Random(f"{scenario.seed} world")
        self.counts: Counter[str] = Counter()
        self.digest = 0
        """A checksum of every message that arrived, and when: equal runs have equal ones."""
        self.rings = rings
        self.files = Files()
        self.spills: list[SpillFile] = []
        self.spills_full = False
        self.catalog = Catalog()
        self.checks = Checks(self)
        self.links: list[Link] = []
        self._log = log
        self._epochs = 0
        self._held: dict[str, list[tuple[Detector, Source, int]]] = {}
        self.broker = Broker(self, "broker")
        self.sink = Sink(self, "sink", folder / "ledger.db")
        self.ingest = Ingest(self, "ingest")
        self.recorder = RecorderProcess(self, "recorder", folder / "ledger.db")
        recipes = tuple(msgspec.structs.replace(recipe, policy=scenario.policy) for recipe in RECIPES)
        self.session = Session(self, "session", recipes)
        self.workers = [Worker(self, f"w{number}") for number in range(scenario.workers)]
        self._link(self.broker, self.sink, identity=b"broker", immediate=True)
        self._link(self.ingest, self.broker)
        self._link(self.recorder, self.sink)
        self._link(self.session, self.sink)
        self._link(self.session, self.recorder)
        for worker in self.workers:
            for server in (self.broker, self.sink):
                self._link(worker, server, identity=worker.name.encode(), immediate=True)
        self.cost = scenario.pace * scenario.scans[0].dwell * scenario.workers
        """Seconds that a worker takes for a frame."""
        for process in (self.sink, self.broker, self.ingest, self.recorder, self.session, *self.workers):
            process.start()
        self.runs = [Run(self, number, scan) for number, scan in enumerate(scenario.scans)]
        self.faults = Faults(self)

    def _link(
        self, client: Process, server: Process, *, identity: bytes | None = None, immediate: bool = False
    ) -> None:
        self.links.append(Link(self, client, server, identity=identity, immediate=immediate))

    # --- what processes ask for --------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Seconds of virtual time."""
        return self.time.now

    @property
    def wall(self) -> float:
        """Seconds since 1970."""
        return self.wall_at(self.now)

    def wall_at(self, now: float) -> float:
        """Return the wall clock's time for a virtual one."""
        return EPOCH + now

    @property
    def troubled(self) -> bool:
        """Whether messages may still be lost, doubled, late."""
        return self.now < HEALED

    def gone(self, name: str) -> bool:
        """Say whether the session of that name is gone."""
        return name != self.session.called or not self.session.alive

    def epoch(self) -> int:
        """Return a number that grows from call to call: what processes take the time for."""
        self._epochs += 1
        return int(self.wall * 1e6) + self._epochs

    def links_to(self, server: Process) -> Iterator[Link]:
        """Yield the connections that others have to a process."""
        return (link for link in self.links if link.server is server)

    # --- the log -----------------------------------------------------------------------------------------------------

    def note(self, text: str, *values: Any) -> None:
        """Note something that happens."""
        if self._log is not None:
            self._log(f"{self.now:9.4f} {text % values}")

    def tell(self, link: Link, to_server: bool, parts: Parts, mark: str) -> None:
        """Note a message."""
        self.digest = crc32(parts[0], crc32(b"%r%d" % (self.now, to_server), self.digest))
        if self._log is not None:
            way = (link.client.name, link.server.name) if to_server else (link.server.name, link.client.name)
            read: Callable[[bytes], Any] = wire.decode if link.server is self.recorder else decode
            shown = str(read(parts[0]))
            self._log(f"{self.now:9.4f} {way[0]:>8} -> {way[1]:8} {mark} {shown[:400]}")

    # --- detectors ---------------------------------------------------------------------------------------------------

    def stream(self, detector: Detector, source: Source, frame: int) -> None:
        """Let a detector stream a frame."""
        if self.random.random() < self.scenario.stray:
            self.counts["frames that never came"] += 1
            return
        if not self.ingest.alive or source.endpoint not in self.ingest.endpoints:
            held = self._held.setdefault(source.endpoint, [])
            if len(held) < HELD:
                held.append((detector, source, frame))
            else:
                self.counts["frames that never came"] += 1
            return
        self.ingest.now_or_later(self.ingest.come, source, frame, detector.blob(frame, detector.damaged))

    def pulled(self, endpoint: str) -> None:
        """Take note that the ingest pulls from a detector: what waited there comes."""
        for each in self._held.pop(endpoint, []):
            self.stream(*each)

    # --- running -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Let everything happen until all is done, and see that all is well."""
        last = max((fault.at + fault.seconds for fault in self.scenario.faults), default=0.0)
        self.time.at(max(last, HEALED if any(vars_of(self.scenario.network)) else 0.0), self._watch)
        self._over = False
        while not self._over:
            self.time.step()
            self.files.now = self.now
            assert self.now < self.scenario.limit, f"it never ends: {self.checks.lacking()}"
        self.checks.end()
        self.close()

    def _watch(self) -> None:
        self._over = not self.checks.lacking()
        self.time.after(0.25, self._watch)

    def close(self) -> None:
        """Close every file."""
        for process in (self.recorder, self.sink):
            if process.alive:
                process.kill()


def vars_of(network: Any) -> list[float]:
    """Return the rates of a network's faults."""
    return [network.loss, network.twice, network.late]


@contextmanager
def prepared(scenario: Scenario) -> Iterator[tuple[Path, dict[str, Memory]]]:
    """Give a folder, and rings that can be mapped; let the model reducer be installed, and the limits hold."""
    rings: dict[str, Memory] = {}
    folder = Path(tempfile.mkdtemp(prefix="haltere-simulation-", dir=SHM if SHM.is_dir() else None))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        stack.enter_context(installed())
        stack.enter_context(patch.object(reading, "RingView", Mapped(rings)))
        # Nobody looks at what the reducer says it took; asking costs more than reducing.
        stack.enter_context(patch.object(reducing, "time", SimpleNamespace(thread_time=float)))
        for name, value in scenario.limits:
            module, _, constant = name.rpartition(".")
            stack.enter_context(patch.object(import_module(module), constant, value))
        yield folder, rings


def simulate(scenario: Scenario | int, log: Callable[[str], None] | None = None) -> World:
    """Run a scenario, or a seed's, to its end; return the world as it is then.

    Raises
    ------
    AssertionError
        What must always hold didn't.
    """
    if isinstance(scenario, int):
        scenario = draw(scenario)
    disabled = logging.root.manager.disable
    if log is None:
        logging.disable(sys.maxsize)  # a thousand warnings about what was done on purpose
    try:
        with prepared(scenario) as (folder, rings):
            world = World(scenario, folder, rings, log)
            try:
                world.run()
            finally:
                world.close()
            return world
    finally:
        logging.disable(disabled)
