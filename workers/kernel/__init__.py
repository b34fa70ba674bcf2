"""Frames reduced while they are still compressed.

Importing this loads Numba, half a second: what only describes reductions, plans or pools doesn't import it.
"""

from .kernel import Kernel, check, reads
from .parts import LOT, Layout, Part
from .warm import warm_up
from .whole import Whole

__all__ = ["LOT", "Kernel", "Layout", "Part", "Whole", "check", "reads", "warm_up"]
