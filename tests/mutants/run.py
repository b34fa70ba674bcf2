"""Mutates the cores, and tells which mutants their tests don't notice: ``python -m tests.mutants.run [MODULE …]``.

First each test is run once, to learn which statements it reaches. Then each mutant is made in a forked process, in
memory (nothing on disk is changed), and tried with the tests that reach its statement: from the quick to the slow, and
properties with few examples before many, until one fails. What no test reaches, survives. (cosmic-ray and mutmut start
an interpreter for each mutant, or copy the tree; with numpy to be imported, and folders that are links, neither does
here.)

What was found is kept in ``.mutants/``: an interrupted call goes on where it was, a module whose source and tests are
as they were isn't tried again, and else a mutant is first tried with the test that noticed it before. Survivors that
can't be noticed, because the mutant does the same, are explained in ``explained.toml``; the exit code is 1 if there
are others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import signal
import sys
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

from .loading import HOUSE, Imported, Replaced, noting, path_of
from .operators import Mutant, mutants, mutated
from .trials import FAILED, OUT_OF_TIME, PASSED, UNFIT, Reach, Suite, collected, forked, steps, trial

KEPT: Final = HOUSE / ".mutants"
EXPLAINED: Final = Path(__file__).parent / "explained.toml"
CONTRACT: Final = "The cores have no sockets, no files, no threads and no clock"

MORE: Final = (
    "workers.intervals",
    "workers.payload",
    "workers.ring",
    "workers.processes.status_reply",
    "workers.ledger.writer",
)
"""Cores beyond those of the import contract in ``pyproject.toml``: they hold memory or files, and little else."""

TESTS: Final = (
    "workers/test_intervals.py",
    "workers/test_states.py",
    "workers/test_tables.py",
    "workers/test_payload.py",
    "workers/test_ring.py",
    "workers/processes/test_status_reply.py",
    "workers/processes/test_watch.py",
    "workers/broker/test_peers.py",
    "workers/broker/test_stream.py",
    "workers/broker/test_batch.py",
    "workers/broker/test_lane.py",
    "workers/broker/test_runs.py",
    "workers/broker/test_files.py",
    "workers/broker/test_waiting.py",
    "workers/broker/test_dispatching.py",
    "workers/broker/test_blocks.py",
    "workers/broker/test_drops.py",
    "workers/broker/test_lost.py",
    "workers/broker/test_quarantine.py",
    "workers/broker/test_workers.py",
    "workers/broker/test_neighbours.py",
    "workers/broker/test_status.py",
    "workers/broker/test_turns.py",
    "workers/broker/test_stateful.py",
    "workers/worker/test_core.py",
    "workers/ingest/test_core.py",
    "workers/ingest/test_decimation.py",
    "workers/spill/test_core.py",
    "workers/spill/test_pipe.py",
    "workers/spill/test_file.py",
    "workers/sink/test_books.py",
    "workers/sink/test_group.py",
    "workers/sink/test_control.py",
    "workers/sink/test_results.py",
    "workers/sink/test_completion.py",
    "workers/sink/test_brokers.py",
    "workers/sink/test_limits.py",
    "workers/sink/test_law.py",
    "workers/sink/test_abandoned.py",
    "workers/ledger/test_writer.py",
    "workers/wire/test_bombs.py",
    "workers/wire/test_messages.py",
    "workers/wire/test_simplon.py",
    "workers/wire/test_xspress3.py",
    "callbacks/test_dispatch_window.py",
    "callbacks/test_dispatch_streams.py",
    "callbacks/test_dispatch_core.py",
    "callbacks/test_dispatch_delivery.py",
    "callbacks/test_dispatch_documents.py",
    "callbacks/test_dispatch_bounds.py",
    "callbacks/test_processed_keys.py",
    "callbacks/test_processed_cursor.py",
    "callbacks/test_processed_documents.py",
    "simulation/test_seeds.py",
    "simulation/test_world.py",
)
"""Tests that need no other process: those that run a core, and a few runs of the simulation."""

LEFT_OUT: Final = ("in_any_process", "soak_reports")
"""Words in the names of tests that start processes all the same."""

PRELOADED: Final = ("numpy", "h5py", "msgspec", "zmq", "hypothesis.stateful", "hypothesis.extra.numpy", "pytest")
"""Imported once, before the forks."""

KILLED, SURVIVED, TIMED_OUT = "killed", "survived", "timed out"


class Found(NamedTuple):
    """What became of a mutant."""

    outcome: str
    by: str
    """The test that noticed it."""


@dataclass
class Map:
    """What the tests reach."""

    tests: dict[str, Reach] = field(default_factory=dict)
    imports: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """By module, the places that are reached already when the tests are imported."""
    properties: frozenset[str] = frozenset()

    def reaching(self, module: str, place: int | None) -> dict[str, Reach]:
        """Return the tests that reach a place, or anything of a module."""
        return {
            test: reach
            for test, reach in self.tests.items()
            if (there := reach.places.get(module)) and (place is None or place in there)
        }


def cores() -> list[str]:
    """Return the modules that are mutated, e.g. ``workers.intervals``."""
    contracts = tomllib.loads((HOUSE / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (named,) = (each["source_modules"] for each in contracts if each["name"] == CONTRACT)
    return [*(name.removeprefix("haltere.") for name in named), *MORE]


def stamp(*contents: str) -> str:
    """Return a name for these contents."""
    return hashlib.sha256("\0".join(contents).encode()).hexdigest()


def stamp_of_helpers() -> str:
    """Return a name for what the tests have in common."""
    folders = ("workers", "callbacks", "simulation")
    helpers = [path for name in folders for path in sorted((HOUSE / "tests" / name).rglob("*.py"))]
    return stamp(*(path.read_text() for path in helpers if not path.name.startswith("test_")))


def running(log: int, work: Iterable[tuple[Any, Callable[[int], int]]], at_once: int) -> Iterator[tuple[Any, int, str]]:
    """Do work in forked processes, some at once; yield each one's name, exit code and what it wrote."""
    waiting, busy = iter(work), dict[int, tuple[Any, int]]()
    more = True
    try:
        while more or busy:
            while more and len(busy) < at_once:
                if (following := next(waiting, None)) is None:
                    more = False
                    break
                name, call = following
                hear, say = os.pipe()
                busy[forked(log, lambda call=call, say=say: call(say))] = name, hear  # type: ignore[misc]
                os.close(say)
            if not busy:
                break
            pid, status = os.waitpid(-1, 0)
            if pid not in busy:
                continue
            name, hear = busy.pop(pid)
            _kill(pid)  # what it may have started
            with open(hear, "rb") as heard:
                yield name, os.waitstatus_to_exitcode(status), heard.read().decode()
    finally:
        for pid in busy:
            _kill(pid)
            os.waitpid(pid, 0)


