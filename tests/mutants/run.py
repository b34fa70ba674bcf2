"""Mutates the cores, and tells which mutants their tests don't notice: ``python -m tests.mutants.run [MODULE …]``.

A mutant is loaded in place of its module into a forked process, which runs the module's own tests until one fails.
Nothing on disk is changed. (cosmic-ray and mutmut start an interpreter for each mutant, or copy the tree; with numpy
to be imported, and folders that are links, neither does here.)

What was found is kept in ``.mutants/``: an interrupted call goes on where it was, and a module whose source and tests
are as they were isn't run again. Survivors that can't be noticed, because the mutant does the same, are explained in
``explained.toml``; the exit code is 1 if there are others.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple

from .operators import Mutant, mutants

HOUSE: Final = Path(__file__).parents[2]
KEPT: Final = HOUSE / ".mutants"
EXPLAINED: Final = Path(__file__).parent / "explained.toml"

CORES: Final[dict[str, Sequence[str]]] = {
    "workers.intervals": ["workers/test_intervals.py"],
    "workers.payload": ["workers/test_payload.py"],
    "workers.ring": ["workers/test_ring.py"],
    "workers.processes.status_reply": ["workers/processes/test_status_reply.py"],
    "workers.broker.queue": ["workers/broker/test_core.py", "workers/broker/test_stateful.py"],
    "workers.broker.rings": ["workers/broker/test_core.py", "workers/broker/test_stateful.py"],
    "workers.broker.files": ["workers/broker/test_core.py", "workers/broker/test_stateful.py"],
    "workers.broker.waiting": ["workers/broker/test_core.py", "workers/broker/test_stateful.py"],
    "workers.broker.batch": ["workers/broker/test_core.py", "workers/broker/test_stateful.py"],
    "workers.broker.lane": ["workers/broker/test_core.py", "workers/broker/test_stateful.py"],
    "workers.broker.runs": ["workers/broker/test_core.py", "workers/broker/test_stateful.py"],
    "workers.broker.peers": ["workers/broker/test_core.py", "workers/broker/test_stateful.py"],
    "workers.broker.stream": ["workers/broker/test_core.py", "workers/broker/test_stateful.py"],
    "workers.broker.core": ["workers/broker/test_core.py", "workers/broker/test_stateful.py"],
    "workers.worker.core": ["workers/worker/test_core.py"],
    "workers.ingest.series": ["workers/ingest/test_core.py"],
    "workers.ingest.decimation": ["workers/ingest/test_core.py"],
    "workers.ingest.core": ["workers/ingest/test_core.py"],
    "workers.sink.check": ["workers/sink/test_core.py"],
    "workers.sink.group": ["workers/sink/test_core.py"],
    "workers.sink.books": ["workers/sink/test_core.py"],
    "workers.sink.core": ["workers/sink/test_core.py"],
    "workers.ledger.rows": ["workers/ledger/test_writer.py"],
    "workers.ledger.writer": ["workers/ledger/test_writer.py"],
    "callbacks.dispatch_window": ["callbacks/test_dispatch_core.py"],
    "callbacks.dispatch_streams": ["callbacks/test_dispatch_core.py"],
    "callbacks.dispatch_core": ["callbacks/test_dispatch_core.py"],
    "callbacks.processed_keys": ["callbacks/test_processed_documents.py"],
    "callbacks.processed_cursor": ["callbacks/test_processed_documents.py"],
}
"""Module, and the tests that know it; the quickest first."""

PRELOADED: Final = (
    "numpy",
    "h5py",
    "msgspec",
    "zmq",
    "hypothesis",
    "hypothesis.stateful",
    "hypothesis.extra.numpy",
    "pytest",
)
"""Imported once, before the forks."""

KILLED, SURVIVED, TIMED_OUT = "killed", "survived", "timed out"


class Replaced(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds one module, and loads another source in its place."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self._name, self._path, self._source = name, path, source

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find it."""
        if fullname != self._name:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, origin=str(self._path))

    def get_source(self, fullname: str) -> str:
        """Return the source."""
        return self._source


class Child(NamedTuple):
    """A mutant that is being tested."""

    mutant: Mutant
    began: float


