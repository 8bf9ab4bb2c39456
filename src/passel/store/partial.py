"""One partial blob in the owner's hands: write bytes, confirm pieces, promote.

::

    create --> LIVE --promote--> complete (the data file moves to blobs/)
                 |
                 +--discard, wrong whole digest, close--> retired: every call raises BlobRetired

Two fetchers may be sent after the same piece (end game, on-demand beside prefetch), and one of them
may write wrong bytes. So a piece that is verified is never written again, and
:meth:`PartialBlob.confirm` believes the caller's digest only if one uninterrupted run of writes
filled the piece; if not, it hashes what is on the disk.
"""

from __future__ import annotations

import json
import logging
import threading
from typing import TYPE_CHECKING

from passel.errors import DigestMismatch, InputError, LengthMismatch, StoreCorrupt, TransientError
from passel.ids import BlobKey, Digest
from passel.store import fileio, layout
from passel.store.piecemap import DIGEST_BYTES, MapLayout, MapState, PieceMap

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from passel.store.blobs import CompleteBlob

log = logging.getLogger(__name__)

META_BYTES_MAX = 4096

# How much is hashed between two looks at whether it is still wanted.
_AHEAD_BYTES = 64 * 1024 * 1024

# A write to a local disk that takes longer than this will not come back.
_SETTLE_S = 30.0

# In `_runs`: the piece was not filled by one run of writes.
_TORN = -1


class BlobRetired(TransientError):
    """The partial blob was discarded, or its store closed, while in use: ask the store again."""


class PieceContested(TransientError):
    """Two fetchers wrote over each other and the piece on the disk is neither's: fetch it again.

    Nobody is to blame: the digest that was confirmed may well be right.
    """


def encode_meta(key: BlobKey, size: int, piece_size: int) -> bytes:
    """What a partial blob is, as one line of JSON."""
    fields = {
        "format": layout.FORMAT_VERSION,
        "upstream": key.upstream,
        "digest": str(key.digest),
        "size": size,
        "piece_size": piece_size,
    }
    return json.dumps(fields).encode() + b"\n"


def decode_meta(content: bytes) -> tuple[BlobKey, MapLayout]:
    """The reverse of :func:`encode_meta`; StoreCorrupt if that is not what it is."""
    try:
        fields = json.loads(content)
        if fields["format"] != layout.FORMAT_VERSION:
            raise StoreCorrupt(f"meta of format {fields['format']!r}")
        upstream, size, piece_size = fields["upstream"], fields["size"], fields["piece_size"]
        if type(upstream) is not str or type(size) is not int or type(piece_size) is not int:
            raise StoreCorrupt("meta with a field of the wrong type")
        return BlobKey(upstream, Digest.parse(fields["digest"])), MapLayout(size, piece_size)
    except (ValueError, KeyError, TypeError, RecursionError, InputError) as error:
        raise StoreCorrupt("meta is not what passel writes") from error


