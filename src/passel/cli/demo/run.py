"""`passel demo`: a cluster, a slow registry, an image, and everybody wants it at once."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from passel.cli.cluster import start_cluster, stop_cluster
from passel.cli.console import err, errors_are_sentences, fail, out, size
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
) -> None:
    """Show on this machine what passel does: one command, nothing left behind."""
    with errors_are_sentences():
        try:
            n_bytes, _ = parse_size(image_size), parse_size(rate)
        except ValueError as error:
            fail(f"--size and --rate: {error}", 2)
        state = StateFolder(Path(tempfile.mkdtemp(prefix="passel-demo-")))
        registry = DemoRegistry(state, rate)
        kept = False
        try:
            _show(state, registry, nodes, zones, n_bytes)
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

    def __init__(self, state: StateFolder, rate: str) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self._port = sock.getsockname()[1]
        self._state = state
        self.rate = rate
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        folder = self._state.path
        command = [sys.executable, "-m", "passel.cli.demo.registry", "--state", str(folder)]
        command += ["--port", str(self._port), "--root", str(folder / "registry")]
        command += ["--rate", self.rate, "--log", str(folder / "registry.jsonl")]
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
    """Nothing of the demo is left, neither process nor file."""
    with contextlib.suppress(PasselError):
        stop_cluster(state)
    registry.stop()
    shutil.rmtree(state.path, ignore_errors=True)


def _show(state: StateFolder, registry: DemoRegistry, nodes: int, zones: int, n_bytes: int) -> None:
    say = err.print
    say(f"[bold]1.[/] {nodes} nodes in {zones} zones are started, one of them a seed")
    config = state.path / "demo.yaml"
    config.write_text(yaml.safe_dump(_config(registry.url)), encoding="utf-8")
    start_cluster(state, config, nodes, zones, 1)
    registry.start()
    say(
        f"[bold]2.[/] an image of {size(n_bytes)} in {len(demo_image.LAYERS)} layers is made, and"
        f" pushed to a registry that sends {registry.rate}/s"
    )
    image = demo_image.make_and_push(registry.url, n_bytes)
    say(f"[bold]3.[/] for comparison: {nodes} clients pull straight from the registry")
    direct = _crowd({f"client {i + 1}": registry.url for i in range(nodes)}, image)
    say(f"[bold]4.[/] now {nodes} clients pull through their nodes' gateways")
    before = _stats(registry.url)
    facts = cluster_status(state)
    ours = _crowd({node["node"]: node["gateway"] for node in facts["nodes"]}, image)
    time.sleep(0.5)  # the last reports of the peers
    sent = _stats(registry.url)["blob_bytes"] - before["blob_bytes"]
    _print_result(state, image, zones, direct, ours, sent)
    _show_nydus(state, registry.url)


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
    with _bars() as bars, ThreadPoolExecutor(len(bases)) as pool:
        tasks = {name: bars.add_task(name, total=image.size) for name in bases}

        def one(name: str) -> float:
            return demo_image.pull(bases[name], lambda n: bars.advance(tasks[name], n))

        futures = {name: pool.submit(one, name) for name in bases}
        return {name: future.result() for name, future in futures.items()}


@contextlib.contextmanager
def _bars() -> Iterator[Progress]:
    columns = (
        TextColumn("   {task.description:>9}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal) as bars:
        yield bars


def _print_result(
    state: StateFolder,
    image: Image,
    zones: int,
    direct: dict[str, float],
    ours: dict[str, float],
    sent: int,
) -> None:
    facts = cluster_status(state)
    table = Table(box=None, pad_edge=False)
    for name in ("node", "zone", "role", "seconds", "rate", "peer", "seed", "origin"):
        table.add_column(name, justify="left" if name in ("node", "zone", "role") else "right")
    crossed = 0
    for node in facts["nodes"]:
        took_s = ours[node["node"]]
        crossed += node.get("cross_zone_bytes", 0)
        counts = [size(node["bytes"][source]) for source in ("peer", "seed", "origin")]
        rate = f"{size(image.size / took_s)}/s"
        table.add_row(node["node"], node["zone"], node["role"], f"{took_s:.2f}", rate, *counts)
    out.print(table)
    slowest, straight = max(ours.values()), max(direct.values())
    out.print(f"the registry sent  {size(sent)}: {sent / image.size:.3f} x the image")
    if zones > 1:
        least = image.size * (zones - 1)
        out.print(f"between zones      {size(crossed)}: {crossed / least:.3f} x the least possible")
    out.print(f"straight from it   {straight:.2f} s for the last of {len(direct)} clients")
    out.print(f"through passel     {slowest:.2f} s for the last, {straight / slowest:.1f} x faster")


# --- Nydus --------------------------------------------------------------------------------------


def _show_nydus(state: StateFolder, registry: str) -> None:
    reason = nydus.why_not()
    if reason is not None:
        err.print(f"[bold]5.[/] lazy loading with Nydus is left out: {reason}")
        return
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
                _drop_page_cache()
                rows.append(("nydusd's own cache", _read_tree(daemon.mount)))
            errors = daemon.backend_metrics()["read_errors"]
        finally:
            daemon.stop()
        if errors:
            raise nydus.NydusFailed(f"nydusd counted {errors} read errors")
        if title.startswith("cold"):
            _wait_for_rest(state, first["node"])
    table = Table(box=None, pad_edge=False)
    table.add_column("reading all files of the mounted image")
    table.add_column("seconds", justify="right")
    for title, took_s in rows:
        table.add_row(title, f"{took_s:.2f}")
    out.print(table)


def _read_tree(folder: Path) -> float:
    began = time.monotonic()
    for path in sorted(folder.iterdir()):
        path.read_bytes()
    return time.monotonic() - began


def _drop_page_cache() -> None:
    os.sync()
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("1")


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
    blob = demo_image.REPOSITORY
    out.print("it goes on running; try:", markup=False)
    for line in (
        f"passel status {base}",
        f"curl -s {gateway}/v2/{blob}/manifests/{demo_image.TAG}",
        f"curl -s {gateway}/metrics | grep passel_",
        f"curl -s {registry}/_demo/stats",
        f"passel down {base} --purge",
    ):
        out.print(f"  {line}", markup=False)
