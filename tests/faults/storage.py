"""Faults of what keeps the results: the catalog's server is away, the ledger's disk is full, the NeXus files' is."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psutil

from .report import Report
from .rig import PoolFault, Rig
from .scan import Scan

FULL_SECONDS: Final = 3.0
"""s for which a disk stays full once it has been noticed."""

SIZE: Final = 128
"""MiB of a small disk."""


# --- the catalog's server --------------------------------------------------------------------------------------------


def catalog_down(seconds: float) -> PoolFault:
    """Return the fault for a server that is down for so long."""

    def strike(rig: Rig) -> None:
        rig.now()
        rig.site.server.signal(signal.SIGKILL)
        back = threading.Timer(seconds, rig.site.server.start)
        back.start()
        try:
            rig.hutch.wait()
            rig.follower.wait(rig.hutch.uid, seconds + 60)
            rig.note = f"the session had all documents {'before' if back.is_alive() else 'after'} the server was back"
        finally:
            back.join()

    return PoolFault(
        name="catalog-down",
        does=f"SIGKILL to the catalog's server, which is started again {seconds:.0f} s later.",
        expects="The scan, the reduction and the session's callbacks go on; the recorder waits, then writes it all.",
        strike=strike,
        check=_went_on,
    )


def stop_catalog(rig: Rig) -> None:
    """Stop the server, until whoever watches it has killed it for its silence; then start it again."""
    rig.now()
    rig.site.server.signal(signal.SIGSTOP)
    try:
        rig.hutch.wait()
        rig.follower.wait(rig.hutch.uid)
        rig.note = "the session had all documents before the server was back"
        rig.until(lambda: rig.site.server.pid < 0, what="the end of a server that doesn't answer")
    finally:
        rig.site.server.start()


def nobody_died(rig: Rig, report: Report) -> list[str]:
    """Complain if anything had to be started again."""
    return [f"{name} was started again" for name in report.restarts]


def _went_on(rig: Rig, report: Report) -> list[str]:
    return [] if "before" in report.note else ["the session's documents waited for the catalog"]


# --- disks -----------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path) -> Iterator[dict[str, Any]]:
    """Give a folder a disk of its own, where that is permitted; else leave it as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}m", "none", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield {}
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def full(rig: Rig, folder: Path, written: Path) -> Iterator[None]:
    """Let the sink find no room in a folder.

    On a small disk by filling it. Where none could be mounted by forbidding the sink to write beyond the present size
    of ``written``: then every file of its is cut off there.
    """
    if folder.is_mount():
        rig.note = f"a disk of {SIZE} MiB"
        ballast = folder / "ballast"
        with ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                while _writes(lambda size=size: file.write(bytes(size))):  # type: ignore[misc]
                    pass
        yield
        ballast.unlink()
    else:
        rig.note = "a limit of file size"
        sink = psutil.Process(rig.pid("sink"))
        sink.rlimit(psutil.RLIMIT_FSIZE, (written.stat().st_size, resource.RLIM_INFINITY))
        yield
        sink.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _writes(write: Callable[[], Any]) -> bool:
    try:
        write()
    except OSError:
        return False
    return True


def fill_ledger(rig: Rig) -> None:
    """Fill the disk of the ledger, wait until the sink has noticed, make room a while later."""
    ledger = rig.pool.ledger
    with full(rig, ledger.parent, ledger.with_name("ledger.db-wal")):
        rig.until(lambda: ((rig.pool.status()["sink"] or {}).get("errors") or 0) > 0, what="an error of the ledger")
        threading.Event().wait(FULL_SECONDS)
    rig.now()


def fill_nexus(rig: Rig) -> None:
    """Fill the disk of the NeXus files, wait until the sink has noticed, make room a while later.

    The sink looks how much room there is before HDF5 writes, so that a limit of file size is no stand-in.
    """
    nexus = rig.folder / "nexus"
    if not nexus.is_mount():
        raise PermissionError("no disk of its own could be mounted, which takes root: not tried")
    log = rig.pool.directory / "logs" / "sink.log"
    rig.now()
    with full(rig, nexus, next(nexus.glob("*.nxs"))):
        rig.until(lambda: "NeXus file" in log.read_text(), what="an error of the NeXus file")
        threading.Event().wait(FULL_SECONDS)


FAULTS: Final = (
    catalog_down(60.0),
    PoolFault(
        name="catalog-stop",
        does="SIGSTOP to the catalog's server: it takes requests, and answers none.",
        expects="As when it is down; it is killed after 15 s of silence, and started again.",
        strike=stop_catalog,
        check=_went_on,
    ),
    PoolFault(
        name="ledger-disk-full",
        does=f"The disk of the ledger is full for {FULL_SECONDS:g} s. Next commit: from when there is room.",
        expects="Nothing is acknowledged meanwhile; the sink goes on by itself, and takes what waited.",
        strike=fill_ledger,
        scan=Scan(rate=200),
        around=lambda folder: small_disk(folder / "pool"),
    ),
    PoolFault(
        name="nexus-disk-full",
        does=f"The disk of the NeXus files is full for {FULL_SECONDS:g} s.",
        expects="Commits go on, and no process dies; the file goes on when there is room, or is written anew.",
        strike=fill_nexus,
        scan=Scan(rate=200),
        around=lambda folder: small_disk(folder / "nexus"),
        check=nobody_died,
    ),
)
