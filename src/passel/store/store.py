"""The store of one node in the hands of its owner: everything together.

One process owns a store, by ``flock`` on its file ``lock``. All methods are synchronous and
thread-safe, and some take long (hashing): an event loop calls them from threads.

Locks, in the order in which they may be taken: a partial blob's `promotion`, its `fate`, the
store's `_publication`, the store's `_lock`. What takes long happens under the first only.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from passel.core.copies import Rank
from passel.errors import (
    DigestMismatch,
    LengthMismatch,
    NoSpace,
    StoreCorrupt,
    StoreError,
    StoreLocked,
)
from passel.store import blobs, fileio, layout, recover
from passel.store.blobs import BlobTable, CompleteBlob
from passel.store.layout import Layout
from passel.store.owners import Owners
from passel.store.partial import PartialBlob, encode_meta
from passel.store.piecemap import MapLayout, MapState, PieceMap

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path
    from types import TracebackType

    from passel.ids import BlobId, BlobKey, Digest

log = logging.getLogger(__name__)

#: A partial blob holds two file descriptors.
PARTIALS_MAX = 1024
BLOBS_MAX = 1 << 16


def all_ordinary(digest: Digest) -> Rank:
    """The `rank` of an eviction that may take everything."""
    del digest
    return Rank.ORDINARY


class Store:
    """Owns the folder: partial blobs, complete blobs, their room. See :meth:`open`."""

    def __init__(
        self,
        paths: Layout,
        lock_fd: int,
        capacity_bytes: int,
        reserve_bytes: int,
        clock_ns: Callable[[], int],
    ) -> None:
        self.path = paths.root
        self.capacity_bytes = capacity_bytes
        self.reserve_bytes = reserve_bytes
        self._paths = paths
        self._lock_fd = lock_fd
        self._lock = threading.RLock()
        self._publication = threading.Lock()
        self._partials: dict[BlobId, PartialBlob] = {}
        self._table = BlobTable(clock_ns)
        self._owners: Owners
        #: Bytes that blobs of an upstream may take; those that are not named may take all.
        self.quotas: dict[str, int] = {}
        self._is_closed = False
        self._quarantine_bytes_max = min(recover.QUARANTINE_BYTES_MAX, capacity_bytes // 16)

    # -- opening and closing

    @classmethod
    def open(
        cls,
        path: Path,
        capacity_bytes: int,
        reserve_bytes: int = 0,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> Store:
        """The store at `path`, made if there is none; leavings of a crash are put in order.

        Complete blobs are there at once. Partial blobs are hashed by :meth:`recover`, or one by one
        when they are asked for.

        Raises
        ------
        StoreLocked
            Another process owns it; the message names it.
        StoreCorrupt
            The folder is something else than a store.
        NoSpace, StoreError
            Also for a store that a newer passel wrote.
        """
        with fileio.translated(f"opening the store {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_dir():
                # A link to a folder on a larger disk is welcome here, and only here.
                fileio.make_folder(path)
            paths = Layout(path)
            lock_fd = _lock(paths)
            try:
                _check_format(paths)
                for folder in (paths.blobs, paths.partial, paths.quarantine):
                    fileio.make_folder(folder)
                store = cls(paths, lock_fd, capacity_bytes, reserve_bytes, clock_ns)
                for action in recover.plan(recover.look(paths)):
                    store._carry_out(action)
                store._owners = Owners(paths.owners, store._table.__contains__)
                recover.bound_quarantine(paths, store._quarantine_bytes_max)
            except BaseException:
                os.close(lock_fd)
                raise
        return store

    def _carry_out(self, action: recover.Action) -> None:
        match action:
            case recover.Remove(path, reason):
                log.info("removed path=%s reason=%r", path, reason)
                fileio.remove_tree(self.path / path)
            case recover.Quarantine(path, reason):
                self._quarantine(self.path / path, reason)
            case recover.Keep(digest, size, used_ns):
                self._table.add(digest, size, used_ns, None)
            case recover.Adopt(blob, key, map_layout):
                self._adopt(blob, key, map_layout)

    def _adopt(self, blob: BlobId, key: BlobKey, map_layout: MapLayout) -> None:
        folder = self._paths.partial_folder(blob)
        data = fileio.OwnedFd(fileio.open_write(folder / layout.DATA))
        if os.fstat(data.fileno()).st_size != map_layout.size:
            # The length of a new file may be lost with the power; pieces that were are dropped.
            fileio.truncate(data.fileno(), str(folder / layout.DATA), map_layout.size)
        piece_map, claimed = PieceMap.adopt(folder / layout.MAP, map_layout)
        self._partials[blob] = PartialBlob(key, folder, data, piece_map, claimed, self._promote)

    def recover(self) -> list[PartialBlob]:
        """All partial blobs, each claimed piece hashed again. Takes as long as reading them."""
        with self._lock:
            self._check_open()
            waiting = list(self._partials.values())
        for blob in waiting:
            blob.recover()
        return self.partials()

    def close(self) -> None:
        """Nothing is written any more and the lock is free. Calling it again is harmless."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            partials = list(self._partials.values())
            self._partials.clear()
        for blob in partials:
            with blob.fate:
                blob.retire(None)
        os.close(self._lock_fd)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreError(f"the store {self.path} is closed")

    # -- partial blobs

    def create(
        self,
        ref_key: BlobKey,
        size: int,
        piece_size: int,
        rank: Callable[[Digest], Rank] = all_ordinary,
    ) -> PartialBlob:
        """The partial blob of that key; the existing one if there is one, whatever its piece size.

        Room is made by evicting what has the lowest `rank`, least recently used first; nothing is
        evicted in vain. What is pinned goes only when the disk itself is full, by whoever. That is
        logged, and so is the end of a last copy.

        Raises
        ------
        NoSpace
            It cannot fit, or too many partial blobs are there.
        LengthMismatch
            There is one already, of another size.
        """
        with self._lock:
            self._check_open()
            blob = self._partials.get(ref_key.id)
            if blob is None:
                if len(self._partials) >= PARTIALS_MAX:
                    raise NoSpace(f"the store has {PARTIALS_MAX} partial blobs already")
                map_layout = MapLayout(size, piece_size)
                self._make_room(ref_key.upstream, size, rank)
                blob = self._partials[ref_key.id] = self._make_partial(ref_key, map_layout)
                return blob
        blob.recover()
        if blob.size != size:
            raise LengthMismatch(f"{ref_key.digest} has {blob.size} bytes, not {size}")
        return blob

    def _make_partial(self, key: BlobKey, map_layout: MapLayout) -> PartialBlob:
        folder = self._paths.partial_folder(key.id)
        new = fileio.temporary(folder, "new")
        try:
            # Nothing is synced here: after a power loss a folder without its meta is in quarantine,
            # which costs a download of what was fetched within the last seconds.
            fileio.make_folder(new)
            data = fileio.OwnedFd(fileio.create(new / layout.DATA))
            fileio.truncate(data.fileno(), str(new / layout.DATA), map_layout.size)
            piece_map = PieceMap.create(new / layout.MAP, map_layout)
            meta = fileio.OwnedFd(fileio.create(new / layout.META))
            content = encode_meta(key, map_layout.size, map_layout.piece_size)
            fileio.write_at(meta.fileno(), str(new / layout.META), 0, content)
            fileio.remove_tree(folder)
            fileio.rename(new, folder)
            piece_map.moved_to(folder / layout.MAP)
        except OSError as error:
            with suppress(OSError):
                fileio.remove_tree(new)
            raise fileio.store_error(f"making room for {key.digest}", error) from error
        return PartialBlob(key, folder, data, piece_map, None, self._promote)

    def partial(self, blob: BlobId) -> PartialBlob | None:
        """The partial blob of that id; hashes it first if nobody did since the start."""
        with self._lock:
            found = self._partials.get(blob)
        if found is not None:
            found.recover()
        return found

    def partials(self) -> list[PartialBlob]:
        """All partial blobs that are recovered."""
        with self._lock:
            return [blob for blob in self._partials.values() if blob.is_recovered]

    def discard(self, blob: BlobId) -> None:
        """There is no such partial blob any more; readers elsewhere trust none of its bytes."""
        with self._lock:
            found = self._partials.get(blob)
        if found is not None:
            with found.fate, fileio.translated(f"discarding {found.key.digest}"):
                self._destroy(found)

    def _destroy(self, blob: PartialBlob, state: MapState = MapState.DEAD) -> None:
        """Its `fate` is held. `state` is what readers that have it open see from now on."""
        try:
            is_ours = blob.retire(state)
        except OSError:
            # The mark could not be written. Out of the store with it all the same, and loudly:
            # readers that have it open go on believing what was verified.
            self._take_away(blob)
            raise
        if is_ours:
            self._take_away(blob)

    def _take_away(self, blob: PartialBlob) -> None:
        gone = fileio.temporary(blob.folder, "gone")
        with self._lock:
            # The name is free before anybody can ask for a new blob of that name.
            if self._partials.get(blob.key.id) is blob:
                del self._partials[blob.key.id]
            fileio.rename(blob.folder, gone)
        fileio.remove_tree(gone)

    # -- promotion

    def _promote(self, blob: PartialBlob) -> CompleteBlob:
        digest = blob.key.digest
        what = f"promoting {digest}"
        with blob.promotion, fileio.translated(what):
            if blob.completed is not None:
                return blob.completed
            blob.check_alive()
            assert blob.is_full, "only a blob whose pieces are all verified can be promoted"
            found = blob.hash_all()
            if found != digest.hex:
                self.discard(blob.key.id)
                raise DigestMismatch(f"blob of {blob.key.upstream}", digest.hex, found)
            blob.vouch()
            if self.complete(digest) is None:
                self._sync_or_destroy(blob)
            with blob.fate, self._publication:
                blob.check_alive()
                existing = self.complete(digest)
                if existing is None:
                    return self._publish(blob)
                # The same content came from another upstream first. Who reads this one may go on.
                self._destroy(blob, MapState.WHOLE)
                return existing

    def _sync_or_destroy(self, blob: PartialBlob) -> None:
        try:
            blob.sync_data()
        except OSError:
            # After a failed fsync the kernel takes the pages for clean: what is read from now on
            # may be right and what is on the disk wrong. No claim on these bytes can be kept.
            self.discard(blob.key.id)
            raise

    def _publish(self, blob: PartialBlob) -> CompleteBlob:
        """Sidecar, then the data file, into ``blobs/``. `fate` and `_publication` are held."""
        digest = blob.key.digest
        final, sidecar = self._paths.blob(digest), self._paths.sidecar(digest)
        for folder in (final.parent.parent, final.parent):
            if fileio.make_folder(folder):
                fileio.sync_folder(folder.parent)
        digests = blob.all_digests()
        try:
            fileio.publish(sidecar, blobs.encode_sidecar(blob.size, blob.piece_size, digests))
            fileio.rename(blob.folder / layout.DATA, final)
        except OSError:
            with suppress(OSError):
                fileio.unlink(sidecar)
            raise
        try:
            fileio.sync_folder(final.parent)
            fileio.sync_folder(blob.folder)
        except OSError:
            with suppress(OSError):
                fileio.unlink(final)
                fileio.unlink(sidecar)
                self._destroy(blob)
            raise
        pieces = blobs.split_digests(digests)
        complete = CompleteBlob(digest, final, blob.size, blob.piece_size, pieces)
        with self._lock:
            now_ns = self._table.now_ns()
            self._table.add(digest, blob.size, now_ns, complete)
            self._owners.note(digest, blob.key.upstream)
        last_steps: list[Callable[[], None]] = [
            lambda: blobs.touch(blob.fileno(), now_ns),
            lambda: blob.finish(complete),
            lambda: self._take_away(blob),
        ]
        for step in last_steps:
            try:
                step()
            except OSError as error:
                # The blob is complete, and the next start removes what is left of the partial one.
                log.warning("partial_left blob=%s error=%s", digest, error)
        return complete

    # -- complete blobs

    def complete(self, digest: Digest) -> CompleteBlob | None:
        """The complete blob, and this counts as a use of it."""
        # The disk is asked at the first use and then once a minute. Under the lock: an eviction in
        # between must not look like damage.
        with self._lock, fileio.translated(f"looking for {digest}"):
            if digest not in self._table:
                return None
            blob, touch_ns = self._table.use(digest)
            try:
                if touch_ns is not None:
                    self._touch(digest, touch_ns)
                if blob is None:
                    blob = self._load(digest)
                    self._table.remember(blob)
            except (FileNotFoundError, StoreCorrupt) as error:
                self._put_aside(digest, str(error))
                return None
            return blob

    def _touch(self, digest: Digest, now_ns: int) -> None:
        fd = fileio.open_read(self._paths.blob(digest))
        try:
            blobs.touch(fd, now_ns)
        finally:
            os.close(fd)

    def _load(self, digest: Digest) -> CompleteBlob:
        path = self._paths.blob(digest)
        size, piece_size, digests = blobs.read_sidecar(self._paths.sidecar(digest))
        if path.stat().st_size != size:
            raise StoreCorrupt(f"the file has not the {size} bytes that its sidecar tells")
        return CompleteBlob(digest, path, size, piece_size, digests)

    def completes(self) -> list[Digest]:
        """The digests of all complete blobs, in no order."""
        with self._lock:
            return list(self._table)

    def verify(self, digest: Digest) -> bool:
        """Whether the complete blob still has its digest; if not, it is in quarantine now."""
        blob = self.complete(digest)
        if blob is None:
            return False
        fd = blob.open_fd()
        try:
            with fileio.translated(f"verifying {digest}"):
                found = fileio.hash_range(fd, 0, os.fstat(fd).st_size, digest.hasher()).hex()
        finally:
            os.close(fd)
        if found != digest.hex:
            self._put_aside(digest, f"its digest is {found}")
        return found == digest.hex

    def _put_aside(self, digest: Digest, reason: str) -> None:
        with self._lock, fileio.translated(f"putting {digest} into quarantine"):
            if not self._table.discard(digest):
                return
            self._owners.forget(digest)
            for path in (self._paths.blob(digest), self._paths.sidecar(digest)):
                with suppress(FileNotFoundError):
                    self._quarantine(path, reason)

    def _quarantine(self, path: Path, reason: str) -> None:
        recover.quarantine(self._paths, path, reason, self._quarantine_bytes_max)

    # -- room

    def used_bytes(self) -> int:
        """Bytes of complete blobs, plus the whole size of each partial one.

        While a blob is being promoted it may count twice.
        """
        with self._lock:
            return self._table.bytes + sum(blob.size for blob in self._partials.values())

    def evict(self, needed_bytes: int, rank: Callable[[Digest], Rank]) -> list[Digest]:
        """Make room for `needed_bytes`, which may not suffice; what went, in that order."""
        with self._lock:
            self._check_open()
            victims, _ = self._choose_victims(needed_bytes, 0, rank)
            for digest in victims:
                self._evict_one(digest, rank(digest))
            return victims

    def _evict_one(self, digest: Digest, rank: Rank) -> None:
        if rank is Rank.PINNED:
            free = fileio.free_bytes(self.path)
            log.error("disk_full evicted_although_pinned=%s free_bytes=%d", digest, free)
        elif rank is Rank.LAST_COPY:
            log.warning("last_copy_evicted digest=%s", digest)
        self.remove(digest)

    def remove(self, digest: Digest) -> bool:
        """There is no such complete blob any more; whether there was one."""
        with self._lock, fileio.translated(f"removing {digest}"):
            if not self._table.discard(digest):
                return False
            self._owners.forget(digest)
            # Blob before sidecar: a sidecar alone is rubbish, a blob alone would be a riddle.
            fileio.unlink(self._paths.blob(digest))
            fileio.unlink(self._paths.sidecar(digest))
            return True

    def spare_bytes(self, rank: Callable[[Digest], Rank]) -> int:
        """How large a blob may be that costs nothing but ordinary ones; not above 0: none."""
        with self._lock:
            ordinary = (each for each in self._table if rank(each) is Rank.ORDINARY)
            return sum(map(self._table.size, ordinary)) - self._shortfall(0)

    def upstream_of(self, digest: Digest) -> str | None:
        """Where a complete blob came from, if that is known."""
        with self._lock:
            return self._owners.of(digest)

    def upstream_bytes(self, upstream: str) -> int:
        """As `used_bytes`, of the blobs that came from there."""
        with self._lock:
            complete = (each for each in self._table if self._owners.of(each) == upstream)
            partial = (each for each in self._partials.values() if each.key.upstream == upstream)
            return sum(map(self._table.size, complete)) + sum(each.size for each in partial)

    def _over_quota(
        self, upstream: str, needed_bytes: int, rank: Callable[[Digest], Rank]
    ) -> list[Digest]:
        """The blobs of that upstream that must go for `needed_bytes` more of it. Raises NoSpace."""
        quota = self.quotas.get(upstream)
        if quota is None:
            return []
        used = self.upstream_bytes(upstream)
        missing = used + needed_bytes - quota
        victims: list[Digest] = []
        for digest in self._in_order(rank) if missing > 0 else ():
            if missing <= 0 or rank(digest) is Rank.PINNED:
                break
            if self._owners.of(digest) == upstream:
                victims.append(digest)
                missing -= self._table.size(digest)
        if missing > 0:
            raise NoSpace(
                f"no room for {needed_bytes} bytes of {upstream}: "
                f"{used} of its quota of {quota} are used"
            )
        return victims

    def _make_room(self, upstream: str, needed_bytes: int, rank: Callable[[Digest], Rank]) -> None:
        over = self._over_quota(upstream, needed_bytes, rank)
        freed_bytes = sum(map(self._table.size, over))
        n_excess = len(self._table) + len(self._partials) + 1 - BLOBS_MAX - len(over)
        victims, is_enough = self._choose_victims(needed_bytes - freed_bytes, n_excess, rank, over)
        if is_enough:
            for digest in (*over, *victims):
                self._evict_one(digest, rank(digest))
            # A reader that still has an evicted file open keeps its bytes on the disk.
            is_enough = self._shortfall(needed_bytes) <= 0
        if not is_enough:
            raise NoSpace(
                f"no room for {needed_bytes} bytes: {self.used_bytes()} of "
                f"{self.capacity_bytes} are used, and {self.reserve_bytes} on the disk stay free"
            )

    def _choose_victims(
        self,
        needed_bytes: int,
        n_excess: int,
        rank: Callable[[Digest], Rank],
        gone: Collection[Digest] = (),
    ) -> tuple[list[Digest], bool]:
        """What goes besides `gone`, least recently used first; whether that is enough."""
        missing = self._shortfall(needed_bytes)
        own_missing = self._own_shortfall(needed_bytes)
        victims: list[Digest] = []
        if missing <= 0 and n_excess <= 0:
            return victims, True
        for digest in (each for each in self._in_order(rank) if each not in gone):
            is_disk_full = missing > 0 >= own_missing and len(victims) >= n_excess
            if rank(digest) is Rank.PINNED and not is_disk_full:
                break
            victims.append(digest)
            missing -= self._table.size(digest)
            own_missing -= self._table.size(digest)
            if missing <= 0 and len(victims) >= n_excess:
                return victims, True
        return victims, False

    def _in_order(self, rank: Callable[[Digest], Rank]) -> list[Digest]:
        """All complete blobs, the first to go first."""
        return sorted(self._table.oldest_first(self._paths.blob), key=rank)

    def _own_shortfall(self, needed_bytes: int) -> int:
        """The same as far as the capacity goes, not the disk."""
        return self.used_bytes() + needed_bytes - self.capacity_bytes

    def _shortfall(self, needed_bytes: int) -> int:
        """Bytes to be freed before `needed_bytes` more fit; not above 0 if they do."""
        own = self._own_shortfall(needed_bytes)
        promised = sum(blob.missing_bytes for blob in self._partials.values())
        with fileio.translated("asking for the free space"):
            free = fileio.free_bytes(self.path)
        return max(own, self.reserve_bytes + promised + needed_bytes - free)


