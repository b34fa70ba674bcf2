"""The ring: no two frames ever share a byte, and what a dead process left is swept."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from haltere.workers.errors import FileError, SettingsError
from haltere.workers.ring import ALIGNMENT, FOLDER, PADDING, Arena, Ring, RingView, sweep

SIZE = 8192


class ArenaMachine(RuleBasedStateMachine):
    """Allocates and releases in any order, beside a plain list of who has what."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(SIZE)
        self.taken: dict[int, int] = {}

    @rule(size=st.integers(0, 3000))
    def allocate(self, size: int) -> None:
        """Ask for bytes: they are refused only if no gap is long enough."""
        longest = max((length for _, length in self.arena.gaps), default=0)
        offset = self.arena.allocate(size)
        if offset is None:
            assert longest < max(size, 1) + PADDING + ALIGNMENT
        else:
            assert offset not in self.taken
            assert offset % ALIGNMENT == 0
            self.taken[offset] = size

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """Give a block back, and once more."""
        offset = data.draw(st.sampled_from(sorted(self.taken)))
        assert self.arena.release(offset)
        del self.taken[offset]
        assert not self.arena.release(offset)

    @invariant()
    def blocks_lie_apart_with_their_padding(self) -> None:
        """No two blocks share a byte."""
        ends = 0
        for offset in sorted(self.taken):
            assert offset >= ends
            ends = offset + self.taken[offset] + PADDING
        assert ends <= SIZE

    @invariant()
    def every_byte_is_either_held_or_in_a_gap_and_gaps_never_touch(self) -> None:
        """Nothing leaks, and what is free is joined."""
        assert self.arena.used + sum(length for _, length in self.arena.gaps) == SIZE
        gaps = self.arena.gaps
        assert all(a + length < b for (a, length), (b, _) in pairwise(gaps))

    def teardown(self) -> None:
        """Give everything back: one gap is left."""
        for offset in list(self.taken):
            self.arena.release(offset)
        assert self.arena.gaps == [(0, SIZE)]


TestArena = ArenaMachine.TestCase
TestArena.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.fixture
def ring() -> Iterator[Ring]:
    with Ring.create(1 << 16) as made:
        yield made


def test_what_is_written_is_read_by_its_name(ring: Ring) -> None:
    ring.write(128, b"a frame", 7)
    view = RingView.attach(ring.name)
    assert bytes(view.view(128, 7)) == b"a frame"
    view.close()


def test_a_block_says_which_life_it_has_until_it_is_given_back(ring: Ring) -> None:
    view = RingView.attach(ring.name)
    for size in (1, 63, 64, 65, 1000):
        ring.write(0, bytes(size), 7)
        assert view.lives(0, size, 7)
        assert not view.lives(0, size, 8)
        ring.clear(0, size)
        assert not view.lives(0, size, 7)
    assert not view.lives(1 << 40, 8, 7)
    view.close()


@given(sizes=st.lists(st.integers(1, 300), min_size=2, max_size=20))
def test_a_blocks_stamp_is_in_no_other_block(sizes: list[int]) -> None:
    arena = Arena(1 << 14)
    with Ring.create(1 << 14) as ring:
        view = RingView.attach(ring.name)
        blocks = []
        for life, size in enumerate(sizes, 1):
            offset = arena.allocate(size)
            assert offset is not None
            ring.write(offset, bytes([life]) * size, life)
            blocks.append((offset, size, life))
        for offset, size, life in blocks:
            assert view.lives(offset, size, life)
            assert bytes(view.view(offset, size)) == bytes([life]) * size
        view.close()


def test_a_view_can_not_be_written(ring: Ring) -> None:
    view = RingView.attach(ring.name)
    with pytest.raises(TypeError, match="read-only"):
        view.view(0, 4)[0] = 1
    view.close()


