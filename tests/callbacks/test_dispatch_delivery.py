"""The sink comes and goes: it hears everything once, in order."""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from haltere.callbacks.dispatch_core import DispatchCore
from haltere.callbacks.dispatch_window import WINDOW
from haltere.workers.wire.messages import Ack, Expect, RunClose, RunOpen, StreamOpen, Welcome, decode

from .dispatching import POSITIONS, WELCOME, XRD, greeted, of, told


def test_nothing_is_said_before_the_sink_has_welcomed(measured: Any) -> None:
    core = DispatchCore(1, [POSITIONS])
    for name, doc in measured().documents():
        core.document(name, doc)
    assert core.impatient(1000.0)
    assert core.outgoing(1000.0) == []
    core.heard(WELCOME, 1000.1)
    assert isinstance(decode(core.outgoing(1000.1)[0]), RunOpen)


def test_what_is_not_acknowledged_is_said_again_in_order_with_its_serial(measured: Any) -> None:
    core = greeted(DispatchCore(1, [POSITIONS]))
    for name, doc in measured().documents():
        core.document(name, doc)
    first = core.outgoing(1000.0)
    assert core.outgoing(1000.5) == []
    core.heard(Ack(1, 2), 1000.5)
    assert not core.impatient(1001.4)
    assert core.impatient(1001.6)
    core.heard(WELCOME, 1001.7)
    assert core.outgoing(1001.7) == first[2:]


def test_a_sink_that_started_anew_is_greeted_once_and_told_again(measured: Any) -> None:
    core = greeted(DispatchCore(1, [POSITIONS]))
    for name, doc in measured().documents():
        core.document(name, doc)
    first = core.outgoing(1000.0)
    unknown = Welcome(1, 8, 0, 0)
    assert [core.heard(unknown, 1000.1) for _ in first] == [True, *[False] * (len(first) - 1)]
    assert core.outgoing(1000.1) == []
    core.heard(WELCOME, 1000.2)
    assert core.outgoing(1000.2) == first


def test_another_sessions_acknowledgement_says_nothing(measured: Any) -> None:
    scan = measured()
    core = greeted(DispatchCore(2, [POSITIONS]))
    for name, doc in scan.documents():
        core.document(name, doc)
    core.outgoing(1000.0)
    core.heard(Ack(1, 1000), 1000.0)
    assert not core.is_acknowledged(scan.uid)
    core.heard(Ack(2, 1000), 1000.0)
    assert core.is_acknowledged(scan.uid)


def test_a_sink_that_is_away_costs_no_memory_per_datum(measured: Any) -> None:
    core = greeted(DispatchCore(1, [POSITIONS]))
    for name, doc in measured(frames=2000, per_file=2000).documents(step=1):
        core.document(name, doc)
    messages = told(core)
    assert len(of(Expect, messages)) == 1


@given(st.lists(st.tuples(st.sampled_from(["", "messages lost", "sink dies"]), st.integers(0, 3)), max_size=60))
def test_a_sink_that_dies_at_any_time_hears_everything_once_and_in_order(faults: list[tuple[str, int]]) -> None:
    """The sink: takes serials without a gap, forgets what it hasn't committed when it dies."""
    core = greeted(DispatchCore(1, [POSITIONS]))
    datum = {"uid": "", "stream_resource": "r", "descriptor": "d"}
    key = {"source": "", "dtype": "number", "dtype_numpy": "<f8", "shape": [], "external": "STREAM:"}
    documents: list[tuple[str, dict[str, Any]]] = [
        ("start", {"uid": "run", "time": 0}),
        (
            "descriptor",
            {"uid": "d", "run_start": "run", "data_keys": {"pilc_x": key}, "object_keys": {"pilc": ["pilc_x"]}},
        ),
        (
            "stream_resource",
            {
                "uid": "r",
                "run_start": "run",
                "data_key": "pilc_x",
                "uri": "file://localhost/x.h5",
                "mimetype": "application/x-hdf5",
                "parameters": {"dataset": "/x"},
            },
        ),
        *(
            (
                "stream_datum",
                {**datum, "indices": {"start": n, "stop": n + 1}, "seq_nums": {"start": n + 1, "stop": n + 2}},
            )
            for n in range(30)
        ),
        ("stop", {"uid": "s", "run_start": "run", "time": 1, "exit_status": "success"}),
    ]
    taken: list[bytes] = []
    committed = 0
    now = 1000.0
    for fault, n in [*faults, *[("", 3)] * 60]:
        now += 0.3
        for name, doc in documents[:n]:
            core.document(name, doc)
        documents = documents[n:]
        greet = core.impatient(now)
        data = core.outgoing(now)
        for each in [] if fault == "messages lost" else data:
            serial: int = decode(each).serial  # type: ignore[union-attr]
            if serial == len(taken) + 1:
                taken.append(each)
        if fault == "sink dies":
            taken = taken[:committed]
            greet |= core.heard(Welcome(1, int(now), 0, 0), now)
        else:
            committed = len(taken)
            core.heard(Ack(1, committed), now)
        if greet:
            core.heard(Welcome(1, int(now), 5000, 500), now)
        if core.idle and not documents:
            break
    assert core.is_acknowledged("run")
    messages = [decode(each) for each in taken]
    assert [type(each) for each in messages[:2]] == [RunOpen, StreamOpen]
    assert isinstance(messages[-1], RunClose)
    promised = [(each.first, each.stop) for each in messages if isinstance(each, Expect)]
    assert promised[0][0] == 0
    assert promised[-1][1] == 30
    assert all(a[1] == b[0] for a, b in pairwise(promised))


def test_it_is_idle_while_there_is_nothing_to_tell_and_silence_is_no_reason_to_greet_anew_then(measured: Any) -> None:
    core = greeted(DispatchCore(1, [POSITIONS]))
    *documents, (_, stop) = measured().documents()
    assert core.idle is True
    core.document(*documents[0])
    assert core.idle is False
    told(core)
    assert core.idle is True
    for name, doc in documents[1:]:
        core.document(name, doc)
    assert core.idle is False
    told(core)
    assert core.idle is True, "what is to come of the run isn't known"
    assert core.outgoing(5000.0) == []
    core.document("stop", stop)
    assert core.idle is False
    (closed,) = core.outgoing(5000.5)
    assert not core.impatient(5001.4)
    assert core.impatient(5001.6)
    core.heard(Ack(1, decode(closed).serial), 5001.7)
    assert core.idle is True


def test_no_more_than_a_window_is_on_its_way() -> None:
    core = greeted(DispatchCore(1, [POSITIONS]))
    logging.disable(logging.ERROR)
    for number in range(100):
        core.document("start", {"uid": f"run-{number}", "time": 0})
    logging.disable(logging.NOTSET)
    assert len(core.outgoing(1000.0)) == WINDOW
    assert core.outgoing(1000.1) == []


def test_what_the_sink_is_still_to_be_told_can_be_asked_for(measured: Any) -> None:
    scan = measured()
    core = greeted(DispatchCore(1, [XRD, POSITIONS]))
    assert core.streams(scan.uid) == []
    for name, doc in scan.documents():
        core.document(name, doc)
    assert [each.stream for each in core.streams(scan.uid)] == ["eiger", "pilc"]
    told(core)
    assert core.streams(scan.uid) == []
