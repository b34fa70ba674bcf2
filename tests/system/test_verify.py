"""Whatever is tampered with, the recount finds it and says which source it was."""

from __future__ import annotations

import copy
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import pytest
from typer.testing import CliRunner

from haltere.__main__ import app
from haltere.backfill import backfill
from haltere.backfilled import Backfilled
from haltere.callbacks.rewriting import Rewriting
from haltere.verify import Verdict, verify
from haltere.workers.audit.accounts import Account, Word
from haltere.workers.errors import PoolError, SettingsError
from haltere.workshop import Workshop

from .measured_runs import Beamtime, Scan

LOST = range(16, 24)
SPOILED = 2


@dataclass
class Flown:
    """A run with frames of every kind, reduced; and the folder that it lies in."""

    beamtime: Beamtime
    scan: Scan
    outcome: Backfilled
    away: Path

    def verify(self, **options: Any) -> Verdict:
        """Recount it."""
        return verify(self.beamtime.shop, self.outcome.processed_uid, **options)

    def wrong(self) -> dict[tuple[str, str], str]:
        """Return what disagrees, and how."""
        found = self.verify().findings
        return {(each.stream, each.source): each.text for each in found if each.word is Word.disagrees}

    @contextmanager
    def kept(self, path: Path) -> Iterator[Path]:
        """Put a file back afterwards."""
        spare = path.with_suffix(".spare")
        shutil.copy(path, spare)
        yield path
        spare.replace(path)

    @contextmanager
    def documents(self, change: Callable[[str, Any], Any]) -> Iterator[None]:
        """Let the catalog have the processed run as ``change`` makes it."""
        self._write(change)
        yield
        self._write(lambda name, doc: doc)

    def _write(self, change: Callable[[str, Any], Any]) -> None:
        catalog = self.beamtime.shop.catalog
        catalog.processed.delete_contents(self.outcome.processed_uid, recursive=True, external_only=False)
        write = Rewriting(lambda: catalog.processed, batch_size=1000)
        for name, doc in self.beamtime.documents(self.outcome.processed_uid):
            write(name, change(name, copy.deepcopy(doc)))


@pytest.fixture(scope="module")
def flown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flown]:
    directory = tmp_path_factory.mktemp("flown")
    (directory / "catalog").mkdir()
    (directory / "catalog" / "catalog.db").touch()
    with Workshop.open(Beamtime.settings(directory)) as shop:
        beamtime = Beamtime(directory, shop)
        scan = beamtime.measure()
        scan.spoil(SPOILED)
        away = scan.image_file(1).rename(scan.folder / "away.h5")
        yield Flown(beamtime, scan, backfill(shop, scan.uid), away)


def test_a_run_that_nobody_touched_agrees_and_what_cannot_be_checked_is_said(flown: Flown) -> None:
    verdict = flown.verify(bits=10)
    assert verdict.agrees
    assert verdict.frames["eiger"] == {"expected": 24, "live": 0, "backfilled": 15, "quarantined": 1, "lost": 8}
    words = {(each.stream, each.source): (each.word, each.text) for each in verdict.findings}
    assert words["eiger", "files"] == (Word.unchecked, f"{flown.scan.image_file(1).name} isn't there any more")
    assert words["pilc", "files"] == (Word.agrees, "")
    assert words["eiger", "lost frames"][0] is Word.agrees
    assert words["eiger", "reduced again"] == (Word.agrees, "15 frames to the bit")
    assert verdict.words == f"all of {len(words) - 1} checks agree, 1 couldn't be checked"


