"""Which bytes a lease-holder asks the origin for, in which order."""

from __future__ import annotations

import pytest
from blob_names import a_ref

from passel.core import bitfield
from passel.core.messages import (
    Demand,
    FetchSpan,
    HashPiece,
    Lease,
    LeaseFailed,
    LeaseOpened,
    PeerLimits,
    Refusal,
    Tell,
)
from passel.core.pieces import MIB, Geometry
from passel.core.seed import SeedMachine

REF = a_ref()


def spans(commands: list[object]) -> list[tuple[int, int]]:
    return [(c.start, c.stop) for c in commands if isinstance(c, FetchSpan)]


def leased(size: int, todo: int | None = None, **limits: int) -> SeedMachine:
    seed = SeedMachine(PeerLimits(**limits))
    geometry = Geometry.of(size)
    todo = geometry.all_pieces if todo is None else todo
    seed.lease(Lease(REF, 7, todo, (), None, 10.0), 0, geometry, 0, 0.0)
    return seed


def test_first_request_of_unknown_size_is_one_piece_around_the_wanted_byte() -> None:
    seed = SeedMachine(PeerLimits())
    urgent = ((5 * MIB + 77, 5 * MIB + 99),)
    seed.lease(Lease(REF, 1, None, urgent, None, 10.0), 0, None, 0, 0.0)
    commands, next_attempt = seed.pump(0.0, 1)
    assert spans(commands) == [(5 * MIB, 6 * MIB)]
    assert seed.pump(0.0, next_attempt)[0] == [], "one question until the size is known"
    told = seed.opened(1, 40 * MIB, True, 0.1)
    assert told == [Tell(0, LeaseOpened(REF.id, 1, 40 * MIB, True), hurry=True)]
    seed.check_invariants()


def test_bulk_leaves_a_slot_for_clients_and_never_asks_twice() -> None:
    seed = leased(100 * MIB)
    commands, n = seed.pump(0.0, 1)
    assert spans(commands) == [(0, 4 * MIB), (4 * MIB, 8 * MIB)]
    seed.demand(Demand(REF.id, 7, ((50 * MIB, 50 * MIB + 1),)), 0.0)
    commands, n = seed.pump(0.0, n)
    assert spans(commands) == [(50 * MIB, 54 * MIB)]
    seed.demand(Demand(REF.id, 7, ((51 * MIB, 51 * MIB + 1),)), 0.0)
    assert seed.pump(0.0, n)[0] == [], "it is on its way already"
    seed.check_invariants()


def test_spans_follow_the_measured_rate() -> None:
    seed = leased(400 * MIB)
    _, n = seed.pump(0.0, 1)
    seed.ended(1, None, 0.2)  # 4 MiB in 200 ms: 20 MiB/s
    seed.works[REF.id].todo &= ~bitfield.of_range(0, 4)
    commands, n = seed.pump(0.2, n)
    assert spans(commands) == [(8 * MIB, 16 * MIB)], "a burst is not taken for a rate"
    seed.works[REF.id].longest_bytes = 16 * MIB
    seed.ended(2, None, 0.2)
    seed.works[REF.id].todo &= ~bitfield.of_range(0, 8)
    commands, n = seed.pump(0.2, n)
    assert spans(commands) == [(16 * MIB, 36 * MIB)], "a second of it, while nobody reads lazily"
    seed.demand(Demand(REF.id, 7, ((0, 1),)), 0.2)
    seed.ended(3, None, 0.6)
    seed.works[REF.id].todo &= ~bitfield.of_range(0, 16)
    commands, _ = seed.pump(0.6, n)
    assert spans(commands) == [(36 * MIB, 41 * MIB)], "a quarter of a second, while somebody does"


def test_the_rate_goes_down_at_once_and_up_in_steps() -> None:
    seed = leased(400 * MIB)
    work = seed.works[REF.id]
    seed.pump(0.0, 1)
    seed.ended(1, None, 0.1)
    assert work.rate_bytes_per_s == pytest.approx(40 * MIB)
    seed.ended(2, None, 0.4)
    assert work.rate_bytes_per_s == pytest.approx(10 * MIB)