def try_one(module: str, source: str, tests: Sequence[str]) -> int:
    """Run the tests with this source, in a process of its own. Return its pid."""
    pid = os.fork()
    if pid:
        return pid
    os.setpgid(0, 0)
    code = 3
    try:
        said = os.open(KEPT / "last.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for descriptor in (1, 2):
            os.dup2(said, descriptor)
        path = _path(module)
        sys.meta_path.insert(0, Replaced(f"haltere.{module}", path, source))
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # others' plugins take seconds to import
        import hypothesis
        import pytest

        seen = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # that it fails is enough: nothing is shrunk
        hypothesis.settings.register_profile("mutants", derandomize=True, database=None, phases=seen)
        hypothesis.settings.load_profile("mutants")
        options = [
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "addopts=--import-mode=importlib",
            "-o",
            "filterwarnings=",
        ]
        code = int(pytest.main([*options, *(str(HOUSE / "tests" / test) for test in tests)]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def outcomes(
    module: str, chosen: Sequence[Mutant], tests: Sequence[str], at_once: int, limit: float
) -> Iterator[tuple[Mutant, str]]:
    """Test mutants, some at once; yield each with what became of it."""
    waiting = list(reversed(chosen))
    running: dict[int, Child] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                mutant = waiting.pop()
                running[try_one(module, mutant.source, tests)] = Child(mutant, time.monotonic())
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid in running:
                child = running.pop(pid)
                code = os.waitstatus_to_exitcode(status)
                if code > 2:
                    sys.exit(f"{module}: pytest itself failed with exit code {code}: see {KEPT / 'last.log'}")
                yield child.mutant, KILLED if code else SURVIVED
                continue
            for pid, child in list(running.items()):
                if time.monotonic() - child.began > limit:
                    os.killpg(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    del running[pid]
                    yield child.mutant, TIMED_OUT
            time.sleep(0.01)
    finally:
        for pid in running:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def examine(module: str, at_once: int, most: int | None) -> dict[str, str]:
    """Test a module's mutants, as far as that wasn't done; return what became of each."""
    tests = CORES[module]
    source = _path(module).read_text()
    contents = [source, *((HOUSE / "tests" / test).read_text() for test in tests)]
    stamp = hashlib.sha256("\0".join(contents).encode()).hexdigest()
    KEPT.mkdir(exist_ok=True)
    kept = KEPT / f"{module}.json"
    found: dict[str, str] = {}
    if kept.exists():
        before = json.loads(kept.read_text())
        found = before["found"] if before["stamp"] == stamp else {}
    todo = [each for each in mutants(source) if each.key not in found]
    if most is not None:
        todo = todo[: max(most - len(found), 0)]
    if not todo:
        return found
    began = time.monotonic()
    ((_, sound),) = outcomes(module, [Mutant(0, "", source)], tests, 1, 600)
    if sound != SURVIVED:
        sys.exit(f"{module}: its tests fail without any mutation ({', '.join(tests)}): see {KEPT / 'last.log'}")
    limit = 10 + 5 * (time.monotonic() - began)
    for number, (mutant, outcome) in enumerate(outcomes(module, todo, tests, at_once, limit), 1):
        found[mutant.key] = outcome
        if outcome == SURVIVED:
            print(f"  {module}:{mutant.line}  {mutant.key}", flush=True)
        if number % 10 == 0 or number == len(todo):
            kept.write_text(json.dumps({"stamp": stamp, "found": found}))
    return found


def _path(module: str) -> Path:
    return HOUSE / f"{module.replace('.', '/')}.py"


def main() -> int:
    """Examine what is asked for, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="e.g. workers.intervals; by default all cores")
    parser.add_argument("--at-once", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--most", type=int, default=None, help="mutants of each module (default: all)")
    parser.add_argument("--list", action="store_true", help="say how many mutants there are, and test none")
    asked = parser.parse_args()
    if unknown := set(asked.modules) - set(CORES):
        parser.error(f"{', '.join(sorted(unknown))}: no core; there are {', '.join(CORES)}")
    chosen = asked.modules or list(CORES)
    if asked.list:
        for module in chosen:
            print(f"{module:<32}{len(list(mutants(_path(module).read_text()))):>8}")
        return 0
    explained = tomllib.loads(EXPLAINED.read_text())
    os.chdir(HOUSE)
    for name in PRELOADED:
        import_module(name)
    rows, unexplained = [], 0
    for module in chosen:
        found = examine(module, asked.at_once, asked.most)
        counts = Counter(found.values())
        survivors = [key for key, outcome in found.items() if outcome == SURVIVED]
        strange = [key for key in survivors if key not in explained.get(module, {})]
        unexplained += len(strange)
        known = len(survivors) - len(strange)
        rows.append((module, len(found), counts[KILLED], counts[TIMED_OUT], known, len(strange)))
    print(f"\n{'module':<32}{'mutants':>8}{'killed':>8}{'timed out':>11}{'explained':>11}{'survived':>10}")
    for row in rows:
        print(f"{row[0]:<32}{row[1]:>8}{row[2]:>8}{row[3]:>11}{row[4]:>11}{row[5]:>10}")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
