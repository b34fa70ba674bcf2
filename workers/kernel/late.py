"""Numba's names for those who describe instructions: it is loaded when one of them is first used, not with this."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final


class _Late:
    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._module), name)


types: Final[Any] = _Late("numba.types")
cgutils: Final[Any] = _Late("numba.core.cgutils")
