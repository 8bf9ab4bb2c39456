"""What actors count, as data: Ray exports it, so no registry of passel's own is involved.

Names are ``passel_<noun>_<unit>``; Ray puts ``ray_`` in front. Labels come from closed sets, and
each node adds its own name, zone and role: never a digest, a peer id or a repository. Everything is
read off the facts that `passel status` shows too, so the two cannot tell different stories.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True, slots=True)
class Series:
    """One metric. With ``_total`` it has come together since the process began, else it is now."""

    name: str
    about: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Measure:
    """A value of a series now, for one combination of its labels."""

    series: Series
    value: float
    labels: tuple[str, ...] = ()


_FETCHED: Final = Series(
    "passel_peer_fetched_bytes_total",
    "Verified bytes that came to this node, by where from; origin is back to source.",
    ("source",),
)
_BLOBS: Final = Series("passel_store_blobs", "Blobs in the store, by state.", ("state",))
_SLOTS: Final = Series("passel_peer_slots", "Transfers allowed at a time.", ("direction",))
_SLOTS_USED: Final = Series("passel_peer_slots_used", "Transfers under way.", ("direction",))
_NODES: Final = Series("passel_cluster_nodes", "Nodes with a peer, by role.", ("role",))
_JOBS: Final = Series("passel_cluster_jobs", "Jobs that are kept, by state.", ("state",))

_PEER: Final = {
    "cross_zone_bytes": Series(
        "passel_peer_cross_zone_bytes_total", "Piece bytes fetched from other zones."
    ),
    "uploaded_bytes": Series("passel_peer_served_bytes_total", "Piece bytes sent to other nodes."),
    "origin_requests": Series(
        "passel_origin_requests_total", "Requests for a span of a blob to an origin."
    ),
    "origin_errors": Series(
        "passel_origin_errors_total", "Of these, the ones that failed or were refused."
    ),
    "used_bytes": Series("passel_store_used_bytes", "Bytes the store takes."),
    "capacity_bytes": Series("passel_store_capacity_bytes", "Bytes the store may take."),
    "evicted_blobs": Series("passel_store_evictions_total", "Blobs evicted to make room."),
    "scrubbed_bytes": Series(
        "passel_store_scrubbed_bytes_total", "Bytes of complete blobs that were read again."
    ),
    "damaged_blobs": Series(
        "passel_store_damaged_total", "Complete blobs whose bytes were not those of their name."
    ),
    "reads": Series("passel_peer_reads", "Reads of the gateway that wait for pieces."),
    "calls": Series("passel_peer_reports_total", "Reports sent to the shards."),
}
_BUSY: Final = Series("passel_shard_busy_seconds_total", "Time spent in the shard's machine.")
_SHARD: Final = {
    "blobs": Series("passel_shard_blobs", "Blobs in hand."),
    "peers": Series("passel_shard_peers", "Peers that reported lately."),
    "epochs": Series("passel_shard_epochs_total", "Epochs planned."),
    "edges": Series("passel_shard_decisions_total", "Pieces for which a parent was chosen."),
    "leases": Series("passel_shard_leases_total", "Back-to-source leases given out."),
    "reports": Series("passel_shard_reports_total", "Reports taken in."),
    "delivers": Series("passel_shard_delivers_total", "Batches of plans sent out."),
}


def peer_measures(facts: Mapping[str, Any]) -> Iterator[Measure]:
    """Of the facts that a peer tells of itself."""
    for source, value in facts["bytes"].items():
        yield Measure(_FETCHED, value, (source,))
    for key, series in _PEER.items():
        yield Measure(series, facts[key])
    yield Measure(_BLOBS, facts["complete"], ("complete",))
    yield Measure(_BLOBS, facts["blobs"] - facts["complete"], ("partial",))
    for direction in ("upload", "download"):
        yield Measure(_SLOTS, facts["slots"][direction], (direction,))
        yield Measure(_SLOTS_USED, facts["slots_used"][direction], (direction,))


def shard_measures(facts: Mapping[str, Any]) -> Iterator[Measure]:
    """Of the facts that a shard tells of itself."""
    for key, series in _SHARD.items():
        yield Measure(series, facts[key])
    yield Measure(_BUSY, facts["handle_s"] + facts["plan_s"])


def controller_measures(roles: Mapping[str, int], jobs: Mapping[str, int]) -> Iterator[Measure]:
    """How many nodes have each role, and how many jobs are in each state."""
    for role, value in roles.items():
        yield Measure(_NODES, value, (role,))
    for state, value in jobs.items():
        yield Measure(_JOBS, value, (state,))


def gateway_measures(exposition: str) -> Iterator[Measure]:
    """Of the text that a gateway answers ``/metrics`` with: all that it counts itself.

    A histogram becomes its buckets, sum and count: Prometheus computes quantiles from any series
    with the label ``le``.
    """
    for family in text_string_to_metric_families(exposition):
        if not family.name.startswith("passel_gateway_"):
            continue
        for sample in family.samples:
            if sample.name.endswith("_created"):
                continue
            labels = tuple(sorted(sample.labels))
            series = Series(sample.name, family.documentation, labels)
            yield Measure(series, sample.value, tuple(sample.labels[name] for name in labels))


def local_bytes(measures: Iterable[Measure]) -> int:
    """The bytes that a gateway has served from its node's own store, by its `gateway_measures`."""
    return int(
        sum(
            measure.value
            for measure in measures
            if measure.series.name == "passel_gateway_bytes_total" and measure.labels == ("local",)
        )
    )
