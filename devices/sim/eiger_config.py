"""The parameters of a simulated DCU: what SIMPLON's config and status keys are, allow and pull along with them."""

from __future__ import annotations

import base64
import math
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import numpy as np

from .eiger_geometry import HC
from .frames import FrameLibrary

MAX_FRAMES: Final = 2_000_000_000
"""Most frames in a series (nimages × ntrigger)."""

READOUT_TIME: Final = 3e-6
"""Dead time between frames, s."""

ELEMENTS: Final = {"Cu": 8047.8, "Mo": 17479.3, "Ag": 22162.9}
"""Kα energies, eV, that ``element`` sets."""

TRIGGER_MODES: Final = ("exte", "exts", "inte", "ints")

_EXPOSURE = [
    "bit_depth_image",
    "bit_depth_readout",
    "count_time",
    "countrate_correction_count_cutoff",
    "frame_count_time",
    "frame_time",
]
_ENERGY = ["element", "flatfield", "photon_energy", "threshold_energy", "wavelength"]


class Refused(Exception):
    """The DCU refuses a request, with this HTTP status and reason."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(slots=True)
class Parameter:
    """One key, as SIMPLON describes it."""

    value: Any
    value_type: str
    access_mode: str = "rw"
    unit: str | None = None
    min: float | None = None
    max: float | None = None
    allowed_values: tuple[Any, ...] | None = None

    def described(self) -> dict[str, Any]:
        """Return what GET answers."""
        answer = {"value": self.value, "value_type": self.value_type, "access_mode": self.access_mode}
        if isinstance(self.value, np.ndarray):
            answer["value"] = darray(self.value)
        if self.allowed_values is not None:
            answer["allowed_values"] = list(self.allowed_values)
        answer |= {k: v for k in ("unit", "min", "max") if (v := getattr(self, k)) is not None}
        return answer

    def checked(self, key: str, value: Any) -> Any:
        """Return ``value`` as this parameter's type, or refuse it."""
        if self.access_mode == "r":
            raise Refused(HTTPStatus.FORBIDDEN, f"{key} is read-only")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = {
            "bool": isinstance(value, bool),
            "string": isinstance(value, str),
            "float": number and math.isfinite(value),
            "uint": isinstance(value, int) and number and value >= 0,
            "int": isinstance(value, int) and number,
            "float[]": isinstance(value, list) and all(isinstance(item, int | float) for item in value),
        }.get(self.value_type, False)
        if not fits:
            raise Refused(HTTPStatus.BAD_REQUEST, f"{key}: {value!r} is no {self.value_type}")
        if self.allowed_values is not None and value not in self.allowed_values:
            allowed = ", ".join(map(str, self.allowed_values))
            raise Refused(HTTPStatus.BAD_REQUEST, f"{key}: {value!r} isn't allowed; allowed: {allowed}")
        if (self.min is not None and value < self.min) or (self.max is not None and value > self.max):
            raise Refused(HTTPStatus.BAD_REQUEST, f"{key}: {value!r} isn't in [{self.min}, {self.max}]")
        return float(value) if self.value_type == "float" else value


