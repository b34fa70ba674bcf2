"""The figures as tables: for a terminal, and in Markdown for the documentation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from ...workers.errors import SettingsError
from . import machine, spectra
from .agreement import words
from .detectors import DETECTORS
from .tasks import OURS, TITLES

BEGIN: Final = "<!-- haltere bench kernel: begin -->"
END: Final = "<!-- haltere bench kernel: end -->"


def text(result: dict[str, Any]) -> str:
    """Return all figures for a terminal."""
    parts = [machine.line(result["machine"])]
    for case in result["cases"]:
        parts.append(f"\n{title(case)}")
        for task, rows in by_task(case).items():
            parts.append(f"  {TITLES[task]}")
            parts.extend(
                f"    {row['engine']:24}{row['frames_per_s']:>10.1f} frames/s{row['median_ms']:>10.3f} ms"
                f"  (least {row['least_ms']:.3f}){faster(row):>10}  {words(row['agreement'])}"
                for row in rows
            )
    if "spectra" in result:
        parts += ["\nFluorescence, 4096 channels × 25 templates", *spectra.text(result["spectra"])]
    parts += ["", *_beyond(result)]
    return "\n".join(parts)


def _beyond(result: dict[str, Any]) -> Iterable[str]:
    """Return start-up, sets of instructions and scaling, a line each."""
    for when, each in result.get("startup", {}).items():
        spent = f"{each['import_s']:.2f} s import, {each['warm_up_s']:.2f} s machine code"
        cpu = each["import_cpu_s"] + each["warm_up_cpu_s"]
        known = "nothing compiled yet" if when == "cold" else "compiled before"
        yield f"Start-up, {known}: {spent}; {cpu:.2f} s of CPU time."
    for name, each in result.get("instruction_sets", {}).items():
        rates = ", ".join(f"{TITLES[task]} {rate:.0f}" for task, rate in each["frames_per_s"].items())
        yield f"Compiled for {name}: {'the same bits' if each['same_bits'] else 'OTHER BITS'}; frames/s: {rates}."
    if "scaling" in result:
        each = result["scaling"]
        alone = each["frames_per_s"]["one"]
        yield (
            f"On {each['cores']} cores, {TITLES[each['task']]}: one thread {alone:.0f} frames/s of wall time; "
            f"two threads {each['two_threads']:.2f} times as many, two processes {each['two_processes']:.2f} times."
        )


def faster(row: dict[str, Any]) -> str:
    """Return how many times faster the kernel is than this competitor, empty for itself."""
    return "" if row["engine"] == OURS or "ratio" not in row else f"{row['ratio']:.3g} ×"


def title(case: dict[str, Any]) -> str:
    """Return a sample in words."""
    return (
        f"{DETECTORS[case['detector']].title}, {case['dtype']}, {case['level']:g} counts: "
        f"{case['chunk_bytes'] / 1e6:.2f} MB, compressed {case['compression']:.3g} times"
    )


def by_task(case: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return a sample's rows by task."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in case["rows"]:
        found.setdefault(row["task"], []).append(row)
    return found


def markdown(result: dict[str, Any]) -> str:
    """Return the tables of the documentation: frames per s by sample and task, and beside whom at 5 counts."""
    parts = [f"Measured on {machine.line(result['machine'])}.", ""]
    parts += ["### Frames per second and core", "", *_rates(result), ""]
    parts += ["### Beside the others", "", *_ratios(result)]
    if "spectra" in result:
        parts += ["", "### Fluorescence", "", *_fluorescence(result["spectra"])]
    parts += ["", *(f"- {each}" for each in _beyond(result))]
    return "\n".join(parts)


def _rates(result: dict[str, Any]) -> Iterable[str]:
    levels = sorted({case["level"] for case in result["cases"]})
    heads = [f"{level:g}" for level in levels]
    yield from _lines(["", "mean counts", *heads], align=2)
    for detector in dict.fromkeys(case["detector"] for case in result["cases"]):
        cases = [case for case in result["cases"] if case["detector"] == detector]
        for dtype in dict.fromkeys(case["dtype"] for case in cases):
            found = {case["level"]: by_task(case) for case in cases if case["dtype"] == dtype}
            for task in TITLES:
                rates = [_rate(found.get(level, {}).get(task, [])) for level in levels]
                if any(rates):
                    yield _line([f"{DETECTORS[detector].title}, {dtype}", TITLES[task], *rates])


def _rate(rows: list[dict[str, Any]]) -> str:
    return next((f"{row['frames_per_s']:.0f}" for row in rows if row["engine"] == OURS), "")


def _ratios(result: dict[str, Any]) -> Iterable[str]:
    level = min((case["level"] for case in result["cases"]), key=lambda each: abs(each - 5))
    cases = [case for case in result["cases"] if case["level"] == level]
    heads = [f"{DETECTORS[case['detector']].title}, {case['dtype']}" for case in cases]
    yield f"At {level:g} counts: frames per second and core, and in brackets how many times faster the kernel is."
    yield ""
    yield from _lines(["", "", *heads], align=2)
    for task in TITLES:
        engines = dict.fromkeys(row["engine"] for case in cases for row in by_task(case).get(task, []))
        for engine in engines:
            cells = []
            for case in cases:
                row = next((row for row in by_task(case).get(task, []) if row["engine"] == engine), None)
                cells.append("" if row is None else _cell(row))
            yield _line([TITLES[task], engine, *cells])


def _fluorescence(rows: list[dict[str, Any]]) -> Iterable[str]:
    yield "Spectra of one element per second and core; in brackets how many times faster the kernel is."
    yield ""
    yield from _lines(["4096 channels × 25 templates", "", "spectra/s", "areas within"], align=2)
    for row in rows:
        rate = f"{row['spectra_per_s']}" + ("" if row["engine"] == OURS else f" ({faster(row)})")
        far = f"{row['deviation']:.0e} σ" if "deviation" in row else ""
        yield _line([spectra.TITLES[row["name"]], row["engine"], rate, far])


def _cell(row: dict[str, Any]) -> str:
    ratio = faster(row)
    return f"{row['frames_per_s']:.4g}" + (f" ({ratio})" if ratio else "")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _lines(heads: list[str], align: int) -> Iterable[str]:
    yield _line(heads)
    yield _line(["---"] * align + ["--:"] * (len(heads) - align))


def check_page(page: Path) -> None:
    """See that the page has a place for the tables.

    Raises
    ------
    SettingsError
        It can't be read, or the two lines between which they go aren't in it.
    """
    try:
        content = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--write {page}: it can't be read: {error}") from None
    if not -1 < content.find(BEGIN) < content.find(END):
        raise SettingsError(f"--write {page}: it has no lines {BEGIN} and {END} for the tables to go between")


def write(page: Path, tables: str) -> None:
    """Put the tables between the two lines of the page."""
    check_page(page)
    head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    tail = rest.partition(END)[2]
    page.write_text(f"{head}{BEGIN}\n\n{tables.strip()}\n\n{END}{tail}", encoding="utf-8")
