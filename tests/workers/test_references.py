"""What a file reference may open, and attacks on it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from haltere.workers.errors import FileError, FileLate
from haltere.workers.references import resolve


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