def test_a_piece_that_is_being_hashed_is_not_fetched_again() -> None:
    seed = SeedMachine(PeerLimits())
    seed.lease(Lease(REF, 1, None, ((0, 1),), None, 10.0), 0, None, 0, 0.0)
    seed.pump(0.0, 1)
    seed.opened(1, 5000 * MIB, True, 0.0)
    assert seed.got_part(1, 0, MIB) == []
    seed.ended(1, None, 0.1)
    commands, n = seed.pump(0.1, 2)
    assert spans(commands) == [(MIB, 8 * MIB)]
    assert [type(each) for each in seed.got_part(2, MIB, 8 * MIB)] == [HashPiece]
    seed.ended(2, None, 0.2)
    assert seed.pump(0.2, n)[0] == []


def test_fenced_off_after_its_time_without_a_word_of_the_shard() -> None:
    seed = leased(100 * MIB)
    assert seed.pump(11.0, 1)[0] == []
    seed.heard(0, 11.0)
    assert spans(seed.pump(11.0, 1)[0])


def test_a_newer_token_ends_the_older_lease() -> None:
    seed = leased(10 * MIB)
    seed.pump(0.0, 1)
    geometry = Geometry.of(10 * MIB)
    out = seed.lease(Lease(REF, 8, 1, (), None, 10.0), 0, geometry, 0, 0.0)
    assert len(out) == 2, "both spans are cancelled"
    assert seed.works[REF.id].token == 8
    assert seed.lease(Lease(REF, 7, 2, (), None, 10.0), 0, geometry, 0, 0.0) == []
    assert seed.works[REF.id].todo == 1, "the late word of the older one changes nothing"


def test_parts_of_a_huge_piece_are_filled_up_without_overlap() -> None:
    size = 5000 * MIB  # pieces of 8 MiB
    seed = SeedMachine(PeerLimits())
    seed.lease(Lease(REF, 1, None, ((3 * MIB, 3 * MIB + 9),), None, 10.0), 0, None, 0, 0.0)
    commands, n = seed.pump(0.0, 1)
    assert spans(commands) == [(3 * MIB, 4 * MIB)]
    seed.opened(1, size, True, 0.0)
    assert seed.got_part(1, 3 * MIB, 4 * MIB) == []
    seed.ended(1, None, 0.01)
    commands, n = seed.pump(0.01, n)
    assert spans(commands)[0] == (0, 3 * MIB)
    seed.got_part(2, 0, 3 * MIB)
    seed.ended(2, None, 0.02)
    commands, n = seed.pump(0.02, n)
    assert spans(commands)[0][0] == 4 * MIB
    seed.check_invariants()


def test_bulk_keeps_out_of_a_clients_way_for_a_moment() -> None:
    seed = leased(100 * MIB)
    seed.demand(Demand(REF.id, 7, ((50 * MIB, 50 * MIB + 1),)), 1.0)
    commands, n = seed.pump(1.0, 1)
    assert spans(commands) == [(50 * MIB, 54 * MIB)]
    assert not seed.got_piece(REF.id, 51, 1.02)
    assert seed.got_piece(REF.id, 50, 1.02)
    assert seed.pump(1.02, n)[0] == []
    wake = seed.next_timer(1.02)
    assert wake is not None
    assert spans(seed.pump(wake, n)[0]) == [(0, 4 * MIB)]


@pytest.mark.parametrize(("rate", "waits"), [(100 * MIB, False), (10 * MIB, True)])
def test_bulk_behind_a_slow_origin_waits_for_what_the_client_does_next(
    rate: int, waits: bool
) -> None:
    seed = leased(100 * MIB)
    seed.works[REF.id].rate_bytes_per_s = rate
    seed.demand(Demand(REF.id, 7, ((50 * MIB, 50 * MIB + 1),)), 1.0)
    _, n = seed.pump(1.0, 1)
    assert seed.got_piece(REF.id, 50, 1.1)
    assert (seed.pump(1.1, n)[0] == []) is waits
    assert seed.pump(1.2, n)[0] != [] or not waits


def test_a_refusal_gives_the_lease_back() -> None:
    seed = leased(10 * MIB)
    seed.pump(0.0, 1)
    refusal = Refusal(404, "BLOB_UNKNOWN", "no")
    out = seed.ended(1, refusal, 0.1)
    assert out[-1] == Tell(0, LeaseFailed(REF.id, 7, refusal), hurry=True)
    assert not seed.works
    seed.check_invariants()
