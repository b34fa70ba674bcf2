"""Every fault that there is, and the few that are tried with the tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from . import crowds, flights, frames, kills, storage
from .rig import UNDISTURBED, PoolFault

POOL_FAULTS: Final[tuple[PoolFault, ...]] = (
    UNDISTURBED,
    *kills.FAULTS,
    *storage.FAULTS,
    *frames.FAULTS,
    *crowds.FAULTS,
)
FAULTS: Final[tuple[PoolFault | flights.SessionFault, ...]] = (*POOL_FAULTS, *flights.FAULTS)


def quickened(fault: PoolFault) -> PoolFault:
    """Return a fault on half a scan, its documents not recorded."""
    return replace(fault, scan=replace(fault.scan, rows=12), catalog=False)


QUICK: Final = tuple(
    quickened(fault) for fault in POOL_FAULTS if fault.name in ("worker-kill", "broker-kill", "sink-kill")
)
