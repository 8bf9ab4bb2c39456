"""What to do with what is found in a store when it is opened.

:func:`plan` is pure and knows all the rules; :func:`look` reads the disk for it. There is no clean
shutdown to tell from a crash: every opening goes this way. What a crash can leave behind is removed
or adopted; what passel cannot have written is put into quarantine, which is bounded.

Only ``blobs/`` and ``partial/`` are looked at: what else lies in the store's folder (the peer's
socket, say) belongs to others.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from passel.errors import StoreCorrupt
from passel.store import fileio, layout
from passel.store.partial import META_BYTES_MAX, decode_meta
from passel.store.piecemap import HEADER_BYTES, VERSION, MapLayout, MapState, probe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from passel.ids import BlobId, BlobKey, Digest
    from passel.store.layout import Layout

log = logging.getLogger(__name__)

QUARANTINE_ENTRIES_MAX = 64
QUARANTINE_BYTES_MAX = 1 << 30


# -- what was found


@dataclass(frozen=True, slots=True)
class FoundPartial:
    """An entry of ``partial/``. `files` says of each name inside whether it is a regular file."""

    name: str
    is_folder: bool = True
    files: dict[str, bool] = field(default_factory=dict)
    meta: tuple[BlobKey, MapLayout] | None = None
    #: (format version, state) by the map's header; None if there is no such header.
    map: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class FoundBlob:
    """An entry two folders below ``blobs/``."""

    algorithm: str
    prefix: str
    name: str
    is_file: bool = True
    size: int = 0
    used_ns: int = 0

    @property
    def path(self) -> str:
        return f"{layout.BLOBS}/{self.algorithm}/{self.prefix}/{self.name}"


@dataclass(frozen=True, slots=True)
class Listing:
    """All that is in ``partial/`` and ``blobs/``; `strays` are paths where a folder should be."""

    partials: tuple[FoundPartial, ...] = ()
    blobs: tuple[FoundBlob, ...] = ()
    strays: tuple[str, ...] = ()


# -- what to do


@dataclass(frozen=True, slots=True)
class Remove:
    """A crash left it, and it is of no use. `path` is relative to the store."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Passel did not write it, or not in this format."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Adopt:
    """A partial blob, of which every claimed piece is to be hashed again."""

    blob: BlobId
    key: BlobKey
    layout: MapLayout


@dataclass(frozen=True, slots=True)
class Keep:
    """A complete blob."""

    digest: Digest
    size: int
    used_ns: int


Action = Remove | Quarantine | Adopt | Keep


def plan(listing: Listing) -> list[Action]:
    """Actions in the order in which they are to be carried out."""
    actions: list[Action] = [Quarantine(path, "no folder of a store") for path in listing.strays]
    blobs = list(_plan_blobs(listing.blobs))
    complete = {action.digest for action in blobs if isinstance(action, Keep)}
    actions += blobs
    for found in listing.partials:
        actions += _plan_partial(found, complete)
    return actions


def _plan_blobs(found: tuple[FoundBlob, ...]) -> Iterator[Action]:
    blobs: dict[Digest, FoundBlob] = {}
    sidecars: dict[Digest, FoundBlob] = {}
    for entry in found:
        parsed = layout.parse_blob(entry.algorithm, entry.prefix, entry.name)
        if layout.is_temporary(entry.name):
            yield Remove(entry.path, "it was never published")
        elif parsed is None or not entry.is_file:
            yield Quarantine(entry.path, "no file of a store")
        else:
            digest, is_sidecar = parsed
            (sidecars if is_sidecar else blobs)[digest] = entry
    for digest, entry in sidecars.items():
        if digest not in blobs:
            # A promotion that did not come to its rename, or an eviction that was interrupted.
            yield Remove(entry.path, "a sidecar without its blob")
    for digest, entry in blobs.items():
        if digest in sidecars:
            yield Keep(digest, entry.size, entry.used_ns)
        else:
            # The sidecar is durable before the blob appears: no crash of ours ends like this.
            yield Quarantine(entry.path, "a blob without its sidecar")


