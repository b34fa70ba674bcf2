"""A few faults of the matrix on real processes: ``make chaos`` tries them all, and longer."""

from collections.abc import Iterator

import pytest

from .matrix import QUICK
from .rig import PoolFault
from .site import Site


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site() as site:
        yield site


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", QUICK, ids=lambda fault: fault.name)
def test_a_fault_loses_nothing_and_changes_no_bit(site: Site, fault: PoolFault) -> None:
    assert not fault.run(site).complaints
