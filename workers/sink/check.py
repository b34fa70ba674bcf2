"""What the sink lets into its books: whether a result is what its stream's recipes announced."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import WireError
from ..ledger.rows import BatchRow, ConstRow, Control
from ..payload import pack, unpack
from ..wire.messages import QUARANTINED, STATUS_NAMES, Expect, Result, RunOpen, Spilled, StreamOpen
from .books import RunState, StreamState


def check(message: Result, payload: Any, run: RunState, stream: StreamState) -> tuple[BatchRow, list[ConstRow]]:
    """Return a result as rows of the ledger.

    Raises
    ------
    WireError
        It isn't a whole batch of the stream, or its arrays aren't what the recipes announced.
    """
    batch, first, n = stream.open.batch, message.first, message.n
    total = run.total(message.stream) if run.totals is not None else stream.open.total
    rest = batch if total is None else total - first
    if first % batch or (n != batch and n != rest):
        raise WireError(f"{n} frames from {first} on aren't a batch of {batch}")
    if len(message.status) != n or any(status >= len(STATUS_NAMES) for status in message.status):
        raise WireError(f"status of {len(message.status)} frames, or of no known kind, for {n}")
    if any(not first <= frame < first + n for frame, _ in message.reasons):
        raise WireError("a reason names a frame outside of the batch")
    pieces = unpack(message.arrays, payload, n)
    seen = set()
    for piece in pieces:
        where = f"{piece.recipe}/{piece.name}"
        output = stream.outputs.get(piece.recipe, {}).get(piece.name)
        if output is None or output.kind != piece.kind or where in seen:
            raise WireError(f"array {where} ({piece.kind}) is no output of the recipe, or came twice")
        seen.add(where)
        shape = (n, *output.shape) if output.kind == "nav" else tuple(output.shape)
        if piece.array.shape != shape or piece.array.dtype != np.dtype(output.dtype):
            raise WireError(f"array {where}: {piece.array.dtype} {piece.array.shape}, expected {output.dtype} {shape}")
    if any(status < QUARANTINED for status in message.status):
        for recipe, outputs in stream.outputs.items():
            for name, output in outputs.items():
                if output.kind != "const" and f"{recipe}/{name}" not in seen:
                    raise WireError(f"array {recipe}/{name} is missing")
    consts = []
    specs: Sequence[Any] = message.arrays
    if any(piece.kind == "const" for piece in pieces):
        for piece in pieces:
            if piece.kind == "const":
                (spec,), packed = pack([piece])
                consts.append(ConstRow(message.run, message.stream, message.cfg, spec, packed))
        specs, payload = pack(piece for piece in pieces if piece.kind != "const")
    row = BatchRow(
        message.run,
        message.stream,
        message.cfg,
        first,
        n,
        message.status,
        list(message.reasons),
        message.token,
        message.worker,
        list(specs),
        payload,
    )
    return row, consts


def readable(message: Control) -> bool:
    """Return whether the document that the message holds, if any, can be read."""
    if isinstance(message, StreamOpen | Expect | Spilled):
        return True
    try:
        return isinstance(json.loads(message.start if isinstance(message, RunOpen) else message.stop), dict)
    except ValueError:
        return False
