"""What stands in the hutch: classic ophyd devices that speak the instruments' own protocols.

The classes are loaded when first asked for: the simulated beamline lives below this package and needs no ophyd.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .assets import FlyInfo, LineInfo
    from .eiger import Eiger
    from .pilc import PiLC
    from .stage import Stage, StageAxis
    from .xspress3 import Xspress3

__all__ = ["Eiger", "FlyInfo", "LineInfo", "PiLC", "Stage", "StageAxis", "Xspress3"]

_HOME = {
    "Eiger": "eiger",
    "FlyInfo": "assets",
    "LineInfo": "assets",
    "PiLC": "pilc",
    "Stage": "stage",
    "StageAxis": "stage",
    "Xspress3": "xspress3",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
