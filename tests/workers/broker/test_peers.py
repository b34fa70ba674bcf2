"""Who is there, who has credit, and which leases end."""

from __future__ import annotations

import pytest

from haltere.workers.broker.batch import Key
from haltere.workers.broker.peers import MAX_AHEAD, Lease, Peers
from haltere.workers.wire.messages import Beat, Hello

KEY, OTHER = Key("run", "eiger", "a"), Key("run", "pilc", "b")


@pytest.fixture
def peers() -> Peers:
    return Peers(lease=90.0, liveness=3.0, grace=1.0)


def greet(peers: Peers, name: str, *, session: int = 1, now: float = 0.0, role: str = "worker") -> list[Lease]:
    return peers.hello(name.encode(), Hello(1, role, name, session), now)


def give(peers: Peers, name: str, token: int, *, now: float = 0.0, key: Key = KEY, backfill: bool = False) -> Lease:
    lease = Lease(token, name.encode(), key, token, backfill, 0.0)
    peers.assign(lease, now)
    return lease


def failing(peers: Peers, now: float) -> list[tuple[bytes, str]]:
    return [(peer.peer, why) for peer, why in peers.failing(now)]


def test_a_hello_said_again_is_a_sign_of_life_and_ends_nothing(peers: Peers) -> None:
    greet(peers, "w")
    give(peers, "w", 1)
    assert greet(peers, "w", now=2.0) == []
    assert peers.leases == 1
    assert failing(peers, 3.1) == [(b"w", "work was lost on the way")]
    peers.beat(peers[b"w"], Beat(1, -1, 1, held=[1]), 2.0)
    assert failing(peers, 5.0) == []
    assert failing(peers, 5.1) == [(b"w", "silent")]


def test_a_name_or_an_address_belongs_to_the_last_that_said_it(peers: Peers) -> None:
    greet(peers, "w")
    greet(peers, "v")
    give(peers, "w", 1, backfill=True)
    give(peers, "v", 2)
    ended = peers.hello(b"v", Hello(1, "worker", "w", 2), 0.0)
    assert [lease.token for lease in ended] == [1, 2]
    assert (len(peers), peers.leases, peers.backfilling) == (1, 0, 0)


def test_credit_only_grows_and_not_beyond_what_is_ever_ahead(peers: Peers) -> None:
    greet(peers, "w")
    peer = peers[b"w"]
    for limit, stands in ((3, 3), (2, 3), (10**6, MAX_AHEAD)):
        peers.grant(peer, limit, 0.0)
        assert peer.limit == stands


def test_those_with_credit_take_turns_and_nobody_has_two(peers: Peers) -> None:
    for name in "abc":
        greet(peers, name)
        for _ in range(3):
            peers.grant(peers[name.encode()], 2, 0.0)
    greet(peers, "none")
    peers.grant(peers[b"none"], 0, 0.0)
    assert len(peers._willing) == 3, "one without credit isn't willing"
    turns = []
    while (peer := peers.next()) is not None:
        turns.append(peer.name)
        give(peers, peer.name, len(turns))
    assert turns == ["a", "b", "c", "a", "b", "c"]
    peers.grant(peers[b"b"], 3, 0.0)
    assert peers.next() is peers[b"b"]
    peers.lose(b"b")
    assert peers.next() is None


def test_a_worker_makes_progress_when_it_goes_on_to_another_unit_or_has_none(peers: Peers) -> None:
    greet(peers, "w")
    for token in (0, 1):
        give(peers, "w", token)
    peer = peers[b"w"]
    for now, busy, progress in (
        (1.0, 0, 1.0),
        (2.0, 0, 1.0),
        (3.0, 1, 3.0),
        (4.0, 1, 3.0),
        (5.0, -1, 5.0),
        (6.0, -1, 6.0),
    ):
        peers.beat(peer, Beat(1, busy, 2, held=[0, 1]), now)
        assert peer.progress == progress


def test_a_worker_that_stays_at_one_unit_for_a_lease_fails_and_an_idle_one_does_not(peers: Peers) -> None:
    greet(peers, "w")
    peer = peers[b"w"]
    give(peers, "w", 0, now=100.0)
    assert peer.progress == 100.0
    for now in (100.0, 150.0, 190.0, 190.5):
        peers.beat(peer, Beat(1, 0, 1, held=[0]), now)
        peer.heard = now
        assert failing(peers, now) == ([(b"w", "no progress")] if now > 190.0 else [])
    give(peers, "w", 1, now=190.5)
    assert peer.progress == 100.0, "more work is no progress"
    peers.beat(peer, Beat(1, -1, 2, held=[0]), 500.0)
    peer.heard, peer.progress = 700.0, 500.0
    assert failing(peers, 700.0) == []


