"""What a session's log keeps, and what it shows."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from haltere.session_log import session_log

ours, theirs = logging.getLogger("haltere.somewhere"), logging.getLogger("bluesky.somewhere")


def test_a_warning_is_one_line_at_the_terminal_and_its_traceback_is_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with session_log(tmp_path / "session.log"):
        try:
            raise RuntimeError("no answer")
        except RuntimeError:
            ours.exception("the catalog\nis away")
            theirs.exception("Run aborted")
        ours.info("not worth a line")
    ours.warning("after the end")
    assert capsys.readouterr().err == "haltere: the catalog is away\n"
    kept = (tmp_path / "session.log").read_text()
    assert kept.count("RuntimeError: no answer") == 2
    assert "Run aborted" in kept
    assert "after the end" not in kept


def test_a_log_on_a_full_disk_is_told_of_once_and_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with session_log(Path("/dev/full")):
        ours.warning("first")
        ours.warning("second")
    said = sorted(capsys.readouterr().err.splitlines())
    assert said == ["haltere: /dev/full can't be written: No space left on device", "haltere: first", "haltere: second"]