def test_the_command_prints_the_verdict_last_and_exits_by_it(flown: Flown, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def opened(settings: Any, roots: Any = ()) -> Iterator[Workshop]:
        yield flown.beamtime.shop  # whose catalog this process serves already

    monkeypatch.setattr(Workshop, "open", opened)
    command = ["verify", flown.scan.uid, "--directory", str(flown.beamtime.directory)]
    run = CliRunner().invoke
    found = run(app, command)
    assert (found.exit_code, found.stdout.splitlines()[-1].partition(",")[0]) == (0, "all of 18 checks agree")
    with flown.kept(Path(flown.outcome.nexus)) as path:
        with h5py.File(path, "r+", locking=False) as file:
            file["entry/xrd/status"][0] = 0
        found = run(app, [*command, "--json"])
    assert (found.exit_code, json.loads(found.stdout)["agrees"]) == (1, False)
    assert isinstance(run(app, ["verify", "nonsense"]).exception, SettingsError)  # 2, by main


def test_a_nexus_file_that_was_changed_is_found(flown: Flown) -> None:
    with flown.kept(Path(flown.outcome.nexus)) as path:
        with h5py.File(path, "r+", locking=False) as file:
            file["entry/xrd/status"][5] = 0
            file["entry/xrd/intensity"][SPOILED] = 1.0
            file["entry/xrd/total"].resize((23,))
            file["entry/positions/pilc_x"][7] += 1e-9
            file["entry/ledger/eiger/lost"][()] = 7
            file["entry/ledger/eiger/reasons"].resize((8,))
        wrong = flown.wrong()
    assert wrong == {
        ("eiger", "NeXus xrd/status"): "frames 5 live; frames 5 not backfilled",
        ("eiger", "NeXus xrd"): "intensity has a value for frames 2, which have none; total has 23 frames, not 24",
        ("eiger", "NeXus ledger"): "lost 7, its intervals give 8; no reason for frames 23",
        ("pilc", "NeXus values"): "positions/pilc_x of frames 7 isn't what the ledger has",
    }
    assert flown.wrong() == {}


def test_documents_that_were_changed_are_found(flown: Flown) -> None:
    def change(name: str, doc: Any) -> Any:
        if name == "event_page" and doc["data"]["frame"][0] == 8 and "pilc_x" in doc["data"] and "total" in doc["data"]:
            doc["data"]["status"][1] = 0
        if name == "stop":
            doc["frames"]["eiger"]["lost"] -= 1
            doc["frames"]["pilc"]["intervals"]["live"] = [[0, 23]]
            doc["frames"]["pilc"]["drops"] = {"ring-full": 3}
        return doc

    with flown.documents(change):
        wrong = flown.wrong()
    assert wrong["eiger", "events xrd"] == "frames 9 live; frames 9 not backfilled"
    assert wrong["eiger", "stop document"] == "lost 7, its intervals give 8"
    assert "frames 23 without an end" in wrong["pilc", "stop document"]
    assert "drops 3 ring-full, not none" in wrong["pilc", "stop document"]


def test_a_missing_event_is_found(flown: Flown) -> None:
    def change(name: str, doc: Any) -> Any:
        if name == "event_page" and doc["data"]["frame"][0] == 8 and "total" in doc["data"]:
            for column in (doc["data"], doc["timestamps"], {"": doc["seq_num"], "t": doc["time"], "u": doc["uid"]}):
                for values in column.values():
                    del values[3]
        return doc

    with flown.documents(change):
        wrong = flown.wrong()
    assert wrong["eiger", "events xrd"].startswith("seq_num isn't in order: 13 at 12")


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("delete from batches where stream='pilc' and first=8", "frames 8–15 without an end"),
        ("update runs set completed=null", "the run isn't completed"),
    ],
)
def test_a_ledger_that_was_changed_is_found(flown: Flown, statement: str, words: str) -> None:
    ledger = flown.beamtime.shop.ledger
    with closing(sqlite3.connect(ledger)) as db:
        before = [db.execute(f"select * from {table}").fetchall() for table in ("batches", "runs")]
        db.execute(statement)
        db.commit()
    wrong = flown.wrong()
    with closing(sqlite3.connect(ledger)) as db:
        for table, rows in zip(("batches", "runs"), before, strict=True):
            db.execute(f"delete from {table}")
            db.executemany(f"insert into {table} values({','.join('?' * len(rows[0]))})", rows)
        db.commit()
    assert any(words in text for (_, source), text in wrong.items() if source in ("ledger", "stop document")), wrong


def test_a_lost_frame_that_can_be_read_is_found(flown: Flown) -> None:
    flown.away.rename(flown.scan.image_file(1))
    wrong = flown.wrong()
    flown.scan.image_file(1).rename(flown.away)
    assert wrong == {("eiger", "lost frames"): "frames 16–23 can be read"}


def test_a_frame_that_is_not_in_its_file_any_more_is_found_and_bits_that_differ(flown: Flown) -> None:
    pilc = flown.scan.folder / f"{flown.scan.uid}_pilc.h5"
    with flown.kept(pilc):
        with h5py.File(pilc, "r+") as file:
            values = file["x"][()]
            values[4] += 1e-12
            file["x"][...] = values
        (found,) = [
            each for each in flown.verify(bits=24).findings if (each.stream, each.word) == ("pilc", Word.disagrees)
        ]
        assert (found.source, found.text) == ("reduced again", "positions/pilc_x of frames 4")
        with h5py.File(pilc, "r+") as file:
            del file["x"]
            file["x"] = values[:20]
        assert flown.wrong() == {("pilc", "files"): "frames 20–23 aren't there"}


def test_a_run_that_is_not_reduced_or_not_complete_is_refused(flown: Flown) -> None:
    scan = flown.beamtime.measure()
    with pytest.raises(SettingsError, match="has not been reduced"):
        verify(flown.beamtime.shop, scan.uid)
    uid = flown.outcome.processed_uid
    with flown.documents(lambda name, doc: doc):
        write = Rewriting(lambda: flown.beamtime.shop.catalog.processed, batch_size=1000)
        flown.beamtime.shop.catalog.processed.delete_contents(uid, recursive=True, external_only=False)
        for name, doc in flown.beamtime.documents(uid):
            if name != "stop":
                write(name, doc)
        with pytest.raises(PoolError, match="isn't complete in the catalog: `haltere backfill"):
            verify(flown.beamtime.shop, uid)


def test_accounts_are_compared_by_their_frames() -> None:
    one = Account.of_status([0, 0, 1, 2, 3, 3])
    assert one.counts() == {"expected": 6, "live": 2, "backfilled": 1, "quarantined": 1, "lost": 2}
    assert one.differences(Account.of_status([0, 0, 1, 2, 3])) == ["5 frames, not 6", "frames 5 not lost"]
    assert Account.told({"expected": 4, "intervals": {"live": [[0, 2]], "lost": [[1, 3]]}}).faults() == [
        "frames 1–2 lost and something else",
        "frames 3 without an end",
    ]
    assert Account.of_status([0, 255, 0]).faults() == ["frames 1 without an end"]
