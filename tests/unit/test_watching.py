"""The controller asks its peers and shards while somebody watches, and at no other time."""

from __future__ import annotations

import asyncio
import json
import logging
import zlib
from collections import Counter
from typing import Any

import pytest

from passel.actors import watching
from passel.actors.duties import Duties
from passel.actors.watching import Watching
from passel.actors.words import PeerSpec, Place
from passel.config.load import parse
from passel.core.messages import Role
from passel.core.overview import Overview
from passel.errors import PeerUnavailable
from passel.ids import PeerId
from passel.telemetry.scene import Glance, Scene


class Cluster:
    """Handles that answer at once, or never, or say that they cannot."""

    def __init__(self, n_peers: int) -> None:
        self.asked: Counter[str] = Counter()
        self.silent: set[str] = set()
        self.away: set[str] = set()
        self.specs = {}
        self.peers: dict[PeerId, Any] = {}
        config = parse("")
        for i in range(n_peers):
            peer, place = PeerId(f"id{i}"), Place(f"n{i}", "a", "", "")
            self.specs[peer] = PeerSpec(peer, place, Role.PEER, config, "test", None)
            self.peers[peer] = Handle(self, f"peer-{i}")
        self.shards: list[Any] = [Handle(self, "shard-0")]
        self.duties = Duties(logging.getLogger("test"))

    def watching(self) -> Watching:
        specs, peers, shards = self.specs, self.peers, self.shards
        return Watching(self.duties, "test", specs, peers, shards, lambda limit: [])


class Handle:
    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name

    async def _asked(self) -> None:
        self.cluster.asked[self.name] += 1
        if self.name in self.cluster.silent:
            await asyncio.sleep(3600)
        if self.name in self.cluster.away:
            raise PeerUnavailable("away")

    async def glance(self, timeout_s: float) -> Glance:
        await self._asked()
        return Glance((0, 0, 0, 0), 0, 0, 5, 0, {})

    async def overview(self, limit: int, timeout_s: float) -> Overview:
        await self._asked()
        return Overview(n_blobs=3)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "EVERY_S", 0.01)
    monkeypatch.setattr(watching, "FIRST_S", 0.01)
    monkeypatch.setattr(watching, "LINGER_S", 0.1)


def unpacked(packed: bytes) -> dict[str, Any]:
    view: dict[str, Any] = json.loads(zlib.decompress(packed))
    return view


async def test_all_who_watch_share_one_picture_of_what_has_answered() -> None:
    cluster = Cluster(3)
    cluster.silent, cluster.away = {"peer-1"}, {"peer-2"}
    watching_ = cluster.watching()
    await asyncio.sleep(0)
    assert not cluster.asked
    one, other = await asyncio.gather(watching_.view(), watching_.view())
    assert one is other
    view = unpacked(one)
    assert [(row[1], row[4]) for row in view["nodes"]] == [("n0", 1), ("n1", 0), ("n2", 0)]
    assert view["totals"]["blobs"] == 3
    while cluster.asked["peer-0"] < 5:
        assert unpacked(await watching_.view())["life"] == view["life"]
        await asyncio.sleep(0.01)
    # One question at a time to whoever does not answer.
    assert cluster.asked["peer-1"] == 1
    assert cluster.asked["peer-2"] > 1
    await cluster.duties.stop(1.0)


async def test_when_nobody_watches_any_more_nobody_is_asked() -> None:
    cluster = Cluster(1)
    watching_ = cluster.watching()
    life = unpacked(await watching_.view())["life"]
    deadline = asyncio.get_running_loop().time() + 5
    while len(cluster.duties):
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)
    asked = cluster.asked["peer-0"]
    assert asked >= 2
    assert unpacked(await watching_.view())["life"] != life
    assert cluster.asked["peer-0"] > asked
    await cluster.duties.stop(1.0)


async def test_in_a_large_cluster_peers_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "PEERS_PER_S", 4)
    cluster = Cluster(10)
    watching_ = cluster.watching()
    scene = Scene("life", "test", [], 0.0)
    asked = []
    for _ in range(6):
        cluster.asked.clear()
        watching_._ask(scene)
        await asyncio.gather(*cluster.duties._tasks)
        await asyncio.sleep(0)  # until it is known that they have answered
        assert cluster.asked["shard-0"] == 1
        asked.append(sorted(name[5:] for name in cluster.asked if name.startswith("peer")))
    turns = [["0", "3", "6", "9"], ["1", "4", "7"], ["2", "5", "8"]]
    assert asked == turns * 2


async def test_no_picture_in_time_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "FIRST_S", 60.0)
    monkeypatch.setattr(watching, "FIRST_PICTURE_TIMEOUT_S", 0.05)
    cluster = Cluster(1)
    with pytest.raises(PeerUnavailable, match="no picture"):
        await cluster.watching().view()
    await cluster.duties.stop(1.0)
