"""What a pool's processes say becomes one report."""

from __future__ import annotations

from typing import Any

import pytest

from haltere.workers.intervals import IntervalSet
from haltere.workers.pool.status import report
from haltere.workers.sink.rates import MAX_PROMISES, SPAN, Lag, Rate


def process(name: str, **words: Any) -> dict[str, Any]:
    known = {
        "name": name,
        "pid": 4031,
        "state": "running",
        "uptime": 12.0,
        "restarts": 0,
        "hung": 0,
        "last_exit": None,
        "last_words": "",
        "gave_up": False,
        "said": {},
        "cpu": 3.0,
        "rss": 1 << 20,
    }
    return known | words


def said() -> dict[str, Any]:
    stream = {
        "expected": 100,
        "live": 70,
        "backfilled": 10,
        "quarantined": 1,
        "lost": 0,
        "live_per_s": 12.0,
        "backfilled_per_s": 2.0,
        "lag_s": 0.4,
    }
    run = {
        "run": "1111-aaaa",
        "processed": "2222-bbbb",
        "scan_id": 17,
        "phase": "closed",
        "since": 1_700_000_060.0,
        "completed": None,
        "abandoned": False,
        "duplicates": 2,
        "nexus": "/data/scan_00017.nxs",
        "nexus_error": None,
        "streams": {"eiger": stream},
    }
    ring = {"ring_bytes": 1000, "ring_used": 300, "dropped": {"ring-full": 9}}
    return {
        "pool": {"pid": 4000, "stays": True},
        "processes": {
            "sink": process("sink"),
            "broker": process("broker"),
            "ingest": process("ingest", said=ring),
            "worker-1": process("worker-1", said={"kept": 3}),
            "recorder": process("recorder", said={"behind": 20, "documents": 5}),
        },
        "broker": {
            "queued": {"live": 4, "files": 2},
            "unclaimed": 1,
            "workers": {"worker-1": {"leases": 2}},
            "runs": {
                "1111-aaaa": {
                    "streams": {"eiger": {"owed": 15, "duplicates": 1, "dropped": {"ring-full": 7, "policy": 3}}}
                }
            },
        },
        "sink": {"stalled": False, "duplicates": 2, "buffered_rows": 6, "buffered_bytes": 600, "runs": [run]},
    }


def test_a_report_joins_what_sink_and_broker_know_of_a_stream() -> None:
    made = report(said())
    assert made["troubles"] == []
    (run,) = made["runs"]
    assert (run["state"], run["scan_id"], run["since"]) == ("reducing", 17, 1_700_000_060.0)
    assert run["streams"]["eiger"] == {
        "expected": 100,
        "live": 70,
        "backfilled": 10,
        "owed": 15,
        "quarantined": 1,
        "lost": 0,
        "duplicates": 1,
        "dropped": {"ring-full": 7, "policy": 3},
        "live_per_s": 12.0,
        "backfilled_per_s": 2.0,
        "lag_s": 0.4,
    }
    assert made["rates"] == {"live_per_s": 12.0, "backfilled_per_s": 2.0}
    assert made["lag"] == {"oldest_s": 0.4, "recorder_frames": 20}
    assert made["queues"] == {
        "ring_bytes": 1000,
        "ring_used": 300,
        "unclaimed_frames": 1,
        "live_batches": 4,
        "file_batches": 2,
        "leases": 2,
        "kept_results": 3,
        "sink_rows": 6,
        "sink_bytes": 600,
        "catalog_documents": 5,
    }
    assert made["drops"] == {"policy": 3, "ring-full": 9}


def test_a_broker_that_is_given_up_is_told_once_and_the_rest_goes_on() -> None:
    words = said()
    words["broker"] = None
    words["processes"]["broker"] = process("broker", pid=-1, state="given up", gave_up=True, last_words="no memory")
    made = report(words)
    assert made["troubles"] == ["broker is given up, and tried again each minute: no memory"]
    assert made["runs"][0]["streams"]["eiger"]["owed"] == 19, "what isn't done, if nobody knows better"
    assert made["queues"]["live_batches"] == 0


def test_what_hangs_is_down_or_can_not_write_is_named() -> None:
    words = said()
    words["broker"] = None
    words["sink"] |= {"stalled": True, "last_error": "disk is full"}
    words["sink"]["runs"][0]["nexus_error"] = "no space"
    words["processes"]["recorder"] |= {"state": "silent"}
    words["processes"]["worker-1"] |= {"state": "down", "restarts": 2, "last_words": "killed"}
    assert report(words)["troubles"] == [
        "worker-1 is being started again: killed",
        "recorder (pid 4031) doesn't answer",
        "the broker doesn't answer",
        "the ledger can't be written: disk is full; results wait with the workers",
        "run 1111-aaaa: its NeXus file can't be written: no space",
    ]


def test_a_pool_of_which_nothing_is_heard_gives_a_report_all_the_same() -> None:
    made = report({"pool": {}, "processes": {}, "broker": None, "sink": None})
    assert made["troubles"][0] == "the pool's owner doesn't answer: nothing is known of its processes"
    assert made["runs"] == []


def test_a_rate_forgets_what_is_older_than_its_span() -> None:
    rate = Rate()
    for step in range(100):
        rate.add(10, now=step / 10)
    assert rate.per_second(10.0) == pytest.approx(100.0, abs=5.0)
    assert rate.per_second(10.0 + SPAN) == 0.0


def test_the_memory_of_promises_is_bounded_and_the_oldest_stands() -> None:
    lag, done = Lag(), IntervalSet()
    for second in range(3 * MAX_PROMISES):
        lag.promise(second + 1, now=float(second))
    assert len(lag._promised) == MAX_PROMISES
    assert lag.seconds(done, 3.0 * MAX_PROMISES) == 3.0 * MAX_PROMISES
    done.add(0, 3 * MAX_PROMISES)
    assert lag.seconds(done, 9e9) == 0.0
