"""What runs beneath a session: a catalog and a pool. Either its own, or those that ``haltere up`` keeps."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from .beamline import data_folders
from .workers.errors import PoolError, SettingsError
from .workers.pool.file import Endpoints, PoolFile, find, whose
from .workers.pool.folders import make_folder
from .workers.pool.local import Chaos, Pool
from .workers.pool.view import AttachedPool
from .workers.processes.child import Process
from .workers.settings import Settings

if TYPE_CHECKING:
    from .callbacks.catalog import Catalog

POOL: Final = "pool"
"""The pool's folder, in the session's."""


@dataclass(frozen=True, slots=True)
class Services:
    """A catalog and a pool that belong together. ``attached`` : they are another process's."""

    catalog: Catalog
    pool: Pool | AttachedPool
    attached: bool

    @classmethod
    def start(
        cls,
        settings: Settings,
        stack: ExitStack,
        *,
        stays: bool = False,
        launch: bool = True,
        chaos: Chaos | None = None,
        beside: Sequence[Process] = (),
    ) -> Self:
        """Start them; ``stack`` ends them. The catalog's server may still be starting when this returns.

        Parameters
        ----------
        settings
            What to start, and where.
        stays
            They outlive sessions, which may attach to them.
        launch
            Start the catalog's server, too. It takes more than all the rest: whoever doesn't need it at once calls
            ``catalog.launch()`` later.
        chaos
            Faults on purpose.
        beside
            Processes started elsewhere whose condition is told with the pool's own.

        Raises
        ------
        HaltereError
            A folder or a process can't be had, or the folder has a pool already: one line says which.
        """
        from .callbacks.catalog import Catalog

        directory = settings.directory.resolve()
        raw, nexus = directory / "raw", directory / "nexus"
        for folder in (directory, directory / "logs", raw):
            make_folder(folder)
        beamline = settings.beamline
        roots = [raw, *(() if beamline is None else data_folders(beamline))]
        catalog = Catalog.begin(directory / "catalog", readable=[*roots, nexus], launch=launch)
        stack.callback(catalog.close)
        assert catalog.process is not None
        pool = Pool.local(
            settings.workers,
            directory=directory / POOL,
            nexus=nexus,
            roots=roots,
            recorder=lambda endpoints, ledger: recorder_command(endpoints, ledger, catalog),
            streams=[] if beamline is None else [(beamline.eiger.stream, "simplon-1")],
            ring_bytes=settings.ring_bytes,
            spill_bytes=settings.spill_bytes,
            backfill=settings.backfill,
            chaos=chaos,
            stays=stays,
            catalog=catalog.address,
            beside=[catalog.process, *beside],
        )
        stack.callback(pool.close)
        return cls(catalog, pool, attached=False)

    @classmethod
    def attach(cls, settings: Settings, stack: ExitStack) -> Self | None:
        """Use those that run for the settings' directory; None if none do.

        Raises
        ------
        HaltereError
            They are a session's own, on another host, or may not read what the settings' instruments write.
        """
        from .callbacks.catalog import Catalog

        directory = settings.directory.resolve()
        found = find(directory / POOL)
        if found is None:
            return None
        if not found.stays or found.catalog is None:
            raise SettingsError(
                f"{directory} is in use by another session{whose(found)}: end that, name another directory, "
                "or keep a pool for both with `haltere up`"
            )
        check_roots(found, settings)
        pool = AttachedPool(found)
        if pool.own_status() is None:
            raise PoolError(f"the pool of {directory}{whose(found)} doesn't answer: end it, and start it anew")
        catalog = Catalog.connect(found.catalog.uri, found.catalog.api_key_file)
        stack.callback(catalog.close)
        return cls(catalog, pool, attached=True)


def check_roots(found: PoolFile, settings: Settings) -> None:
    """See that a pool may read what the instruments write.

    Raises
    ------
    SettingsError
        It may not: names the folder.
    """
    if settings.beamline is None:
        return
    for folder in data_folders(settings.beamline):
        if not any(folder.resolve().is_relative_to(root) for root in found.roots):
            raise SettingsError(
                f"the pool{whose(found)} may not read {folder}: start it anew, with this session's haltere.toml"
            )


def recorder_command(endpoints: Endpoints, ledger: Path, catalog: Catalog) -> Sequence[str]:
    """Return what the pool runs as its recorder."""
    settings = {
        "bind": endpoints.recorder,
        "sink": endpoints.sink,
        "ledger": str(ledger),
        "catalog": catalog.uri,
        "api_key_file": str(catalog.api_key_file),
    }
    return [sys.executable, "-m", "haltere.callbacks.recorder", json.dumps(settings)]
