"""Documents through a dispatcher's core, and what it says."""

from __future__ import annotations

from typing import Any

from haltere.callbacks.dispatch_core import DispatchCore
from haltere.workers.ledger.rows import Control
from haltere.workers.recipes import Recipe
from haltere.workers.wire.messages import Ack, Expect, Welcome, decode

PONI = {"dist": 0.1, "poni1": 0.0004, "poni2": 0.0004, "pixel1": 1e-4, "pixel2": 1e-4}
XRD = Recipe("xrd", "azimuthal", "eiger", {"poni": PONI, "bins": 16})
POSITIONS = Recipe("positions", "columns", "pilc")
WELCOME = Welcome(1, 7, 5000, 500)


def greeted(core: DispatchCore, now: float = 0.0) -> DispatchCore:
    core.impatient(now + 1000.0)
    core.heard(WELCOME, now + 1000.0)
    return core


def told(core: DispatchCore, now: float = 1000.0) -> list[Control]:
    """Return what goes to the sink, which acknowledges at once, until there is no more."""
    found: list[Control] = []
    while messages := [decode(data) for data in core.outgoing(now)]:
        found += messages  # type: ignore[arg-type]
        core.heard(Ack(core.session, found[-1].serial), now)
    return found


def dispatched(documents: Any, *recipes: Recipe) -> list[Control]:
    core = greeted(DispatchCore(1, recipes or (XRD, POSITIONS)))
    for name, doc in documents:
        core.document(name, doc)
    return told(core)


def of(kind: type, messages: list[Control]) -> list[Any]:
    return [each for each in messages if isinstance(each, kind)]


def spans(messages: list[Control], stream: str, key: str) -> dict[int, tuple[str, int]]:
    """Return for each frame the file's name and the row in it."""
    found = {}
    for message in of(Expect, messages):
        for span in message.files if message.stream == stream else ():
            if span.key == key:
                assert message.first <= span.first
                assert span.first + span.n <= message.stop
                for frame in range(span.n):
                    found[span.first + frame] = (span.uri.rsplit("_", 1)[1], span.offset + frame)
    return found
