"""What an IPython session of the beamline has at its prompt."""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING, Any

from .session import Session
from .workers.errors import HaltereError
from .workers.settings import load

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def namespace(shell: InteractiveShell | None = None, **settings: Any) -> dict[str, Any]:
    """Start a session and return its names for the prompt.

    Parameters
    ----------
    shell
        The IPython shell, if there is one: gets short tracebacks, the ``%wa`` and ``%mov`` magics and formatters.
        The queue server's stand-in for one has no magics; it is left alone.
    settings
        Go before ``haltere.toml`` and ``HALTERE_*``; see :class:`haltere.workers.settings.Settings`.

    Raises
    ------
    SystemExit
        Something can't be started; one line says what.
    """
    try:
        session = Session.start(load(**settings), log=True)
    except HaltereError as error:
        raise SystemExit(f"haltere: {error}") from None
    # Imported here: the processes were starting while the session imported most of it.
    from bluesky import plan_stubs as bps
    from bluesky import plans as bp
    from bluesky.utils import ProgressBarManager

    from .callbacks.access import processed, register_formatters
    from .callbacks.live import LiveMap
    from .callbacks.plot import plot_map
    from .plans.fly import fly_grid

    atexit.register(session.close)
    if shell is not None and hasattr(shell, "register_magics"):
        from bluesky.magics import BlueskyMagics

        shell.run_line_magic("xmode", "Minimal")
        shell.register_magics(BlueskyMagics)
        register_formatters(shell)
    session.RE.waiting_hook = ProgressBarManager()  # type: ignore[assignment]  # bluesky declares it None
    session.follower.subscribe(Verdict())
    kind = "simulated" if session.simulated else "beamline"
    pool = f"the pool of process {session.pool.file.pid}" if session.attached else f"{session.settings.workers} workers"
    print(
        f"haltere ({kind}) · {session.eiger.name} {session.xspress3.name} {session.pilc.name} · "
        f"{pool} · {session.directory}"
    )
    return {
        "session": session,
        "RE": session.RE,
        "db": session.db,
        "pool": session.pool,
        "eiger": session.eiger,
        "xspress3": session.xspress3,
        "pilc": session.pilc,
        "stage": session.stage,
        "sx": session.stage.x,
        "sy": session.stage.y,
        "fly_grid": fly_grid,
        "processed": processed,
        "plot_map": plot_map,
        "LiveMap": LiveMap,
        "wait": session.wait,
        "rereduce": session.rereduce,
        "follow": session.follower.subscribe,
        "bp": bp,
        "bps": bps,
    }


class Verdict:
    """A callback for processed documents that says in one line what came of each scan."""

    def __init__(self) -> None:
        self._scans: dict[str, Any] = {}

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        """Take a document; a stop document gives the line."""
        if name == "start":
            self._scans[doc["uid"]] = doc.get("scan_id", doc["raw_uid"][:8])
        elif name == "stop":
            from .callbacks.access import completeness

            counts = " · ".join(f"{stream} {completeness(each)}" for stream, each in doc["frames"].items())
            print(f"scan {self._scans.pop(doc['run_start'], '?')} reduced: {counts} → {doc.get('nexus', 'no file')}")
