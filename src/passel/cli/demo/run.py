"""`passel demo`: a cluster, a slow registry, an image, and everybody wants it at once."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from passel.cli import plan
from passel.cli.cluster import JsonOption, start_cluster, stop_cluster
from passel.cli.console import (
    USAGE,
    RateColumn,
    err,
    errors_are_sentences,
    fail,
    out,
    print_json,
    print_table,
    size,
)
from passel.cli.demo import image as demo_image
from passel.cli.demo import nydus
from passel.cli.demo.image import Image
from passel.client.state import StateFolder
from passel.client.status import cluster_status
from passel.config.units import parse_size
from passel.errors import PasselError

NYDUS_REPOSITORY = "sample/nydus"


def demo(
    nodes: Annotated[int, typer.Option(help="Nodes to start on this machine.")] = 4,
    zones: Annotated[int, typer.Option(help="Zones that they are spread over.")] = 2,
    image_size: Annotated[str, typer.Option("--size", help="Size of the image.")] = "256 MiB",
    rate: Annotated[str, typer.Option(help="What the registry sends per second.")] = "64 MiB",
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running at the end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show on this machine what passel does: one command, nothing left behind."""
    with errors_are_sentences():
        try:
            n_bytes, _ = parse_size(image_size), parse_size(rate)
        except ValueError as error:
            fail(f"--size and --rate: {error}", USAGE)
        plan.plan_nodes(nodes, zones)
        state = StateFolder(Path(tempfile.mkdtemp(prefix="passel-demo-")))
        registry = DemoRegistry(state, rate)
        kept = False
        try:
            demo_cluster = _Demo(state, registry, nodes, zones, as_json=as_json)
            demo_cluster.start(bound=not keep)
            demo_cluster.show(n_bytes)
            if as_json:
                print_json(demo_cluster.facts)
            if keep:
                kept = True
                _say_what_to_try(state, registry.url)
        finally:
            if not kept:
                _clean(state, registry)


class DemoRegistry:
    """The demo's registry: its address is known before it runs.

    It names the cluster's state folder, so that `passel down` ends it too; for the same reason it
    is started after the cluster, which begins by ending whatever names its folder.
    """

    def __init__(self, state: StateFolder, rate: str, latency: str = "0 s") -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self._port = sock.getsockname()[1]
        self._state = state
        self.rate = rate
        self.latency = latency
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        folder = self._state.path
        command = [sys.executable, "-m", "passel.cli.demo.registry", "--state", str(folder)]
        command += ["--port", str(self._port), "--root", str(folder / "registry")]
        command += ["--rate", self.rate, "--latency", self.latency]
        command += ["--log", str(folder / "registry.jsonl")]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise PasselError("the demo registry does not start")

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        if self._process.stdout is not None:
            self._process.stdout.close()


