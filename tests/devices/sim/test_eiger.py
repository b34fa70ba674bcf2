"""The simulated Eiger from outside: HTTP, its stream and its files."""

import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import fabio
import h5py
import httpx
import numpy as np
import pytest
import zmq

from haltere.devices.sim.eiger_geometry import MODELS
from haltere.devices.sim.filewriter import DATASET
from haltere.devices.sim.frames import FrameLibrary
from haltere.devices.sim.simplon import SimulatedEiger
from haltere.workers.errors import SettingsError
from haltere.workers.wire import simplon

SHAPE = (64, 96)


@pytest.fixture(scope="module")
def library() -> FrameLibrary:
    mask = np.zeros(SHAPE, np.uint32)
    mask[10:12] = 1
    return FrameLibrary(
        lambda first, second: np.full(SHAPE, 1.0 + 9 * first + 90 * second),
        mask,
        model=MODELS["500k"],
        phases=lambda x, y: (x, y),
    )


class Bench:
    """A DCU with a REST client and a PULL socket on it."""

    def __init__(self, dcu: SimulatedEiger) -> None:
        self.dcu = dcu
        endpoints = dcu.start()
        self.http = httpx.Client(base_url=endpoints["rest"], timeout=20)
        self.context: zmq.Context[Any] = zmq.Context()
        self.pull = self.context.socket(zmq.PULL)
        self.pull.rcvhwm = 100_000
        self.pull.connect(endpoints["stream"])
        self.folder = Path(endpoints["data_dir"])

    def get(self, key: str) -> Any:
        """Return the JSON at ``module/task/key``."""
        module, rest = key.split("/", 1)
        answer = self.http.get(f"/{module}/api/{self.dcu.api}/{rest}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def put(self, key: str, value: Any = None) -> Any:
        """Set ``module/config/key``, or give a command; return the answer."""
        module, rest = key.split("/", 1)
        body = None if value is None else {"value": value}
        answer = self.http.put(f"/{module}/api/{self.dcu.api}/{rest}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, key: str, body: Any, code: int) -> str:
        """Put what must be refused with ``code``; return the reason."""
        module, rest = key.split("/", 1)
        answer = self.http.put(f"/{module}/api/{self.dcu.api}/{rest}", json=body)
        assert answer.status_code == code
        return answer.text

    def configure(self, **values: Any) -> None:
        """Set detector parameters."""
        for key, value in values.items():
            self.put(f"detector/config/{key}", value)

    def store(self, per_file: int = 1000, pattern: str = "series_$id") -> None:
        """Switch the FileWriter on."""
        for key, value in {"mode": "enabled", "nimages_per_file": per_file, "name_pattern": pattern}.items():
            self.put(f"filewriter/config/{key}", value)

    def arm(self) -> int:
        """Arm; return the series' number."""
        number: int = self.put("detector/command/arm")["sequence id"]
        return number

    def receive(self) -> simplon.AnyMessage:
        """Return the next message of the stream."""
        assert self.pull.poll(10_000), "nothing came in 10 s"
        return simplon.decode(self.pull.recv_multipart())

    def series(self) -> tuple[simplon.SeriesHeader, list[simplon.Image]]:
        """Return everything up to the series' end."""
        header = self.receive()
        assert isinstance(header, simplon.SeriesHeader)
        images = []
        while isinstance(message := self.receive(), simplon.Image):
            images.append(message)
        assert message == simplon.SeriesEnd(header.series)
        return header, images

    def await_state(self, state: str) -> None:
        """Wait for the detector's state."""
        until(lambda: self.get("detector/status/state")["value"] == state)

    def await_files(self) -> None:
        """Wait until the FileWriter has finished or failed."""
        until(lambda: self.get("filewriter/status/state")["value"] in ("ready", "error"))

    def close(self) -> None:
        """End it all."""
        self.http.close()
        self.context.destroy(linger=0)
        self.dcu.stop()


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, "not in time"
        sleep(0.005)


@pytest.fixture
def bench(library: FrameLibrary, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(SimulatedEiger(library, tmp_path / "data", position=lambda: (1.0, 0.0)))
    bench.put("detector/command/initialize")
    yield bench
    bench.close()


# --- REST ------------------------------------------------------------------------------------------------------------


def test_a_parameter_is_described(bench: Bench) -> None:
    keys = bench.get("detector/config/keys")
    assert {"count_time", "nimages", "ntrigger", "trigger_mode", "photon_energy", "threshold/1/energy"} <= set(keys)
    assert all({"value", "value_type", "access_mode"} <= set(bench.get(f"detector/config/{key}")) for key in keys)
    frame_time = bench.get("detector/config/frame_time")
    assert (frame_time["value_type"], frame_time["unit"], frame_time["min"]) == ("float", "s", 1 / 9000)


def test_putting_a_value_answers_with_what_changed(bench: Bench) -> None:
    changed = bench.put("detector/config/count_time", 0.5)
    assert {"count_time", "frame_time", "frame_count_time"} <= set(changed)
    assert bench.get("detector/config/frame_time")["value"] == pytest.approx(0.500003)
    assert bench.put("detector/config/frame_time", 0.1)
    assert bench.get("detector/config/count_time")["value"] == pytest.approx(0.1 - 3e-6)
    assert "wavelength" in bench.put("detector/config/photon_energy", 12398.42)
    assert bench.get("detector/config/wavelength")["value"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("key", "body", "code", "said"),
    [
        ("detector/config/colour", {"value": 1}, 404, "no such key"),
        ("kettle/config/mode", {"value": 1}, 404, "no module"),
        ("detector/command/dance", None, 404, "no such command"),
        ("detector/config/count_time", {"value": "long"}, 400, "no float"),
        ("detector/config/count_time", {"value": -1}, 400, "isn't in"),
        ("detector/config/nimages", {"value": 1.5}, 400, "no uint"),
        ("detector/config/nimages", {"value": 0}, 400, "isn't in"),
        ("detector/config/nimages", {"valve": 1}, 400, "the body"),
        ("detector/config/trigger_mode", {"value": "extx"}, 400, "exts"),
        ("detector/config/auto_summation", {"value": 1}, 400, "no bool"),
        ("detector/config/bit_depth_image", {"value": 16}, 403, "read-only"),
        ("filewriter/config/name_pattern", {"value": "../../etc/$id"}, 400, "plain file name"),
    ],
)
def test_what_cannot_be_set_is_refused_with_a_reason(bench: Bench, key: str, body: Any, code: int, said: str) -> None:
    assert said in bench.refused(key, body, code)


def test_a_body_that_is_no_json_is_refused(bench: Bench) -> None:
    answer = bench.http.put("/detector/api/1.8.0/config/nimages", content=b"\x80\x04.")
    assert (answer.status_code, "no JSON" in answer.text) == (400, True)


def test_more_frames_than_a_series_can_have_are_refused(bench: Bench) -> None:
    bench.put("detector/config/nimages", 100_000)
    assert "more than 2000000000" in bench.refused("detector/config/ntrigger", {"value": 100_000}, 400)


def test_commands_are_refused_in_the_wrong_state(library: FrameLibrary, tmp_path: Path) -> None:
    bench = Bench(SimulatedEiger(library, tmp_path))
    try:
        assert bench.get("detector/status/state")["value"] == "na"
        assert "initialize first" in bench.refused("detector/command/arm", None, 400)
        bench.put("detector/command/initialize")
        assert "arm first" in bench.refused("detector/command/trigger", None, 400)
        bench.arm()
        assert "disarm first" in bench.refused("detector/command/arm", None, 400)
        assert "disarm first" in bench.refused("detector/config/nimages", {"value": 2}, 400)
    finally:
        bench.close()


def test_the_older_api_has_its_own_path_and_keys(library: FrameLibrary, tmp_path: Path) -> None:
    bench = Bench(SimulatedEiger(library, tmp_path, api="1.6.0"))
    try:
        assert bench.http.get("/detector/api/version/").json()["value"] == "1.6.0"
        assert "threshold/1/energy" not in bench.get("detector/config/keys")
        assert bench.http.get("/detector/api/1.8.0/config/nimages").status_code == 404
    finally:
        bench.close()


def test_a_taken_port_and_an_unknown_version_are_named(library: FrameLibrary, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"REST port {port}"):
            SimulatedEiger(library, tmp_path, rest_port=port)
        with pytest.raises(SettingsError, match=f"stream port {port}"):
            SimulatedEiger(library, tmp_path, stream_port=port)
    with pytest.raises(SettingsError, match=r"2\.0"):
        SimulatedEiger(library, tmp_path, api="2.0")


# --- triggers and stream ---------------------------------------------------------------------------------------------


def test_n_electrical_triggers_give_n_frames_and_the_end(bench: Bench, library: FrameLibrary) -> None:
    bench.configure(trigger_mode="exts", nimages=1, ntrigger=300)
    number = bench.arm()
    assert bench.get("detector/status/state")["value"] == "ready"
    for count in range(300):
        assert bench.dcu.external_trigger((count % 2, 1.0))
    header, images = bench.series()
    assert (header.series, header.detail) == (number, "basic")
    assert header.config is not None
    assert header.config["ntrigger"] == 300
    assert [image.frame for image in images] == list(range(300))
    assert all(image.blob == library.blob(image.frame, (image.frame % 2, 1.0)) for image in images)
    assert {(image.shape, image.dtype, image.encoding) for image in images} == {(SHAPE, "<u2", "bslz4")}
    bench.await_state("idle")
    assert not bench.dcu.external_trigger((0.0, 0.0)), "it isn't armed any more"
    assert bench.dcu.ignored_triggers == 1


def test_triggers_beyond_ntrigger_are_ignored_and_counted(bench: Bench) -> None:
    bench.configure(trigger_mode="exts", nimages=2, ntrigger=3)
    bench.arm()
    assert not bench.dcu.external_trigger(frames=5)
    _, images = bench.series()
    assert (len(images), bench.dcu.ignored_triggers) == (6, 2)


def test_software_triggers_take_frames_where_the_sample_is(bench: Bench, library: FrameLibrary) -> None:
    bench.configure(trigger_mode="ints", nimages=3, ntrigger=2, count_time=0.001, frame_time=0.002)
    bench.arm()
    bench.put("detector/command/trigger")
    assert bench.get("detector/status/state")["value"] == "ready"
    bench.put("detector/command/trigger")
    _, images = bench.series()
    assert [image.blob for image in images] == [library.blob(frame, (1.0, 0.0)) for frame in range(6)]
    assert {image.real_ns for image in images} == {1_000_000}
    assert images[1].start_ns - images[0].start_ns == 2_000_000
    bench.await_state("idle")


@pytest.mark.parametrize("command", ["disarm", "cancel", "abort"])
def test_a_series_can_be_ended_early(bench: Bench, command: str) -> None:
    bench.configure(trigger_mode="exts", nimages=1, ntrigger=100)
    bench.store(per_file=4)
    bench.arm()
    header = bench.receive()
    assert isinstance(header, simplon.SeriesHeader)
    bench.dcu.external_trigger(frames=6)
    for _ in range(6):
        assert isinstance(bench.receive(), simplon.Image)
    bench.put(f"detector/command/{command}")
    assert bench.receive() == simplon.SeriesEnd(header.series)
    assert bench.get("detector/status/state")["value"] == "idle"
    bench.await_files()
    with h5py.File(bench.folder / f"series_{header.series}_master.h5") as master:
        assert [len(master[f"entry/data/{name}"]) for name in master["entry/data"]] == [4, 2]


def test_disarm_gives_triggers_already_taken_their_frames(bench: Bench) -> None:
    bench.configure(trigger_mode="exts", nimages=1, ntrigger=5000)
    bench.arm()
    bench.dcu.external_trigger(frames=900)
    bench.put("detector/command/disarm")
    assert len(bench.series()[1]) == 900


def test_a_long_exposure_can_be_aborted(bench: Bench) -> None:
    bench.configure(trigger_mode="ints", nimages=1, ntrigger=1, count_time=1000.0)
    bench.arm()
    trigger = threading.Thread(target=bench.put, args=("detector/command/trigger",))
    trigger.start()
    bench.await_state("acquire")
    bench.put("detector/command/abort")
    trigger.join(10)
    assert not trigger.is_alive(), "the trigger command returns when the series has ended"
    assert bench.series()[1] == []


@pytest.mark.parametrize(("detail", "tables"), [("none", 0), ("basic", 0), ("all", 3)])
def test_the_header_has_the_detail_asked_for(bench: Bench, library: FrameLibrary, detail: str, tables: int) -> None:
    bench.put("stream/config/header_detail", detail)
    bench.put("stream/config/header_appendix", "sample 12")
    bench.put("stream/config/image_appendix", "fly")
    bench.configure(trigger_mode="exts")
    bench.arm()
    bench.dcu.external_trigger()
    header, images = bench.series()
    assert (header.detail, header.appendix, images[0].appendix) == (detail, b"sample 12", b"fly")
    assert (header.config is None, len(header.tables)) == (detail == "none", tables)
    if tables:
        assert (header.tables[1].array() == library.mask).all()


def test_frames_that_nobody_takes_are_dropped_and_counted(library: FrameLibrary, tmp_path: Path) -> None:
    with SimulatedEiger(library, tmp_path) as dcu, httpx.Client(base_url=dcu.endpoints()["rest"]) as http:
        dcu.configuration.put("detector", "trigger_mode", "exts")
        dcu.configuration.put("detector", "ntrigger", 50)
        dcu.acquisition.initialize()
        dcu.acquisition.arm()
        dcu.external_trigger(frames=50)
        until(lambda: dcu.acquisition.state == "idle")
        assert http.get("/stream/api/1.8.0/status/dropped").json()["value"] == 50


# --- files -----------------------------------------------------------------------------------------------------------


def fly(bench: Bench, frames: int) -> list[simplon.Image]:
    bench.configure(trigger_mode="exts", nimages=1, ntrigger=frames)
    bench.arm()
    for number in range(frames):
        bench.dcu.external_trigger((number / frames, 0.5))
    _, images = bench.series()
    bench.await_files()
    return images


def test_files_hold_the_very_bytes_that_were_streamed(bench: Bench) -> None:
    bench.store(per_file=20, pattern="scan_00017_$id")
    images = fly(bench, 50)
    for number, (low, high) in enumerate([(1, 20), (21, 40), (41, 50)]):
        with h5py.File(bench.folder / f"scan_00017_1_data_{number + 1:06d}.h5") as file:
            frames = file[DATASET]
            assert (frames.chunks, frames.shape) == ((1, *SHAPE), (high - low + 1, *SHAPE))
            assert (frames.attrs["image_nr_low"], frames.attrs["image_nr_high"]) == (low, high)
            stored = [bytes(frames.id.read_direct_chunk((k, 0, 0))[1]) for k in range(len(frames))]
        assert stored == [image.blob for image in images[low - 1 : high]]


def test_fabio_opens_the_master_file(bench: Bench) -> None:
    bench.store(per_file=20)
    fly(bench, 50)
    with fabio.open(str(bench.folder / "series_1_master.h5")) as image:
        assert type(image).__name__ == "EigerImage"
        assert (image.nframes, image.data.shape) == (50, SHAPE)
        assert (image.data[10:12] == 65535).all()


def test_the_master_file_describes_the_detector(bench: Bench, library: FrameLibrary) -> None:
    bench.store(per_file=0)
    bench.configure(count_time=0.002)
    fly(bench, 5)
    with h5py.File(bench.folder / "series_1_master.h5") as file:
        detector = file["entry/instrument/detector"]
        assert (detector["count_time"][()], detector["count_time"].attrs["units"]) == (0.002, "s")
        specific = detector["detectorSpecific"]
        assert (specific["ntrigger"][()], specific["trigger_mode"][()]) == (5, b"exts")
        assert (specific["pixel_mask"][()] == library.mask).all()
        assert len(file[DATASET]) == 5, "with nimages_per_file 0 the frames are in the master"


WATCH = f"""
import sys
import h5py, hdf5plugin
with h5py.File(sys.argv[1], swmr=True) as file:
    frames = file["{DATASET}"]
    seen = -1
    while seen < 30:
        frames.refresh()
        if len(frames) != seen:
            seen = len(frames)
            print(seen, frames[seen - 1].max() if seen else 0, flush=True)
"""


def test_another_process_reads_a_file_that_is_being_written(bench: Bench) -> None:
    bench.store()
    bench.configure(trigger_mode="exts", nimages=1, ntrigger=1000)
    bench.arm()
    path = bench.folder / "series_1_data_000001.h5"
    with subprocess.Popen([sys.executable, "-c", WATCH, str(path)], stdout=subprocess.PIPE, text=True) as reader:
        try:
            assert reader.stdout is not None
            assert reader.stdout.readline().split() == ["0", "0"], "the file is there, empty, once the DCU is armed"
            seen = 0
            for expected in (10, 20, 30):
                bench.dcu.external_trigger(frames=10)
                while seen < expected:
                    seen, highest = map(int, reader.stdout.readline().split())
                    assert highest == 65535, "a frame that can be seen is there in full"
            assert reader.wait(10) == 0
        finally:
            reader.kill()
    bench.put("detector/command/abort")


def test_a_file_is_downloaded_and_nothing_else(bench: Bench) -> None:
    bench.store()
    fly(bench, 3)
    (bench.folder.parent / "secret.h5").write_bytes(b"")
    assert bench.http.get("/data/").json() == ["series_1_data_000001.h5", "series_1_master.h5"]
    answer = bench.http.get("/data/series_1_master.h5")
    assert answer.content == (bench.folder / "series_1_master.h5").read_bytes()
    for path in ("/data/missing.h5", "/data/..%2Fsecret.h5", "/data/%2e%2e/secret.h5"):
        assert bench.http.get(path).status_code == 404


def test_files_that_are_there_are_not_overwritten(bench: Bench) -> None:
    bench.store(pattern="same")
    fly(bench, 3)
    before = (bench.folder / "same_data_000001.h5").read_bytes()
    images = fly(bench, 4)
    assert len(images) == 4, "the stream goes on"
    assert bench.get("filewriter/status/state")["value"] == "error"
    assert "same_master.h5 is there already" in bench.get("filewriter/status/error")["value"][0]
    assert bench.dcu.writer.lost == 4
    assert (bench.folder / "same_data_000001.h5").read_bytes() == before
    bench.store(pattern="other")
    fly(bench, 2)
    assert bench.get("filewriter/status/state")["value"] == "ready"


def test_a_folder_that_cannot_be_made_is_an_error_status(library: FrameLibrary, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    bench = Bench(SimulatedEiger(library, tmp_path / "file" / "data"))
    try:
        bench.put("detector/command/initialize")
        bench.store()
        assert len(fly(bench, 3)) == 3
        assert bench.get("filewriter/status/state")["value"] == "error"
        assert "file" in bench.get("filewriter/status/error")["value"][0]
    finally:
        bench.close()


def test_a_disk_that_fills_up_is_an_error_status_and_keeps_what_was_written(tmp_path: Path) -> None:
    # In a process of its own, because a limit on the size of files is for the whole process.
    script = """
        import resource, signal, sys
        from pathlib import Path
        import h5py
        import numpy as np
        from haltere.devices.sim.filewriter import DATASET, FileWriter, SeriesFiles
        from haltere.devices.sim.eiger_config import Configuration
        from haltere.devices.sim.eiger_geometry import MODELS
        from haltere.devices.sim.frames import FrameLibrary

        mask = np.zeros((64, 96), np.uint32)
        library = FrameLibrary(lambda first, second: np.full(mask.shape, 100.0), mask, model=MODELS["500k"])
        config = Configuration(library, "1.8.0")
        writer = FileWriter(sys.argv[1])
        writer.open(SeriesFiles(1, "full", 1000, 1, mask.shape, "<u2", config.detector_values(), mask, mask))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        for _ in range(100):
            writer.write(library.blobs[0])
        writer.finish()
        assert writer.wait(20)
        assert writer.state == "error", writer.state
        assert "full_data_000001.h5: File too large" in writer.reason, writer.reason
        writer.close()
        with h5py.File(Path(sys.argv[1]) / "full_data_000001.h5", swmr=True) as file:
            frames = file[DATASET]
            assert len(frames) + writer.lost == 100
            assert 0 < len(frames) < 50
            assert all(frames[k].any() for k in range(len(frames)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
