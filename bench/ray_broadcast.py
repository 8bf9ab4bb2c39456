"""How much sooner do all nodes have a blob through passel than by `ray.put` and `ray.get`?

The same bytes, the same links, the same Ray cluster, in turns: once pulled from the registry
through every node's gateway (the registry's link is a node's link by default), and once put into
Ray's object store on the first node, and got there by an actor on each of the others. Both ways
move bytes over a port of the links' bulk class. Needs root and tc.

The bound, for N nodes with links of u bytes/s both ways, an origin of o, a blob of S bytes:
max(S/u, S/o, (N-1)*S/(N*u)). Ray has one node less to reach, and the same bound: S/u.

Ray asks again for an object that has not come within 10 s, then 20 s and so on, and is sent again
what it has: on slow links most of what the first node sends is sent twice, and times differ widely
(`bytes_over_needed` shows it). --pull-timeout gives Ray more patience than it has by itself.

What took more than 85 % of the processor measured the processor: its line says that it is void.

    sudo python bench/ray_broadcast.py > ray_broadcast.jsonl
    sudo python bench/ray_broadcast.py --pull-timeout 600
    sudo python bench/ray_broadcast.py --mib 1024 --mbit 200 --repetitions 1
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crowd_clients import Reader, all_at_once
from crowd_rows import BUSY_MAX, CORES
from crowd_watch import Watch
from netcluster import GATEWAY_PORT, ORIGIN_PORT, PIECE_PORT, REPOSITORY, NetCluster, Node
from netlab import PAYLOAD_SHARE, LabError, NetLab
from report import Report

MIB = 1 << 20
OBJECT_PORT = 7200
WARM_UP_BYTES = 8 * MIB
#: Pulls and broadcasts may take so long; Ray's seven copies from one node are what takes long.
TIMEOUT_S = 450.0
#: Times as fast as Ray.
GOAL = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--nodes", type=int, default=8)
    add("--mib", type=int, default=64, help="size of the blob")
    add("--mbit", type=float, default=100.0, help="each node's link, both ways")
    add("--origin-mbit", type=float, help="the registry's link (default: a node's)")
    add("--pull-timeout", type=float, help="seconds after which Ray asks again (Ray's own: 10)")
    add("--repetitions", type=int, default=3)
    add("--prefix", default="pslrb-", help="of the namespaces")
    add("--folder", type=Path, default=Path(tempfile.gettempdir()), help="for the nodes' stores")
    arguments = parser.parse_args()
    if arguments.nodes < 2:
        parser.error("a broadcast needs two nodes: say --nodes 2")
    arguments.origin_mbit = arguments.origin_mbit or arguments.mbit
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run(arguments)
    except LabError as error:
        sys.exit(f"ray_broadcast: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def run(arguments: argparse.Namespace) -> None:
    """One cluster, both ways in turns. Nothing is left afterwards, whatever happens."""
    lab = NetLab(arguments.prefix, (PIECE_PORT, ORIGIN_PORT, OBJECT_PORT))
    size = arguments.mib * MIB
    # Two blobs: Ray frees an object some time after the last reference to it has gone.
    store = 2 * size + 128 * MIB
    options = ["--object-store", str(store), "--object-port", str(OBJECT_PORT)]
    folder = arguments.folder / arguments.prefix.rstrip("-")
    environment = {}
    if arguments.pull_timeout is not None:
        patience = str(int(arguments.pull_timeout * 1000))
        environment["RAY_object_manager_pull_timeout_ms"] = patience
    cluster = NetCluster(lab, folder, ray_options=options, ray_environment=environment)
    done = False
    try:
        cluster.start(["a"] * arguments.nodes, arguments.mbit, arguments.origin_mbit, None)
        pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []
        try:
            with ray_driver(cluster) as ask:
                for n_bytes in (WARM_UP_BYTES, *[size] * arguments.repetitions):
                    digest = cluster.make_blob(n_bytes)
                    one = through_passel(cluster, digest, n_bytes)
                    pairs.append((one, through_ray(cluster, ask, digest)))
                    cluster.drop_blob(digest)
        finally:
            # A broadcast through Ray may take for ever: what was whole before it counts.
            if len(pairs) > 1:
                report(arguments, size, [p for p, _ in pairs[1:]], [r for _, r in pairs[1:]])
        done = True
    finally:
        cluster.stop(keep_logs=not done and not isinstance(sys.exc_info()[1], KeyboardInterrupt))


@contextmanager
def ray_driver(cluster: NetCluster) -> Iterator[Callable[[Path], dict[str, Any]]]:
    """A driver on the first node: the path of a file in, what came of its broadcast out."""
    script = Path(__file__).with_name("ray_broadcast_driver.py")
    words = [sys.executable, str(script), "--gcs", cluster.gcs, "--state", str(cluster.state.path)]
    with (cluster.state.path / "driver.log").open("ab") as log:
        process = subprocess.Popen(
            cluster.lab.command(cluster.nodes[0].host, words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )

    def ask(path: Path) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        # The driver has deadlines of its own; this one is for a driver that hangs.
        timer = threading.Timer(TIMEOUT_S, process.kill)
        timer.daemon = True  # a signal between two lines must not keep this process alive
        timer.start()
        try:
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            raise LabError(f"the broadcast through Ray failed, see {log.name}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    try:
        yield ask
    finally:
        process.kill()
        process.wait(10)


def through_passel(cluster: NetCluster, digest: str, n_bytes: int) -> dict[str, Any]:
    """All nodes at once through their gateways; their stores are checked afterwards."""

    def pull(node: Node) -> float:
        with Reader(cluster.lab, node.host, ("127.0.0.1", GATEWAY_PORT)) as reader:
            reader.get(f"/v2/{REPOSITORY}/blobs/{digest}")
        return time.monotonic()

    with Watch(cluster, cluster.nodes) as watch:
        began = time.monotonic()
        finished = sorted(end - began for end in all_at_once(pull, cluster.nodes))
    cluster.wait_complete(cluster.nodes, digest, TIMEOUT_S)
    sent = cluster.origin_stats()["by_digest"].get(digest, 0)
    facts = {"origin_bytes_over_size": round(sent / n_bytes, 4)}
    return facts | seen(watch, finished)


def through_ray(
    cluster: NetCluster, ask: Callable[[Path], dict[str, Any]], digest: str
) -> dict[str, Any]:
    """All other nodes at once from the first node's object store."""
    with Watch(cluster, cluster.nodes) as watch:
        answer = ask(cluster.blob_path(digest))
    if answer["digests"] != [digest.partition(":")[2]]:
        raise LabError(f"Ray's nodes have other bytes than {digest}")
    first = watch.links()[cluster.nodes[0].name].up
    everybody = sum(watch.links()[node.name].up for node in cluster.nodes)
    needed = (len(cluster.nodes) - 1) * cluster.blob_path(digest).stat().st_size
    facts = {
        "put_s": answer["put_s"],
        "first_node_sent_share": round(first / everybody, 3),
        "bytes_over_needed": round(everybody / needed, 3),
    }
    return facts | seen(watch, answer["finished_s"])


