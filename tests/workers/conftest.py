"""Real measurements, where they are at hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def measured() -> Callable[[str], Path]:
    """Return the path of a real measurement, or skip the test if it isn't here."""
    root = Path(os.environ.get("HALTERE_DATA", Path(__file__).parents[3] / "shared" / "data"))

    def find(name: str) -> Path:
        path = root / name
        if not path.exists():
            pytest.skip(f"no {path}; set HALTERE_DATA to the folder of real measurements")
        return path

    return find
