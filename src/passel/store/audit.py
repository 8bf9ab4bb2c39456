"""Reads a store's complete blobs again and compares them with their names. Changes nothing.

It needs no lock: a complete blob is never written again, and one that is evicted meanwhile is no
damage. What is found damaged is put aside by the store's owner (`Store.verify`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from passel.errors import StoreCorrupt
from passel.ids import HEX_LENGTHS, Digest
from passel.store import blobs, fileio, layout
from passel.store.layout import Layout


@dataclass(frozen=True, slots=True)
class Finding:
    """One complete blob. `damage` is a sentence, empty when it is as it should be."""

    digest: Digest
    size: int
    damage: str = ""


def audit(root: Path) -> Iterator[Finding]:
    """Every complete blob of the store at `root`, as it is read. Raises StoreError.

    StoreCorrupt for a folder that is no store, or one of a newer passel.
    """
    paths = Layout(root)
    with fileio.translated(f"reading the store {root}"):
        try:
            version = layout.parse_format(fileio.read_small(paths.format, 64))
        except FileNotFoundError:
            raise StoreCorrupt(f"there is no store in {root}") from None
        if version > layout.FORMAT_VERSION:
            raise StoreCorrupt(f"the store {root} has format {version}, of a newer passel")
        for digest in complete_digests(paths):
            finding = examine(paths, digest)
            if finding is not None:
                yield finding


def complete_digests(paths: Layout) -> list[Digest]:
    """The names of all complete blobs, in their order."""
    found: list[Digest] = []
    for algorithm in HEX_LENGTHS:
        for prefix in _names(paths.blobs / algorithm):
            for name in _names(paths.blobs / algorithm / prefix):
                parsed = layout.parse_blob(algorithm, prefix, name)
                if parsed is not None and not parsed[1]:
                    found.append(parsed[0])
    return sorted(found)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def examine(paths: Layout, digest: Digest) -> Finding | None:
    """One blob, read from its first byte to its last; None when it is gone. Raises OSError."""
    try:
        fd = fileio.open_unnoticed(paths.blob(digest))
    except FileNotFoundError:
        return None
    try:
        size = os.fstat(fd).st_size
        try:
            told, _, _ = blobs.read_sidecar(paths.sidecar(digest))
        except FileNotFoundError:
            # Blob before sidecar is how they are removed: looking once more tells.
            is_gone = not paths.blob(digest).exists()
            return None if is_gone else Finding(digest, size, "its sidecar is missing")
        except StoreCorrupt as error:
            return Finding(digest, size, str(error))
        if told != size:
            return Finding(digest, size, f"it has {size} bytes, and its sidecar tells {told}")
        found = fileio.hash_range(fd, 0, size, digest.hasher()).hex()
    finally:
        os.close(fd)
    if found != digest.hex:
        return Finding(digest, size, f"its bytes have the digest {digest.algorithm}:{found}")
    return Finding(digest, size)
