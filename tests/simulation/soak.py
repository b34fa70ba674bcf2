"""Many seeds on all cores: ``python -m tests.simulation.soak``; one of them, with its log: ``--seed 93 --log``."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, fields
from multiprocessing import get_context
from typing import Any, Final

from haltere.callbacks.processed_cursor import CURSOR
from haltere.workers.broker.batch import BATCH
from haltere.workers.frame_life import FRAME
from haltere.workers.sink.books import RUN
from haltere.workers.states import StateTable
from haltere.workers.worker.unit import UNIT

from .scenario import KINDS, SPILL_KINDS, draw
from .world import simulate

CHUNK = 25
"""Seeds that a process takes at once."""

TABLES: Final[tuple[StateTable[Any, Any], ...]] = (RUN, BATCH, UNIT, FRAME, CURSOR)
"""The state tables by which the cores move."""

SHOWN = 20
"""Failures that are shown in full."""


@dataclass
class Tally:
    """What came of some seeds."""

    seeds: int = 0
    virtual: float = 0.0
    """Seconds of virtual time."""
    cpu: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    moves: Counter[str] = field(default_factory=Counter)
    """How often each move of the state tables was made."""
    failures: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take in what came of others."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


def soak(seeds: Iterable[int]) -> Tally:
    """Run seeds one after the other."""
    tally = Tally()
    before = moves()
    began = time.process_time()
    for seed in seeds:
        tally.seeds += 1
        try:
            world = simulate(seed)
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{os.path.basename(at.filename)}:{at.lineno}"
            tally.failures.append((seed, f"{type(error).__name__} in {where}: {str(error)[:400]}"))
            continue
        tally.virtual += world.now
        tally.counts += world.counts
    tally.cpu = time.process_time() - began
    tally.moves = moves() - before
    return tally


def moves() -> Counter[str]:
    """Return how often each move of the state tables was made in this process."""
    return Counter(
        {f"{table.name}: {state}, {event}": n for table in TABLES for (state, event), n in table.taken.items()}
    )


def unseen(tally: Tally) -> list[str]:
    """Return the moves of the state tables that no seed led to."""
    every = [f"{table.name}: {move.before}, {move.event}" for table in TABLES for move in table.moves]
    return [move for move in every if move not in tally.moves]


def report(tally: Tally, wall: float) -> str:
    """Return the last lines."""
    counts = tally.counts
    faults = {kind: counts[kind] for kind in dict.fromkeys((*KINDS, *SPILL_KINDS)) if counts[kind]}
    network = {kind: counts[kind] for kind in ("lost", "doubled", "late")}
    ends = {name: counts[f"in the end {name}"] for name in ("live", "backfilled", "quarantined", "lost")}
    never = unseen(tally)
    lines = [
        f"{tally.seeds} seeds, {tally.virtual / 3600:.2f} virtual hours, {sum(ends.values())} frames promised: "
        + ", ".join(f"{n} {name}" for name, n in ends.items()),
        f"faults: {sum(faults.values())}: " + ", ".join(f"{kind} {n}" for kind, n in faults.items()),
        f"messages: {counts['messages']}, of these " + ", ".join(f"{n} {kind}" for kind, n in network.items()),
        f"frames that were streamed and never came: {counts['frames that never came']}; reducers killed by frames: "
        f"{counts['reducers killed']}, hung: {counts['reducers hung']}; commits: {counts['commits']}, "
        f"failed: {counts['commits that failed']}",
        f"duplicates discarded: {counts['duplicates']}; runs that the sink closed for want of a session: "
        f"{counts['runs closed by the sink']}; blocks read though they were given back, and noticed: "
        f"{counts['reads of blocks that were given back']}; drops: {counts['drops']}, of these in the ledger: "
        f"{counts['drops seen']}; frames spilled: {counts['frames spilled']}",
        f"moves of the state tables: {len(tally.moves)} kinds seen, {len(never)} not{': ' if never else ''}"
        + "; ".join(never),
        f"failures: {len(tally.failures)}",
        f"{tally.cpu:.0f} s of CPU ({1000 * tally.cpu / max(tally.seeds, 1):.0f} ms per seed), {wall:.0f} s in all",
    ]
    return "\n".join(lines)


def one(seed: int, *, log: bool) -> int:
    """Run one seed, and show what happens if that is asked for."""
    print(draw(seed))
    try:
        world = simulate(seed, print if log else None)
    except AssertionError:
        traceback.print_exc()
        return 1
    print(f"all is well after {world.now:.2f} virtual seconds; {dict(world.counts)}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.soak", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20_000, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--seed", type=int, help="this seed alone")
    parser.add_argument("--log", action="store_true", help="print everything that happens in it")
    wanted = parser.parse_args(argv)
    if wanted.seed is not None:
        return one(wanted.seed, log=wanted.log)
    began = time.monotonic()
    tally = Tally()
    seeds = range(wanted.first, wanted.first + wanted.seeds)
    chunks = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    with ProcessPoolExecutor(wanted.jobs, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(soak, chunk) for chunk in chunks]):
            tally.add(part := done.result())
            for seed, why in part.failures:
                if len(tally.failures) <= SHOWN:
                    print(
                        f"\rseed {seed} failed: {why}\n  python -m tests.simulation.soak --seed {seed} --log",
                        flush=True,
                    )
            if sys.stderr.isatty() or tally.seeds % 1000 < CHUNK:
                rate = tally.seeds / (time.monotonic() - began)
                end = "\r" if sys.stderr.isatty() else "\n"
                print(
                    f"{tally.seeds} of {len(seeds)} seeds, {rate:.1f} a second, {len(tally.failures)} failed",
                    end=end,
                    file=sys.stderr,
                    flush=True,
                )
    print(report(tally, time.monotonic() - began))
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