@pytest.mark.parametrize(("offset", "size"), [(0, 1 << 16), ((1 << 16) - PADDING, 1), (-1, 4), (0, -1), (1 << 40, 8)])
def test_bytes_outside_of_the_ring_are_refused(ring: Ring, offset: int, size: int) -> None:
    view = RingView.attach(ring.name)
    with pytest.raises(FileError, match="aren't in its"):
        view.view(offset, size)
    view.close()


@pytest.mark.parametrize("name", ["", "../etc/passwd", "haltere-1", "haltere-1-2/x", "other-1-2"])
def test_only_the_name_of_a_ring_is_opened(name: str) -> None:
    with pytest.raises(FileError, match="not the name of a ring"):
        RingView.attach(name)


def test_a_link_in_a_rings_place_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 4096)
    link = FOLDER / f"haltere-{os.getpid()}-999999"
    link.symlink_to(secret)
    try:
        with pytest.raises(FileError):
            RingView.attach(link.name)
    finally:
        link.unlink()


def test_a_ring_that_is_gone_is_named(ring: Ring) -> None:
    ring.close()
    with pytest.raises(FileError, match=f"{ring.name}.*has its ingest died"):
        RingView.attach(ring.name)


def test_a_reader_keeps_what_it_has_mapped_when_the_ring_goes(ring: Ring) -> None:
    ring.write(0, b"kept", 1)
    view = RingView.attach(ring.name)
    ring.close()
    assert bytes(view.view(0, 4)) == b"kept"
    view.close()


def test_the_ring_of_a_killed_process_is_swept_and_a_living_ones_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("haltere.workers.ring.FOLDER", tmp_path)  # where no other test sweeps
    program = "import os, pathlib, signal\nfrom haltere.workers import ring\n"
    program += f"ring.FOLDER = pathlib.Path({str(tmp_path)!r})\n"
    program += "r = ring.Ring.create(65536)\nprint(r.name, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    with Ring.create(SIZE) as ring:
        dead = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip()
        assert (tmp_path / dead).stat().st_size == 65536
        assert sweep() == [dead]
        assert [path.name for path in tmp_path.iterdir()] == [ring.name]


def test_a_ring_larger_than_shared_memory_is_refused_in_one_line() -> None:
    with pytest.raises(SettingsError, match="no room for a ring") as caught:
        Ring.create(1 << 50)
    assert "\n" not in str(caught.value)
    assert not list(FOLDER.glob(f"haltere-{os.getpid()}-*"))


def test_a_name_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter(range(10**9, 10**9 + 9))
    monkeypatch.setattr("haltere.workers.ring._numbers", numbers)
    taken = FOLDER / f"haltere-{os.getpid()}-{10**9 + 1}"
    with Ring.create(SIZE):
        taken.touch()
        try:
            with Ring.create(SIZE) as other:  # its number is the taken one's: swept, or passed over
                assert other.name in (taken.name, f"haltere-{os.getpid()}-{10**9 + 2}")
        finally:
            taken.unlink(missing_ok=True)


def test_a_name_that_is_held_by_a_living_process_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with Ring.create(SIZE) as ring:
        number = int(ring.name.rsplit("-", 1)[1])
        monkeypatch.setattr("haltere.workers.ring._numbers", iter((number, number + 10**9)))
        with Ring.create(SIZE) as other:
            assert other.name == f"haltere-{os.getpid()}-{number + 10**9}"


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("haltere.workers.ring.FOLDER", tmp_path / "nowhere")
    with pytest.raises(SettingsError, match="can't be written: No such file"):
        Ring.create(SIZE)


