"""Blobs made and put into stores, for the tests of the store."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from unit import store_child

from passel.ids import BlobKey, Digest

if TYPE_CHECKING:
    from pathlib import Path

    from passel.store import CompleteBlob, PartialBlob, Store

PIECE = 1000
CAPACITY = 100_000


def content(name: str, size: int) -> bytes:
    return store_child.content(name, size)


def key_of(data: bytes, upstream: str = "docker.io", algorithm: str = "sha256") -> BlobKey:
    return BlobKey(upstream, Digest(algorithm, hashlib.new(algorithm, data).hexdigest()))


def fill(blob: PartialBlob, data: bytes, pieces: range | None = None) -> None:
    for piece in pieces or range(blob.n_pieces):
        start, stop = blob.span(piece)
        blob.write(start, data[start:stop])
        blob.confirm(piece, hashlib.sha256(data[start:stop]).digest())


def put(store: Store, data: bytes, upstream: str = "docker.io") -> CompleteBlob:
    blob = store.create(key_of(data, upstream), len(data), PIECE)
    fill(blob, data)
    return blob.promote()


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
