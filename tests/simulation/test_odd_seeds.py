"""The other half of the 500 seeds, see ``test_even_seeds.py``."""

from __future__ import annotations

import pytest

from .soak import CHUNK, report, soak


@pytest.mark.parametrize("first", range(CHUNK, 500, 2 * CHUNK))
def test_nothing_is_lost_whatever_goes_wrong(first: int) -> None:
    tally = soak(range(first, first + CHUNK))
    assert not tally.failures, f"{tally.failures}\n{report(tally, tally.cpu)}"
