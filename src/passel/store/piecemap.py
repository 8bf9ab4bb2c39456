"""The map of a partial blob: which pieces are verified, and the SHA-256 of each.

One writer (the owner of the store), any number of readers in other processes, no lock between:

- the writer uses ``pwrite``, never a mapping: a full disk is then an errno and not SIGBUS;
- readers map the file read-only, so that a question costs no system call;
- a bit is one byte-sized write after the bytes and the digest that it vouches for. The map may lag
  behind the data, never lead.

Bits mean something only under the boot that they were checked in. After a power loss the map may
have reached the disk before the data did, so readers trust no map from an earlier boot; recovery
hashes every claimed piece again and then puts the new boot's id into the header.

The byte layout is in ``docs/store-format.md``.
"""

from __future__ import annotations

import enum
import functools
import mmap
import os
import struct
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from passel.errors import StoreCorrupt
from passel.store import fileio

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = b"PASSELMP"
VERSION = 1
DIGEST_BYTES = 32

#: 1 Mi pieces of 32 bytes = a map of 33 MiB: far beyond what the rule for piece sizes gives.
PIECES_MAX = 1 << 20

_HEADER = struct.Struct("<8sHB5x16sQQQ8x")
_STATE_AT = 10
_BOOT_AT = 16
_BITS_AT = _HEADER.size

#: What :func:`probe` wants to see.
HEADER_BYTES = _HEADER.size


class MapState(enum.IntEnum):
    """Life of a map: ``LIVE -> WHOLE -> COMPLETE`` by promotion, ``-> DEAD`` by destruction.

    ``WHOLE``: the digest of the whole was verified; the bytes are not durable yet.
    """

    LIVE = 0
    DEAD = 1
    COMPLETE = 2
    WHOLE = 3


