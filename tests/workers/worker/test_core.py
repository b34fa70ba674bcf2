"""The worker's credit, what it keeps, and what it does when its reducer dies."""
# ruff: noqa: D102 - the bench speaks for itself

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from haltere.workers.wire.messages import (
    Beat,
    Bye,
    Credit,
    Done,
    Hello,
    InputSpec,
    Message,
    Nack,
    RecipeSpec,
    Result,
    StreamOpen,
    Welcome,
    Work,
)
from haltere.workers.worker.core import (
    ABANDON,
    BEAT_EVERY,
    HELLO_EVERY,
    MAX_KEPT,
    MAX_KEPT_BYTES,
    PREFETCH,
    ToBroker,
    ToSink,
    WorkerCore,
)
from haltere.workers.worker.unit import MAX_RESEND, RESEND, Stage, Unit

STREAM = StreamOpen(1, "run", "eiger", "cfg", 4, [InputSpec("image", (1,), "<u2")], [RecipeSpec("r", "x", b"{}")])


class Bench:
    """A worker that was welcomed, and what it has said since it was last asked."""

    def __init__(self) -> None:
        self.now = 10.0
        self.core = WorkerCore("w", 1, self.now)
        self.said: list[Any] = []
        self.token = 0

    def do(self, actions: Any) -> None:
        self.said += actions

    def to_broker(self) -> list[Message]:
        found = [each.message for each in self.said if isinstance(each, ToBroker)]
        self.said = [each for each in self.said if not isinstance(each, ToBroker)]
        return found

    def to_sink(self) -> list[ToSink]:
        found = [each for each in self.said if isinstance(each, ToSink)]
        self.said = [each for each in self.said if not isinstance(each, ToSink)]
        return found

    def results(self) -> list[int]:
        return [each.message.first for each in self.to_sink() if isinstance(each.message, Result)]

    def welcome(self, epoch: int = 7, lease_ms: int = 5000) -> None:
        self.do(self.core.from_broker(Welcome(1, epoch, lease_ms, 500), self.now))

    def work(self, first: int) -> Work:
        self.token += 1
        work = Work("run", "eiger", "cfg", first, 4, self.token, [], [], [])
        self.do(self.core.from_broker(work, self.now))
        return work

    def reduce(self, payload: bytes = b"12345678") -> Work:
        work = self.core.take()
        assert work is not None
        result = Result("run", "eiger", "cfg", work.first, 4, work.token, "w", bytes(4), [], [])
        self.do(self.core.reduced(result, payload, 1000, self.now))
        return work

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.05)):
            self.now += 0.05
            self.do(self.core.tick(self.now))


@pytest.fixture
def bench() -> Bench:
    return greeted()


def greeted() -> Bench:
    """Return a worker that everybody knows, with a stream."""
    bench = Bench()
    bench.do(bench.core.start(bench.now))
    bench.welcome()
    bench.core.willing = True
    bench.core.from_broker(STREAM, bench.now)
    bench.do(bench.core.tick(bench.now))
    return bench


def test_it_says_hello_to_both_and_asks_for_two_units(bench: Bench) -> None:
    assert bench.to_broker() == [Hello(1, "worker", "w", 1), Credit(1, 2)]
    assert [each.message for each in bench.to_sink()] == [Hello(1, "worker", "w", 1)]


def test_it_asks_for_nothing_before_its_reducer_is_there() -> None:
    bench = Bench()
    bench.do(bench.core.start(bench.now))
    bench.welcome()
    bench.wait(0.6)
    assert bench.to_broker() == [Hello(1, "worker", "w", 1), Beat(1, -1, 0, 0, 0, [])]


def test_each_unit_that_is_done_makes_room_for_one_more(bench: Bench) -> None:
    bench.work(0)
    bench.work(4)
    bench.to_broker()
    bench.reduce()
    assert bench.to_broker() == [Credit(1, 3)]
    bench.core.take()
    bench.do(bench.core.failed(Nack("run", "eiger", 4, 4, 2, -1, "late", True)))
    assert bench.to_broker() == [Nack("run", "eiger", 4, 4, 2, -1, "late", True), Credit(1, 4)]


