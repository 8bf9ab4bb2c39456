"""What is exported: names with units, closed labels, and the gateway's own numbers unchanged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from passel.telemetry.metrics import exposition, gateway_metrics
from passel.telemetry.series import (
    Measure,
    controller_measures,
    gateway_measures,
    local_bytes,
    peer_measures,
    shard_measures,
)

PEER: dict[str, Any] = {
    "bytes": {"peer": 1, "seed": 2, "origin": 3},
    "slots": {"upload": 16, "download": 16},
    "slots_used": {"upload": 1, "download": 2},
    "complete": 3,
    "blobs": 5,
    "cross_zone_bytes": 7,
    "uploaded_bytes": 7,
    "origin_requests": 7,
    "origin_errors": 7,
    "used_bytes": 7,
    "capacity_bytes": 7,
    "evicted_blobs": 7,
    "scrubbed_bytes": 7,
    "damaged_blobs": 7,
    "reads": 7,
    "calls": 7,
}
SHARD = dict.fromkeys(
    ("blobs", "peers", "epochs", "edges", "leases", "handle_s", "plan_s", "reports", "delivers"), 4
)


def text_of_a_gateway() -> str:
    registry = CollectorRegistry()
    metrics = gateway_metrics(registry)
    metrics.bytes.labels("local").inc(1000)
    metrics.first_byte_s.labels("seed").observe(0.02)
    return exposition(registry)[1].decode()


def all_measures() -> list[Measure]:
    return [
        *peer_measures(PEER),
        *shard_measures(SHARD),
        *controller_measures({"seed": 1}, {"running": 2}),
        *gateway_measures(text_of_a_gateway()),
    ]


def test_names_say_what_is_counted_and_in_what_unit() -> None:
    for measure in all_measures():
        name = measure.series.name
        assert re.fullmatch(r"passel_(gateway|peer|store|origin|shard|cluster)(_[a-z]+)+", name)
        assert not name.endswith(("_created", "_ms", "_kb", "_mb"))
        assert len(measure.labels) == len(measure.series.labels)
        assert measure.series.about


def test_one_name_always_has_the_same_labels() -> None:
    seen: dict[str, tuple[str, ...]] = {}
    for measure in all_measures():
        assert seen.setdefault(measure.series.name, measure.series.labels) == measure.series.labels


def test_a_value_is_said_once() -> None:
    keys = [(measure.series.name, measure.labels) for measure in all_measures()]
    assert len(keys) == len(set(keys))


def test_the_numbers_of_a_gateway_arrive_unchanged() -> None:
    text = text_of_a_gateway()
    values = {(m.series.name, m.labels): m.value for m in gateway_measures(text)}
    assert values["passel_gateway_bytes_total", ("local",)] == 1000
    assert values["passel_gateway_bytes_total", ("origin",)] == 0, "from the start"
    assert values["passel_gateway_first_byte_seconds_bucket", ("0.025", "seed")] == 1
    assert values["passel_gateway_first_byte_seconds_bucket", ("0.01", "seed")] == 0
    assert values["passel_gateway_first_byte_seconds_count", ("seed",)] == 1
    assert local_bytes(gateway_measures(text)) == 1000
    assert local_bytes([]) == 0


def test_blobs_are_told_by_state() -> None:
    blobs = {
        m.labels: m.value for m in peer_measures(PEER) if m.series.name == "passel_store_blobs"
    }
    assert blobs == {("complete",): 3, ("partial",): 2}


def test_every_series_is_in_the_documentation() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "operating.md").read_text()
    named = set(re.findall(r"passel_[a-z_]+[a-z]", page))
    exported = {
        re.sub("_(bucket|sum|count)$", "", measure.series.name) for measure in all_measures()
    }
    assert exported <= named
    assert {name for name in named if re.match("passel_(gateway|peer|shard)_", name)} <= exported
