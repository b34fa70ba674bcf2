"""What a run is owed is reduced from its documents and files, once, to the bit, whatever was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from haltere.backfill import backfill
from haltere.backfilled import Advance, Backfilled
from haltere.rereduce import rereduce
from haltere.workers.errors import FileError, ReductionError, SettingsError
from haltere.workers.ledger.reader import LedgerReader
from haltere.workers.recipes import Recipe
from haltere.workshop import Workshop

from .measured_runs import PONI, POSITIONS, XRD, Beamtime, Scan, same_bits, table

pytestmark = pytest.mark.timeout(300)  # the first has to wait for a pool, a catalog, and both again
DEADLINE = 100.0
FRAMES = 800
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("beamtime")


@pytest.fixture(scope="module")
def killed(directory: Path) -> tuple[str, int]:
    """Return a run whose backfill was killed, pool and all, and how many of its frames were done then."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.system.measured_runs", str(directory), str(FRAMES)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        uid = process.stdout.readline().strip()
        deadline = time.monotonic() + DEADLINE
        while done(directory / "pool" / "ledger.db", uid) < 40:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    return uid, done(directory / "pool" / "ledger.db", uid)


@pytest.fixture(scope="module")
def beamtime(directory: Path, killed: tuple[str, int]) -> Iterator[Beamtime]:
    """Return the folder that was left behind, with a catalog and a pool at work again."""
    with Workshop.open(Beamtime.settings(directory)) as shop:
        yield Beamtime(directory, shop)


@pytest.fixture(scope="module")
def reduced(beamtime: Beamtime) -> tuple[Scan, Backfilled]:
    """Return a run that no pool had seen, and what came of it."""
    scan = beamtime.measure()
    return scan, backfill(beamtime.shop, scan.uid)


def test_a_run_that_no_pool_has_seen_is_reduced(beamtime: Beamtime, reduced: tuple[Scan, Backfilled]) -> None:
    scan, outcome = reduced
    assert outcome.whole
    assert outcome.reduced == 48
    assert outcome.frames["eiger"] == {"expected": 24, "live": 0, "backfilled": 24, "quarantined": 0, "lost": 0}
    run = beamtime.shop.catalog.processed[outcome.processed_uid]
    assert run.start["raw_uid"] == scan.uid
    assert table(run, "xrd").tolist() == [[frame, 1] for frame in range(24)]
    with h5py.File(outcome.nexus) as file:
        assert file["entry/ledger/eiger/backfilled"][()] == 24
        np.testing.assert_allclose(file["entry/xrd/total"][:], scan.images.sum((1, 2)))


def test_once_more_there_is_nothing_to_do(beamtime: Beamtime, reduced: tuple[Scan, Backfilled]) -> None:
    scan, before = reduced
    for only in ("owed", "quarantined"):
        outcome = backfill(beamtime.shop, scan.uid[:8], only=only)
        assert (outcome.nothing_to_do, outcome.whole, outcome.reduced) == (True, True, 0)
        assert outcome.processed_uid == before.processed_uid
    assert "nothing to do" in outcome.words


def test_everything_again_agrees_to_the_bit(beamtime: Beamtime, reduced: tuple[Scan, Backfilled]) -> None:
    scan, before = reduced
    told: list[Advance] = []
    outcome = backfill(beamtime.shop, scan.uid, only="all", listen=told.append)
    assert (outcome.compared, outcome.different, outcome.whole) == (48, 0, True)
    assert outcome.supersedes == before.processed_uid != outcome.processed_uid
    assert told[-1].done == told[-1].owed == 48


def test_a_bit_that_differs_is_found(beamtime: Beamtime) -> None:
    scan = beamtime.measure()
    backfill(beamtime.shop, scan.uid)
    with h5py.File(scan.image_file(1), "r+") as file:
        file["/entry/data/data"][3, 0, 0] += 1
    outcome = backfill(beamtime.shop, scan.uid, only="all")
    assert (outcome.different, outcome.differences) == (1, {"eiger": [19]})
    assert not outcome.whole


