"""What the sink and the ingest are told, and what they say."""

from __future__ import annotations

import msgspec

from haltere.workers.broker.core import MAX_ENDPOINTS, MAX_PEERS, SINK, BrokerCore, Times
from haltere.workers.wire.messages import (
    Claim,
    Connect,
    Done,
    Dropped,
    Free,
    Gauge,
    Hello,
    RecipeSpec,
    RunClose,
    RunOpen,
    SeriesGauge,
    StreamOpen,
    StreamTotal,
    Welcome,
)

from .bench import BATCH, IMAGE, LANE, Bench


def test_the_ingest_is_told_what_to_pull_whoever_came_first(bench: Bench) -> None:
    bench.ingest()
    bench.open()
    connect = (b"ingest", Connect(LANE.endpoint, LANE.protocol))
    assert bench.take(Connect) == [connect]
    bench.hear(b"other", Hello(1, "ingest", "other", 1))
    assert bench.take(Connect) == [(b"other", connect[1])]


def test_the_ingest_is_told_how_to_treat_a_series_until_it_says_that_it_does(bench: Bench) -> None:
    bench.ingest()
    bench.sink(RunOpen, "run", "processed", b'{"shape": [40, 60]}')
    recipes = [RecipeSpec("xrd", "azimuthal", b"{}")]
    bench.sink(StreamOpen, "run", "eiger", "cfg", BATCH, [IMAGE], recipes, LANE, "spill")
    claim = Claim(LANE.endpoint, LANE.series, "run", "eiger", LANE.key, BATCH, "spill", 60)
    assert bench.take(Claim) == [(b"ingest", claim)]
    bench.hear(b"ingest", Gauge(1, []))
    assert bench.take(Claim) == [(b"ingest", claim)]
    bench.hear(b"ingest", Gauge(1, [SeriesGauge(LANE.endpoint, LANE.series, 0.25, 1500)]))
    assert bench.take(Claim) == []
    stream = bench.core.snapshot()["runs"]["run"]["streams"]["eiger"]
    assert (stream["policy"], stream["kept"], stream["blocked_s"]) == ("spill", 0.25, 1.5)
    bench.hear(b"other", Hello(1, "ingest", "other", 1))
    assert bench.take(Claim) == [(b"other", claim)]


def test_a_gauge_of_a_session_that_is_not_known_makes_the_ingest_begin_anew(bench: Bench) -> None:
    bench.hear(b"ingest", Gauge(7, []))
    assert bench.take(Welcome) == [(b"ingest", Welcome(1, 1000, 0, 0))]


def test_with_freed_blocks_goes_word_of_the_batches_that_wait(bench: Bench) -> None:
    bench.ingest()
    bench.open()
    bench.worker(credit=1)
    bench.frames(*range(12))
    bench.done([(0, 4)])
    (freed,) = bench.take(Free)
    assert freed[1].queued == 2


def test_the_sink_is_asked_at_the_start_and_when_it_is_silent(bench: Bench) -> None:
    bench.wait(0.05)
    assert [peer for peer, _ in bench.take(Hello)] == [SINK]
    bench.wait(2)
    assert bench.take(Hello) == []
    bench.wait(1)
    assert [peer for peer, _ in bench.take(Hello)] == [SINK]


def asked(core: BrokerCore, *times: float) -> list[float]:
    """Return at which of these times the sink is asked to tell everything."""
    return [now for now in times if any(isinstance(message, Hello) for _, message in core.tick(now))]


def test_the_sink_is_asked_when_something_is_lacking_when_it_was_silent_and_after_half_a_minute() -> None:
    times = Times(beat=1.25)
    core = BrokerCore(1000, times)
    assert asked(core, 100.0) == [100.0]
    core.receive(SINK, Welcome(1, 7, 5000, 500), 100.0)
    assert asked(core, 102.0, 100.0 + times.silent) == [100.0 + times.silent]
    core.receive(SINK, Welcome(1, 7, 5000, 500), 102.5)
    core.sink_connected()
    assert asked(core, 102.71875, 102.75, 103.0) == [102.75]
    for now in range(103, 133):
        core.receive(SINK, Welcome(1, 7, 5000, 500), float(now))
        assert asked(core, float(now)) == []
    assert asked(core, 102.75 + times.sync) == [102.75 + times.sync]


