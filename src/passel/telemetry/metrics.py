"""Every metric of passel, made for a registry that is handed in; nothing is created at import.

Names are ``passel_<noun>_<unit>``; labels come from closed sets, never a digest, a peer or a
repository. Bytes are counted by where they came from: the one number that justifies the project.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

SOURCES: Final = ("local", "peer", "seed", "origin")

#: From a page-cache hit (0.1 ms) to the patience of the clients: SOCI 3 s, nydusd 5 s, containerd
#: 30 s.
_FIRST_BYTE_BUCKETS_S = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2,
    3,
    5,
    30,
)
#: One piece of 1 to 16 MiB at 10 MB/s to 2 GB/s.
_PIECE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
#: A scheduling epoch is 30 ms; planning must stay well below it.
_PLAN_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.06, 0.12, 0.5)


@dataclass(frozen=True, slots=True)
class GatewayMetrics:
    """What clients asked a node's gateway for, and where the bytes came from."""

    requests: Counter
    bytes: Counter
    first_byte_s: Histogram
    connections: Gauge
    grants: Counter
    direct: Counter
    peer_up: Gauge
    aborted: Counter
    origin_up: Gauge
    stale: Counter


@dataclass(frozen=True, slots=True)
class PeerMetrics:
    """What a peer fetched, served and keeps."""

    fetched_bytes: Counter
    served_bytes: Counter
    pieces: Counter
    piece_s: Histogram
    upload_slots_used: Gauge
    download_slots_used: Gauge
    store_bytes: Gauge
    store_capacity_bytes: Gauge
    blobs: Gauge
    evicted_bytes: Counter
    reads: Counter


@dataclass(frozen=True, slots=True)
class ShardMetrics:
    """What a scheduler shard knows and decides."""

    blobs: Gauge
    peers: Gauge
    leases: Gauge
    decisions: Counter
    plan_s: Histogram
    events: Counter


def gateway_metrics(registry: CollectorRegistry) -> GatewayMetrics:
    """The gateway's metrics, registered in `registry`."""
    metrics = GatewayMetrics(
        requests=Counter(
            "passel_gateway_requests_total",
            "Requests answered, by what was asked for and the class of the status.",
            ("kind", "status"),
            registry=registry,
        ),
        bytes=Counter(
            "passel_gateway_bytes_total",
            "Body bytes of blobs sent to clients, by where this node had them from for that read.",
            ("source",),
            registry=registry,
        ),
        first_byte_s=Histogram(
            "passel_gateway_first_byte_seconds",
            "From a blob request to its status line, reads that were not served at once.",
            ("source",),
            buckets=_FIRST_BYTE_BUCKETS_S,
            registry=registry,
        ),
        connections=Gauge(
            "passel_gateway_connections", "Clients connected now.", registry=registry
        ),
        grants=Counter(
            "passel_gateway_grants_total",
            "How it was decided whether a client may read.",
            ("outcome",),
            registry=registry,
        ),
        direct=Counter(
            "passel_gateway_direct_reads_total",
            "Reads that went to the origin past the node's peer, by why.",
            ("reason",),
            registry=registry,
        ),
        peer_up=Gauge(
            "passel_gateway_peer_up", "1 while the node's peer answers.", registry=registry
        ),
        aborted=Counter(
            "passel_gateway_aborted_total",
            "Answers that were cut off because their bytes could not be had.",
            registry=registry,
        ),
        origin_up=Gauge(
            "passel_gateway_origin_up",
            "0 while an upstream does not answer the gateway's questions.",
            ("upstream",),
            registry=registry,
        ),
        stale=Counter(
            "passel_gateway_stale_total",
            "Answers with cached content given while their upstream could not be asked.",
            ("kind",),
            registry=registry,
        ),
    )
    for source in SOURCES:
        metrics.bytes.labels(source)
    return metrics


def peer_metrics(registry: CollectorRegistry) -> PeerMetrics:
    """A peer's metrics, registered in `registry`."""
    return PeerMetrics(
        fetched_bytes=Counter(
            "passel_peer_fetched_bytes_total",
            "Verified bytes that came to this node, by where from.",
            ("source",),
            registry=registry,
        ),
        served_bytes=Counter(
            "passel_peer_served_bytes_total",
            "Piece bytes sent to other nodes, by whether they are in the same zone.",
            ("zone",),
            registry=registry,
        ),
        pieces=Counter(
            "passel_peer_pieces_total",
            "Attempts to fetch a piece, by how they ended.",
            ("outcome",),
            registry=registry,
        ),
        piece_s=Histogram(
            "passel_peer_piece_seconds",
            "How long fetching one piece took, by where from.",
            ("source",),
            buckets=_PIECE_BUCKETS_S,
            registry=registry,
        ),
        upload_slots_used=Gauge(
            "passel_peer_upload_slots_used", "Pieces being served now.", registry=registry
        ),
        download_slots_used=Gauge(
            "passel_peer_download_slots_used", "Pieces being fetched now.", registry=registry
        ),
        store_bytes=Gauge("passel_store_used_bytes", "Bytes the store takes.", registry=registry),
        store_capacity_bytes=Gauge(
            "passel_store_capacity_bytes", "Bytes the store may take.", registry=registry
        ),
        blobs=Gauge("passel_store_blobs", "Blobs kept, by state.", ("state",), registry=registry),
        evicted_bytes=Counter(
            "passel_store_evicted_bytes_total", "Bytes evicted to make room.", registry=registry
        ),
        reads=Counter(
            "passel_peer_reads_total",
            "Reads that the gateway asked this peer for, by how they ended.",
            ("outcome",),
            registry=registry,
        ),
    )


def shard_metrics(registry: CollectorRegistry) -> ShardMetrics:
    """A scheduler shard's metrics, registered in `registry`."""
    return ShardMetrics(
        blobs=Gauge("passel_shard_blobs", "Blobs in hand.", registry=registry),
        peers=Gauge("passel_shard_peers", "Peers that reported lately.", registry=registry),
        leases=Gauge("passel_shard_leases", "Back-to-source leases given out.", registry=registry),
        decisions=Counter(
            "passel_shard_decisions_total",
            "Pieces given a parent, by kind.",
            ("kind",),
            registry=registry,
        ),
        plan_s=Histogram(
            "passel_shard_plan_seconds",
            "Time to plan one epoch.",
            buckets=_PLAN_BUCKETS_S,
            registry=registry,
        ),
        events=Counter(
            "passel_shard_events_total",
            "Things worth a look: leases lost, bans, wrong digests.",
            ("event",),
            registry=registry,
        ),
    )


def exposition(registry: CollectorRegistry) -> tuple[str, bytes]:
    """Content type and body of a ``/metrics`` answer."""
    return CONTENT_TYPE_LATEST, generate_latest(registry)
