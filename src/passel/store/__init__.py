"""Blobs and pieces on a node's disk.

The owner (the peer) uses :class:`Store`; other processes on the node (the gateway) read through
:class:`StoreReader`. What is on the disk, and what may be found there after a crash, is in
``docs/store-format.md``.
"""

from __future__ import annotations

from passel.store.blobs import CompleteBlob
from passel.store.partial import BlobRetired, PartialBlob, PieceContested
from passel.store.reader import BlobView, StoreReader
from passel.store.store import Store, all_ordinary

__all__ = [
    "BlobRetired",
    "BlobView",
    "CompleteBlob",
    "PartialBlob",
    "PieceContested",
    "Store",
    "StoreReader",
    "all_ordinary",
]
