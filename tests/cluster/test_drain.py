"""`passel drain`: a node hands over what only it has, is killed, and nothing is missed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Origin
from ray_lab import Lab, LabNode, eventually, lab_with_gateways

from passel.actors.handles import PeerHandle
from passel.ids import PeerId

pytestmark = pytest.mark.cluster

MIB = 1 << 20


@pytest.fixture(scope="module")
def drain_lab(origin: Origin) -> Iterator[Lab]:
    upstream = {"api": origin.url, "networks": ["127.0.0.0/8"], "read_policy": "open"}
    extra = {"store": {"capacity": "64 MiB"}, "upstreams": {"lab": upstream}}
    with lab_with_gateways(origin.url, ["a", "a", "a"], extra) as lab:
        yield lab


def has(node: LabNode, digest: str) -> bool:
    name = digest.removeprefix("sha256:")
    return (node.store / "blobs" / "sha256" / name[:2] / name).exists()


def preheat(lab: Lab, digest: str, to: str) -> None:
    done = lab.passel("preheat", f"lab/org/app@{digest}", "--to", to, "--watch")
    assert done.returncode == 0, done.stderr


def only_on(lab: Lab, name: str, digest: str) -> None:
    """The node has the blob, and no other."""
    preheat(lab, digest, f"node={name}")
    for node in lab.nodes.values():
        if node.name != name and has(node, digest):
            peer = PeerHandle(PeerId(node.ray_node.node_id))
            assert asyncio.run(peer.remove(digest, 10.0))
    assert [node.name for node in lab.nodes.values() if has(node, digest)] == [name]


def drains(lab: Lab) -> dict[str, bool]:
    return {node["node"]: node["draining"] for node in lab.status()["nodes"]}


def read(node: LabNode, digest: str) -> bytes:
    gateway = json.loads((node.folder / "gateway.json").read_text())["gateway"]
    url = f"{gateway}/v2/org/app/blobs/{digest}?ns=lab"
    with urllib.request.urlopen(url, timeout=30) as answer:
        content: bytes = answer.read()
    return content


def kill(lab: Lab, who: dict[str, Any]) -> None:
    os.kill(who["pid"], signal.SIGKILL)

    def is_replaced() -> bool:
        status = lab.status()
        everybody = [status.get("controller", who), *status.get("shards", ())]
        return len(everybody) == 2 and who["pid"] not in [each["pid"] for each in everybody]

    eventually(is_replaced)


def test_a_drained_node_is_not_missed(drain_lab: Lab, origin: Origin) -> None:
    lab = drain_lab
    contents = {origin.put(data): data for data in map(os.urandom, (10 * MIB, MIB, MIB + 5, 77))}
    large = next(iter(contents))
    for digest in contents:
        only_on(lab, "n3", digest)

    # Both others are nearly full of what may not go.
    filler = origin.put(os.urandom(56 * MIB))
    preheat(lab, filler, "node=n1")
    preheat(lab, filler, "node=n2")
    assert lab.passel("pin", filler).returncode == 0
    # A shard that starts again knows of no upstream that these blobs came from.
    kill(lab, lab.status()["shards"][0])

    wrong = lab.passel("drain", "n9")
    assert (wrong.returncode, "there is no node n9; nodes are n1, n2, n3" in wrong.stderr) == (
        1,
        True,
    ), wrong.stderr
    assert "n3 does not drain" in lab.passel("drain", "n3", "--undo").stderr

    part = lab.passel("drain", "n3")
    assert part.returncode == 1, part.stdout
    assert f"{large} (10.0 MiB): n" in part.stderr
    assert "no room" in part.stderr
    assert "n3 still has what no other node has: 1 blobs, 10.0 MiB" in part.stderr
    assert drains(lab) == {"n1": False, "n2": False, "n3": True}
    for digest in contents:
        assert has(lab.nodes["n1"], digest) == (digest != large), "the seed gets what it can take"

    # A controller that starts again goes on, and knows what was done.
    kill(lab, lab.status()["controller"])
    eventually(lambda: drains(lab) == {"n1": False, "n2": False, "n3": True})
    assert lab.passel("unpin", filler).returncode == 0
    whole = lab.passel("drain", "n3")
    assert whole.returncode == 0, whole.stderr
    said = "n3 has handed over 4 blobs, 12.0 MiB: it may be taken away now"
    assert whole.stdout.strip() == said
    assert lab.passel("drain", "n3", "--undo").stdout.strip() == "n3 stays"
    assert not any(drains(lab).values())
    again = json.loads(lab.passel("drain", "n3", "--json").stdout)
    assert (again["state"], again["blobs"], again["left"]) == ("done", 0, [])

    origin.stop()
    lab.remove("n3")
    eventually(lambda: set(drains(lab)) == {"n1", "n2"}, 30)
    for node in lab.nodes.values():
        for digest, data in contents.items():
            assert read(node, digest) == data
    for digest, data in contents.items():
        assert origin.sent(digest) == len(data), "the registry has sent each byte once"
