"""A pool and a catalog that stay while sessions come and go."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import ExitStack
from types import FrameType
from typing import Final

import msgspec

from .services import Services
from .session_log import session_log
from .workers.pool.folders import make_folder
from .workers.pool.local import Pool
from .workers.settings import Settings

ENDS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def keep(settings: Settings, *, as_json: bool) -> None:
    """Keep a pool and a catalog for the settings' directory until SIGTERM, SIGHUP or Ctrl-C; then end them in order.

    Prints a line when they run: for a person, or as one JSON object.

    Raises
    ------
    HaltereError
        A folder or a process can't be had, or the directory has a pool already.
    """
    directory = settings.directory.resolve()
    for folder in (directory, directory / "logs"):
        make_folder(folder)
    with ExitStack() as stack:
        stack.enter_context(session_log(directory / "logs" / "up.log"))
        services = Services.start(settings, stack, stays=True)
        services.catalog.wait_ready()
        assert isinstance(services.pool, Pool)
        announce(services, settings, as_json=as_json)
        wait_for_the_end()
        say_what_is_open(services.pool)


def announce(services: Services, settings: Settings, *, as_json: bool) -> None:
    """Say that everything runs, and where."""
    file = services.pool.file
    if as_json:
        said = {
            "pid": os.getpid(),
            "directory": str(settings.directory.resolve()),
            "workers": settings.workers,
            "catalog": services.catalog.uri,
            "endpoints": msgspec.to_builtins(file.endpoints),
        }
        print(json.dumps(said), flush=True)
        return
    print(
        f"haltere up · {settings.workers} workers · {settings.directory.resolve()} · "
        f"catalog {services.catalog.uri} · process {os.getpid()}\n"
        "sessions with this directory attach to it; Ctrl-C ends it",
        flush=True,
    )


def wait_for_the_end() -> None:
    """Wait for a signal that asks for the end. A second Ctrl-C doesn't wait for anything."""
    woken, wake = os.pipe()

    def end(number: int, frame: FrameType | None) -> None:
        os.write(wake, b"x")

    before = {number: signal.signal(number, end) for number in ENDS}
    os.read(woken, 1)
    signal.signal(signal.SIGINT, before[signal.SIGINT])


def say_what_is_open(pool: Pool) -> None:
    """Say which runs aren't complete: the next pool of this directory goes on with them."""
    sink = pool.status(timeout=1.0)["sink"] or {}
    waiting = [run["run"] for run in sink.get("runs", ()) if run["completed"] is None]
    if waiting:
        print(
            f"haltere: {len(waiting)} runs aren't complete ({', '.join(waiting[:3])}): "
            "they go on when a pool runs for this directory again",
            file=sys.stderr,
            flush=True,
        )