class PartialBlob:
    """A blob of which some pieces are verified. Made by the store only; thread-safe.

    ``have`` is a bit set: bit i is set once piece i is verified and readable by other processes.
    """

    def __init__(
        self,
        key: BlobKey,
        folder: Path,
        data: fileio.OwnedFd,
        piece_map: PieceMap,
        claimed: int | None,
        promote: Callable[[PartialBlob], CompleteBlob],
    ) -> None:
        self.key = key
        self.size = piece_map.layout.size
        self.piece_size = piece_map.layout.piece_size
        self.n_pieces = piece_map.layout.n_pieces
        self.have = 0
        self.folder = folder
        self._data = data
        self._data_path = str(folder / layout.DATA)
        self._map = piece_map
        self._promote = promote
        #: What the map claims and nobody verified yet; None when that is settled.
        self._claimed = claimed
        self._recovery = threading.Lock()
        #: For the store: held during a promotion, and while the blob's end is being decided.
        self.promotion = threading.Lock()
        self.fate = threading.Lock()
        #: What became of the blob by promotion.
        self.completed: CompleteBlob | None = None
        self._changed = threading.Condition(threading.Lock())
        self._is_retired = False
        # Per unverified piece: where the run of writes that began at the piece's start has come to.
        self._runs: dict[int, int] = {}
        # Writes on their way to the disk, per piece; and the pieces being hashed from the disk.
        self._writing: dict[int, int] = {}
        self._hashing: set[int] = set()
        # The digest of the whole, and how far it has come.
        self._whole = threading.Lock()
        self._whole_hasher = key.digest.hasher()
        self._whole_to = 0

    def __repr__(self) -> str:
        return f"PartialBlob({self.key.digest}, {self.have.bit_count()}/{self.n_pieces} pieces)"

    @property
    def is_full(self) -> bool:
        """Whether every piece is verified: what :meth:`promote` needs."""
        return self.have.bit_count() == self.n_pieces

    @property
    def is_retired(self) -> bool:
        return self._is_retired

    @property
    def missing_bytes(self) -> int:
        """Upper bound of what is still to be written."""
        return self.size - min(self.size, self.have.bit_count() * self.piece_size)

    def span(self, piece: int) -> tuple[int, int]:
        """Bytes ``(start, stop)`` of a piece."""
        start = piece * self.piece_size
        return start, min(start + self.piece_size, self.size)

    def fileno(self) -> int:
        """The data file. Valid as long as somebody refers to this object, also after promotion."""
        return self._data.fileno()

    def piece_digest(self, piece: int) -> bytes | None:
        """SHA-256 of a verified piece (32 bytes), None while it is not."""
        return self._map.digest(piece) if self.have >> piece & 1 else None

    # -- writing

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """The bytes are in the file, except where pieces are verified: those stay as they are.

        Raises
        ------
        NoSpace
            Disk or quota full. What was verified stays verified.
        LengthMismatch
            The bytes reach beyond the blob.
        BlobRetired
        """
        view = memoryview(data).cast("B")
        stop = offset + len(view)
        if offset < 0 or stop > self.size:
            raise LengthMismatch(f"bytes {offset} to {stop} of a blob of {self.size} bytes")
        if offset == stop:
            return
        with self._changed:
            self._check_alive()
            pieces, spans = self._admit(offset, stop)
        fd = self._data.fileno()
        is_written = False
        try:
            for start, end in spans:
                fileio.write_at(fd, self._data_path, start, view[start - offset : end - offset])
            is_written = True
        except OSError as error:
            raise fileio.store_error(f"writing to {self.key.digest}", error) from error
        finally:
            with self._changed:
                self._release(pieces, is_written)

    def _admit(self, offset: int, stop: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Register a write: the pieces that it touches, and what of it is to be written."""
        pieces: list[int] = []
        spans: list[tuple[int, int]] = []
        for piece in range(offset // self.piece_size, (stop - 1) // self.piece_size + 1):
            # While a piece is hashed, a write is dropped like one to a verified piece. If the hash
            # turns out wrong, the writer finds out at its own confirm(): its run has a gap.
            if self.have >> piece & 1 or piece in self._hashing:
                continue
            piece_start, piece_stop = self.span(piece)
            start, end = max(offset, piece_start), min(stop, piece_stop)
            continues = start == self._runs.get(piece, piece_start)
            self._runs[piece] = end if continues else _TORN
            self._writing[piece] = self._writing.get(piece, 0) + 1
            pieces.append(piece)
            if spans and spans[-1][1] == start:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((start, end))
        return pieces, spans

    def _release(self, pieces: list[int], is_written: bool) -> None:
        for piece in pieces:
            left = self._writing.pop(piece) - 1
            if left:
                self._writing[piece] = left
            if not is_written:
                self._runs[piece] = _TORN
        if self._hashing or self._is_retired:
            self._changed.notify_all()

    def _check_alive(self) -> None:
        if self._is_retired:
            raise BlobRetired(f"the partial blob {self.key.digest} is gone")

    # -- verifying

    def confirm(self, piece: int, digest: bytes) -> None:
        """The piece is verified: whoever reads the map may read its bytes from now on.

        `digest` is the SHA-256 (32 bytes) that the caller computed over the bytes that it wrote,
        and compared with what it was told. Confirming a verified piece again is harmless.

        Raises
        ------
        PieceContested
            The disk holds other bytes: somebody else wrote there too, or a part is missing.
        DigestMismatch
            The piece is verified, with another digest.
        BlobRetired, NoSpace
        """
        assert 0 <= piece < self.n_pieces
        assert len(digest) == DIGEST_BYTES
        stop = self.span(piece)[1]
        with self._changed:
            self._check_alive()
            if not self.have >> piece & 1:
                is_one_run = self._runs.get(piece) == stop
                if is_one_run and piece not in self._writing and piece not in self._hashing:
                    self._claim(piece, digest)
                    return
                self._begin_hashing(piece)
            if self.have >> piece & 1:
                self._compare(piece, digest)
                return
        self._confirm_from_disk(piece, digest)

    def _claim(self, piece: int, digest: bytes) -> None:
        with fileio.translated(f"the piece map of {self.key.digest}"):
            self._map.verify(piece, digest)
        self.have |= 1 << piece
        self._runs.pop(piece, None)

    def _compare(self, piece: int, digest: bytes) -> None:
        held = self._map.digest(piece)
        if held != digest:
            what = f"piece {piece} of {self.key.digest}, which is verified"
            raise DigestMismatch(what, held.hex(), digest.hex())

    def _begin_hashing(self, piece: int) -> None:
        """Nobody writes to the piece any more, or it is verified. Called with the lock held."""

        def is_free() -> bool:
            return self._is_retired or piece not in self._hashing

        if not self._changed.wait_for(is_free, _SETTLE_S):
            raise PieceContested(
                f"piece {piece} of {self.key.digest} is being checked for too long"
            )
        self._check_alive()
        if self.have >> piece & 1:
            return
        self._hashing.add(piece)
        if not self._changed.wait_for(lambda: piece not in self._writing, _SETTLE_S):
            self._hashing.discard(piece)
            self._changed.notify_all()
            raise PieceContested(f"a write to piece {piece} of {self.key.digest} does not end")

    def _confirm_from_disk(self, piece: int, digest: bytes) -> None:
        try:
            with fileio.translated(f"reading {self.key.digest}"):
                found = fileio.hash_piece(self._data.fileno(), *self.span(piece))
            with self._changed:
                self._check_alive()
                if found == digest:
                    self._claim(piece, digest)
                    return
        finally:
            with self._changed:
                self._hashing.discard(piece)
                # No write is under way (see _begin_hashing): the next run may start afresh.
                self._runs.pop(piece, None)
                self._changed.notify_all()
        raise PieceContested(
            f"piece {piece} of {self.key.digest} is on the disk as {found.hex()}, "
            f"not as the confirmed {digest.hex()}"
        )

    # -- what the store calls

    def recover(self) -> None:
        """Every piece that the map claimed was hashed again; those that fail are missing now.

        Does its work once; further callers wait for the first. Nobody else has this object before.
        """
        with self._recovery:
            if self._claimed is None:
                return
            verified = 0
            for piece in range(self.n_pieces):
                if self._is_retired:
                    return
                if self._claimed >> piece & 1 and self._matches(piece):
                    verified |= 1 << piece
            with self._changed, fileio.translated(f"recovering {self.key.digest}"):
                if self._is_retired:
                    return
                self._map.settle(verified)
                self.have = verified
            n_claimed = self._claimed.bit_count()
            self._claimed = None
        if verified.bit_count() < n_claimed:
            n_dropped = n_claimed - verified.bit_count()
            log.warning("pieces_dropped blob=%s n_pieces=%d", self.key.digest, n_dropped)

    def _matches(self, piece: int) -> bool:
        try:
            return fileio.hash_piece(self._data.fileno(), *self.span(piece)) == self._map.digest(
                piece
            )
        except OSError as error:
            # One bad sector costs one piece.
            log.warning("piece_unreadable blob=%s piece=%d error=%s", self.key.digest, piece, error)
            return False

    @property
    def is_recovered(self) -> bool:
        return self._claimed is None

    def check_alive(self) -> None:
        """BlobRetired if the blob was discarded or the store closed."""
        with self._changed:
            self._check_alive()

    @property
    def unhashed_bytes(self) -> int:
        """How much :meth:`hash_ahead` could hash now."""
        return max(self._verified_to() - self._whole_to, 0)

    def _verified_to(self) -> int:
        """Where the pieces end that are verified without a gap before them."""
        first_missing = (~self.have & -(~self.have)).bit_length() - 1
        return min(first_missing * self.piece_size, self.size)

    def hash_ahead(self) -> None:
        """Hash on towards the digest of the whole, as far as pieces are verified without a gap.

        What is done here need not be done at the end, where readers wait for it. Verified pieces
        are never written again, so it stays true. For a thread of its own.
        """
        with self._whole, fileio.translated(f"reading {self.key.digest}"):
            while not self._is_retired and self.unhashed_bytes:
                self._hash_to(min(self._verified_to(), self._whole_to + _AHEAD_BYTES))

    def _hash_to(self, stop: int) -> bytes:
        fd = self._data.fileno()
        found = fileio.hash_range(fd, self._whole_to, stop, self._whole_hasher)
        self._whole_to = stop
        return found

    def hash_all(self) -> str:
        """The hex digest over the whole file, in the blob's own algorithm."""
        with self._whole:
            return self._hash_to(self.size).hex()

    def vouch(self) -> None:
        """The digest of the whole is right: readers in other processes may know."""
        with self._changed:
            if not self._is_retired and self.completed is None:
                self._map.set_state(MapState.WHOLE)

    def sync_data(self) -> None:
        fileio.sync_file(self._data.fileno(), self._data_path)

    def all_digests(self) -> bytes:
        """32 bytes per piece, in order."""
        return self._map.digests()

    def retire(self, state: MapState | None) -> bool:
        """No call changes the files any more; False if the blob's end was decided before.

        `state` is what readers in other processes see from now on; None leaves the map as it is.
        Waits for writes under way.
        """
        with self._changed:
            if self._is_retired or self.completed is not None:
                return False
            self._is_retired = True
            if state is not None:
                self._map.set_state(state)
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._writing, _SETTLE_S)
        return True

    def finish(self, completed: CompleteBlob) -> None:
        """The data file is in its final place. Late writes and confirmations change nothing."""
        with self._changed:
            self.completed = completed
            self._map.set_state(MapState.COMPLETE)

    # -- the end

    def promote(self) -> CompleteBlob:
        """The blob is complete: whole digest verified, durable, readable under every upstream.

        Takes as long as hashing the file. Only when :attr:`is_full`.

        Raises
        ------
        DigestMismatch
            The whole is not what its name says although every piece was: the partial is destroyed.
        NoSpace
            No room for the sidecar; the partial stays, and promoting may be tried again.
        BlobRetired, StoreError
        """
        return self._promote(self)