def _lock(paths: Layout) -> int:
    """The fd that holds the lock; StoreLocked if another process has it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(paths.lock, flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        owner = f"process {pid}" if pid else "another process"
        raise StoreLocked(f"the store {paths.root} is in use by {owner}") from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def _check_format(paths: Layout) -> None:
    """The folder is a store of this format; a folder that is nobody's becomes one."""
    try:
        version = layout.parse_format(fileio.read_small(paths.format, 64))
    except FileNotFoundError:
        if paths.blobs.exists() or paths.partial.exists():
            # Recovery would put somebody else's files into quarantine.
            raise StoreCorrupt(
                f"{paths.root} has folders like a store's but no file 'format': "
                "is it something else?"
            ) from None
        # Before the folders: a crash in between must not make us refuse our own store.
        for entry in paths.root.iterdir():
            if entry.name.startswith(f"{layout.FORMAT}.") and layout.is_temporary(entry.name):
                fileio.unlink(entry)
        fileio.publish(paths.format, layout.format_line())
        return
    if version > layout.FORMAT_VERSION:
        raise StoreError(
            f"the store {paths.root} has format {version}, written by a newer passel; "
            f"this one knows formats up to {layout.FORMAT_VERSION}: "
            "upgrade passel, or give it another folder"
        )
