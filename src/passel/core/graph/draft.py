"""A plan while it is being made: what is still needed, what is left of the slots, which edges.

A draft is private to one call of `plan`. The stages read its arrays freely; `take` is the only way
in which an edge comes into being, so that slots, needs, copies and zones are kept true in one
place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from passel.core.graph import bits
from passel.core.graph.bits import Index
from passel.core.graph.state import Bits, Flags, SwarmState


@dataclass(slots=True)
class Level:
    """Zones, or racks inside zones: a piece enters each domain once, from inside its group.

    Attributes
    ----------
    domain, group : (n_peers,) int64
        The zone (or rack) of each peer, and what it lies in: everything (or its zone).
    entered : (n_domains, n_words) uint64
        What somebody in the domain has or is getting.
    spread : (n_domains, n_words) uint64
        The same without the keepers: what the domain can have without their uplinks.
    """

    domain: Index
    group: Index
    n_domains: int
    entered: Bits
    spread: Bits
    group_of: Index
    n_serving: Index
    backlog: Index


class Draft:
    """The arrays of one plan in the making. `SwarmState` says what they mean."""

    def __init__(self, state: SwarmState, n_steps: int) -> None:
        self.n_peers, self.n_pieces, self.n_steps = state.n_peers, state.n_pieces, n_steps
        self.have = state.have
        moving = state.have | state.coming
        self.moving = moving
        #: What a parent can give in this step: verified pieces, and what came in earlier steps.
        self.held = state.have.copy()
        self.wants = state.wants
        self.need: Bits = state.wants & ~moving
        self.copies = bits.count_columns(state.have, state.coming, n_pieces=state.n_pieces)
        self._flying = state.flying.astype(np.int64)
        self._up_depth = np.where(state.can_serve, np.maximum(state.up_depth, 0), 0)
        self._down_depth = np.maximum(state.down_depth, 0)
        #: Slots of this step that are left.
        self.up = self.down = np.zeros(self.n_peers, dtype=np.int64)
        self._step = 0
        self.can_serve = state.can_serve
        self.is_source = state.is_source
        banned = state.banned.astype(np.int64)
        self.banned: Index = np.unique(banned[:, 0] * self.n_peers + banned[:, 1])
        domains = _domains(state.zone, state.rack)
        self.keeper = self._keepers(n_domains=domains[0][2])
        self.levels = [self._level(moving, *each) for each in domains]
        self.relays = self._relays(state)
        #: Neither zones nor keepers: no account of who entered where is needed.
        self.is_flat = self.levels[-1].n_domains == 1 and not self.keeper.any()
        self._edges: list[tuple[Index, Index, Index, Flags, int]] = []

    @property
    def domain(self) -> Index:
        """The narrowest domain of each peer; inside it any holder may feed anybody."""
        return self.levels[-1].domain

    def begin_step(self, step: int) -> None:
        """Open the slots that belong to this step, less what is under way in them.

        What an earlier step left unused is gone, as the time of a link is: a link that is promised
        twice as much for a later step falls behind the plan.
        """
        if step:
            came = self._flying[self._flying[:, 3] == step - 1]
            bits.switch_on(self.held, came[:, 0], came[:, 1])
            for children, pieces, _, _, when in self._edges:
                if when == step - 1:
                    bits.switch_on(self.held, children, pieces)
        self._step = step
        # A link that is behind with its steps has them all taken.
        busy = self._flying[np.minimum(self._flying[:, 3], self.n_steps - 1) == step]
        self.up = self._slots(self._up_depth, busy[:, 2])
        self.down = self._slots(self._down_depth, busy[:, 0])

    def _slots(self, depth: NDArray[np.int64], busy: Index) -> Index:
        """(n_peers,): the part of `depth` that falls into this step, less what is busy."""
        step, n_steps = self._step, self.n_steps
        share = (depth + n_steps - 1 - step) // n_steps
        left: Index = np.maximum(share - np.bincount(busy, minlength=self.n_peers), 0)
        return left

    def take(self, children: Index, pieces: Index, parents: Index) -> None:
        """Choose these edges. The caller has seen to it that they are allowed and distinct."""
        if not children.size:
            return
        bits.switch_off(self.need, children, pieces)
        self.up -= np.bincount(parents, minlength=self.n_peers)
        self.down -= np.bincount(children, minlength=self.n_peers)
        self.copies += np.bincount(pieces, minlength=self.n_pieces).astype(np.int32)
        if not self.is_flat:
            for level in self.levels:
                bits.switch_on(level.entered, level.domain[children], pieces)
                level.backlog -= np.bincount(level.domain[children], minlength=level.n_domains)
                ordinary = ~self.keeper[children]
                bits.switch_on(level.spread, level.domain[children[ordinary]], pieces[ordinary])
        waits = ~bits.is_set(self.have, parents, pieces)
        self._edges.append((children, pieces, parents, waits, self._step))

    def saving(self) -> Flags:
        """(n_peers,) bool: sources that have, or fetch, what nobody else near them is getting.

        They send nothing else: every piece must leave its source once before any is worth sending
        twice, and what the others have they can pass on themselves.
        """
        saving = np.zeros(self.n_peers, dtype=np.bool_)
        sources = np.flatnonzero(self.is_source)
        if sources.size:
            level = self.levels[0]
            lacking = bits.union(self.need) & ~level.spread[level.domain[sources]]
            saving[sources] = (self.moving[sources] & lacking).any(axis=1)
        return saving

    def is_banned(self, children: Index, parents: Index) -> Flags:
        """Whether this child must not fetch from this parent; shapes broadcast."""
        if not self.banned.size:
            return np.zeros(np.broadcast_shapes(children.shape, parents.shape), dtype=np.bool_)
        banned: Flags = np.isin(children * self.n_peers + parents, self.banned)
        return banned

    def priorities(self, pieces: Index, rng: np.random.Generator) -> NDArray[np.float64]:
        """Sort keys: fewer copies first, in random order among equals."""
        return self.copies[pieces] + rng.random(pieces.size)

    def edges(self) -> tuple[Index, Index, Index, Flags, Index]:
        """All edges in the order of choice: children, pieces, parents, waits, steps."""
        if not self._edges:
            none, no = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.bool_)
            return none, none, none, no, none
        children, pieces, parents, waits, steps = zip(*self._edges, strict=True)
        lengths = [part.size for part in children]
        return (
            np.concatenate(children),
            np.concatenate(pieces),
            np.concatenate(parents),
            np.concatenate(waits),
            np.repeat(np.array(steps, dtype=np.int64), lengths),
        )

    def _keepers(self, *, n_domains: int) -> Flags:
        """Peers whose uplinks are kept, first of all, for what only they have.

        Without this rule a rollout over several zones takes twice the time: the one peer that has
        the new pieces would send each of them to every zone.
        Source: simulation, and Legout et al. 2006 on the initial seed.
        """
        keepers: Flags = self.is_source.copy()
        if n_domains == 1:
            return keepers
        alone = np.zeros(self.n_pieces, dtype=np.bool_)
        alone[self.copies == 1] = True
        row = _pack(alone, self.have.shape[1]) & bits.union(self.need)
        keepers |= (self.have & row).any(axis=1)
        return keepers

    def _relays(self, state: SwarmState) -> Flags:
        """Who passes on what a source of his zone brings, so that the source need not.

        Not who may not fetch from a source: others would wait for it in vain.
        """
        relays = self.can_serve & ~self.is_source
        if state.banned.size:
            relays[state.banned[self.is_source[state.banned[:, 1]], 0]] = False
        return relays

    def _level(self, moving: Bits, domain: Index, group: Index, n_domains: int) -> Level:
        if n_domains == 1 and not self.keeper.any():
            nothing = np.zeros((1, moving.shape[1]), dtype=np.uint64)
            zero = np.zeros(1, dtype=np.int64)
            return Level(domain, group, 1, nothing, nothing, zero, zero, zero)
        ordinary = np.flatnonzero(~self.keeper)
        spread = bits.union_by(moving[ordinary], domain[ordinary], n_domains)
        kept = np.flatnonzero(self.keeper)
        entered = spread | bits.union_by(moving[kept], domain[kept], n_domains)
        group_of = np.zeros(n_domains, dtype=np.int64)
        group_of[domain] = group
        n_serving = np.bincount(domain[self.can_serve], minlength=n_domains)
        lacking = bits.count_rows(self.need)
        backlog = np.bincount(domain, weights=lacking, minlength=n_domains).astype(np.int64)
        return Level(domain, group, n_domains, entered, spread, group_of, n_serving, backlog)


def _domains(zone: NDArray[np.int32], rack: NDArray[np.int32]) -> list[tuple[Index, Index, int]]:
    """(domain, group, n_domains) per level: zones, then racks if any zone has several."""
    everything = np.zeros(zone.size, dtype=np.int64)
    if not zone.size:
        return [(everything, everything, 1)]
    if (zone == zone[0]).all():
        zones, n_zones = everything, 1
    else:
        names, zones = np.unique(zone, return_inverse=True)
        zones, n_zones = zones.astype(np.int64), int(names.size)
    levels = [(zones, everything, n_zones)]
    if not (rack == rack[0]).all():
        names, racks = np.unique(zones * (1 << 32) + rack.astype(np.int64), return_inverse=True)
        if names.size > n_zones:
            levels.append((racks.astype(np.int64), zones, int(names.size)))
    return levels


def _pack(flags: Flags, n_words: int) -> Bits:
    row = np.zeros(n_words * 8, dtype=np.uint8)
    packed = np.packbits(flags, bitorder="little")
    row[: packed.size] = packed
    words: Bits = row.view(np.uint64)
    return words
