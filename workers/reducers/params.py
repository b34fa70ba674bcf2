"""Parameters of a reducer: from a plain mapping to a checked struct, with one-line errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from ..errors import ReductionError

T = TypeVar("T", bound=msgspec.Struct)


def read(kind: type[T], reducer: str, params: Mapping[str, Any]) -> T:
    """Return ``params`` as ``kind``.

    Raises
    ------
    ReductionError
        A parameter is unknown (the allowed ones are listed), missing, of another type or out of range.

    >>> read(msgspec.defstruct("P", [("bins", int, 1000)]), "azimuthal", {"bin": 10})
    Traceback (most recent call last):
        ...
    haltere.workers.errors.ReductionError: azimuthal has no parameter bin; there is bins
    """
    allowed = [each.name for each in msgspec.structs.fields(kind)]
    if unknown := sorted(str(name) for name in params if name not in allowed):
        verb = "is" if len(allowed) == 1 else "are"
        raise ReductionError(f"{reducer} has no parameter {', '.join(unknown)}; there {verb} {', '.join(allowed)}")
    try:
        return msgspec.convert(dict(params), kind)
    except msgspec.ValidationError as error:
        raise ReductionError(f"{reducer}: {error}") from None
