"""What a fault did, in numbers: a line while the matrix runs, a row of the table at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final


@dataclass(slots=True)
class Report:
    """One fault's.

    Attributes
    ----------
    expected, live, backfilled, quarantined, lost
        Frames, summed over the detectors.
    dropped
        Frames that came live and were let go, by cause.
    duplicates
        Results that the ledger had already.
    next_commit
        s from the fault to the next commit of a batch; of two detectors, and of several faults, the longest. None
        where nothing came after.
    restarts
        Processes that were started again.
    bits
        Whether every array is the undisturbed run's to the bit, but for frames that can't have one.
    documents
        Whether they came in order, each once, complete.
    seconds
        The whole fault took, its pool's start and end included.
    complaints
        What is wrong; none: it passed.
    note
        Anything else worth knowing.
    """

    name: str
    expected: int = 0
    live: int = 0
    backfilled: int = 0
    quarantined: int = 0
    lost: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    next_commit: float | None = None
    restarts: dict[str, int] = field(default_factory=dict)
    bits: bool | None = None
    documents: bool | None = None
    seconds: float = 0.0
    complaints: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.complaints

    def json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**asdict(self), "passed": self.passed}


COLUMNS: Final = (
    *("fault", "frames", "live", "backfilled", "quarant.", "lost", "dropped", "dupl.", "next commit", "restarts"),
    *("bits", "documents", "s", "verdict"),
)


def cells(report: Report) -> list[str]:
    """Return a row."""
    return [
        report.name,
        *map(str, (report.expected, report.live, report.backfilled, report.quarantined, report.lost)),
        _counts(report.dropped),
        str(report.duplicates),
        "–" if report.next_commit is None else f"{report.next_commit:.2f} s",
        _names(report.restarts),
        *(_yes(each) for each in (report.bits, report.documents)),
        f"{report.seconds:.0f}",
        "pass" if report.passed else "FAIL",
    ]


def line(report: Report) -> str:
    """Return what is said when a fault is over."""
    row = dict(zip(COLUMNS, cells(report), strict=True))
    words = [f"{report.live} live"]
    words += [f"{n} {name}" for name in ("backfilled", "quarantined", "lost") if (n := getattr(report, name))]
    words += [f"dropped {row['dropped']}"] if report.dropped else []
    words += [f"{report.duplicates} duplicates"] if report.duplicates else []
    words += [f"next commit {row['next commit']}"] if report.next_commit is not None else []
    words += [f"restarted {row['restarts']}"] if report.restarts else []
    words += [report.note] if report.note else []
    text = f"{row['verdict']}  {report.name:<22} {report.expected:>5} frames: {', '.join(words)} [{row['s']} s]"
    return "\n".join([text, *(f"      {each}" for each in report.complaints)])


def table(reports: Sequence[Report]) -> str:
    """Return all, as Markdown."""
    rows = [list(COLUMNS), *map(cells, reports)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(COLUMNS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items()) if n) or "–"


def _names(counts: dict[str, int]) -> str:
    return ", ".join(name if n == 1 else f"{name} ×{n}" for name, n in sorted(counts.items()) if n) or "–"


def _yes(value: bool | None) -> str:
    return "–" if value is None else "yes" if value else "NO"
