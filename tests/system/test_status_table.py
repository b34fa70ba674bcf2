"""What `haltere status` shows in a terminal as narrow as they come."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from haltere import status


def stream(**counts: int) -> dict[str, Any]:
    """Return what is said of a stream in which all went well, but for these."""
    usual: dict[str, Any] = {"expected": 120_000, "live": 118_000, "backfilled": 2_000, "owed": 0, "quarantined": 0}
    usual |= {"lost": 0, "duplicates": 0, "live_per_s": 1256.2, "backfilled_per_s": 20.0, "lag_s": 12.34}
    return usual | counts


def shown(run: dict[str, Any]) -> list[str]:
    """Return the lines of the table of runs, below its headings, 80 characters wide."""
    console = Console(width=80, file=io.StringIO())
    console.print(status._runs({"runs": [run]}))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()[2:]]


def test_no_number_is_cut_in_eighty_columns() -> None:
    run = {"scan_id": 12, "run": "d2a8c207-dbd7", "state": "measuring", "abandoned": False}
    lines = shown(run | {"streams": {"eiger": stream(), "xspress3": stream(lost=85, duplicates=124)}})
    assert lines[0].split() == ["12", "measuring", "eiger", "120000", "118000", "2000", "1276", "12.3", "s"]
    assert lines[1].split()[:4] == ["xspress3", "120000", "118000", "2000"]
    assert "".join("".join(lines[1:]).split()).endswith("12.3s85lost,124duplicates")


def test_a_run_whose_session_is_gone_says_so() -> None:
    run: dict[str, Any] = {
        "scan_id": None,
        "run": "d2a8c207-dbd7",
        "state": "complete",
        "abandoned": True,
        "streams": {},
    }
    lines = shown(run)
    assert lines[0].split()[:3] == ["d2a8c207", "complete", "–"]
    assert " ".join(" ".join(lines).split()).endswith("its session is gone")