def test_work_that_does_not_arrive_is_missed_after_a_while(peers: Peers) -> None:
    greet(peers, "w")
    peer = peers[b"w"]
    give(peers, "w", 0, now=10.0)
    assert peer.received == 10.0
    give(peers, "w", 1, now=12.0)
    assert peer.received == 10.0, "the first is missed since 10"
    peer.heard = 13.1
    assert failing(peers, 13.0) == []
    assert failing(peers, 13.1) == [(b"w", "work was lost on the way")]
    peers.beat(peer, Beat(1, -1, 1, held=[0]), 13.1)
    assert peer.received == 13.1
    peers.beat(peer, Beat(1, -1, 0, held=[0]), 14.0)  # an old one
    assert (peer.got, peer.received) == (1, 13.1)
    peers.beat(peer, Beat(1, -1, 2, held=[0, 1]), 15.0)
    peers.beat(peer, Beat(1, -1, 2, held=[0, 1]), 16.0)
    assert peer.received == 16.0
    peer.heard = 30.0
    assert failing(peers, 30.0) == []


def test_a_lease_that_its_worker_has_had_and_does_not_hold_ends_after_the_grace(peers: Peers) -> None:
    greet(peers, "w")
    peer = peers[b"w"]
    first, second = give(peers, "w", 7), give(peers, "w", 8)
    assert (first.nth, second.nth) == (1, 2)
    peers.beat(peer, Beat(1, -1, 1, held=[]), 1.0)
    assert peers.unheld(2.0) == []
    assert peers.unheld(2.1) == [first], "the second may be on its way"
    peers.beat(peer, Beat(1, -1, 2, held=[8]), 2.5)
    assert peers.unheld(2.1) == [first], "it is missed since the first beat"
    peers.beat(peer, Beat(1, -1, 2, held=[7, 8]), 3.0)
    assert peers.unheld(99.0) == []
    peers.beat(peer, Beat(1, -1, 2, held=[]), 4.0)
    peers.end(first, 4.5)
    assert peers.unheld(99.0) == [second]


def test_a_lease_ends_once_and_its_worker_had_it_since_the_one_before_ended(peers: Peers) -> None:
    greet(peers, "w")
    leases = [give(peers, "w", token, now=10.0, backfill=token == 1) for token in range(2)]
    assert peers.backfilling == 1
    assert peers.find(1, b"w") is leases[1]
    assert peers.find(1, b"v") is None
    assert peers.find(9, b"w") is None
    for _ in range(2):
        peers.end(leases[0], 13.0)
    peers.end(leases[1], 14.5)
    assert (peers.backfilling, peers.leases, peers[b"w"].leases) == (0, 0, {})
    assert peers.take_ended() == [(leases[0], 3.0), (leases[1], 1.5)]
    assert peers.take_ended() == []
    assert peers[b"w"].progress == 14.5


def test_what_is_on_disk_or_forgotten_ends_the_leases_of_it_and_no_others(peers: Peers) -> None:
    greet(peers, "w")
    leases = [give(peers, "w", token, key=key) for token, key in enumerate((KEY, KEY, OTHER, OTHER))]
    peers[b"w"].told |= {KEY, OTHER}
    peers.finish(KEY, {1, 2}, 5.0)
    assert [lease for lease, _ in peers.take_ended()] == [leases[1]]
    peers.forget(OTHER, 6.0)
    assert [lease for lease, _ in peers.take_ended()] == leases[2:]
    assert peers[b"w"].told == {KEY}
    assert peers.leases == 1


def test_a_peer_that_is_lost_gives_back_what_it_had_in_the_order_it_was_sent(peers: Peers) -> None:
    greet(peers, "w")
    leases = [give(peers, "w", token, backfill=token > 0) for token in range(3)]
    assert peers.backfilling == 2
    assert peers.lose(b"w") == leases
    assert (peers.lose(b"w"), peers.backfilling, peers.leases, len(peers)) == ([], 0, 0, 0)
    peers.end(leases[0], 1.0)
    assert peers.take_ended() == []


def test_a_session_that_is_known_is_a_sign_of_life(peers: Peers) -> None:
    greet(peers, "w", session=4)
    assert peers.knows(b"w", 3, 2.0) is None
    assert peers.knows(b"v", 4, 2.0) is None
    assert peers[b"w"].heard == 0.0
    assert peers.knows(b"w", 4, 2.0) is peers[b"w"]
    assert peers[b"w"].heard == 2.0


def test_a_role_is_its_own(peers: Peers) -> None:
    greet(peers, "w")
    greet(peers, "w", role="ingest")
    assert [peer.role for peer in peers.of("ingest")] == ["ingest"]
