"""The page of state machines shows the tables of the code, each of them, whole."""

from __future__ import annotations

import re
import runpy
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from haltere.workers.states import StateTable

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "states.md").read_text()
SHOWN = re.findall(r"^```\{state-table\} haltere\.([\w.]+)$", PAGE, re.MULTILINE)


def test_every_table_of_the_code_is_shown() -> None:
    defined = [
        f"{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}.{name}"
        for folder in ("workers", "callbacks", "devices", "plans")
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"^(\w+)(?:: Final)? = StateTable\(", path.read_text(), re.MULTILINE)
    ]
    assert sorted(SHOWN) == sorted(defined)


@pytest.mark.parametrize("name", SHOWN)
def test_a_drawing_shows_each_state_and_each_event_within_its_bounds(name: str) -> None:
    module, _, constant = name.rpartition(".")
    table: StateTable[Any, Any] = getattr(import_module(f"haltere.{module}"), constant)
    drawn = ElementTree.fromstring(runpy.run_path(str(ROOT / "docs" / "state_tables.py"))["draw"](table))
    texts = [(text.text or "", text) for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {str(state) for state in table.states} <= {text for text, _ in texts}
    events = [event for text, _ in texts for event in text.split(" · ")]
    for event in {str(move.event) for move in table.moves}:
        assert events.count(event) >= len([move for move in table.moves if str(move.event) == event])
    _, _, width, height = map(float, drawn.attrib["viewBox"].split())
    for text, element in texts:
        reach = 0 if element.get("text-anchor") == "middle" else 7 * len(text)
        assert 0 < float(element.attrib["x"]) + reach < width
        assert 0 < float(element.attrib["y"]) < height
