"""The cluster as somebody who watches it sees it: rates, progress, who feeds whom. No clock here.

What peers and shards say comes in whenever they say it; `Scene.view` puts together what is known at
one moment. Counters become rates here, so that whoever draws needs no memory. All sizes are in
bytes, all rates in bytes per second, all times in seconds of one clock.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from passel.core.overview import BlobView, Overview
from passel.ids import PeerId

SOURCES = ("local", "peer", "seed", "origin")
#: A rate is taken over so many looks, or over less time if there were fewer.
LOOKS = 4
#: Who did not answer for so long counts as away.
AWAY_S = 6.0
EDGES_MAX = 800
ZONE_FLOWS_MAX = 200
BLOBS_MAX = 100
JOBS_MAX = 30
TEXT_MAX = 200
#: The number that stands for the origin where a node's number is expected.
ORIGIN = 0


@dataclass(frozen=True, slots=True)
class Spot:
    """A node, as the controller knows it."""

    peer: PeerId
    node: str
    zone: str
    role: str


@dataclass(frozen=True, slots=True)
class Glance:
    """What a peer says of itself; counters grow from 0 at the start of its process."""

    bytes: tuple[int, int, int, int]
    """Read from the node's own disk by clients, and fetched from peers, seeds, the origin."""
    sent_bytes: int
    cross_zone_bytes: int
    used_bytes: int
    complete: int
    """Whole blobs on its disk."""
    flows: dict[PeerId, int]
    """See `passel.telemetry.flows`."""


@dataclass(slots=True)
class _Node:
    spot: Spot
    number: int
    looks: deque[tuple[float, Glance]] = field(default_factory=lambda: deque(maxlen=LOOKS))
    #: Counters of peer, seed and origin when what it is getting now began to come.
    base: tuple[int, int, int] = (0, 0, 0)
    #: What it held before of what it is getting: at least so much.
    here: int = 0
    #: What it holds of that, and what it misses, as the shards know it.
    held: int = 0
    missing: int = 0

    @property
    def last(self) -> Glance | None:
        return self.looks[-1][1] if self.looks else None

    @property
    def came(self) -> list[int]:
        """From peers, seeds and the origin, of what it is getting."""
        counters = (0, 0, 0) if self.last is None else self.last.bytes[1:]
        return [now - base for now, base in zip(counters, self.base, strict=True)]

    def look(self, now: float, glance: Glance) -> None:
        """Take in what its peer says."""
        last = self.last
        if last is not None and any(
            new < old for new, old in zip(glance.bytes[1:], last.bytes[1:], strict=True)
        ):
            self.base = (0, 0, 0)  # a new life of the process
        self.looks.append((now, glance))
        if self.missing:
            # Shards hear of a piece after it was counted: what they knew before and nobody has
            # counted by now has been here all the time.
            self.here = max(self.here, self.held - sum(self.came))

    def follow(self, held: int, wanted: int) -> None:
        """Take in what the shards say; what it begins to get now is counted from here on."""
        was_busy = self.missing > 0
        self.held, self.missing = held, max(0, wanted - held)
        if was_busy or not self.missing or self.last is None:
            return
        self.here = 0
        if len(self.looks) > 1:
            # The look before this one: what came in between came for this.
            self.base = self.looks[-2][1].bytes[1:]
        else:
            self.base = _base(self.last.bytes[1:], held)

    def rate(self, first: int, last: int) -> float:
        """Of a counter, over the looks that are kept; a counter that fell began at 0 again."""
        took_s = self.looks[-1][0] - self.looks[0][0] if len(self.looks) > 1 else 0.0
        return _grown(first, last) / took_s if took_s > 0 else 0.0


