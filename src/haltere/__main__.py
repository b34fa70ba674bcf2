"""The haltere command.

Exit codes: 0 done; 1 it ran but not everything is accounted for, or something failed underway; 2 it couldn't begin
(an argument, a folder, a port, an instrument); 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from .bench_commands import bench
from .workers.errors import HaltereError, SettingsError

INTERRUPTED: Final = 130

app = typer.Typer(
    name="haltere",
    help="Online reduction of fly scans: every frame reduced in flight, every frame accounted for.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(bench, name="bench")


class Flip(StrEnum):
    """How a recorded frame is turned before it is replayed."""

    ud = "ud"
    lr = "lr"


class Only(StrEnum):
    """What a backfill does again."""

    owed = "owed"
    quarantined = "quarantined"
    all = "all"


class Model(StrEnum):
    """Which Eiger is simulated."""

    small = "500k"
    large = "4M"


Frames = Annotated[Path | None, typer.Option(help="A recorded frame (any format fabio reads) for the Eiger to replay.")]
FlipOption = Annotated[Flip | None, typer.Option(help="Turn the recorded frame: ud up-down, lr left-right.")]
Poni = Annotated[Path | None, typer.Option(help="The geometry of the recorded frames (pyFAI's .poni).")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for a program to read.")]
Directory = Annotated[Path | None, typer.Option(help="The sessions' folder; else as in haltere.toml.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything simulated: the same seed gives the same bits.")]
ModelOption = Annotated[Model, typer.Option(help="The simulated Eiger.")]


@app.command()
def demo(
    rows: Annotated[int, typer.Option(min=1, help="Lines of the grid.")] = 40,
    columns: Annotated[int, typer.Option(min=2, help="Points of a line.")] = 60,
    dwell: Annotated[float, typer.Option(min=1e-4, help="Seconds at each point.")] = 5e-3,
    workers: Annotated[int, typer.Option(min=1, help="Processes that reduce.")] = 2,
    seed: Seed = 1,
    model: ModelOption = Model.small,
    chaos: Annotated[
        bool, typer.Option(help="Drop one batch in ten, kill a worker and the broker mid-scan. The result is the same.")
    ] = False,
    frames: Frames = None,
    flip: FlipOption = None,
    poni: Poni = None,
    keep: Annotated[Path, typer.Option(help="Folder of the data, the catalog and the results.")] = Path("haltere-demo"),
    headless: Annotated[bool, typer.Option(help="No progress bar.")] = False,
    as_json: Json = False,
) -> None:
    """Fly one grid over a simulated beamline, reduce it live, and account for every frame."""
    from .demo import Options, run
    from .progress import Progress, print_outcome
    from .recording import Recording

    recording = Recording(frames, None if flip is None else flip.value, poni)
    recording.check()
    options = Options(
        rows=rows,
        columns=columns,
        dwell=dwell,
        workers=workers,
        seed=seed,
        model=model.value,
        chaos=chaos,
        keep=keep,
        recording=recording,
    )
    if headless:
        outcome = run(options)
    else:
        with Progress(rows * columns) as progress:
            outcome = run(options, progress=progress.follow)
    if as_json:
        print(json.dumps(outcome.json()), flush=True)
    else:
        print_outcome(outcome)
    raise typer.Exit(0 if outcome.whole else 1)


@app.command()
def sim(
    model: ModelOption = Model.small,
    seed: Seed = 1,
    data: Annotated[Path, typer.Option(help="Folder that the instruments write to.")] = Path("haltere-sim"),
    frames: Frames = None,
    flip: FlipOption = None,
    poni: Poni = None,
    rest_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the Eiger's REST interface; 0: any.")] = 0,
    stream_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the Eiger's stream; 0: any.")] = 0,
    tango_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the Tango server; 0: any.")] = 0,
    until_eof: Annotated[bool, typer.Option(help="End when standard input does, too.")] = False,
    as_json: Json = False,
) -> None:
    """Start the simulated beamline alone, on loopback; it ends on SIGTERM or Ctrl-C."""
    from .devices.sim.beamline import Options, serve
    from .recording import Recording

    Recording(frames, None if flip is None else flip.value, poni).check()
    serve(
        Options(
            model=model.value,
            seed=seed,
            data_dir=data,
            frames=frames,
            flip=None if flip is None else flip.value,
            poni=poni,
            rest_port=rest_port,
            stream_port=stream_port,
            tango_port=tango_port,
            until_eof=until_eof,
            json=as_json,
        )
    )


@app.command()
def up(
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that reduce; else as in haltere.toml.")] = None,
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Keep a pool and a catalog running; sessions with the same directory attach to it. Ctrl-C or SIGTERM ends it."""
    from .up import keep
    from .workers.settings import load

    given = {"workers": workers, "directory": directory}
    keep(load(**{key: value for key, value in given.items() if value is not None}), as_json=as_json)


