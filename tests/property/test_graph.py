"""What every plan must keep to, whatever the swarm looks like."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from passel.core import bitfield
from passel.core.graph import SwarmState, plan


@st.composite
def swarms(draw: st.DrawFn) -> SwarmState:
    n_peers = draw(st.integers(2, 9))
    n_pieces = draw(st.integers(1, 80))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def some(share: float) -> list[int]:
        table = rng.random((n_peers, n_pieces)) < share
        return [bitfield.of(np.flatnonzero(row).tolist()) for row in table]

    have = some(draw(st.sampled_from([0.0, 0.2, 0.7, 1.0])))
    coming = [c & ~h for c, h in zip(some(0.1), have, strict=True)]
    wants = some(draw(st.sampled_from([0.3, 1.0])))
    n_zones = draw(st.integers(1, 3))
    return SwarmState(
        n_pieces=n_pieces,
        have=bitfield.pack(have, n_pieces),
        coming=bitfield.pack(coming, n_pieces),
        wants=bitfield.pack(wants, n_pieces),
        up_free=rng.integers(0, 6, n_peers).astype(np.int32),
        down_free=rng.integers(0, 6, n_peers).astype(np.int32),
        zone=rng.integers(0, n_zones, n_peers).astype(np.int32),
        rack=np.zeros(n_peers, dtype=np.int32),
        is_source=np.arange(n_peers) == draw(st.integers(-1, n_peers - 1)),
        can_serve=rng.random(n_peers) < 0.9,
    )


def sets(table: np.ndarray) -> list[set[int]]:
    return [set(bitfield.pieces(int.from_bytes(row.tobytes(), "little"))) for row in table]


@settings(max_examples=300, deadline=None)
@given(swarms(), st.integers(0, 2**32 - 1))
def test_a_plan_keeps_to_the_rules(state: SwarmState, seed: int) -> None:
    graph = plan(state, 0.0, np.random.default_rng(seed))
    have, coming, wants = sets(state.have), sets(state.coming), sets(state.wants)
    edges = list(
        zip(graph.child.tolist(), graph.piece.tolist(), graph.parent.tolist(), strict=True)
    )
    assert (np.bincount(graph.parent, minlength=state.n_peers) <= state.up_free).all()
    assert (np.bincount(graph.child, minlength=state.n_peers) <= state.down_free).all()
    assert len({(child, piece) for child, piece, _ in edges}) == len(edges), "a piece twice"
    zone = state.zone
    entered: dict[tuple[int, int], int] = {}
    for child, piece, parent in edges:
        assert child != parent
        assert piece in wants[child]
        assert piece not in have[child] | coming[child]
        assert piece in have[parent], "from somebody who does not have it"
        assert state.can_serve[parent]
        if zone[child] != zone[parent]:
            entered[zone[child], piece] = entered.get((zone[child], piece), 0) + 1
            there = [p for p in range(state.n_peers) if zone[p] == zone[child]]
            assert not any(piece in have[p] | coming[p] for p in there), "it was there already"
    assert all(times == 1 for times in entered.values()), "a piece entered a zone twice"


@settings(max_examples=200, deadline=None)
@given(swarms(), st.integers(0, 2**32 - 1))
def test_nobody_who_can_be_fed_inside_his_zone_stays_hungry(state: SwarmState, seed: int) -> None:
    graph = plan(state, 0.0, np.random.default_rng(seed))
    up = state.up_free - np.bincount(graph.parent, minlength=state.n_peers)
    down = state.down_free - np.bincount(graph.child, minlength=state.n_peers)
    have, coming, wants = sets(state.have), sets(state.coming), sets(state.wants)
    for child, piece in zip(graph.child.tolist(), graph.piece.tolist(), strict=True):
        coming[child].add(piece)
    for child in range(state.n_peers):
        for parent in range(state.n_peers):
            if child == parent or state.zone[child] != state.zone[parent]:
                continue
            if down[child] > 0 and up[parent] > 0 and state.can_serve[parent]:
                left = (wants[child] - have[child] - coming[child]) & have[parent]
                assert not left, (child, parent, left)
