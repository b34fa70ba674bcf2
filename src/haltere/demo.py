"""The demo: one grid over the simulated beamline, reduced while it flies, every frame accounted for."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from .outcome import Outcome, outcome
from .recording import Recording
from .services import POOL
from .session import Session
from .workers.errors import SettingsError
from .workers.pool.file import find, whose
from .workers.pool.local import Chaos
from .workers.settings import load

MARK: Final = ".haltere-demo"
"""Stands in a folder that a demo made, so that the next one may replace it."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to fly. ``dwell`` in seconds; extents in µm around the sample's middle."""

    rows: int = 40
    columns: int = 60
    dwell: float = 5e-3
    workers: int = 2
    seed: int = 1
    model: str = "500k"
    chaos: bool = False
    keep: Path = Path("haltere-demo")
    recording: Recording = field(default_factory=Recording)
    height: float = 40.0
    width: float = 60.0


Listener = Callable[[str, dict[str, Any]], None]


def run(options: Options, *, progress: Callable[[Session], Listener] | None = None) -> Outcome:
    """Start everything, fly, wait until every frame is accounted for, end everything.

    Parameters
    ----------
    options
        What to fly.
    progress
        Given the session, returns a callback for the raw run's documents that shows how far it is.

    Raises
    ------
    HaltereError
        Something couldn't be started, the scan failed, or the reduction didn't end in time: one line says what.
    """
    directory = fresh_folder(options.keep)
    settings = load(directory=directory, workers=options.workers, model=options.model, seed=options.seed)
    chaos = Chaos() if options.chaos else None
    with Session.start(settings, recording=options.recording, chaos=chaos, log=True) as session:
        return fly(session, options, progress)


def fly(session: Session, options: Options, progress: Callable[[Session], Listener] | None) -> Outcome:
    """Fly one grid in a running session and wait for its reduction."""
    from .interrupt import AbortOnInterrupt
    from .plans.fly import fly_grid

    points = options.rows * options.columns
    if progress is not None:
        session.RE.subscribe(progress(session))
    if options.chaos:
        session.RE.subscribe(_Killer(session, points))
    half_height, half_width = options.height / 2, options.width / 2
    plan = fly_grid(
        [session.eiger, session.xspress3, session.pilc],
        session.stage.y,
        -half_height,
        half_height,
        options.rows,
        session.stage.x,
        -half_width,
        half_width,
        options.columns,
        dwell=options.dwell,
        md={"sample": {"name": "simulated"}, "purpose": "demo"},
    )
    session.RE.context_managers = [AbortOnInterrupt]
    began = perf_counter()
    (raw_uid,) = session.run(plan)
    # As long again as the scan took, and a margin for a loaded machine: the backfill reads while it reduces.
    stop = session.wait(raw_uid, timeout=120 + 4 * points * options.dwell)
    wall = perf_counter() - began
    return outcome(raw_uid, stop, session.pool, wall, session.directory / "catalog")


class _Killer:
    """Kills a worker at a third of the scan and the broker at half of it; a callback for the raw documents."""

    def __init__(self, session: Session, points: int) -> None:
        self._session = session
        self._due = [(points // 3, "worker-1"), (points // 2, "broker")]

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        if str(name) != "stream_datum":
            return
        while self._due and doc["seq_nums"]["stop"] > self._due[0][0]:
            _, victim = self._due.pop(0)
            # Off the RunEngine's thread: chaos mustn't slow the scan more than the fault itself does.
            threading.Thread(target=self._session.pool.kill, args=(victim, signal.SIGKILL), daemon=True).start()


def fresh_folder(path: Path) -> Path:
    """Return ``path`` as an empty folder of this demo's; replace what an earlier demo left there.

    Raises
    ------
    SettingsError
        It holds something that no demo made, or it can't be written.
    """
    if path.exists() and not (path / MARK).exists() and (not path.is_dir() or any(path.iterdir())):
        raise SettingsError(f"{path} holds something else than a demo: name an empty folder with --keep")
    if find(path / POOL) is not None:
        raise SettingsError(f"{path} is in use by a pool{whose(find(path / POOL))}: name another folder with --keep")
    try:
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True)
        (path / MARK).touch()
    except OSError as error:
        raise SettingsError(f"folder {path} can't be written: {error.strerror}; name another with --keep") from None
    return path.resolve()
