"""Ctrl-C in a scan without a prompt: any thread may take it, and it may come at either end of the plan."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from bluesky import Msg, RunEngine
from bluesky.plan_stubs import close_run, open_run, sleep

from haltere.interrupt import AbortOnInterrupt

from ..devices.hutch import eventually

Plan = Generator[Msg, Any, None]
LONG = 60.0  # s


@pytest.fixture
def engine() -> Iterator[Any]:
    before = signal.getsignal(signal.SIGINT)
    yield RunEngine({}, context_managers=[AbortOnInterrupt])
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.fixture
def ends(engine: Any) -> list[str]:
    """Note the exit status of each run that ends."""
    ends: list[str] = []
    engine.subscribe(lambda name, doc: ends.append(doc["exit_status"]), "stop")
    return ends


def press_by_process() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def press_by_thread() -> None:
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)


@pytest.mark.parametrize("press", [press_by_process, press_by_thread])
def test_the_plan_is_aborted_whichever_thread_takes_the_signal(
    engine: Any, ends: list[str], press: Callable[[], None]
) -> None:
    def plan() -> Plan:
        yield from open_run()
        threading.Thread(target=press).start()
        yield from sleep(LONG)

    with pytest.raises(KeyboardInterrupt):
        engine(plan())
    assert ends == ["abort"]
    assert engine.state == "idle"


def test_pressed_before_the_first_message_it_aborts_the_plan(engine: Any) -> None:
    class Pressed:
        def __init__(self, engine: RunEngine) -> None: ...

        def __enter__(self) -> None:
            press_by_process()

        def __exit__(self, *of_the_plan: object) -> None: ...

    def plan() -> Plan:
        yield from sleep(LONG)

    engine.context_managers = [AbortOnInterrupt, Pressed]
    with pytest.raises(KeyboardInterrupt):
        engine(plan())
    assert engine.state == "idle"


def test_pressed_after_the_last_message_it_still_counts(engine: Any, ends: list[str]) -> None:
    class Pressed:
        def __init__(self, engine: RunEngine) -> None: ...

        def __enter__(self) -> None: ...

        def __exit__(self, *of_the_plan: object) -> None:
            press_by_process()

    def plan() -> Plan:
        yield from open_run()
        yield from close_run()

    engine.context_managers = [AbortOnInterrupt, Pressed]
    with pytest.raises(KeyboardInterrupt):
        engine(plan())
    assert ends == ["success"]


def test_a_second_one_is_what_it_was_before(engine: Any) -> None:
    pressed = threading.Event()
    main = threading.get_ident()

    def heard(number: int, frame: Any) -> None:
        pressed.set()

    def plan() -> Plan:
        yield from open_run()
        signal.pthread_kill(main, signal.SIGINT)
        try:
            yield from sleep(LONG)
        finally:
            eventually(lambda: signal.getsignal(signal.SIGINT) is heard, "the first one was taken note of")
            signal.pthread_kill(main, signal.SIGINT)
            assert pressed.wait(10)

    before = signal.signal(signal.SIGINT, heard)
    try:
        with pytest.raises(KeyboardInterrupt):
            engine(plan())
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_signals_abort_nothing(engine: Any, ends: list[str]) -> None:
    seen = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.set())

    def plan() -> Plan:
        yield from open_run()
        os.kill(os.getpid(), signal.SIGUSR1)
        yield from close_run()

    try:
        engine(plan())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen.is_set()
    assert ends == ["success"]
