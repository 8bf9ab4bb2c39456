"""Views of a cluster as a stream: one whole picture, then what changed, within a budget of bytes.

All who watch get the same frames: what the last one left everybody with is kept here once. A frame
that would be too long leaves out the nodes that were told last; they come with a later one.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Any

#: One frame per second: the page's 200 KB/s, and some room for what is always told.
FRAME_BYTES_MAX = 180_000
#: Who fell behind by more frames gets the whole picture.
FRAMES_KEPT = 10
#: Two minutes of rates, for somebody who opens the page now.
HISTORY = 120
#: Of a node's row: number, name, zone, role do not change as long as the number stays.
FIXED = 4

_Row = list[Any]


class Frames:
    """Takes whole views, gives frames. `version` counts them."""

    def __init__(self, bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self.version = 0
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=FRAMES_KEPT)
        self._life: str | None = None
        self._all: dict[str, Any] = {}
        self._nodes: dict[int, _Row] = {}
        self._told_at: dict[int, int] = {}
        self._blobs: dict[str, _Row] = {}
        self._jobs: dict[str, dict[str, Any]] = {}
        self._history: deque[_Row] = deque(maxlen=HISTORY)

    @property
    def is_empty(self) -> bool:
        """Whether there was no view yet."""
        return self.version == 0

    def take(self, view: dict[str, Any]) -> None:
        """The next view, in the shape of `Scene.view`. Raises KeyError, TypeError, ValueError."""
        is_same_life = view["life"] == self._life
        totals = view["totals"]
        if not is_same_life:
            self._forget(str(view["life"]))
        self.version += 1
        frame: dict[str, Any] = {"kind": "change", "version": self.version}
        for key in ("cluster", "at", "totals", "edges", "zone_flows"):
            if self._all.get(key) != view[key]:
                frame[key] = self._all[key] = view[key]
        self._history.append([view["at"], *totals["rates"], totals["cross_zone"]])
        _differ(frame, "blobs", self._blobs, {row[0]: row for row in view["blobs"]})
        _differ(frame, "jobs", self._jobs, {job["job"]: job for job in view["jobs"]})
        gone, changed = self._node_changes({row[0]: row for row in view["nodes"]})
        if gone:
            frame["gone"] = gone
        room = self._bytes_max - len(_encode(frame))
        frame["nodes"] = self._tell(changed, room)
        if is_same_life:
            self._kept.append((self.version, _encode(frame)))

    def since(self, version: int | None) -> list[bytes]:
        """What somebody who knows `version` is to be told, as JSON; None: who knows nothing."""
        if self.is_empty or version == self.version:
            return []
        newer = [] if version is None else [f for v, f in self._kept if v > version]
        if version is None or len(newer) != self.version - version:
            return [self._whole()]
        return newer

    def _forget(self, life: str) -> None:
        self._life = life
        for table in (self._all, self._nodes, self._told_at, self._blobs, self._jobs, self._kept):
            table.clear()

    def _whole(self) -> bytes:
        frame = {
            "kind": "all",
            "version": self.version,
            **self._all,
            "nodes": list(self._nodes.values()),
            "blobs": list(self._blobs.values()),
            "jobs": list(self._jobs.values()),
            "history": list(self._history),
        }
        return _encode(frame)

    def _node_changes(self, rows: dict[int, _Row]) -> tuple[list[int], list[_Row]]:
        """Numbers that are gone, and rows that changed: those that wait longest first."""
        gone = [number for number in self._nodes if number not in rows]
        for number in gone:
            del self._nodes[number], self._told_at[number]
        changed = [row for number, row in rows.items() if self._nodes.get(number) != row]
        changed.sort(key=lambda row: self._told_at.get(row[0], -1))
        return gone, changed

    def _tell(self, changed: list[_Row], room: int) -> list[_Row]:
        """As many rows as there is room for; of nodes that are known only what can change.

        The first frame of a life is never sent, the whole picture goes out in its place.
        """
        is_first = not self._nodes
        told: list[_Row] = []
        for row in changed:
            number = row[0]
            known = self._nodes.get(number)
            short = row if known is None or known[:FIXED] != row[:FIXED] else [number, *row[FIXED:]]
            room -= len(_encode(short)) + 1
            if room < 0 and not is_first:
                break
            told.append(short)
            self._nodes[number] = row
            self._told_at[number] = self.version
        return told


def _differ(frame: dict[str, Any], key: str, known: dict[str, Any], now: dict[str, Any]) -> None:
    """Note in `frame` what is new or changed, and what is gone; `known` becomes `now`."""
    changed = [value for name, value in now.items() if known.get(name) != value]
    gone = [name for name in known if name not in now]
    if changed:
        frame[key] = changed
    if gone:
        frame[f"{key}_gone"] = gone
    known.clear()
    known.update(now)


def _encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