def test_credit_is_said_again_with_the_beat_because_it_may_have_been_lost(bench: Bench) -> None:
    bench.to_broker()
    bench.wait(0.5)
    assert bench.to_broker() == [Beat(1, -1, 0, 0, 0, []), Credit(1, 2)]


def test_a_beat_says_what_is_executed_and_what_is_held(bench: Bench) -> None:
    bench.work(0)
    bench.work(4)
    bench.reduce()
    bench.core.take()
    bench.to_broker()
    bench.wait(0.5)
    assert bench.to_broker()[0] == Beat(1, 2, 2, 4, 1000, [2, 1])


def test_a_result_is_sent_again_until_the_sink_says_that_it_is_on_disk(bench: Bench) -> None:
    bench.work(0)
    bench.reduce()
    assert bench.results() == [0]
    bench.wait(0.9)
    assert bench.results() == []
    bench.wait(0.2)
    assert bench.results() == [0]
    bench.do(bench.core.from_sink(Done("run", "eiger", "cfg", [(0, 2**39)]), bench.now))
    bench.wait(20)
    assert bench.results() == []
    assert bench.core.kept == 0


def test_a_result_that_the_sink_refuses_is_let_go_and_the_broker_is_told(bench: Bench) -> None:
    bench.work(0)
    bench.reduce()
    bench.to_broker()
    refusal = Nack("run", "eiger", 0, 4, 1, -1, "the sink refused the result: no such array", False)
    bench.do(bench.core.from_sink(refusal, bench.now))
    assert bench.to_broker() == [refusal]
    assert bench.core.kept == 0
    assert bench.core.counts["results that the sink refused"] == 1
    bench.do(bench.core.from_sink(refusal, bench.now))
    assert bench.to_broker() == [], "said again, because the result had been sent again meanwhile"


def test_a_refusal_of_a_result_that_was_made_anew_meanwhile_is_void(bench: Bench) -> None:
    for _ in range(2):
        bench.work(0)
        bench.reduce()
    bench.to_broker()
    bench.do(bench.core.from_sink(Nack("run", "eiger", 0, 4, 1, -1, "no", False), bench.now))
    assert bench.core.kept == 1
    assert bench.to_broker() == []


def test_it_is_sent_again_less_and_less_often(bench: Bench) -> None:
    bench.work(0)
    bench.reduce()
    bench.to_sink()
    bench.wait(31)
    assert len(bench.results()) == 5  # after 1, 2, 4, 8, 8 s


def test_done_of_another_recipe_is_not_taken_for_its_own(bench: Bench) -> None:
    bench.work(0)
    bench.reduce()
    bench.do(bench.core.from_sink(Done("run", "eiger", "other", [(0, 4)]), bench.now))
    assert bench.core.kept == 1


def test_it_takes_no_more_work_while_the_sink_confirms_nothing(bench: Bench) -> None:
    for number in range(MAX_KEPT):
        bench.work(4 * number)
        bench.reduce()
    bench.to_broker()
    bench.wait(0.4)
    assert [each for each in bench.to_broker() if isinstance(each, Credit) and each.limit > MAX_KEPT + 1] == []
    bench.do(bench.core.from_sink(Done("run", "eiger", "cfg", [(0, 8)]), bench.now))
    assert bench.to_broker() == [Credit(1, MAX_KEPT + 2)]


def test_what_it_was_sent_without_credit_waits_until_there_is_room_for_its_result(bench: Bench) -> None:
    room = MAX_KEPT + PREFETCH
    for number in range(room + 1):
        bench.work(4 * number)
    for number in range(room - 1):
        assert bench.reduce().first == 4 * number
    last = bench.core.take()
    assert last is not None
    assert last.first == 4 * (room - 1)
    assert bench.core.take() is None, "what is in work takes room as well"
    bench.do(bench.core.from_sink(Done("run", "eiger", "cfg", [(0, 4)]), bench.now))
    assert bench.reduce().first == 4 * room


def test_it_takes_no_more_work_when_results_are_large(bench: Bench) -> None:
    bench.work(0)
    bench.to_broker()
    bench.reduce(bytes(MAX_KEPT_BYTES))
    assert bench.to_broker() == []


