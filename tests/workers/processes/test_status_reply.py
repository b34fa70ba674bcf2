"""What a process says of itself always fits into its message."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from haltere.workers.processes.status_reply import status_reply
from haltere.workers.wire.messages import MAX_CONTROL, StatusReply, decode, encode

STREAM = {"expected": 10**9, "live": 10**9, "dropped": {"ring-full": 10**9}, "complete": False, "note": "x" * 200}
STREAMS = {f"s{n}": STREAM for n in range(30)}


@pytest.mark.parametrize(
    "said",
    [
        {
            "role": "sink",
            "runs": [{"run": f"run-{k}", "streams": {f"s{n}": STREAM for n in range(30)}} for k in range(9)],
        },
        {"role": "sink", "runs": {f"run-{k}": {"streams": {f"s{n}": STREAM for n in range(30)}} for k in range(9)}},
        {"role": "sink", "workers": {f"worker-{k}": STREAM for k in range(5000)}},
        {"role": "sink", "last_error": "é" * 60_000},
        {"role": "sink", "runs": [{"run": "run-8", "streams": {f"s{n}": STREAM for n in range(3000)}}]},
    ],
)
def test_an_answer_that_is_too_long_is_cut_and_says_so(said: dict[str, Any]) -> None:
    data = encode(status_reply(7, said))
    assert len(data) <= MAX_CONTROL
    reply = decode(data)
    assert isinstance(reply, StatusReply)
    heard = msgspec.json.decode(reply.body)
    assert heard["role"] == "sink"
    assert sum(heard["cut"].values()) > 0


def test_of_many_runs_the_last_are_told_whole() -> None:
    runs = {f"run-{k}": {f"s{n}": STREAM for n in range(20)} for k in range(40)}
    heard = msgspec.json.decode(status_reply(1, {"role": "broker", "runs": runs, "queued": {"live": 3}}).body)
    kept = list(heard["runs"])
    assert kept == list(runs)[-len(kept) :]
    assert heard["cut"] == {"runs": 40 - len(kept)}
    assert heard["runs"]["run-39"] == runs["run-39"]
    assert heard["queued"] == {"live": 3}


def test_an_answer_that_fits_is_left_alone() -> None:
    said = {"role": "sink", "runs": []}
    assert msgspec.json.decode(status_reply(1, said).body) == said
