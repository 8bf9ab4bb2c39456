"""What only a real Ray cluster can show: names, restarts, joins and leaves, bytes on real disks."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request

import pytest
import ray
from conftest import Origin
from ray.core.generated import gcs_pb2
from ray_lab import Lab, LabNode, eventually

from passel.actors.words import NAMESPACE

pytestmark = pytest.mark.cluster


def on_disk(node: LabNode, digest: str) -> bytes | None:
    name = digest.removeprefix("sha256:")
    path = node.store / "blobs" / "sha256" / name[:2] / name
    return path.read_bytes() if path.exists() else None


def test_the_dashboard_says_who_is_who(lab: Lab) -> None:
    # Ray keeps the repr that an actor had after its constructor: nothing in it may change later.
    accessor = ray._private.state.state._connect_and_get_accessor()
    table = map(gcs_pb2.ActorTableData.FromString, accessor.get_actor_table(None, None))
    shown = {actor.repr_name for actor in table if actor.ray_namespace == NAMESPACE}
    cluster = next(name for name in shown if name.startswith("Controller("))
    roles = {node["node"]: node["role"] for node in lab.status()["nodes"]}
    kinds = {"seed": "SeedPeer", "peer": "Peer"}
    zones = {"n1": "a", "n2": "b", "n3": "a"}
    peers = {f"{kinds[roles[node]]}({node} in zone {zone})" for node, zone in zones.items()}
    assert shown == {cluster, "Shard(0)", *peers}


def test_a_blob_reaches_every_node_and_leaves_the_origin_once(
    lab: Lab, origin: Origin, blob: tuple[bytes, str]
) -> None:
    data, digest = blob
    for node in lab.nodes.values():
        lines = node.ensure("org/app", digest, 5_000_000, 5_004_096)
        assert lines[-1] == {"event": "done"}, lines
    for node in lab.nodes.values():
        assert eventually(lambda n=node: on_disk(n, digest)) == data
    assert origin.sent(digest) == len(data)
    status = lab.status()
    assert sum(node["cross_zone_bytes"] for node in status["nodes"]) == len(data)
    assert {node["node"] for node in status["nodes"]} == set(lab.nodes)
    assert [node["role"] for node in status["nodes"]].count("seed") == 1


def test_unknown_blobs_are_the_origins_404(lab: Lab) -> None:
    lines = lab.nodes["n2"].ensure("org/app", "sha256:" + "0" * 64)
    assert lines[-1]["event"] == "error"
    assert lines[-1]["status"] == 404


def test_a_killed_peer_comes_back_with_its_disk(
    lab: Lab, origin: Origin, blob: tuple[bytes, str]
) -> None:
    data, digest = blob
    node = lab.nodes["n2"]
    node.ensure("org/app", digest)
    assert eventually(lambda: on_disk(node, digest)) == data
    pid = node.kill_peer()
    health = eventually(node.health, 10)
    assert health["pid"] != pid
    lines = node.ensure("org/app", digest, 0, 100)
    assert lines[0]["source"] == "local"
    assert origin.sent(digest) == len(data)


def test_a_restarted_peer_gives_others_what_its_disk_kept(lab: Lab, origin: Origin) -> None:
    """Also what nobody asked it for since, and what it has alone."""
    data = os.urandom(3_000_000)
    digest = origin.put(data)
    seed = next(node["node"] for node in lab.status()["nodes"] if node["role"] == "seed")
    lab.nodes[seed].ensure("org/app", digest)
    assert eventually(lambda: on_disk(lab.nodes[seed], digest)) == data
    pid = lab.nodes[seed].kill_peer()
    eventually(lambda: lab.nodes[seed].health().get("pid", pid) != pid, 20)
    for name in set(lab.nodes) - {seed}:
        assert lab.nodes[name].ensure("org/app", digest)[-1] == {"event": "done"}
        assert eventually(lambda n=name: on_disk(lab.nodes[n], digest)) == data
    assert origin.sent(digest) == len(data)


def test_a_killed_shard_is_rebuilt_from_what_peers_say(
    lab: Lab, origin: Origin, blob: tuple[bytes, str]
) -> None:
    data, digest = blob
    lab.nodes["n3"].ensure("org/app", digest)
    old = lab.status()["shards"][0]["pid"]
    os.kill(old, signal.SIGKILL)
    began = time.monotonic()
    lines = lab.nodes["n2"].ensure("org/app", digest)
    assert lines[-1] == {"event": "done"}, lines
    print(f"a read across the death of the shard took {time.monotonic() - began:.2f} s")
    assert origin.sent(digest) == len(data), "the origin was asked again"
    assert eventually(lambda: lab.status()["shards"])[0]["pid"] != old


def test_a_killed_controller_finds_peers_and_roles_again(lab: Lab) -> None:
    before = lab.status()
    os.kill(before["controller"]["pid"], signal.SIGKILL)

    def recovered() -> bool:
        status = lab.status()
        return len(status.get("nodes", ())) == len(lab.nodes) and all(
            node["alive"] for node in status["nodes"]
        )

    assert eventually(recovered, 20)
    after = lab.status()
    roles = {node["node"]: node["role"] for node in before["nodes"]}
    assert {node["node"]: node["role"] for node in after["nodes"]} == roles
    pids = {node["node"]: node["pids"]["peer"] for node in before["nodes"]}
    assert {node["node"]: node["pids"]["peer"] for node in after["nodes"]} == pids


def test_a_node_that_joins_gets_its_peer_and_one_that_leaves_is_forgotten(
    lab: Lab, origin: Origin, blob: tuple[bytes, str]
) -> None:
    data, digest = blob
    lab.nodes["n1"].ensure("org/app", digest)
    node = lab.add("n4", "b")
    began = time.monotonic()
    eventually(node.health, 5.0)
    print(f"a peer on the new node after {time.monotonic() - began:.2f} s")
    node.ensure("org/app", digest)
    assert eventually(lambda: on_disk(node, digest)) == data
    assert origin.sent(digest) == len(data)
    lab.remove("n4")
    eventually(lambda: {n["node"] for n in lab.status()["nodes"]} == set(lab.nodes), 30)


def test_a_peer_that_finds_no_gateway_starts_one_and_the_gateway_outlives_it(lab: Lab) -> None:
    node = lab.nodes["n3"]
    note = eventually(lambda: json.loads((node.folder / "gateway.json").read_text()), 20)
    os.kill(note["pid"], signal.SIGKILL)

    def another() -> bool:
        fresh = json.loads((node.folder / "gateway.json").read_text())
        ping = urllib.request.urlopen(f"{fresh['gateway']}/server/ping", timeout=2)
        return bool(ping.status == 200 and fresh["pid"] != note["pid"])

    eventually(another, 20)
    pid = json.loads((node.folder / "gateway.json").read_text())["pid"]
    node.kill_peer()
    eventually(node.health, 10)
    assert json.loads((node.folder / "gateway.json").read_text())["pid"] == pid
