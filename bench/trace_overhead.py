"""What does recording cost? Throughput with the trace on, by that with it off, in the same run.

A real cluster on this machine (`passel up`), a registry on the loopback without a limit, and no
shaped links: the processor is what everything waits for, so that every microsecond of recording
shows. On and off alternate, in pairs whose order alternates too.

``crowd``  all nodes pull a new blob at once: an event per piece, lease and epoch
``hits``   one client reads ranges of 128 KiB that its node has, over one connection: an event per
           read, which is the most events per byte that there are

The goal: at most 2 % of throughput.

    python bench/trace_overhead.py [--nodes 3] [--mib 128] [--pairs 6] > trace_overhead.jsonl
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from report import Report

from passel.cli.cluster import start_cluster, stop_cluster
from passel.cli.demo.run import DemoRegistry
from passel.client.state import StateFolder
from passel.client.status import cluster_status
from passel.errors import PasselError
from passel.telemetry.recording import LOOK_EVERY_S, switch_off, switch_on
from passel.telemetry.trace import info

MIB = 1 << 20
RANGE_BYTES = 128 * 1024
GOAL = 0.02
FOREVER_S = 3600.0


class Bench:
    """A cluster, and what is done with it."""

    def __init__(self, folder: Path, nodes: int, mib: int) -> None:
        self.size = mib * MIB
        self.state = StateFolder(folder / "state")
        self._config = folder / "config.yaml"
        self._nodes = nodes
        self._registry = DemoRegistry(self.state, "100 GiB")

    def start(self) -> None:
        config = {
            "upstreams": {"lab": {"api": self._registry.url, "networks": ["127.0.0.0/8"]}},
            "default_upstream": "lab",
            "gateway": {"listen": ["127.0.0.1:0"], "health": ["127.0.0.1:0"]},
            "store": {"capacity": "1 GiB", "reserve": "0 B"},
        }
        self._config.write_text(yaml.safe_dump(config), encoding="utf-8")
        start_cluster(self.state, self._config, self._nodes, 1, bound=True)
        self._registry.start()
        self.gateways = [node["gateway"] for node in cluster_status(self.state)["nodes"]]
        self.folders = [node.store / "trace" for node in self.state.nodes()]

    def stop(self) -> None:
        stop_cluster(self.state)
        self._registry.stop()

    def record(self, is_on: bool) -> None:
        """Processes look once a second; what they had is written before a measurement."""
        if is_on:
            switch_on(self.folders, time.time() + FOREVER_S)
        else:
            switch_off(self.folders)
        time.sleep(2 * LOOK_EVERY_S)

    def n_rows(self) -> int:
        return sum(info(path).rows for each in self.folders for path in each.glob("*.parquet"))

    def crowd(self) -> float:
        """MB/s of all nodes together, for a blob that nobody has."""
        digest = self.blob()
        began = time.monotonic()
        with ThreadPoolExecutor(self._nodes) as pool:
            list(pool.map(lambda gateway: pull(gateway, digest), self.gateways))
        seconds = time.monotonic() - began
        (self._blobs / digest.partition(":")[2]).unlink()
        return self._nodes * self.size / seconds / 1e6

    def hits(self, digest: str, seconds: float = 3.0) -> float:
        """MB/s of one client whose node has everything."""
        address = urlsplit(self.gateways[0]).netloc
        client = http.client.HTTPConnection(address, timeout=60)
        n_bytes, began = 0, time.monotonic()
        while time.monotonic() - began < seconds:
            start = n_bytes % (self.size - RANGE_BYTES)
            span = {"Range": f"bytes={start}-{start + RANGE_BYTES - 1}"}
            client.request("GET", f"/v2/org/app/blobs/{digest}", headers=span)
            n_bytes += len(client.getresponse().read())
        client.close()
        return n_bytes / (time.monotonic() - began) / 1e6

    @property
    def _blobs(self) -> Path:
        return self.state.path / "registry" / "blobs" / "sha256"

    def blob(self) -> str:
        data = os.urandom(self.size)
        name = hashlib.sha256(data).hexdigest()
        self._blobs.mkdir(parents=True, exist_ok=True)
        (self._blobs / name).write_bytes(data)
        return f"sha256:{name}"


def pull(gateway: str, digest: str) -> None:
    client = http.client.HTTPConnection(urlsplit(gateway).netloc, timeout=120)
    client.request("GET", f"/v2/org/app/blobs/{digest}")
    answer = client.getresponse()
    while answer.read(MIB):
        pass
    client.close()


def paired(
    bench: Bench, measure: Callable[[], float], pairs: int
) -> tuple[list[float], list[float]]:
    """Samples without and with recording, after one that does not count."""
    measure()
    found: dict[bool, list[float]] = {False: [], True: []}
    for i in range(pairs):
        for is_on in (False, True) if i % 2 else (True, False):
            bench.record(is_on)
            found[is_on].append(measure())
    bench.record(False)
    return found[False], found[True]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--mib", type=int, default=128, help="size of the blob")
    parser.add_argument("--pairs", type=int, default=6, help="of measurements, off and on")
    arguments = parser.parse_args()
    for name, least, most in (("nodes", 1, 16), ("mib", 1, 512), ("pairs", 1, 100)):
        if not least <= getattr(arguments, name) <= most:
            parser.error(f"--{name}: expected {least} to {most}")
    report = Report("What does recording a trace cost?")
    folder = Path(tempfile.mkdtemp(prefix="pto-"))
    bench = Bench(folder, arguments.nodes, arguments.mib)
    try:
        bench.start()
        held = bench.blob()
        pull(bench.gateways[0], held)
        for case, measure in (("hits", lambda: bench.hits(held)), ("crowd", bench.crowd)):
            before = bench.n_rows()
            off, on = paired(bench, measure, arguments.pairs)
            ratios = [1 - b / a for a, b in zip(off, on, strict=True)]
            report.row(
                case,
                "MB/s",
                on,
                parameters=vars(arguments),
                bound=statistics.median(off),
                off=[round(each, 1) for each in off],
                overhead_of_medians=round(1 - statistics.median(on) / statistics.median(off), 4),
                overhead_by_pair=[round(each, 4) for each in ratios],
                overhead_goal=GOAL,
                events=bench.n_rows() - before,
            )
    except PasselError as error:
        sys.exit(f"trace_overhead: {error}")
    finally:
        bench.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    os.umask(0o077)
    main()