def test_a_sink_that_is_connected_anew_is_told_who_is_here(bench: Bench) -> None:
    bench.wait(0.2)
    bench.take(Hello)
    bench.wait(0.5)
    assert bench.take(Hello) == []
    bench.core.sink_connected()
    bench.wait(0.2)
    assert bench.take(Hello) == [(SINK, Hello(1, "broker", "broker", 1000))]


def test_a_sink_that_speaks_is_not_asked_to_tell_everything_all_the_time(bench: Bench) -> None:
    bench.open()
    bench.wait(0.2)
    bench.take(Hello)
    for _ in range(10):
        bench.wait(2)
        bench.done([], full=True)
    assert bench.take(Hello) == []


def test_only_the_sink_says_what_is_done(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3)
    bench.hear(b"w", Done("run", "eiger", "cfg", [(0, 4)]))
    assert bench.take(Free) == []
    assert bench.core.counts["refused Done"] == 1


def test_a_promise_that_comes_before_its_stream_is_asked_for_again(bench: Bench) -> None:
    bench.sink(RunOpen, "run", "processed", b"{}")
    bench.expect(0, 4)
    bench.take(Hello)
    recipes = [RecipeSpec("xrd", "azimuthal", b"{}")]
    bench.sink(StreamOpen, "run", "eiger", "cfg", BATCH, [IMAGE], recipes, None)
    bench.close(4)
    bench.worker()
    bench.wait(0.2, alive=(b"w",))
    assert bench.work() == [], "called lost, though its promise is only to be told again"
    assert bench.take(Hello)


def test_what_was_said_before_the_close_and_comes_late_confirms_nothing(bench: Bench) -> None:
    bench.open(live=False)
    bench.serial += 1  # an EXPECT that is on disk and never came
    late = Done("run", "eiger", "cfg", [], True, bench.serial)
    bench.sink(RunClose, "run", [StreamTotal("eiger", 4)], "success", b"{}")
    bench.hear(SINK, late)
    bench.worker()
    bench.wait(1.0, alive=(b"w",))
    assert bench.work() == []


def test_control_messages_may_come_twice(bench: Bench) -> None:
    for _ in range(2):
        bench.open(live=False)
        bench.expect(0, 8)
        bench.close(8)
    bench.worker()
    bench.wait(0.1)
    assert [(work.first, len(work.files)) for work in bench.work()] == [(0, 1), (4, 1)]


def test_a_complete_run_is_forgotten_after_a_while(bench: Bench) -> None:
    bench.open(live=False)
    bench.expect(0, 4)
    bench.close(4)
    bench.done([(0, 4)])
    bench.wait(29)
    assert len(bench.core.runs) == 1
    bench.wait(2)
    assert len(bench.core.runs) == 0


def test_a_run_that_the_sink_no_longer_speaks_of_is_complete(bench: Bench) -> None:
    bench.open()
    bench.frames(0, 1, 2, 3)
    for _ in range(3):
        bench.hear(SINK, Welcome(1, 1, 5000, 500))
    assert len(bench.core.runs) == 0
    assert bench.core.counts["runs that the sink closed unheard"] == 1
    assert [message.lives for _, message in bench.take(Free)] == [[0, 1, 2, 3]]


def test_the_oldest_idle_run_makes_room(bench: Bench) -> None:
    bench.open()
    bench.frames(0)
    for number in range(70):
        bench.sink(RunOpen, f"run-{number}", "p", b"{}")
    assert len(bench.core.runs) == 64
    assert "run" in dict(bench.core.runs), "it was not idle"
    assert bench.core.counts["runs let go"] == 7


