"""The Xspress3's Tango class, attributes and files as DESY's has them."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from tango import DevState, EnsureOmniThread
from tango.server import Device, attribute, command

from ...workers.errors import DetectorError, FileError
from .fluorescence import BINS
from .tango_class import refuse, setting
from .xspress3_acquisition import AcquisitionSettings, Xspress3Acquisition


class Xspress3(Device):  # type: ignore[misc]
    """Four detector elements, 4096 channels each, free-running or gated."""

    bound: ClassVar[dict[str, Xspress3Acquisition]] = {}
    """Device name → its box."""
    folders: ClassVar[dict[str, str]] = {}
    """Device name → FileDir at start."""

    ExposureTime = setting("ExposureTime", float, "s", "timed internally; a gate brings its own", min_value="1e-05")
    NbFrames = setting("NbFrames", int)
    TriggerMode = setting("TriggerMode", int, doc="0 internal, 1 external gate")
    FileDir = setting("FileDir", str)
    FilePrefix = setting("FilePrefix", str, doc=".nxs is appended, with FramesPerFile _%05d.nxs")
    FramesPerFile = setting("FramesPerFile", int, doc="0: one file")
    MCALength = setting("MCALength", int, doc="0: all channels")
    MaskDataToWrite = setting("MaskDataToWrite", int, doc="a set bit: that element is not written")
    RunMode = setting("RunMode", (int,), doc="playback, scope, scalers, hist, diag_hist, circular_buffer")
    SaveData = setting("SaveData", bool)
    Compression = setting("Compression", bool)
    LastFrame = attribute(dtype=int, fget="read_last_frame", doc="frames read of the latest acquisition")
    LastFrameWritten = attribute(dtype=int, fget="read_last_written", doc="frames that readers of the file see")
    BufferUsage = attribute(dtype=float, unit="%", fget="read_buffer_usage")
    LostGates = attribute(dtype=int, fget="read_lost_gates", doc="gates that a full buffer couldn't take")

    def init_device(self) -> None:
        """Set what the box starts with, and one DataCh attribute per element."""
        super().init_device()
        name = self.get_name().lower()
        self.box = self.bound[name]
        self.settings: dict[str, Any] = {
            "ExposureTime": 0.1,
            "NbFrames": 1,
            "TriggerMode": 0,
            "FileDir": self.folders.get(name, ""),
            "FilePrefix": "xspress3",
            "FramesPerFile": 0,
            "MCALength": 0,
            "MaskDataToWrite": 0,
            "RunMode": [0, 0, 1, 1, 0, 0],
            "SaveData": True,
            "Compression": True,
        }
        for channel in range(self.box.spectrometer.channels):
            self.add_attribute(
                attribute(name=f"DataCh{channel}", dtype=(float,), max_dim_x=BINS, fget=self.read_histogram)
            )
        self.set_state(DevState.ON)
        for event in ("State", "LastFrame", "LastFrameWritten"):
            self.set_change_event(event, True, False)
        self.box.changed = self._push

    def allow(self, name: str, value: Any) -> None:
        """Refuse a value out of range, and any while acquiring."""
        if self.box.running:
            refuse(self, name, "acquiring; StopAcquisition first")
        if name == "TriggerMode" and value not in (0, 1):
            refuse(self, name, f"{value} isn't a mode; 0 internal, 1 external gate")
        if name == "FileDir":
            self.box.fault = ""

    def dev_state(self) -> Any:
        """Return MOVING while acquiring or writing, FAULT when a file couldn't be written or gates were lost."""
        if self.box.running:
            return DevState.MOVING
        return DevState.FAULT if self.box.fault else DevState.ON

    def dev_status(self) -> str:
        """Say what is going on, or what is wrong."""
        if self.box.running:
            return f"acquiring: {self.box.frames} of {self.settings['NbFrames']} frames"
        return self.box.fault or "idle"

    def read_last_frame(self) -> int:
        """Return the frames read of the latest acquisition."""
        return self.box.frames

    def read_last_written(self) -> int:
        """Return the frames that readers of the file see."""
        return self.box.written

    def read_buffer_usage(self) -> float:
        """Return how full the buffer is, %."""
        return self.box.load

    def read_lost_gates(self) -> int:
        """Return the gates lost in the latest acquisition."""
        return self.box.lost_gates

    def read_histogram(self, attr: Any) -> NDArray[np.float64]:
        """Return the latest histogram of the element that the attribute's name ends with."""
        latest, channel = self.box.latest, int(attr.get_name().removeprefix("DataCh"))
        bins = self.settings["MCALength"] or BINS
        return np.zeros(bins) if latest is None else latest.histograms[channel, :bins].astype(np.float64)

    @command  # type: ignore[untyped-decorator]
    def StartAcquisition(self) -> None:  # noqa: N802 - the name on the wire
        """Open the file and await frames."""
        values = self.settings
        try:
            self.box.start(
                AcquisitionSettings(
                    frames=values["NbFrames"],
                    exposure=values["ExposureTime"],
                    gated=values["TriggerMode"] == 1,
                    folder=values["FileDir"],
                    prefix=values["FilePrefix"],
                    per_file=values["FramesPerFile"],
                    bins=values["MCALength"] or BINS,
                    masked=values["MaskDataToWrite"],
                    save=values["SaveData"],
                    compress=values["Compression"],
                )
            )
        except (DetectorError, FileError) as error:
            refuse(self, "StartAcquisition", error)

    @command  # type: ignore[untyped-decorator]
    def StopAcquisition(self) -> None:  # noqa: N802 - the name on the wire
        """End the acquisition; what was read is written."""
        self.box.end()

    def _push(self) -> None:
        with EnsureOmniThread():
            self.set_state(self.dev_state())
            self.push_change_event("State")
            self.push_change_event("LastFrame", self.box.frames)
            self.push_change_event("LastFrameWritten", self.box.written)
