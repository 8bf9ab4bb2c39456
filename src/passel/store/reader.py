"""Reading a store that another process owns: the gateway's side. No lock, no writing.

A view holds the data file open, and for a partial blob its piece map mapped. Whatever the owner
does, a view stays safe:

- promotion: the file is renamed, the descriptor stays good, and the map has all its bits;
- eviction: the bytes stay until the view is closed, and they are verified bytes;
- destruction because of wrong bytes: the owner marks the map dead first, and from then on the view
  covers nothing;
- a crash of the owner: the bits stay true as long as the machine does not reboot.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING

from passel.errors import StoreCorrupt
from passel.store import blobs, fileio, layout
from passel.store.layout import Layout
from passel.store.piecemap import MapState, MapView

if TYPE_CHECKING:
    from hashlib import _Hash
    from pathlib import Path
    from types import TracebackType

    from passel.ids import BlobId, BlobKey

VIEWS_MAX = 128
"""Open files kept for the next request, two descriptors each."""

# As in blobs.py: how stale the time of last use on the disk may be.
_TOUCH_EVERY_S = 60.0


class _OpenBlob:
    """An open file, shared by the views of it; closed when the last reference is gone."""

    __slots__ = ("data", "map", "piece_size", "size", "touched_s")

    def __init__(self, data: fileio.OwnedFd, piece_map: MapView | None, size: int, piece_size: int):
        self.data = data
        self.map = piece_map
        self.size = size
        self.piece_size = piece_size
        self.touched_s = -_TOUCH_EVERY_S

    def is_current(self) -> bool:
        """Whether the file is still in the store, and not destroyed."""
        if self.map is not None and self.map.state == MapState.DEAD:
            return False
        return os.fstat(self.data.fileno()).st_nlink > 0

    def touch(self) -> None:
        """Tell the owner's eviction that the blob is in use, by the file's access time."""
        now_s = time.monotonic()
        if now_s - self.touched_s >= _TOUCH_EVERY_S:
            self.touched_s = now_s
            # Another user's gateway may read and not touch: the order of eviction is then coarser.
            with suppress(OSError):
                blobs.touch(self.data.fileno(), time.time_ns())


class BlobView:
    """What one request sees of one blob. Close it when the request ends; not used after that.

    ``fd`` is for ``pread`` and ``sendfile`` of what :meth:`verified_to` allows, and shared: never
    close, seek or read it.
    """

    __slots__ = ("_blob", "fd", "piece_size", "size")

    def __init__(self, blob: _OpenBlob) -> None:
        self._blob: _OpenBlob | None = blob
        self.fd = blob.data.fileno()
        self.size = blob.size
        self.piece_size = blob.piece_size

    def _map(self) -> MapView | None:
        assert self._blob is not None, "the view is closed"
        return self._blob.map

    @property
    def complete(self) -> bool:
        """Whether it is whole and durable; a partial blob's view turns at its promotion."""
        piece_map = self._map()
        return piece_map is None or piece_map.state == MapState.COMPLETE

    @property
    def is_whole(self) -> bool:
        """Whether the whole digest was verified; the bytes need not be durable yet."""
        piece_map = self._map()
        return piece_map is None or piece_map.state in (MapState.WHOLE, MapState.COMPLETE)

    @property
    def is_dead(self) -> bool:
        """Whether the blob was destroyed: this view covers nothing any more. Ask for a new one."""
        piece_map = self._map()
        return piece_map is not None and piece_map.state == MapState.DEAD

    def verified_to(self, start: int) -> int:
        """The end of the verified bytes that begin at `start`; `start` itself if there are none.

        No system call; about a microsecond for 4096 pieces.
        """
        piece_map = self._map()
        if not 0 <= start < self.size:
            return start
        if piece_map is None:
            return self.size
        first = start // self.piece_size
        missing = ~(piece_map.verified() >> first)
        n_verified = (missing & -missing).bit_length() - 1
        if not n_verified:
            return start
        return min((first + n_verified) * self.piece_size, self.size)

    def covers(self, start: int, stop: int) -> bool:
        """Whether all of ``[start, stop)`` may be read."""
        return 0 <= start <= stop <= self.size and self.verified_to(start) >= stop

    def hash_into(self, hasher: _Hash, start: int, stop: int) -> str:
        """Hash bytes, which must be verified; the hex digest so far. For a thread."""
        return fileio.hash_range(self.fd, start, stop, hasher).hex()

    def close(self) -> None:
        """Calling it again is harmless."""
        self._blob = None

    def __enter__(self) -> BlobView:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class StoreReader:
    """Views of the blobs in the store at `path`, which need not be there yet. Thread-safe.

    Keeps the `views_max` last used files open, and closes those of blobs that were evicted when
    :meth:`sweep` is called: until then they keep their bytes on the disk.
    """

    def __init__(self, path: Path, views_max: int = VIEWS_MAX) -> None:
        self._paths = Layout(path)
        self._views_max = views_max
        self._lock = threading.Lock()
        self._open: OrderedDict[BlobId, _OpenBlob] = OrderedDict()

    def view(self, key: BlobKey) -> BlobView | None:
        """The complete blob, else what there is of it under that upstream, else None.

        StoreError if it cannot be told (too many open files, say).

        An open view does not learn by itself that the blob was discarded and begun anew; it covers
        nothing then, and calling this again gives the new one.
        """
        blob_id = key.id
        with self._lock:
            blob = self._open.get(blob_id)
            if blob is not None and not (blob.is_current() and self._is_best(blob, key)):
                del self._open[blob_id]
                blob = None
            if blob is None:
                blob = self._open_blob(key)
                if blob is None:
                    return None
                self._open[blob_id] = blob
                while len(self._open) > self._views_max:
                    self._open.popitem(last=False)
            self._open.move_to_end(blob_id)
            blob.touch()
            return BlobView(blob)

    def _is_best(self, blob: _OpenBlob, key: BlobKey) -> bool:
        """Whether opening anew would give no more: the blob may be complete by another upstream."""
        if blob.map is None or blob.map.state == MapState.COMPLETE:
            return True
        return not os.path.lexists(self._paths.blob(key.digest))

    def _open_blob(self, key: BlobKey) -> _OpenBlob | None:
        # A promotion may come between the two looks: then the third finds the complete blob.
        for attempt in (self._open_complete, self._open_partial, self._open_complete):
            try:
                with fileio.translated(f"opening {key.digest}"), suppress(FileNotFoundError):
                    return attempt(key)
            except StoreCorrupt:
                # Recovery deals with it; for a reader it is not there.
                continue
        return None

    def _open_complete(self, key: BlobKey) -> _OpenBlob:
        data = fileio.OwnedFd(fileio.open_read(self._paths.blob(key.digest)))
        size, piece_size, _ = blobs.read_sidecar(self._paths.sidecar(key.digest))
        if os.fstat(data.fileno()).st_size != size:
            raise StoreCorrupt("the file has not the length that its sidecar tells")
        return _OpenBlob(data, None, size, piece_size)

    def _open_partial(self, key: BlobKey) -> _OpenBlob:
        # Through one descriptor of the folder: data and map belong to the same life of the blob
        # even if it is discarded and begun anew in between.
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        folder = os.open(self._paths.partial_folder(key.id), flags)
        try:
            data = fileio.OwnedFd(fileio.open_read(layout.DATA, folder))
            map_file = fileio.OwnedFd(fileio.open_read(layout.MAP, folder))
        finally:
            os.close(folder)
        piece_map = MapView(map_file.fileno())
        if piece_map.state == MapState.DEAD:
            raise StoreCorrupt("the blob was destroyed")
        return _OpenBlob(data, piece_map, piece_map.layout.size, piece_map.layout.piece_size)

    def sweep(self) -> int:
        """Close files whose blobs left the store, so that the disk gets their bytes back; how many.

        To be called now and then, every few seconds say. Views in use stay good until closed.
        """
        with self._lock:
            gone = [blob_id for blob_id, blob in self._open.items() if not blob.is_current()]
            for blob_id in gone:
                del self._open[blob_id]
            return len(gone)

    def close(self) -> None:
        """Forget all; views in use stay good until they are closed."""
        with self._lock:
            self._open.clear()
