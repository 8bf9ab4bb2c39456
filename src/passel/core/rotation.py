"""Replacing the cluster's secret while transfers run: which secrets who knows, and what is next.

A peer accepts what is signed with any secret that it knows. So all peers learn the new secret
before anybody signs with it, and all sign with it before the old one is forgotten. Each step waits
for every peer; one that starts later reads what was written down, which is never behind what
anybody was told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from passel.ids import PeerId

#: A request may be on its way for so long after everybody signs with the new secret.
GRACE_S: Final = 10.0


class Stage(Enum):
    """How far a rotation is."""

    STEADY = "steady"
    """One secret."""
    SPREADING = "spreading"
    """The old one signs, the new one is good too."""
    SIGNING = "signing"
    """The new one signs, the old one is good too."""


@dataclass(frozen=True, slots=True)
class Ring:
    """What a peer knows: the first secret signs, all verify."""

    generation: int
    stage: Stage
    secrets: tuple[bytes, ...] = field(repr=False)


class RotationMachine:
    """One ring after the other. The shell writes a ring down before it hands it to `adopt`."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self._told: dict[PeerId, int] = {}
        self._all_sign_since: float | None = None

    def begin(self, fresh: bytes) -> Ring | None:
        """The ring with which a rotation to `fresh` begins; None while one is under way."""
        ring = self.ring
        if ring.stage is not Stage.STEADY:
            return None
        return Ring(ring.generation + 1, Stage.SPREADING, (ring.secrets[0], fresh))

    def adopt(self, ring: Ring) -> None:
        """`ring` is written down and counts from now on."""
        self.ring = ring
        self._all_sign_since = None

    def told(self, peer: PeerId, generation: int) -> None:
        """A peer has taken the ring of this generation."""
        self._told[peer] = max(generation, self._told.get(peer, 0))

    def behind(self, peers: Iterable[PeerId]) -> tuple[PeerId, ...]:
        """Who of the live `peers` has not taken the ring yet; what is gone is forgotten."""
        peers = tuple(peers)
        self._told = {peer: self._told.get(peer, 0) for peer in peers}
        return tuple(peer for peer in peers if self._told[peer] < self.ring.generation)

    def advance(self, peers: Iterable[PeerId], now: float) -> Ring | None:
        """The next ring, once all live `peers` have the present one."""
        ring = self.ring
        if ring.stage is Stage.STEADY or self.behind(peers):
            return None
        if ring.stage is Stage.SPREADING:
            old, new = ring.secrets
            return Ring(ring.generation + 1, Stage.SIGNING, (new, old))
        if self._all_sign_since is None:
            self._all_sign_since = now
        if now < self._all_sign_since + GRACE_S:
            return None
        return Ring(ring.generation + 1, Stage.STEADY, ring.secrets[:1])

    def check_invariants(self) -> None:
        """AssertionError when one is broken."""
        n_secrets = 1 if self.ring.stage is Stage.STEADY else 2
        assert len(self.ring.secrets) == n_secrets
        assert all(told <= self.ring.generation for told in self._told.values())
