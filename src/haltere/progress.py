"""What a person sees in a terminal: a bar while it flies, a summary when it's done."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

if TYPE_CHECKING:
    from .demo import Listener
    from .outcome import Outcome
    from .session import Session

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