def test_a_result_that_no_sink_wants_is_let_go_and_counted(bench: Bench) -> None:
    bench.work(0)
    bench.reduce()
    bench.wait(610)
    assert bench.core.kept == 0
    assert bench.core.counts["results that no sink wanted"] == 1


def test_a_broker_that_does_not_know_it_is_greeted_with_a_new_session(bench: Bench) -> None:
    bench.work(0)
    bench.core.take()
    bench.work(4)
    bench.to_broker()
    bench.welcome(lease_ms=0)
    assert bench.to_broker() == [Hello(1, "worker", "w", 2)]
    bench.welcome(epoch=8)
    assert bench.to_broker() == [Credit(2, 2)]
    assert bench.core.take() is None, "what had not begun was taken back"
    assert bench.core.in_hand == 1, "what had begun goes on"


def test_a_broker_that_started_anew_is_greeted_anew(bench: Bench) -> None:
    bench.to_broker()
    bench.welcome(epoch=8)
    assert bench.to_broker() == [Hello(1, "worker", "w", 2)]


def test_a_sign_of_life_from_the_broker_changes_nothing(bench: Bench) -> None:
    bench.to_broker()
    bench.welcome()
    assert bench.to_broker() == []


def test_a_hello_that_nobody_heard_is_said_again(bench: Bench) -> None:
    bench.welcome(lease_ms=0)
    bench.to_broker()
    bench.wait(1.1)
    assert bench.to_broker() == [Hello(1, "worker", "w", 2)]


def test_a_hello_that_could_not_be_sent_is_said_again_at_once(bench: Bench) -> None:
    bench.welcome(lease_ms=0)
    bench.to_broker()
    bench.core.unsent(ToBroker(Hello(1, "worker", "w", 2)))
    bench.wait(0.05)
    assert bench.to_broker() == [Hello(1, "worker", "w", 2)]


def test_work_of_a_stream_that_it_never_heard_of_begins_a_new_session(bench: Bench) -> None:
    bench.to_broker()
    bench.do(bench.core.from_broker(Work("run", "other", "cfg", 0, 4, 9, [], [], []), bench.now))
    assert bench.to_broker() == [Hello(1, "worker", "w", 2)]
    assert bench.core.counts == {"work of an unknown stream": 1, "sessions": 1}


def test_when_the_reducer_dies_only_what_it_was_at_is_refused(bench: Bench) -> None:
    bench.work(0)
    bench.work(4)
    bench.work(8)
    for _ in range(3):
        bench.core.take()
    bench.to_broker()
    bench.do(bench.core.died("worker died, killed by SIGSEGV", 2))
    assert bench.to_broker() == [
        Nack("run", "eiger", 0, 4, 1, 2, "worker died, killed by SIGSEGV", False),
        Credit(1, 3),
    ]
    assert bench.core.counts == {"reducer died": 1, "NACK": 1}
    assert bench.core.in_hand == 0
    assert [work.first for work in (bench.core.take(), bench.core.take()) if work is not None] == [4, 8]


def test_of_long_last_words_the_broker_is_told_the_first(bench: Bench) -> None:
    bench.work(0)
    bench.core.take()
    bench.to_broker()
    bench.do(bench.core.died(501 * "x", -1, setup=True))
    assert bench.to_broker()[0] == Nack("run", "eiger", 0, 4, 1, -1, 500 * "x", False, setup=True)


def test_a_reducer_that_dies_with_nothing_in_hand_costs_nothing(bench: Bench) -> None:
    bench.to_broker()
    bench.do(bench.core.died("worker died, exit code 1", -1))
    assert bench.to_broker() == []


def test_when_it_leaves_it_gives_back_what_has_not_begun(bench: Bench) -> None:
    bench.work(0)
    bench.to_broker()
    bench.do(bench.core.leave())
    assert bench.to_broker() == [Bye(1)]
    assert bench.core.take() is None


def test_answers_to_what_was_not_asked_are_counted_and_change_nothing(bench: Bench) -> None:
    bench.to_broker()
    bench.to_sink()
    result = Result("run", "eiger", "cfg", 0, 4, 99, "w", bytes(4), [], [])
    assert bench.core.reduced(result, b"12345678", 1000, bench.now) == []
    assert bench.core.failed(Nack("run", "eiger", 0, 4, 99, -1, "late", True)) == []
    assert bench.core.counts == {"answers to no question": 2, "NACK": 1}
    assert (bench.core.frames, bench.core.reduce_us) == (0, 0)