def seen(watch: Watch, finished: list[float]) -> dict[str, Any]:
    """What both ways are judged by: seconds of the last node, processor."""
    return {
        "last_s": round(finished[-1], 3),
        "first_s": round(finished[0], 3),
        "busy_share": round(watch.busy_share(CORES, finished[-1]), 3),
        "cpu_s": round(sum(watch.cpu_s.values()), 2),
        "cpu_s_by_kind": {kind: round(s, 2) for kind, s in sorted(watch.cpu_s.items())},
    }


def report(
    arguments: argparse.Namespace,
    size: int,
    passel: list[dict[str, Any]],
    ray: list[dict[str, Any]],
) -> None:
    """A line for each way, and one for their ratio."""
    lines = Report(__doc__.splitlines()[0])
    link, origin = arguments.mbit * 1e6 / 8, arguments.origin_mbit * 1e6 / 8
    parameters = {
        "nodes": arguments.nodes,
        "size_bytes": size,
        "mbit": arguments.mbit,
        "origin_mbit": arguments.origin_mbit,
        "pull_timeout_s": arguments.pull_timeout,
        "wanted_repetitions": arguments.repetitions,
    }
    bounds = {"passel": max(size / link, size / origin), "ray": size / link}
    for name, runs in (("passel", passel), ("ray", ray)):
        lines.row(
            name,
            "s",
            [run["last_s"] for run in runs],
            parameters=parameters,
            bound=bounds[name],
            cpu_s={name: [run["cpu_s"] for run in runs]},
            void=is_void(runs),
            payload_share=round(PAYLOAD_SHARE, 4),
            runs=runs,
        )
    ratios = [r["last_s"] / p["last_s"] for p, r in zip(passel, ray, strict=True)]
    lines.row(
        "ray over passel",
        "times",
        ratios,
        parameters=parameters,
        goal=GOAL,
        reached=statistics.median(ratios) >= GOAL,
        void=is_void(passel + ray),
    )


def is_void(runs: list[dict[str, Any]]) -> list[str]:
    """Why the figures say nothing about the links; empty if they do."""
    busiest = max(run["busy_share"] for run in runs)
    return [f"{busiest:.0%} of the processor"] if busiest > BUSY_MAX else []


if __name__ == "__main__":
    main()
