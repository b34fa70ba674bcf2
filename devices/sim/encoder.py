"""An encoder's noise, the same each time the same place is measured."""

from __future__ import annotations

import hashlib
import math
import struct
from typing import Final

SIGMA: Final = 1e-3
"""Standard deviation of a reading, µm: 1 nm, what an interferometer on a nanoprobe's stage shows."""


def noise(seed: int, axis: int, x: float, y: float) -> float:
    """Return the noise in µm of encoder ``axis`` at commanded position (x, y) in µm.

    It is keyed, not drawn in turn: a line flown twice, or after others, gives the same readings to the bit.

    >>> noise(0, 1, 12.5, -3.0) == noise(0, 1, 12.5, -3.0)
    True
    """
    key = struct.pack("<qqqq", seed & 0x7FFF_FFFF_FFFF_FFFF, axis, round(x * 1e6), round(y * 1e6))
    first, second = struct.unpack("<QQ", hashlib.blake2b(key, digest_size=16).digest())
    # Box and Muller; the half keeps the logarithm finite.
    radius = math.sqrt(-2.0 * math.log((first + 0.5) * 2.0**-64))
    return SIGMA * radius * math.cos(2.0 * math.pi * second * 2.0**-64)
