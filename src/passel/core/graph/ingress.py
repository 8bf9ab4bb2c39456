"""ZoneIngress: each piece enters each zone once, and each rack of a zone once.

Three rules, each for zones and then for racks inside a zone:

- *injection*: what only a keeper has in its domain goes to one other peer there, before the
  keeper's uplink is used for anything else;
- *entry*: what a domain lacks comes from anybody outside who is no keeper, a few pieces per step,
  so that no domain takes all uplinks of another one;
- *late entry*: after all else, from anybody with a free slot; but a source leaves to the peers of
  its own domain what they will have.

Source: simulation in the round model; the obvious rules either multiply the cross-zone bytes
("prefer local") or double the time ("only if the zone lacks it", without injection).
"""

from __future__ import annotations

import numpy as np

from passel.core.graph import bits, choose
from passel.core.graph.bits import Index
from passel.core.graph.draft import Draft, Level
from passel.core.graph.state import Bits, Flags

#: Pieces that may enter a domain per step before its own peers feed each other.
ENTRIES_PER_STEP = 4
#: With fewer than so many peers for every other domain, the source's own has uplinks enough for
#: one copy of everything to the outside, and not for one to each domain.
SOURCE_PEERS_PER_DOMAIN = 4
#: How often a collision of random choices is tried again before the next stage.
TRIES = 3


def inject(draft: Draft, rng: np.random.Generator) -> None:
    """Hand what only keepers have to one peer in their own domain each."""
    if not draft.keeper.any():
        return
    # The rack before the zone: else the keeper would have to serve both.
    for level in reversed(draft.levels):
        for _ in range(TRIES):
            parents = choose.shuffled((draft.up > 0) & draft.keeper, rng)
            if not parents.size:
                return
            offers = draft.held[parents]
            kept = bits.union_by(offers, level.domain[parents], level.n_domains)
            lacks = kept & ~level.spread
            if not _carry(
                draft, level, lacks, parents, offers, level.domain, None, draft.need, rng
            ):
                break


def enter(draft: Draft, rng: np.random.Generator) -> None:
    """Let a few pieces into each domain that lacks them, from anybody but keepers.

    Domains that are ahead of the others give first. One that is behind, and a source's own if it is
    small, gives only what nobody ahead can pass on, and to one domain each: its uplinks are what
    its own peers wait for.
    """
    for level in draft.levels:
        if level.n_domains == 1:
            continue
        behind = _behind(level)
        is_small = level.n_serving < SOURCE_PEERS_PER_DOMAIN * (level.n_domains - 1)
        own = level.domain[draft.is_source]
        behind[own] |= is_small[own]
        for gives in (~behind, behind) if behind.any() else (~behind,):
            able = (draft.up > 0) & ~draft.keeper & gives[level.domain]
            for _ in range(TRIES):
                parents = choose.shuffled(able & (draft.up > 0), rng)
                offers = draft.held[parents]
                lacks = _offered(level, parents, offers) & ~level.entered
                if gives is behind:
                    lacks &= ~_union_of_group(level, level.entered * ~behind[:, np.newaxis])
                if not _carry(
                    draft,
                    level,
                    lacks,
                    parents,
                    offers,
                    level.group,
                    ENTRIES_PER_STEP,
                    draft.need,
                    rng,
                    once=gives is behind,
                ):
                    break


def _behind(level: Level) -> Flags:
    """(n_domains,) bool: whose peers, per uplink, lack more than the group's do on average."""
    lacking = level.backlog / np.maximum(level.n_serving, 1)
    n_groups = int(level.group_of.max()) + 1
    total = np.bincount(level.group_of, weights=level.backlog, minlength=n_groups)
    serving = np.bincount(level.group_of, weights=level.n_serving, minlength=n_groups)
    behind: Flags = lacking > (total / np.maximum(serving, 1))[level.group_of] + 1
    return behind


