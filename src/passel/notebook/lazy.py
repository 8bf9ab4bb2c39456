"""How long until a container runs: pulled whole, or read lazily from ever nearer places.

Simulated with the production machines, beside figures that were published for Nydus and Dragonfly.
Their machine, link and registry are not known, and their document says that only ratios matter; so
the parameters here are one stated set for all images. Registry and unpacking were chosen so that
"OCI pull" comes near the published column; the other columns follow from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure

from passel.errors import InputError
from passel.ids import BlobRef
from passel.notebook import style
from passel.sim.node import ReadLog
from passel.sim.scenario import GBIT
from passel.sim.world import Setup, World

MIB = 1 << 20
CASES = (
    "OCI pull",
    "Nydus cold",
    "Nydus + P2P cold",
    "remote-peer hit",
    "local-peer hit",
    "nydusd cache",
)
#: Seconds per case, in the order of CASES. Source: bar heights in the picture
#: nydus-mirror-dragonfly.png of Dragonfly's documentation (2022-11, "Performance testing"), 0.05 s.
PUBLISHED: dict[str, tuple[float, ...]] = {
    "node:19.0": (30.2, 9.9, 10.8, 8.6, 3.3, 0.5),
    "ruby:3.1": (28.9, 6.9, 7.7, 4.5, 2.8, 0.7),
    "python:3.9.15": (27.1, 5.0, 5.1, 4.2, 3.0, 0.6),
    "rust:1.64.0": (35.0, 10.1, 11.5, 6.9, 3.9, 0.7),
}
#: (compressed, unpacked) MiB of the four images, approximately: nobody measured them for this.
IMAGES: dict[str, tuple[int, int]] = {
    "node:19.0": (340, 950),
    "ruby:3.1": (325, 850),
    "python:3.9.15": (330, 870),
    "rust:1.64.0": (490, 1260),
}


@dataclass(frozen=True)
class Host:
    """What a machine and its registry can do; bytes per second and seconds.

    Attributes
    ----------
    registry, link : float
        What the registry sends to one node; between nodes.
    registry_s : float
        From a request to the registry's first byte.
    unpack : float
        Of a pulled image, bytes of the unpacked tree per second, layer by layer on one core.
    touched : float
        Share of the compressed image that is read until the container answers.
        Source: Harter et al. 2016, "Slacker", FAST: 6.4 %.
    read : int
        Bytes of one read of nydusd (its merging size).
    gateway_s : float
        What a request to the node's own gateway costs.
    start_s : float
        What a container takes that finds everything in nydusd's own cache.
    """

    registry: float = 0.5 * GBIT
    link: float = GBIT
    registry_s: float = 0.02
    unpack: float = 40.0 * MIB
    touched: float = 0.064
    read: int = 128 * 1024
    gateway_s: float = 0.001
    start_s: float = 0.6

    def check(self) -> None:
        """Raises InputError with the parameter and its range."""
        for name, value in vars(self).items():
            if not value > 0:
                raise InputError(400, "UNKNOWN", f"{name}: expected more than 0, got {value}")
        if self.touched > 1:
            raise InputError(400, "UNKNOWN", f"touched: expected at most 1, got {self.touched}")


@dataclass
class _Reader:
    """A client in a world that reads ranges one after the other."""

    world: World
    node: str
    ref: BlobRef
    ranges: list[tuple[int, int]]
    pause_s: float
    ended_at: float = field(default=float("inf"))

    def go_on(self, _: ReadLog | None = None) -> None:
        if not self.ranges:
            self.ended_at = self.world.now
            return
        start, stop = self.ranges.pop(0)
        # The pause is a read of its own to the world: it must not end in it.
        self.world.n_open_reads += 1
        self.world.clock.after(self.pause_s, self._ask, start, stop)

    def _ask(self, start: int, stop: int) -> None:
        self.world.n_open_reads -= 1
        self.world.read(self.node, self.ref, start, stop, then=self.go_on)


def study(
    images: Mapping[str, tuple[int, int]] = IMAGES, host: Host | None = None, seed: int = 0
) -> dict[str, tuple[float, ...]]:
    """Image -> seconds per case, in the order of CASES. Raises InputError for what cannot be."""
    host = host or Host()
    host.check()
    found = {}
    for name, (packed, unpacked) in images.items():
        if not 1 <= packed <= 65_536:
            raise InputError(400, "UNKNOWN", f"{name}: expected 1 to 65536 MiB, got {packed}")
        ranges = _ranges(packed * MIB, host, seed)
        straight = sum(host.registry_s + (stop - start) / host.registry for start, stop in ranges)
        pull = packed * MIB / host.registry + unpacked * MIB / host.unpack
        cold, remote, local = _with_passel(packed * MIB, ranges, host, seed)
        found[name] = tuple(
            round(host.start_s + each, 3) for each in (pull, straight, cold, remote, local, 0.0)
        )
    return found


def _ranges(size: int, host: Host, seed: int) -> list[tuple[int, int]]:
    """Files of some reads each, anywhere in the image, until the share is touched."""
    rng = np.random.default_rng([seed, size])
    found: list[tuple[int, int]] = []
    while sum(stop - start for start, stop in found) < host.touched * size:
        n_reads = int(rng.geometric(0.5))
        first = int(rng.integers(0, max(size - n_reads * host.read, 1)))
        starts = range(first, first + n_reads * host.read, host.read)
        found += [(at, min(at + host.read, size)) for at in starts]
    return found


def _with_passel(
    size: int, ranges: list[tuple[int, int]], host: Host, seed: int
) -> tuple[float, float, float]:
    """Seconds of the reads: nobody has anything; a peer has all; the node itself has all."""
    setup = Setup(
        n_peers=3,
        seeds=1,
        seed=seed,
        rate=host.link,
        origin_rate=host.registry,
        origin_latency_s=host.registry_s,
        latency_s=0.0002,
        call_s=0.0006,
    )
    cold = _timed(World(setup), "p1", size, ranges, host)
    world = World(setup)
    ref = world.blob("image", size)
    world.read("p1", ref)
    world.run_reads(3600.0)
    world.run(world.now + 5.0, check=False)
    remote = _timed(world, "p2", size, ranges, host)
    local = _timed(world, "p1", size, ranges, host)
    return cold, remote, local


def _timed(world: World, node: str, size: int, ranges: list[tuple[int, int]], host: Host) -> float:
    began = world.now
    reader = _Reader(world, node, world.blob("image", size), list(ranges), host.gateway_s)
    reader.go_on()
    world.run_reads(began + 3600.0)
    return reader.ended_at - began


def facts(found: Mapping[str, tuple[float, ...]]) -> style.Table:
    """Simulated, and what was published for Nydus with Dragonfly."""
    rows = []
    for image, seconds in found.items():
        rows.append((image, "simulated, passel", *(f"{each:.1f}" for each in seconds)))
        if image in PUBLISHED:
            published = (f"{each:.1f}" for each in PUBLISHED[image])
            rows.append(("", "published, Dragonfly", *published))
    caption = "seconds until the container answers"
    return style.table(["image", "", *CASES], rows, caption)


def by_registry(
    rates: Sequence[float], image: str = "node:19.0", seed: int = 0
) -> dict[float, tuple[float, ...]]:
    """Gbit/s of the registry -> seconds per case, for one image.

    Raises InputError for a rate that is not above 0, or an image that is not in `IMAGES`.
    """
    if image not in IMAGES:
        raise InputError(400, "UNKNOWN", f"image: expected one of {', '.join(IMAGES)}, got {image}")
    one = {image: IMAGES[image]}
    return {rate: study(one, Host(registry=rate * GBIT), seed)[image] for rate in rates}


@style.picture
def registry_picture(found: Mapping[float, tuple[float, ...]]) -> Figure:
    """The cold cases and the remote hit over the registry's rate."""
    figure, (axes,) = style.canvas(height_in=3.2)
    mbit = [rate * 1000 for rate in found]
    for case, colour, mark in (
        (1, style.ORANGE, "s"),
        (2, style.BLUE, "o"),
        (3, style.GREEN, "D"),
        (4, style.GREY, "^"),
    ):
        seconds = [each[case] for each in found.values()]
        axes.plot(mbit, seconds, mark + "-", color=colour, label=CASES[case])
    axes.set_xscale("log")
    style.rate_ticks(axes.xaxis, mbit)
    axes.set_ylim(bottom=0)
    title = "How much the registry's rate matters"
    style.label(axes, title, "registry to one node [Mbit/s]", "time to answer [s]")
    axes.legend()
    return figure


@style.picture
def picture(found: Mapping[str, tuple[float, ...]]) -> Figure:
    """Each case as a share of the plain pull: only ratios can be compared."""
    figure, axes = style.canvas(len(found), height_in=3.3)
    for each, (image, seconds) in zip(axes, found.items(), strict=True):
        places = np.arange(len(CASES) - 1, -1, -1)
        own = np.array(seconds) / seconds[0]
        each.barh(places + 0.19, own, 0.36, color=style.BLUE, label="simulated, passel")
        if image in PUBLISHED:
            theirs = np.array(PUBLISHED[image]) / PUBLISHED[image][0]
            each.barh(places - 0.19, theirs, 0.36, color=style.ORANGE, label="published, Dragonfly")
        each.set_yticks(places, CASES if each is axes[0] else [""] * len(CASES))
        each.grid(visible=False, axis="y")
        style.as_percent(each.xaxis)
        each.set_xticks([0, 0.5, 1])
        each.set_xlim(0, 1.2)
        style.label(each, image, "time ÷ OCI pull", "")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2)
    return figure
