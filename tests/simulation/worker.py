"""A worker and its reducer: their cores, in a shell with virtual sockets."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from haltere.workers.wire.messages import (
    Work,
    decode,
    encode,
)
from haltere.workers.worker.core import Action, ToBroker, WorkerCore
from haltere.workers.worker.pipe import BETWEEN, SETTING_UP, At, Failed
from haltere.workers.worker.process import PAUSES
from haltere.workers.worker.reading import Reading
from haltere.workers.worker.reducing import Reducing

from .model import Hung, Killed
from .process import Parts, Process

if TYPE_CHECKING:
    pass

TICK = 0.05
STALL = 1.5
"""Seconds without progress after which a worker kills its reducer."""


class Reducer:
    """The worker's child: it takes its units one after the other, and dies or hangs by what they are."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.at = At(-1, -1)
        self.told: set[tuple[str, str, str]] = set()
        self.hung = False
        self.reducing = Reducing(Path("/"), [], self._say)
        self.reducing._reading = Reading(worker.world.files)

    def _say(self, at: At) -> None:
        self.at = at

    def reduce(self, work: Work) -> Any:
        """Reduce, with what memory and files hold now: what was given back meanwhile is seen to be so."""
        key = work.run, work.stream, work.cfg
        if key not in self.told:
            self.told.add(key)
            self.reducing.open(self.worker.core.streams[key])
        return self.reducing.reduce(work)


class Worker(Process):
    """As ``workers/worker/process.py``, with its child within."""

    core: WorkerCore

    def begin(self) -> None:
        """Make the core; the child is ready a little later."""
        self.core = WorkerCore(self.name, self.world.epoch(), self.world.now)
        self.slow = 1.0
        self.slow_until = 0.0
        self.leaving = False
        self._child: Reducer | None = None
        self._busy = False
        self._deaths = 0
        self._heard = self.world.now
        self.after(0.02, self._child_ready)
        self.after(0.0, self.every, TICK, self._tick)

    def hear(self, server: Process, parts: Parts) -> None:
        """Take a message of the broker or the sink."""
        message = decode(parts[0])
        take = self.core.from_sink if server is self.world.sink else self.core.from_broker
        self._do_all(take(message, self.world.now))
        self._feed()
        self.world.checks.worker(self.core)

    def lose_child(self) -> None:
        """Let the reducer die for no reason of its frames' own."""
        if self._child is not None:
            self._bury("worker died, killed by SIGKILL")

    def leave(self) -> None:
        """Give work back and end when the sink has everything, or after a second."""
        if self.leaving:
            return
        self.leaving = True
        self._do_all(self.core.leave())
        self.after(1.0, self.kill)

    def _tick(self) -> None:
        if self.leaving:
            if not self.core.kept:
                self.kill()
            return
        if self.core.running is not None and self.world.now - self._heard > STALL and self._child is not None:
            self._bury(f"no progress in {STALL} s")
        self._feed()
        self._do_all(self.core.tick(self.world.now))

    def _do_all(self, actions: Iterable[Action]) -> None:
        to_broker, to_sink = self.links
        for action in actions:
            if isinstance(action, ToBroker):
                taken = to_broker.to_server(encode(action.message))
            elif action.payload is None:
                taken = to_sink.to_server(encode(action.message))
            else:
                taken = to_sink.to_server(encode(action.message), bytes(action.payload))
            if not taken:
                self.core.unsent(action)

    # --- the child ---------------------------------------------------------------------------------------------------

    def _child_ready(self) -> None:
        if not self.leaving:
            self._child = Reducer(self)
            self._busy = False
            self._heard = self.world.now
            self.core.willing = True

    def _feed(self) -> None:
        if self._child is None or not self.core.willing:
            return
        while self.core.in_hand < 2 and self.core.take() is not None:
            if self.core.in_hand == 1:
                self._heard = self.world.now
        self._go_on()

    def _go_on(self) -> None:
        work = self.core.running
        if self._busy or work is None or self._child is None:
            return
        self._busy = True
        factor = self.slow if self.world.now < self.slow_until else 1.0
        took = self.world.cost * work.n * self.world.random.uniform(0.7, 1.3) * factor
        self.after(min(took, 0.8 * STALL), self._reduced, self._child, work)

    def _reduced(self, child: Reducer, work: Work) -> None:
        if child is not self._child:
            return  # it died before it was done
        try:
            answer = child.reduce(work)
        except Killed:
            self.world.counts["reducers killed"] += 1
            return self._bury("worker died, killed by SIGSEGV")
        except Hung:
            self.world.counts["reducers hung"] += 1
            return  # and the child stays busy
        self._heard = self.world.now
        self._busy = False
        if isinstance(answer, Failed):
            self._do_all(self.core.failed(answer.nack))
        else:
            reduced, payload = answer
            named = msgspec.structs.replace(reduced.result, worker=self.name)
            cpu_us = 100 * work.n  # the real one would be another in each run
            self._do_all(self.core.reduced(named, payload, cpu_us, self.world.now))
        self._feed()
        self._go_on()
        self.world.checks.worker(self.core)

    def _bury(self, how: str) -> None:
        assert self._child is not None
        work, at = self.core.running, self._child.at
        where = at.frame if work is not None and at.token == work.token else BETWEEN
        number = where if where >= 0 and work is not None and work.isolate else -1
        if number >= 0 and work is not None:
            self.world.checks.blamed(work, number)
        self._child = None
        self._busy = False
        self.core.willing = False
        self._do_all(self.core.died(how, number, setup=where == SETTING_UP))
        self._deaths += 1
        self.after(PAUSES[min(self._deaths, len(PAUSES)) - 1] + 0.02, self._child_ready)
