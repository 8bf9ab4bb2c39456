"""How near the physical bound does a crowd of nodes come that want the same blob?

The real gateways, peers, shards and Ray nodes run in network namespaces behind shaped links
(`netlab`, `netcluster`); readers pull a new blob through their node's gateway. Needs root and tc.

The fluid bound, for N nodes with links of u bytes/s both ways, an origin of o, trunks of t, a blob
of S bytes:  max(S/u, S/o, (N-1)·S/(N·u), S/t if there are zones): each node must take the blob in,
the origin must send it once, the uplinks must make the other N-1 copies, each zone must take one
copy in. Frames and headers are not in it: a plain stream reaches 0.956 of it at best.

In the same run: ``calibration`` (one plain stream over one link, then plain streams in a ring over
all links: what the links, the kernel and this machine's processor can do), and ``straight``
(everybody from the origin). A run that took more than 85 % of the processor, or whose calibration
fell short of 95 % of a link's payload, is void, and its lines say so.

    sudo python bench/flash_crowd.py --nodes 4 8 16 --zones 1 2 4 > flash_crowd.jsonl
    sudo python bench/flash_crowd.py --nodes 8 --pattern lazy
    sudo python bench/flash_crowd.py --nodes 8 --mixed ranges
    sudo python bench/flash_crowd.py --nodes 8 --mixed nydusd
    sudo python bench/flash_crowd.py --nodes 16 --trace trace.jsonl
    python bench/plot_trace.py trace.jsonl
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import crowd_rows as rows
import yaml
from crowd_clients import Answer, Reader, all_at_once, stream
from crowd_watch import Watch
from netcluster import GATEWAY_PORT, ORIGIN_PORT, PIECE_PORT, REPOSITORY, NetCluster, Node
from netlab import PAYLOAD_SHARE, LabError, NetLab, congestion_control
from report import Report
from small_reads import LEAST_BYTES, NydusReads, RangeReads

MIB = 1 << 20
COMPLETE_TIMEOUT_S = 120.0
#: What all nodes together get by default: two cores carry twice that through gateways, peers and
#: Ray, so that the links and not the processor are what a crowd waits for.
MBIT_IN_ALL = 800.0
CALIBRATION_S = 2.0
WARM_UP_BYTES = 8 * MIB
CALIBRATION_PORT = 7101
#: What fills the links; the rest is control.
BULK_PORTS = (PIECE_PORT, ORIGIN_PORT, CALIBRATION_PORT)
#: nydusd's reads: chunks of a RAFS blob, and its metadata.
LAZY_RANGES = ((32, MIB), (32, 4096))


def main() -> None:
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        for n_nodes in arguments.nodes:
            for n_zones in arguments.zones:
                if n_zones <= n_nodes:
                    run(shaped(arguments, n_nodes), n_nodes, n_zones)
    except LabError as error:
        sys.exit(f"flash_crowd: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--nodes", type=int, nargs="+", default=[8])
    add("--zones", type=int, nargs="+", default=[1])
    add("--mib", type=int, default=256, help="size of the blob")
    add("--mbit", type=float, help="each node's link, both ways (default: 800 over the nodes)")
    add("--origin-mbit", type=float, help="the origin's link (default: four nodes' links)")
    add("--trunk-mbit", type=float, help="between zones (default: not shaped)")
    add("--shaper", choices=("htb", "tbf"), default="htb", help="tbf: control waits behind bulk")
    add("--congestion", help="TCP's congestion control in the lab (default: this machine's)")
    add("--arrival", choices=("together", "poisson", "serial", "rolling"), default="together")
    add("--gap", type=float, default=1.0, help="mean seconds between arrivals, for poisson")
    add("--batch", type=int, help="nodes that restart at a time, for rolling (default: a quarter)")
    add("--pattern", choices=("whole", "lazy"), default="whole")
    add("--mixed", choices=("ranges", "nydusd"), help="a reader of small parts besides the crowd")
    add("--repetitions", type=int, default=3)
    add("--random", type=int, default=1, help="seed of arrivals and ranges")
    add("--config", type=Path, help="sections of the configuration that all nodes get (YAML)")
    add("--no-straight", action="store_true", help="leave out 'everybody from the origin'")
    add("--trace", type=Path, help="pieces and links over time of the last repetition, JSON lines")
    add("--prefix", default="pslfc-", help="of the namespaces")
    add("--folder", type=Path, default=Path(tempfile.gettempdir()), help="for the nodes' stores")
    return parser.parse_args()


def shaped(arguments: argparse.Namespace, n_nodes: int) -> argparse.Namespace:
    """The same with every link's rate."""
    rates = argparse.Namespace(**vars(arguments))
    rates.mbit = arguments.mbit or MBIT_IN_ALL / n_nodes
    rates.origin_mbit = arguments.origin_mbit or 4 * rates.mbit
    return rates


