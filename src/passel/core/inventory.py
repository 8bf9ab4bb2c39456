"""Which blobs a shard knows of, and how many copies of each there are: what `passel ls` shows."""

from __future__ import annotations

from dataclasses import dataclass

from passel.core.shard import ShardMachine


@dataclass(slots=True)
class BlobEntry:
    """One blob, whatever upstream it came from. `size` is None while the origin was not asked."""

    digest: str
    size: int | None
    upstreams: tuple[str, ...]
    complete: int
    """Peers that have it whole."""
    partial: int
    """Peers that have some of its pieces."""
    wanted: int
    """Peers that wait for some of it."""


def inventory(machine: ShardMachine, limit: int) -> tuple[list[BlobEntry], int]:
    """The first `limit` blobs in the order of their digests, and how many there are."""
    entries: dict[str, BlobEntry] = {}
    for swarm in machine.swarms.values():
        digest = str(swarm.key.digest)
        size = None if swarm.geometry is None else swarm.geometry.size
        entry = entries.setdefault(digest, BlobEntry(digest, size, (), 0, 0, 0))
        entry.size = size if entry.size is None else entry.size
        entry.upstreams = tuple(sorted({*entry.upstreams, swarm.key.upstream}))
        copies = machine.copies.by_digest.get(swarm.key.digest)
        holders = set() if copies is None else copies.holders
        entry.partial += sum(
            bool(row.have) for peer, row in swarm.rows.items() if peer not in holders
        )
        entry.wanted += sum(swarm.row_is_hungry(row) for row in swarm.rows.values())
    for key, copies in machine.copies.by_digest.items():
        if copies.holders:
            entry = entries.setdefault(str(key), BlobEntry(str(key), copies.size, (), 0, 0, 0))
            entry.complete = len(copies.holders)
    known = [each for each in entries.values() if each.complete or each.partial or each.wanted]
    return sorted(known, key=lambda each: each.digest)[:limit], len(known)
