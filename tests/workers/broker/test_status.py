"""What the broker says of itself."""

from __future__ import annotations

import msgspec

from haltere.workers.wire.messages import Beat, Gauge, Hello, SeriesGauge, Status, StatusReply, encode

from .bench import LANE, Bench


def test_the_status_names_no_more_ingests_than_fit(bench: Bench) -> None:
    for number in range(20):
        bench.hear(b"%d" % number, Hello(1, "ingest", f"ingest-{number}", 1))
    assert len(bench.core.snapshot()["ingests"]) == 16


def test_status_says_how_things_stand_and_fits_into_its_message(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3, 4)
    bench.hear(b"?", Status(7))
    ((peer, reply),) = bench.take(StatusReply)
    encode(reply)
    body = msgspec.json.decode(reply.body)
    stream = body["runs"]["run"]["streams"]["eiger"]
    assert (peer, reply.serial) == (b"?", 7)
    assert (stream["held"], stream["leased"], body["ring_bytes"]) == (5, 1, 60)
    assert body["workers"]["w"]["leases"] == 1


def test_the_status_says_what_workers_and_ingests_do(bench: Bench) -> None:
    for name in ("ingest", "other"):
        bench.hear(name.encode(), Hello(1, "ingest", name, 1))
    bench.open()
    bench.worker(credit=5)
    bench.frames(*range(8))
    (first, _) = bench.work()
    beat = Beat(1, first.token, 2, 40, 9000, [first.token])
    bench.hear(b"w", beat)
    ours, others = SeriesGauge(LANE.endpoint, 12, 0.5, 1500), SeriesGauge(LANE.endpoint, 13, 0.1, 99)
    bench.hear(b"ingest", Gauge(1, [ours, others]))
    bench.hear(b"other", Gauge(1, [SeriesGauge(LANE.endpoint, 12, 0.12345, 250), SeriesGauge("tcp://else", 12, 0.1)]))
    said = bench.core.snapshot()
    assert said["workers"] == {"w": {"busy": True, "leases": 2, "credit": 3, "frames": 40, "reduce_us": 9000}}
    assert said["ingests"] == ["ingest", "other"]
    run = said["runs"]["run"]
    assert (run["closed"], run["complete"]) == (False, False)
    assert (run["streams"]["eiger"]["kept"], run["streams"]["eiger"]["blocked_s"]) == (0.123, 1.75)
    bench.close(8)
    bench.done([(0, 8)])
    bench.hear(b"w", Beat(1, -1, 2, 40, 9000, []))
    said = bench.core.snapshot()
    assert (said["runs"]["run"]["closed"], said["runs"]["run"]["complete"]) == (True, True)
    assert (said["workers"]["w"]["busy"], said["workers"]["w"]["leases"]) == (False, 0)
    bench.hear(b"w", Beat(1, 0, 2, 40, 9000, []))
    assert bench.core.snapshot()["workers"]["w"]["busy"] is True


def test_a_stream_of_which_no_ingest_says_anything_has_no_gauge(bench: Bench) -> None:
    bench.ingest()
    bench.open()
    bench.hear(b"ingest", Gauge(1, []))
    assert "kept" not in bench.core.snapshot()["runs"]["run"]["streams"]["eiger"]
