"""Seeds that failed once, and why.

What a seed stands for changes with the simulation, so each of these has a test of its own on the core that was mended.
"""

from __future__ import annotations

import pytest

from .world import simulate

FOUND = {
    10: "FREE lost: the block was held for ever",
    64: "that a frame was on its way to a file was said after it had been given up: it was waited for for ever",
    69: "FRAMES came twice: a block that was given back was handed out again",
    93: "a recorder that was started later put axes into a descriptor that had none before",
    106: "a new broker gave back a block that a worker still read for the one before: garbage was committed",
    265: "an EXPECT came before its STREAM_OPEN: it was dropped, counted as seen, and its frames called lost",
    349: "SQLite said that a commit had failed when all was on disk: the sink never knew of its rows",
    374: "a DONE from before RUN_CLOSE came late, and confirmed that no EXPECT was missing",
    937: "all of before was found, and called lost while a stopped sink hadn't taken note of it",
    42479: "a session that began anew was never told of a run that the recorder had finished and let go of",
    3608: "a worker was sent more than it had given credit for, and kept more results than it may",
    14497: "a frame's every word of being spilled was lost, and it was called lost before it was said again",
    15520: "the same, of a frame that was still being written",
    3496: "an ingest whose greeting was never answered did nothing, and its frames were waited for without end",
}


@pytest.mark.parametrize("seed", FOUND, ids=lambda seed: f"{seed}: {FOUND[seed]}")
def test_what_was_found_once_stays_mended(seed: int) -> None:
    simulate(seed)
