"""The examples in README and docs/ are run, as they stand, in one session of the simulated beamline."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from haltere.interactive import namespace

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("getting-started", "documents", "recipes", "devices", "backfill")
PAGES = [*(f"docs/{page}.md" for page in NAMES), "README.md"]


def examples(page: str) -> Iterator[tuple[int, str]]:
    """Yield each Python fence of a page, and the number of the line before it."""
    text = (ROOT / page).read_text()
    for fence in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, fence.start(1)), fence[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Start a session; return what its prompt knows."""
    matplotlib.use("agg")
    found = namespace(directory=tmp_path_factory.mktemp("session") / "data")
    yield found
    found["session"].close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", PAGES)
def test_examples_run_as_they_stand(page: str, names: dict[str, Any]) -> None:
    """The pages are read in their order; a later one may use the runs of an earlier."""
    known = dict(names)
    for line, code in examples(page):
        exec(compile("\n" * line + code, str(ROOT / page), "exec"), known)


def test_every_page_with_an_example_is_run() -> None:
    written = {str(path.relative_to(ROOT)) for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]}
    assert {page for page in written if any(examples(page))} == set(PAGES)


def test_links_between_pages_lead_somewhere() -> None:
    for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
