"""Counters of peers and shards become rates, progress and who feeds whom."""

from __future__ import annotations

from typing import Any

import pytest

from passel.core.overview import BlobView, Overview
from passel.ids import PeerId
from passel.telemetry.flows import FORGET_S, PARENTS_MAX, Flows
from passel.telemetry.scene import AWAY_S, EDGES_MAX, Glance, Scene, Spot, plain

A, B, C = PeerId("a" * 8), PeerId("b" * 8), PeerId("c" * 8)
NODE = ("number", "node", "zone", "role", "state", "complete", "used", "into", "out")
NODE += ("here", "peer", "seed", "origin", "missing")


def scene_of(*peers: PeerId) -> Scene:
    scene = Scene("life", "test", ["s0"], 0.0)
    zones = {A: "x", B: "x", C: "y"}
    scene.members(
        Spot(p, f"n-{p[0]}", zones.get(p, "y"), "seed" if p == A else "peer") for p in peers
    )
    return scene


def glance(
    local: int = 0,
    peer: int = 0,
    seed: int = 0,
    origin: int = 0,
    *,
    sent: int = 0,
    cross: int = 0,
    flows: dict[PeerId, int] | None = None,
) -> Glance:
    return Glance((local, peer, seed, origin), sent, cross, 7, 2, flows or {})


def node(scene: Scene, name: str, now: float) -> dict[str, Any]:
    rows = {row[1]: dict(zip(NODE, row, strict=True)) for row in scene.view(now, 0.0)["nodes"]}
    return rows[name]


def wants(scene: Scene, peer: PeerId, held: int, wanted: int, now: float = 0.0) -> None:
    scene.shard_said("s0", Overview(peers={peer: (held, wanted)} if wanted else {}), now)


def test_rates_are_over_the_looks_that_are_kept() -> None:
    scene = scene_of(A, C)
    for second in range(10):
        scene.peer_said(A, glance(origin=500 * second, sent=300 * second), float(second))
        flows = {A: 300 * second}
        scene.peer_said(C, glance(seed=300 * second, cross=300 * second, flows=flows), second)
    view = scene.view(9.0, 12.5)
    assert view["at"] == 12500
    assert view["totals"]["rates"] == [0, 0, 300, 500]
    assert view["totals"]["cross_zone"] == 300
    assert view["totals"]["bytes"] == [0, 0, 2700, 4500]
    assert view["edges"] == [[1, 0, 500], [2, 1, 300]]
    assert view["zone_flows"] == [["x", None, 500], ["y", "x", 300]]
    assert (node(scene, "n-a", 9.0)["into"], node(scene, "n-a", 9.0)["out"]) == (500, 300)
    assert (node(scene, "n-c", 9.0)["used"], node(scene, "n-c", 9.0)["complete"]) == (7, 2)


def test_one_look_is_no_rate_and_a_new_life_no_negative_one() -> None:
    scene = scene_of(A, B)
    scene.peer_said(B, glance(peer=5000, flows={A: 5000}), 0.0)
    assert scene.view(0.0, 0.0)["edges"] == []
    scene.peer_said(B, glance(peer=100, flows={A: 100}), 1.0)
    assert scene.view(1.0, 0.0)["edges"] == [[2, 1, 100]]
    assert node(scene, "n-b", 1.0)["into"] == 100


def test_a_node_that_says_nothing_is_away_and_moves_nothing() -> None:
    scene = scene_of(A, B)
    scene.peer_said(B, glance(), 0.0)
    scene.peer_said(B, glance(peer=1000, flows={A: 1000}), 1.0)
    assert node(scene, "n-b", 1.0 + AWAY_S)["state"] == 1
    later = 1.01 + AWAY_S
    assert node(scene, "n-b", later)["state"] == 0
    view = scene.view(later, 0.0)
    assert view["edges"] == []
    assert view["totals"]["rates"] == [0, 0, 0, 0]
    # It was read all the same.
    assert view["totals"]["bytes"] == [0, 1000, 0, 0]
    assert node(scene, "n-a", later)["state"] == 0


def test_progress_is_of_what_came_since_it_began() -> None:
    scene = scene_of(B)
    scene.peer_said(B, glance(peer=10_000), 0.0)
    scene.view(0.0, 0.0)
    scene.peer_said(B, glance(peer=10_300, seed=100), 1.0)
    wants(scene, B, 450, 1000)
    found = node(scene, "n-b", 1.0)
    assert [found[k] for k in ("state", "here", "peer", "seed", "origin", "missing")] == [
        *(2, 0, 300, 100, 0, 550)
    ]
    # What the shard knew of before, and nobody has counted by now, was here all the time.
    scene.peer_said(B, glance(peer=10_300, seed=100), 1.5)
    assert node(scene, "n-b", 1.5)["here"] == 50
    scene.peer_said(B, glance(peer=10_850, seed=100), 2.0)
    wants(scene, B, 0, 0)
    found = node(scene, "n-b", 2.0)
    assert [found[k] for k in ("state", "here", "peer", "seed", "origin", "missing")] == [
        *(1, 50, 850, 100, 0, 0)
    ]
    # The next one begins anew.
    scene.peer_said(B, glance(peer=10_900, seed=100), 3.0)
    wants(scene, B, 50, 100)
    found = node(scene, "n-b", 3.0)
    assert [found[k] for k in ("here", "peer", "seed", "missing")] == [0, 50, 0, 50]


