"""Geometry, have-sets, rendezvous hashing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passel.core import bitfield, rendezvous
from passel.core.pieces import MAX_PIECE, MIB, MIN_PIECE, Geometry, piece_size


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, MIB),
        (1, MIB),
        (1024 * MIB, MIB),
        (1024 * MIB + 1, 2 * MIB),
        (4096 * MIB, 4 * MIB),
        (20 * 1024 * MIB, 16 * MIB),
        (10**13, 16 * MIB),
    ],
)
def test_piece_size_follows_the_size(size: int, expected: int) -> None:
    assert piece_size(size) == expected


@given(st.integers(0, 10**12), st.data())
def test_pieces_tile_the_blob(size: int, data: st.DataObject) -> None:
    geometry = Geometry.of(size)
    assert MIN_PIECE <= geometry.piece_size <= MAX_PIECE
    assert sum(1 for _ in geometry.pieces_of(0, size)) == geometry.n_pieces
    if size:
        start = data.draw(st.integers(0, size - 1))
        stop = data.draw(st.integers(start + 1, size + 5))
        touched = geometry.pieces_of(start, stop)
        assert geometry.span(touched[0])[0] <= start < geometry.span(touched[0])[1]
        last = geometry.span(touched[-1])
        assert last[0] < min(stop, size) <= last[1]


def test_empty_blob_has_no_pieces() -> None:
    assert Geometry.of(0).n_pieces == 0
    assert Geometry.of(0).all_pieces == 0
    with pytest.raises(IndexError):
        Geometry.of(0).span(0)


@given(st.sets(st.integers(0, 300)))
def test_bitfield_is_a_set(indices: set[int]) -> None:
    bits = bitfield.of(indices)
    assert list(bitfield.pieces(bits)) == sorted(indices)
    assert bitfield.count(bits) == len(indices)
    assert bitfield.from_bytes(bitfield.to_bytes(bits, 301)) == bits
    packed = bitfield.pack([bits, 0], 301)
    assert packed.shape == (2, 5)
    unpacked = np.unpackbits(packed[0].view(np.uint8), bitorder="little")
    assert set(np.flatnonzero(unpacked)) == indices


@given(st.sets(st.integers(0, 70)), st.integers(0, 80))
def test_run_length(indices: set[int], start: int) -> None:
    expected = 0
    while start + expected in indices:
        expected += 1
    assert bitfield.run_length(bitfield.of(indices), start) == expected


def test_rendezvous_moves_only_the_names_of_who_left() -> None:
    members = [f"m{i}" for i in range(7)]
    names = [f"blob{i}" for i in range(500)]
    before = {name: rendezvous.owner(name, members) for name in names}
    after = {name: rendezvous.owner(name, members[:-1]) for name in names}
    assert all(before[n] == after[n] for n in names if before[n] != "m6")
    share = [sum(owner == m for owner in before.values()) for m in members]
    assert min(share) > 500 / 7 / 2, "badly spread"
    assert rendezvous.owner("x", []) is None


def test_shards_are_stable_under_growth() -> None:
    names = [f"sha256:{i:064x}" for i in range(400)]
    moved = sum(rendezvous.shard_of(n, 4) != rendezvous.shard_of(n, 5) for n in names)
    assert 0 < moved < 400 * 2 / 5
