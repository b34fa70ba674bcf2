"""What every test may ask for."""

import os
from pathlib import Path

import pytest

# Tests start hundreds of reducers that live for a second: those that use the kernel load it when they do.
os.environ.setdefault("HALTERE_WARM_UP", "0")

DATA = Path(os.environ.get("HALTERE_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of whole processes first: a long file that comes last is waited for by all."""
    items.sort(key=lambda item: item.path.name != "test_process.py")


@pytest.fixture(scope="session")
def measurements() -> Path:
    """Return the folder of real measurements, which the project doesn't contain."""
    if not DATA.is_dir():
        pytest.skip(f"no real measurements at {DATA}: name their folder in HALTERE_DATA")
    return DATA