def test_a_run_whose_session_died_is_completed_with_what_the_catalog_knows(beamtime: Beamtime) -> None:
    scan = beamtime.measure(stop=False)
    documents = list(scan.documents())
    beamtime.tell(scan, len(documents) // 2)  # the sink closes it with what it was told
    outcome = backfill(beamtime.shop, scan.uid)
    assert outcome.whole
    assert outcome.expected == 48
    assert backfill(beamtime.shop, scan.uid).nothing_to_do
    found = list(beamtime.documents(outcome.processed_uid))
    stop = found[-1][1]
    assert (stop["exit_status"], stop["frames"]["eiger"]["expected"]) == ("fail", 24)
    for stream, uid in [(doc["name"], doc["uid"]) for name, doc in found if name == "descriptor"]:
        pages = [doc["seq_num"] for name, doc in found if name == "event_page" and doc["descriptor"] == uid]
        assert [number for page in pages for number in page] == list(range(1, 25)), stream
    # It is the run that would have come of it, had nothing happened.
    twin = beamtime.measure()
    other = backfill(beamtime.shop, twin.uid)
    for stream in ("eiger", "pilc"):
        one, two = beamtime.rows(outcome.processed_uid, stream), beamtime.rows(other.processed_uid, stream)
        assert one.keys() == two.keys()
        assert all(same_bits(one[first], two[first]) for first in one)


def test_frames_whose_file_comes_late_make_a_run_that_takes_the_place_of_the_first(beamtime: Beamtime) -> None:
    scan = beamtime.measure()
    away = scan.image_file(1).rename(scan.folder / "away.h5")
    first = backfill(beamtime.shop, scan.uid)
    assert not first.whole
    assert first.frames["eiger"]["lost"] == 8
    assert "doesn't exist" in first.reasons["eiger"]["20"]
    still = backfill(beamtime.shop, scan.uid)
    assert (still.nothing_to_do, still.whole, still.processed_uid) == (True, False, first.processed_uid)
    assert "8 lost" in still.words

    away.rename(scan.image_file(1))
    second = backfill(beamtime.shop, scan.uid)
    assert second.whole
    assert (second.supersedes, second.reduced, second.taken_over) == (first.processed_uid, 8, 40)
    run = beamtime.shop.catalog.processed[second.processed_uid]
    assert run.start["supersedes"] == first.processed_uid
    before, after = beamtime.rows(first.processed_uid, "eiger"), beamtime.rows(second.processed_uid, "eiger")
    assert all(same_bits(before[at], after[at]) for at in (0, 8))
    assert table(run, "xrd")[:, 1].tolist() == [1] * 24
    assert second.nexus != first.nexus
    assert backfill(beamtime.shop, scan.uid).nothing_to_do


def test_a_frame_that_was_mended_is_tried_again_and_one_that_was_not_makes_no_run(beamtime: Beamtime) -> None:
    scan = beamtime.measure()
    spoiled = {frame: scan.spoil(frame) for frame in (2, 9)}
    first = backfill(beamtime.shop, scan.uid)
    assert first.frames["eiger"]["quarantined"] == 2
    assert first.whole  # of what "owed" asks for
    assert backfill(beamtime.shop, scan.uid).nothing_to_do
    again = backfill(beamtime.shop, scan.uid, only="quarantined")
    assert (again.nothing_to_do, again.whole, again.processed_uid) == (True, False, first.processed_uid)

    scan.mend(2, spoiled[2])
    second = backfill(beamtime.shop, scan.uid, only="quarantined")
    assert (second.supersedes, second.reduced, second.taken_over) == (first.processed_uid, 8, 40)
    assert second.frames["eiger"]["quarantined"] == 1
    assert list(second.reasons["eiger"]) == ["9"]
    values = np.asarray(beamtime.shop.catalog.processed[second.processed_uid]["xrd"].base["internal"].read()["total"])
    assert np.isnan(values[9])
    assert values[2] == scan.images[2].sum()


def test_a_run_that_would_know_less_is_not_made(beamtime: Beamtime) -> None:
    scan = beamtime.measure()
    first = backfill(beamtime.shop, scan.uid)
    scan.image_file(0).unlink()
    with pytest.raises(FileError, match=r"frame 0 of eiger.*would know less"):
        backfill(beamtime.shop, scan.uid, only="all")
    assert backfill(beamtime.shop, scan.uid).processed_uid == first.processed_uid


def test_another_recipe_makes_another_run_and_the_same_one_none(
    beamtime: Beamtime, reduced: tuple[Scan, Backfilled], tmp_path: Path
) -> None:
    scan, _ = reduced
    raw = beamtime.shop.catalog.raw[scan.uid]
    fine: dict[str, Any] = {**XRD, "name": "fine", "params": {**XRD["params"], "bins": 32}}
    said: list[str] = []
    made = rereduce(raw, fine, beamtime.shop, say=said.append)
    assert sorted(made) == ["fine", "positions"]
    assert "pilc_x" in made["fine"].read().coords
    file = tmp_path / "fine.toml"
    file.write_text(
        '[recipe]\nname = "fine"\nreducer = "azimuthal"\n[recipe.params]\nbins = 32\n'
        + f"poni = {json.dumps(PONI)}".replace(":", " =")
    )
    sames: list[Any] = [file, Recipe(**fine), [fine], [fine, POSITIONS]]
    for same in sames:
        again = rereduce(scan.uid, same, beamtime.shop, say=said.append)
        assert again.start["uid"] == made.start["uid"]
    assert all("nothing to do" in each for each in said[1:])
    assert [row.processed for row in reductions(beamtime, scan)].count(made.start["uid"]) == 1


def reductions(beamtime: Beamtime, scan: Scan) -> list[Any]:
    reader = beamtime.shop.reader()
    assert reader is not None
    found = reader.reductions(scan.uid)
    reader.close()
    return found


def test_a_recipe_that_fits_no_detector_is_refused(beamtime: Beamtime, reduced: tuple[Scan, Backfilled]) -> None:
    scan, _ = reduced
    with pytest.raises(ReductionError, match=r"recipe xrd is for lambda; run .* has eiger, pilc"):
        rereduce(scan.uid, {**XRD, "source": "lambda"}, beamtime.shop)
    with pytest.raises(ReductionError, match=r"isn't installed"):
        rereduce(scan.uid, "nonsense", beamtime.shop)


def test_files_outside_of_the_roots_are_refused_before_anything_is_called_lost(
    beamtime: Beamtime, tmp_path: Path
) -> None:
    scan = beamtime.measure(folder=tmp_path)
    with pytest.raises(SettingsError, match=rf"lies outside of the folders that may be read.*{tmp_path}"):
        backfill(beamtime.shop, scan.uid)


def test_killed_in_the_middle_it_goes_on_from_there(beamtime: Beamtime, killed: tuple[str, int]) -> None:
    uid, kept = killed
    assert 40 <= kept < 2 * FRAMES
    outcome = backfill(beamtime.shop, uid)
    assert outcome.whole
    assert outcome.reduced <= 2 * FRAMES - kept
    run = beamtime.shop.catalog.processed[outcome.processed_uid]
    assert table(run, "xrd")[:, 0].tolist() == list(range(FRAMES))
    assert backfill(beamtime.shop, uid).nothing_to_do


def test_the_command_says_it_in_json_and_by_its_exit_code(beamtime: Beamtime, reduced: tuple[Scan, Backfilled]) -> None:
    command = [sys.executable, "-m", "haltere", "backfill", "--directory", str(beamtime.directory), "--json"]
    scan, _ = reduced
    found = subprocess.run([*command, scan.uid], capture_output=True, text=True, timeout=100, check=False)
    assert found.returncode == 0, found.stderr
    outcome = json.loads(found.stdout.splitlines()[-1])
    assert (outcome["nothing_to_do"], outcome["expected"], outcome["owed"], outcome["whole"]) == (True, 48, 0, True)


def test_a_run_that_is_not_there_is_named(beamtime: Beamtime) -> None:
    with pytest.raises(SettingsError, match=r"has no run nonsense: name a uid, its beginning, or a scan's number"):
        backfill(beamtime.shop, "nonsense")


def done(ledger: Path, run: str) -> int:
    if not ledger.is_file():
        return 0
    try:
        reader = LedgerReader(ledger)
    except FileError:
        return 0
    found = reader.frames_done(run)
    reader.close()
    return found