class Scene:
    """All nodes of one cluster while it is watched."""

    def __init__(self, life: str, cluster: str, shards: Iterable[str], now: float) -> None:
        #: Another one has other numbers for the same nodes.
        self._life = life
        self._cluster = cluster
        self._nodes: dict[PeerId, _Node] = {}
        self._next = ORIGIN + 1
        self._shards: dict[str, Overview] = {}
        self._shard_at = dict.fromkeys(shards, now)
        self._jobs: list[dict[str, Any]] = []

    # --- what comes in --------------------------------------------------------------------------

    def members(self, spots: Iterable[Spot]) -> None:
        """The nodes that there are."""
        known = {spot.peer: spot for spot in spots}
        for peer in [peer for peer in self._nodes if peer not in known]:
            del self._nodes[peer]
        for peer, spot in known.items():
            node = self._nodes.get(peer)
            if node is None or node.spot != spot:
                self._nodes[peer] = _Node(spot, self._next)
                self._next += 1

    def peer_said(self, peer: PeerId, glance: Glance, now: float) -> None:
        """A peer answered."""
        node = self._nodes.get(peer)
        if node is not None:
            node.look(now, glance)

    def shard_said(self, shard: str, said: Overview, now: float) -> None:
        """A shard answered."""
        self._shards[shard] = said
        self._shard_at[shard] = now

    def jobs(self, jobs: Iterable[Mapping[str, Any]]) -> None:
        """The preheats, in the shape of `passel jobs --json`, up to `JOBS_MAX` of them."""
        self._jobs = [_job(job) for job in islice(jobs, JOBS_MAX)]

    # --- what is seen ---------------------------------------------------------------------------

    def view(self, now: float, wall_s: float) -> dict[str, Any]:
        """All of it, as plain values. Rows are lists, in this order.

        ``nodes``: number, name, zone, role, then state (0 away, 1 idle, 2 fetching), whole blobs,
        bytes on disk, rate in, rate out; of what it is getting: bytes that were here before, that
        came from peers, seeds, the origin, that are missing.
        ``edges``: child, parent (0: the origin), rate; the strongest. ``zone_flows``: the same
        between zones (parent null: the origin), all edges counted.
        ``blobs``: digest, size, upstreams, nodes that have it whole, nodes that are getting it,
        bytes that these have and want to have, the node that goes to the origin (or null).
        """
        progress = self._progress()
        for node in self._nodes.values():
            node.follow(*progress.get(node.spot.peer, (0, 0)))
        edges = self._edges(now)
        rows = [_row(node, now) for node in self._nodes.values()]
        return {
            "life": self._life,
            "cluster": self._cluster,
            "at": round(wall_s * 1000),
            "totals": self._totals(now),
            "nodes": rows,
            "edges": [[c.number, p, _short(rate)] for rate, c, p in edges[:EDGES_MAX]],
            "zone_flows": self._zone_flows(edges),
            "blobs": self._blobs(),
            "jobs": self._jobs,
        }

    def _progress(self) -> dict[PeerId, tuple[int, int]]:
        total: dict[PeerId, tuple[int, int]] = {}
        for said in self._shards.values():
            for peer, (held, wanted) in said.peers.items():
                before = total.get(peer, (0, 0))
                total[peer] = before[0] + held, before[1] + wanted
        return total

    def _edges(self, now: float) -> list[tuple[float, _Node, int]]:
        """(rate, child, number of the parent), the strongest first."""
        found: list[tuple[float, _Node, int]] = []
        for node in self._nodes.values():
            if not _is_there(node, now):
                continue
            old, new = node.looks[0][1], node.looks[-1][1]
            for parent, n_bytes in new.flows.items():
                other = self._nodes.get(parent)
                rate = node.rate(old.flows.get(parent, 0), n_bytes)
                if other is not None and rate > 0:
                    found.append((rate, node, other.number))
            rate = node.rate(old.bytes[3], new.bytes[3])
            if rate > 0:
                found.append((rate, node, ORIGIN))
        return sorted(found, key=lambda edge: (-edge[0], edge[1].number, edge[2]))

    def _zone_flows(self, edges: list[tuple[float, _Node, int]]) -> list[list[Any]]:
        zones = {node.number: node.spot.zone for node in self._nodes.values()}
        flows: dict[tuple[str, str | None], float] = {}
        for rate, child, parent in edges:
            way = child.spot.zone, None if parent == ORIGIN else zones[parent]
            flows[way] = flows.get(way, 0.0) + rate
        strongest = sorted(flows.items(), key=lambda flow: -flow[1])[:ZONE_FLOWS_MAX]
        return [[child, parent, _short(rate)] for (child, parent), rate in strongest]

    def _totals(self, now: float) -> dict[str, Any]:
        rates = [0.0] * len(SOURCES)
        cross = 0.0
        total = [0] * len(SOURCES)
        for node in self._nodes.values():
            if node.last is not None:
                total = [a + b for a, b in zip(total, node.last.bytes, strict=True)]
            if not _is_there(node, now):
                continue
            old, new = node.looks[0][1], node.looks[-1][1]
            for i in range(len(SOURCES)):
                rates[i] += node.rate(old.bytes[i], new.bytes[i])
            cross += node.rate(old.cross_zone_bytes, new.cross_zone_bytes)
        return {
            "rates": [_short(rate) for rate in rates],
            "cross_zone": _short(cross),
            "bytes": total,
            "blobs": sum(said.n_blobs for said in self._shards.values()),
            "shards_away": sum(at < now - AWAY_S for at in self._shard_at.values()),
        }

    def _blobs(self) -> list[list[Any]]:
        found = [view for said in self._shards.values() for view in said.blobs]
        found.sort(key=lambda view: (view.coming == 0, view.digest))
        return [self._blob(view) for view in found[:BLOBS_MAX]]

    def _blob(self, view: BlobView) -> list[Any]:
        fetcher = None if view.fetcher is None else self._nodes.get(view.fetcher)
        return [
            view.digest,
            view.size,
            ", ".join(view.upstreams)[:TEXT_MAX],
            view.complete,
            view.coming,
            view.held_bytes,
            view.wanted_bytes,
            None if fetcher is None else fetcher.number,
        ]


