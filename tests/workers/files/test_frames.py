"""Frames from files: growing, late, cut, foreign."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest

from haltere.workers.decode import decode
from haltere.workers.errors import ChunkError, FileError, FileLate
from haltere.workers.files.frames import FrameReader
from haltere.workers.files.opening import cut
from haltere.workers.reducers.base import Chunk
from haltere.workers.wire.messages import FileSpan, InputSpec

SHAPE = (31, 33)
FRAMES = np.random.default_rng(2).poisson(2, (40, *SHAPE)).astype("<u2")
IMAGE = InputSpec("eiger_image", SHAPE, "<u2")
COLUMN = InputSpec("pilc_x", (), "<f8")

WRITER = """
import sys, numpy as np, h5py, hdf5plugin
path, swmr = sys.argv[1], sys.argv[2] == "swmr"
frames = np.random.default_rng(2).poisson(2, (40, 31, 33)).astype("<u2")
file, n = None, 0
for line in sys.stdin:
    if file is None:
        file = h5py.File(path, "a", libver="latest" if swmr else None)
        if "data" not in file:
            file.create_dataset("data", (0, 31, 33), "<u2", maxshape=(None, 31, 33), chunks=(1, 31, 33),
                                **hdf5plugin.Bitshuffle())
            file.create_dataset("x", (0,), "<f8", maxshape=(None,), chunks=(16,))
        if swmr:
            file.swmr_mode = True
    stop = n + int(line)
    for name, values in (("data", frames[n:stop]), ("x", np.arange(n, stop))):
        file[name].resize(stop, 0)
        file[name][n:] = values
        file[name].flush()
    n = stop
    if not swmr:
        file.close()
        file = None
    print(n, flush=True)
"""


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[FrameReader]:
    """Return a reader of the test's folder."""
    with FrameReader([tmp_path]) as reader:
        yield reader


def span(path: Path, dataset: str = "/entry/data/data", first: int = 0, n: int = 40, offset: int = 0) -> FileSpan:
    return FileSpan("key", f"file://localhost{path}", dataset, first, n, offset)


def write(path: Path, data: Any = FRAMES, chunks: Any = (1, *SHAPE), libver: Any = None, **filters: Any) -> Path:
    with h5py.File(path, "w", libver=libver) as file:
        file.create_dataset("entry/data/data", data=data, chunks=chunks, **filters)
    return path


def pixels(read: Any) -> Any:
    return np.stack([decode(item) if isinstance(item, Chunk) else item for item in read])


@pytest.mark.parametrize(
    ("filters", "encoding"),
    [(dict(hdf5plugin.Bitshuffle()), "bslz4"), (dict(hdf5plugin.LZ4()), "lz4"), ({}, "none")],
)
def test_a_frame_per_chunk_comes_as_the_chunk_in_the_file(
    tmp_path: Path, reader: FrameReader, filters: dict[str, Any], encoding: str
) -> None:
    path = write(tmp_path / "a.h5", **filters)
    chunks = reader.read(span(path, first=100, offset=10, n=30), [105, 104, 129], IMAGE)
    assert isinstance(chunks, list)
    assert {chunk.encoding for chunk in chunks} == {encoding}
    np.testing.assert_array_equal(pixels(chunks), FRAMES[[15, 14, 39]])


@pytest.mark.parametrize(
    ("chunks", "filters"),
    [
        ((16, 31, 8), {"compression": "gzip"}),
        ((1, *SHAPE), {"compression": "gzip"}),
        ((1, *SHAPE), dict(hdf5plugin.Bitshuffle(cname="zstd"))),
        ((2, *SHAPE), dict(hdf5plugin.Bitshuffle())),
        (None, {}),
    ],
)
def test_anything_else_comes_as_one_array(
    tmp_path: Path, reader: FrameReader, chunks: Any, filters: dict[str, Any]
) -> None:
    path = write(tmp_path / "a.nxs", chunks=chunks, **filters)
    for frames in ([3, 4, 5], [7], [9, 2], []):
        read = reader.read(span(path), frames, IMAGE)
        assert isinstance(read, np.ndarray)
        np.testing.assert_array_equal(read, FRAMES[frames])


