"""A session's folder with what is needed to work on its runs: its catalog and its pool, running or started for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from .beamline import data_folders
from .defaults import default_recipes
from .recording import Recording
from .services import POOL, recorder_command
from .session import Session
from .workers.assets import AssetStore
from .workers.errors import PoolError, SettingsError
from .workers.ledger.reader import LedgerReader
from .workers.pool.file import find, whose
from .workers.pool.folders import remembered_roots
from .workers.pool.local import Pool
from .workers.pool.view import AttachedPool, PoolView
from .workers.recipes import Recipe
from .workers.settings import Settings
from .workers.spill.file import left_behind
from .workers.wire.messages import FileSpan

if TYPE_CHECKING:
    from .callbacks.catalog import Catalog


class Workshop:
    """Use as a context manager: what it started ends with it, what ran before goes on.

    Parameters
    ----------
    directory
        The session's folder.
    catalog
        The catalog of its runs.
    roots
        The folders that frames may be read from.
    pool
        The pool that runs; without one it is started when it is first needed.
    workers
        How many reduce, in a pool that is started.
    recipes
        What is made of runs whose start documents don't say.
    """

    def __init__(
        self,
        directory: Path,
        catalog: Catalog,
        roots: Sequence[Path],
        *,
        pool: PoolView | None = None,
        workers: int = 2,
        recipes: Callable[[AssetStore], Sequence[Recipe]] = lambda _: (),
    ) -> None:
        self.directory = directory
        self.catalog = catalog
        self.roots = list(dict.fromkeys(Path(root).resolve() for root in roots))
        self._pool = pool
        self._workers = workers
        self._recipes = recipes
        self._stack = ExitStack()

    @classmethod
    def open(cls, settings: Settings, roots: Iterable[Path] = ()) -> Self:
        """Open the folder that the settings name.

        Parameters
        ----------
        roots
            Folders that frames may be read from beside the session's own.

        Raises
        ------
        SettingsError
            There is no catalog.
        """
        from .callbacks.catalog import Catalog

        directory = settings.directory.resolve()
        if not (directory / "catalog" / "catalog.db").is_file():
            raise SettingsError(f"{directory} has no catalog: name the folder that a session or `haltere reduce` used")
        place = directory / POOL
        running = find(place)
        if running is None:
            beamline = [] if settings.beamline is None else data_folders(settings.beamline)
            readable = [directory / "raw", *beamline, *remembered_roots(place), *roots]
        else:
            readable = [Path(root) for root in running.roots]  # its workers read, and may read no more than these
        stack = ExitStack()
        if running is not None:
            if running.catalog is None:
                raise PoolError(f"the pool of {directory}{whose(running)} has no catalog: end it first")
            catalog = Catalog.connect(running.catalog.uri, running.catalog.api_key_file)
            stack.callback(catalog.close)
        else:
            catalog = stack.enter_context(
                Catalog.start(directory / "catalog", readable=[*readable, directory / "nexus"])
            )
        shop = cls(
            directory,
            catalog,
            readable,
            pool=None if running is None else AttachedPool(running),
            workers=settings.workers,
            recipes=lambda assets: default_recipes(settings, Recording(), assets),
        )
        shop._stack = stack
        return shop

    @classmethod
    def of(cls, session: Session) -> Self:
        """Work in a session's own folder, beside what it does."""
        roots = [Path(root) for root in session.pool.file.roots]
        return cls(session.directory, session.catalog, roots, pool=session.pool, recipes=lambda _: session.recipes)

    @property
    def pool(self) -> PoolView:
        """The pool. One of its own pulls nothing from any detector: its frames come from files."""
        if self._pool is None:
            self._pool = self._stack.enter_context(
                Pool.local(
                    self._workers,
                    directory=self.directory / POOL,
                    nexus=self.directory / "nexus",
                    roots=self.roots,
                    recorder=lambda endpoints, ledger: recorder_command(endpoints, ledger, self.catalog),
                    catalog=self.catalog.address,
                    live=False,
                )
            )
        return self._pool

    @property
    def has_pool(self) -> bool:
        """Whether a pool runs by now."""
        return self._pool is not None

    @property
    def ledger(self) -> Path:
        """The ledger's file; it may not be there."""
        return self.directory / POOL / "ledger.db"

    def spilled(self, raw: str) -> list[FileSpan]:
        """Return which frames of a raw run lie in the pool's own files, whether it has told of them or not."""
        return left_behind(self.directory / POOL / "spill", raw)

    @property
    def assets(self) -> AssetStore:
        """What recipes refer to."""
        return AssetStore(self.directory / POOL / "assets")

    def default_recipes(self) -> tuple[Recipe, ...]:
        """Return what is made of a run whose start document doesn't say, and that no pool has seen."""
        return tuple(self._recipes(self.assets))

    def stop_of(self, processed: str) -> dict[str, Any] | None:
        """Return a processed run's stop document as the catalog has it; None if the run isn't there, or not whole."""
        try:
            return self.catalog.processed[processed].metadata.get("stop") or None
        except KeyError:
            return None

    def reader(self) -> LedgerReader | None:
        """Return the ledger's read end, None if there is no ledger."""
        if not self.ledger.is_file():
            return None
        return LedgerReader(self.ledger)

    def find(self, uid: str) -> Any:
        """Return the raw run of that uid, that beginning of one, or that scan number; or which was reduced to it.

        Raises
        ------
        SettingsError
            There is none, or several.
        """
        raw = self.catalog.raw
        found = _look_up(raw, uid)
        if found is None and (processed := _look_up(self.catalog.processed, uid)) is not None:
            found = _look_up(raw, str(processed.start.get("raw_uid", "")))
        if found is None:
            raise SettingsError(f"{self.directory} has no run {uid}: name a uid, its beginning, or a scan's number")
        return found

    def find_processed(self, uid: str, raw: Any) -> Any:
        """Return the processed run of that uid, or the latest one of a raw run.

        Raises
        ------
        SettingsError
            The raw run hasn't been reduced.
        """
        from .callbacks.access import processed

        named = None if uid.isdigit() else _look_up(self.catalog.processed, uid)
        if named is not None:
            return named
        try:
            return processed(raw)
        except KeyError as error:
            raise SettingsError(str(error.args[0])) from None

    def check(self, files: Iterable[Path]) -> None:
        """See that every file lies where frames may be read from.

        Raises
        ------
        SettingsError
            One doesn't: names its folder, and the option.
        """
        for path in files:
            if not any(path.resolve().is_relative_to(root) for root in self.roots):
                folders = ", ".join(map(str, self.roots))
                remedy = f"add --root {path.parent}"
                if isinstance(self._pool, AttachedPool):
                    remedy = "they are those of the pool that runs: end it, or start it with that folder too"
                raise SettingsError(f"{path} lies outside of the folders that may be read ({folders}): {remedy}")

    def close(self) -> None:
        """End what was started here."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _look_up(catalog: Any, uid: str) -> Any:
    """Return a catalog's run, None if it has none."""
    for key in (int(uid), uid) if uid.isdigit() and len(uid) < 8 else (uid,):
        try:
            return catalog[key]
        except KeyError:
            continue
        except ValueError as error:  # several begin so
            raise SettingsError(f"run {uid}: {error}") from None
    return None
