"""What a shard knows, in a few numbers per blob and per peer: what the page shows, every second.

The work is bounded by what moves, not by what is known: besides the blobs that somebody wants, only
the newest complete ones are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from passel.core.pieces import Geometry
from passel.core.shard import ShardMachine
from passel.core.swarm import Row, Swarm
from passel.ids import Digest, PeerId


@dataclass(slots=True)
class BlobView:
    """One blob, whatever upstream it came from. Sizes are in bytes."""

    digest: str
    size: int | None
    """None while the origin was not asked."""
    upstreams: tuple[str, ...] = ()
    complete: int = 0
    """Peers that have it whole."""
    coming: int = 0
    """Peers that are getting it."""
    held_bytes: int = 0
    """What those that are getting it have of it, all together."""
    wanted_bytes: int = 0
    """What those that are getting it want to have in the end, all together."""
    fetcher: PeerId | None = None
    """Who goes back to source for it."""


@dataclass(slots=True)
class Overview:
    """One shard at one moment."""

    n_blobs: int = 0
    """All that it knows of, listed or not."""
    blobs: list[BlobView] = field(default_factory=list)
    """Those that move, then the newest of the others."""
    peers: dict[PeerId, tuple[int, int]] = field(default_factory=dict)
    """Of the blobs that a peer is getting: bytes that it holds, and that it wants to hold."""


def overview(machine: ShardMachine, limit: int) -> Overview:
    """What moves, and up to `limit` blobs."""
    found = Overview(len(machine.swarms))
    views: dict[Digest, BlobView] = {}
    for swarm in machine.wanted_swarms():
        view = _view(machine, views, swarm.key.digest, limit)
        _add_swarm(found, swarm, view)
    for digest in islice(reversed(machine.copies.by_digest), limit):
        _view(machine, views, digest, limit)
    found.blobs = list(views.values())
    return found


def _view(
    machine: ShardMachine, views: dict[Digest, BlobView], digest: Digest, limit: int
) -> BlobView | None:
    """The line for a blob; None when there is no room for one more."""
    view = views.get(digest)
    if view is None and len(views) < limit:
        copies = machine.copies.by_digest.get(digest)
        view = views[digest] = BlobView(str(digest), None if copies is None else copies.size)
        view.complete = 0 if copies is None else len(copies.holders)
        view.upstreams = tuple(sorted({each.key.upstream for each in machine.swarms_of(digest)}))
    return view


def _add_swarm(found: Overview, swarm: Swarm, view: BlobView | None) -> None:
    if view is not None and swarm.lease is not None:
        view.fetcher = swarm.lease.holder
    geometry = swarm.geometry
    if geometry is None:
        if view is not None:
            view.coming += sum(row.wants_anything for row in swarm.rows.values())
        return
    if view is not None:
        view.size = geometry.size
    for peer, row, wanted in _getting(swarm, geometry):
        # The last piece is shorter than the others: never more than the blob has.
        held_bytes = min(row.have.bit_count() * geometry.piece_size, geometry.size)
        wanted_bytes = min(wanted.bit_count() * geometry.piece_size, geometry.size)
        held, total = found.peers.get(peer, (0, 0))
        found.peers[peer] = held + held_bytes, total + wanted_bytes
        if view is not None and row.wants_anything:
            view.coming += 1
            view.held_bytes += held_bytes
            view.wanted_bytes += wanted_bytes


def _getting(swarm: Swarm, geometry: Geometry) -> Iterator[tuple[PeerId, Row, int]]:
    """Who gets something, and the pieces that he will have then."""
    lease = swarm.lease
    for peer, row in swarm.rows.items():
        if swarm.row_is_hungry(row):
            yield peer, row, geometry.all_pieces if row.rest else row.urgent | row.have
        elif lease is not None and lease.holder == peer and lease.todo:
            # A seed wants nothing for itself.
            yield peer, row, row.have | lease.todo
