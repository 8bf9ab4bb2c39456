"""What the piece server may give to other peers: verified pieces, and one client's credentials."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Iterable

from passel.ids import BlobId, BlobKey, Digest
from passel.store.blobs import CompleteBlob
from passel.store.partial import PartialBlob
from passel.store.store import Store
from passel.transport.piece_server import PieceLocation

#: Open complete blobs that are kept for serving.
OPEN_MAX = 256
CREDENTIALS_MAX = 1024


class Serving:
    """The store as other peers see it. Belongs to the peer's event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys: dict[BlobId, BlobKey] = {}
        self._ids: dict[Digest, set[BlobId]] = {}
        self._open: OrderedDict[Digest, tuple[CompleteBlob, int]] = OrderedDict()
        self._waiters: dict[tuple[BlobId, int], set[asyncio.Future[bool]]] = {}
        self._credentials: OrderedDict[BlobId, str] = OrderedDict()

    def know(self, key: BlobKey) -> None:
        """This peer has to do with the blob: other peers may ask for it by its id."""
        self._keys[key.id] = key
        self._ids.setdefault(key.digest, set()).add(key.id)

    def know_complete(self, digest: Digest, upstreams: Iterable[str]) -> None:
        """The whole blob is here: it counts under every upstream, whoever fetched it, and when."""
        for upstream in upstreams:
            self.know(BlobKey(upstream, digest))

    def keep_credentials(self, blob: BlobId, authorization: str) -> None:
        """Remember what a client sent, for the lease-holder; the newest of a blob counts."""
        self._credentials[blob] = authorization
        self._credentials.move_to_end(blob)
        while len(self._credentials) > CREDENTIALS_MAX:
            self._credentials.popitem(last=False)

    def drop_credentials(self, blob: BlobId) -> None:
        self._credentials.pop(blob, None)

    def credentials(self, blob: BlobId) -> str | None:
        return self._credentials.get(blob)

    def locate(self, blob: BlobId, piece: int) -> PieceLocation | None:
        partial = self._store.partial(blob)
        if partial is not None and not partial.is_retired:
            return _in_partial(partial, piece)
        key = self._keys.get(blob)
        return None if key is None else self._in_complete(key.digest, piece)

    def _in_complete(self, digest: Digest, piece: int) -> PieceLocation | None:
        found = self._open.get(digest)
        if found is None:
            blob = self._store.complete(digest)
            if blob is None:
                return None
            found = self._open[digest] = (blob, blob.open_fd())
            self._close_surplus()
        self._open.move_to_end(digest)
        blob, fd = found
        start = piece * blob.piece_size
        if piece < 0 or start >= blob.size:
            return None
        length = min(blob.piece_size, blob.size - start)
        return PieceLocation(fd, start, length, blob.piece_digests[piece])

    def _close_surplus(self) -> None:
        while len(self._open) > OPEN_MAX:
            _, (_, fd) = self._open.popitem(last=False)
            os.close(fd)

    def forget(self, digest: Digest) -> None:
        """The blob was evicted or removed."""
        found = self._open.pop(digest, None)
        if found is not None:
            os.close(found[1])
        ids = self._ids.pop(digest, set())
        begun = {blob for blob in ids if self._store.partial(blob) is not None}
        for blob in ids - begun:
            del self._keys[blob]
        if begun:
            self._ids[digest] = begun

    # --- waiting --------------------------------------------------------------------------------

    async def wait(self, blob: BlobId, piece: int, timeout_s: float) -> bool:
        if self.locate(blob, piece) is not None:
            return True
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault((blob, piece), set())
        waiters.add(future)
        try:
            return await asyncio.wait_for(future, timeout_s)
        except asyncio.TimeoutError:
            return False
        finally:
            waiters.discard(future)
            if not waiters:
                self._waiters.pop((blob, piece), None)

    def arrived(self, blob: BlobId, piece: int) -> None:
        """A piece is verified and in the store: whoever waits for it gets it."""
        for future in self._waiters.get((blob, piece), ()):
            if not future.done():
                future.set_result(True)


def _in_partial(partial: PartialBlob, piece: int) -> PieceLocation | None:
    if not 0 <= piece < partial.n_pieces:
        return None
    digest = partial.piece_digest(piece)
    if digest is None:
        return None
    start, stop = partial.span(piece)
    return PieceLocation(partial.fileno(), start, stop - start, digest)