def test_who_looks_in_the_middle_sees_the_sources_in_proportion() -> None:
    scene = scene_of(B)
    wants(scene, B, 600, 1000)
    scene.peer_said(B, glance(peer=900, seed=300), 0.0)
    found = node(scene, "n-b", 0.0)
    assert [found[k] for k in ("here", "peer", "seed", "missing")] == [0, 450, 150, 400]


def test_a_peer_that_starts_again_in_the_middle_has_the_rest_here() -> None:
    scene = scene_of(B)
    wants(scene, B, 600, 1000)
    scene.peer_said(B, glance(peer=600), 0.0)
    scene.view(0.0, 0.0)
    wants(scene, B, 650, 1000)
    scene.peer_said(B, glance(peer=50), 1.0)
    found = node(scene, "n-b", 1.0)
    assert [found[k] for k in ("here", "peer", "missing")] == [550, 50, 350]


def test_numbers_belong_to_nodes_as_they_are() -> None:
    scene = scene_of(A, B)
    scene.members([Spot(B, "n-b", "x", "peer"), Spot(C, "n-c", "y", "peer")])
    assert [row[:2] for row in scene.view(0.0, 0.0)["nodes"]] == [[2, "n-b"], [3, "n-c"]]
    scene.members([Spot(B, "n-b", "x", "seed")])
    assert [row[:4] for row in scene.view(0.0, 0.0)["nodes"]] == [[4, "n-b", "x", "seed"]]
    scene.peer_said(A, glance(), 0.0)  # a late word of one who is gone
    assert len(scene.view(0.0, 0.0)["nodes"]) == 1


def test_blobs_of_all_shards_moving_ones_first() -> None:
    scene = scene_of(A)
    one, two = BlobView("sha256:1", 10, ("hub",), complete=1), BlobView("sha256:2", None)
    two.coming, two.fetcher = 1, A
    scene.shard_said("s0", Overview(n_blobs=5, blobs=[one]), 0.0)
    scene.shard_said("s1", Overview(n_blobs=3, blobs=[two]), 0.0)
    view = scene.view(0.0, 0.0)
    assert view["blobs"] == [
        ["sha256:2", None, "", 0, 1, 0, 0, 1],
        ["sha256:1", 10, "hub", 1, 0, 0, 0, None],
    ]
    assert view["totals"]["blobs"] == 8
    assert view["totals"]["shards_away"] == 0
    scene.shard_said("s1", Overview(), AWAY_S)
    assert scene.view(AWAY_S + 0.1, 0.0)["totals"]["shards_away"] == 1


def test_there_is_an_end_to_edges() -> None:
    peers = [PeerId(f"p{i}") for i in range(60)]
    scene = Scene("life", "test", [], 0.0)
    scene.members(Spot(p, p, "", "peer") for p in peers)
    for now in (0, 1):
        for i, peer in enumerate(peers):
            flows = {p: now * 1000 * (i + 1) for p in peers if p != peer}
            scene.peer_said(peer, glance(flows=flows), float(now))
    view = scene.view(1.0, 0.0)
    assert len(view["edges"]) == EDGES_MAX
    assert view["edges"][0][2] == 60_000  # the strongest are kept
    assert view["zone_flows"] == [["", "", 108_000_000]]


def test_jobs_say_no_more_than_they_must() -> None:
    scene = scene_of(A)
    share = {"node": "n-a", "zone": "x", "blobs": 2, "bytes": 60, "trouble": ""}
    job = {"job": "1", "to": "all", "state": "running", "trouble": "", "created": "", "blobs": 2}
    other = {**share, "node": "n-b", "blobs": 1, "bytes": 10, "trouble": "busy"}
    what = "https://me:secret@host/model.bin?X-Signature=secret"
    scene.jobs([{**job, "what": what, "bytes": 60, "nodes": [share, other]}])
    (seen,) = scene.view(0.0, 0.0)["jobs"]
    assert seen["what"] == "https://host/model.bin"
    assert (seen["nodes"], seen["done"], seen["held"], seen["in_trouble"]) == (2, 1, 70, 1)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ghcr.io/org/app:1", "ghcr.io/org/app:1"),
        ("org/app@sha256:12", "org/app@sha256:12"),
        ("https://u:p@h/x?a=b#c", "https://h/x"),
        ("GET https://u@h/x?token=1 said no?", "GET https://h/x said no?"),
        ("x" * 500, "x" * 200),
    ],
)
def test_plain(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_flows_forget_who_gives_nothing_and_whom_there_is_no_room_for() -> None:
    flows = Flows()
    flows.add(A, 5, 0.0)
    flows.add(B, 7, 1.0)
    flows.add(A, 5, 2.0)
    assert flows.recent(2.0) == {B: 7, A: 10}
    assert flows.recent(1.0 + FORGET_S) == {A: 10}
    assert flows.recent(2.0 + FORGET_S) == {}
    flows.add(A, 1, 20.0)
    assert flows.recent(20.0) == {A: 1}
    for i in range(PARENTS_MAX):
        flows.add(PeerId(str(i)), 1, 21.0)
    assert A not in flows.recent(21.0)
    assert len(flows.recent(21.0)) == PARENTS_MAX
