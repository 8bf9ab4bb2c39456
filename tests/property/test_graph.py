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
    # Some of what is coming comes from a holder, in one of the first steps.
    flying = [
        (child, piece, parent, int(rng.integers(0, 3)))
        for child, row in enumerate(coming)
        for piece in bitfield.pieces(row)
        for parent in [int(rng.integers(0, n_peers))]
        if have[parent] >> piece & 1 and rng.random() < 0.5
    ]
    return SwarmState(
        n_pieces=n_pieces,
        have=bitfield.pack(have, n_pieces),
        coming=bitfield.pack(coming, n_pieces),
        wants=bitfield.pack(wants, n_pieces),
        up_depth=rng.integers(0, 6, n_peers).astype(np.int32),
        down_depth=rng.integers(0, 6, n_peers).astype(np.int32),
        zone=rng.integers(0, n_zones, n_peers).astype(np.int32),
        rack=np.zeros(n_peers, dtype=np.int32),
        is_source=np.arange(n_peers) == draw(st.integers(-1, n_peers - 1)),
        can_serve=rng.random(n_peers) < 0.9,
        flying=np.array(flying, dtype=np.int32).reshape(-1, 4),
    )


def sets(table: np.ndarray) -> list[set[int]]:
    return [set(bitfield.pieces(int.from_bytes(row.tobytes(), "little"))) for row in table]


def share(depth: np.ndarray, step: int, n_steps: int) -> np.ndarray:
    """What one step may use of a depth that is spread evenly over the steps."""
    return (depth + n_steps - 1 - step) // n_steps


@settings(max_examples=300, deadline=None)
@given(swarms(), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_a_plan_keeps_to_the_rules(state: SwarmState, n_steps: int, seed: int) -> None:
    graph = plan(state, 0.0, np.random.default_rng(seed), n_steps)
    have, coming, wants = sets(state.have), sets(state.coming), sets(state.wants)
    edges = list(
        zip(
            graph.child.tolist(),
            graph.piece.tolist(),
            graph.parent.tolist(),
            graph.step.tolist(),
            graph.waits.tolist(),
            strict=True,
        )
    )
    for step in range(n_steps):
        now = graph.step == step
        up = np.bincount(graph.parent[now], minlength=state.n_peers)
        down = np.bincount(graph.child[now], minlength=state.n_peers)
        busy = state.flying[np.minimum(state.flying[:, 3], n_steps - 1) == step]
        flying_up = np.bincount(busy[:, 2], minlength=state.n_peers)
        flying_down = np.bincount(busy[:, 0], minlength=state.n_peers)
        assert (up <= np.maximum(share(state.up_depth, step, n_steps) - flying_up, 0)).all()
        assert (down <= np.maximum(share(state.down_depth, step, n_steps) - flying_down, 0)).all()
    assert len({(child, piece) for child, piece, *_ in edges}) == len(edges), "a piece twice"
    arrives = {(int(child), int(piece)): int(step) for child, piece, _, step in state.flying}
    arrives |= {(child, piece): step for child, piece, _, step, _ in edges}
    zone = state.zone
    entered: dict[tuple[int, int], int] = {}
    for child, piece, parent, step, waits in edges:
        assert child != parent
        assert piece in wants[child]
        assert piece not in have[child] | coming[child]
        assert waits == (piece not in have[parent])
        if waits:
            assert arrives[parent, piece] < step, "from somebody who will not have it by then"
        assert state.can_serve[parent]
        if zone[child] != zone[parent]:
            entered[zone[child], piece] = entered.get((zone[child], piece), 0) + 1
            there = [p for p in range(state.n_peers) if zone[p] == zone[child]]
            assert not any(piece in have[p] | coming[p] for p in there), "it was there already"
    assert all(times == 1 for times in entered.values()), "a piece entered a zone twice"


@settings(max_examples=200, deadline=None)
@given(swarms(), st.integers(0, 2**32 - 1))
def test_nobody_who_can_be_fed_inside_his_zone_stays_hungry(state: SwarmState, seed: int) -> None:
    """Except by a source that has still something to send that nobody else has."""
    graph = plan(state, 0.0, np.random.default_rng(seed))
    up = state.up_depth - np.bincount(
        np.r_[graph.parent, state.flying[:, 2]], minlength=state.n_peers
    )
    down = state.down_depth - np.bincount(
        np.r_[graph.child, state.flying[:, 0]], minlength=state.n_peers
    )
    have, coming, wants = sets(state.have), sets(state.coming), sets(state.wants)
    for child, piece in zip(graph.child.tolist(), graph.piece.tolist(), strict=True):
        coming[child].add(piece)
    for child in range(state.n_peers):
        for parent in range(state.n_peers):
            if child == parent or state.zone[child] != state.zone[parent]:
                continue
            if down[child] > 0 and up[parent] > 0 and state.can_serve[parent]:
                left = (wants[child] - have[child] - coming[child]) & have[parent]
                assert not left or state.is_source[parent], (child, parent, left)
                passed_on = [
                    have[p] | coming[p]
                    for p in range(state.n_peers)
                    if state.zone[p] == state.zone[parent] and not state.is_source[p]
                ]
                assert left <= set().union(*passed_on), "only the source has it, and it has a slot"
