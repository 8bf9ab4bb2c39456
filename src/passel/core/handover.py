"""Which complete blobs only nodes that are to go away have: what a shard says of its part."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from passel.core.shard import ShardMachine
from passel.ids import BlobRef, Digest, PeerId


@dataclass(frozen=True, slots=True)
class OnlyCopy:
    """A complete blob that would be gone with its `holders`.

    `ref` as somebody has asked for it. None: nobody did, since the shard has started.
    """

    digest: Digest
    size: int
    holders: tuple[PeerId, ...]
    ref: BlobRef | None


@dataclass(frozen=True, slots=True)
class Remaining:
    """What one shard knows. Of those in `heard` it knows everything."""

    heard: frozenset[PeerId]
    #: Whoever goes back to source at this moment.
    fetching: frozenset[PeerId]
    #: (blobs, bytes) that only nodes have which are to go away, by such node.
    totals: dict[PeerId, tuple[int, int]]
    #: The first of them.
    copies: tuple[OnlyCopy, ...]
    #: Of the blobs that were asked about: those that a node has which stays.
    kept: frozenset[Digest]


def remaining(
    machine: ShardMachine,
    peers: Collection[PeerId],
    watched: Iterable[Digest],
    limit: int,
    now: float,
) -> Remaining:
    """What only `peers` have, all together; up to `limit` blobs of it by name.

    Of the `watched` blobs it says whether others have them by now.
    """
    totals = dict.fromkeys(peers, (0, 0))
    copies: list[OnlyCopy] = []
    for digest, known in machine.copies.by_digest.items():
        if not known.holders.keys() <= totals.keys():
            continue
        for holder in known.holders:
            n_blobs, n_bytes = totals[holder]
            totals[holder] = n_blobs + 1, n_bytes + known.size
        if len(copies) < limit:
            ref = _ref(machine, digest)
            copies.append(OnlyCopy(digest, known.size, tuple(known.holders), ref))
    leases = (swarm.lease for swarm in machine.wanted_swarms())
    fetching = {lease.holder for lease in leases if lease is not None}
    return Remaining(
        frozenset(peer for peer in peers if machine.knows_all_of(peer, now)),
        frozenset(fetching.intersection(peers)),
        totals,
        tuple(copies),
        frozenset(digest for digest in watched if _stays(machine, digest, totals)),
    )


def _stays(machine: ShardMachine, digest: Digest, peers: Collection[PeerId]) -> bool:
    known = machine.copies.by_digest.get(digest)
    return known is not None and any(holder not in peers for holder in known.holders)


def _ref(machine: ShardMachine, digest: Digest) -> BlobRef | None:
    swarms = machine.swarms_of(digest)
    refs = (row.ref for swarm in swarms for row in swarm.rows.values())
    return next((ref for ref in refs if ref is not None), None)
