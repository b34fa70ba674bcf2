"""What goes wrong, when its time has come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .process import Process
from .scenario import Fault
from .worker import Worker

if TYPE_CHECKING:
    from .world import World


class Faults:
    """Lets a scenario's faults happen."""

    def __init__(self, world: World) -> None:
        self.world = world
        for fault in world.scenario.faults:
            world.time.at(fault.at, self._happen, fault)

    def kill(self, process: Process, seconds: float) -> None:
        """Kill a process; it is started again in a while."""
        process.kill()
        self.world.time.after(seconds, self._revive, process, process.life)

    def _revive(self, process: Process, life: int) -> None:
        if process.life != life:
            return
        if process.alive:  # it was told to leave, and takes its time
            self.world.time.after(0.5, self._revive, process, life)
        else:
            process.start()

    def _happen(self, fault: Fault) -> None:
        world = self.world
        world.note("fault: %s, %.2f s", fault.kind, fault.seconds)
        world.counts[fault.kind] += 1
        what, _, how = fault.kind.partition(" ")
        worker = world.workers[fault.whom % len(world.workers)]
        named: dict[str, Process] = {
            "broker": world.broker,
            "sink": world.sink,
            "ingest": world.ingest,
            "recorder": world.recorder,
            "session": world.session,
            "worker": worker,
        }
        if fault.kind == "session dies" and fault.whom % 2 and world.session.alive:
            world.session.leave()
        if how == "dies" and what in named:
            self.kill(named[what], fault.seconds)
        elif how == "stops":
            named[what].freeze(fault.seconds)
        elif fault.kind == "workers die":
            for each in world.workers:
                self.kill(each, fault.seconds)
        elif fault.kind == "sink dies in a commit":
            world.sink.dies = "before" if fault.whom % 2 else "after"
        elif fault.kind == "disk is full":
            world.sink.fill(True)
            world.time.after(fault.seconds, world.sink.fill, False)
        elif fault.kind == "connection breaks":
            world.links[fault.whom % len(world.links)].cut()
        elif fault.kind == "catalog is away":
            world.catalog.away_until = world.now + fault.seconds
        elif fault.kind == "spiller dies":
            world.ingest.lose_spiller()
        elif fault.kind == "spiller's disk is full":
            world.spills_full = True
            world.time.after(fault.seconds, self._make_room)
        else:
            self._to_worker(worker, fault)

    def _make_room(self) -> None:
        self.world.spills_full = False

    def _to_worker(self, worker: Worker, fault: Fault) -> None:
        if not worker.alive:
            return
        if fault.kind == "reducer dies":
            worker.lose_child()
        elif fault.kind == "worker is slow":
            worker.slow, worker.slow_until = 10.0, self.world.now + fault.seconds
        elif fault.kind == "worker leaves":
            worker.leave()
            self.world.time.after(1.5 + fault.seconds, self._revive, worker, worker.life)
        else:
            raise ValueError(fault.kind)
