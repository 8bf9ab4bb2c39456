"""Names of actors, and what goes along with their calls."""

from __future__ import annotations

from dataclasses import dataclass, field

from passel.config.sections import Config
from passel.core.messages import PeerLimits, Role, ShardLimits, ShardMessage
from passel.ids import PeerId
from passel.transport.certificates import NodeCertificate

NAMESPACE = "passel"


def controller_name() -> str:
    return "passel-controller"


def shard_name(shard: int) -> str:
    return f"passel-shard-{shard}"


def peer_name(peer: PeerId) -> str:
    return f"passel-peer-{peer}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node stands, from its Ray labels; a cluster without labels is one zone."""

    node: str
    zone: str
    region: str
    rack: str


@dataclass(frozen=True, slots=True)
class PeerSpec:
    """What the controller hands a peer at its creation, and Ray again at every restart."""

    peer: PeerId
    place: Place
    role: Role
    config: Config
    cluster: str
    #: What TLS between peers needs; None: it is off.
    certificate: NodeCertificate | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a shard answers to a report. A new incarnation knows nothing of earlier reports.

    `is_known`: whether this life of the peer has said hello. A peer that was taken for dead hears
    so here, and announces itself again. `refused`: why it cannot take part, until it is upgraded.
    """

    incarnation: int
    is_known: bool
    messages: tuple[ShardMessage, ...]
    heartbeat_s: float
    refused: str = ""


def shard_limits(config: Config) -> ShardLimits:
    """The scheduler's section as plain numbers in base units."""
    scheduler = config.scheduler
    return ShardLimits(
        epoch_s=scheduler.epoch.total_seconds(),
        lease_ttl_s=scheduler.lease_ttl.total_seconds(),
        revive_s=scheduler.revive.total_seconds(),
        grace_s=scheduler.revive_bulk.total_seconds(),
    )


def peer_limits(config: Config) -> PeerLimits:
    """The peer's section as plain numbers in base units."""
    peer = config.peer
    return PeerLimits(
        download_slots=peer.download_slots,
        per_parent=peer.per_parent,
        whole_blobs=peer.whole_blobs,
    )
