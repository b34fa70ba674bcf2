"""Every move of every table is made: most of them by the simulation, the rare ones here, by the cores themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from haltere.callbacks.processed_cursor import CURSOR, Cursor
from haltere.workers.broker.batch import BATCH
from haltere.workers.frame_life import FRAME
from haltere.workers.processes.watch import PROCESS, Life
from haltere.workers.sink.books import RUN
from haltere.workers.states import StateTable
from haltere.workers.wire.messages import Expect, FileSpan, InputSpec, Nack, RunOpen
from haltere.workers.worker.unit import UNIT

from ..callbacks import test_processed_documents as processed
from ..simulation.world import simulate
from .broker import bench as broker
from .broker import test_lost as lost
from .broker import test_quarantine as quarantine
from .flying import RUN as RUN_UID
from .flying import control, results, run_close
from .processes import test_watch as watch
from .sink import bench as sink
from .sink import test_completion as completion
from .worker import test_core as worker

TABLES: list[StateTable[Any, Any]] = [BATCH, CURSOR, FRAME, PROCESS, RUN, UNIT]
SEEDS = 20
LIVING = (Life.STARTING, Life.RUNNING, Life.SILENT)


def live(*numbers: int, workers: int = 0, **options: Any) -> broker.Bench:
    """Return a broker with a stream of which these frames are in the ring."""
    bench = broker.Bench()
    bench.open(**options)
    for _ in range(workers):
        bench.worker()
    bench.frames(*numbers)
    return bench


def a_run_ends_before_a_batch_that_is_queued() -> None:
    bench = live(4, 5, 6, 7)
    bench.close(4)
    assert bench.core.runs.streams[0].surplus == 4


def a_run_is_forgotten_with_batches_in_every_state() -> None:
    for bench in (live(0), live(0, 1, 2, 3), live(0, 1, 2, 3, workers=1)):
        bench.sink(RunOpen, "run", "another", b"{}")
        assert bench.core.runs.streams == []


def a_run_ends_before_a_batch_that_waits_for_frames() -> None:
    bench = live(4)
    bench.close(4)
    assert bench.core.runs.streams[0].surplus == 1


def a_batch_is_done_that_no_worker_has() -> None:
    for bench in (live(0), live(0, 1, 2, 3)):
        bench.done([(0, 4)])
        assert bench.core.runs.streams[0].batches == {}


def a_frame_comes_while_its_file_is_late() -> None:
    bench = live(0, 1, 2, 4, workers=1)
    bench.expect(0, 8)
    bench.wait(1, alive=(b"w",))
    (work,) = bench.work()
    bench.hear(b"w", Nack(work.run, work.stream, work.first, work.n, work.token, -1, "not there yet", True, [3]))
    bench.frames(3)
    bench.wait(1, alive=(b"w",))
    (work,) = bench.work()
    assert [block.frame for block in work.ring[0].blocks] == [0, 1, 2, 3]


def a_frame_of_a_file_kills_two_workers() -> None:
    bench = live(workers=1, live=False)
    bench.expect(0, 4)
    bench.wait(0.2, alive=(b"w",))
    for frame in (-1, 2, 2):
        (work,) = bench.work()
        bench.nack(work, frame=frame)
    (work,) = bench.work()
    assert [each.frame for each in work.absent] == [2]


def a_frame_comes_after_all() -> None:
    bench = live(0, 1, 3)
    bench.expect(0, 2)
    bench.expect(3, 4)
    bench.close(4)
    bench.wait(1)
    bench.frames(2)
    bench.worker()
    (work,) = bench.work()
    assert [block.frame for block in work.ring[0].blocks] == [0, 1, 2, 3]


def a_frame_that_came_lacks_what_was_to_come_beside_it() -> None:
    bench = live(0, 1, 2, 3, workers=1, inputs=(broker.IMAGE, InputSpec("x", (), "<f8")))
    bench.expect(0, 4)
    bench.close(4)
    bench.wait(1, alive=(b"w",))
    (work,) = bench.work()
    assert work.absent[0].reason == "it came live, and no file was announced that has x"


def no_worker_comes_as_far_as_a_frame_of_a_file() -> None:
    bench = live(workers=1, live=False)
    bench.expect(0, 4)
    bench.wait(0.2, alive=(b"w",))
    for _ in range(5):
        (work,) = bench.work()
        quarantine.setup_died(bench, work)
    (work,) = bench.work()
    assert len(work.absent) == 4


def no_message_can_name_what_lies_beside_frames_that_came() -> None:
    keys = [f"k{number}" for number in range(200)]
    bench = live(0, 1, 2, 3, workers=1, inputs=(broker.IMAGE, *(InputSpec(key, (), "<f8") for key in keys)))
    for frame in range(4):
        for some in (keys[:100], keys[100:]):
            where = [FileSpan(key, f"file:///{'a/' * 200}{frame}", key, frame, 1, frame) for key in some]
            bench.sink(Expect, "run", "eiger", frame, frame + 1, where)
    bench.wait(0.2, alive=(b"w",))
    (work,) = bench.work()
    assert len(work.absent) == 4


def a_run_is_closed_again(path: Path) -> None:
    bench = sink.Bench(path)
    bench.open(until=len(control()) - 1)
    number = len(control())
    for message, payload in results()[:-1]:
        bench.tell(sink.WORKER, message, payload)
    for _ in range(2):
        bench.tell(sink.DISPATCHER, run_close(number))
        number += 1
        bench.commit()
    assert bench.finished == []
    bench.tell(sink.DISPATCHER, run_close(number, 7))
    bench.commit()
    bench.tell(sink.WORKER, *results()[-1])
    bench.commit()
    bench.tell(sink.DISPATCHER, run_close(number + 1, 6))
    bench.commit()
    assert bench.finished == [RUN_UID]
    bench.core.completed(RUN_UID, 1.0)
    bench.tell(sink.DISPATCHER, run_close(number + 2, 5))
    bench.commit()


def a_run_ends_before_a_batch_that_waits() -> None:
    for held_back in ("by its promise", "by its positions", "by nothing"):
        cursor = Cursor()
        cursor.open(processed.EIGER)
        cursor.open(processed.PILC)
        if held_back == "by its positions":
            list(cursor.promise("eiger", 4))
        if held_back == "by nothing":
            list(cursor.close({"eiger": 0, "pilc": 0}))
        assert list(cursor.batch(processed.row(processed.EIGER, 0), [])) == []
        assert list(cursor.close({"eiger": 0, "pilc": 0})) == []
        assert list(cursor.complete({"eiger": 0, "pilc": 0})) == []


def a_batch_is_promised_before_its_positions_are_there() -> None:
    cursor = Cursor()
    cursor.open(processed.EIGER)
    assert list(cursor.batch(processed.row(processed.EIGER, 0), [])) == []
    assert len(list(cursor.promise("eiger", 4))) == 1
    cursor = Cursor()
    cursor.open(processed.PILC)
    cursor.open(processed.EIGER)
    assert list(cursor.batch(processed.row(processed.EIGER, 0), [])) == []
    assert list(cursor.promise("eiger", 4)) == []
    assert len(list(cursor.complete({"eiger": 4, "pilc": 0}))) == 1


RARE: list[Callable[[], None]] = [
    a_run_ends_before_a_batch_that_is_queued,
    a_run_is_forgotten_with_batches_in_every_state,
    a_run_ends_before_a_batch_that_waits_for_frames,
    a_batch_is_done_that_no_worker_has,
    a_batch_is_promised_before_its_positions_are_there,
    a_frame_comes_while_its_file_is_late,
    a_frame_of_a_file_kills_two_workers,
    a_frame_comes_after_all,
    a_frame_that_came_lacks_what_was_to_come_beside_it,
    no_worker_comes_as_far_as_a_frame_of_a_file,
    no_message_can_name_what_lies_beside_frames_that_came,
    a_run_ends_before_a_batch_that_waits,
    lambda: lost.test_a_frame_that_is_nowhere_is_lost_with_the_evidence(broker.Bench()),
    lambda: quarantine.test_a_frame_that_came_damaged_and_that_no_file_has_is_quarantined_and_not_lost(broker.Bench()),
    lambda: quarantine.test_a_frame_is_quarantined_when_it_alone_has_killed_two_workers(broker.Bench()),
    lambda: quarantine.test_recipes_that_no_worker_can_set_up_are_not_tried_for_a_while(broker.Bench()),
    lambda: quarantine.test_a_batch_whose_files_no_message_can_name_is_quarantined_and_said_so(broker.Bench()),
    lambda: worker.test_a_result_that_the_sink_refuses_is_let_go_and_the_broker_is_told(worker.greeted()),
    lambda: worker.test_a_result_that_no_sink_wants_is_let_go_and_counted(worker.greeted()),
    lambda: worker.test_a_refusal_of_a_result_that_was_made_anew_meanwhile_is_void(worker.greeted()),
    lambda: worker.test_when_the_reducer_dies_only_what_it_was_at_is_refused(worker.greeted()),
    lambda: worker.test_when_it_leaves_it_gives_back_what_has_not_begun(worker.greeted()),
    watch.test_one_that_dies_is_started_again_sooner_the_longer_it_lived,
    watch.test_one_that_was_never_ready_is_not_tried_again,
    watch.test_one_that_dies_in_a_storm_is_given_up_and_tried_each_minute_and_trusted_after_another,
    *(lambda last=last: watch.test_it_is_a_storm_wherever_the_last_death_comes(last) for last in LIVING),
    watch.test_one_that_stops_beating_is_silent_and_then_killed,
    *(lambda state=state: watch.test_it_may_be_told_to_end_at_any_time(state) for state in Life),
]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Play some seeds of the simulation, and what is rare."""
    for seed in range(SEEDS):
        simulate(seed)
    for play in RARE:
        play()
    a_run_is_closed_again(tmp_path_factory.mktemp("sink") / "ledger.db")
    restored = sink.Bench(tmp_path_factory.mktemp("sink") / "ledger.db")
    completion.test_completed_runs_are_not_replayed_and_their_late_results_still_answered(restored)


@pytest.mark.usefixtures("played")
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_move_is_made_and_none_that_is_not_there(table: StateTable[Any, Any]) -> None:
    assert [(move.before, move.event) for move in table.moves if not table.taken[move.before, move.event]] == []
    assert table.illegal == 0
