"""Reduce recorded files: no scan, but the same broker, workers, sink, catalog and NeXus file."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Final

from .outcome import Outcome, outcome
from .services import recorder_command
from .session_log import session_log
from .workers.assets import AssetStore
from .workers.errors import FileError, PoolError, ReductionError, SettingsError
from .workers.pool.folders import make_folder
from .workers.pool.local import Pool
from .workers.recipes import outputs
from .workers.wire.messages import InputSpec

SOURCE: Final = "detector"
"""What a recorded detector is called in the documents."""

PATIENCE: Final = 600.0
"""s without the reduction's end after which it is given up."""


def reduce_recorded(
    files: Sequence[Path], *, recipe: str, poni: Path | None, dataset: str | None, workers: int, directory: Path
) -> Outcome:
    """Reduce recorded detector files into a catalog and a NeXus file under ``directory``.

    Parameters
    ----------
    files
        HDF5 files with a dataset of frames (n, rows, columns), in the order of their frames.
    recipe
        A reducer's name, or a TOML or JSON file with a ``[recipe]``.
    poni
        The frames' geometry, for recipes that need one.
    dataset
        Where the frames are in each file; looked for by default.
    workers
        Processes that reduce.
    directory
        Where the catalog, the ledger and the NeXus file go. An earlier catalog there is added to.

    Raises
    ------
    HaltereError
        A file, the recipe, the geometry or a folder can't be used: one line says which.
    """
    from .callbacks.catalog import Catalog, raw_writer
    from .callbacks.dispatch import Dispatcher
    from .callbacks.following import Follower
    from .callbacks.recipe_file import read_recipe
    from .callbacks.recorded import find_all, reduce_files

    directory = directory.resolve()
    try:  # before anything is started
        frames = find_all(files, dataset)[0]
        make_folder(directory)
        make_folder(directory / "logs")
        chosen = read_recipe(recipe, source=SOURCE, poni=poni, assets=AssetStore(directory / "pool" / "assets"))
        outputs(chosen.spec(), [InputSpec(f"{SOURCE}_image", frames.shape, frames.dtype)])
    except (FileError, ReductionError) as error:
        raise SettingsError(str(error)) from None
    folders = sorted({path.resolve().parent for path in files})
    nexus = directory / "nexus"
    with ExitStack() as stack:
        stack.enter_context(session_log(directory / "logs" / "session.log"))
        catalog = Catalog.start(directory / "catalog", readable=[*folders, nexus])
        stack.callback(catalog.close)
        pool = stack.enter_context(
            Pool.local(
                workers,
                directory=directory / "pool",
                nexus=nexus,
                roots=folders,
                recorder=lambda endpoints, ledger: recorder_command(endpoints, ledger, catalog),
                catalog=catalog.address,
            )
        )
        writer = raw_writer(catalog)
        stack.callback(writer.close)
        dispatcher = Dispatcher(pool.endpoints.sink, roots=folders)
        stack.callback(dispatcher.close)
        follower = Follower(pool.endpoints.recorder)
        stack.callback(follower.close)
        began = perf_counter()
        raw_uid, stop = reduce_files(
            files,
            [chosen],
            write=writer,
            dispatch=dispatcher,
            follow=follower,
            timeout=PATIENCE,
            dataset=dataset,
            name=SOURCE,
        )
        if not catalog.wait_processed(stop["run_start"], PATIENCE):
            raise PoolError(
                f"run {raw_uid} is reduced, but isn't in the catalog (see {pool.directory}/logs/recorder.log)"
            )
        return outcome(raw_uid, stop, pool, perf_counter() - began, directory / "catalog")
