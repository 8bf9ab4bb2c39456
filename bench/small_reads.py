"""Small reads of one node, for a crowd to disturb: ranges over HTTP, or files of a Nydus mount.

Both kinds read 4 KiB to 1 MiB, as many small ones as large ones, one after the other.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from crowd_clients import Answer
from netcluster import GATEWAY_PORT, HEALTH_PORT, REPOSITORY, NetCluster, Node
from netlab import LabError, inside

from passel.cli.demo.nydus import Nydusd, NydusImage, build_image, why_not

N_READS = 128
_LEAST = 4096
#: At least so much lies between two files that are read: the chunks that nydusd reads in advance
#: (1 MiB) are not those of another one.
_GAP_BYTES = 1 << 20
#: What is read needs at least so much: as much as the largest read, and a gap.
LEAST_BYTES = 2 << 20

Span = tuple[int, int]


class RangeReads:
    """Ranges of a blob of random bytes; `read_spans` gets them from a node's gateway."""

    def __init__(
        self,
        cluster: NetCluster,
        size: int,
        seed: int,
        read_spans: Callable[[Node, str, Sequence[Span]], list[Answer]],
    ) -> None:
        self._cluster = cluster
        self._read_spans = read_spans
        self._size = size
        rng = random.Random(seed)
        self._spans: list[Span] = []
        for _ in range(N_READS):
            length = _LEAST << rng.randrange(9)
            start = rng.randrange(0, size - length, _LEAST)
            self._spans.append((start, start + length))

    def make(self) -> str:
        """A new blob at the origin; its digest."""
        return self._cluster.make_blob(self._size)

    def read(self, node: Node, digest: str) -> list[Answer]:
        """All reads, on that node."""
        return self._read_spans(node, digest, self._spans)


class NydusReads:
    """Files of an image that the real nydusd has mounted, with the node's gateway as its mirror.

    A read counts as missed when nydusd asked its backend for it. Raises LabError without nydusd.
    """

    def __init__(self, cluster: NetCluster, size: int, seed: int, folder: Path) -> None:
        reason = why_not()
        if reason is not None:
            raise LabError(reason)
        self._cluster = cluster
        self._folder = folder
        rng = random.Random(seed)
        n_files = min(N_READS, size // LEAST_BYTES)
        self._lengths = [_LEAST << rng.randrange(9) for _ in range(n_files)]
        self._gap = size // n_files - sum(self._lengths) // n_files
        self._order = rng.sample(range(n_files), n_files)
        self._images: dict[str, NydusImage] = {}

    def make(self) -> str:
        """A new image, its blob at the origin; the blob's digest."""
        folder = self._folder / f"image-{len(self._images)}"
        tree = folder / "tree"
        tree.mkdir(parents=True)
        for number, length in enumerate(self._lengths):
            (tree / f"{number:03d}-file").write_bytes(os.urandom(length))
            (tree / f"{number:03d}-gap").write_bytes(os.urandom(self._gap))
        image = build_image(folder, tree)
        shutil.copyfile(image.blob, self._cluster.blob_path(image.digest))
        shutil.rmtree(tree)
        self._images[image.digest] = image
        return image.digest

    def read(self, node: Node, digest: str) -> list[Answer]:
        """All reads, on that node."""
        with self._mounted(node, digest) as daemon:
            return [self._read(daemon, number) for number in self._order]

    @contextmanager
    def _mounted(self, node: Node, digest: str) -> Iterator[Nydusd]:
        folder = self._folder / f"nydusd-{digest[7:19]}"
        folder.mkdir()
        host, port = self._cluster.origin
        with inside(node.host.namespace):
            daemon = Nydusd(
                folder,
                self._images[digest],
                f"http://{host}:{port}",
                REPOSITORY,
                f"http://127.0.0.1:{GATEWAY_PORT}",
                f"http://127.0.0.1:{HEALTH_PORT}",
            )
        try:
            yield daemon
        finally:
            daemon.stop()

    def _read(self, daemon: Nydusd, number: int) -> Answer:
        before = daemon.backend_metrics()["read_count"]
        began = time.monotonic()
        data = (daemon.mount / f"{number:03d}-file").read_bytes()
        took_s = time.monotonic() - began
        if len(data) != self._lengths[number]:
            raise LabError(f"file {number} has {len(data)} bytes")
        source = "peer" if daemon.backend_metrics()["read_count"] > before else "local"
        return Answer(200, len(data), source, took_s, took_s)
