"""Piece geometry: blob size -> piece size, piece <-> byte range.

The piece is the unit of scheduling, transfer and verification. Its size follows the blob's:
nydusd reads ranges of 4 KiB to 2 MiB, so layers up to 1 GiB get pieces of 1 MiB (a cold 4 KiB
read moves no more than that); a 20 GiB layer gets pieces of 16 MiB, so that its have-set stays
small.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024
MIN_PIECE = MIB
MAX_PIECE = 16 * MIB
#: Above this many pieces the piece size doubles, until MAX_PIECE.
PIECES_WISHED = 1024


def piece_size(size: int) -> int:
    """The piece size in bytes of a blob of `size` bytes: a power of two, the same on every node."""
    if size < 0:
        raise ValueError(f"a blob cannot have {size} bytes")
    length = MIN_PIECE
    while length < MAX_PIECE and size > length * PIECES_WISHED:
        length *= 2
    return length


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a blob of `size` bytes is cut. The last piece may be shorter; an empty blob has none."""

    size: int
    piece_size: int

    @classmethod
    def of(cls, size: int) -> Geometry:
        return cls(size, piece_size(size))

    @property
    def n_pieces(self) -> int:
        return -(-self.size // self.piece_size)

    @property
    def all_pieces(self) -> int:
        """The bit set of every piece."""
        return (1 << self.n_pieces) - 1

    def span(self, piece: int) -> tuple[int, int]:
        """The byte range (start, stop) of one piece."""
        if not 0 <= piece < self.n_pieces:
            raise IndexError(f"piece {piece} of a blob with {self.n_pieces} pieces")
        start = piece * self.piece_size
        return start, min(start + self.piece_size, self.size)

    def length(self, piece: int) -> int:
        start, stop = self.span(piece)
        return stop - start

    def pieces_of(self, start: int, stop: int) -> range:
        """The pieces that the bytes (start, stop) lie in, clamped to the blob."""
        stop = min(stop, self.size)
        start = max(start, 0)
        if start >= stop:
            return range(0)
        return range(start // self.piece_size, -(-stop // self.piece_size))
