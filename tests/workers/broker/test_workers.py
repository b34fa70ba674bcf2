"""Credit, leases, sessions and beats of the workers."""

from __future__ import annotations

from haltere.workers.broker.core import BrokerCore, Times
from haltere.workers.wire.messages import (
    Beat,
    Bye,
    Credit,
    Free,
    Hello,
    RunClose,
    StreamOpen,
    StreamTotal,
    Welcome,
    Work,
)

from .bench import Bench


def test_a_worker_gets_no_more_than_its_credit_however_often_it_says_it(bench: Bench) -> None:
    bench.open()
    bench.frames(*range(40))
    bench.worker(credit=2)
    for limit in (2, 1, 2):
        bench.hear(b"w", Credit(1, limit))
    assert len(bench.work()) == 2
    bench.hear(b"w", Credit(1, 3))
    assert len(bench.work()) == 1


def test_credit_of_a_former_life_of_the_worker_counts_for_nothing(bench: Bench) -> None:
    bench.open()
    bench.frames(*range(40))
    bench.worker(credit=0, session=2)
    bench.hear(b"w", Credit(1, 100))
    assert bench.work() == []


def test_tokens_go_on_from_the_epoch_so_that_no_two_brokers_share_one(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3)
    (work,) = bench.work()
    assert work.token > bench.core.epoch


def test_workers_take_turns(bench: Bench) -> None:
    bench.open()
    bench.worker(b"a")
    bench.worker(b"b")
    bench.frames(*range(16))
    assert [peer for peer, _ in bench.take(Work)] == [b"a", b"b", b"a", b"b"]


def test_a_worker_learns_of_a_stream_before_its_first_work_in_each_session(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3, 4, 5, 6, 7)
    assert [type(message) for peer, message in bench.said if peer == b"w"] == [Welcome, StreamOpen, Work, Work]
    bench.said.clear()
    bench.worker(session=2)
    assert [type(message) for peer, message in bench.said if peer == b"w"] == [Welcome, StreamOpen, Work, Work]


def test_a_stranger_is_told_to_begin_anew(bench: Bench) -> None:
    bench.hear(b"w", Beat(1))
    bench.hear(b"w", Credit(1, 5))
    assert bench.said == [(b"w", Welcome(1, 1000, 0, 0))] * 2
    assert bench.core.counts["unknown session"] == 2


def test_every_dispatch_has_a_token_of_its_own_and_an_old_one_counts_for_nothing(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3)
    (old,) = bench.work()
    bench.worker(session=2)
    (new,) = bench.work()
    assert new.token > old.token
    bench.nack(old, frame=1)
    assert bench.work() == []
    bench.nack(new, retryable=True)
    assert (bench.core.counts["stale NACK"], bench.core.counts["NACK"]) == (1, 1)


def test_a_silent_worker_loses_its_work_to_another(bench: Bench) -> None:
    bench.open()
    bench.worker(b"a", credit=1)
    bench.frames(0, 1, 2, 3)
    bench.take(Work)
    bench.worker(b"b", credit=1)
    bench.wait(2.5, alive=(b"b",))
    assert bench.work() == []
    bench.wait(1, alive=(b"b",))
    assert [(peer, work.first) for peer, work in bench.take(Work)] == [(b"b", 0)]


def test_a_worker_that_beats_without_progress_loses_its_work(bench: Bench) -> None:
    bench.open()
    bench.worker(b"a", credit=1)
    bench.frames(0, 1, 2, 3)
    (work,) = bench.work()
    bench.wait(89, alive=(b"a",), busy=work.token)
    assert b"a" in [peer.peer for peer in bench.core.peers.of("worker")]
    bench.wait(2, alive=(b"a",), busy=work.token)
    assert bench.core.counts["worker lost: no progress"] == 1


def test_a_worker_that_waits_for_the_sink_is_not_hung(bench: Bench) -> None:
    bench.open()
    bench.worker(credit=1)
    bench.frames(0, 1, 2, 3)
    bench.wait(200, alive=(b"w",), busy=-1)
    assert bench.core.peers.leases == 1


