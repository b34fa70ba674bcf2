"""The simulated Eiger with its FileWriter off: a scan is reduced whole, by way of the pool's files or by waiting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import h5py
import msgspec
import pytest

from haltere.backfill import backfill
from haltere.callbacks.access import processed
from haltere.rereduce import rereduce
from haltere.session import Session
from haltere.verify import verify
from haltere.workers.audit.accounts import Word
from haltere.workers.errors import FileError, SettingsError
from haltere.workers.pool.local import Chaos
from haltere.workers.settings import load
from haltere.workshop import Workshop

ROWS, COLUMNS, DWELL = 6, 20, 0.01
FRAMES = ROWS * COLUMNS
BATCH = 10


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    settings = load(directory=tmp_path_factory.mktemp("no-files"), ring_bytes=8 << 20)
    with Session.start(settings, chaos=Chaos(drop_every=4, drop_group=BATCH)) as session:
        session.eiger.stored.put(False)
        yield session


def fly(session: Session, policy: str) -> dict[str, Any]:
    from haltere.plans.fly import fly_grid

    recipes = [
        msgspec.to_builtins(each) | ({"policy": policy} if each.source == "eiger" else {})
        for each in session.recipes
        if each.source != "xspress3"
    ]
    session.RE(
        fly_grid(
            [session.eiger, session.pilc], session.stage.y, -5, 5, ROWS, session.stage.x, -5, 5, COLUMNS,
            dwell=DWELL, md={"recipes": recipes},
        )
    )  # fmt: skip
    return session.wait(timeout=100)


@pytest.mark.timeout(240)
def test_what_finds_no_room_is_spilled_and_reduced_and_the_documents_say_where_it_is(session: Session) -> None:
    stop = fly(session, "spill")
    eiger = stop["frames"]["eiger"]
    assert eiger["live"] + eiger["backfilled"] == eiger["expected"] == FRAMES
    chaos = sum(frame // BATCH % 4 == 3 for frame in range(FRAMES))
    assert eiger["backfilled"] >= chaos
    assert sum(each["frames"] for each in eiger["spilled"]) == eiger["backfilled"]
    raw = session.db[-1]
    assert [each["policy"] for each in raw.start["recipes"] if each["source"] == "eiger"] == ["spill"]
    with h5py.File(stop["nexus"]) as file:
        assert file["entry/ledger/eiger/policy"][()] == b"spill"
        uris = {row["uri"].decode() for row in file["entry/raw_data/eiger"][()]}
    assert uris == {each["uri"] for each in eiger["spilled"]}
    reduced = session.catalog.processed[stop["run_start"]]
    assert reduced["xrd"].metadata["configuration"]["xrd"]["data"]["policy"] == "spill"
    assert "eiger_image" not in raw["primary"], "nobody kept it"


@pytest.mark.timeout(240)
def test_what_was_spilled_is_verified_and_reduced_again_and_the_rest_is_said_to_be_lost(session: Session) -> None:
    if not len(session.catalog.raw):
        fly(session, "spill")
    raw, shop = session.catalog.raw[1], Workshop.of(session)
    stop = session.catalog.processed[processed(raw).start["uid"]].metadata["stop"]
    live, backfilled = stop["frames"]["eiger"]["live"], stop["frames"]["eiger"]["backfilled"]
    verdict = verify(shop, raw.start["uid"], bits=10)
    assert verdict.agrees
    words = {(each.stream, each.source): each.word for each in verdict.findings}
    assert words["eiger", "files"] == words["eiger", "reduced again"] == Word.agrees
    assert words["eiger", "frames without a file"] is Word.unchecked
    assert backfill(shop, raw.start["uid"]).nothing_to_do
    with pytest.raises(FileError, match="frame 0 of eiger, or one after it, is in no file"):
        backfill(shop, raw.start["uid"], only="all")
    (own,) = [recipe for recipe in raw.start["recipes"] if recipe["source"] == "eiger"]
    coarse = {**own, "name": "coarse", "params": {**own["params"], "bins": 50}}
    again = rereduce(raw, coarse, shop, say=lambda _: None)
    eiger = again.stop["frames"]["eiger"]
    assert (eiger["expected"], eiger["backfilled"], eiger["lost"]) == (FRAMES, backfilled, live)
    assert eiger["intervals"]["lost"] == stop["frames"]["eiger"]["intervals"]["live"]
    assert set(eiger["reasons"].values()) == {"it comes live no more, and no file was announced that has eiger_image"}
    assert verify(shop, again.start["uid"], bits=10).agrees


@pytest.mark.timeout(240)
def test_a_detector_that_waits_brings_every_frame_live(session: Session) -> None:
    eiger = fly(session, "block")["frames"]["eiger"]
    assert eiger["live"] == eiger["expected"] == FRAMES
    assert "spilled" not in eiger
    (own,) = [recipe for recipe in session.db[-1].start["recipes"] if recipe["source"] == "eiger"]
    with pytest.raises(SettingsError, match="eiger kept no file, and none of its frames was spilled"):
        rereduce(session.db[-1], {**own, "name": "other", "params": {**own["params"], "bins": 50}}, session)
