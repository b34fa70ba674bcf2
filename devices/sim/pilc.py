"""The PiLC cards' Tango classes: the trigger generator, and the scan slave that counts along."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from tango import AttrWriteType, DevState, EnsureOmniThread
from tango.server import Device, attribute, command

from ...workers.errors import DetectorError, FileError
from .card_file import CardFiles
from .pilc_card import ENCODERS, MAX_TRIGGERS, Capture, TriggerCard
from .tango_class import refuse, setting
from .triggers import Mode, TriggerSettings

STEPS_PER_UM = 1000.0
"""An encoder's steps per µm; with PositionNConversion at this value user units are µm."""


def _conversion(number: int) -> Any:
    return setting(f"Position{number}Conversion", float, "steps/unit")


def _current(number: int) -> Any:
    def read(device: PiLCTriggerGenerator) -> float:
        return float(device.to_units(number, device.place(number)))

    return attribute(name=f"CurrentPosition{number}", dtype=float, unit="unit", fget=read)


def _data(number: int) -> Any:
    def read(device: PiLCTriggerGenerator) -> NDArray[np.float64]:
        return device.captured(number)

    doc = f"encoder {number} at each trigger of the latest Arm"
    return attribute(
        name=f"Position{number}Data", dtype=(float,), max_dim_x=MAX_TRIGGERS, unit="unit", fget=read, doc=doc
    )


def _calibrate(number: int) -> Any:
    def calibrate(device: PiLCTriggerGenerator, value: float) -> None:
        device.calibrate(number, value)

    calibrate.__name__ = f"CalibrateEncoder{number}"
    return command(calibrate, dtype_in=float, doc_in="what the encoder shall read where it is now")