def test_columns_come_in_one_slice(tmp_path: Path, reader: FrameReader) -> None:
    path = write(tmp_path / "a.h5", np.arange(40.0), chunks=(16,))
    np.testing.assert_array_equal(reader.read(span(path), range(5, 25), COLUMN), np.arange(5.0, 25))


@pytest.mark.parametrize("mode", ["swmr", "reopened"])
def test_a_file_that_grows_is_read_as_it_grows(tmp_path: Path, reader: FrameReader, mode: str) -> None:
    path = tmp_path / "growing.h5"
    command = [sys.executable, "-c", WRITER, str(path), mode]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        with pytest.raises(FileLate, match="doesn't exist"):
            reader.read(span(path, "data"), [0], IMAGE)
        for first in (0, 10, 20, 30):
            print(10, file=writer.stdin, flush=True)
            assert writer.stdout.readline().strip() == str(first + 10)
            frames = range(first, first + 10)
            np.testing.assert_array_equal(pixels(reader.read(span(path, "data"), frames, IMAGE)), FRAMES[frames])
            np.testing.assert_array_equal(reader.read(span(path, "x"), frames, COLUMN), np.array(frames, float))
            with pytest.raises(FileLate, match=f"has {first + 10} frames and not frame {first + 10}"):
                reader.read(span(path, "data", n=99), [first + 9, first + 10], IMAGE)
        writer.stdin.close()
        assert writer.wait(20) == 0


def test_a_row_that_was_never_written_is_late_and_not_zero(tmp_path: Path, reader: FrameReader) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, chunks in (("frames", (1, *SHAPE)), ("blocks", (4, *SHAPE))):
            file.create_dataset(name, (40, *SHAPE), "<u2", chunks=chunks, compression="gzip")[:8] = 7
    for name in ("frames", "blocks"):
        assert np.all(pixels(reader.read(span(tmp_path / "a.h5", name), range(8), IMAGE)) == 7)
        with pytest.raises(FileLate, match="not frame 8"):
            reader.read(span(tmp_path / "a.h5", name), range(4, 12), IMAGE)


def test_a_master_file_leads_to_the_data_file_beside_it(tmp_path: Path, reader: FrameReader) -> None:
    write(tmp_path / "s_data_000001.h5", **hdf5plugin.Bitshuffle())
    with h5py.File(tmp_path / "s_master.h5", "w") as file:
        file["entry/data/data_000001"] = h5py.ExternalLink("s_data_000001.h5", "/entry/data/data")
        file["entry/data/alias"] = h5py.SoftLink("data_000001")
        file["entry/data/circle"] = h5py.SoftLink("circle")
    for name in ("data_000001", "alias"):
        read = reader.read(span(tmp_path / "s_master.h5", f"/entry/data/{name}"), [3], IMAGE)
        np.testing.assert_array_equal(pixels(read), FRAMES[[3]])
    with pytest.raises(FileError, match="not an array of frames"):
        reader.read(span(tmp_path / "s_master.h5", "/entry/data/circle"), [3], IMAGE)