def test_an_unreachable_worker_loses_its_work_at_once(bench: Bench) -> None:
    bench.open()
    bench.worker(b"a", credit=1)
    bench.frames(0, 1, 2, 3)
    ((_, work),) = bench.take(Work)
    bench.worker(b"b", credit=1)
    bench.core.unreachable(b"a", work, bench.now)
    bench.wait(0.05)
    assert [(peer, again.first) for peer, again in bench.take(Work)] == [(b"b", 0)]


def test_an_ingest_of_which_frames_come_lives(bench: Bench) -> None:
    bench.ingest()
    bench.open()
    for number in range(8):
        bench.frames(number)
        bench.wait(2)
    assert bench.core.peers.get(b"ingest") is not None
    bench.wait(4)
    assert bench.core.peers.get(b"ingest") is None


def test_a_welcome_says_how_long_a_lease_is_and_how_often_the_broker_speaks() -> None:
    core = BrokerCore(1000, Times(beat=2.0, lease=8.0))
    assert core.receive(b"w", Hello(1, "worker", "w", 1), 100.0) == [(b"w", Welcome(1, 1000, 8000, 2000))]


def test_workers_hear_of_the_broker_so_often_that_they_know_that_it_lives(bench: Bench) -> None:
    bench.worker()
    bench.take(Welcome)
    heard = []
    for now in (100.0, 100.25, 100.5, 100.75, 101.0):
        said = bench.core.tick(now)
        heard += [now for peer, message in said if peer == b"w" and message == Welcome(1, 1000, 90_000, 500)]
    assert heard == [100.0, 100.5, 101.0]


def test_what_comes_back_goes_before_what_waits(bench: Bench) -> None:
    bench.open()
    bench.worker(credit=1)
    bench.frames(*range(8))
    assert [work.first for work in bench.work()] == [0]
    bench.worker(session=2, credit=1)
    assert [work.first for work in bench.work()] == [0]


def test_what_comes_back_and_lies_beyond_the_total_is_given_back(bench: Bench) -> None:
    bench.open()
    bench.worker()
    bench.frames(0, 1, 2, 3)
    bench.sink(RunClose, "run", [StreamTotal("eiger", 0)], "success", b"{}")
    assert bench.take(Free) == []
    bench.hear(b"w", Bye(1))
    assert [sorted(message.lives) for _, message in bench.take(Free)] == [[0, 1, 2, 3]]


def test_work_that_was_lost_on_the_way_is_sent_again(bench: Bench) -> None:
    bench.open()
    bench.worker(credit=1)
    bench.frames(0, 1, 2, 3)
    bench.take(Work)
    for _ in range(80):
        bench.now += 0.05
        bench.core.receive(b"w", Beat(1, -1, got=0), bench.now)
        bench.said += bench.core.tick(bench.now)
    assert (b"w", Welcome(1, 1000, 0, 0)) in bench.said
    bench.worker(session=2, credit=1)
    assert [work.first for work in bench.work()] == [0]


def test_a_nack_that_was_lost_is_seen_by_the_beats(bench: Bench) -> None:
    bench.open()
    bench.worker(credit=2)
    bench.frames(0, 1, 2, 3)
    bench.take(Work)
    for _ in range(30):
        bench.now += 0.05
        bench.core.receive(b"w", Beat(1, -1, got=1, held=[]), bench.now)
        bench.said += bench.core.tick(bench.now)
    assert [(work.first, work.isolate) for work in bench.work()] == [(0, False)]
    assert bench.core.counts["NACK lost on the way"] == 1


def test_a_worker_that_leaves_gives_its_work_back(bench: Bench) -> None:
    bench.open()
    bench.worker(b"a", credit=1)
    bench.frames(0, 1, 2, 3)
    bench.take(Work)
    bench.worker(b"b", credit=1)
    bench.hear(b"a", Bye(1))
    assert [(peer, work.isolate) for peer, work in bench.take(Work)] == [(b"b", False)]
