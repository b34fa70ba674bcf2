"""The PiLC: when it triggers, what it captures, what its Tango class says."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tango
from numpy.typing import NDArray

from haltere.devices.sim.encoder import SIGMA, noise
from haltere.devices.sim.motion import Axis
from haltere.devices.sim.pilc_card import Capture, TriggerCard
from haltere.devices.sim.stage import SimulatedStage
from haltere.devices.sim.triggers import Mode, TriggerSequence, TriggerSettings
from haltere.workers.errors import DetectorError, FileError

MOVING, ON, FAULT = tango.DevState.MOVING, tango.DevState.ON, tango.DevState.FAULT

LINE = TriggerSettings(
    mode=Mode.POSITION,
    count=11,
    axis=0,
    position_start=0.0,
    position_step=1.0,
    time_start=0.0,
    time_step=0.01,
    pulse=0.005,
)


def axes() -> list[Axis]:
    return [Axis(position=-5.0, velocity=100.0, acceleration=1e4), Axis(position=3.0)]


# --- the sequence, without a clock ------------------------------------------------------------------------------------


def test_position_triggers_fall_where_they_were_set() -> None:
    x, y = axes()
    sequence = TriggerSequence(LINE, [x, y], armed=0.0)
    x.move(15.0, at=10.0)
    triggers = sequence.advance(x.arrival)
    assert [trigger.positions[0] for trigger in triggers] == [float(k) for k in range(11)]
    assert {trigger.positions[1] for trigger in triggers} == {3.0}
    for trigger in triggers:
        assert x.position(trigger.at) == pytest.approx(trigger.positions[0], abs=1e-9)
    assert sequence.complete


def test_times_since_the_first_trigger_do_not_depend_on_the_clock() -> None:
    flights = []
    for began in (1.0, 123456.789):
        x, y = axes()
        sequence = TriggerSequence(LINE, [x, y], armed=began)
        x.move(15.0, at=began)
        flights.append([trigger.since for trigger in sequence.advance(x.arrival)])
    assert flights[0] == flights[1]
    assert flights[0][-1] == pytest.approx(0.1)


def test_each_trigger_is_given_once_however_late_one_looks() -> None:
    x, y = axes()
    sequence = TriggerSequence(LINE, [x, y], armed=0.0)
    x.move(15.0, at=0.0)
    numbers = [trigger.number for step in range(40) for trigger in sequence.advance(step * 0.007)]
    assert numbers == list(range(11))


def test_a_negative_step_triggers_on_the_way_down_only() -> None:
    x, y = axes()
    sequence = TriggerSequence(replace(LINE, position_start=10.0, position_step=-1.0), [x, y], armed=0.0)
    x.move(15.0, at=0.0)
    assert sequence.advance(x.arrival) == []
    x.move(-5.0, at=x.arrival)
    assert [trigger.positions[0] for trigger in sequence.advance(x.arrival)] == [float(k) for k in range(10, -1, -1)]


def test_a_stopped_axis_goes_on_triggering_when_it_moves_again() -> None:
    x, y = axes()
    sequence = TriggerSequence(LINE, [x, y], armed=0.0)
    x.move(15.0, at=0.0)
    halfway = x.crossing(4.5)
    assert halfway is not None
    before = sequence.advance(halfway)
    x.stop(halfway)
    before += sequence.advance(x.arrival)
    assert sequence.next_time() is None
    x.move(15.0, at=x.arrival + 1.0)
    after = sequence.advance(x.arrival)
    assert [trigger.positions[0] for trigger in before + after] == [float(k) for k in range(11)]


def test_nothing_fires_before_it_is_armed() -> None:
    x, y = axes()
    x.move(15.0, at=0.0)
    armed = x.crossing(4.5)
    assert armed is not None
    sequence = TriggerSequence(replace(LINE, count=1, position_start=4.0), [x, y], armed)
    assert sequence.advance(x.arrival) == []


def test_time_triggers_come_at_their_interval_with_the_axes_at_rest() -> None:
    sequence = TriggerSequence(replace(LINE, mode=Mode.TIME, time_start=0.5), axes(), armed=100.0)
    triggers = sequence.advance(101.0)
    assert [trigger.at for trigger in triggers] == pytest.approx([100.5 + k * 0.01 for k in range(11)])
    assert {trigger.positions for trigger in triggers} == {(-5.0, 3.0)}


def test_position_starts_and_time_goes_on() -> None:
    x, y = axes()
    sequence = TriggerSequence(replace(LINE, mode=Mode.POSITION_THEN_TIME), [x, y], armed=0.0)
    assert sequence.next_time() is None
    x.move(15.0, at=7.0)
    triggers = sequence.advance(x.arrival)
    assert triggers[0].positions[0] == 0.0
    assert [trigger.since for trigger in triggers] == [k * 0.01 for k in range(11)]
    assert [trigger.positions[0] for trigger in triggers] == pytest.approx([k * 1.0 for k in range(11)])


def test_time_starts_and_position_goes_on() -> None:
    x, y = axes()
    sequence = TriggerSequence(replace(LINE, mode=Mode.TIME_THEN_POSITION, time_start=0.1), [x, y], armed=0.0)
    x.move(15.0, at=0.0)
    places = [trigger.positions[0] for trigger in sequence.advance(x.arrival)]
    assert places[0] == pytest.approx(x.position(0.1))
    assert np.diff(places) == pytest.approx([1.0] * 10)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"count": 0}, "NbTriggers is 0"),
        ({"position_step": 0.0}, "PositionTriggerStepSize is 0"),
        ({"position_step": 0.009}, "trigger rate 11111 Hz is above 10000 Hz: raise PositionTriggerStepSize"),
        ({"mode": Mode.TIME, "time_step": 0.0}, "set an interval above 0"),
        ({"mode": Mode.TIME, "time_step": 9e-5, "pulse": 1e-5}, "above 10000 Hz: raise TimeTriggerStepSize"),
        ({"mode": Mode.TIME, "pulse": 0.02}, "TriggerPulseLength 0.02 s is longer"),
    ],
)
def test_settings_beyond_the_card_are_refused_with_the_cure(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DetectorError, match=said):
        replace(LINE, **change).check(max_rate=10_000.0, speed=100.0)


def test_ten_kilohertz_is_within_the_card() -> None:
    replace(LINE, mode=Mode.TIME, time_step=1e-4, pulse=9e-5).check(max_rate=10_000.0, speed=100.0)


def test_encoder_noise_is_a_nanometre_and_belongs_to_the_place() -> None:
    drawn = np.array([noise(7, 1, k * 0.1, 2.0) for k in range(4000)])
    assert drawn.mean() == pytest.approx(0.0, abs=5 * SIGMA / np.sqrt(4000))
    assert drawn.std() == pytest.approx(SIGMA, rel=0.05)
    assert noise(7, 1, 0.1, 2.0) == noise(7, 1, 0.1, 2.0)
    assert len({noise(7, 1, 0.1, 2.0), noise(7, 2, 0.1, 2.0), noise(8, 1, 0.1, 2.0), noise(7, 1, 0.1, 2.1)}) == 4


# --- the card, in real time -------------------------------------------------------------------------------------------


@pytest.fixture
def card() -> Iterator[TriggerCard]:
    stage = SimulatedStage({"x": Axis(position=-5.0, acceleration=1e5), "y": Axis(position=3.0)})
    found = TriggerCard(stage, seed=4)
    yield found
    found.close()


def fly(card: TriggerCard, until: Callable[..., None], folder: Path, target: float, line: TriggerSettings) -> None:
    card.arm(line, Capture(str(folder), "scan", 0, 0, {"position_trigger_start": line.position_start}))
    card.stage.move("x", target)
    until(lambda: not card.armed, "the line ends")
    until(lambda: not card.stage.axes["x"].moving(card.stage.clock()), "the stage rests")


def test_listeners_hear_each_trigger_in_order_with_its_place(
    card: TriggerCard, until: Callable[..., None], tmp_path: Path
) -> None:
    heard: list[tuple[int, float, float, float]] = []
    card.listeners.append(lambda *trigger: heard.append(trigger))
    fly(card, until, tmp_path, 15.0, LINE)
    assert [number for number, *_ in heard] == list(range(11))
    assert [x for _, _, x, _ in heard] == pytest.approx(np.arange(11.0), abs=6 * SIGMA)
    assert [y for _, _, _, y in heard] == pytest.approx([3.0] * 11, abs=6 * SIGMA)


def test_a_line_flown_again_reads_the_same_to_the_bit(
    card: TriggerCard, until: Callable[..., None], tmp_path: Path
) -> None:
    captured: list[tuple[NDArray[np.float64], ...]] = []
    for _ in range(2):
        fly(card, until, tmp_path, 15.0, LINE)
        captured.append(card.captured())
        card.stage.move("x", -5.0)
        until(lambda: not card.stage.axes["x"].moving(card.stage.clock()), "the stage is back")
    for first, second in zip(*captured, strict=True):
        assert np.array_equal(first, second)


def test_files_count_up_while_the_prefix_stays(card: TriggerCard, until: Callable[..., None], tmp_path: Path) -> None:
    fly(card, until, tmp_path, 15.0, LINE)
    fly(card, until, tmp_path, -5.0, replace(LINE, position_start=10.0, position_step=-1.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan_00000.nxs", "scan_00001.nxs"]
    with h5py.File(tmp_path / "scan_00001.nxs") as file:
        data = file["entry/data"]
        assert data["encoder_1"][:] == pytest.approx(np.arange(10.0, -1.0, -1.0), abs=6 * SIGMA)
        assert data["trigger"][:].tolist() == list(range(1, 12))
        assert data["time"][0] == 0.0
        assert data["counter"][:] == pytest.approx([5000.0] * 11, rel=0.02)
        assert data["position_trigger_start"][()] == 10.0
        assert data["encoder_5"].shape == (11,)


def test_a_line_can_be_split_over_files_and_channels_left_out(
    card: TriggerCard, until: Callable[..., None], tmp_path: Path
) -> None:
    card.arm(LINE, Capture(str(tmp_path), "part", per_file=4, masked=0b111100, extra={}))
    card.stage.move("x", 15.0)
    until(lambda: not card.armed, "the line ends")
    rows = []
    for path in sorted(tmp_path.iterdir()):
        with h5py.File(path) as file:
            assert set(file["entry/data"]) == {"encoder_1", "encoder_2", "time", "trigger"}
            rows.append(len(file["entry/data/encoder_1"]))
    assert rows == [4, 4, 3]


def test_a_disarmed_line_keeps_what_it_had(card: TriggerCard, until: Callable[..., None], tmp_path: Path) -> None:
    card.arm(LINE, Capture(str(tmp_path), "cut", 0, 0, {}))
    card.stage.move("x", 4.5)
    until(lambda: card.fired == 5, "five triggers")
    card.disarm()
    until(lambda: not card.armed, "it is disarmed")
    assert card.remaining == 6
    with h5py.File(tmp_path / "cut_00000.nxs") as file:
        assert len(file["entry/data/encoder_1"]) == 5


def test_a_folder_that_cannot_be_written_is_a_fault_that_names_it(card: TriggerCard, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = str(tmp_path / "file" / "sub")
    with pytest.raises(FileError, match="can't be made: Not a directory"):
        card.arm(LINE, Capture(folder, "scan", 0, 0, {}))
    assert folder in card.fault
    assert not card.armed
    card.arm(LINE, None)
    assert card.fault == ""


def test_late_triggers_come_in_a_burst_and_none_is_missing(until: Callable[..., None]) -> None:
    """A clock that leaps past the whole line must not lose it."""
    ticks = count()
    leaping = [0.0]
    stage = SimulatedStage({"x": Axis(position=-5.0), "y": Axis()}, clock=lambda: leaping[0] + next(ticks) * 1e-9)
    card = TriggerCard(stage)
    try:
        heard: list[int] = []
        card.listeners.append(lambda number, *_: heard.append(number))
        card.arm(LINE, None)
        stage.move("x", 15.0)
        leaping[0] = 1000.0
        stage.stop("x")
        until(lambda: not card.armed, "the line ends")
        assert heard == list(range(11))
    finally:
        card.close()


# --- the Tango class --------------------------------------------------------------------------------------------------


@pytest.fixture
def generator(tango_beamline: Any, until: Callable[..., None], tmp_path: Path) -> Iterator[Any]:
    proxy = tango_beamline.proxy("pilc", "trigger_generator")
    proxy.TriggerMode, proxy.NbTriggers, proxy.TimeTriggerStepSize, proxy.TriggerPulseLength = 2, 20, 0.002, 0.001
    proxy.FileDir, proxy.FilePrefix, proxy.EncoderTriggering = str(tmp_path), "tango", 1
    yield proxy
    proxy.Arm = 0
    until(lambda: proxy.state() != MOVING, "the generator rests")


def test_a_client_arms_waits_and_reads_the_arrays(generator: Any, until: Callable[..., None]) -> None:
    generator.Arm = 1
    assert generator.state() == MOVING
    assert generator.Arm == 1
    until(lambda: generator.state() == ON, "the triggers are given")
    assert (generator.TriggerCounter, generator.RemainingTriggers, generator.Arm) == (20, 0, 0)
    assert generator.FileName == "tango_00000.nxs"
    here = generator.CurrentPosition1
    assert generator.Position1Data == pytest.approx([here] * 20, abs=0.01)
    assert generator.TimeData == pytest.approx(np.arange(20) * 0.002)
    assert len(generator.CounterData) == 20


def test_settings_cannot_change_while_it_is_armed(generator: Any) -> None:
    generator.TriggerMode = 1
    generator.PositionTriggerStart = 900.0
    generator.Arm = 1
    with pytest.raises(tango.DevFailed, match="armed; set Arm to 0 first"):
        generator.NbTriggers = 5
    assert generator.RemainingTriggers == 20


def test_a_rate_beyond_ten_kilohertz_is_refused(generator: Any) -> None:
    generator.TimeTriggerStepSize, generator.TriggerPulseLength = 5e-5, 1e-5
    with pytest.raises(tango.DevFailed, match="trigger rate 20000 Hz is above 10000 Hz"):
        generator.Arm = 1
    assert generator.state() == ON


def test_an_encoder_is_calibrated_and_scaled(generator: Any) -> None:
    here = generator.CurrentPosition1
    generator.CalibrateEncoder1(here + 100.0)
    assert generator.CurrentPosition1 == pytest.approx(here + 100.0)
    generator.CalibrateEncoder1(here)
    generator.Position1Conversion = 500.0
    assert generator.CurrentPosition1 == pytest.approx(2 * here)
    generator.Position1Conversion = 1000.0


def test_the_state_is_fault_when_the_folder_cannot_be_written(generator: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    generator.FileDir = str(tmp_path / "file")
    with pytest.raises(tango.DevFailed, match=f"{tmp_path}/file can't be made"):
        generator.Arm = 1
    assert generator.state() == FAULT
    assert f"folder {tmp_path}/file can't be made: File exists" in generator.status()
    generator.FileDir = str(tmp_path)
    assert generator.state() == ON


def test_the_scan_slave_counts_along_and_writes_its_own_file(
    generator: Any, tango_beamline: Any, until: Callable[..., None], tmp_path: Path
) -> None:
    slave = tango_beamline.proxy("pilc", "scan_slave")
    assert slave.PiLCTGConnected
    slave.ManualMode, slave.NbTriggers, slave.FileDir, slave.FilePrefix = 0, 20, str(tmp_path / "slave"), "s"
    generator.Arm = 1
    until(lambda: generator.state() == ON, "the triggers are given")
    assert slave.RemainingTriggers == 0
    with h5py.File(tmp_path / "slave" / "s_00000.nxs") as file:
        assert set(file["entry/data"]) == {"exposure_time", *(f"value_{k}" for k in range(1, 6))}
        assert file["entry/data/value_1"][:] == pytest.approx([1000.0] * 20, rel=0.05)
        assert file["entry/data/exposure_time"][:].tolist() == [0.001] * 20
    slave.FileDir = ""
