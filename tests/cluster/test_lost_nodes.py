"""On a real cluster: a node dies together with whoever would have said so."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Origin
from ray_lab import Lab, eventually

from passel.actors.controller import ZONE_LABEL

pytestmark = pytest.mark.cluster

MIB = 1 << 20


@pytest.fixture
def small_lab(folder: Path, origin: Origin) -> Iterator[Lab]:
    lab = Lab(folder / "lost-nodes", origin.url)
    try:
        # A node's zone can be the label that makes it a seed: the second one, not Ray's head.
        lab.start(["a", "seed", "a"], {"seeds": {"label": ZONE_LABEL}})
        yield lab
    finally:
        lab.stop()


def test_a_node_that_dies_with_the_controller_is_forgotten(small_lab: Lab, origin: Origin) -> None:
    """What only it had is fetched again, at most once, and comes to everybody."""
    lab = small_lab
    status = lab.status()
    assert [node["node"] for node in status["nodes"] if node["role"] == "seed"] == ["n2"]
    data = os.urandom(9 * MIB)
    digest = origin.put(data)
    lab.nodes["n2"].ensure("org/app", digest)
    os.kill(status["controller"]["pid"], signal.SIGKILL)
    lab.remove("n2")
    began = time.monotonic()
    # With the shard on the dead node as well, all wait until Ray takes that node for dead.
    eventually(lambda: lab.nodes["n1"].ensure("org/app", digest)[-1] == {"event": "done"}, 120)
    print(f"what only the dead node had took {time.monotonic() - began:.1f} s")
    for node in lab.nodes.values():
        assert node.ensure("org/app", digest)[-1] == {"event": "done"}
    # The dead node's processes outlive it for a moment, and may serve some of it.
    assert len(data) <= origin.sent(digest) <= 2 * len(data)
    eventually(lambda: [shard["peers"] for shard in lab.status()["shards"]] == [2], 60)
