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


ENTRY = "x" * 98
"""An entry that takes 100 bytes, of which 98 are counted."""


@pytest.mark.parametrize(
    ("over", "cut"),
    [
        (98 * 12, {"runs": 12}),
        (98 * 12 + 1, {"runs": 13}),
        (98 * 20, {"runs": 20}),
        (98 * 20 + 1, {"runs": 20, "b": 1}),
    ],
)
def test_no_more_is_cut_than_has_to_be(monkeypatch: pytest.MonkeyPatch, over: int, cut: dict[str, int]) -> None:
    said = {"role": "sink", "runs": [ENTRY] * 20, "b": [ENTRY] * 15}
    size = sum(len(msgspec.json.encode(each)) for each in said.items())
    monkeypatch.setattr("haltere.workers.processes.status_reply.MAX_STATUS", size + 1024 - over)
    heard = msgspec.json.decode(status_reply(1, said).body)
    assert heard.pop("cut") == cut
    assert heard.pop("role") == "sink"
    assert heard == {key: [ENTRY] * (len(said[key]) - cut.get(key, 0)) for key in ("b", "runs") if key in heard}
    assert ("runs" in heard) is (cut["runs"] < 20)


def test_an_answer_may_fill_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"role": "sink", "runs": [ENTRY] * 20}
    body = msgspec.json.encode(said)
    monkeypatch.setattr("haltere.workers.processes.status_reply.MAX_STATUS", len(body))
    assert status_reply(1, said).body == body
    monkeypatch.setattr("haltere.workers.processes.status_reply.MAX_STATUS", len(body) - 1)
    assert b"cut" in status_reply(1, said).body