def test_what_no_broker_says_is_counted(bench: Bench) -> None:
    assert bench.core.from_broker(Bye(1), bench.now) == []
    assert bench.core.counts["unexpected"] == 1


def test_streams_beyond_the_bound_push_out_the_one_that_was_told_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haltere.workers.worker.core.MAX_STREAMS", 2)
    for name in ("a", "eiger", "b"):
        bench.core.from_broker(msgspec.structs.replace(STREAM, stream=name), bench.now)
    assert [stream for _, stream, _ in bench.core.streams] == ["eiger", "b"]


def test_the_sink_is_greeted_until_it_says_that_it_knows_the_worker(bench: Bench) -> None:
    def hellos() -> int:
        return sum(isinstance(each.message, Hello) for each in bench.to_sink())

    assert hellos() == 1
    bench.wait(1.1)
    assert hellos() == 1
    assert bench.core.from_sink(Welcome(1, 3, 1, 500), bench.now) == []
    bench.wait(3)
    assert hellos() == 0
    bench.core.from_sink(Welcome(1, 4, 0, 500), bench.now)
    bench.wait(0.1)
    assert hellos() == 1
    bench.core.unsent(ToSink(Hello(1, "worker", "w", 1)))
    bench.wait(0.1)
    assert hellos() == 1, "as soon as there is somebody to hear it"
    assert bench.core.counts == {"unsent": 1}


def test_a_result_that_could_not_be_sent_is_soon_sent_again_however_often_it_was_before(bench: Bench) -> None:
    bench.work(0)
    bench.reduce()
    bench.wait(16)  # it would be sent every 8 s by now
    (sent, *_) = [each for each in bench.to_sink() if isinstance(each.message, Result)]
    bench.core.unsent(sent)
    bench.wait(MAX_RESEND)
    assert len(bench.results()) >= 3
    gone = msgspec.structs.replace(sent.message, first=400)
    bench.core.unsent(ToSink(gone))
    assert bench.core.counts["unsent"] == 2


def test_it_is_idle_when_the_sink_has_everything(bench: Bench) -> None:
    assert bench.core.idle is True
    assert bench.core.running is None
    work = bench.work(0)
    assert bench.core.take() == work
    assert bench.core.running == work
    assert bench.core.idle is False
    result = Result("run", "eiger", "cfg", 0, 4, work.token, "w", bytes(4), [], [])
    bench.do(bench.core.reduced(result, b"", 1000, bench.now))
    assert bench.core.running is None
    assert bench.core.idle is False
    bench.do(bench.core.from_sink(Done("run", "eiger", "cfg", [(0, 4)]), bench.now))
    assert bench.core.idle is True


def test_only_what_is_in_the_range_is_done(bench: Bench) -> None:
    for first in (0, 4, 8):
        bench.work(first)
        bench.reduce()
    bench.do(bench.core.from_sink(Done("run", "eiger", "cfg", [(4, 8)]), bench.now))
    bench.to_sink()
    bench.wait(1.1)
    assert bench.results() == [0, 8]


def test_what_results_may_weigh_is_counted_by_those_that_are_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haltere.workers.worker.core.MAX_KEPT_BYTES", 17)
    for limit, first in ((3, 0), (4, 0), (5, 4)):  # the second in place of the first: 8 bytes each, 16 in all
        bench.work(first)
        bench.to_broker()
        bench.reduce()
        assert bench.to_broker() == [Credit(1, limit)]
    bench.work(8)
    bench.reduce(b"1")
    assert bench.to_broker() == []
    bench.do(bench.core.from_sink(Done("run", "eiger", "cfg", [(8, 12)]), bench.now))
    assert bench.to_broker() == [Credit(1, 6)]


