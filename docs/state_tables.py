"""Sphinx directive ``state-table``: a table of the code, drawn and written out as it stands there.

::

    ```{state-table} haltere.workers.broker.process.batch.BATCH
    ```
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import import_module
from itertools import groupby
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from haltere.workers.states import StateTable

# Okabe and Ito's colours, told apart by everybody; the darker ones first.
COLOURS = ("#0072b2", "#d55e00", "#007a5a", "#a3457c", "#7a5200", "#4d4d4d", "#5b4fa2", "#b8292f", "#00707f", "#6b7a00")

BOX, ROW, GAP, LANE, LETTER = 128, 20, 18, 18, 6.6
"""px: a box's width, an event's height, between boxes, between lanes, a letter's width."""


@dataclass
class Box:
    """A state: where it stands, and its rows, the first of which is for what leads to it."""

    name: str
    top: float
    last: bool
    rows: list[tuple[str, str]] = field(default_factory=list)
    """(events, state after)"""

    @property
    def height(self) -> float:
        """In px."""
        return ROW * (1 + len(self.rows)) + 8

    def row(self, number: int) -> float:
        """Return the height at which a row's line runs; 0 is what leads here."""
        return self.top + 4 + ROW * number + 0.7 * ROW


def boxes(table: StateTable[Any, Any]) -> dict[str, Box]:
    """Return the boxes, one below the other; events that lead to the same state share a row."""
    found: dict[str, Box] = {}
    top = 8.0
    for state in table.states:
        ways: dict[str, list[str]] = {}
        for move in table.moves:
            if move.before == state:
                ways.setdefault(str(move.after), []).append(str(move.event))
        rows = [(" · ".join(events), after) for after, events in ways.items()]
        found[str(state)] = Box(str(state), top, state in table.last, rows)
        top += found[str(state)].height + GAP
    return found


def draw(table: StateTable[Any, Any]) -> str:
    """Return the table as an SVG: each event leaves its state to the right, and joins the line to the state after."""
    found = boxes(table)
    edges = [(box.row(number), after) for box in found.values() for number, (_, after) in enumerate(box.rows, 1)]
    spans = {name: [y for y, after in edges if after == name] + [found[name].row(0)] for _, name in edges}
    order = sorted(spans, key=lambda name: max(spans[name]) - min(spans[name]))
    words = max(len(events) for box in found.values() for events, _ in box.rows)
    left, first = 26 + BOX, 26 + BOX + 14 + words * LETTER + 10
    lanes = {name: first + LANE * number for number, name in enumerate(order)}
    colours = dict(zip(spans, COLOURS * (1 + len(spans) // len(COLOURS)), strict=False))
    width, height = first + LANE * len(order), max(box.top + box.height for box in found.values()) + 8

    def lines() -> Iterator[str]:
        yield f'<rect width="{width:.0f}" height="{height:.0f}" rx="6" fill="#fff"/>'
        for name, ys in spans.items():
            x, colour = lanes[name], colours[name]
            yield f'<path d="M{x:.1f} {min(ys):.1f}V{max(ys):.1f}" stroke="{colour}" fill="none" stroke-width="1.6"/>'
            yield (
                f'<path d="M{x:.1f} {found[name].row(0):.1f}H{left + 8}" stroke="{colour}" fill="none" '
                'stroke-width="1.6"/>'
                f'<path d="M{left} {found[name].row(0):.1f}l9 -4v8z" fill="{colour}"/>'
            )
        for y, after in edges:
            yield f'<path d="M{left} {y:.1f}H{lanes[after]:.1f}" stroke="{colours[after]}" fill="none"/>'
            yield f'<circle cx="{lanes[after]:.1f}" cy="{y:.1f}" r="2.8" fill="{colours[after]}"/>'
        start = next(iter(found.values()))
        yield f'<circle cx="8" cy="{start.row(0) - 4:.1f}" r="5" fill="#222"/>'
        yield f'<path d="M8 {start.row(0) - 4:.1f}H24" stroke="#222"/>'
        for box in found.values():
            look = (
                'fill="#f4efe4" stroke="#8a6d3b" stroke-width="2.6"' if box.last else 'fill="#eef3f8" stroke="#35597a"'
            )
            yield f'<rect x="26" y="{box.top:.1f}" width="{BOX}" height="{box.height:.1f}" rx="5" {look}/>'
            middle = box.top + box.height / 2 + 4.5
            where = f'x="{26 + BOX / 2:.0f}" y="{middle:.1f}" text-anchor="middle"'
            yield f'<text {where} font-weight="600">{escape(box.name)}</text>'
            for number, (events, after) in enumerate(box.rows, 1):
                yield (
                    f'<text x="{left + 8}" y="{box.row(number) - 4:.1f}" font-size="12" fill="{colours[after]}">'
                    f"{escape(events)}</text>"
                )

    title = escape(f"What may become of a {table.name}; the table below says the same in words")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        'role="img" font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#222" '
        'style="max-width: 100%; height: auto">'
        f"<title>{title}</title>{''.join(lines())}</svg>"
    )


class StateTableDirective(SphinxDirective):
    """Shows the :class:`~haltere.workers.states.StateTable` of that full name."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the drawing, and two tables."""
        module, _, name = self.arguments[0].rpartition(".")
        table: StateTable[Any, Any] = getattr(import_module(module), name)
        self.env.note_dependency(import_module(module).__file__ or "")
        moves = [
            [[str(move.before) for move in some], [event], [after], when]
            for (event, after, when), some in groupby(table.moves, lambda move: (move.event, move.after, move.when))
        ]
        return [
            nodes.raw("", f"<p>{draw(table)}</p>", format="html"),
            written(["state", "means"], [[[str(state)], meaning] for state, meaning in table.states.items()]),
            written(["from", "event", "to", "when"], moves),
        ]


def written(head: Sequence[str], rows: Sequence[Sequence[str | list[str]]]) -> nodes.table:
    """Return a table; a cell is a sentence, or names."""
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=1) for _ in head]
    for part, some in ((nodes.thead(), [head]), (nodes.tbody(), rows)):
        for cells in some:
            row = nodes.row()
            for cell in cells:
                words = nodes.paragraph()
                for name in cell if isinstance(cell, list) else ():
                    words += [nodes.Text(", ")] if len(words) else []
                    words += nodes.literal(text=name)
                if isinstance(cell, str):
                    words += nodes.Text(cell)
                row += nodes.entry("", words)
            part += row
        group += part
    table = nodes.table()
    table += group
    return table


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("state-table", StateTableDirective)
    return {"parallel_read_safe": True}
