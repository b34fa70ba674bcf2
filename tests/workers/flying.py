"""A small run for the tests of ledger, sink and NeXus file: two detectors, reducers that need no detector."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from haltere.workers.ledger.rows import BatchRow
from haltere.workers.payload import Piece, pack
from haltere.workers.reducers.base import Output
from haltere.workers.wire.messages import (
    BACKFILLED,
    LIVE,
    LOST,
    QUARANTINED,
    Expect,
    FileSpan,
    InputSpec,
    RecipeSpec,
    Result,
    RunClose,
    RunOpen,
    StreamOpen,
    StreamTotal,
)

RUN = "11111111-aaaa"
PROCESSED = "22222222-bbbb"
ROWS, COLUMNS, BATCH = 4, 5, 4
FRAMES = ROWS * COLUMNS
BINS = 8

START: dict[str, Any] = {
    "uid": RUN,
    "time": 1_700_000_000.0,
    "scan_id": 17,
    "plan_name": "fly_grid",
    "shape": [ROWS, COLUMNS],
    "extents": [[0.0, 3.0], [10.0, 14.0]],
    "snaking": [False, True],
    "hints": {"dimensions": [[["pilc_y"], "primary"], [["pilc_x"], "primary"]], "gridding": "rectilinear"},
    "sample": {"name": "ceria", "thickness": 12.0},
}

OUTPUTS: dict[str, dict[str, Output]] = {
    "xrd": {
        "intensity": Output("nav", (BINS,), "<f4", long_name="I", axes=("q",)),
        "intensity_sigma": Output("nav", (BINS,), "<f4"),
        "counts": Output("nav", (), "<i8"),
        "sum": Output("acc", (BINS,), "<i8", axes=("q",)),
        "q": Output("const", (BINS,), "<f8", units="1/nm"),
    },
    "positions": {
        "pilc_x": Output("nav", (), "<f8", units="um"),
        "pilc_y": Output("nav", (), "<f8", units="um"),
    },
}


class Stub:
    """Stands for a reducer where only its outputs matter."""

    def __init__(self, outputs: dict[str, Output]) -> None:
        self._outputs = outputs

    def outputs(self, inputs: tuple[InputSpec, ...]) -> dict[str, Output]:
        """Return them."""
        return self._outputs


def build(spec: RecipeSpec) -> Stub:
    return Stub(OUTPUTS[spec.name])


EIGER = StreamOpen(
    2, RUN, "eiger", "cfg-a", BATCH, [InputSpec("eiger_image", (4, 6), "<u2")], [RecipeSpec("xrd", "stub", b"{}")]
)
PILC = StreamOpen(
    3, RUN, "pilc", "cfg-b", BATCH, [InputSpec("pilc_x", (), "<f8")], [RecipeSpec("positions", "stub", b"{}")]
)


def run_open(serial: int = 1, processed: str = PROCESSED, start: dict[str, Any] = START) -> RunOpen:
    return RunOpen(serial, RUN, processed, json.dumps(start).encode())


def expect(serial: int, stream: str, first: int, stop: int) -> Expect:
    span = FileSpan(f"{stream}_image", f"file://localhost/data/{stream}_{first}.h5", "/entry/data/data", first, 4, 0)
    return Expect(serial, RUN, stream, first, stop, [span])


def run_close(serial: int, frames: int = FRAMES) -> RunClose:
    totals = [StreamTotal("eiger", frames), StreamTotal("pilc", frames)]
    return RunClose(serial, RUN, totals, "success", json.dumps({"time": 1_700_000_060.0}).encode())


def control(frames: int = FRAMES) -> list[Any]:
    """Return every control message of the run, in order, serials from 1."""
    messages: list[Any] = [run_open(1), EIGER, PILC]
    for first in range(0, frames, 10):
        for stream in ("eiger", "pilc"):
            messages.append(expect(len(messages) + 1, stream, first, min(first + 10, frames)))
    return [*messages, run_close(len(messages) + 1, frames)]


def values(frames: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Return what the reducers give for these frames: a function of the frame number alone."""
    intensity = (frames[:, None] * 100 + np.arange(BINS)).astype("<f4")
    row, column = frames // COLUMNS, frames % COLUMNS
    column = np.where(row % 2, COLUMNS - 1 - column, column)
    return {
        "intensity": intensity,
        "intensity_sigma": np.sqrt(intensity).astype("<f4"),
        "counts": frames * 7,
        "sum": (frames[:, None] * np.arange(BINS)).sum(0),
        "q": np.linspace(1, 2, BINS),
        "pilc_x": 10.0 + column,
        "pilc_y": row.astype(float),
    }


def result(
    stream: StreamOpen,
    first: int,
    n: int = BATCH,
    *,
    status: Sequence[int] | None = None,
    const: bool = True,
    worker: str = "worker-1",
    token: int = 1,
) -> tuple[Result, bytes]:
    """Return a batch's result and its payload."""
    kinds = [LIVE] * n if status is None else list(status)
    given = values(np.arange(first, first + n))
    pieces = [
        Piece(spec.name, output.kind, name, given[name])
        for spec in stream.recipes
        for name, output in OUTPUTS[spec.name].items()
        if const or output.kind != "const"
    ]
    specs, payload = pack(pieces)
    reasons = [(first + k, "bad chunk") for k, kind in enumerate(kinds) if kind in (QUARANTINED, LOST)]
    message = Result(RUN, stream.stream, stream.cfg, first, n, token, worker, bytes(kinds), reasons, specs)
    return message, bytes(payload)


def results(frames: int = FRAMES) -> list[tuple[Result, bytes]]:
    """Return every result of the run; the second batch of each stream is backfilled."""
    return [
        result(
            stream,
            first,
            min(BATCH, frames - first),
            status=[BACKFILLED if first == BATCH else LIVE] * min(BATCH, frames - first),
            const=first == 0,
        )
        for stream in (EIGER, PILC)
        for first in range(0, frames, BATCH)
    ]


def row(first: int, n: int = BATCH, *, status: Sequence[int] | None = None, stream: StreamOpen = EIGER) -> BatchRow:
    """Return a batch as it stands in the ledger."""
    message, payload = result(stream, first, n, status=status, const=False)
    return BatchRow(
        *(RUN, stream.stream, stream.cfg, first, n, message.status, list(message.reasons), 1, "worker-1"),
        message.arrays,
        payload,
    )
