"""Machine code: compiled once, kept where it can't be another's, and not loaded where nobody reduces."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haltere.workers.kernel import (
    Bins,
    BinTable,
    Crop,
    Kernel,
    Moments,
    Rectangle,
    Regions,
    Shrink,
    Sum,
    Whole,
    compiling,
    kept,
    warm_up,
)
from haltere.workers.kernel.walk import walk

from ..chunks import bslz4


def python(code: str, **environment: str) -> str:
    """Return what a new interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    "module",
    [
        "haltere.workers.recipes, haltere.workers.reducers.azimuthal, haltere.workers.reducers.fluorescence",
        "haltere.workers.worker.reducing",
        "haltere.workers.broker.process",
        "haltere.workers.sink.process",
        "haltere.workers.pool",
        "haltere.session",
    ],
)
def test_who_does_not_reduce_does_not_load_numba(module: str) -> None:
    assert python(f"import sys, {module}; print('numba' in sys.modules)") == "False"


def test_one_machine_code_serves_every_type_and_part() -> None:
    warm_up()
    shape, pixels = (20, 30), np.arange(600)
    ring = BinTable(
        shape=shape,
        coefficients=np.ones(600, np.float32),
        indices=pixels.astype(np.int32),
        starts=np.array([0, 200, 600]),
        norm=np.ones(600),
    )
    parts: dict[str, Any] = {
        "whole": Whole(),
        "bins": Bins(table=ring, variance=True, cutoff=9),
        "regions": Regions(rectangles=(Rectangle((2, 5), (3, 9)),), peaks=True),
        "moments": Moments(),
        "crop": Crop(Rectangle((0, 4), (0, 4))),
        "shrink": Shrink(4),
        "sum": Sum(2),
    }
    for dtype in ("<u1", "<u2", "<u4"):
        Kernel(shape, dtype, parts).run([bslz4(np.ones(shape, dtype))])
    assert len(walk.layouts) == 1  # type: ignore[attr-defined]


def test_the_folder_of_machine_code_is_another_for_other_sources_another_cpu_and_checked_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from haltere.workers.kernel import kept; print(kept.folder())"
    where = {"NUMBA_CACHE_DIR": str(tmp_path)}
    usual = python(code, **where)
    assert Path(usual).parent == tmp_path / "haltere"
    assert Path(usual).stat().st_mode & 0o077 == 0
    assert python(code, **where) == usual
    others = {python(code, **where, NUMBA_CPU_NAME="haswell"), python(code, **where, HALTERE_KERNEL_CHECKED="1")}
    assert len(others | {usual}) == 3 - compiling.CHECKED
    monkeypatch.setattr(kept, "__file__", str(tmp_path / "kept.py"))
    assert kept._state() not in usual


def test_machine_code_that_is_kept_is_run_without_numba() -> None:
    warm_up()
    code = "import sys; from haltere.workers.kernel import warm_up; warm_up(); print('numba' in sys.modules)"
    assert python(code) == str(kept.folder() is None)


TWICE = """
import sys
from pathlib import Path
from haltere.workers.kernel import compiling, kept
@compiling.entry
def twice(n): return 2 * n
print(twice(21), 'numba' in sys.modules, *[path.name for path in kept.folder().glob('*.o')])
"""


def test_a_file_that_was_torn_is_made_again(tmp_path: Path) -> None:
    where = {"NUMBA_CACHE_DIR": str(tmp_path)}
    first, again = python(TWICE, **where), python(TWICE, **where)
    value, compiled, name = first.split()
    assert (value, compiled, again) == ("42", "True", first.replace("True", "False"))
    (file,) = tmp_path.glob(f"haltere/*/{name}")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert python(TWICE, **where) == first
    assert file.read_bytes() == whole


def test_folders_that_nobody_has_used_for_long_are_removed(tmp_path: Path) -> None:
    where = tmp_path / "haltere"
    old, recent, foreign = where / "kernel-0", where / "kernel-1", where / "notes"
    for each in (old, recent, foreign):
        each.mkdir(parents=True)
        (each / "file").touch()
    for each in (old, foreign):
        os.utime(each, (0, 0))
    python(TWICE, NUMBA_CACHE_DIR=str(tmp_path))
    assert (old.exists(), recent.exists(), foreign.exists()) == (False, True, True)


def test_arrays_with_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).* contiguous"):
        compiling.Packed(np.zeros((2, 6))[:, ::2])


def test_a_folder_that_others_can_write_is_not_used(tmp_path: Path) -> None:
    code = "from haltere.workers.kernel import kept; print(kept.folder())"
    made = Path(python(code, NUMBA_CACHE_DIR=str(tmp_path)))
    made.chmod(0o777)
    assert python(code, NUMBA_CACHE_DIR=str(tmp_path)) == "None"


def test_no_folder_to_write_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    code = (
        "from haltere.workers.kernel import compiling, kept\n"
        "@compiling.entry\n"
        "def twice(n): return 2 * n\n"
        "print(kept.folder(), twice(21))"
    )
    assert python(code, NUMBA_CACHE_DIR=str(tmp_path / "file")) == "None 42"
