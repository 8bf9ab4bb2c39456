"""Complete blobs: their sidecars with the piece digests, and the table of their last use.

A complete blob is one file, named by its digest and never written again, and a sidecar that was
there before it. The table is the memory of one owner; :class:`passel.store.store.Store` locks
around it.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from passel.errors import StoreCorrupt
from passel.store import fileio
from passel.store.piecemap import DIGEST_BYTES, PIECES_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from passel.ids import Digest

SIDECAR_MAGIC = b"PASSELPD"
SIDECAR_VERSION = 1

_HEADER = struct.Struct("<8sH6xQQQ")
_SIDECAR_MAX = _HEADER.size + DIGEST_BYTES * (PIECES_MAX + 1)

# How stale the time of last use on the disk may be. It only orders evictions.
_TOUCH_EVERY_NS = 60 * 10**9


@dataclass(frozen=True, slots=True)
class CompleteBlob:
    """A blob whose whole digest was verified. `piece_digests` are raw SHA-256, one per piece."""

    digest: Digest
    path: Path
    size: int
    piece_size: int
    piece_digests: tuple[bytes, ...]

    @property
    def n_pieces(self) -> int:
        return len(self.piece_digests)

    def open_fd(self) -> int:
        """A read-only fd that the caller closes and that outlives an eviction.

        StoreError if the eviction came first.
        """
        with fileio.translated(f"blob {self.digest}"):
            return fileio.open_read(self.path)


def encode_sidecar(size: int, piece_size: int, digests: bytes) -> bytes:
    """Header, `digests` (32 bytes per piece), and the SHA-256 over both."""
    n_pieces = len(digests) // DIGEST_BYTES
    body = _HEADER.pack(SIDECAR_MAGIC, SIDECAR_VERSION, size, piece_size, n_pieces) + digests
    return body + hashlib.sha256(body).digest()


def decode_sidecar(content: bytes) -> tuple[int, int, tuple[bytes, ...]]:
    """(size, piece size, piece digests); StoreCorrupt if it is not whole."""
    body, check = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if len(body) < _HEADER.size or hashlib.sha256(body).digest() != check:
        raise StoreCorrupt("the sidecar does not match its own checksum")
    magic, version, size, piece_size, n_pieces = _HEADER.unpack_from(body)
    if magic != SIDECAR_MAGIC or version != SIDECAR_VERSION:
        raise StoreCorrupt(f"sidecar format {version}; this passel knows {SIDECAR_VERSION}")
    digests = body[_HEADER.size :]
    if (
        piece_size < 1
        or n_pieces != -(-size // piece_size)
        or len(digests) != DIGEST_BYTES * n_pieces
    ):
        raise StoreCorrupt("the sidecar's numbers contradict each other")
    return size, piece_size, split_digests(digests)


def split_digests(digests: bytes) -> tuple[bytes, ...]:
    """One item per piece."""
    pieces = range(0, len(digests), DIGEST_BYTES)
    return tuple(digests[at : at + DIGEST_BYTES] for at in pieces)


def read_sidecar(path: Path) -> tuple[int, int, tuple[bytes, ...]]:
    """As :func:`decode_sidecar`; OSError if it cannot be read."""
    return decode_sidecar(fileio.read_small(path, _SIDECAR_MAX))


def touch(fd: int, now_ns: int) -> None:
    """Note on the disk that the blob was used, as its access time: ``noatime`` does not hinder."""
    os.utime(fd, ns=(now_ns, os.fstat(fd).st_mtime_ns))


@dataclass(slots=True)
class _Entry:
    size: int
    used_ns: int
    touched_ns: int
    blob: CompleteBlob | None


class BlobTable:
    """Which blobs are complete, how large, and when each was last used. Not thread-safe.

    Uses by other processes are seen through the file's access time (:func:`touch`), which is also
    what keeps the order over a restart.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._entries: dict[Digest, _Entry] = {}
        self._clock_ns = clock_ns
        self._last_ns = 0
        self.bytes = 0

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Digest]:
        return iter(self._entries)

    def add(self, digest: Digest, size: int, used_ns: int, blob: CompleteBlob | None) -> None:
        assert digest not in self._entries
        self._entries[digest] = _Entry(size, used_ns, used_ns, blob)
        self._last_ns = max(self._last_ns, used_ns)
        self.bytes += size

    def discard(self, digest: Digest) -> bool:
        entry = self._entries.pop(digest, None)
        if entry is None:
            return False
        self.bytes -= entry.size
        return True

    def size(self, digest: Digest) -> int:
        return self._entries[digest].size

    def now_ns(self) -> int:
        """Later than every use so far, also when the clock stands still or goes back."""
        self._last_ns = max(self._last_ns + 1, self._clock_ns())
        return self._last_ns

    def use(self, digest: Digest) -> tuple[CompleteBlob | None, int | None]:
        """Mark a use: what is known of the blob, and the time to :func:`touch` it with, if due."""
        entry = self._entries[digest]
        entry.used_ns = self.now_ns()
        if entry.used_ns - entry.touched_ns < _TOUCH_EVERY_NS:
            return entry.blob, None
        entry.touched_ns = entry.used_ns
        return entry.blob, entry.used_ns

    def remember(self, blob: CompleteBlob) -> None:
        """Keep what was read from the sidecar."""
        entry = self._entries.get(blob.digest)
        if entry is not None:
            entry.blob = blob

    def oldest_first(self, path_of: Callable[[Digest], Path]) -> list[Digest]:
        """All blobs, least recently used first, uses by other processes included."""
        ranked = []
        for digest, entry in self._entries.items():
            try:
                entry.used_ns = max(entry.used_ns, path_of(digest).stat().st_atime_ns)
            except OSError:
                # Somebody took the file away: nothing is lost by evicting the entry first.
                entry.used_ns = 0
            ranked.append((entry.used_ns, digest))
        ranked.sort()
        return [digest for _, digest in ranked]