def test_no_file_leads_out_of_the_roots(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    secret = write(tmp_path / "secret.h5")
    (tmp_path / "passwd").write_bytes(b"x" * 31 * 33 * 2)
    with h5py.File(inside / "a.h5", "w") as file:
        file["link"] = h5py.ExternalLink("../secret.h5", "/entry/data/data")
        file.create_dataset("raw", (1, *SHAPE), "<u2", external=[(str(tmp_path / "passwd"), 0, 2046)])
        layout = h5py.VirtualLayout((40, *SHAPE), "<u2")
        layout[:] = h5py.VirtualSource(str(secret), "entry/data/data", (40, *SHAPE))
        file.create_virtual_dataset("virtual", layout)
    with FrameReader([inside]) as reader:
        for name, says in (("link", "outside the data roots"), ("raw", "other files"), ("virtual", "other files")):
            with pytest.raises(FileError, match=says):
                reader.read(span(inside / "a.h5", name), [0], IMAGE)


@pytest.mark.parametrize(
    "spec",
    [InputSpec("k", (33, 31), "<u2"), InputSpec("k", SHAPE, "<u4"), InputSpec("k", SHAPE, "<i2"), COLUMN],
)
def test_a_file_of_another_shape_or_type_is_refused(tmp_path: Path, reader: FrameReader, spec: InputSpec) -> None:
    path = write(tmp_path / "a.h5", **hdf5plugin.Bitshuffle())
    with pytest.raises(FileError, match=r"has frames of \(31, 33\) <u2, .* was announced with"):
        reader.read(span(path), [0], spec)


def test_what_is_no_frame_file_says_so(tmp_path: Path, reader: FrameReader) -> None:
    path = write(tmp_path / "a.h5")
    (tmp_path / "bad.h5").write_bytes(b"not HDF5 at all")
    for bad, says in (
        (span(tmp_path / "bad.h5"), "can't be opened"),
        (span(path, "/entry/data/other"), r"isn't there \(yet\)"),
        (span(path, "/entry/data"), "not an array of frames"),
    ):
        with pytest.raises(FileError, match=says) as caught:
            reader.read(bad, [0], IMAGE)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileError, match="frame 40 isn't in"):
        reader.read(span(path), [40], IMAGE)


def test_a_truncated_file_is_an_error_and_not_a_short_frame(tmp_path: Path, reader: FrameReader) -> None:
    path = write(tmp_path / "a.h5", **hdf5plugin.Bitshuffle())
    reader.read(span(path), [0], IMAGE)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(FileError, match="ends within the chunk"):
        reader.read(span(path), [39], IMAGE)


@pytest.mark.timeout(20)
def test_a_file_that_was_cut_while_it_grew_says_so_at_once(tmp_path: Path, reader: FrameReader) -> None:
    path = tmp_path / "grown.h5"
    with h5py.File(path, "w", libver="latest") as file:
        data = file.create_dataset(
            "data", (0, *SHAPE), "<u2", maxshape=(None, *SHAPE), chunks=(1, *SHAPE), **hdf5plugin.Bitshuffle()
        )
        file.swmr_mode = True
        for n in range(1, 400):
            data.resize(n, 0)
            data[n - 1] = FRAMES[n % len(FRAMES)]
    size = path.stat().st_size
    os.truncate(path, size // 2)
    with pytest.raises(FileError, match=rf"chunk index can't be read: the file is cut: {size // 2} bytes of {size}"):
        reader.read(span(path, "data", n=399), [0], IMAGE)
    os.truncate(path, 200)
    says = rf"can't be opened \(yet\): the file is cut: 200 bytes of {size}"
    reader.close()  # HDF5 doesn't look anew at what this process has open
    with pytest.raises(FileLate, match=says):
        reader.read(span(path, "data", n=399), [0], IMAGE)


@pytest.mark.timeout(20)
def test_damage_in_a_files_metadata_is_an_error_and_no_wait_without_end(tmp_path: Path, reader: FrameReader) -> None:
    path = write(tmp_path / "a.h5", libver="latest", **hdf5plugin.Bitshuffle())
    content = bytearray(path.read_bytes())
    for signature in (b"FAHD", b"FADB", b"EAHD", b"EADB", b"BTHD"):
        if (at := content.find(signature)) >= 0:
            content[at + 8] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(FileError, match="can't be"):
        reader.read(span(path), [0], IMAGE)


@pytest.mark.parametrize("libver", ["earliest", ("v108", "v108"), "latest"])
def test_a_whole_file_isnt_held_to_be_cut(tmp_path: Path, libver: Any) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver=libver) as file:
        file["data"] = FRAMES
    for missing in (0, 1):
        os.truncate(path, path.stat().st_size - missing)
        with path.open("rb") as file:
            assert bool(cut(file.fileno())) == bool(missing)
    path.write_bytes(b"no HDF5 at all" * 20)
    with path.open("rb") as file:
        assert cut(file.fileno()) == ""


