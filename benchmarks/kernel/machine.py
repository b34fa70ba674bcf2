"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

LIBRARIES: Final = (
    "numba",
    "llvmlite",
    "numpy",
    "scipy",
    "pyFAI",
    "dectris-compression",
    "hdf5plugin",
    "bitshuffle",
    "bslz4-to-sparse",
)

LEVELS: Final = (
    ("AVX-512 + VNNI + VBMI + GFNI", ("avx512f", "avx512bw", "avx512vnni", "avx512vbmi", "gfni")),
    ("AVX-512", ("avx512f", "avx512bw")),
    ("AVX2", ("avx2", "bmi2")),
    ("SSE4.2", ("sse4.2",)),
    ("SSE2", ("sse2",)),
    ("SVE2", ("sve2",)),
    ("NEON", ("neon",)),
)
"""Sets of instructions, the largest first, and what of LLVM's features tells them."""


def describe() -> dict[str, Any]:
    """Return CPU, instruction set, versions and load."""
    import llvmlite.binding as llvm
    from numba import config

    features = {name: bool(has) for name, has in llvm.get_host_cpu_features().items()}
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "instruction_set": instruction_set(features),
        "llvm_cpu": str(llvm.get_host_cpu_name()),
        "compiled_for": str(getattr(config, "CPU_NAME", None) or llvm.get_host_cpu_name()),
        "python": platform.python_version(),
        "llvm": ".".join(map(str, llvm.llvm_version_info)),
        **{name: installed(name) for name in LIBRARIES},
        "load_average": [round(each, 2) for each in os.getloadavg()],
    }


def cpu_model() -> str:
    """Return its name, as the kernel of the operating system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def instruction_set(features: dict[str, bool]) -> str:
    """Return the largest of :data:`LEVELS` that is all there.

    >>> instruction_set({"sse2": True, "sse4.2": True, "avx2": True, "bmi2": True, "avx512f": False})
    'AVX2'
    """
    for name, needed in LEVELS:
        if all(features.get(each, False) for each in needed):
            return name
    return "none known"


def installed(package: str) -> str | None:
    """Return its version, None if it isn't there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def line(machine: dict[str, Any]) -> str:
    """Return it in one line.

    >>> line({"cpu": "EPYC", "cores": 1, "instruction_set": "AVX2", "compiled_for": "znver3", "python": "3.11.9",
    ...       "numba": "0.62.0", "llvm": "20.1.8", "pyFAI": "2025.12", "load_average": [0.1, 0.2, 0.3]})
    'EPYC, 1 core, AVX2, compiled for znver3; Python 3.11.9, Numba 0.62.0, LLVM 20.1.8, pyFAI 2025.12; load 0.1 0.2 0.3'
    """
    cores = f"{machine['cores']} core{'s' * (machine['cores'] != 1)}"
    return (
        f"{machine['cpu']}, {cores}, {machine['instruction_set']}, compiled for {machine['compiled_for']}; "
        f"Python {machine['python']}, Numba {machine['numba']}, LLVM {machine['llvm']}, pyFAI {machine['pyFAI']}; "
        f"load {' '.join(map(str, machine['load_average']))}"
    )
