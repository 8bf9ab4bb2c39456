"""The gateway's metrics, made for a registry that is handed in; nothing is created at import.

What actors count is in `passel.telemetry.series`.

Names are ``passel_<noun>_<unit>``; labels come from closed sets, never a digest, a peer or a
repository. Bytes are counted by where they came from: the one number that justifies the project.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

SOURCES: Final = ("local", "peer", "seed", "origin")
DIRECT_REASONS: Final = ("full", "peer")
GRANT_OUTCOMES: Final = ("known", "cluster", "origin", "refused", "origin_down", "unknown")

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
    # From the start, so that the first event is an increase and not a series that appears.
    for source in SOURCES:
        metrics.bytes.labels(source)
        metrics.first_byte_s.labels(source)
    for reason in DIRECT_REASONS:
        metrics.direct.labels(reason)
    for outcome in GRANT_OUTCOMES:
        metrics.grants.labels(outcome)
    for status in ("2xx", "4xx", "5xx"):
        metrics.requests.labels("blob", status)
    return metrics


def exposition(registry: CollectorRegistry) -> tuple[str, bytes]:
    """Content type and body of a ``/metrics`` answer."""
    return CONTENT_TYPE_LATEST, generate_latest(registry)