def _is_there(node: _Node, now: float) -> bool:
    return bool(node.looks) and node.looks[-1][0] >= now - AWAY_S


def _base(now: tuple[int, int, int], held: int) -> tuple[int, int, int]:
    """Where counting begins for what is half done already when it is first seen.

    Of what the process fetched in all, as much as the node holds now, each source in proportion.
    """
    total = sum(now)
    share = min(held, total) / total if total else 0.0
    peer, seed, origin = (n - round(n * share) for n in now)
    return peer, seed, origin


def _row(node: _Node, now: float) -> list[Any]:
    spot, last = node.spot, node.last
    head: list[Any] = [node.number, spot.node, spot.zone, spot.role]
    if last is None or not _is_there(node, now):
        return [*head, 0, *([0] * 9)]
    first = node.looks[0][1]
    fetched = [
        node.rate(old, new) for old, new in zip(first.bytes[1:], last.bytes[1:], strict=True)
    ]
    return [
        *head,
        2 if node.missing else 1,
        last.complete,
        last.used_bytes,
        _short(sum(fetched)),
        _short(node.rate(first.sent_bytes, last.sent_bytes)),
        node.here,
        *node.came,
        node.missing,
    ]


def _grown(first: int, last: int) -> int:
    return last - first if last >= first else last


def _short(rate: float) -> int:
    """Three digits that matter: more would only make every row new in every second."""
    return int(float(f"{rate:.3g}"))


def _job(job: Mapping[str, Any]) -> dict[str, Any]:
    nodes = job["nodes"]
    return {
        "job": job["job"],
        "what": plain(str(job["what"])),
        "to": str(job["to"])[:TEXT_MAX],
        "state": job["state"],
        "trouble": plain(str(job["trouble"])),
        "created": job["created"],
        "blobs": job["blobs"],
        "bytes": job["bytes"],
        "nodes": len(nodes),
        "done": sum(node["blobs"] == job["blobs"] for node in nodes),
        "held": sum(node["bytes"] for node in nodes),
        "in_trouble": sum(bool(node["trouble"]) for node in nodes),
    }


def plain(text: str) -> str:
    """A name or a sentence without what URLs carry along: user, password, query."""
    text = re.sub(r"//[^/\s@]*@", "//", text)
    return re.sub(r"[?#]\S+", "", text)[:TEXT_MAX]
