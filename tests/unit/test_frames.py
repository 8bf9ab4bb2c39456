"""Frames, put together again, are the views that they came from; and none is too long."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from watched_rollout import Rollout

from passel.telemetry.frames import FIXED, FRAMES_KEPT, HISTORY, Frames
from passel.telemetry.scene import BLOBS_MAX, EDGES_MAX, JOBS_MAX

#: The page's promise, in bytes per second at one frame per second.
PAGE_BYTES_MAX = 200_000


class Viewer:
    """What the page's model.js does with frames, told in Python."""

    def __init__(self) -> None:
        self.version: int | None = None
        self.nodes: dict[int, list[Any]] = {}
        self.blobs: dict[str, Any] = {}
        self.jobs: dict[str, Any] = {}
        self.rest: dict[str, Any] = {}
        self.kinds: list[str] = []
        self.longest = 0

    def hear(self, frames: Frames) -> None:
        for data in frames.since(self.version):
            self.longest = max(self.longest, len(data))
            self._apply(json.loads(data))
        self.version = frames.version

    def _apply(self, frame: dict[str, Any]) -> None:
        self.kinds.append(frame["kind"])
        if frame["kind"] == "all":
            self.nodes, self.blobs, self.jobs, self.rest = {}, {}, {}, {}
        for number in frame.get("gone", ()):
            del self.nodes[number]
        for row in frame["nodes"]:
            known = self.nodes.get(row[0], [])
            self.nodes[row[0]] = row if len(row) == 14 else [*known[:FIXED], *row[1:]]
        for digest in frame.get("blobs_gone", ()):
            del self.blobs[digest]
        self.blobs.update((row[0], row) for row in frame.get("blobs", ()))
        for job in frame.get("jobs_gone", ()):
            del self.jobs[job]
        self.jobs.update((job["job"], job) for job in frame.get("jobs", ()))
        keys = ("cluster", "at", "totals", "edges", "zone_flows")
        self.rest.update((key, frame[key]) for key in keys if key in frame)

    def sees(self, view: dict[str, Any]) -> bool:
        return (
            self.nodes == {row[0]: row for row in view["nodes"]}
            and self.blobs == {row[0]: row for row in view["blobs"]}
            and self.jobs == {job["job"]: job for job in view["jobs"]}
            and all(view[key] == value for key, value in self.rest.items())
        )


def random_view(rng: random.Random, n_nodes: int, at: int) -> dict[str, Any]:
    """All that can change does; the numbers are as long as real ones get."""

    def big() -> int:
        return rng.randrange(10**11, 10**12)

    def node(number: int) -> list[Any]:
        fixed = [number, f"ip-10-0-12-{number}.ec2.internal", f"us-east-1{number % 5}", "peer"]
        return [*fixed, rng.randrange(3), *(big() for _ in range(9))]

    def blob() -> list[Any]:
        numbers = [big(), "registry.example.com", 499, 499, big(), big(), 123]
        return [f"sha256:{rng.getrandbits(256):064x}", *numbers]

    edges = [[rng.randrange(1, 999), rng.randrange(999), big()] for _ in range(EDGES_MAX)]
    zones = [[f"us-east-1{i}", f"us-east-1{k}", big()] for i in range(14) for k in range(14)]
    job = {"what": "x" * 200, "trouble": "x" * 200, "held": 0}
    return {
        "life": "life",
        "cluster": "test",
        "at": at,
        "totals": {"rates": [big() for _ in range(4)], "cross_zone": big(), "bytes": [at] * 4},
        "nodes": [node(i) for i in range(1, n_nodes + 1)],
        "edges": edges,
        "zone_flows": zones,
        "blobs": [blob() for _ in range(BLOBS_MAX)],
        "jobs": [{**job, "job": str(i), "held": big()} for i in range(JOBS_MAX)],
    }