def test_where_a_unit_ends_depends_on_who_let_it_go(bench: Bench) -> None:
    units: list[Unit] = []
    for first in (0, 0, 4, 8, 12, 16, 20):
        bench.work(first)
        units.append(bench.core._waiting[-1])
        if first < 16:
            bench.core.take()
        if first < 12:
            token = units[-1].work.token
            result = Result("run", "eiger", "cfg", first, 4, token, "w", bytes(4), [], [])
            bench.do(bench.core.reduced(result, b"", 1000, bench.now))
    bench.do(bench.core.from_sink(Done("run", "eiger", "cfg", [(0, 4)]), bench.now))
    bench.do(bench.core.from_sink(Nack("run", "eiger", 4, 4, units[2].work.token, -1, "no", False), bench.now))
    bench.do(bench.core.failed(Nack("run", "eiger", 12, 4, units[4].work.token, -1, "late", True)))
    bench.core.take()
    bench.do(bench.core.leave())
    bench.wait(ABANDON + 1)
    stages = [Stage.DROPPED, Stage.DONE, Stage.REFUSED, Stage.DROPPED, Stage.REFUSED, Stage.RUNNING, Stage.DROPPED]
    assert [unit.stage for unit in units] == stages


def test_who_leaves_asks_for_nothing_more(bench: Bench) -> None:
    bench.work(0)
    bench.core.take()
    bench.do(bench.core.leave())
    bench.to_broker()
    bench.do(bench.core.failed(Nack("run", "eiger", 0, 4, 1, -1, "late", True)))
    assert bench.to_broker() == [Nack("run", "eiger", 0, 4, 1, -1, "late", True)]


def test_a_broker_may_count_its_epochs_from_zero() -> None:
    bench = Bench()
    bench.do(bench.core.start(bench.now))
    bench.welcome(epoch=0)
    bench.core.willing = True
    bench.welcome(epoch=0)
    assert bench.to_broker() == [Hello(1, "worker", "w", 1)], "a sign of life changes nothing"
    bench.wait(1.1)
    assert [type(message) for message in bench.to_broker()] == [Credit, Beat, Credit, Beat, Credit]
    bench.welcome(epoch=1)
    assert bench.to_broker() == [Hello(1, "worker", "w", 2)]


def test_of_a_former_sessions_unit_that_fails_the_broker_hears_nothing(bench: Bench) -> None:
    bench.work(0)
    bench.core.take()
    bench.welcome(lease_ms=0)
    bench.welcome()
    bench.to_broker()
    bench.do(bench.core.failed(Nack("run", "eiger", 0, 4, 1, -1, "late", True)))
    assert bench.to_broker() == []
    assert bench.core.in_hand == 0


def test_what_is_due_is_said_at_its_very_time() -> None:
    bench = Bench()  # at 10 s, and every time here is a binary fraction
    bench.do(bench.core.start(10.0))
    assert bench.core.tick(10.0 + HELLO_EVERY / 2) == []
    bench.said.clear()
    bench.do(bench.core.tick(10.0 + HELLO_EVERY))
    hello = Hello(1, "worker", "w", 1)
    assert bench.said == [ToBroker(hello), ToSink(hello)]
    bench.now = 11.0
    bench.welcome()
    bench.core.from_sink(Welcome(1, 3, 5000, 500), 11.0)
    beat = ToBroker(Beat(1, -1, 0, 0, 0, []))
    assert bench.core.tick(11.0) == [beat]
    assert bench.core.tick(11.0 + BEAT_EVERY / 2) == []
    assert bench.core.tick(11.0 + BEAT_EVERY) == [beat]


def test_a_result_is_sent_again_at_its_very_time_and_let_go_after_the_last(bench: Bench) -> None:
    bench.work(0)
    bench.now = 100.0
    bench.reduce()
    (sent,) = [each for each in bench.to_sink() if isinstance(each.message, Result)]

    def again(now: float) -> bool:
        return sent in bench.core.tick(now)

    assert not again(100.0 + RESEND / 2)
    assert again(100.0 + RESEND)
    assert not again(100.0 + 2 * RESEND)
    assert again(100.0 + 3 * RESEND)
    assert bench.core.counts["resent"] == 2
    assert again(100.0 + ABANDON)
    assert not again(100.5 + ABANDON)
    assert bench.core.counts["results that no sink wanted"] == 1