def _clean(state: StateFolder, registry: DemoRegistry) -> None:
    """Nothing of the demo is left, neither process nor file; a second Ctrl-C does not stop that."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with contextlib.suppress(PasselError):
            stop_cluster(state)
        registry.stop()
        shutil.rmtree(state.path, ignore_errors=True)
    finally:
        signal.signal(signal.SIGINT, before)


class _Demo:
    """The steps of the demo, told on stderr; what they measured goes to stdout."""

    def __init__(
        self, state: StateFolder, registry: DemoRegistry, nodes: int, zones: int, *, as_json: bool
    ) -> None:
        self._state = state
        self._registry = registry
        self._nodes = nodes
        self._zones = zones
        self._as_json = as_json
        self.facts: dict[str, Any] = {}

    def start(self, *, bound: bool) -> None:
        """All nodes and the registry answer. `bound`: they end with this process."""
        err.print(
            f"[bold]1.[/] nodes are started: {self._nodes} in {self._zones} zones, one of them a"
            " seed"
        )
        config = self._state.path / "demo.yaml"
        config.write_text(yaml.safe_dump(_config(self._registry.url)), encoding="utf-8")
        start_cluster(self._state, config, self._nodes, self._zones, 1, bound=bound)
        self._registry.start()

    def show(self, n_bytes: int) -> None:
        """The crowd with and without passel, then Nydus; `facts` has what was measured."""
        url = self._registry.url
        err.print(
            f"[bold]2.[/] an image is made and pushed: {size(n_bytes)} in"
            f" {len(demo_image.LAYERS)} layers; its registry sends {self._registry.rate}/s"
        )
        image = demo_image.make_and_push(url, n_bytes)
        err.print(
            f"[bold]3.[/] for comparison: clients pull straight from it, {self._nodes} at once"
        )
        direct = _crowd({f"client {i + 1}": url for i in range(self._nodes)}, image)
        err.print(f"[bold]4.[/] now through their nodes' gateways, {self._nodes} at once")
        before = _stats(url)
        nodes = cluster_status(self._state)["nodes"]
        ours = _crowd({node["node"]: node["gateway"] for node in nodes}, image)
        time.sleep(0.5)  # the last reports of the peers
        sent = _stats(url)["blob_bytes"] - before["blob_bytes"]
        self.facts = _measured(cluster_status(self._state), image, self._zones, direct, ours, sent)
        if not self._as_json:
            _print_result(self.facts, self._nodes, self._zones)
        self.facts["nydus"] = _show_nydus(self._state, url)
        if self.facts["nydus"] and not self._as_json:
            _print_nydus(self.facts["nydus"])


def _config(registry: str) -> dict[str, Any]:
    return {
        "upstreams": {"demo": {"api": registry, "networks": ["127.0.0.0/8"]}},
        "default_upstream": "demo",
        "gateway": {"listen": ["127.0.0.1:0"], "health": ["127.0.0.1:0"]},
        "store": {"capacity": "8 GiB", "reserve": "64 MiB"},
    }


def _stats(registry: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{registry}/_demo/stats", timeout=10) as answer:
        stats: dict[str, Any] = json.loads(answer.read())
    return stats


def _crowd(bases: dict[str, str], image: Image) -> dict[str, float]:
    """All pull at once, with a bar each; seconds by name."""
    is_over = threading.Event()
    with _bars() as bars, ThreadPoolExecutor(len(bases)) as pool:
        tasks = {name: bars.add_task(name, total=image.size) for name in bases}

        def one(name: str) -> float:
            def told(count: int) -> None:
                if is_over.is_set():
                    raise PasselError("the others have ended")
                bars.advance(tasks[name], count)

            return demo_image.pull(bases[name], told)

        futures = {name: pool.submit(one, name) for name in bases}
        try:
            return {name: future.result() for name, future in futures.items()}
        finally:
            # After Ctrl-C, or when one has failed, nobody waits for the rest.
            is_over.set()


@contextlib.contextmanager
def _bars() -> Iterator[Progress]:
    columns = (
        TextColumn("   {task.description:>9}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        RateColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal) as bars:
        yield bars


def _measured(
    status: dict[str, Any],
    image: Image,
    zones: int,
    direct: dict[str, float],
    ours: dict[str, float],
    sent: int,
) -> dict[str, Any]:
    nodes = [
        {
            "node": node["node"],
            "zone": node["zone"],
            "role": node["role"],
            "seconds": round(ours[node["node"]], 3),
            "bytes_per_s": round(image.size / ours[node["node"]]),
            "bytes": node["bytes"],
        }
        for node in status["nodes"]
    ]
    return {
        "image_bytes": image.size,
        "registry_bytes": sent,
        "cross_zone_bytes": sum(node.get("cross_zone_bytes", 0) for node in status["nodes"]),
        "cross_zone_least_bytes": image.size * (zones - 1),
        "seconds_direct": round(max(direct.values()), 3),
        "seconds": round(max(ours.values()), 3),
        "nodes": nodes,
    }


def _print_result(facts: dict[str, Any], nodes: int, zones: int) -> None:
    sources = ("peer", "seed", "origin")
    print_table(
        ("node", "zone", "role", "seconds", "rate", *sources),
        (
            (
                node["node"],
                node["zone"],
                node["role"],
                f"{node['seconds']:.2f}",
                f"{size(node['bytes_per_s'])}/s",
                *(size(node["bytes"][source]) for source in sources),
            )
            for node in facts["nodes"]
        ),
        n_left=3,
    )
    sent, n_bytes = facts["registry_bytes"], facts["image_bytes"]
    out.print(f"the registry sent  {size(sent)}: {sent / n_bytes:.3f} x the image")
    if zones > 1:
        crossed, least = facts["cross_zone_bytes"], facts["cross_zone_least_bytes"]
        out.print(f"between zones      {size(crossed)}: {crossed / least:.3f} x the least possible")
    slowest, straight = facts["seconds"], facts["seconds_direct"]
    out.print(f"straight from it   {straight:.2f} s for the last of {nodes} clients")
    gain = straight / slowest
    how = f"{gain:.1f} x faster" if gain >= 1 else f"{1 / gain:.1f} x slower"
    out.print(f"through passel     {slowest:.2f} s for the last, {how}")


# --- Nydus --------------------------------------------------------------------------------------


def _show_nydus(state: StateFolder, registry: str) -> list[dict[str, Any]]:
    """What was read, and the seconds that it took; empty where Nydus cannot be had."""
    reason = nydus.why_not()
    if reason is not None:
        err.print(f"[bold]5.[/] lazy loading with Nydus is left out: {reason}")
        return []
    err.print("[bold]5.[/] a Nydus image is mounted by nydusd through each node's mirror")
    folder = state.path / "nydus"
    source = folder / "src"
    source.mkdir(parents=True)
    for i in range(200):
        (source / f"file{i:03}").write_bytes(os.urandom(20_000 + 900 * i))
    (source / "model.bin").write_bytes(os.urandom(24 << 20))
    image = nydus.build_image(folder, source)
    demo_image.push_blob(registry, NYDUS_REPOSITORY, image.blob.read_bytes())
    nodes = cluster_status(state)["nodes"]
    first, other = nodes[0], nodes[-1]
    rows: list[tuple[str, float]] = []
    for title, node in (
        ("cold: nobody has it", first),
        ("remote hit: another node has it", other),
        ("local hit: this node has it", other),
    ):
        daemon = nydus.Nydusd(
            folder / f"mount{len(rows)}",
            image,
            registry,
            NYDUS_REPOSITORY,
            node["gateway"],
            node["health"],
            state.path,
        )
        try:
            rows.append((title, _read_tree(daemon.mount)))
            if node is other and len(rows) == 3:
                _forget_pages(daemon.mount)
                rows.append(("nydusd's own cache", _read_tree(daemon.mount)))
            errors = daemon.backend_metrics()["read_errors"]
        finally:
            daemon.stop()
        if errors:
            raise nydus.NydusFailed(f"nydusd counted {errors} read errors")
        if title.startswith("cold"):
            _wait_for_rest(state, first["node"])
    return [{"read": title, "seconds": round(took_s, 3)} for title, took_s in rows]


def _print_nydus(rows: list[dict[str, Any]]) -> None:
    print_table(
        ("reading all files of the mounted image", "seconds"),
        ((row["read"], f"{row['seconds']:.2f}") for row in rows),
    )


def _read_tree(folder: Path) -> float:
    began = time.monotonic()
    for path in sorted(folder.iterdir()):
        path.read_bytes()
    return time.monotonic() - began


def _forget_pages(folder: Path) -> None:
    """The kernel asks nydusd again for these files; the rest of its page cache is the user's."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _wait_for_rest(state: StateFolder, node: str) -> None:
    """The rest of the blob comes in the background; the next step wants all of it somewhere."""
    deadline = time.monotonic() + 10.0
    want: int | None = None
    while time.monotonic() < deadline:
        found = [each for each in cluster_status(state)["nodes"] if each["node"] == node]
        complete = found[0].get("complete", 0) if found else 0
        want = complete if want is None else want
        if complete > want:
            return
        time.sleep(0.2)


def _say_what_to_try(state: StateFolder, registry: str) -> None:
    nodes = cluster_status(state)["nodes"]
    gateway = nodes[-1]["gateway"]
    base = f"--state {state.path}"
    passel = shlex.quote(sys.argv[0])
    blob = demo_image.REPOSITORY
    err.print("it goes on running; try:", markup=False)
    for line in (
        f"{passel} status {base}",
        f"curl -s {gateway}/v2/{blob}/manifests/{demo_image.TAG}",
        f"curl -s {gateway}/metrics | grep passel_",
        f"curl -s {registry}/_demo/stats",
        f"{passel} down {base} --purge",
    ):
        err.print(f"  {line}", markup=False)
