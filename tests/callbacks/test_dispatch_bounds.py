"""What is remembered of runs, and how long."""

from __future__ import annotations

from typing import Any

import pytest

from haltere.callbacks.dispatch_core import DispatchCore
from haltere.workers.wire.messages import Ack, Expect, RunOpen

from .dispatching import POSITIONS, greeted, of, told


def test_runs_beyond_the_bound_are_left_out_and_said_so(
    measured: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haltere.callbacks.dispatch_core.MAX_RUNS", 2)
    core = greeted(DispatchCore(1, [POSITIONS]))
    scans = [measured() for _ in range(3)]
    for scan in scans:
        for name, doc in scan.documents():
            core.document(name, doc)
    assert [each.run for each in of(RunOpen, told(core))] == [scan.uid for scan in scans[:2]]
    assert f"run {scans[2].uid} isn't reduced" in caplog.text


def test_what_is_remembered_of_runs_that_are_over_is_bounded(measured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("haltere.callbacks.dispatch_core.MAX_RUNS", 2)
    core = greeted(DispatchCore(1, [POSITIONS]))
    plain = list(measured(frames=2).documents())
    for number in range(12):
        uid = f"run-{number}"
        core.document("start", {**plain[0][1], "uid": uid})
        assert not core.is_acknowledged(uid)
        core.document("stop", {**plain[-1][1], "run_start": uid})
        assert not core.is_acknowledged(uid)
        told(core)
        assert core.is_acknowledged(uid)
    assert list(core._closed) == [f"run-{number}" for number in range(4, 12)]
    core.document("start", {**plain[0][1], "uid": "run-11"})
    assert not core.is_acknowledged("run-11"), "it is told anew"


def test_a_run_that_ends_takes_its_files_with_it_and_no_others(measured: Any) -> None:
    core = greeted(DispatchCore(1, [POSITIONS]))
    one, other = (list(measured().documents()) for _ in range(2))
    for name, doc in [*one[:-1], *other[:5], one[-1]]:
        core.document(name, doc)
    assert {run.uid for run, _ in core._files.values()} == {other[0][1]["uid"]}
    for name, doc in other[5:]:
        core.document(name, doc)
    assert core._files == {}
    assert max(each.stop for each in of(Expect, told(core)) if each.run == other[0][1]["uid"]) == 24


def test_a_warning_is_told_once_and_the_memory_of_that_is_bounded(
    measured: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haltere.callbacks.dispatch_core.MAX_WARNED", 3)
    core = greeted(DispatchCore(1))
    for _ in range(2):
        for word in "abc":
            core._warn("run", word)
    assert [record.message for record in caplog.records] == ["run run: a", "run run: b", "run run: c"]
    core._warn("run", "d")
    core._warn("run", "c")
    assert len(caplog.records) == 5
    core.heard(Ack(1, 0), 2000.0)
    assert core._warned == set(), "no run is left"
    scan = measured()
    core = greeted(DispatchCore(1, [POSITIONS]))
    core.document(*next(scan.documents()))
    core._warn("run", "e")
    told(core)
    assert core._warned == {("run", "e")}, "everything was told, but the run goes on"
