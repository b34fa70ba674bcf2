"""What a file reference may open, and attacks on it."""

from __future__ import annotations

import os
import socket
from contextlib import chdir
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haltere.workers.errors import FileError, FileLate
from haltere.workers.files.references import resolve


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a data root with a file in it, and things beside it that must not be read."""
    root = tmp_path / "data"
    root.mkdir()
    (root / "a b.h5").write_bytes(b"frames")
    (tmp_path / "secret.h5").write_bytes(b"secret")
    (tmp_path / "data-other").mkdir()
    (tmp_path / "data-other" / "a.h5").write_bytes(b"secret")
    os.symlink(tmp_path / "secret.h5", root / "link.h5")
    os.symlink(root / "a b.h5", root / "inner.h5")
    os.symlink(root / "circle.h5", root / "circle.h5")
    os.symlink("..", root / "up")
    os.symlink("/proc/self/fd", root / "descriptors")
    os.symlink("/dev/zero", root / "device.h5")
    with socket.socket(socket.AF_UNIX) as listening, chdir(root):
        listening.bind("socket.h5")
    os.mkfifo(root / "pipe.h5")
    (root / "folder.h5").mkdir()
    (root / "notes.txt").write_text("hello")
    return root


@pytest.mark.parametrize("host", ["", "localhost"])
@pytest.mark.parametrize("name", ["a%20b.h5", "inner.h5", "folder.h5/../a%20b.h5"])
def test_a_file_below_the_roots_is_opened(root: Path, host: str, name: str) -> None:
    with resolve(f"file://{host}{root}/{name}", [root]) as opened:
        assert os.read(opened.fd, 100) == b"frames"
        assert Path(opened.via).read_bytes() == b"frames"
        assert opened.path == root / "a b.h5"


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("file://localhost{root}/../secret.h5", "outside the data roots"),
        ("file://localhost{root}/%2e%2e/secret.h5", "outside the data roots"),
        ("file://localhost{root}/link.h5", "outside the data roots"),
        ("file://localhost{root}-other/a.h5", "outside the data roots"),
        ("file://localhost{root}/pipe.h5", "not a regular file"),
        ("file://evil.example{root}/a%20b.h5", "only this host's files"),
        ("http://localhost{root}/a%20b.h5", "only file:///path"),
        ("file://localhost{root}/a%20b.h5%00.txt", "not an absolute path"),
        ("file://localhost{root}/folder.h5", "not a regular file"),
        ("file://localhost{root}/notes.txt", "not a data file by its name"),
        ("file:a.h5", "not an absolute path"),
        ("file://localhost{root}/a%20b.h5?x=1", "only file:///path"),
        ("file://[", "Invalid IPv6"),
        ("file:///" + 5000 * "a", "too long"),
        ("file://{root}/" + 300 * "a" + ".h5", "can't be opened: File name too long"),
        ("file://{root}/" + 12 * ("b" * 250 + "/") + "a.h5", r"doesn't exist|too long"),
        ("file://{root}/up/secret.h5", "outside the data roots"),
        ("file://{root}/%2e%2e%2fsecret.h5", "outside the data roots"),
        ("file://{root}/up/data/link.h5", "outside the data roots"),
        ("file://{root}/circle.h5", "can't be opened: Too many levels of symbolic links"),
        ("file://{root}/socket.h5", r"can't be opened: No such device|not a regular file"),
        ("file://{root}/descriptors/0", "outside the data roots"),
        ("file://{root}/device.h5", "outside the data roots"),
        ("file:///proc/self/fd/0", "outside the data roots"),
        ("file:///proc/self/root{root}/../secret.h5", "outside the data roots"),
        ("file:///dev/zero", "outside the data roots"),
        ("file:///etc/passwd", "outside the data roots"),
        ("file:////etc/passwd", "outside the data roots"),
        ("file://user@localhost{root}/a%20b.h5", "only this host's files"),
        ("file://localhost:80{root}/a%20b.h5", "only this host's files"),
        ("file://LOCALHOST{root}/a%20b.h5", "only this host's files"),
        ("FILE://evil{root}/a%20b.h5", "only this host's files"),
        ("file://{root}/a%20b.h5#x", "only file:///path"),
        ("ftp://{root}/a%20b.h5", "only file:///path"),
        ("{root}/a b.h5", "only file:///path"),
        ("", "only file:///path"),
        ("file:", "not an absolute path"),
        ("file://{root}/a\nb.h5", r"doesn't exist"),
        ("file://{root}/%ff%fe.h5", r"doesn't exist"),
    ],
)
def test_an_attack_is_refused_in_one_line(root: Path, reference: str, says: str) -> None:
    with pytest.raises(FileError, match=says) as caught:
        resolve(reference.format(root=root), [root]).close()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_folder_that_is_swapped_for_a_link_while_opening_gains_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "sub").mkdir()
    (root / "sub" / "a.h5").write_bytes(b"fine")
    really_open = os.open

    def swap_then_open(path: str, flags: int) -> int:
        (root / "sub").rename(root / "moved")
        (root / "sub").symlink_to(root.parent / "data-other")
        return really_open(path, flags)

    monkeypatch.setattr(os, "open", swap_then_open)
    with pytest.raises(FileError, match="was swapped while it was opened"):
        resolve(f"file://{root}/sub/a.h5", [root])


def test_without_roots_nothing_can_be_read(root: Path) -> None:
    with pytest.raises(FileError, match="none given"):
        resolve(f"file://{root}/a%20b.h5", [])


def test_a_file_that_is_not_there_may_still_come(root: Path) -> None:
    with pytest.raises(FileLate, match=r"doesn't exist \(yet\)"):
        resolve(f"file://{root}/later.h5", [root])


def test_a_file_that_is_swapped_for_a_link_while_opening_gains_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_open = os.open

    def swap_then_open(path: str, flags: int) -> int:
        (root / "a b.h5").unlink()
        (root / "a b.h5").symlink_to(root.parent / "secret.h5")
        return really_open(path, flags)

    monkeypatch.setattr(os, "open", swap_then_open)
    with pytest.raises(FileError, match="Too many levels of symbolic links"):
        resolve(f"file://{root}/a%20b.h5", [root])


def test_what_was_opened_stays_what_it_was_when_its_name_is_given_to_another(root: Path) -> None:
    with resolve(f"file://{root}/a%20b.h5", [root]) as opened:
        (root / "a b.h5").unlink()
        (root / "a b.h5").symlink_to(root.parent / "secret.h5")
        assert Path(opened.via).read_bytes() == b"frames"


def test_a_root_that_is_itself_a_link_is_where_it_leads(root: Path) -> None:
    (root.parent / "alias").symlink_to(root)
    with resolve(f"file://{root}/a%20b.h5", [root.parent / "alias"]) as opened:
        assert opened.path == root / "a b.h5"
    with pytest.raises(FileError, match="outside the data roots"):
        resolve(f"file://{root.parent}/secret.h5", [root.parent / "alias"])


def test_no_descriptor_is_left_open_by_what_is_refused(root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for name in ("pipe.h5", "folder.h5", "link.h5", "socket.h5", "later.h5"):
        with pytest.raises(FileError):
            resolve(f"file://{root}/{name}", [root])
    assert len(os.listdir("/proc/self/fd")) == before


@given(
    st.text(max_size=60) | st.lists(st.sampled_from(["/", "..", ".", "%2e", "a b.h5", "up", "%00", "~"])).map("".join)
)
def test_no_text_whatever_opens_anything_else(text: str) -> None:
    for uri in (text, f"file://{text}", f"file:///{text}"):
        with pytest.raises(FileError), resolve(uri, ["/nowhere"]):
            pass