class PiLCTriggerGenerator(Device):  # type: ignore[misc]
    """Gives triggers by position or time; attribute names as DESY's public scan tools use them."""

    bound: ClassVar[dict[str, TriggerCard]] = {}
    """Device name → its card."""
    folders: ClassVar[dict[str, str]] = {}
    """Device name → FileDir at start."""

    TriggerMode = setting("TriggerMode", int, doc="1 position, 2 time, 3 position, then time, 4 time, then position")
    NbTriggers = setting("NbTriggers", int)
    PositionTriggerStart = setting("PositionTriggerStart", float, "unit")
    PositionTriggerStepSize = setting("PositionTriggerStepSize", float, "unit", "negative: triggers on the way down")
    PositionTriggerStop = setting("PositionTriggerStop", float, "unit", "written to the file; NbTriggers ends the scan")
    TimeTriggerStart = setting("TimeTriggerStart", float, "s")
    TimeTriggerStepSize = setting("TimeTriggerStepSize", float, "s")
    TriggerPulseLength = setting("TriggerPulseLength", float, "s", "the detectors' gate")
    EncoderTriggering = setting("EncoderTriggering", int, doc="1 to 5: the encoder that triggers")
    FileDir = setting("FileDir", str, doc="empty: no file")
    FilePrefix = setting("FilePrefix", str)
    TriggersPerFile = setting("TriggersPerFile", int, doc="0: all in one")
    MaskDataToWrite = setting("MaskDataToWrite", int, doc="a set bit is not written: 0–4 encoders, 5 counter")
    Metadata1 = setting("Metadata1", str)
    Metadata2 = setting("Metadata2", str)
    Metadata3 = setting("Metadata3", str)
    Metadata4 = setting("Metadata4", str)
    Metadata5 = setting("Metadata5", str)
    Position1Conversion, Position2Conversion = _conversion(1), _conversion(2)
    Position3Conversion, Position4Conversion, Position5Conversion = _conversion(3), _conversion(4), _conversion(5)
    CurrentPosition1, CurrentPosition2 = _current(1), _current(2)
    CurrentPosition3, CurrentPosition4, CurrentPosition5 = _current(3), _current(4), _current(5)
    Position1Data, Position2Data = _data(1), _data(2)
    Position3Data, Position4Data, Position5Data = _data(3), _data(4), _data(5)
    CalibrateEncoder1, CalibrateEncoder2 = _calibrate(1), _calibrate(2)
    CalibrateEncoder3, CalibrateEncoder4, CalibrateEncoder5 = _calibrate(3), _calibrate(4), _calibrate(5)
    Arm = attribute(
        dtype=int, access=AttrWriteType.READ_WRITE, fget="read_arm", fset="write_arm", doc="1 arms, 0 ends it"
    )
    TriggerCounter = attribute(dtype=int, fget="read_counter")
    RemainingTriggers = attribute(dtype=int, fget="read_remaining")
    CounterData = attribute(dtype=(float,), max_dim_x=MAX_TRIGGERS, fget="read_counts")
    EncoderData = attribute(
        dtype=(float,), max_dim_x=MAX_TRIGGERS, fget="read_triggering", doc="the triggering encoder's PositionNData"
    )
    TimeData = attribute(
        dtype=(float,), max_dim_x=MAX_TRIGGERS, unit="s", fget="read_times", doc="since the Arm's first trigger"
    )
    FileName = attribute(dtype=str, fget="read_file_name", doc="the latest file, without its folder")

    def init_device(self) -> None:
        """Set what a card starts with."""
        super().init_device()
        name = self.get_name().lower()
        self.card = self.bound[name]
        self.settings: dict[str, Any] = {
            "TriggerMode": int(Mode.TIME),
            "NbTriggers": 1,
            "PositionTriggerStart": 0.0,
            "PositionTriggerStepSize": 1.0,
            "PositionTriggerStop": 0.0,
            "TimeTriggerStart": 0.0,
            "TimeTriggerStepSize": 0.01,
            "TriggerPulseLength": 1e-5,
            "EncoderTriggering": 1,
            "FileDir": self.folders.get(name, ""),
            "FilePrefix": "pilc",
            "TriggersPerFile": 0,
            "MaskDataToWrite": 0,
        }
        self.settings |= {f"Metadata{number}": "" for number in range(1, 6)}
        self.settings |= {f"Position{number}Conversion": STEPS_PER_UM for number in range(1, ENCODERS + 1)}
        self.offsets = [0.0] * (ENCODERS + 1)  # units; index 0 unused
        self.set_state(DevState.ON)
        for event in ("State", "TriggerCounter", "RemainingTriggers"):
            self.set_change_event(event, True, False)
        self.card.changed = self._push

    # --- units -------------------------------------------------------------------------------------------------------

    def place(self, number: int) -> float:
        """Return where the axis of encoder ``number`` is, µm."""
        if number > len(self.card.encoders):
            return 0.0
        stage = self.card.stage
        return stage.axes[self.card.encoders[number - 1]].position(stage.clock())

    def _scale(self, number: int) -> float:
        return STEPS_PER_UM / float(self.settings[f"Position{number}Conversion"])

    def to_units(self, number: int, place: Any) -> Any:
        """Return µm of the stage in the encoder's user units."""
        return place * self._scale(number) + self.offsets[number]

    def captured(self, number: int) -> NDArray[np.float64]:
        """Return what encoder ``number`` read at each trigger, in its user units."""
        return np.asarray(self.to_units(number, self.card.captured()[0][:, number - 1]))

    def calibrate(self, number: int, value: float) -> None:
        """Let encoder ``number`` read ``value`` where it is now."""
        if self.card.armed:
            refuse(self, f"CalibrateEncoder{number}", "armed; set Arm to 0 first")
        self.offsets[number] += value - self.to_units(number, self.place(number))

    # --- settings ----------------------------------------------------------------------------------------------------

    def allow(self, name: str, value: Any) -> None:
        """Refuse a value out of range, and any while armed."""
        if self.card.armed:
            refuse(self, name, "armed; set Arm to 0 first")
        if name == "TriggerMode" and value not in tuple(Mode):
            refuse(
                self, name, f"{value} isn't a mode; 1 position, 2 time, 3 position, then time, 4 time, then position"
            )
        if name == "EncoderTriggering" and not 1 <= value <= ENCODERS:
            refuse(self, name, f"{value} isn't an encoder; there are 1 to {ENCODERS}")
        if name.endswith("Conversion") and value == 0.0:
            refuse(self, name, "0 steps per unit; set the encoder's resolution")
        if name == "FileDir":
            self.card.fault = ""

    def _trigger_settings(self) -> TriggerSettings:
        values, number = self.settings, int(self.settings["EncoderTriggering"])
        if number > len(self.card.encoders):
            raise DetectorError(f"EncoderTriggering {number}: nothing is connected to that encoder")
        scale = self._scale(number)
        return TriggerSettings(
            mode=Mode(values["TriggerMode"]),
            count=values["NbTriggers"],
            axis=number - 1,
            position_start=(values["PositionTriggerStart"] - self.offsets[number]) / scale,
            position_step=values["PositionTriggerStepSize"] / scale,
            time_start=values["TimeTriggerStart"],
            time_step=values["TimeTriggerStepSize"],
            pulse=values["TriggerPulseLength"],
        )

    def _capture(self) -> Capture | None:
        values = self.settings
        if not values["FileDir"]:
            return None
        extra = {
            "position_trigger_start": values["PositionTriggerStart"],
            "position_trigger_step_size": values["PositionTriggerStepSize"],
            "position_trigger_stop": values["PositionTriggerStop"],
        }
        return Capture(
            values["FileDir"], values["FilePrefix"], values["TriggersPerFile"], values["MaskDataToWrite"], extra
        )

    # --- attributes --------------------------------------------------------------------------------------------------

    def dev_state(self) -> Any:
        """Return MOVING while armed, FAULT when a file couldn't be written."""
        if self.card.armed:
            return DevState.MOVING
        return DevState.FAULT if self.card.fault else DevState.ON

    def dev_status(self) -> str:
        """Say what is going on, or what is wrong."""
        if self.card.armed:
            return f"armed: {self.card.fired} triggers given, {self.card.remaining} to go"
        return self.card.fault or "idle"

    def read_arm(self) -> int:
        """Return 1 while armed."""
        return int(self.card.armed)

    def write_arm(self, value: int) -> None:
        """Arm, or end it."""
        if not value:
            self.card.disarm()
            return
        try:
            self.card.arm(self._trigger_settings(), self._capture())
        except (DetectorError, FileError) as error:
            refuse(self, "Arm", error)
        self._push()

    def read_counter(self) -> int:
        """Return the triggers given since Arm."""
        return self.card.fired

    def read_remaining(self) -> int:
        """Return the triggers still to come."""
        return self.card.remaining if self.card.settings else int(self.settings["NbTriggers"])

    def read_counts(self) -> NDArray[np.float64]:
        """Return the counter at each trigger, counts."""
        return self.card.captured()[2]

    def read_triggering(self) -> NDArray[np.float64]:
        """Return the triggering encoder at each trigger."""
        return self.captured(int(self.settings["EncoderTriggering"]))

    def read_times(self) -> NDArray[np.float64]:
        """Return s since the first trigger."""
        return self.card.captured()[1]

    def read_file_name(self) -> str:
        """Return the latest file's name."""
        return self.card.files.last

    def _push(self) -> None:
        with EnsureOmniThread():
            self.set_state(self.dev_state())
            self.push_change_event("State")
            self.push_change_event("TriggerCounter", self.card.fired)
            self.push_change_event("RemainingTriggers", self.card.remaining)


