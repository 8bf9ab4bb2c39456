"""Who is far slower than the others: parents whom children wait for, children who block slots.

Nothing here is absolute: a crowd on slow links has no slow peers. A peer is *quiet* when pieces
that could move between it and others have not for `patience_s`, which follows what is usual in the
crowd, while pieces moved elsewhere. A child that gets nothing from two parents is slow itself; so
is a parent from whom two children get nothing, or one that gets on with others. When only one pair
is left nobody can tell who of the two it is, and neither is blamed.

When nothing moves at all because several wait for the same parent, there is nothing to compare
with: after `STARVED_S` it is taken for slow, and if that was wrong the patience doubles.

Whoever is slow is treated so for `SLOW_S`, and then tried again like anybody else.
"""

from __future__ import annotations

from collections.abc import Iterable

from passel.ids import PeerId

#: How long a peer counts as slow after it was seen to be, seconds.
SLOW_S = 10.0
#: How often it is looked at, seconds: at the least, and for each pair that was looked at. A pair
#: takes ten microseconds, and all together may take a twentieth of the time.
JUDGED_EVERY_S = 0.25
JUDGED_PER_PAIR_S = 200e-6
#: What a peer may take for one piece: so many times the usual gap between two pieces of a parent,
#: which sends five side by side to children that may be busy with others; and at the least.
USUAL_GAPS = 24.0
PATIENCE_S_MIN = 2.0
#: Before so many pieces moved nobody knows what is usual; and so many must have moved elsewhere
#: while a peer was quiet: when all stand still nobody is slower than the others.
USUAL_AFTER = 32
MOVED_ELSEWHERE = 8
#: For how long several children get nothing at all from a parent, seconds per `STARVED_BYTES` of a
#: piece: about 5 Mbit/s for four pieces that come side by side.
STARVED_S = 6.0
STARVED_BYTES = 1 << 20
INFINITE = float("inf")


class _Quiet:
    """Since when the peers of one side could have moved a piece, and have not."""

    def __init__(self) -> None:
        self.since: dict[PeerId, tuple[float, int]] = {}

    def look(self, busy: Iterable[PeerId], now: float, n_moved: int) -> None:
        self.since = {peer: self.since.get(peer, (now, n_moved)) for peer in busy}

    def moved(self, peer: PeerId, now: float, n_moved: int) -> float | None:
        """A piece moved; how long that took after the one before, None if it was not busy."""
        before = self.since.get(peer)
        if before is None:
            return None
        self.since[peer] = (now, n_moved)
        return now - before[0]

    def peers(self, now: float, n_moved: float, patience_s: float) -> set[PeerId]:
        return {
            peer
            for peer, (since, n_then) in self.since.items()
            if now - since > patience_s and n_moved - n_then >= MOVED_ELSEWHERE
        }


class Pace:
    """How fast the peers of a shard are, over all blobs. Times are those of `ShardMachine`."""

    def __init__(self) -> None:
        #: Until when each counts as slow.
        self.slow_parents: dict[PeerId, float] = {}
        self.slow_children: dict[PeerId, float] = {}
        self._up = _Quiet()
        self._down = _Quiet()
        self._n_moved = 0
        self._gap_s = 0.0
        self._starved_s = STARVED_S
        self._judge_at = 0.0

    @property
    def patience_s(self) -> float:
        """How long a peer may be quiet; for ever while nobody knows what is usual."""
        if self._n_moved < USUAL_AFTER:
            return INFINITE
        return max(PATIENCE_S_MIN, USUAL_GAPS * self._gap_s)

    def is_slow(self, peer: PeerId) -> bool:
        return peer in self.slow_parents or peer in self.slow_children

    def moved(self, child: PeerId, parent: PeerId, now: float) -> None:
        """A piece came to a child from a parent."""
        self._n_moved += 1
        self._down.moved(child, now, self._n_moved)
        gap_s = self._up.moved(parent, now, self._n_moved)
        if gap_s is not None:
            # One who is slow says little about what is usual.
            gap_s = min(gap_s, 8 * max(self._gap_s, JUDGED_EVERY_S))
            self._gap_s += (gap_s - self._gap_s) / 16

    def is_due(self, now: float) -> bool:
        return now >= self._judge_at

    def judge(self, pairs: Iterable[tuple[PeerId, PeerId]], piece_size: int, now: float) -> None:
        """Look at all (child, parent) between whom a piece could move that the parent has.

        `piece_size` is that of the largest, in bytes.
        """
        n_pairs = 0
        parents_of: dict[PeerId, set[PeerId]] = {}
        children_of: dict[PeerId, set[PeerId]] = {}
        for child, parent in pairs:
            n_pairs += 1
            parents_of.setdefault(child, set()).add(parent)
            children_of.setdefault(parent, set()).add(child)
        self._judge_at = now + max(JUDGED_EVERY_S, n_pairs * JUDGED_PER_PAIR_S)
        for table in (self.slow_parents, self.slow_children):
            for peer in [p for p, until in table.items() if until <= now]:
                del table[peer]
        self._up.look(children_of, now, self._n_moved)
        self._down.look(parents_of, now, self._n_moved)
        quiet = self._down.peers(now, self._n_moved, self.patience_s)
        # Who was slow has to move something to be so no more, even if nobody else moves.
        quiet |= self._down.peers(now, INFINITE, self.patience_s) & self.slow_children.keys()
        self._judge_children(quiet, parents_of, now)
        for parent in self._up.peers(now, self._n_moved, self.patience_s):
            waiting = children_of[parent] - self.slow_children.keys()
            if len(waiting) >= 2 or waiting - quiet:
                self.slow_parents[parent] = now + SLOW_S
        self._judge_starving(children_of, piece_size, now)

    def _judge_children(
        self, quiet: set[PeerId], parents_of: dict[PeerId, set[PeerId]], now: float
    ) -> None:
        for child in quiet:
            able = parents_of[child] - self.slow_parents.keys()
            if len(able) >= 2 or (able and child in self.slow_children):
                self.slow_children[child] = now + SLOW_S
                for parent in able:
                    # Its slots were the child's: what it could not do meanwhile is not its fault.
                    self._up.since[parent] = (now, self._n_moved)

    def _judge_starving(
        self, children_of: dict[PeerId, set[PeerId]], piece_size: int, now: float
    ) -> None:
        starved_s = self._starved_s * max(1.0, piece_size / STARVED_BYTES)
        for parent, (since, n_then) in self._up.since.items():
            waiting = children_of[parent] - self.slow_children.keys()
            stands = self._n_moved - n_then < MOVED_ELSEWHERE
            if stands and now - since > starved_s and len(waiting) >= 2:
                self.slow_parents[parent] = self.slow_children[parent] = now + SLOW_S
                self._starved_s *= 2
                return

    def forget(self, peer: PeerId) -> None:
        for table in (self.slow_parents, self.slow_children, self._up.since, self._down.since):
            table.pop(peer, None)
