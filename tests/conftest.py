"""What every test may ask for."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("HALTERE_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def measurements() -> Path:
    """Return the folder of real measurements, which the project doesn't contain."""
    if not DATA.is_dir():
        pytest.skip(f"no real measurements at {DATA}: name their folder in HALTERE_DATA")
    return DATA
