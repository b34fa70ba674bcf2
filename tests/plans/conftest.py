"""One simulated beamline for all tests of plans."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..devices.hutch import Hutch, simulated


@pytest.fixture(scope="session")
def hutch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hutch]:
    with simulated(tmp_path_factory.mktemp("hutch")) as found:
        yield found