def test_of_a_run_that_is_let_go_nothing_is_kept_and_of_others_everything(bench: Bench) -> None:
    bench.ingest()
    bench.open()
    bench.sink(RunOpen, "other", "its", b"{}")
    lane = msgspec.structs.replace(LANE, series=13)
    recipes = [RecipeSpec("xrd", "azimuthal", b"{}")]
    bench.sink(StreamOpen, "other", "eiger", "cfg", BATCH, [IMAGE], recipes, lane, "drop")
    bench.hear(b"ingest", Dropped(LANE.endpoint, 12, [(8, 9)], "ring-full"))
    bench.worker(credit=1)
    bench.frames(*range(8))
    bench.wait(0.05)
    core, worker = bench.core, bench.core.peers.get(b"w")
    assert worker is not None
    assert (len(core._queue), len(core._drops._told), len(core._series), len(worker.leases)) == (1, 1, 2, 1)
    bench.sink(RunOpen, "run", "by other recipes", b"{}")
    assert (len(core._queue), core._drops._told, len(worker.leases)) == (0, {}, 0)
    assert [key.run for key in core._series.values()] == ["other"]
    (freed,) = bench.take(Free)
    assert sorted(freed[1].lives) == list(range(8))


def test_who_is_neither_worker_nor_ingest_is_refused_and_counted(bench: Bench) -> None:
    bench.hear(b"x", Hello(1, "recorder", "x", 1))
    assert bench.said == []
    assert len(bench.core.peers) == 0
    assert bench.core.counts["refused a role"] == 1


def test_peers_beyond_the_bound_are_refused_and_those_that_are_known_are_not(bench: Bench) -> None:
    for number in range(MAX_PEERS + 2):
        bench.hear(b"%d" % number, Hello(1, "worker", f"w{number}", 1))
    assert len(bench.core.peers) == MAX_PEERS
    assert bench.core.counts["refused a peer: too many"] == 2
    bench.said.clear()
    bench.hear(b"0", Hello(1, "worker", "w0", 2))
    assert [peer for peer, _ in bench.take(Welcome)] == [b"0"]


def test_a_detector_may_be_pulled_from_before_any_run_names_it(bench: Bench) -> None:
    bench.ingest()
    connect = Connect("tcp://eiger", "simplon-1")
    bench.hear(b"session", connect)
    assert bench.take(Connect) == [(b"ingest", connect)]
    bench.hear(b"later", Hello(1, "ingest", "later", 1))
    assert bench.take(Connect) == [(b"later", connect)]


def test_detectors_beyond_the_bound_are_not_pulled_from(bench: Bench) -> None:
    bench.ingest()
    for number in range(MAX_ENDPOINTS + 2):
        bench.hear(b"session", Connect(f"tcp://{number}", "simplon-1"))
    assert len(bench.take(Connect)) == MAX_ENDPOINTS
    assert bench.core.counts["endpoints beyond the bound"] == 2
    bench.hear(b"session", Connect("tcp://0", "simplon-2"))
    assert bench.take(Connect) == [(b"ingest", Connect("tcp://0", "simplon-2"))]
    bench.hear(b"later", Hello(1, "ingest", "later", 1))
    assert (b"later", Connect("tcp://0", "simplon-2")) in bench.take(Connect)


def test_a_sink_that_knows_nothing_of_this_broker_is_told_hello_again(bench: Bench) -> None:
    bench.open()
    bench.wait(0.3)
    bench.take(Hello)
    bench.hear(SINK, Welcome(1, 8, 0, 0))
    bench.wait(0.2)
    assert [peer for peer, _ in bench.take(Hello)] == [SINK]


def test_a_stream_that_is_told_after_the_close_of_its_run_has_its_total(bench: Bench) -> None:
    bench.sink(RunOpen, "run", "processed", b"{}")
    bench.close(2)
    bench.open(live=False)
    bench.expect(0, 2)
    bench.worker()
    bench.wait(0.1)
    assert [(work.first, work.n) for work in bench.work()] == [(0, 2)]
    recipes = [RecipeSpec("xrd", "azimuthal", b"{}")]
    bench.sink(StreamOpen, "run", "other", "cfg", BATCH, [IMAGE], recipes, None)  # of which the close said nothing
    assert [stream.total for stream in bench.core.runs.streams] == [2, 0]