def _kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


class Examiner:
    """Tries the mutants of some modules, and keeps what it finds."""

    def __init__(self, modules: Sequence[str], at_once: int, most: int | None) -> None:
        self.modules, self.at_once, self.most = modules, at_once, most
        self.sources = {module: path_of(module).read_text() for module in cores()}
        self.helpers = stamp_of_helpers()
        self.map = Map()
        self.found: dict[str, dict[str, Found]] = {}
        self.before: dict[str, dict[str, Found]] = {}
        self.mutants: dict[str, dict[str, Mutant]] = {}
        self.stamps: dict[str, str] = {}
        """Of what is tried now, whatever is edited meanwhile."""
        self.texts = {file: (HOUSE / "tests" / file).read_text() for file in TESTS}
        KEPT.mkdir(exist_ok=True)
        self.log = os.open(KEPT / "last.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)

    # What the tests reach.

    def learn(self) -> None:
        """Learn what the tests reach, as far as that isn't known."""
        todo = [(file, lambda say, file=file: self._learn(file)) for file in TESTS if not self._is_known(file)]
        for number, (file, code, _) in enumerate(running(self.log, todo, self.at_once), 1):
            if code:
                sys.exit(f"{file}: its tests fail without any mutation: see {KEPT / 'last.log'}")
            if sys.stderr.isatty():
                print(f"\r{number} of {len(todo)} files of tests", end="\n" * (number == len(todo)), file=sys.stderr)
        for file in TESTS:
            kept = json.loads(self._reach_file(file).read_text())
            self.map.tests |= {test: Reach(*each) for test, each in kept["tests"].items()}
            self.map.properties |= set(kept["properties"])
            for module, reached in kept["imports"].items():
                self.map.imports[module] += reached

    @staticmethod
    def _reach_file(file: str) -> Path:
        return KEPT / f"{file.replace('/', '.')}.reach"

    def _is_known(self, file: str) -> bool:
        """Say whether a file's tests, and the modules that they reach, are as they were."""
        kept = self._reach_file(file)
        if not kept.exists():
            return False
        known = json.loads(kept.read_text())
        return set(known["modules"]) <= set(self.sources) and known["stamp"] == self._stamp_of(file, known["modules"])

    def _stamp_of(self, file: str, modules: Iterable[str]) -> str:
        return stamp(self.texts[file], self.helpers, *(self.sources[each] for each in modules))

    def _learn(self, file: str) -> int:
        reached: dict[str, set[int]] = {module: set() for module in self.sources}
        trees = {module: noting(source) for module, source in self.sources.items()}
        sys.meta_path.insert(0, Replaced(trees, lambda module: reached[module].add))
        kept: dict[str, Any] = {"tests": {}}

        def take() -> dict[str, list[int]]:
            taken = {module: sorted(places) for module, places in reached.items() if places}
            for places in reached.values():
                places.clear()
            return taken

        def run(suite: Suite) -> None:
            kept["imports"], kept["properties"] = take(), sorted(suite.properties())
            for test in suite.items:
                began, cpu = time.monotonic(), time.process_time()
                if not suite.passes(test):
                    os._exit(FAILED)
                taken = time.monotonic() - began, time.process_time() - cpu
                kept["tests"][test] = Reach(*taken, take())

        code = collected([file], LEFT_OUT, run)
        if code == 0:
            modules = set(kept["imports"]).union(*(reach.places for reach in kept["tests"].values()))
            kept["modules"] = sorted(modules)
            kept["stamp"] = self._stamp_of(file, kept["modules"])
            self._reach_file(file).write_text(json.dumps(kept))
        return code

    # What becomes of mutants.

    def recall(self) -> None:
        """Read what was found before."""
        for module in self.modules:
            self.mutants[module] = {each.key: each for each in mutants(self.sources[module])}
            self.found[module], self.before[module] = {}, {}
            files = sorted({test.partition("::")[0] for test in self.map.reaching(module, None)})
            texts = [self.texts[file.removeprefix("tests/")] for file in files]
            self.stamps[module] = stamp(self.helpers, self.sources[module], *texts)
            kept = KEPT / f"{module}.json"
            if kept.exists():
                known = json.loads(kept.read_text())
                found = {key: Found(*each) for key, each in known["found"].items()}
                self.before[module] = {key: Found(*each) for key, each in known["before"].items()} | found
                if known["stamp"] == self.stamps[module]:
                    self.found[module] = {key: each for key, each in found.items() if key in self.mutants[module]}

    def keep(self, module: str) -> None:
        """Write what is known of a module's mutants."""
        kept = KEPT / f"{module}.json"
        known = {"stamp": self.stamps[module], "found": self.found[module], "before": self.before[module]}
        kept.with_suffix(".new").write_text(json.dumps(known))
        kept.with_suffix(".new").rename(kept)

    def todo(self, module: str) -> list[Mutant]:
        """Return the mutants that were not tried yet."""
        left = [each for each in self.mutants[module].values() if each.key not in self.found[module]]
        return left if self.most is None else left[: max(self.most - len(self.found[module]), 0)]

    def examine(self) -> None:
        """Try the mutants of all modules."""
        for module in self.modules:
            for mutant in self.todo(module):
                if not self._tests(module, mutant) and mutant.place not in self.map.imports[module]:
                    self._note(module, mutant.key, Found(SURVIVED, ""))
            self.keep(module)
        if not any(self.todo(module) for module in self.modules):
            return
        hear, say = os.pipe()
        server = os.fork()
        if server == 0:
            os.close(hear)
            os._exit(self._serve(say))
        os.close(say)
        unfit: list[tuple[str, str]] = []
        with open(hear, encoding="utf8") as heard:
            before = ""
            for number, line in enumerate(heard, 1):
                module, key, code, by = json.loads(line)
                if before not in ("", module):
                    self.keep(before)
                before = module
                at_import = self.mutants[module][key].place in self.map.imports[module]
                if code == UNFIT or (code == PASSED and at_import):
                    unfit.append((module, key))
                else:
                    self._note(module, key, _outcome(code, by))
                if number % 20 == 0:
                    self.keep(module)
        for module in self.modules:
            self.keep(module)
        _, status = os.waitpid(server, 0)
        if status:
            sys.exit(f"the tests fail without any mutation, or pytest itself failed: see {KEPT / 'last.log'}")
        work = [(each, lambda say, each=each: self._afresh(each[0], each[1], say)) for each in unfit]
        for (module, key), code, by in running(self.log, work, self.at_once):
            self._note(module, key, _outcome(code, by))
            self.keep(module)

    def _tests(self, module: str, mutant: Mutant) -> dict[str, Reach]:
        at_import = mutant.place in self.map.imports[module]
        return self.map.reaching(module, None if at_import else mutant.place)

    def _note(self, module: str, key: str, found: Found) -> None:
        self.found[module][key] = found
        if found.outcome == SURVIVED:
            unseen = "" if found.by else "  (no test reaches it)"
            print(f"  {module}:{self.mutants[module][key].line}  {key}{unseen}", flush=True)

    def _serve(self, say: int) -> int:
        """Import everything once; then try each mutant in a fork of this process."""

        def run(suite: Suite) -> None:
            imported = Imported(self.modules)
            self._see_that_they_pass(suite)
            for (module, key), code, by in running(self.log, self._work(suite, imported), self.at_once):
                os.write(say, f"{json.dumps([module, key, code, by])}\n".encode())

        gone = os.dup(2)
        for descriptor in (1, 2):
            os.dup2(self.log, descriptor)
        sys.stderr = open(gone, "w")  # noqa: SIM115 - it lasts as long as the process
        return collected(TESTS, LEFT_OUT, run)

    def _see_that_they_pass(self, suite: Suite) -> None:
        """Run the tests once in our way, without a mutant, as far as that wasn't done."""
        kept = KEPT / "passed.json"
        known = json.loads(kept.read_text()) if kept.exists() else {}
        files = {test: test.partition("::")[0].removeprefix("tests/") for test in self.map.tests}
        now = {file: json.loads(self._reach_file(file).read_text())["stamp"] for file in TESTS}
        todo = {test: reach for test, reach in self.map.tests.items() if known.get(files[test]) != now[files[test]]}
        halves = [dict(each) for each in (list(todo.items())[::2], list(todo.items())[1::2])]
        plans = [steps(half, self.map.properties, budget=math.inf) for half in halves if half]
        work = [("", lambda say, plan=plan: trial(suite, plan, self.map.tests, say)) for plan in plans]
        for _, code, by in running(self.log, work, self.at_once):
            if code != PASSED:
                print(f"without any mutation: exit code {code} {by}", file=sys.stderr, flush=True)
                os._exit(1)
        kept.write_text(json.dumps(now))

    def _work(self, suite: Suite, imported: Imported) -> Iterator[tuple[Any, Callable[[int], int]]]:
        for module in self.modules:
            for mutant in self.todo(module):
                tests = self._tests(module, mutant)
                known = self.before[module].get(mutant.key)
                plan = steps(tests, self.map.properties, known and known.by)

                def call(say: int, module: str = module, mutant: Mutant = mutant, plan: Any = plan) -> int:
                    if not imported.become(module, mutated(self.sources[module], mutant)):
                        return UNFIT
                    return trial(suite, plan, self.map.tests, say)

                yield (module, mutant.key), call

    def _afresh(self, module: str, key: str, say: int) -> int:
        """Try a mutant that must be there when it is imported."""
        mutant = self.mutants[module][key]
        sys.meta_path.insert(0, Replaced({module: mutated(self.sources[module], mutant)}, lambda _: lambda _: None))
        tests = self._tests(module, mutant)
        code = PASSED

        def run(suite: Suite) -> None:
            nonlocal code
            plan = [step for step in steps(tests, self.map.properties) if step.test in suite.items]
            code = trial(suite, plan, self.map.tests, say)

        signal.setitimer(signal.ITIMER_PROF, 60)
        files = sorted({test.partition("::")[0].removeprefix("tests/") for test in tests})
        return collected(files, LEFT_OUT, run) or code


def _outcome(code: int, by: str) -> Found:
    if code in OUT_OF_TIME:
        return Found(TIMED_OUT, by)
    return Found(SURVIVED, "all") if code == PASSED else Found(KILLED, by)


def main() -> int:
    """Examine what is asked for, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="e.g. workers.intervals; by default all cores")
    parser.add_argument("--at-once", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--most", type=int, default=None, help="mutants of each module (default: all)")
    parser.add_argument("--list", action="store_true", help="say how many mutants there are, and try none")
    asked = parser.parse_args()
    every = cores()
    if unknown := set(asked.modules) - set(every):
        parser.error(f"{', '.join(sorted(unknown))}: no core; there are {', '.join(every)}")
    chosen = asked.modules or every
    if asked.list:
        for module in chosen:
            print(f"{module:<32}{len(list(mutants(path_of(module).read_text()))):>8}")
        return 0
    explained = tomllib.loads(EXPLAINED.read_text())
    os.chdir(HOUSE)
    for name in PRELOADED:
        import_module(name)
    began = time.monotonic()
    examiner = Examiner(chosen, asked.at_once, asked.most)
    examiner.learn()
    examiner.recall()
    examiner.examine()
    rows, unexplained = [], 0
    for module, found in examiner.found.items():
        counts = Counter(each.outcome for each in found.values())
        survivors = [key for key, each in found.items() if each.outcome == SURVIVED]
        strange = [key for key in survivors if key not in explained.get(module, {})]
        unexplained += len(strange)
        rows.append(
            (module, len(found), counts[KILLED], counts[TIMED_OUT], len(survivors) - len(strange), len(strange))
        )
    print(f"\n{'module':<32}{'mutants':>8}{'killed':>8}{'timed out':>11}{'explained':>11}{'survived':>10}")
    for row in [*rows, ("in all", *(sum(column) for column in list(zip(*rows, strict=True))[1:]))]:
        print(f"{row[0]:<32}{row[1]:>8}{row[2]:>8}{row[3]:>11}{row[4]:>11}{row[5]:>10}")
    print(f"{time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
