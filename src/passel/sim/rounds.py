"""Rollouts of up to 100 000 nodes: whole arrays in rounds of one piece time, planned by `core`.

In a round a link of ordinary speed carries one piece; faster and slower ones save up. The plan of a
round is carried out in it, except for what the trunks between zones cannot carry: that stands in a
line before the zone. There are no messages here and no latencies; `passel.sim.world` has them, for
up to a few thousand nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from passel.core.graph.bits import Index, is_set, switch_off, switch_on
from passel.core.graph.state import Bits, Flags
from passel.sim.policies import Board, DirectFromOrigin, Edges, Passel, Policy

Floats = NDArray[np.float64]
#: A rollout that does not get ahead for so many rounds is hopeless (nobody alive holds a piece).
STUCK_ROUNDS = 10_000
#: Pieces that a link can have saved up, beyond those of a round: an idle second is lost.
SAVED_MAX = 1.0


@dataclass(frozen=True)
class Swarm:
    """A rollout as arrays. Peer 0 fetches from the origin and feeds the others.

    Attributes
    ----------
    n_pieces : int
    up, down : (n_peers,) float64
        Pieces per round; 1 is an ordinary link.
    zone, rack : (n_peers,) int32
    joins : (n_peers,) float64
        The round in which each begins; infinity for one that `begin_next` lets begin.
    origin : float
        Pieces per round that the origin gives.
    trunk : float or None
        Pieces per round into a zone, and out of it.
    seed : int
    """

    n_pieces: int
    up: Floats
    down: Floats
    zone: NDArray[np.int32]
    rack: NDArray[np.int32]
    joins: Floats
    origin: float = 1.0
    trunk: float | None = None
    seed: int = 0


@dataclass
class Outcome:
    """What became of a rollout, in rounds and pieces.

    Attributes
    ----------
    ends : (n_peers,) float64
        When each had everything; infinity for one that never did.
    n_origin, n_cross, n_edges : int
        Pieces from the origin; over a border of zones; decisions in all.
    curve : list of int
        Pieces held by all peers together after each round.
    """

    ends: Floats
    rounds: int = 0
    n_origin: int = 0
    n_cross: int = 0
    n_edges: int = 0
    curve: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Event:
    """Something happens at the beginning of a round: a function of the running rollout."""

    at: float
    what: Callable[[Rounds], None]


class Rounds:
    """One rollout while it runs."""

    def __init__(
        self, swarm: Swarm, policy: Policy | None = None, events: tuple[Event, ...] = ()
    ) -> None:
        self.swarm = swarm
        self.policy = policy or Passel()
        self.now = 0
        self.rng = np.random.default_rng(swarm.seed)
        n_peers = swarm.up.size
        self.full = _all_pieces(swarm.n_pieces)
        self.have: Bits = np.zeros((n_peers, self.full.size), dtype=np.uint64)
        self.coming: Bits = np.zeros_like(self.have)
        self.wants: Bits = np.zeros_like(self.have)
        self.up, self.down = swarm.up.copy(), swarm.down.copy()
        self.up_saved, self.down_saved = np.zeros(n_peers), np.zeros(n_peers)
        self.joins = swarm.joins.copy()
        self.is_alive: Flags = np.ones(n_peers, dtype=np.bool_)
        self.is_source: Flags = np.zeros(n_peers, dtype=np.bool_)
        self.is_source[0] = True
        self.origin = swarm.origin
        self.closed_zones: list[int] = []
        self.outcome = Outcome(np.full(n_peers, np.inf))
        self._n_have = np.zeros(n_peers, dtype=np.int64)
        self._late: Edges = (_nobody(), _nobody(), _nobody())
        self._events = sorted(events, key=lambda event: event.at)
        self._origin_saved = 0.0
        n_zones = int(swarm.zone.max()) + 1
        self._trunk_in, self._trunk_out = np.zeros(n_zones), np.zeros(n_zones)
        self._moved_at = 0
        #: Without peers, peer 0 stands for the origin itself (and has its own copy at once).
        self._is_direct = isinstance(self.policy, DirectFromOrigin)
        if self._is_direct:
            self._n_have[0] = self.outcome.n_origin = swarm.n_pieces
            self.have[0] = self.full
            self.outcome.ends[0] = self.joins[0]
            self.up[0] = swarm.origin

    # --- one round ------------------------------------------------------------------------------

    def run(
        self, progress: Callable[[Rounds], None] | None = None, rounds_max: int = 1_000_000
    ) -> Outcome:
        """Play until everybody who began has everything, or nothing moves any more."""
        while not self._is_over() and self.now < rounds_max:
            if self.now - self._moved_at > STUCK_ROUNDS:
                break
            self.round()
            if progress is not None:
                progress(self)
        self.outcome.rounds = self.now
        return self.outcome

    def _is_over(self) -> bool:
        waiting = np.isinf(self.outcome.ends) & np.isfinite(self.joins)
        return not self._events and not waiting.any()

    def round(self) -> None:
        while self._events and self._events[0].at <= self.now:
            self._events.pop(0).what(self)
        begins = (self.joins <= self.now) & self.is_alive
        self.wants[begins] = self.full
        self._save_up(begins)
        child, piece, parent = self.policy.edges(self._board(begins), float(self.now), self.rng)
        self.outcome.n_edges += child.size
        np.subtract.at(self.up_saved, parent, 1)
        np.subtract.at(self.down_saved, child, 1)
        self.now += 1
        if self._is_direct:
            self.outcome.n_origin += child.size
        else:
            child, piece, parent = self._over_trunks(child, piece, parent)
            self._fetch_from_origin()
        self._gain(child, piece)
        self.outcome.curve.append(int(self._n_have.sum()))

    def _save_up(self, begins: Flags) -> None:
        for saved, rate in ((self.up_saved, self.up), (self.down_saved, self.down)):
            np.minimum(saved + rate, np.maximum(rate, 1.0) + SAVED_MAX, out=saved)
            saved[~begins] = 0.0

    def _board(self, begins: Flags) -> Board:
        coming = self.coming
        if self.is_source.any():
            # What the origin sends is on its way to the source: nobody else is to bring it.
            coming = coming.copy()
            coming[self.is_source] |= self.full & ~self.have[self.is_source]
        return Board(
            self.swarm.n_pieces,
            self.have,
            coming,
            self.wants,
            np.floor(self.up_saved + 1e-9).astype(np.int32),
            np.floor(self.down_saved + 1e-9).astype(np.int32),
            self.swarm.zone,
            self.swarm.rack,
            self.is_source & (self._is_direct | (self._n_have < self.swarm.n_pieces)),
            begins,
        )

    # --- what moves -----------------------------------------------------------------------------

    def _fetch_from_origin(self) -> None:
        """The source takes in the next pieces, in order, from the origin."""
        source = int(np.argmax(self.is_source))
        self._origin_saved = min(self._origin_saved + min(self.origin, self.down[source]), 64.0)
        lacks = np.flatnonzero(~_cells(self.have[source], self.swarm.n_pieces))
        new = lacks[: int(self._origin_saved + 1e-9)]
        if not self.is_alive[source] or not self.is_source[source]:
            new = new[:0]
        self._origin_saved -= new.size
        if not lacks.size:
            self._origin_saved = 0.0
        self.outcome.n_origin += new.size
        self._gain(np.full(new.size, source, dtype=np.int64), new)

    def _over_trunks(self, child: Index, piece: Index, parent: Index) -> Edges:
        """What arrives in this round: all inside a zone, and what the trunks carry."""
        zone = self.swarm.zone
        is_cross = zone[child] != zone[parent]
        if self.closed_zones:
            closed = np.isin(zone[child], self.closed_zones) ^ np.isin(
                zone[parent], self.closed_zones
            )
            child, piece, parent = child[~closed], piece[~closed], parent[~closed]
            is_cross = is_cross[~closed]
        if self.swarm.trunk is None:
            self.outcome.n_cross += int(is_cross.sum())
            return child, piece, parent
        near = ~is_cross
        switch_on(self.coming, child[is_cross], piece[is_cross])
        far = tuple(
            np.concatenate([late, new[is_cross]])
            for late, new in zip(self._late, (child, piece, parent), strict=True)
        )
        carried = self._carry(zone[far[0]], zone[far[2]])
        arrived = [each[carried] for each in far]
        self._late = (far[0][~carried], far[1][~carried], far[2][~carried])
        switch_off(self.coming, arrived[0], arrived[1])
        self.outcome.n_cross += int(carried.sum())
        return (
            np.concatenate([child[near], arrived[0]]),
            np.concatenate([piece[near], arrived[1]]),
            np.concatenate([parent[near], arrived[2]]),
        )

    def _carry(self, into: NDArray[np.int32], out_of: NDArray[np.int32]) -> Flags:
        """First come, first served, on both trunks of each edge."""
        trunk = self.swarm.trunk
        assert trunk is not None
        for saved in (self._trunk_in, self._trunk_out):
            np.minimum(saved + trunk, max(trunk, 1.0) + SAVED_MAX, out=saved)
        carried = np.zeros(into.size, dtype=np.bool_)
        for i, (there, here) in enumerate(zip(into.tolist(), out_of.tolist(), strict=True)):
            if self._trunk_in[there] >= 1 and self._trunk_out[here] >= 1:
                self._trunk_in[there] -= 1
                self._trunk_out[here] -= 1
                carried[i] = True
        return carried

    def _gain(self, child: Index, piece: Index) -> None:
        new = self.is_alive[child] & ~is_set(self.have, child, piece)
        child, piece = child[new], piece[new]
        if not child.size:
            return
        self._moved_at = self.now
        switch_on(self.have, child, piece)
        self._n_have += np.bincount(child, minlength=self._n_have.size)
        ends = self.outcome.ends
        done = child[(self._n_have[child] == self.swarm.n_pieces)]
        ends[done] = np.minimum(ends[done], self.now)

    # --- what can happen to it ------------------------------------------------------------------

    def begin_next(self, peers: Index) -> None:
        """These want the blob from this round on."""
        self.joins[peers] = self.now

    def crash(self, peers: Index, *, with_disk: bool) -> None:
        """Processes end; what was under way to and from them is lost, the disk perhaps."""
        self.is_alive[peers] = False
        child, piece, parent = self._late
        lost = np.isin(child, peers) | np.isin(parent, peers)
        switch_off(self.coming, child[lost], piece[lost])
        self._late = (child[~lost], piece[~lost], parent[~lost])
        if with_disk:
            self.have[peers] = 0
            self._n_have[peers] = 0
            self.outcome.ends[peers] = np.inf
            self.joins[peers] = np.inf
        if self.is_source[peers].any():
            self._hand_over()

    def _hand_over(self) -> None:
        """The lease goes to another peer, who fetches what nobody alive holds."""
        self.is_source[:] = False
        able = np.flatnonzero(self.is_alive & (self.joins <= self.now))
        if able.size:
            self.is_source[self.rng.choice(able)] = True

    def restart(self, peers: Index) -> None:
        self.is_alive[peers] = True
        if not self.is_source.any():
            self.is_source[peers[0]] = True


def _nobody() -> Index:
    return np.empty(0, dtype=np.int64)


def _all_pieces(n_pieces: int) -> Bits:
    row = np.zeros((n_pieces + 63) // 64 * 64, dtype=np.uint8)
    row[:n_pieces] = 1
    packed: Bits = np.packbits(row, bitorder="little").view(np.uint64)
    return packed


def _cells(row: Bits, n_pieces: int) -> Flags:
    cells: Flags = np.unpackbits(row.view(np.uint8), count=n_pieces, bitorder="little") == 1
    return cells