@dataclass(frozen=True, slots=True)
class MapLayout:
    """Where things are in the map of a blob of `size` bytes in pieces of `piece_size` bytes."""

    size: int
    piece_size: int

    def __post_init__(self) -> None:
        if self.size < 0 or self.piece_size < 1 or self.n_pieces > PIECES_MAX:
            raise StoreCorrupt(
                f"{self.size} bytes in pieces of {self.piece_size} make no piece map"
            )

    @property
    def n_pieces(self) -> int:
        return -(-self.size // self.piece_size)

    @property
    def bits_stop(self) -> int:
        return _BITS_AT + (self.n_pieces + 7) // 8

    @property
    def digests_start(self) -> int:
        # Multiples of 32: no digest lies across two pages, so none can be half on the disk.
        return -(-self.bits_stop // DIGEST_BYTES) * DIGEST_BYTES

    @property
    def length(self) -> int:
        return self.digests_start + DIGEST_BYTES * self.n_pieces

    def header(self, state: MapState, boot: bytes) -> bytes:
        return _HEADER.pack(MAGIC, VERSION, state, boot, self.size, self.piece_size, self.n_pieces)


@functools.cache
def boot_id() -> bytes:
    """16 bytes that change with every boot of the machine; zeros where the kernel tells none.

    Source: Linux, Documentation/admin-guide/sysctl/kernel.rst, "random".
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return uuid.UUID(file.read().strip()).bytes
    except (OSError, ValueError):
        return bytes(16)


def probe(head: bytes) -> tuple[int, int] | None:
    """(version, state) that the first bytes of a map tell, None if this is no header of a map."""
    if len(head) < _HEADER.size or not head.startswith(MAGIC):
        return None
    fields = _HEADER.unpack_from(head)
    return fields[1], fields[2]


class PieceMap:
    """The writer's side. Not thread-safe: the blob's lock is held around every call."""

    def __init__(self, fd: int, path: Path, layout: MapLayout) -> None:
        self._fd = fileio.OwnedFd(fd)
        self._path = str(path)
        self.layout = layout
        self._digests = bytearray(DIGEST_BYTES * layout.n_pieces)
        self._bits = bytearray(layout.bits_stop - _BITS_AT)

    @classmethod
    def create(cls, path: Path, layout: MapLayout) -> PieceMap:
        """A new file without any verified piece.

        The zeros are written, not truncated to: their blocks are there, and confirming a piece
        cannot run into a full disk on file systems that overwrite in place.
        """
        piece_map = cls(fileio.create(path), path, layout)
        header = layout.header(MapState.LIVE, boot_id())
        content = header + bytes(layout.length - len(header))
        fileio.write_at(piece_map._fd.fileno(), str(path), 0, content)
        return piece_map

    @classmethod
    def adopt(cls, path: Path, layout: MapLayout) -> tuple[PieceMap, int]:
        """An existing file after a restart, and the bits that it claims: not to be trusted.

        A file that is too short is taken as if zeros followed: a claim without its digest fails.
        Nothing is written before :meth:`settle`.
        """
        piece_map = cls(fileio.open_write(path), path, layout)
        content = os.pread(piece_map._fd.fileno(), layout.length, 0).ljust(layout.length, b"\0")
        piece_map._digests[:] = content[layout.digests_start :]
        claimed = int.from_bytes(content[_BITS_AT : layout.bits_stop], "little")
        return piece_map, claimed & ((1 << layout.n_pieces) - 1)

    def moved_to(self, path: Path) -> None:
        """The open file has another name now: for messages and for hooks of tests."""
        self._path = str(path)

    def settle(self, verified: int) -> None:
        """The map says `verified`, for readers of this boot: the end of recovery."""
        self._bits[:] = verified.to_bytes(len(self._bits), "little")
        fd = self._fd.fileno()
        if os.fstat(fd).st_size < self.layout.length:
            # Written, for the reason given at create().
            content = bytes(self._bits).ljust(self.layout.digests_start - _BITS_AT, b"\0")
            fileio.write_at(fd, self._path, _BITS_AT, content + bytes(self._digests))
        else:
            fileio.write_at(fd, self._path, _BITS_AT, self._bits)
        # The header goes last: it is what makes readers trust the bits.
        fileio.write_at(fd, self._path, 0, self.layout.header(MapState.LIVE, boot_id()))

    def verify(self, piece: int, digest: bytes) -> None:
        """`piece` is verified, and `digest` (32 bytes) is its SHA-256: digest first, bit last."""
        fd = self._fd.fileno()
        at = DIGEST_BYTES * piece
        fileio.write_at(fd, self._path, self.layout.digests_start + at, digest)
        self._digests[at : at + DIGEST_BYTES] = digest
        byte = self._bits[piece >> 3] | 1 << (piece & 7)
        fileio.write_at(fd, self._path, _BITS_AT + (piece >> 3), bytes((byte,)))
        self._bits[piece >> 3] = byte

    def digest(self, piece: int) -> bytes:
        """What was stored for `piece`; zeros if nothing was."""
        return bytes(self._digests[DIGEST_BYTES * piece : DIGEST_BYTES * (piece + 1)])

    def digests(self) -> bytes:
        """All digests, one after the other."""
        return bytes(self._digests)

    def set_state(self, state: MapState) -> None:
        fileio.write_at(self._fd.fileno(), self._path, _STATE_AT, bytes((state,)))


class MapView:
    """The readers' side: a read-only mapping. No call here makes a system call after opening."""

    __slots__ = ("_boot", "_map", "layout")

    def __init__(self, fd: int) -> None:
        """Map the open file; StoreCorrupt if it is no map that this version understands."""
        length = os.fstat(fd).st_size
        head = os.pread(fd, _HEADER.size, 0)
        known = probe(head)
        if known is None or known[0] != VERSION:
            raise StoreCorrupt("the piece map has no header that this version knows")
        _, _, _, _, size, piece_size, n_pieces = _HEADER.unpack(head)
        self.layout = MapLayout(size, piece_size)
        # A mapping beyond the end of the file would be SIGBUS at the first look.
        if self.layout.n_pieces != n_pieces or length < self.layout.length:
            raise StoreCorrupt("the piece map is shorter than its header says")
        self._map = mmap.mmap(fd, self.layout.length, prot=mmap.PROT_READ)
        self._boot = boot_id()

    @property
    def state(self) -> int:
        return self._map[_STATE_AT]

    def verified(self) -> int:
        """Bit set of verified pieces (bit i = piece i); 0 for a dead map or one of another boot."""
        view = self._map
        if view[_BOOT_AT : _BOOT_AT + 16] != self._boot or view[_STATE_AT] == MapState.DEAD:
            return 0
        return int.from_bytes(view[_BITS_AT : self.layout.bits_stop], "little")

    def close(self) -> None:
        self._map.close()