def test_what_is_swept_while_it_is_made_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process removes the name, or has the lock, between the making and the locking."""
    lock, said = fcntl.flock, iter(("removed", "locked", ""))

    def flock(descriptor: int, how: int) -> None:
        what = next(said, "")
        if what == "removed":
            os.unlink(os.readlink(f"/proc/self/fd/{descriptor}"))
        elif what == "locked":
            raise BlockingIOError
        lock(descriptor, how)

    monkeypatch.setattr("haltere.workers.ring.sweep", list)
    monkeypatch.setattr(fcntl, "flock", flock)
    before = len(os.listdir("/proc/self/fd"))
    with Ring.create(SIZE) as ring:
        assert (FOLDER / ring.name).exists()
        left = [path for path in FOLDER.glob(f"haltere-{os.getpid()}-*") if path.name != ring.name]
        for path in left:  # of the one that another had locked
            path.unlink()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_ring_without_bytes_is_no_ring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("haltere.workers.ring.FOLDER", tmp_path)
    (tmp_path / "haltere-1-1").touch()
    with pytest.raises(FileError, match="not a ring of this user's"):
        RingView.attach("haltere-1-1")


def test_what_has_no_name_of_a_ring_is_not_swept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("haltere.workers.ring.FOLDER", tmp_path)
    (tmp_path / "haltere-log").touch()
    (tmp_path / "haltere-2-2").symlink_to(tmp_path / "haltere-log")
    for number in range(3):
        (tmp_path / f"haltere-1-{number}").touch()
    assert sorted(sweep()) == ["haltere-1-0", "haltere-1-1", "haltere-1-2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["haltere-2-2", "haltere-log"]


@pytest.mark.parametrize("size", [0, ALIGNMENT + PADDING - 1])
def test_an_arena_that_holds_no_frame_is_refused(size: int) -> None:
    with pytest.raises(SettingsError, match="holds no frame"):
        Arena(size)
    Arena(ALIGNMENT + PADDING)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_block_may_be_the_whole_arena() -> None:
    arena = Arena(1024 + ALIGNMENT - 1)
    assert arena.size == 1024
    assert arena.allocate(1024 - PADDING + 1) is None
    assert arena.allocate(1024 - PADDING) == 0
    assert arena.held == {0: 1024}
    assert arena.used == 1024


def test_a_ring_is_its_users_own_and_the_dead_ones_are_gone_when_it_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("haltere.workers.ring.FOLDER", tmp_path)
    (tmp_path / "haltere-1-1").touch()
    with Ring.create(SIZE) as ring:
        (path,) = tmp_path.iterdir()
        assert path.name == ring.name
        assert ring.size == SIZE
        assert path.stat().st_mode & 0o777 == 0o600
        path.unlink()
    ring.close()


def test_a_ring_that_finds_no_room_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        for path in tmp_path.iterdir():
            path.unlink()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("haltere.workers.ring.FOLDER", tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full)
    before = descriptors()
    with pytest.raises(SettingsError, match=r"no room for a ring of 0 MiB \(No space left"):
        Ring.create(SIZE)
    assert descriptors() == before


def test_a_view_reaches_to_the_last_byte_and_lets_go_of_all_when_it_is_closed(ring: Ring) -> None:
    whole = ring.size - PADDING
    ring.write(0, b"x" * whole, 7)
    before = descriptors()
    view = RingView.attach(ring.name)
    assert bytes(view.view(0, whole)) == b"x" * whole
    assert bytes(view.view(whole, 0)) == b""
    assert view.lives(0, whole, 7)
    assert not view.lives(ring.size - 120, 1, 7), "its stamp would stand half behind the end"
    view.close()
    assert view._memory.closed
    assert descriptors() == before


def test_of_dead_rings_none_is_left_out_whatever_else_has_such_a_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("haltere.workers.ring.FOLDER", tmp_path)
    for number in range(20):
        (tmp_path / f"haltere-log-{number}").touch()
        (tmp_path / f"haltere-1-{number}").touch()
    lock, before = fcntl.flock, descriptors()

    def flock(descriptor: int, how: int) -> None:
        lock(descriptor, how)
        os.unlink(os.readlink(f"/proc/self/fd/{descriptor}"))  # another process sweeps, too

    monkeypatch.setattr(fcntl, "flock", flock)
    assert sorted(sweep()) == sorted(f"haltere-1-{number}" for number in range(20))
    assert descriptors() == before
