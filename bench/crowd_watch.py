"""What a crowd is watched with: processor, links and pieces, sampled from outside of passel.

Links are counted by the lab's switch, pieces by the nodes' piece maps on disk; nothing here asks
the code that is measured.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netcluster import NetCluster, Node
from netlab import Traffic

from passel.errors import StoreCorrupt
from passel.store.piecemap import MapView

LINKS_EVERY_S = 0.1
PIECES_EVERY_S = 0.02
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Sample:
    """One look at the links and the processor; seconds since the watch began."""

    at: float
    links: dict[str, Traffic]
    busy_s: float


@dataclass
class Watch:
    """Samples from `with` to its end. `pieces` only if `digest` is given (it costs a little)."""

    cluster: NetCluster
    nodes: Sequence[Node] = ()
    digest: str | None = None
    samples: list[Sample] = field(default_factory=list)
    #: (seconds, node, piece): the piece was verified and in the node's store.
    pieces: list[tuple[float, str, int]] = field(default_factory=list)
    began: float = 0.0

    def __enter__(self) -> Watch:
        self._stop = threading.Event()
        self._before = self.cluster.cpu_s()
        self._control = self.cluster.lab.control_bytes()
        self.began, self._wall_began = time.monotonic(), time.time()
        self._look()
        loops = [self._links_loop] + ([self._pieces_loop] if self.digest else [])
        self._threads = [threading.Thread(target=loop, daemon=True) for loop in loops]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._look()
        after = self.cluster.cpu_s()
        self.cpu_s = {kind: after[kind] - self._before.get(kind, 0.0) for kind in after}
        self._control_after = self.cluster.lab.control_bytes()

    # --- sampling -------------------------------------------------------------------------------

    def _look(self) -> None:
        links = self.cluster.lab.traffic()
        self.samples.append(Sample(time.monotonic() - self.began, links, machine_busy_s()))

    def _links_loop(self) -> None:
        while not self._stop.wait(LINKS_EVERY_S):
            self._look()

    def _pieces_loop(self) -> None:
        assert self.digest is not None
        views: dict[str, MapView] = {}
        seen: dict[str, int] = {}
        while not self._stop.wait(PIECES_EVERY_S):
            now = time.monotonic() - self.began
            for node in self.nodes:
                view = views.get(node.name)
                if view is None:
                    view = _open_map(self.cluster.map_path(node, self.digest))
                    if view is None:
                        continue
                    views[node.name] = view
                fresh = view.verified() & ~seen.get(node.name, 0)
                seen[node.name] = seen.get(node.name, 0) | fresh
                while fresh:
                    low = fresh & -fresh
                    self.pieces.append((now, node.name, low.bit_length() - 1))
                    fresh ^= low
        for view in views.values():
            view.close()

    # --- what came of it ------------------------------------------------------------------------

    def links(self) -> dict[str, Traffic]:
        """Bytes of the whole watch, by link."""
        first, last = self.samples[0].links, self.samples[-1].links
        return {
            name: Traffic(
                up=last[name].up - first[name].up, down=last[name].down - first[name].down
            )
            for name in last
        }

    def busy_share(self, cores: int, until_s: float) -> float:
        """Of all cores, up to that second: by whomever on this machine."""
        last = next((s for s in self.samples if s.at >= until_s), self.samples[-1])
        first = self.samples[0]
        return (last.busy_s - first.busy_s) / (cores * max(last.at - first.at, 1e-9))

    def control_share(self, bytes_per_s: float, elapsed_s: float) -> dict[str, float]:
        """What was not bulk, of what the links could carry: the mean and the busiest node."""
        shares = [
            max(after.up - self._control[name].up, after.down - self._control[name].down)
            / (bytes_per_s * elapsed_s)
            for name, after in self._control_after.items()
            if name != "origin"
        ]
        if not shares:
            return {}
        return {"mean": round(sum(shares) / len(shares), 4), "highest": round(max(shares), 4)}

    def use(self, bytes_per_s: float, until_s: float, n_parts: int = 10) -> dict[str, list[float]]:
        """How full the nodes' links were, on the mean, in each tenth of the time (1 is full)."""
        names = [node.name for node in self.nodes]
        found: dict[str, list[float]] = {"up": [], "down": []}
        edges = [until_s * i / n_parts for i in range(n_parts + 1)]
        for start, stop in itertools.pairwise(edges):
            first, last = self._nearest(start), self._nearest(stop)
            room = max(last.at - first.at, 1e-9) * bytes_per_s * len(names)
            for side in ("up", "down"):
                moved = sum(
                    getattr(last.links[n], side) - getattr(first.links[n], side) for n in names
                )
                found[side].append(round(moved / room, 3))
        return found

    def _nearest(self, at: float) -> Sample:
        return min(self.samples, key=lambda sample: abs(sample.at - at))

    def lines(self) -> list[dict[str, Any]]:
        """The trace, in time order: a piece in a store, a fetch from its beginning, the links."""
        lines: list[dict[str, Any]] = [
            {"t": round(at, 3), "event": "piece", "node": node, "piece": piece}
            for at, node, piece in self.pieces
        ]
        for fetch in self.cluster.fetches(self.digest) if self.digest else ():
            at = fetch.pop("at") - self._wall_began
            lines.append({"t": round(at, 3), "event": "fetch", **fetch})
        for sample in self.samples:
            links = {name: [link.up, link.down] for name, link in sample.links.items()}
            lines.append({"t": round(sample.at, 3), "event": "links", "bytes": links})
        return sorted(lines, key=lambda line: float(line["t"]))


def machine_busy_s() -> float:
    """Seconds that the cores of this machine were busy, with whatever. Source: proc(5), stat."""
    head = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
    ticks = [int(word) for word in head.split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / _TICKS


def _open_map(path: Path) -> MapView | None:
    with suppress(OSError, StoreCorrupt):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return MapView(fd)
        finally:
            os.close(fd)
    return None
