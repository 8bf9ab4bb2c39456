"""Names of everything inside a store, and back from a name to what it stands for.

Pure: nothing here touches a disk. The tree is drawn in ``docs/store-format.md``; a digest or a blob
id is the only thing that ever becomes part of a path, and both are valid by construction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from passel.errors import StoreCorrupt
from passel.ids import HEX_LENGTHS, BlobId, Digest

if TYPE_CHECKING:
    from pathlib import Path

#: Format of the whole tree; a store with a higher number is refused.
FORMAT_VERSION = 1

BLOBS = "blobs"
PARTIAL = "partial"
QUARANTINE = "quarantine"
LOCK = "lock"
OWNERS = "owners"
FORMAT = "format"

DATA = "data"
MAP = "map"
META = "meta"

SIDECAR_SUFFIX = ".pieces"

# A thing under way to its place (new) or out of the store (gone). The number keeps two of the same
# blob apart; whatever carries such a name when a store is opened is rubbish.
_TEMPORARY = re.compile(r".+\.(?:new|gone)-[0-9]+")
_BLOB_ID = re.compile(r"[0-9a-f]{64}")
_FORMAT_LINE = re.compile(rb"passel store ([0-9]{1,9})\n")


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths inside the store at `root`."""

    root: Path

    @property
    def lock(self) -> Path:
        return self.root / LOCK

    @property
    def owners(self) -> Path:
        return self.root / OWNERS

    @property
    def format(self) -> Path:
        return self.root / FORMAT

    @property
    def blobs(self) -> Path:
        return self.root / BLOBS

    @property
    def partial(self) -> Path:
        return self.root / PARTIAL

    @property
    def quarantine(self) -> Path:
        return self.root / QUARANTINE

    def blob(self, digest: Digest) -> Path:
        return self.root / BLOBS / digest.algorithm / digest.hex[:2] / digest.hex

    def sidecar(self, digest: Digest) -> Path:
        return self.root / BLOBS / digest.algorithm / digest.hex[:2] / (digest.hex + SIDECAR_SUFFIX)

    def partial_folder(self, blob: BlobId) -> Path:
        return self.root / PARTIAL / blob


def is_temporary(name: str) -> bool:
    """Whether `name` is one that only a crash can leave behind."""
    return _TEMPORARY.fullmatch(name) is not None


def parse_partial(name: str) -> BlobId | None:
    """The blob whose partial folder is called `name`."""
    return BlobId(name) if _BLOB_ID.fullmatch(name) else None


def parse_blob(algorithm: str, prefix: str, name: str) -> tuple[Digest, bool] | None:
    """What ``blobs/<algorithm>/<prefix>/<name>`` stands for: a digest, and whether a sidecar."""
    is_sidecar = name.endswith(SIDECAR_SUFFIX)
    text = name.removesuffix(SIDECAR_SUFFIX)
    if len(text) != HEX_LENGTHS.get(algorithm) or text[:2] != prefix:
        return None
    if not re.fullmatch(r"[0-9a-f]+", text):
        return None
    return Digest(algorithm, text), is_sidecar


def format_line() -> bytes:
    return b"passel store %d\n" % FORMAT_VERSION


def parse_format(content: bytes) -> int:
    """The version that the file ``format`` tells; StoreCorrupt if it tells none."""
    match = _FORMAT_LINE.fullmatch(content)
    if match is None:
        raise StoreCorrupt("the store's file 'format' does not hold a line 'passel store <number>'")
    return int(match[1])
