"""How fast a blob could reach everybody at best."""

from __future__ import annotations


def rounds_bound(n_receivers: int, n_pieces: int) -> int:
    """Rounds in which one holder can bring all pieces to everybody, all links equal.

    Source: Mundinger, Weber, Weiss 2008, "Optimal scheduling of peer-to-peer file dissemination".
    """
    return n_pieces + max(0, n_receivers.bit_length() - 1)
