"""Tests run in forked processes: to learn what each of them reaches, and to see which of them notices a mutant."""

from __future__ import annotations

import os
import resource
import signal
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import accumulate
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings

from .loading import HOUSE

OPTIONS: Final = (
    *("-q", "-p", "no:cacheprovider", "--capture=sys", "--color=no"),
    *("-o", "addopts=--import-mode=importlib", "-o", "filterwarnings="),
)
"""For pytest; others' plugins are left out, they take seconds to import."""

SHORT = 8
"""Examples that a property is tried with at first."""

WORTH_SHORTENING = 0.05
"""Seconds of a property's test, from which it is tried with few examples first."""

BUDGET = 2.5
"""CPU-seconds of tests that a mutant is tried with at most."""

MEMORY = 8 << 30
"""Bytes of addresses that a mutant may fill."""

PASSED, FAILED, UNFIT = 0, 1, 5
"""Exit codes of a trial; ``UNFIT`` if the mutant could not be made from what is in memory."""

OUT_OF_TIME: Final = (-signal.SIGPROF, -signal.SIGALRM)


class Reach(NamedTuple):
    """What a test does."""

    seconds: float
    cpu: float
    places: dict[str, list[int]]
    """By module, the places that it reaches."""


class Step(NamedTuple):
    """A test as a part of a trial."""

    test: str
    cost: float
    """CPU-seconds."""
    short: bool
    """Whether it is a property, tried with ``SHORT`` examples."""


def steps(
    tests: dict[str, Reach], properties: frozenset[str], first: str | None = None, budget: float = BUDGET
) -> list[Step]:
    """Return a trial by these tests: first the one that noticed the mutant before, then from the quick to the slow.

    Tests that reach few modules come before those that reach many. It has an end: with more than ``budget`` seconds of
    tests, those beyond are left out, and what only they notice counts as not noticed.
    """
    found = []
    for test, reach in tests.items():
        weight = reach.cpu * len(reach.places)
        found.append((0.0 if test == first else weight, Step(test, reach.cpu, False)))
        if test in properties and reach.cpu > WORTH_SHORTENING and test != first:
            found.append((weight / 8, Step(test, reach.cpu / 8, True)))
    found.sort(key=lambda each: each[0])
    spent = accumulate(step.cost for _, step in found)
    return [step for (_, step), sum_ in zip(found, spent, strict=True) if sum_ < budget]


class Suite:
    """Collects tests, and hands them to whoever runs them. A plugin for pytest."""

    def __init__(self, left_out: Sequence[str], run: Callable[[Suite], None]) -> None:
        self._left_out, self._run = left_out, run
        self.items: dict[str, Any] = {}
        self._failed = False

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Take note of the tests, and of how long their examples are."""
        for item in items:
            if not any(word in item.nodeid for word in self._left_out):
                self.items[item.nodeid] = item
                self._set(item)

    def pytest_runtestloop(self, session: Any) -> bool:
        """Run the tests in our way."""
        if session.testsfailed:
            raise session.Interrupted("tests could not be collected")
        self._run(self)
        return True

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Take note of a failure."""
        self._failed |= report.failed

    def properties(self) -> frozenset[str]:
        """Return the tests that try examples."""
        return frozenset(name for name, item in self.items.items() if _holder(item) is not None)

    def passes(self, test: str, *, short: bool = False) -> bool:
        """Run a test."""
        item, self._failed = self.items[test], False
        if hasattr(item, "_initrequest"):
            item._initrequest()  # or a second run of it would have the fixtures of the first
        if short:
            self._set(item, SHORT)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        if short:
            self._set(item)
        return not self._failed

    def _set(self, item: Any, examples: int | None = None) -> None:
        """Make a property try the same examples each time, shrink nothing, and not mind that the machine is busy."""
        if (holder := _holder(item)) is None:
            return
        name = _setting(holder)
        was = item.__dict__.setdefault("_haltere_settings", getattr(holder, name))
        most = was.max_examples if examples is None else min(examples, was.max_examples)
        setattr(
            holder,
            name,
            settings(
                was,
                max_examples=most,
                derandomize=True,
                database=None,
                deadline=None,
                phases=(Phase.explicit, Phase.generate),
                suppress_health_check=list(HealthCheck),
            ),
        )


def _holder(item: Any) -> Any:
    """Return what holds the settings of a property."""
    machine = getattr(item, "cls", None)
    if machine is not None and isinstance(getattr(machine, "settings", None), settings):
        return machine
    function = getattr(item, "obj", None)
    return function if hasattr(function, "_hypothesis_internal_use_settings") else None


def _setting(holder: Any) -> str:
    return "settings" if isinstance(holder, type) else "_hypothesis_internal_use_settings"


def collected(files: Sequence[str], left_out: Sequence[str], run: Callable[[Suite], None]) -> int:
    """Let ``run`` have the tests of these files, without those that have such words in their names."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    rings: Any = import_module("haltere.workers.ring")
    own = rings.FOLDER / "haltere.mutants"
    own.mkdir(exist_ok=True)
    rings.FOLDER = own  # a mutant may sweep the rings of the living
    return int(
        pytest.main([*OPTIONS, *(str(HOUSE / "tests" / file) for file in files)], plugins=[Suite(left_out, run)])
    )


def forked(log: int, work: Callable[[], int]) -> int:
    """Do something in a process of its own, which leads a group, and whose words go to ``log``. Return its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setpgid(0, 0)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def trial(suite: Suite, plan: Sequence[Step], reaches: dict[str, Reach], say: int) -> int:
    """Run tests until one fails, and say to ``say`` which one did. Its process is killed if a test takes too long."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for step in plan:
        reach = reaches[step.test]
        signal.setitimer(signal.ITIMER_PROF, 2 + 8 * reach.cpu)
        signal.setitimer(signal.ITIMER_REAL, 20 + 30 * reach.seconds)
        if not suite.passes(step.test, short=step.short):
            os.write(say, step.test.encode())
            return FAILED
    return PASSED
