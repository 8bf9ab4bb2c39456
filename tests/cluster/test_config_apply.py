"""`passel config apply` on a running cluster: taken up by all or refused as a whole."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from conftest import Origin
from ray_lab import Lab, eventually, lab_with_gateways

from passel.actors.words import NAMESPACE, shard_name
from passel.core.messages import Hello, PeerInfo, Role
from passel.core.versions import WIRE
from passel.ids import PeerId

pytestmark = pytest.mark.cluster

MIB = 1 << 20


@pytest.fixture(scope="module")
def other_origin(folder: Path) -> Iterator[Origin]:
    (folder / "other").mkdir()
    origin = Origin(folder / "other")
    yield origin
    origin.stop()


@pytest.fixture(scope="module")
def small_lab(origin: Origin) -> Iterator[Lab]:
    with lab_with_gateways(origin.url, ["a", "b"]) as lab:
        yield lab


def apply(lab: Lab, config: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    file = lab.folder / "wanted.yaml"
    file.write_text(yaml.safe_dump(config))
    return lab.passel("config", "apply", str(file))


def versions(lab: Lab) -> set[tuple[int, int]]:
    """What the peers and what the gateways go by."""
    configs = [node["config"] for node in lab.status()["nodes"]]
    return {(each["version"], each["gateway_version"]) for each in configs}


def read(lab: Lab, node: str, upstream: str, digest: str) -> int:
    note = json.loads((lab.nodes[node].folder / "gateway.json").read_text())
    url = f"{note['gateway']}/v2/org/app/blobs/{digest}?ns={upstream}"
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return len(answer.read())
    except urllib.error.HTTPError as error:
        return -error.code


def wanted(origin: Origin, other: Origin, **lab: Any) -> dict[str, Any]:
    loopback = ["127.0.0.0/8"]
    return {
        "upstreams": {
            "lab": {"api": origin.url, "networks": loopback, **lab},
            "other": {"api": other.url, "networks": loopback},
        },
        "default_upstream": "lab",
        "store": {"capacity": "1 GiB", "reserve": "0 B"},
    }


def test_a_file_that_is_wrong_or_needs_a_restart_is_refused_as_a_whole(
    small_lab: Lab, origin: Origin, other_origin: Origin
) -> None:
    good = wanted(origin, other_origin)
    wrong = apply(small_lab, {**good, "store": {"capacity": "lots"}})
    assert (wrong.returncode, "store.capacity: expected a number and" in wrong.stderr) == (2, True)
    moved = apply(small_lab, {**good, "gateway": {"listen": ["127.0.0.1:7"]}})
    assert moved.returncode == 1
    assert "gateway.listen: cannot be changed while passel runs" in moved.stderr
    assert versions(small_lab) == {(0, 0)}
    assert read(small_lab, "n2", "other", other_origin.put(b"x")) == -404


def test_what_is_applied_counts_everywhere_and_outlives_processes(
    small_lab: Lab, origin: Origin, other_origin: Origin
) -> None:
    done = apply(small_lab, wanted(origin, other_origin))
    assert done.returncode == 0, done.stderr
    assert "version 1 is what counts" in done.stdout
    eventually(lambda: versions(small_lab) == {(1, 1)}, 10)
    digest = other_origin.put(os.urandom(MIB))
    for node in ("n1", "n2"):
        assert read(small_lab, node, "other", digest) == MIB
    before = small_lab.nodes["n2"].kill_peer()
    eventually(lambda: small_lab.nodes["n2"].health()["pid"] != before, 30)
    os.kill(small_lab.status()["controller"]["pid"], 9)
    eventually(lambda: versions(small_lab) == {(1, 1)}, 30)
    # The new controller hears it from each of them.
    eventually(lambda: small_lab.status()["config"] == {"version": 1, "waits_for": []}, 20)
    # A node that joins later.
    small_lab.add("n3", "b")
    eventually(small_lab.nodes["n3"].health, 30)
    eventually((small_lab.nodes["n3"].folder / "gateway.json").exists, 30)
    eventually(lambda: versions(small_lab) == {(1, 1)}, 20)
    assert read(small_lab, "n3", "other", digest) == MIB


def test_a_quota_counts_at_once_and_spares_what_is_pinned(
    small_lab: Lab, origin: Origin, other_origin: Origin
) -> None:
    node = small_lab.nodes["n1"]
    digests = [origin.put(os.urandom(MIB)) for _ in range(5)]
    for digest in digests[:3]:
        assert read(small_lab, "n1", "lab", digest) == MIB

    def held() -> set[str]:
        folder = node.store / "blobs" / "sha256"
        names = {f"sha256:{path.name}" for path in folder.glob("*/*") if "." not in path.name}
        return names & set(digests)

    eventually(lambda: held() == set(digests[:3]))
    assert small_lab.passel("pin", digests[0]).returncode == 0
    assert apply(small_lab, wanted(origin, other_origin, quota="3 MiB")).returncode == 0
    for digest in digests[3:]:
        assert read(small_lab, "n1", "lab", digest) == MIB
        eventually(lambda: digest in held())  # noqa: B023
    assert held() == {digests[0], *digests[3:]}, "the pinned one, and the last two"
    # An upstream that is taken out of the table is unknown at once; what runs is not disturbed.
    gone = wanted(origin, other_origin)
    del gone["upstreams"]["other"]
    assert apply(small_lab, gone).returncode == 0
    eventually(lambda: read(small_lab, "n1", "other", digests[0]) == -404, 10)


def test_a_peer_of_another_version_is_told_why_and_status_says_so(small_lab: Lab) -> None:
    shard = ray.get_actor(shard_name(0), namespace=NAMESPACE)
    where = ("n9", "b", Role.PEER, "127.0.0.1:9")
    stranger = PeerInfo(PeerId("stranger"), *where, 1, 5, 16, wire=WIRE + 2, oldest=WIRE + 1)
    reply = ray.get(shard.report.remote(stranger.peer, 1, (Hello(stranger),)), timeout=10)
    assert reply.refused.startswith(f"node n9 speaks wire version {WIRE + 2}")
    (known,) = small_lab.status()["shards"]
    assert known["refused"] == [reply.refused]
    assert known["peers"] == 3, "it is none of them"
    upgraded = PeerInfo(PeerId("stranger"), *where, 2, 5, 16)
    assert not ray.get(shard.report.remote("stranger", 2, (Hello(upgraded),)), timeout=10).refused
    ray.get(shard.peer_gone.remote("stranger"), timeout=10)
    assert small_lab.status()["shards"][0]["refused"] == []
    nodes = small_lab.status()["nodes"]
    assert {(node["wire"], node["trouble"]) for node in nodes} == {(WIRE, "")}
