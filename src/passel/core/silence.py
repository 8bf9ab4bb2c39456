"""Peers that a shard has not heard of: when it forgets them.

A peer reports to every shard at each heartbeat, with nothing to say if need be. That it is gone a
shard learns from the controller, or from a word to it that fails; but a controller may die with
the node, and a shard has nothing to say to a peer that only holds. Then its silence has to do.
Whoever was only slow is told that it is not known, and announces itself anew.
"""

from __future__ import annotations

from passel.ids import PeerId

#: Empty reports per second that a shard lets all its peers together send.
HEARTBEATS_PER_S = 500.0
HEARTBEAT_S_MIN = 1.0
#: Heartbeats without a word after which a peer is forgotten, and after which it is when others
#: complain that it does not answer them.
LOST_HEARTBEATS = 30
SUSPECT_HEARTBEATS = 5


def heartbeat_s(n_peers: int) -> float:
    """How often each of so many peers says something to each shard, seconds."""
    return max(HEARTBEAT_S_MIN, n_peers / HEARTBEATS_PER_S)


class Silence:
    """When each peer was last heard of. Times are those of `ShardMachine.handle`."""

    def __init__(self) -> None:
        self._heard_at: dict[PeerId, float] = {}
        self._looked_at: float | None = None

    def heard(self, peer: PeerId, now: float) -> None:
        self._heard_at[peer] = now

    def forget(self, peer: PeerId) -> None:
        self._heard_at.pop(peer, None)

    def since(self, peer: PeerId) -> float:
        """When the peer was last heard of; KeyError for one that never was."""
        return self._heard_at[peer]

    def is_suspect(self, peer: PeerId, now: float) -> bool:
        """Silent for long enough to believe another peer that it is gone."""
        patience_s = SUSPECT_HEARTBEATS * heartbeat_s(len(self._heard_at))
        return peer in self._heard_at and now - self._heard_at[peer] > patience_s

    def lost(self, now: float) -> list[PeerId]:
        """Those who have been silent for too long; to be asked at every report."""
        beat_s = heartbeat_s(len(self._heard_at))
        if self._looked_at is not None and now < self._looked_at + beat_s:
            return []
        slept = self._looked_at is not None and now > self._looked_at + SUSPECT_HEARTBEATS * beat_s
        self._looked_at = now
        if slept:
            # Nobody at all was heard: the shard itself stood still, and knows of nobody's silence.
            self._heard_at = dict.fromkeys(self._heard_at, now)
        patience_s = LOST_HEARTBEATS * beat_s
        return [peer for peer, at in self._heard_at.items() if now - at > patience_s]