def test_a_file_that_took_anothers_name_is_the_one_that_is_read(tmp_path: Path, reader: FrameReader) -> None:
    path = write(tmp_path / "a.h5", **hdf5plugin.Bitshuffle())
    reader.read(span(path), [0], IMAGE)
    write(tmp_path / "b.h5", FRAMES[::-1], **hdf5plugin.Bitshuffle()).rename(path)
    np.testing.assert_array_equal(pixels(reader.read(span(path), [0], IMAGE)), FRAMES[[39]])


def test_a_reader_keeps_a_bounded_number_of_files_open(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{k}.h5", FRAMES[k : k + 1], **hdf5plugin.Bitshuffle()) for k in range(8)]
    before = len(os.listdir("/proc/self/fd"))
    with FrameReader([tmp_path], keep=3) as reader:
        for k, path in enumerate(paths * 2):
            np.testing.assert_array_equal(pixels(reader.read(span(path), [0], IMAGE)), FRAMES[[k % 8]])
        assert len(os.listdir("/proc/self/fd")) <= before + 2 * 3
    assert len(os.listdir("/proc/self/fd")) == before


def test_all_datasets_of_a_file_share_one_place_in_the_cache(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for k in range(20):
            file[f"column{k}"] = np.arange(40.0) + k
    before = len(os.listdir("/proc/self/fd"))
    with FrameReader([tmp_path], keep=1) as reader:
        for k in range(20):
            read = reader.read(span(tmp_path / "a.h5", f"column{k}"), [3], COLUMN)
            np.testing.assert_array_equal(read, [3.0 + k])
        assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_dataset_that_comes_later_is_found(tmp_path: Path, reader: FrameReader) -> None:
    path = write(tmp_path / "a.h5")
    reader.read(span(path), [0], IMAGE)
    with pytest.raises(FileLate, match="isn't there"):
        reader.read(span(path, "later"), [0], COLUMN)
    command = [sys.executable, "-c", f"import h5py; h5py.File({str(path)!r}, 'a')['later'] = [5.0]"]
    subprocess.run(command, check=True)
    np.testing.assert_array_equal(reader.read(span(path, "later"), [0], COLUMN), [5.0])


def test_links_that_lead_on_and_on_come_to_an_end(tmp_path: Path, reader: FrameReader) -> None:
    for here, there in (("a", "b"), ("b", "a")):
        with h5py.File(tmp_path / f"{here}.h5", "w") as file:
            file["data"] = h5py.ExternalLink(f"{there}.h5", "/data")
    with pytest.raises(FileError, match="more than 4 external links"):
        reader.read(span(tmp_path / "a.h5", "data"), [0], IMAGE)


def test_the_lambda_files_of_petra_are_read(measured: Callable[[str], Path]) -> None:
    path = measured("lambda2m_petra/testasapo1_1009_00002_m1_part00000.nxs")
    spec = InputSpec("lambda", (516, 1554), "<i2")
    with FrameReader([path.parent]) as reader:
        read = pixels(reader.read(span(path, "/entry/instrument/detector/data", n=10), range(10), spec))
    with h5py.File(path) as file:
        np.testing.assert_array_equal(read, file["entry/instrument/detector/data"])


# --- files that ask for much, or lead elsewhere ----------------------------------------------------------------------


def test_a_filter_that_detectors_do_not_use_is_not_looked_for(
    tmp_path: Path, reader: FrameReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HDF5 would load the code that has the filter's number from its plugin folders."""
    monkeypatch.setenv("HDF5_PLUGIN_PATH", str(tmp_path))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_chunk((1, *SHAPE))
        creation.set_filter(32123, h5py.h5z.FLAG_OPTIONAL, (1,))
        space = h5py.h5s.create_simple((40, *SHAPE))
        h5py.h5d.create(file.id, b"data", h5py.h5t.STD_U16LE, space, creation)
    with pytest.raises(FileError, match=r"a.h5:data went through filter 32123, which isn't read; there are gzip, "):
        reader.read(span(tmp_path / "a.h5", "data"), [0], IMAGE)


def test_a_small_file_that_was_compressed_twice_is_refused(tmp_path: Path, reader: FrameReader) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_chunk((1, *SHAPE))
        creation.set_deflate(9)
        creation.set_deflate(9)
        space = h5py.h5s.create_simple((40, *SHAPE))
        h5py.h5d.create(file.id, b"data", h5py.h5t.STD_U16LE, space, creation)
    with pytest.raises(FileError, match="went through the same filter twice"):
        reader.read(span(tmp_path / "a.h5", "data"), [0], IMAGE)


@pytest.mark.parametrize(
    ("shape", "chunks", "says"),
    [
        ((1 << 40,), (1,), "claims to have 1099511627776 chunks"),
        ((1 << 32,), (1 << 28,), "has chunks of 2147483648 bytes"),
    ],
)
def test_an_absurd_dataset_is_refused_before_its_index_is_read(
    tmp_path: Path, reader: FrameReader, shape: tuple[int], chunks: tuple[int], says: str
) -> None:
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        file.create_dataset("data", shape, "<f8", chunks=chunks, compression="gzip")
    assert (tmp_path / "a.h5").stat().st_size < 1 << 20
    with pytest.raises(FileError, match=says):
        reader.read(span(tmp_path / "a.h5", "data", n=1 << 20), [5], COLUMN)


def test_a_chunk_that_is_longer_than_its_frame_can_be_is_not_read(tmp_path: Path, reader: FrameReader) -> None:
    path = write(tmp_path / "a.h5", **hdf5plugin.Bitshuffle())
    with h5py.File(path, "a") as file:
        file["entry/data/data"].id.write_direct_chunk((3, 0, 0), bytes(1 << 20))
    with pytest.raises(FileError, match="the chunk of row 3 claims 1048576 bytes"):
        reader.read(span(path), [3], IMAGE)


def test_rows_that_are_too_many_bytes_at_once_are_refused(tmp_path: Path, reader: FrameReader) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = file.create_dataset("data", (9, 1 << 13, 1 << 14), "<u2", chunks=(9, 64, 1 << 14), compression="gzip")
        made[:, 0] = 1
    with pytest.raises(FileError, match="are over 2147483648 bytes: read fewer at once"):
        reader.read(span(tmp_path / "a.h5", "data"), range(9), InputSpec("image", (1 << 13, 1 << 14), "<u2"))


def test_a_link_to_a_name_that_is_no_text_is_an_error_of_the_file(tmp_path: Path, reader: FrameReader) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.id.links.create_external(b"data", b"\xff\xfe.h5", b"/data")
        file.id.links.create_external(b"long", b"x" * 5000 + b".h5", b"/data")
        file.id.links.create_external(b"absolute", b"/etc/hostname", b"/data")
        file.id.links.create_external(b"device", b"/dev/zero", b"/data")
        file.id.links.create_external(b"me", b"a.h5", b"me")
        file["up"] = h5py.SoftLink("/up/up")
        file["group/soft"] = h5py.SoftLink("../group/soft/soft")
    for name in ("data", "long", "absolute", "device", "me", "up", "group/soft", "../a", "data\0x", "\udcff"):
        with pytest.raises(FileError) as caught:
            reader.read(span(tmp_path / "a.h5", name), [0], IMAGE)
        assert "\n" not in str(caught.value)


def test_a_user_block_shifts_no_chunk(tmp_path: Path, reader: FrameReader) -> None:
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=512) as file:
        file.create_dataset("data", data=FRAMES, chunks=(1, *SHAPE), **hdf5plugin.Bitshuffle())
    np.testing.assert_array_equal(pixels(reader.read(span(tmp_path / "a.h5", "data"), [7], IMAGE)), FRAMES[[7]])


def test_a_file_cut_anywhere_gives_its_frame_or_an_error(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.h5", FRAMES[:3], **hdf5plugin.Bitshuffle()).read_bytes()
    for stop in range(0, len(whole), 97):
        path = tmp_path / f"{stop}.h5"
        path.write_bytes(whole[:stop])
        with FrameReader([tmp_path]) as reader:
            try:
                read = pixels(reader.read(span(path), [1], IMAGE))
            except (FileError, ChunkError):
                continue
            np.testing.assert_array_equal(read, FRAMES[[1]])
