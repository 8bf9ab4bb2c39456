"""The six ways to a running program, measured here: a real nydusd, skopeo, cluster and registry.

A program answers out of a root file system of this machine's own files (`rootfs`): from the moment
that somebody asks for it to its first line. Three real nodes on one machine, so the links between
them are those of the loopback; the registry sends `rate` after `latency`, and that is what the six
ways differ by, besides the copies that passel and nydusd make.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from matplotlib.figure import Figure

from passel.cli.cluster import start_cluster, stop_cluster
from passel.cli.demo import image as oci
from passel.cli.demo import nydus
from passel.cli.demo.run import DemoRegistry
from passel.client.state import StateFolder
from passel.client.status import cluster_status
from passel.config.units import parse_duration, parse_size
from passel.errors import InputError, PasselError
from passel.ids import Digest
from passel.notebook import rootfs, style
from passel.notebook.lazy import CASES
from passel.notebook.live import one_registry, run_passel
from passel.store.layout import Layout

REPOSITORY = "sample/python"
STEP_TIMEOUT_S = 120.0


def why_not() -> str | None:
    """Why it cannot be measured here, None if it can."""
    for name in ("skopeo", "tar", "chroot", "ldd"):
        if shutil.which(name) is None:
            return f"{name} is not installed"
    return nydus.why_not()


@dataclass
class Way:
    """One of `CASES`: per repetition its seconds, what the registry sent for it, nydusd's reads."""

    case: str
    seconds: list[float] = field(default_factory=list)
    from_registry: list[int] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)


@dataclass
class Measured:
    """The six ways, in the order of `CASES`; sizes of the image in bytes."""

    ways: list[Way]
    packed: int
    unpacked: int
    rate: str
    latency: str
    read_errors: int = 0


def measure(repetitions: int = 1, rate: str = "60 MiB", latency: str = "20 ms") -> Measured:
    """Measure all six; what was started for it is gone afterwards. About a minute, as root.

    Raises InputError for parameters that cannot be, PasselError for what is missing or fails.
    """
    if not 1 <= repetitions <= 50:
        raise InputError(400, "UNKNOWN", f"repetitions: expected 1 to 50, got {repetitions}")
    try:
        parse_size(rate)
        parse_duration(latency)
    except ValueError as error:
        raise InputError(400, "UNKNOWN", f"rate, latency: {error}") from error
    if (reason := why_not()) is not None:
        raise PasselError(reason)
    folder = Path(tempfile.mkdtemp(prefix="pnb-"))
    state = StateFolder(folder / "state")
    registry = DemoRegistry(state, rate, latency)
    try:
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(one_registry(registry.url)), encoding="utf-8")
        start_cluster(state, config, nodes=3, zones=1, bound=True)
        registry.start()
        return _Lab(folder, state, registry).measure(repetitions)
    finally:
        stop_cluster(state)
        registry.stop()
        shutil.rmtree(folder, ignore_errors=True)


