"""``haltere bench``: measurements, each side by side with a baseline in one run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for a program to read, last of all.")]

bench = typer.Typer(help="Measure, side by side with a baseline in one run.", no_args_is_help=True)


@bench.command()
def path(
    frames: Annotated[int, typer.Option(min=100, help="Frames to send.")] = 5000,
    workers: Annotated[int, typer.Option(min=1, help="Processes that reduce.")] = 2,
    as_json: Json = False,
) -> None:
    """Measure what a frame costs on its way from the detector to its result, beside a bare script's reduction."""
    from .benchmarks.path import measure

    result = measure(frames, workers)
    print(
        json.dumps(result) if as_json else "\n".join(f"{key:32} {value}" for key, value in result.items()), flush=True
    )


@bench.command()
def kernel(
    detector: Annotated[list[str] | None, typer.Option(help="eiger4m, eiger500k, lambda750k; repeat for more.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="uint16, uint32; repeat for more.")] = None,
    level: Annotated[list[float] | None, typer.Option(help="Mean counts of a pixel; repeat for more.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="One reduction, as the JSON names it; repeat for more.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One sample, less often: within a minute.")] = False,
    spectra: Annotated[
        bool | None, typer.Option("--spectra/--no-spectra", help="Also fluorescence; by default unless --quick.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0.01, help="CPU time of each competitor at a sample.")] = None,
    core: Annotated[int | None, typer.Option(min=0, help="The CPU to measure on; else the last there is.")] = None,
    write: Annotated[Path | None, typer.Option(help="A page (Markdown) with a place for the tables.")] = None,
    as_json: Json = False,
) -> None:
    """Measure frames per second and core from the compressed chunk: the kernel beside pyFAI, scipy, numpy, decoders.

    Everybody takes turns on one core, and CPU time is measured, so that what else runs disturbs little. The whole
    takes about ten minutes.
    """
    from .benchmarks.kernel import run, table

    given: dict[str, Any] = {"detectors": detector, "dtypes": dtype, "levels": level, "tasks": task}
    chosen: dict[str, Any] = {name: tuple(values) for name, values in given.items() if values}
    if spectra is not None:
        chosen["spectra"] = spectra
    if seconds is not None:
        chosen["seconds"] = seconds
    options = replace(run.QUICK if quick else run.Options(), core=run.choose_core(core), **chosen)
    if write is not None:
        table.check_page(write)
    result = run.measure(options)
    if write is not None:
        table.write(write, table.markdown(result))
    print(json.dumps(result) if as_json else table.text(result), flush=True)
