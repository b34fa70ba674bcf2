"""How a pool does, for a person and for a program."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .services import POOL
from .workers.errors import PoolError
from .workers.pool.file import find
from .workers.pool.status import report
from .workers.pool.view import AttachedPool

PERIOD: Final = 1.0
"""Seconds between two looks."""

PIPED: Final = 120
"""Columns where there is no terminal to ask."""

TIMEOUT: Final = 2.0
"""Seconds that a process has to answer."""


def attached(directory: Path) -> AttachedPool:
    """Return the pool that runs for a session's directory.

    Raises
    ------
    PoolError
        None does.
    """
    directory = directory.resolve()
    found = find(directory / POOL) or find(directory)
    if found is None:
        raise PoolError(f"no pool runs for {directory}: start a session or `haltere up` there, or name its --directory")
    return AttachedPool(found)


def show(directory: Path, *, as_json: bool, watch: bool) -> None:
    """Print how the pool of ``directory`` does: once, or again each second until Ctrl-C.

    Raises
    ------
    PoolError
        None runs, or it ended.
    """
    pool = attached(directory)
    if as_json:
        while True:
            print(json.dumps(report(pool.status(TIMEOUT))), flush=True)
            if not watch:
                return
            time.sleep(PERIOD)
            pool = attached(directory)
    if not watch:
        Console(width=None if sys.stdout.isatty() else PIPED).print(tables(report(pool.status(TIMEOUT))))
        return
    with Live(tables(report(pool.status(TIMEOUT))), auto_refresh=False, screen=False) as live:
        while True:
            time.sleep(PERIOD)
            live.update(tables(report(attached(directory).status(TIMEOUT))), refresh=True)


def tables(said: dict[str, Any]) -> Group:
    """Return a report for a terminal."""
    parts: list[Any] = [Text(f"! {line}", style="bold red") for line in said["troubles"]]
    parts += [_processes(said), _runs(said), _flow(said)]
    return Group(*parts)


def _processes(said: dict[str, Any]) -> Table:
    pool = said["pool"]
    kind = "stays" if pool.get("stays") else "ends with its session"
    table = _table(f"{pool.get('directory', '?')} · process {pool.get('pid', '?')} · {kind}")
    table.add_column("process")
    table.add_column("state")
    for column in ("pid", "up", "cpu", "memory", "restarts", "hung"):
        table.add_column(column, justify="right")
    table.add_column("last words")
    for each in said["processes"]:
        table.add_row(
            each["name"],
            Text(each["state"], style="" if each["state"] == "running" else "bold red"),
            str(each["pid"]) if each["pid"] >= 0 else "–",
            duration(each["uptime_s"]),
            f"{each['cpu_percent']:.0f} %",
            mib(each["rss_bytes"]),
            str(each["restarts"]),
            str(each["hung"]),
            each["last_words"][:60],
        )
    return table


def _runs(said: dict[str, Any]) -> Table:
    table = _table("runs")
    for column in ("scan", "state", "stream"):
        table.add_column(column, no_wrap=True)
    for column in ("expected", "live", "backfilled", "per s", "lag"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("besides")  # the only one that may be cut in lines: a number that is cut is another number
    for run in said["runs"]:
        name = str(run["scan_id"] if run["scan_id"] is not None else run["run"][:8])
        state, gone = run["state"], [Text("its session is gone")] * run["abandoned"]
        for stream, each in run["streams"].items():
            counts = (str(each[key]) for key in ("expected", "live", "backfilled"))
            rate = f"{each['live_per_s'] + each['backfilled_per_s']:.0f}"
            besides = Text(", ").join([*gone, *_besides(each)])
            table.add_row(name, state, stream, *counts, rate, f"{each['lag_s']:.1f} s", besides)
            name, state, gone = "", "", []
        if not run["streams"]:
            table.add_row(name, state, "–", *[""] * 5, *gone)
    return table


def _besides(stream: dict[str, Any]) -> Iterator[Text]:
    """Say how many frames came to another end, or twice, where there are any."""
    for key in ("owed", "quarantined", "lost", "duplicates"):
        if stream[key]:
            yield Text(f"{stream[key]} {key}", style="bold red" if key in ("quarantined", "lost") else "")


def _flow(said: dict[str, Any]) -> Table:
    queues, lag, rates = said["queues"], said["lag"], said["rates"]
    table = _table("flow")
    table.add_column("")
    table.add_column("")
    drops = ", ".join(f"{n} {cause}" for cause, n in said["drops"].items()) or "none"
    for what, how in (
        ("rate", f"{rates['live_per_s']:.0f} live/s, {rates['backfilled_per_s']:.0f} backfilled/s"),
        ("lag", f"oldest promise {lag['oldest_s']:.1f} s, recorder {lag['recorder_frames']} frames"),
        ("ring", f"{mib(queues['ring_used'])} of {mib(queues['ring_bytes'])}"),
        (
            "broker",
            f"{queues['live_batches']} live, {queues['file_batches']} from files, {queues['leases']} leased",
        ),
        ("sink", f"{queues['sink_rows']} rows, {mib(queues['sink_bytes'])}; workers keep {queues['kept_results']}"),
        ("catalog", f"{queues['catalog_documents']} documents wait"),
        ("dropped", drops),
    ):
        table.add_row(what, how)
    table.show_header = False
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0))


def duration(seconds: float) -> str:
    """Say how long, for a person.

    >>> duration(3.2), duration(3725)
    ('0:00:03', '1:02:05')
    """
    return str(timedelta(seconds=int(seconds)))


def mib(size: float) -> str:
    """Say how much.

    >>> mib(268435456)
    '256 MiB'
    """
    return f"{size / 2**20:.0f} MiB"