def _union_of_group(level: Level, rows: Bits) -> Bits:
    """(n_domains, n_words): what any domain of the same group has in `rows`."""
    n_groups = int(level.group_of.max()) + 1
    return bits.union_by(rows, level.group_of, n_groups)[level.group_of]


def enter_late(draft: Draft, rng: np.random.Generator) -> None:
    """Let in whatever free slots allow, until nothing more can enter."""
    need = draft.need.copy() if draft.banned.size else draft.need
    for level in draft.levels:
        if level.n_domains == 1:
            continue
        relayed = _relayed(draft, level)
        while True:
            parents = choose.shuffled(draft.up > 0, rng)
            offers = draft.held[parents]
            sources = draft.is_source[parents]
            offers[sources] &= ~relayed[level.domain[parents[sources]]]
            lacks = _offered(level, parents, offers) & ~level.entered
            if not _carry(draft, level, lacks, parents, offers, level.group, None, need, rng):
                break


def _offered(level: Level, parents: Index, offers: Bits) -> Bits:
    """(n_domains, n_words): what the parents in each domain's group offer."""
    n_groups = int(level.group_of.max()) + 1
    return bits.union_by(offers, level.group[parents], n_groups)[level.group_of]


def _relayed(draft: Draft, level: Level) -> Bits:
    """(n_domains, n_words): what somebody in the domain, who is no source, can pass on or will."""
    relays = np.flatnonzero(draft.relays)
    rows = draft.moving[relays] | draft.need[relays]
    return bits.union_by(rows, level.domain[relays], level.n_domains)


def _carry(
    draft: Draft,
    level: Level,
    lacks: Bits,
    parents: Index,
    offers: Bits,
    scope: Index,
    limit: int | None,
    need: Bits,
    rng: np.random.Generator,
    once: bool = False,
) -> bool:
    """Bring pieces that domains lack to one peer of each; False if there was nothing to try.

    `lacks` is (n_domains, n_words); a task's child is anybody in the domain who needs the piece,
    its parent one of `parents` in the child's `scope`. Pairs that cannot be are struck out of
    `need`.
    """
    peers = choose.shuffled(draft.down > 0, rng)
    if not peers.size or not parents.size or not lacks.any():
        return False
    rows = need[peers]
    lacks = lacks & bits.union_by(rows, level.domain[peers], level.n_domains)
    domains, pieces = _tasks(draft, level, lacks, limit, rng)
    if not pieces.size:
        return False
    if once:
        first = choose.first_of(pieces)
        domains, pieces = domains[first], pieces[first]
    children = choose.find_children(rows, peers, level.domain, domains, pieces, rng)
    found = choose.find_parents(draft, offers, parents, children, pieces, scope, rng)
    hopeless = found < 0
    if need is not draft.need:
        bits.switch_off(need, children[hopeless], pieces[hopeless])
    elif hopeless.all():
        return False
    children, pieces, found = children[~hopeless], pieces[~hopeless], found[~hopeless]
    kept = choose.admit(draft, children, found)
    draft.take(children[kept], pieces[kept], found[kept])
    return True


def _tasks(
    draft: Draft, level: Level, lacks: Bits, limit: int | None, rng: np.random.Generator
) -> tuple[Index, Index]:
    """(domain, piece) pairs, rarest piece first; not more than there are slots for."""
    cells = np.unpackbits(lacks.view(np.uint8), axis=1, bitorder="little")
    domains, pieces = np.nonzero(cells)
    order = np.argsort(draft.priorities(pieces, rng))
    domains, pieces = domains[order], pieces[order]
    room = np.bincount(level.domain, weights=draft.down, minlength=level.n_domains)
    if limit is not None:
        room = np.minimum(room, limit)
    fits: Flags = choose.repeats(domains) < room[domains]
    n_tasks = int(draft.up.sum())
    return domains[fits][:n_tasks], pieces[fits][:n_tasks]