def test_frames_of_a_rollout_put_together_are_what_there_was() -> None:
    frames, early, late, slow = Frames(), Viewer(), Viewer(), Viewer()
    rollout = Rollout(nodes=6, zones=2, mib=24)
    for second, view in enumerate(rollout.views(30), 1):
        frames.take(view)
        early.hear(frames)
        assert early.sees(view), second
        if second > 8:
            late.hear(frames)
            assert late.sees(view), second
        if second % 15 == 0:
            slow.hear(frames)
            assert slow.sees(view)
    assert early.kinds == ["all"] + ["change"] * 29
    assert late.kinds == ["all"] + ["change"] * 21
    assert slow.kinds == ["all", "all"]
    assert all(row[4] == 1 and row[-1] == 0 for row in early.nodes.values())


def test_nodes_blobs_and_jobs_that_go_are_gone() -> None:
    rng, frames, viewer = random.Random(3), Frames(), Viewer()
    for second in range(60):
        view = random_view(rng, rng.randrange(12), second)
        view["blobs"] = view["blobs"][: rng.randrange(4)]
        view["jobs"] = view["jobs"][: rng.randrange(4)]
        view["edges"] = view["edges"][: rng.randrange(2)]
        frames.take(view)
        viewer.hear(frames)
        assert viewer.sees(view), second
    assert viewer.kinds.count("all") == 1


def test_who_is_a_little_behind_gets_what_he_missed_and_no_more() -> None:
    rng, frames, viewer = random.Random(4), Frames(), Viewer()
    frames.take(random_view(rng, 3, 0))
    viewer.hear(frames)
    for second in range(1, FRAMES_KEPT + 1):
        frames.take(random_view(rng, 3, second))
    viewer.hear(frames)
    assert viewer.kinds == ["all"] + ["change"] * FRAMES_KEPT
    for second in range(FRAMES_KEPT + 1):
        frames.take(random_view(rng, 3, 99 + second))
    viewer.hear(frames)
    assert viewer.kinds[-1] == "all"
    assert frames.since(viewer.version) == []


def test_another_life_begins_with_the_whole_picture() -> None:
    rng, frames, viewer = random.Random(5), Frames(), Viewer()
    assert frames.is_empty
    assert frames.since(None) == []
    for life, kinds in (("one", ["all"]), ("two", ["all", "all"]), ("two", ["all"] * 2)):
        view = {**random_view(rng, 4, 1), "life": life}
        frames.take(view)
        viewer.hear(frames)
        assert viewer.sees(view)
        assert viewer.kinds[: len(kinds)] == kinds
    assert viewer.kinds == ["all", "all", "change"]


def test_the_worst_of_500_nodes_stays_within_the_pages_promise() -> None:
    rng, frames, viewer = random.Random(6), Frames(), Viewer()
    frames.take(random_view(rng, 500, 0))
    viewer.hear(frames)
    viewer.longest = 0
    for second in range(1, 6):
        view = random_view(rng, 500, second)
        frames.take(view)
        viewer.hear(frames)
        assert viewer.sees(view), "no node has to wait at this size"
    assert viewer.kinds.count("all") == 1
    assert 100_000 < viewer.longest <= PAGE_BYTES_MAX


def test_beyond_the_budget_nodes_take_turns() -> None:
    rng, frames, viewer = random.Random(7), Frames(), Viewer()
    n_nodes = 3000
    frames.take(random_view(rng, n_nodes, 0))
    viewer.hear(frames)
    viewer.longest = 0
    told: dict[int, int] = {}
    last: dict[int, list[Any]] = dict(viewer.nodes)
    for second in range(1, 9):
        frames.take(random_view(rng, n_nodes, second))
        viewer.hear(frames)
        told.update((n, second) for n, row in viewer.nodes.items() if last[n] != row)
        last = dict(viewer.nodes)
    assert viewer.longest <= PAGE_BYTES_MAX
    assert len(told) == n_nodes
    assert min(told.values()) >= 4, "nobody is told twice while others wait"


def test_history_is_kept_for_who_comes_late_and_has_an_end() -> None:
    rng, frames = random.Random(8), Frames()
    for second in range(HISTORY + 30):
        frames.take(random_view(rng, 1, second))
    whole = json.loads(frames.since(None)[0])
    assert [row[0] for row in whole["history"]] == list(range(30, HISTORY + 30))
    assert len(whole["history"][0]) == 6


@pytest.mark.parametrize("broken", [{}, {"life": 1}, {"life": "x", "totals": None}])
def test_what_is_no_view_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError)):
        Frames().take(broken)
