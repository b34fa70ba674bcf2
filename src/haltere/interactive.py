"""What an IPython session of the beamline has at its prompt."""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Callable, Iterator
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
    prompt = shell if hasattr(shell, "register_magics") else None
    try:
        session = Session.start(load(**settings), log=True, wait=prompt is None)
    except HaltereError as error:
        raise SystemExit(f"haltere: {error}") from None
    # Imported here: the processes were starting while the session imported most of it.
    from bluesky import plan_stubs as bps
    from bluesky import plans as bp
    from bluesky.utils import ProgressBarManager

    from .callbacks.live import LiveMap
    from .callbacks.plot import plot_map
    from .plans.fly import fly_grid

    atexit.register(session.close)
    if prompt is not None:
        from bluesky.magics import BlueskyMagics

        prompt.run_line_magic("xmode", "Minimal")
        prompt.register_magics(BlueskyMagics)
    session.RE.waiting_hook = ProgressBarManager()  # type: ignore[assignment]  # bluesky declares it None
    session.follower.subscribe(Verdict())
    kind = "simulated" if session.simulated else "beamline"
    pool = f"the pool of process {session.pool.file.pid}" if session.attached else f"{session.settings.workers} workers"
    print(
        f"haltere ({kind}) · {session.eiger.name} {session.xspress3.name} {session.pilc.name} · "
        f"{pool} · {session.directory}"
    )
    if prompt is None:
        db = session.db
    else:
        db = Awaited(lambda: session.db)
        threading.Thread(target=finish, args=(prompt, session, db), name="catalog", daemon=True).start()
    return {
        "session": session,
        "RE": session.RE,
        "db": db,
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


def processed(run: Any, catalog: str = "processed") -> Any:
    """Return the processed run of a raw ``run``; see :func:`haltere.callbacks.access.processed`."""
    from .callbacks.access import processed

    return processed(run, catalog)


class Awaited:
    """The catalog while its server starts: whoever asks anything of it waits for that."""

    def __init__(self, get: Callable[[], Any]) -> None:
        self._get = get

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_ipython") or name.startswith("_repr"):  # asked by the prompt, on its own account
            raise AttributeError(name)
        return getattr(self._get(), name)

    def __getitem__(self, key: Any) -> Any:
        return self._get()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._get())

    def __len__(self) -> int:
        return len(self._get())

    def __contains__(self, key: object) -> bool:
        return key in self._get()

    def __repr__(self) -> str:
        return repr(self._get())


def finish(shell: InteractiveShell, session: Session, db: Awaited) -> None:
    """Bring to the prompt what it needn't wait for: the catalog itself, and how its runs are shown."""
    try:
        from .callbacks.access import register_formatters

        register_formatters(shell)
        found = session.db
    except HaltereError as error:
        print(f"haltere: there is no catalog: {error}", file=sys.stderr, flush=True)
        return
    if shell.user_ns.get("db") is db:
        shell.user_ns["db"] = found


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
