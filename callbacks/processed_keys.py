"""What a processed run's documents say of their columns and arrays, in a size that a document may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ..workers.ledger.rows import ConstRow
from ..workers.payload import unpack
from ..workers.reducers.base import Output
from ..workers.wire.messages import RecipeSpec

Document = dict[str, Any]

MOST_INTERVALS: Final = 1000
"""Most intervals of one status in a stop document; a stream that alternates more often says so instead."""

MOST_AXIS: Final = 65_536
"""Longest axis that is put into a descriptor; longer ones stand in the NeXus file alone."""


def scalar_key(spec: RecipeSpec, output: Output, joined: str = "") -> Document:
    """Return a scalar's data key. It's a 64-bit number in the catalog's tables, whatever it was in the reducer."""
    floating = np.dtype(output.dtype).kind == "f"
    return _labelled(
        {
            "source": f"stream:{joined}" if joined else f"recipe:{spec.name}",
            "dtype": "number" if floating else "integer",
            "dtype_numpy": "<f8" if floating else "<i8",
            "shape": [],
        },
        output,
    )


def array_key(spec: RecipeSpec, output: Output, *, external: bool = True) -> Document:
    """Return an array's data key; one that isn't ``external`` stands in the document itself."""
    key: Document = {
        "source": f"recipe:{spec.name}",
        "dtype": "array",
        "dtype_numpy": np.dtype(output.dtype).newbyteorder("<").str,
        "shape": list(output.shape),
    }
    if external:
        key["external"] = "STREAM:"
        if len(output.axes) == len(output.shape):
            key["dims"] = [
                f"{spec.name}_{number}" if axis == "." else axis for number, axis in enumerate(output.axes, 1)
            ]
    return _labelled(key, output)


def _labelled(key: Document, output: Output) -> Document:
    if output.units:
        key["units"] = output.units
    if output.long_name:
        key["long_name"] = output.long_name
    return key


def axis(const: ConstRow) -> list[Any] | None:
    """Return a const output as a list, None if it is too long for a document or no axis."""
    if len(const.spec.shape) != 1 or const.spec.shape[0] > MOST_AXIS:
        return None
    (piece,) = unpack([const.spec], const.payload)
    values: list[Any] = piece.array.tolist()
    return values


def frames(account: Mapping[str, Any]) -> Document:
    """Return what became of a stream's frames, in a size that a document may have."""
    intervals = account.get("intervals", {})
    reasons = account.get("reasons", {})
    shown = {name: ranges[:MOST_INTERVALS] for name, ranges in intervals.items()}
    doc = {**account, "intervals": shown, "reasons": dict(list(reasons.items())[:MOST_INTERVALS])}
    if len(reasons) > MOST_INTERVALS:
        doc["reasons_left_out"] = len(reasons) - MOST_INTERVALS
    if hidden := {n: len(r) - MOST_INTERVALS for n, r in intervals.items() if len(r) > MOST_INTERVALS}:
        doc["intervals_left_out"] = hidden
    return doc
