"""Highest-random-weight hashing: who of these is responsible for that name.

Source: Thaler and Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996. When a member
leaves, only its own names move; every node computes the same answer without talking.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def weight(name: str, member: str) -> int:
    digest = hashlib.blake2b(f"{name}\n{member}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def ranked(name: str, members: Iterable[str]) -> list[str]:
    """The members, most responsible first; ties (which need a hash collision) by name."""
    return sorted(members, key=lambda member: (-weight(name, member), member))


def owner(name: str, members: Iterable[str]) -> str | None:
    """The most responsible member, or None when there is nobody."""
    return min(members, key=lambda member: (-weight(name, member), member), default=None)


def shard_of(digest: str, n_shards: int) -> int:
    """The shard that owns a blob's digest, whatever upstream it is read from."""
    if n_shards < 1:
        raise ValueError("there is at least one shard")
    return max(range(n_shards), key=lambda shard: (weight(digest, str(shard)), -shard))
