"""Bit rows: tests, unions, counts and reordered columns, without a matrix of bools.

A matrix of bools for 10 000 peers and 4 096 pieces is 40 MB and every pass over it costs
milliseconds; the same as words is 5 MB. Where columns must be looked at one by one, it happens in
blocks of bounded size, and only for the columns and rows that can matter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from passel.core.graph.state import Bits, Flags

Index = NDArray[np.int64]

#: Cells of the largest temporary table: 2 MB as bytes.
BLOCK_CELLS = 1 << 21

_ONE = np.uint64(1)


def is_set(rows: Bits, peers: Index, pieces: Index) -> Flags:
    """Whether bit `pieces[i]` is set in row `peers[i]`."""
    words = rows[peers, pieces >> 6] >> (pieces & 63).astype(np.uint64)
    found: Flags = (words & _ONE).astype(np.bool_)
    return found


def switch_on(rows: Bits, peers: Index, pieces: Index) -> None:
    """Set bit `pieces[i]` in row `peers[i]`, in place; pairs may repeat."""
    flat = rows.reshape(-1)
    np.bitwise_or.at(flat, peers * rows.shape[1] + (pieces >> 6), _mask(pieces))


def switch_off(rows: Bits, peers: Index, pieces: Index) -> None:
    """Clear bit `pieces[i]` in row `peers[i]`, in place; pairs may repeat."""
    flat = rows.reshape(-1)
    np.bitwise_and.at(flat, peers * rows.shape[1] + (pieces >> 6), ~_mask(pieces))


def members(row: Bits) -> Index:
    """The pieces in one row, ascending."""
    return np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))


def union(rows: Bits) -> Bits:
    """(n_words,): what any of the rows has."""
    merged: Bits = np.bitwise_or.reduce(rows, axis=0)
    return merged


def union_by(rows: Bits, labels: Index, n_labels: int) -> Bits:
    """(n_labels, n_words): what any row with that label has."""
    if n_labels == 1:
        return union(rows)[np.newaxis]
    merged = np.zeros((n_labels, rows.shape[1]), dtype=np.uint64)
    if labels.size:
        order = np.argsort(labels, kind="stable")
        found = labels[order]
        starts = np.flatnonzero(np.r_[True, found[1:] != found[:-1]])
        merged[found[starts]] = np.bitwise_or.reduceat(rows[order], starts, axis=0)
    return merged


def count_columns(*tables: Bits, n_pieces: int) -> NDArray[np.int32]:
    """(n_pieces,): in how many rows each bit is set in at least one of the tables."""
    total = np.zeros(n_pieces, dtype=np.int32)
    # 255 rows at a time: their sum fits a byte, and adding bytes is several times faster.
    for start in range(0, tables[0].shape[0], 255):
        rows = tables[0][start : start + 255]
        for table in tables[1:]:
            rows = rows | table[start : start + 255]
        cells = np.unpackbits(rows.view(np.uint8), axis=1, count=n_pieces, bitorder="little")
        total += cells.sum(axis=0, dtype=np.uint8)
    return total


def count_rows(rows: Bits) -> Index:
    """(n_rows,): how many bits are set in each row."""
    # The usual sum of halves, pairs and bytes; numpy has a function for it only since 2.0.
    x = rows - (rows >> _ONE & np.uint64(0x5555555555555555))
    pairs = np.uint64(0x3333333333333333)
    x = (x & pairs) + (x >> np.uint64(2) & pairs)
    x = x + (x >> np.uint64(4)) & np.uint64(0x0F0F0F0F0F0F0F0F)
    counts: Index = (
        (x * np.uint64(0x0101010101010101) >> np.uint64(56)).sum(axis=1).astype(np.int64)
    )
    return counts


def columns(rows: Bits, pieces: Index) -> NDArray[np.uint8]:
    """(n_rows, len(pieces)) uint8: not 0 where row i has `pieces[j]`."""
    shifts = np.left_shift(1, pieces & 7).astype(np.uint8)
    picked: NDArray[np.uint8] = rows.view(np.uint8).take(pieces >> 3, axis=1)
    picked &= shifts
    return picked


def packed_columns(rows: Bits, pieces: Index) -> Bits:
    """(n_rows, ceil(len(pieces) / 64)): bit j of a row is its bit `pieces[j]`."""
    width = -(-pieces.size // 64) * 8
    packed = np.zeros((rows.shape[0], width), dtype=np.uint8)
    step = max(1, BLOCK_CELLS // max(1, pieces.size))
    for start in range(0, rows.shape[0], step):
        part = np.packbits(columns(rows[start : start + step], pieces), axis=1, bitorder="little")
        packed[start : start + step, : part.shape[1]] = part
    return packed.view(np.uint64)


def lowest(words: Bits) -> Index:
    """The index of the lowest set bit of each word; words must not be 0."""
    alone = words & (~words + _ONE)
    # A power of two below 2^64 is exact as a float, and its exponent is the index.
    exponents: Index = np.frexp(alone.astype(np.float64))[1].astype(np.int64)
    return exponents - 1


def _mask(pieces: Index) -> Bits:
    mask: Bits = np.left_shift(_ONE, (pieces & 63).astype(np.uint64))
    return mask