@app.command()
def status(
    directory: Directory = None,
    watch: Annotated[bool, typer.Option("--watch", help="Again each second, until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Say how a pool does: processes, runs, frames, rates, lag, queues, and drops by cause."""
    from .status import show
    from .workers.settings import load

    show(load(**({} if directory is None else {"directory": directory})).directory, as_json=as_json, watch=watch)


@app.command()
def reduce(
    files: Annotated[list[Path], typer.Argument(help="Recorded detector files (HDF5), in the order of their frames.")],
    recipe: Annotated[str, typer.Option(help="A reducer's name, or a TOML file with a [recipe].")] = "azimuthal",
    poni: Poni = None,
    dataset: Annotated[str | None, typer.Option(help="The frames' dataset; found by itself if there is one.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that reduce.")] = 2,
    keep: Annotated[Path, typer.Option(help="Folder of the catalog and the results.")] = Path("haltere-reduced"),
    as_json: Json = False,
) -> None:
    """Reduce recorded files without a scan: the same broker, workers, sink, catalog and NeXus file."""
    from .progress import print_outcome
    from .reduce import reduce_recorded

    outcome = reduce_recorded(files, recipe=recipe, poni=poni, dataset=dataset, workers=workers, directory=keep)
    if as_json:
        print(json.dumps(outcome.json()), flush=True)
    else:
        print_outcome(outcome)
    raise typer.Exit(0 if outcome.whole else 1)


@app.command()
def backfill(
    run: Annotated[str, typer.Argument(metavar="UID", help="The run's uid, its beginning, or the scan's number.")],
    only: Annotated[
        Only,
        typer.Option(
            help="owed: frames without an end, and lost ones that are in their file now; quarantined: also those that "
            "couldn't be reduced; all: every frame again, compared to the bit with what there is."
        ),
    ] = Only.owed,
    recipe: Annotated[
        Path | None, typer.Option(help="A TOML file with a recipe: makes a processed run of its own.")
    ] = None,
    directory: Directory = None,
    root: Annotated[list[Path] | None, typer.Option(help="Another folder that frames may be read from.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that reduce, if no pool runs there.")] = None,
    as_json: Json = False,
) -> None:
    """Reduce from the files what a run is still owed, whatever died; it may be stopped and called again at any time."""
    from .backfill_command import Request, run_backfill

    request = Request(run, only.value, recipe, directory, tuple(root or ()), workers)
    raise typer.Exit(0 if run_backfill(request, as_json=as_json) else 1)


@app.command()
def verify(
    run: Annotated[str, typer.Argument(metavar="UID", help="A raw or a processed run's uid, or the scan's number.")],
    bits: Annotated[int, typer.Option(min=0, help="Reduce so many frames of each detector once more.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of these frames.")] = 0,
    directory: Directory = None,
    root: Annotated[list[Path] | None, typer.Option(help="Another folder that frames may be read from.")] = None,
    as_json: Json = False,
) -> None:
    """Recount a run from documents, files, NeXus file and ledger, and say whether they agree.

    Exit codes: 0 they agree, 1 they don't, 2 it couldn't be looked at.
    """
    from .progress import print_verdict
    from .verify import verify as recount
    from .workers.settings import load
    from .workshop import Workshop

    settings = load(**({} if directory is None else {"directory": directory}))
    try:
        with Workshop.open(settings, [each.resolve() for each in root or ()]) as shop:
            verdict = recount(shop, run, bits=bits, seed=seed)
    except HaltereError as error:
        raise SettingsError(str(error)) from None
    if as_json:
        print(json.dumps(verdict.json()), flush=True)
    else:
        print_verdict(verdict)
    raise typer.Exit(0 if verdict.agrees else 1)


@app.command()
def basis(
    cfg: Annotated[Path, typer.Argument(help="A PyMca fit configuration.")],
    out: Annotated[Path | None, typer.Option(help="The file to write; by default beside CFG, as .npz.")] = None,
    channels: Annotated[int, typer.Option(min=16, help="Channels of a spectrum.")] = 4096,
) -> None:
    """Make an XRF basis from a PyMca configuration, once, where PyMca is: workers need only its numbers."""
    from .workers.reducers.pymca_basis import make_basis

    out = out or cfg.with_suffix(".npz")
    made = make_basis(cfg, channels=channels, out=out)
    print(f"{out}: {len(made.components)} components over {channels} channels: {', '.join(made.components)}")


def main() -> None:
    """Run the command line; an error is one line."""
    try:
        app(standalone_mode=True)
    except HaltereError as error:
        print(f"haltere: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, SettingsError) else 1)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer makes this of a KeyboardInterrupt, without a word
            print("haltere: interrupted", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
