"""How processes end: what the kernel tells a child of its parent's death, and an exit code in words."""

from __future__ import annotations

import ctypes
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def on_parents_death(number: signal.Signals) -> None:
    """Ask the kernel for a signal when this process's parent dies, however that happens. Linux only; else nothing.

    Strictly it is the death of the parent's thread that started this process.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)


def describe_exit(code: int) -> str:
    """Say how a process ended.

    >>> describe_exit(-9), describe_exit(2)
    ('killed by SIGKILL', 'exit code 2')
    """
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
