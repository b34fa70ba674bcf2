"""Figures as tables, and where they go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from haltere.benchmarks.kernel import table
from haltere.workers.errors import SettingsError

MACHINE = {
    "cpu": "EPYC",
    "cores": 2,
    "instruction_set": "AVX2",
    "compiled_for": "znver3",
    "python": "3.11.9",
    "numba": "0.62.0",
    "llvm": "20.1.8",
    "pyFAI": "2025.12",
    "load_average": [0.1, 0.2, 0.3],
}


def row(engine: str, rate: float, ratio: float, **agreement: dict[str, Any]) -> dict[str, Any]:
    """Return one competitor's figures."""
    ms = 1e3 / rate
    times = {"frames_per_s": rate, "median_ms": ms, "least_ms": ms, "calls": 9, "ratio": ratio}
    return {"task": "no", "engine": engine, **times, "agreement": agreement}


def result(*levels: float) -> dict[str, Any]:
    """Return a result as the measurement gives it."""
    rows = [row("haltere", 300, 1.0, sums={"equal": True}), row("pyFAI no,csc", 20, 15.0, intensity={"deviation": 0})]
    case = {"detector": "eiger4m", "dtype": "uint32", "frame_bytes": 18_000_000, "chunk_bytes": 2_270_000}
    cases = [{**case, "compression": 7.9, "level": level, "rows": rows} for level in levels]
    return {"machine": MACHINE, "cases": cases}


def test_the_terminal_shows_rate_ratio_and_agreement_of_each() -> None:
    lines = table.text(result(5.0)).splitlines()
    assert "Eiger 4M, uint32, 5 counts: 2.27 MB, compressed 7.9 times" in lines
    (ours,) = (line for line in lines if "haltere" in line)
    (theirs,) = (line for line in lines if "pyFAI no,csc" in line)
    assert "300.0 frames/s" in ours
    assert "×" not in ours
    assert ours.endswith("sums equal")
    assert "15 ×" in theirs


def test_the_page_has_a_column_for_each_level_and_names_the_level_of_the_ratios() -> None:
    tables = table.markdown(result(0.5, 5.0))
    assert "|  | mean counts | 0.5 | 5 |" in tables
    assert "| Eiger 4M, uint32 | 1000 bins, no splitting | 300 | 300 |" in tables
    assert "At 5 counts:" in tables
    assert "| 1000 bins, no splitting | pyFAI no,csc | 20 (15 ×) |" in tables


SPECTRA = [
    {"name": "nonnegative", "engine": "haltere", "spectra_per_s": 150_000, "ratio": 1.0, "deviation": 6e-6},
    {"name": "nonnegative", "engine": "scipy nnls", "spectra_per_s": 750, "ratio": 200.0, "deviation": 1e-13},
    {"name": "reducer", "engine": "haltere", "spectra_per_s": 140_000, "ratio": 1.0},
]


def test_spectra_have_a_table_of_their_own() -> None:
    measured = {**result(5.0), "spectra": SPECTRA}
    assert "| no negative areas, one element, dead time | scipy nnls | 750 (200 ×) | 1e-13 σ |" in table.markdown(
        measured
    )
    (theirs,) = (line for line in table.text(measured).splitlines() if "scipy nnls" in line)
    assert theirs.split() == ["scipy", "nnls", "750", "spectra/s", "200", "×", "within", "1e-13", "σ"]
    assert "Fluorescence" not in table.markdown(result(5.0)) + table.text(result(5.0))


def test_only_what_is_between_the_two_lines_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"# Before\n{table.BEGIN}\nold\n{table.END}\nAfter\n")
    table.write(page, "new")
    table.write(page, "newer")
    assert page.read_text() == f"# Before\n{table.BEGIN}\n\nnewer\n\n{table.END}\nAfter\n"


@pytest.mark.parametrize("content", ["no place", f"{table.END} {table.BEGIN}", table.BEGIN])
def test_a_page_without_a_place_is_named(tmp_path: Path, content: str) -> None:
    page = tmp_path / "performance.md"
    page.write_text(content)
    with pytest.raises(SettingsError, match=r"performance\.md: it has no lines <!-- haltere"):
        table.check_page(page)
    with pytest.raises(SettingsError, match=r"none\.md: it can't be read"):
        table.check_page(tmp_path / "none.md")