def _plan_partial(found: FoundPartial, complete: set[Digest]) -> list[Action]:
    path = f"{layout.PARTIAL}/{found.name}"
    blob = layout.parse_partial(found.name)
    if layout.is_temporary(found.name):
        return [Remove(path, "half made or half removed")]
    if blob is None or not found.is_folder:
        return [Quarantine(path, "no partial blob")]
    if found.map is not None and found.map[0] > VERSION:
        return [Quarantine(path, f"a piece map of format {found.map[0]}")]
    if found.map is not None and found.map[1] == MapState.DEAD:
        return [Remove(path, "destroyed")]
    if layout.DATA not in found.files:
        return [Remove(path, "its data was promoted or removed")]
    if found.meta is None or found.meta[0].id != blob:
        return [Quarantine(path, "meta does not say which blob this is")]
    if not all(found.files.get(name, False) for name in (layout.DATA, layout.MAP)):
        return [Quarantine(path, "no data and piece map that are regular files")]
    key, map_layout = found.meta
    if key.digest in complete:
        return [Remove(path, "the blob is complete")]
    actions: list[Action] = []
    for name in found.files:
        if layout.is_temporary(name):
            actions.append(Remove(f"{path}/{name}", "half made or half removed"))
        elif name not in (layout.DATA, layout.MAP, layout.META):
            actions.append(Quarantine(f"{path}/{name}", "no file of a partial blob"))
    # A map whose header was lost is adopted all the same: the meta says where things are, and no
    # claim is believed before its piece was hashed.
    return [*actions, Adopt(blob, key, map_layout)]


# -- reading the disk


def look(paths: Layout) -> Listing:
    """The listing of the store at `paths`."""
    partials = tuple(_look_at_partial(paths.partial, entry) for entry in _entries(paths.partial))
    blobs: list[FoundBlob] = []
    strays: list[str] = []
    for algorithm in _entries(paths.blobs):
        if not algorithm.is_dir(follow_symlinks=False):
            strays.append(f"{layout.BLOBS}/{algorithm.name}")
            continue
        for prefix in _entries(paths.blobs / algorithm.name):
            if not prefix.is_dir(follow_symlinks=False):
                strays.append(f"{layout.BLOBS}/{algorithm.name}/{prefix.name}")
                continue
            for entry in _entries(paths.blobs / algorithm.name / prefix.name):
                status = entry.stat(follow_symlinks=False)
                blobs.append(
                    FoundBlob(
                        algorithm.name,
                        prefix.name,
                        entry.name,
                        stat.S_ISREG(status.st_mode),
                        status.st_size,
                        status.st_atime_ns,
                    )
                )
    return Listing(partials, tuple(blobs), tuple(strays))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _look_at_partial(partial: Path, entry: os.DirEntry[str]) -> FoundPartial:
    if not entry.is_dir(follow_symlinks=False):
        return FoundPartial(entry.name, is_folder=False)
    folder = partial / entry.name
    files = {inner.name: inner.is_file(follow_symlinks=False) for inner in _entries(folder)}
    meta = head = None
    if files.get(layout.META):
        try:
            meta = decode_meta(fileio.read_small(folder / layout.META, META_BYTES_MAX))
        except (StoreCorrupt, OSError) as error:
            log.warning("meta_unreadable blob=%s error=%s", entry.name, error)
    if files.get(layout.MAP):
        fd = fileio.open_read(folder / layout.MAP)
        try:
            head = probe(os.pread(fd, HEADER_BYTES, 0))
        finally:
            os.close(fd)
    return FoundPartial(entry.name, True, files, meta, head)


# -- quarantine


def quarantine(paths: Layout, path: Path, reason: str, bytes_max: int) -> None:
    """`path` is in ``quarantine/`` under a name that begins with the time; the oldest made room.

    Something that is by itself larger than `bytes_max` ends up removed.
    """
    log.warning("quarantined path=%s reason=%r", path, reason)
    fileio.make_folder(paths.quarantine)
    name = "-".join(path.relative_to(paths.root).parts)
    # 20 digits: sorted by name is sorted by time. 255 bytes is what file systems allow.
    fileio.rename(path, paths.quarantine / f"{time.time_ns():020d}-{name}"[:255])
    bound_quarantine(paths, bytes_max)


def bound_quarantine(paths: Layout, bytes_max: int) -> None:
    """At most 64 entries and `bytes_max` bytes are in ``quarantine/``; the newest stay."""
    n_bytes = 0
    for n_entries, entry in enumerate(reversed(_entries(paths.quarantine)), 1):
        path = paths.quarantine / entry.name
        n_bytes += fileio.tree_bytes(path)
        if n_entries > QUARANTINE_ENTRIES_MAX or n_bytes > bytes_max:
            log.warning("quarantine_full removed=%s", entry.name)
            fileio.remove_tree(path)
