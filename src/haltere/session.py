"""A session: the beamline's devices, a pool, a catalog and a RunEngine, joined.

This is the composition root. It may import every folder; nothing in the folders imports it.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from .beamline import connect, simulated_addresses, simulated_beamline
from .defaults import default_recipes
from .recording import Recording
from .services import Services
from .session_log import session_log
from .workers.assets import AssetStore
from .workers.errors import HaltereError, PoolError
from .workers.pool.folders import make_folder
from .workers.pool.local import Chaos, Pool
from .workers.pool.view import AttachedPool
from .workers.recipes import Recipe
from .workers.settings import BeamlineSettings, Settings

DEVICES: Final = ("haltere.plans.fly", "haltere.devices.stage")
READERS: Final = ("haltere.callbacks.access",)
"""Modules that take long to import: to fly, and to read what was flown."""

RECORDED: Final = 60.0
"""s in which what was measured or reduced must have come into the catalog."""

if TYPE_CHECKING:
    from bluesky import RunEngine
    from bluesky.utils import MsgGenerator

    from .callbacks.buffer import FlushableBuffer
    from .callbacks.catalog import Catalog
    from .callbacks.dispatch import Dispatcher
    from .callbacks.following import Follower
    from .devices.eiger import Eiger
    from .devices.pilc import PiLC
    from .devices.stage import Stage
    from .devices.xspress3 import Xspress3


@dataclass
class Session:
    """Everything that a scan needs, started together and closed together.

    Attributes
    ----------
    RE
        The RunEngine; its documents go to the catalog ``raw`` and to the pool.
    db
        The catalog ``raw``: ``db[-1]`` is the last scan. ``catalog.processed`` holds the reduced runs.
    recipes
        What is reduced when a plan's ``md["recipes"]`` doesn't say otherwise.
    attached
        Catalog and pool are those that ``haltere up`` keeps; they outlive the session.
    """

    settings: Settings
    directory: Path
    RE: RunEngine
    catalog: Catalog
    pool: Pool | AttachedPool
    dispatcher: Dispatcher
    follower: Follower
    raw_writer: FlushableBuffer
    eiger: Eiger
    xspress3: Xspress3
    pilc: PiLC
    stage: Stage
    recipes: tuple[Recipe, ...]
    simulated: bool
    attached: bool
    _stack: ExitStack = field(repr=False)

    @property
    def db(self) -> Any:
        """The catalog of raw runs."""
        return self.catalog.raw

    def run(self, plan: MsgGenerator[Any]) -> tuple[str, ...]:
        """Run a plan and return the uids of its runs."""
        result = self.RE(plan)
        return result if isinstance(result, tuple) else result.run_start_uids

    def wait(self, run: str | None = None, timeout: float = 600.0) -> dict[str, Any]:
        """Wait until a raw run is reduced and both runs are in the catalog; return the processed run's stop document.

        Parameters
        ----------
        run
            Its uid; by default the last one's.
        timeout
            s.

        Raises
        ------
        PoolError
            It isn't after ``timeout`` seconds.
        """
        run = run or str(self.db[-1].start["uid"])
        stop = self.follower.wait(run, timeout)
        if not self.raw_writer.flush(RECORDED) or not self.catalog.wait_processed(stop["run_start"], RECORDED):
            raise PoolError(f"run {run} is reduced, but after {RECORDED:.0f} s it isn't whole in the catalog")
        return stop

    def rereduce(self, run: Any, recipe: Any) -> Any:
        """Reduce a run that was measured before by another recipe; see :func:`haltere.rereduce.rereduce`."""
        from .progress import Reducing
        from .rereduce import rereduce

        with Reducing() as shown:
            return rereduce(run, recipe, self, listen=shown)

    @classmethod
    def start(
        cls,
        settings: Settings,
        *,
        recording: Recording | None = None,
        chaos: Chaos | None = None,
        log: bool = False,
        wait: bool = True,
    ) -> Self:
        """Start what the settings name; without a beamline in them, a simulated one.

        If ``haltere up`` keeps a pool and a catalog for the settings' directory, those are used, and outlive it.

        Parameters
        ----------
        settings
            What to start, and where.
        recording
            What the simulated Eiger replays; checked by who was given it.
        chaos
            Faults on purpose.
        log
            Keep the log in ``logs/session.log``, and show our warnings in one line each: what a person at a terminal
            wants. A program has its own ways.
        wait
            Return when the catalog's server answers, too. Else it is started last: it takes longest, and nothing
            needs it at once. Documents wait for it, and so does who asks for the catalog.

        Raises
        ------
        HaltereError
            A folder, a port, an instrument or a process can't be had: one line says which.
        """
        recording = recording or Recording()
        directory = settings.directory.resolve()
        for folder in (directory, directory / "logs", directory / "raw"):
            make_folder(folder)
        with ExitStack() as stack:
            if log:
                stack.enter_context(session_log(directory / "logs" / "session.log"))
            simulator = None
            if settings.beamline is None:
                simulator = simulated_beamline(settings, recording)
                stack.callback(simulator.close)
                simulator.start()
            # The slow starters go side by side: the simulator, the catalog's server, the pool, the imports.
            with ThreadPoolExecutor(1) as importer:
                importing = importer.submit(_import_parts, (*DEVICES, *(READERS if wait else ())))
                try:
                    services = Services.attach(settings, stack) or Services.start(
                        settings, stack, launch=wait, chaos=chaos, beside=[] if simulator is None else [simulator]
                    )
                finally:
                    importing.result()
            beamline = settings.beamline
            if simulator is not None:
                beamline = simulated_addresses(simulator.ready(60))
            assert beamline is not None
            services.pool.pull(beamline.eiger.stream, "simplon-1")
            if wait:
                services.catalog.wait_ready()
            session = cls._join(settings, directory, beamline, recording, services, simulator is not None, stack)
            services.catalog.launch()
            return session

    @classmethod
    def _join(
        cls,
        settings: Settings,
        directory: Path,
        beamline: BeamlineSettings,
        recording: Recording,
        services: Services,
        simulated: bool,
        stack: ExitStack,
    ) -> Self:
        from bluesky import RunEngine

        from .callbacks.catalog import raw_writer
        from .callbacks.dispatch import Dispatcher
        from .callbacks.following import Follower

        catalog, pool = services.catalog, services.pool
        devices = connect(beamline, directory / "raw")
        recipes = default_recipes(settings, recording, AssetStore(pool.assets))
        engine = RunEngine(persistent_metadata(directory))  # type: ignore[arg-type]  # any mapping will do
        # PersistentDict writes once more when the last reference goes: now, while its folder is surely there.
        stack.callback(lambda: setattr(engine, "md", dict(engine.md)))
        writer = raw_writer(catalog)
        stack.callback(writer.close)
        dispatcher = Dispatcher(pool.endpoints.sink, recipes=recipes)
        stack.callback(dispatcher.close)
        follower = Follower(pool.endpoints.recorder)
        stack.callback(follower.close)
        engine.subscribe(writer)
        # When the prompt comes back, db[-1] is the scan that just ended, with all its frames.
        engine.subscribe(lambda name, doc: writer.flush(RECORDED), "stop")
        engine.subscribe(dispatcher)
        return cls(
            settings=settings,
            directory=directory,
            RE=engine,
            catalog=catalog,
            pool=pool,
            dispatcher=dispatcher,
            follower=follower,
            raw_writer=writer,
            recipes=recipes,
            simulated=simulated,
            attached=services.attached,
            _stack=stack.pop_all(),
            **devices,
        )

    def close(self) -> None:
        """End everything that was started. May be called again."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def persistent_metadata(directory: Path) -> MutableMapping[str, Any]:
    """Return the RunEngine's metadata, kept in a file so that scan numbers go on over sessions."""
    from bluesky.utils import PersistentDict

    kept: MutableMapping[str, Any] = PersistentDict(str(directory / "metadata"))
    return kept


def _import_parts(modules: Sequence[str]) -> None:
    for module in modules:
        import_module(module)


__all__ = ["HaltereError", "Recording", "Session", "connect"]
