"""What the processes and the stores of the soak take, second by second, and what may not be."""

from __future__ import annotations

import os
import threading
from collections import defaultdict, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soak_load import MIB, Diary

EVERY_S = 1.0
RSS_MAX = 700 * MIB
FDS_MAX = 600
THREADS_MAX = 250
LOG_MAX = 16 * MIB
#: What a store may have beside its blobs: maps, lists of digests, the quarantine's small change.
STORE_SLACK = 2 * MIB
#: A capacity that was lowered counts from then on for what comes; what is there goes later.
CAPACITY_MEMORY_S = 30.0
TITLES = {"ray::Peer": "peer", "ray::SeedPeer": "seed", "ray::Shard": "shard"}
TITLES |= {"ray::Controller": "controller"}
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Process:
    role: str
    node: str
    pid: int


def processes(folder: Path) -> list[Process]:
    """Every process of passel, and every raylet, whose configuration is below `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
            role = _role(argv)
            node = _node(entry, argv, folder) if role else None
        except OSError:
            continue
        if role and node:
            found.append(Process(role, node, int(entry.name)))
    return found


def _role(argv: list[bytes]) -> str | None:
    title = argv[0].decode("utf-8", "replace")
    if title.startswith("ray::"):
        return TITLES.get(title.partition(".")[0].split(" ")[0])
    if title.endswith("/raylet"):
        return "raylet"
    return "gateway" if b"passel.gateway" in argv else None


def _node(entry: Path, argv: list[bytes], folder: Path) -> str | None:
    if b"passel.gateway" in argv:
        config = argv[argv.index(b"--config") + 1].decode()
    else:
        variables = (entry / "environ").read_bytes().split(b"\0")
        config = next((x[14:].decode() for x in variables if x.startswith(b"PASSEL_CONFIG=")), "")
    path = Path(config)
    return path.parent.name if path.parent.parent == folder else None


def taken(pid: int) -> tuple[int, int, int]:
    """(resident bytes, descriptors, threads). Source: proc(5)."""
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return resident, len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))


def disk_bytes(folder: Path) -> int:
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_blocks * 512
            except OSError:
                continue
    return total


class Sampler(threading.Thread):
    """Looks once a second. `capacity` is what the stores have now; whoever changes it says so."""

    def __init__(self, folder: Path, diary: Diary, capacity: int, blob_max: int) -> None:
        super().__init__(name="sampler", daemon=True)
        self._folder = folder
        self._diary = diary
        self._blob_max = blob_max
        self._capacities: deque[tuple[float, int]] = deque([(0.0, capacity)])
        self._over = threading.Event()
        self._is_reported: set[str] = set()
        self.series: dict[str, list[tuple[float, int, int, int]]] = defaultdict(list)
        self.disk_max = 0
        self.log_max = 0

    def set_capacity(self, capacity: int) -> None:
        self._capacities.append((self._diary.now(), capacity))

    def stop(self) -> None:
        self._over.set()

    def run(self) -> None:
        while not self._over.wait(EVERY_S):
            self.look()

    def look(self) -> None:
        now = self._diary.now()
        most: dict[str, tuple[int, int, int]] = {}
        for process in processes(self._folder):
            try:
                used = taken(process.pid)
            except (OSError, IndexError, ValueError):
                continue
            before = most.get(process.role, (0, 0, 0))
            most[process.role] = tuple(map(max, before, used))  # type: ignore[assignment]
            for name, value, limit in zip(
                ("bytes in memory", "descriptors", "threads"),
                used,
                (RSS_MAX, FDS_MAX, THREADS_MAX),
                strict=True,
            ):
                if value > limit:
                    self._once(f"the {process.role} of {process.node} has {value} {name}")
        for role, used in most.items():
            self.series[role].append((now, *used))
        self._look_at_disks(now)

    def _look_at_disks(self, now: float) -> None:
        while len(self._capacities) > 1 and self._capacities[1][0] < now - CAPACITY_MEMORY_S:
            self._capacities.popleft()
        limit = max(c for _, c in self._capacities) + self._blob_max + STORE_SLACK
        for store in self._folder.glob("*/store"):
            used = disk_bytes(store)
            self.disk_max = max(self.disk_max, used)
            if used > limit:
                self._once(f"the store of {store.parent.name} takes {used} bytes of {limit}")
        for path in self._folder.glob("*/gateway.log*"):
            self.log_max = max(self.log_max, path.stat().st_size)
            if path.stat().st_size > LOG_MAX:
                self._once(f"{path.name} of {path.parent.name} is longer than {LOG_MAX} bytes")

    def _once(self, sentence: str) -> None:
        kind = "".join(c for c in sentence if not c.isdigit())
        if kind not in self._is_reported:
            self._is_reported.add(kind)
            self._diary.finding(sentence)

    def growth(self, after_s: float) -> dict[str, dict[str, Any]]:
        """Of each role the largest process around `after_s` and at the end."""
        rows = {}
        for role, series in self.series.items():
            early = [row for row in series if row[0] >= after_s][:10] or series[:10]
            pairs = [_peak(early), _peak(series[-10:])]
            rows[role] = {"early": pairs[0], "end": pairs[1]}
        return rows


def _peak(rows: list[tuple[float, int, int, int]]) -> dict[str, int]:
    names = ("rss_mib", "descriptors", "threads")
    columns = list(zip(*rows, strict=True))[1:]
    peak = dict(zip(names, map(max, columns), strict=True))
    return {**peak, "rss_mib": peak["rss_mib"] // MIB}
