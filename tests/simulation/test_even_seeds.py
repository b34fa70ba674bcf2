"""Half of the 500 seeds; the other half is a file of its own, because a file's tests run one after the other."""

from __future__ import annotations

import pytest

from .soak import CHUNK, report, soak


@pytest.mark.parametrize("first", range(0, 500, 2 * CHUNK))
def test_nothing_is_lost_whatever_goes_wrong(first: int) -> None:
    tally = soak(range(first, first + CHUNK))
    assert not tally.failures, f"{tally.failures}\n{report(tally, tally.cpu)}"