class _Lab:
    """The registry with one image in both forms, and the cluster."""

    def __init__(self, folder: Path, state: StateFolder, registry: DemoRegistry) -> None:
        self._folder = folder
        self._state = state
        self._registry = registry
        root = folder / "rootfs"
        rootfs.make(root)
        layer = folder / "layer.tar.gz"
        _run("tar", "-C", str(root), "-I", "gzip -1", "-cf", str(layer), ".")
        self._image = oci.push_layers(registry.url, REPOSITORY, [layer.read_bytes()])
        self._nydus = nydus.build_image(folder, root)
        oci.push_blob(registry.url, REPOSITORY, self._nydus.blob.read_bytes())
        unpacked = sum(each.lstat().st_size for each in root.rglob("*"))
        shutil.rmtree(root)
        # A seed would have it from its first byte on; readers are the other two.
        readers = [node for node in cluster_status(state)["nodes"] if node["role"] == "peer"]
        self._first, self._second = readers[:2]
        self._n_mounts = 0
        self.found = Measured(
            [Way(case) for case in CASES],
            self._image.size,
            unpacked,
            registry.rate,
            registry.latency,
        )

    def measure(self, repetitions: int) -> Measured:
        pull, straight, cold, remote, local, own = self.found.ways
        for _ in range(repetitions):
            with self._timed(pull):
                self._pull()
            cache = self._new_folder()
            self._lazy(straight, cache, "", "")
            for way, node in ((cold, self._first), (remote, self._second), (local, self._second)):
                cache = self._new_folder()
                self._lazy(way, cache, node["gateway"], node["health"])
                self._wait_for_rest(node["node"])
            self._lazy(own, cache, self._second["gateway"], self._second["health"])
            run_passel("rm", self._nydus.digest, "--state", str(self._state.path))
        return self.found

    def _pull(self) -> None:
        target, root = self._new_folder(), self._new_folder()
        name = f"docker://{self._registry.url.removeprefix('http://')}/{REPOSITORY}:{oci.TAG}"
        _run("skopeo", "copy", "--quiet", "--src-tls-verify=false", name, f"dir:{target}")
        for digest, _ in self._image.layers[:-1]:
            _run("tar", "-C", str(root), "-xzf", str(target / digest.partition(":")[2]))
        self._start(root)
        shutil.rmtree(target)
        shutil.rmtree(root)

    def _lazy(self, way: Way, folder: Path, gateway: str, ping: str) -> None:
        url = self._registry.url
        with self._timed(way):
            daemon = nydus.Nydusd(
                folder, self._nydus, url, REPOSITORY, gateway, ping, self._state.path
            )
            try:
                self._start(daemon.mount)
            except PasselError:
                daemon.stop()
                raise
        try:
            metrics = daemon.backend_metrics()
            way.reads.append(int(metrics["read_count"]))
            self.found.read_errors += int(metrics["read_errors"])
        finally:
            daemon.stop()

    def _start(self, root: Path) -> None:
        said = _run(*rootfs.start_command(root))
        if said.strip() != "ready":
            raise PasselError(f"the program says {said[:200]!r}")

    @contextmanager
    def _timed(self, way: Way) -> Iterator[None]:
        sent, began = self._sent(), time.monotonic()
        yield
        way.seconds.append(time.monotonic() - began)
        way.from_registry.append(self._sent() - sent)

    def _sent(self) -> int:
        with urllib.request.urlopen(f"{self._registry.url}/_demo/stats", timeout=10) as answer:
            return int(json.load(answer)["blob_bytes"])

    def _new_folder(self) -> Path:
        self._n_mounts += 1
        folder = self._folder / f"way{self._n_mounts}"
        folder.mkdir()
        return folder

    def _wait_for_rest(self, name: str) -> None:
        """The rest of the blob comes in the background; the next way wants all of it here."""
        deadline = time.monotonic() + STEP_TIMEOUT_S
        store = next(each.store for each in self._state.nodes() if each.name == name)
        blob = Layout(store).blob(Digest.parse(self._nydus.digest))
        while not blob.exists():
            if time.monotonic() > deadline:
                raise PasselError(f"node {name} does not get the rest of the image")
            time.sleep(0.1)


def _run(*command: str) -> str:
    """What it prints. Raises PasselError with its last line if it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=STEP_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise PasselError(f"{command[0]} takes longer than {STEP_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise PasselError(f"{command[0]}: {last}")
    return done.stdout


def facts(found: Measured) -> style.Table:
    """A row per way: its median, its share of the plain pull, what the registry sent."""
    pull = found.ways[0].median_s
    rows = [
        (
            way.case,
            f"{way.median_s:.2f}",
            f"{way.median_s / pull:.2f}",
            style.size(statistics.median(way.from_registry)),
            statistics.median(way.reads) if way.reads else "",
        )
        for way in found.ways
    ]
    caption = (
        f"measured here: {style.size(found.packed)} packed, {style.size(found.unpacked)} unpacked,"
        f" registry {found.rate}/s after {found.latency}, {found.read_errors} read errors"
    )
    return style.table(
        ["", "s", "÷ OCI pull", "from the registry", "reads of nydusd"], rows, caption
    )


@style.picture
def picture(found: Measured) -> Figure:
    """Seconds until the program answers, a bar per way."""
    figure, (axes,) = style.canvas(height_in=2.8)
    places = range(len(found.ways) - 1, -1, -1)
    axes.barh(places, [way.median_s for way in found.ways], 0.6, color=style.BLUE)
    for place, way in zip(places, found.ways, strict=True):
        axes.text(way.median_s, place, f" {way.median_s:.2f} s", va="center")
    axes.set_yticks(places, [way.case for way in found.ways])
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.12 * max(way.median_s for way in found.ways))
    style.label(axes, "Until the program answers, measured here", "seconds", "")
    return figure