def run(arguments: argparse.Namespace, n_nodes: int, n_zones: int) -> None:
    """One cluster of this shape: all its cases. Nothing is left afterwards, whatever happens."""
    lab = NetLab(arguments.prefix, BULK_PORTS, arguments.shaper, arguments.congestion)
    settings = yaml.safe_load(arguments.config.read_text()) if arguments.config else {}
    if arguments.trace:
        settings["logging"] = {"level": "debug"}
    cluster = NetCluster(lab, arguments.folder / arguments.prefix.rstrip("-"), settings)
    zones = [chr(ord("a") + i * n_zones // n_nodes) for i in range(n_nodes)]
    done = False
    try:
        cluster.start(zones, arguments.mbit, arguments.origin_mbit, arguments.trunk_mbit)
        crowd = Crowd(arguments, cluster, n_zones)
        crowd.calibrate()
        crowd.warm_up()
        if arguments.mixed:
            crowd.mixed()
        else:
            crowd.measure()
            if arguments.pattern == "whole" and not arguments.no_straight:
                crowd.straight()
        done = True
    finally:
        cluster.stop(keep_logs=not done and not isinstance(sys.exc_info()[1], KeyboardInterrupt))


@dataclass
class Pull:
    """What one node's reader saw."""

    node: Node
    started: float
    finished: float
    answers: list[Answer]

    @property
    def elapsed_s(self) -> float:
        return self.finished - self.started


class Crowd:
    """The cases of one cluster."""

    def __init__(self, arguments: argparse.Namespace, cluster: NetCluster, n_zones: int) -> None:
        self.arguments = arguments
        self.cluster = cluster
        self.nodes = cluster.nodes
        self.n_zones = n_zones
        self.size = arguments.mib * MIB
        self.link = arguments.mbit * 1e6 / 8
        self.rng = random.Random(arguments.random)
        self.spans: list[tuple[int, int]] = []
        self.void: list[str] = []
        self.report = Report(
            "How near the physical bound does a crowd of nodes come that want the same blob?",
            seed=arguments.random,
        )
        self.parameters = {
            "nodes": len(self.nodes),
            "zones": n_zones,
            "size_bytes": self.size,
            "mbit": arguments.mbit,
            "origin_mbit": arguments.origin_mbit,
            "trunk_mbit": arguments.trunk_mbit,
            "shaper": arguments.shaper,
            "congestion": congestion_control(self.nodes[0].host),
        }

    # --- cases ----------------------------------------------------------------------------------

    def calibrate(self) -> None:
        """One plain stream over one link; then one from every node to its neighbour."""
        lab, n_bytes = self.cluster.lab, int(self.link * CALIBRATION_S)
        digest = self.cluster.make_blob(8 * MIB)
        source = self.cluster.blob_path(digest)
        first, second = self.nodes[0], self.nodes[1]
        best = self.link * PAYLOAD_SHARE * 8e-6
        pairs = {
            "one": [(first.host, second.host)],
            "ring": [(a.host, b.host) for a, b in self._ring()],
        }
        for name, each in ((name, each) for name, each in pairs.items() if each):
            rates: list[float] = []
            busy: list[float] = []
            for _ in range(self.arguments.repetitions):
                with Watch(self.cluster) as watch:
                    seconds = stream(lab, each, CALIBRATION_PORT, source, n_bytes)
                rates.append(n_bytes * 8e-6 / max(seconds))
                busy.append(round(watch.busy_share(rows.CORES, max(seconds)), 3))
            reached = max(rates) / best
            if reached < 0.95:
                self.void.append(f"calibration {name}: {reached:.3f} of a link's payload")
            self.report.row(
                "calibration",
                "Mbit/s",
                rates,
                parameters={**self.parameters, "streams": len(each)},
                bound=best,
                busy_share=busy,
            )
        self.cluster.drop_blob(digest)

    def _ring(self) -> list[tuple[Node, Node]]:
        """Every node and the next one of its zone."""
        pairs: list[tuple[Node, Node]] = []
        for zone in dict.fromkeys(node.zone for node in self.nodes):
            inside = [node for node in self.nodes if node.zone == zone]
            if len(inside) > 1:
                pairs += zip(inside, inside[1:] + inside[:1], strict=True)
        return pairs

    def warm_up(self) -> None:
        """One small blob to everybody, which does not count: connections, imports, first calls."""
        digest = self.cluster.make_blob(WARM_UP_BYTES)
        all_at_once(partial(self._pull, digest=digest), self.nodes)
        self.cluster.wait_complete(self.nodes, digest, COMPLETE_TIMEOUT_S)
        self.cluster.drop_blob(digest)

    def measure(self) -> None:
        """The crowd, that often; every time a new blob."""
        arguments = self.arguments
        bodies = []
        for i in range(arguments.repetitions):
            is_last = i == arguments.repetitions - 1
            digest = self.cluster.make_blob(self.size)
            is_lazy = arguments.pattern == "lazy"
            self.spans = self._lazy_spans() if is_lazy else []
            pull = partial(self._pull, digest=digest, spans=self.spans or (None,))
            before, origin = self.cluster.status(), self.cluster.origin_stats()
            traced = digest if arguments.trace and is_last else None
            with Watch(self.cluster, self.nodes, traced) as watch:
                pulls = self._arrive(pull)
                at_last_read = self.cluster.origin_stats()["by_digest"].get(digest, 0)
            if not is_lazy or self.cluster.fetches_whole_blobs:
                self.cluster.wait_complete(self.nodes, digest, COMPLETE_TIMEOUT_S)
            after = self.cluster.status()
            sent = self.cluster.origin_stats()["by_digest"].get(digest, 0)
            n_requests = self.cluster.origin_stats()["blob_requests"] - origin["blob_requests"]
            body = rows.run_facts(self, watch, pulls, before, after)
            body["origin_bytes"] = {"at_last_read": at_last_read, "at_end": sent}
            body["origin_requests"] = n_requests
            bodies.append(body)
            if traced:
                rows.write_trace(arguments.trace, watch, self.parameters, pulls)
            self.cluster.drop_blob(digest)
        rows.crowd_row(self, bodies)

    def straight(self) -> None:
        """Everybody from the origin, without passel."""
        digest = self.cluster.make_blob(self.size)
        before = self.cluster.origin_stats()["by_digest"].get(digest, 0)
        with Watch(self.cluster, self.nodes) as watch:
            pulls = self._arrive(lambda node: self._pull(node, digest, through=self.cluster.origin))
        sent = self.cluster.origin_stats()["by_digest"].get(digest, 0) - before
        self.cluster.drop_blob(digest)
        rows.straight_row(self, watch, pulls, sent)

    def mixed(self) -> None:
        """A reader of small parts on one node, alone and while a crowd fills the links.

        What it reads lies on a seed and on one more node, not on its own.
        """
        roles = {node["node"]: node["role"] for node in self.cluster.status()["nodes"]}
        plain = [node for node in self.nodes if roles[node.name] != "seed"]
        if len(plain) < 2:
            raise LabError("--mixed needs at least two nodes that are no seeds: say --nodes 3")
        if self.size < LEAST_BYTES:
            raise LabError(f"--mixed needs a larger blob: say --mib {LEAST_BYTES // MIB}")
        reader, holder = plain[:2]
        folder = self.cluster.state.path / "small-reads"
        reads: RangeReads | NydusReads
        if self.arguments.mixed == "nydusd":
            reads = NydusReads(self.cluster, self.size, self.arguments.random, folder)
        else:
            reads = RangeReads(
                self.cluster,
                self.size,
                self.arguments.random,
                lambda node, digest, spans: self._pull(node, digest, spans).answers,
            )
        idle: list[Answer] = []
        loaded: list[Answer] = []
        walls: list[float] = []
        for _ in range(self.arguments.repetitions):
            quiet, busy, bulk = reads.make(), reads.make(), self.cluster.make_blob(self.size)
            for digest in (quiet, busy):
                self._pull(holder, digest)
                self.cluster.wait_complete([holder], digest, COMPLETE_TIMEOUT_S)
            idle += reads.read(reader, quiet)
            self.cluster.wait_complete([reader], quiet, COMPLETE_TIMEOUT_S)
            with ThreadPoolExecutor(1) as pool:
                running = pool.submit(all_at_once, partial(self._pull, digest=bulk), self.nodes)
                time.sleep(0.25 * self.size / self.link)
                loaded += reads.read(reader, busy)
                walls.append(max(pull.elapsed_s for pull in running.result()))
            self.cluster.wait_complete(self.nodes, bulk, COMPLETE_TIMEOUT_S)
            self.cluster.wait_complete([reader], busy, COMPLETE_TIMEOUT_S)
            for digest in (quiet, busy, bulk):
                self.cluster.drop_blob(digest)
        rows.mixed_row(self, idle, loaded, walls)

    # --- readers --------------------------------------------------------------------------------

    def _pull(
        self,
        node: Node,
        digest: str,
        spans: Sequence[tuple[int, int] | None] = (None,),
        through: tuple[str, int] = ("127.0.0.1", GATEWAY_PORT),
    ) -> Pull:
        """The whole blob, or these ranges one after the other."""
        path = f"/v2/{REPOSITORY}/blobs/{digest}"
        started = time.monotonic()
        with Reader(self.cluster.lab, node.host, through) as reader:
            answers = [reader.get(path, span) for span in spans]
        return Pull(node, started, time.monotonic(), answers)

    def _lazy_spans(self) -> list[tuple[int, int]]:
        spans = []
        for count, length in LAZY_RANGES:
            for _ in range(count):
                start = self.rng.randrange(0, self.size - length, 4096)
                spans.append((start, start + length))
        self.rng.shuffle(spans)
        return spans

    def _arrive(self, pull: Callable[[Node], Pull]) -> list[Pull]:
        """All nodes' pulls, begun as `--arrival` says."""
        arguments, nodes = self.arguments, list(self.nodes)
        if arguments.arrival == "together":
            return all_at_once(pull, nodes)
        if arguments.arrival == "poisson":
            at, starts = 0.0, {}
            for node in nodes:
                starts[node.name] = at
                at += self.rng.expovariate(1 / arguments.gap)

            def later(node: Node) -> Pull:
                threading.Event().wait(starts[node.name])
                return pull(node)

            return all_at_once(later, nodes)
        batch = 1
        if arguments.arrival == "rolling":
            batch = arguments.batch or max(1, len(nodes) // 4)
        pulls: list[Pull] = []
        for i in range(0, len(nodes), batch):
            pulls += all_at_once(pull, nodes[i : i + batch])
        return pulls


if __name__ == "__main__":
    os.umask(0o077)
    main()