def darray(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return an array as SIMPLON puts it into JSON."""
    return {
        "__darray__": [1, 0, 0],
        "type": array.dtype.newbyteorder("<").str,
        "shape": list(array.shape[::-1]),
        "filters": ["base64"],
        "data": base64.b64encode(array.tobytes()).decode(),
    }


class Configuration:
    """The config keys of all modules: ``configuration["detector"]["count_time"].value``."""

    def __init__(self, library: FrameLibrary, api: str) -> None:
        self.modules: dict[str, dict[str, Parameter]] = {
            "detector": detector_parameters(library, api),
            "stream": stream_parameters(),
            "filewriter": filewriter_parameters(),
            "monitor": {
                "mode": Parameter("disabled", "string", allowed_values=("disabled",)),
                "buffer_size": Parameter(512, "uint"),
                "discard_new": Parameter(False, "bool"),
            },
            "system": {},
        }

    def value(self, module: str, key: str) -> Any:
        """Return a parameter's value."""
        return self.modules[module][key].value

    def detector_values(self) -> dict[str, Any]:
        """Return the detector's configuration as it stands in a stream header: no arrays."""
        return {
            key: parameter.value
            for key, parameter in sorted(self.modules["detector"].items())
            if not isinstance(parameter.value, np.ndarray) and "/" not in key
        }

    def put(self, module: str, key: str, value: Any) -> list[str]:
        """Set a parameter; return the names of those that may have changed, itself among them."""
        parameters = self.modules[module]
        if key not in parameters:
            raise Refused(HTTPStatus.NOT_FOUND, f"{module}/config/{key}: no such key")
        value = parameters[key].checked(key, value)
        if module == "filewriter":
            _check_filewriter(key, value)
        if module != "detector":
            parameters[key].value = value
            return [key]
        return self._put_detector(key, value)

    def _put_detector(self, key: str, value: Any) -> list[str]:
        detector = self.modules["detector"]
        if key in ("nimages", "ntrigger"):
            other = detector["ntrigger" if key == "nimages" else "nimages"].value
            if value * other > MAX_FRAMES:
                raise Refused(HTTPStatus.BAD_REQUEST, f"{key}: {value} × {other} frames are more than {MAX_FRAMES}")
            if key == "nimages" and value > 1 and detector["trigger_mode"].value in ("inte", "exte"):
                raise Refused(HTTPStatus.BAD_REQUEST, "nimages: in inte and exte each trigger gives 1 image")
        if key == "element":
            if value:
                self._set_energy(ELEMENTS[value])
            detector["element"].value = value
            return list(_ENERGY)
        detector[key].value = value
        if key == "count_time":
            detector["frame_time"].value = max(detector["frame_time"].value, value + READOUT_TIME)
        elif key == "frame_time":
            detector["count_time"].value = min(detector["count_time"].value, value - READOUT_TIME)
        elif key == "photon_energy":
            self._set_energy(value)
        elif key == "wavelength":
            self._set_energy(HC * 1e10 / value)
            detector[key].value = value
        elif key == "trigger_mode" and value in ("inte", "exte"):
            detector["nimages"].value = 1
            return ["nimages", "trigger_mode"]
        elif key in ("threshold_energy", "threshold/1/energy"):
            detector["threshold_energy"].value = value
            if "threshold/1/energy" in detector:
                detector["threshold/1/energy"].value = value
            return ["flatfield", "threshold_energy"]
        if key in ("count_time", "frame_time"):
            detector["frame_count_time"].value = detector["count_time"].value
            return list(_EXPOSURE)
        return list(_ENERGY) if key in ("photon_energy", "wavelength") else [key]

    def _set_energy(self, energy: float) -> None:
        """Set everything that follows the photon energy, eV: the threshold goes to its half."""
        detector = self.modules["detector"]
        detector["element"].value = ""
        detector["photon_energy"].value = energy
        detector["wavelength"].value = HC * 1e10 / energy
        for key in ("threshold_energy", "threshold/1/energy"):
            if key in detector:
                detector[key].value = energy / 2


def _check_filewriter(key: str, value: Any) -> None:
    if key == "name_pattern" and (not value or value.startswith(".") or "\0" in value or "/" in value or "\\" in value):
        raise Refused(HTTPStatus.BAD_REQUEST, f"name_pattern: {value!r} is no plain file name")
    if key == "compression_enabled" and not value:
        raise Refused(HTTPStatus.BAD_REQUEST, "compression_enabled: this DCU stores frames as it streams them")


def stream_parameters() -> dict[str, Parameter]:
    """Return the stream's keys; this DCU speaks stream v1 only."""
    return {
        "mode": Parameter("enabled", "string", allowed_values=("enabled", "disabled")),
        "format": Parameter("legacy", "string", allowed_values=("legacy",)),
        "header_detail": Parameter("basic", "string", allowed_values=("all", "basic", "none")),
        "header_appendix": Parameter("", "string"),
        "image_appendix": Parameter("", "string"),
    }


def filewriter_parameters() -> dict[str, Parameter]:
    """Return the FileWriter's keys. ``nimages_per_file`` 0: all frames in the master file."""
    return {
        "mode": Parameter("disabled", "string", allowed_values=("enabled", "disabled")),
        "name_pattern": Parameter("series_$id", "string"),
        "nimages_per_file": Parameter(1000, "uint", max=MAX_FRAMES),
        "image_nr_start": Parameter(1, "uint", max=MAX_FRAMES),
        "compression_enabled": Parameter(True, "bool"),
        "transfer_mode": Parameter("HTTP", "string", "r"),
        "format": Parameter("hdf5 nexus legacy nxmx", "string", allowed_values=("hdf5 nexus legacy nxmx",)),
    }


def detector_parameters(library: FrameLibrary, api: str) -> dict[str, Parameter]:
    """Return the detector's keys. Energies in eV, times in s, lengths in m, wavelength in Å."""
    model = library.model
    rows, columns = library.shape
    bits = np.dtype(library.dtype).itemsize * 8
    energy = model.photon_energy
    applied = {
        f"{name}_applied": Parameter(True, "bool")
        for name in ("countrate_correction", "flatfield_correction", "pixel_mask", "virtual_pixel_correction")
    }
    angles = {
        f"{axis}_{part}": Parameter(0.0, "float", unit="degree")
        for axis in ("chi", "kappa", "omega", "phi", "two_theta")
        for part in ("start", "increment")
    }
    excluded = int(np.count_nonzero(library.mask))
    parameters = {
        **applied,
        **angles,
        "auto_summation": Parameter(True, "bool"),
        "beam_center_x": Parameter(columns * model.beam[1], "float", unit="pixel"),
        "beam_center_y": Parameter(rows * model.beam[0], "float", unit="pixel"),
        "bit_depth_image": Parameter(bits, "uint", "r"),
        "bit_depth_readout": Parameter(12, "uint", "r"),
        "compression": Parameter("bslz4", "string", allowed_values=("bslz4",)),
        "count_time": Parameter(0.01, "float", unit="s", min=5e-7, max=3600.0),
        "countrate_correction_count_cutoff": Parameter(library.saturation, "uint", "r"),
        "countrate_correction_table": Parameter(_linear_countrates(), "float[][]", "r"),
        "data_collection_date": Parameter("", "string", "r"),
        "description": Parameter(model.description, "string", "r"),
        "detector_distance": Parameter(model.distance, "float", unit="m", min=0.0),
        "detector_number": Parameter("E-SIM-0001", "string", "r"),
        "detector_readout_time": Parameter(READOUT_TIME, "float", "r", unit="s"),
        "detector_translation": Parameter([0.0, 0.0, -model.distance], "float[]", unit="m"),
        "eiger_fw_version": Parameter(f"release-{api}", "string", "r"),
        "element": Parameter("", "string", allowed_values=("", *ELEMENTS)),
        "flatfield": Parameter(np.ones(library.shape, np.float32), "float[][]", "r"),
        "frame_count_time": Parameter(0.01, "float", "r", unit="s"),
        "frame_time": Parameter(0.010003, "float", unit="s", min=model.min_frame_time, max=3600.0),
        "mask_to_zero": Parameter(False, "bool"),
        "nimages": Parameter(1, "uint", min=1, max=MAX_FRAMES),
        "ntrigger": Parameter(1, "uint", min=1, max=MAX_FRAMES),
        "number_of_excluded_pixels": Parameter(excluded, "uint", "r"),
        "photon_energy": Parameter(energy, "float", unit="eV", min=2700.0, max=100000.0),
        "pixel_mask": Parameter(library.mask, "uint[][]", "r"),
        "roi_mode": Parameter("disabled", "string", allowed_values=("disabled",)),
        "sensor_material": Parameter("Si", "string", "r"),
        "sensor_thickness": Parameter(450e-6, "float", "r", unit="m"),
        "software_version": Parameter(api, "string", "r"),
        "test_image_mode": Parameter("", "string", allowed_values=("",)),
        "test_image_value": Parameter(0, "uint"),
        "threshold_energy": Parameter(energy / 2, "float", unit="eV", min=1350.0, max=100000.0),
        "trigger_mode": Parameter("ints", "string", allowed_values=TRIGGER_MODES),
        "wavelength": Parameter(HC * 1e10 / energy, "float", unit="angstrom", min=0.1, max=5.0),
        "x_pixel_size": Parameter(model.pixel_size, "float", "r", unit="m"),
        "x_pixels_in_detector": Parameter(columns, "uint", "r"),
        "y_pixel_size": Parameter(model.pixel_size, "float", "r", unit="m"),
        "y_pixels_in_detector": Parameter(rows, "uint", "r"),
    }
    if api >= "1.8":
        parameters |= {
            "counting_mode": Parameter("normal", "string", allowed_values=("normal",)),
            "extg_mode": Parameter("single", "string", allowed_values=("single",)),
            "nexpi": Parameter(1, "uint", min=1, max=1),
            "threshold/1/energy": Parameter(energy / 2, "float", unit="eV", min=1350.0, max=100000.0),
            "threshold/1/mode": Parameter("enabled", "string", allowed_values=("enabled",)),
            "threshold/1/number_of_excluded_pixels": Parameter(excluded, "uint", "r"),
            "trigger_start_delay": Parameter(0.0, "float", unit="s", min=0.0, max=1.0),
        }
    return parameters


def _linear_countrates() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the count-rate table: measured and true counts, here the same."""
    counts = np.linspace(0.0, 4e6, 1001, dtype=np.float32)
    return np.stack([counts, counts])


def now() -> str:
    """Return the time as SIMPLON writes it, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S")


def status(value: Any, value_type: str = "string", unit: str | None = None) -> dict[str, Any]:
    """Return what GET answers for a status key."""
    answer = {"value": value, "value_type": value_type, "access_mode": "r", "state": "normal"}
    answer["time"] = now()
    return answer if unit is None else {**answer, "unit": unit}
