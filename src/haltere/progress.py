"""What a person sees in a terminal: a bar while it flies, a summary when it's done."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from .workers.audit.accounts import listed
from .workers.wire.messages import STATUS_NAMES

if TYPE_CHECKING:
    from .backfilled import Advance, Backfilled
    from .demo import Listener
    from .outcome import Outcome
    from .session import Session
    from .verify import Verdict

MOST_REASONS: Final = 10
"""Frames of each detector whose reasons are printed."""

console = Console(stderr=True, highlight=False)


class Progress:
    """Two bars: points flown, from the raw run's documents, and points reduced, from the processed run's."""

    def __init__(self, points: int) -> None:
        self._points = points
        self._bars = Bars(
            TextColumn("{task.description:8}"),
            BarColumn(40),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", justify="right"),
            TimeRemainingColumn(),
            console=console,
        )
        self._starting = console.status("starting the beamline, the catalog and the pool")
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._starting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._starting.stop()
        self._bars.stop()

    def follow(self, session: Session) -> Listener:
        """Show a session's next scan; return the callback for its raw documents."""
        self._starting.stop()
        self._bars.start()
        for name in ("flown", "reduced"):
            self._tasks[name] = self._bars.add_task(name, total=self._points, rate="")
        session.follower.subscribe(self._reduced)
        return self._flown

    def _flown(self, name: str, doc: dict[str, Any]) -> None:
        if str(name) == "stream_datum":
            self._show("flown", doc["seq_nums"]["stop"] - 1)

    def _reduced(self, name: str, doc: dict[str, Any]) -> None:
        # Every recipe has its pages; the bar shows the last point that any of them reached.
        if str(name) == "event_page":
            self._show("reduced", int(doc["data"]["frame"][-1]) + 1)

    def _show(self, name: str, done: int) -> None:
        task = self._bars.tasks[self._tasks[name]]
        rate = "" if task.speed is None else f"{task.speed:.0f} points/s"
        self._bars.update(task.id, completed=max(done, int(task.completed)), rate=rate)


class Reducing:
    """A bar for frames that are reduced from their files; call it with each :class:`~haltere.backfill.Advance`."""

    def __init__(self) -> None:
        self._bars = Bars(
            TextColumn("reduced "),
            BarColumn(40),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", justify="right"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task: Any = None

    def __call__(self, advance: Advance) -> None:
        """Show how far it is."""
        if self._task is None:
            self._bars.start()
            self._task = self._bars.add_task("reduced", total=advance.owed, rate="")
        self._bars.update(self._task, completed=advance.done, total=advance.owed, rate=f"{advance.rate:.0f} frames/s")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._bars.stop()


def print_backfilled(outcome: Backfilled) -> None:
    """Print what came of a backfill: the account per detector, why frames are missing, and a verdict."""
    out = Console(highlight=False, soft_wrap=True)
    out.print(_account(outcome.frames))
    for stream, reasons in sorted(outcome.reasons.items()):
        for frame, reason in list(reasons.items())[:MOST_REASONS]:
            out.print(escape(f"{stream} frame {frame}: {reason}"))
        if len(reasons) > MOST_REASONS:
            out.print(f"{stream}: and {len(reasons) - MOST_REASONS} more")
    if outcome.supersedes is not None:
        out.print(f"in place of processed run {outcome.supersedes}")
    if outcome.compared is not None:
        agree = "to the bit" if not outcome.different else f"but for {outcome.different}"
        out.print(f"{outcome.compared} frames compared with it: they agree {agree}")
    out.print(outcome.words, style="bold green" if outcome.whole else "bold red")


def print_verdict(verdict: Verdict) -> None:
    """Print an account, what each source says of it, and the verdict."""
    out = Console(highlight=False, soft_wrap=True)
    out.print(f"processed run {verdict.processed_uid} of raw run {verdict.raw_uid}")
    out.print(_account(verdict.frames))
    for stream, drops in verdict.drops.items():
        out.print(f"{stream}: seen to be dropped on their way: {listed(drops)}")
    table = Table(box=None, pad_edge=False)
    for name in ("detector", "source", "", ""):
        table.add_column(name)
    styles = {"agrees": "green", "disagrees": "bold red", "unchecked": "yellow"}
    for finding in sorted(verdict.findings, key=lambda each: each.stream):
        word = str(finding.word)
        table.add_row(finding.stream, finding.source, f"[{styles[word]}]{word}[/]", escape(finding.text))
    out.print(table)
    out.print(verdict.words, style="bold green" if verdict.agrees else "bold red")


def _account(frames: Mapping[str, Mapping[str, int]]) -> Table:
    table = Table(box=None, pad_edge=False)
    names = ("expected", *STATUS_NAMES)
    for name in ("detector", *names):
        table.add_column(name, justify="left" if name == "detector" else "right")
    for stream, counts in sorted(frames.items()):
        table.add_row(stream, *(str(counts[name]) for name in names))
    return table


def print_outcome(outcome: Outcome) -> None:
    """Print a summary: the runs, the counts, where the results lie."""
    verdict = "every frame accounted for" if outcome.whole else "NOT every frame was reduced"
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in (
        ("raw run", outcome.raw_uid),
        ("processed run", outcome.processed_uid),
        ("frames", f"{outcome.expected} = {outcome.live} live + {outcome.backfilled} backfilled"),
        ("", f"{outcome.quarantined} quarantined · {outcome.lost} lost · {outcome.duplicates} duplicates discarded"),
        ("rate", f"{outcome.frames_per_s:.0f} frames/s over {outcome.wall_s:.1f} s"),
        ("NeXus file", outcome.nexus),
        ("catalog", outcome.catalog),
    ):
        table.add_row(key, value)
    out = Console(highlight=False, soft_wrap=True)
    out.print(table)
    out.print(verdict, style="bold green" if outcome.whole else "bold red")
