"""Frames reduced while they are still compressed.

Importing this loads LLVM, to run the machine code that is kept; Numba only where that has to be made.
"""

from .bins import Bins
from .kernel import Kernel, check, reads
from .parts import LOT, Layout, Part
from .pictures import Crop, Shrink, Sum
from .regions import Moments, Regions
from .runs import Rectangle
from .tables import BinTable
from .warm import warm_up
from .whole import Whole

__all__ = [
    "LOT", "BinTable", "Bins", "Crop", "Kernel", "Layout", "Moments", "Part", "Rectangle", "Regions", "Shrink", "Sum",
    "Whole", "check", "reads", "warm_up",
]  # fmt: skip
