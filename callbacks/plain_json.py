"""Documents as plain JSON, of a size that travels."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

log = logging.getLogger(__name__)


def fit_json(doc: Mapping[str, Any], limit: int, keep: Sequence[str] = ()) -> bytes:
    """Return the document as JSON of at most ``limit`` bytes: the largest values are left out, those to keep last.

    >>> fit_json({"uid": "a", "big": "x" * 100}, 50)
    b'{"uid":"a"}'
    """
    parts = {str(key): json.dumps(_plain(value)) for key, value in doc.items()}
    size = 2 + sum(len(key) + len(part) + 8 for key, part in parts.items())
    for key in sorted(parts, key=lambda each: (each in keep, -len(parts[each]))):
        if size <= limit:
            break
        size -= len(key) + len(parts.pop(key)) + 8
        log.warning("the document's %r is too large to be sent along: left out", key)
    return json.dumps({key: json.loads(part) for key, part in parts.items()}, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    """Return what JSON can say of a value; of numbers that aren't finite, nothing."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)
