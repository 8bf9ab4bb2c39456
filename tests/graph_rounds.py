"""A swarm in rounds, driven by `passel.core.graph.plan` alone: how far from the bound is it?

One piece per uplink and per downlink in every round, all links equal. Peer 0 is the source and has
the blob; the others start empty. A plan is made at the beginning of each epoch of some rounds; in a
round, every edge whose parent has the piece and whose two links are free is carried out, in the
plan's order. Edges that were not carried out stay planned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from passel.core.graph import SwarmState, plan
from passel.core.graph.bits import count_columns, is_set, switch_off, switch_on
from passel.core.graph.bounds import rounds_bound
from passel.core.graph.choose import repeats


@dataclass(frozen=True)
class Outcome:
    rounds: int
    bound: int
    n_cross: int
    cross_bound: int
    n_edges: int

    @property
    def ratio(self) -> float:
        return self.rounds / self.bound

    @property
    def cross_ratio(self) -> float:
        return self.n_cross / self.cross_bound if self.cross_bound else 1.0


def all_pieces(n_pieces: int) -> np.ndarray:
    row = np.zeros(((n_pieces + 63) // 64) * 64, dtype=np.uint8)
    row[:n_pieces] = 1
    return np.packbits(row, bitorder="little").view(np.uint64)


def spread(
    n_receivers: int,
    n_pieces: int,
    *,
    n_zones: int = 1,
    n_racks: int = 1,
    epoch: int = 1,
    is_source: bool = True,
    seed: int = 0,
    rounds_max: int = 10_000,
) -> Outcome:
    """Play until every receiver has every piece."""
    rng = np.random.default_rng(seed)
    n_peers = n_receivers + 1
    full = all_pieces(n_pieces)
    have = np.zeros((n_peers, full.size), dtype=np.uint64)
    have[0] = full
    coming = np.zeros_like(have)
    wants = np.tile(full, (n_peers, 1))
    place = rng.permutation(n_peers)
    zone = (place % n_zones).astype(np.int32)
    rack = (place // n_zones % n_racks).astype(np.int32)
    source = np.zeros(n_peers, dtype=np.bool_)
    source[0] = is_source
    queue = np.empty((0, 3), dtype=np.int64)
    rounds = n_cross = n_edges = 0
    while not (have == full).all():
        ones = np.full(n_peers, epoch, dtype=np.int32)
        state = SwarmState(
            n_pieces,
            have,
            coming,
            wants,
            ones,
            ones,
            zone,
            rack,
            source,
            np.ones(n_peers, dtype=np.bool_),
            flying=_flying(queue),
        )
        graph = plan(state, float(rounds), rng, n_steps=epoch)
        new = np.stack([graph.child, graph.piece, graph.parent], axis=1).astype(np.int64)
        switch_on(coming, new[:, 0], new[:, 1])
        queue = np.concatenate([queue, new])
        n_edges += graph.n_edges
        n_cross += int((zone[new[:, 0]] != zone[new[:, 2]]).sum())
        for _ in range(epoch):
            done = _round(have, queue)
            switch_on(have, queue[done, 0], queue[done, 1])
            switch_off(coming, queue[done, 0], queue[done, 1])
            queue = queue[~done]
            rounds += 1
            if (have == full).all():
                break
        assert rounds < rounds_max, "the swarm does not get ahead"
    assert (count_columns(have, n_pieces=n_pieces) == n_peers).all()
    zones_fed = len(set(zone.tolist())) - 1
    return Outcome(
        rounds, rounds_bound(n_receivers, n_pieces), n_cross, n_pieces * zones_fed, n_edges
    )


def _flying(queue: np.ndarray) -> np.ndarray:
    """The queue with the round of each edge: its place in its parent's line."""
    return np.column_stack([queue, repeats(queue[:, 2])]).astype(np.int32)


def _round(have: np.ndarray, queue: np.ndarray) -> np.ndarray:
    """Which edges of the queue are carried out in one round."""
    ready = np.flatnonzero(is_set(have, queue[:, 2], queue[:, 1]))
    done = np.zeros(len(queue), dtype=np.bool_)
    up_used, down_used = np.zeros(len(have), np.bool_), np.zeros(len(have), np.bool_)
    for edge in ready.tolist():
        child, _, parent = queue[edge].tolist()
        if not up_used[parent] and not down_used[child]:
            up_used[parent] = down_used[child] = done[edge] = True
    return done