def _counter_data(number: int) -> Any:
    def read(device: PiLCScanSlave) -> NDArray[np.float64]:
        return np.asarray(device.rows()[:, number])

    return attribute(name=f"Counter{number}Data", dtype=(float,), max_dim_x=MAX_TRIGGERS, fget=read)


class PiLCScanSlave(Device):  # type: ignore[misc]
    """Counts along at each trigger of the generator it is connected to.

    Counter 1 is the ion chamber on the generator's card; the other four read 0.
    """

    bound: ClassVar[dict[str, TriggerCard]] = {}
    """Device name → the generator's card."""

    ManualMode = setting("ManualMode", int, doc="0: follow the generator")
    NbTriggers = setting("NbTriggers", int)
    GateControl = setting("GateControl", int)
    GateExpTime = setting("GateExpTime", float, "s")
    TriggersPerFile = setting("TriggersPerFile", int, doc="0: all in one")
    MaskDataToWrite = setting("MaskDataToWrite", int, doc="a set bit is not written: 0 exposure time, 1–5 values")
    FileDir = setting("FileDir", str, doc="empty: no file")
    FilePrefix = setting("FilePrefix", str)
    Metadata1 = setting("Metadata1", str)
    Metadata2 = setting("Metadata2", str)
    Metadata3 = setting("Metadata3", str)
    Metadata4 = setting("Metadata4", str)
    Metadata5 = setting("Metadata5", str)
    VFCConversion1 = setting("VFCConversion1", float)
    VFCConversion2 = setting("VFCConversion2", float)
    VFCConversion3 = setting("VFCConversion3", float)
    VFCConversion4 = setting("VFCConversion4", float)
    VFCConversion5 = setting("VFCConversion5", float)
    Counter1Data, Counter2Data, Counter3Data = _counter_data(1), _counter_data(2), _counter_data(3)
    Counter4Data, Counter5Data = _counter_data(4), _counter_data(5)
    RemainingTriggers = attribute(dtype=int, fget="read_remaining")
    BufferLoad = attribute(dtype=int, fget="read_buffer_load")
    PiLCTGConnected = attribute(dtype=bool, fget="read_connected")

    def init_device(self) -> None:
        """Connect to the generator."""
        super().init_device()
        self.card = self.bound[self.get_name().lower()]
        self.settings: dict[str, Any] = {
            "ManualMode": 0,
            "NbTriggers": 1,
            "GateControl": 0,
            "GateExpTime": 0.01,
            "TriggersPerFile": 0,
            "MaskDataToWrite": 0,
            "FileDir": "",
            "FilePrefix": "slave",
        }
        self.settings |= {f"Metadata{number}": "" for number in range(1, 6)}
        self.settings |= {f"VFCConversion{number}": 1.0 for number in range(1, 6)}
        self.files = CardFiles()
        self.fault = ""
        self.card.ended = self._ended

    def allow(self, name: str, value: Any) -> None:
        """Refuse a change while the generator is armed."""
        if self.card.armed:
            refuse(self, name, "the trigger generator is armed; set its Arm to 0 first")
        if name == "FileDir":
            self.fault = ""

    def dev_state(self) -> Any:
        """Return MOVING while the generator is armed, FAULT when a file couldn't be written."""
        if self.card.armed and not self.settings["ManualMode"]:
            return DevState.MOVING
        return DevState.FAULT if self.fault else DevState.ON

    def dev_status(self) -> str:
        """Say what is going on, or what is wrong."""
        return self.fault or ("counting" if self.card.armed else "idle")

    def rows(self) -> NDArray[np.float64]:
        """Return (n, 6): exposure time and values 1 to 5 at each trigger, none in manual mode."""
        counts = self.card.captured()[2][: 0 if self.settings["ManualMode"] else None]
        rows = np.zeros((len(counts), 6))
        rows[:, 0] = self.card.settings.pulse if self.card.settings else 0.0
        rows[:, 1] = counts * self.settings["VFCConversion1"]
        return rows

    def read_remaining(self) -> int:
        """Return the triggers still to come."""
        return max(int(self.settings["NbTriggers"]) - len(self.rows()), 0)

    def read_buffer_load(self) -> int:
        """Return what waits in the card: nothing ever does."""
        return 0

    def read_connected(self) -> bool:
        """Return whether the generator's card answers."""
        return True

    def _ended(self) -> None:
        values = self.settings
        if values["ManualMode"] or not values["FileDir"]:
            return
        rows = self.rows()
        names = ["exposure_time", *(f"value_{number}" for number in range(1, 6))]
        kept = {name: rows[:, bit] for bit, name in enumerate(names) if not values["MaskDataToWrite"] >> bit & 1}
        try:
            self.files.check(values["FileDir"])
            self.files.write(values["FileDir"], values["FilePrefix"], len(rows), values["TriggersPerFile"], kept)
        except FileError as error:
            self.fault = str(error)
