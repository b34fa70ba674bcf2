"""The fault matrix: ``python -m tests.faults``. Every fault on real processes, one line as each is over, a table last.

Exit code 0 if all passed, 1 if one failed, 2 for a fault that there isn't.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Annotated

import typer

from .matrix import FAULTS
from .report import Report, line, table
from .site import Site


def main(
    only: Annotated[list[str] | None, typer.Option(help="Try this fault; may be given several times.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Say what each fault does and what is expected; try none.")] = (
        False
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for a program to read.")] = False,
) -> None:
    """Try every fault on real processes, each in a pool of its own."""
    known = {fault.name: fault for fault in FAULTS}
    if unknown := [name for name in only or [] if name not in known]:
        print(f"there is no fault {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        raise typer.Exit(2)
    chosen = [known[name] for name in only] if only else list(FAULTS)
    if listed:
        for fault in chosen:
            print(f"{fault.name}\n    {fault.does}\n    {fault.expects}")
        return
    logging.disable()  # that a process was started again stands in the report
    told = sys.stderr if as_json else sys.stdout
    began = time.monotonic()
    reports: list[Report] = []
    with Site() as site:
        for fault in chosen:
            reports.append(fault.run(site))
            print(line(reports[-1]), file=told, flush=True)
    failed = [report.name for report in reports if not report.passed]
    seconds = time.monotonic() - began
    load = os.getloadavg()
    if as_json:
        outcome = {"faults": [report.json() for report in reports], "failed": failed, "seconds": seconds, "load": load}
        print(json.dumps(outcome))
    else:
        print(f"\n{table(reports)}\n")
        print(
            f"{len(reports)} faults in {seconds:.0f} s, {len(failed)} failed{': ' * bool(failed)}{', '.join(failed)}; "
            f"{os.cpu_count()} cores, load {' '.join(f'{each:.2f}' for each in load)}"
        )
    raise typer.Exit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
