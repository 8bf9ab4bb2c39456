"""One read of a blob that is not all here: from the peer, else from the origin, never cut short.

The peer brings pieces into the store, and this sends them from there as they are verified. When the
peer fails, in the middle of a body too, the read goes on with the peer that comes back, or straight
from the origin at the same offset; the client sees one body. If neither can go on, the caller
resets the connection, so that no client takes a part for the whole.

Who reads a whole blob gets its last bytes when the digest of the whole is known to be right: a blob
that is not what its name says never ends well. Of a range only the pieces can be known.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from passel.errors import (
    DigestMismatch,
    LengthMismatch,
    NoSpace,
    OriginRefused,
    OriginTimeout,
    OriginUnavailable,
    PeerUnavailable,
)
from passel.gateway.door import PeerPassesThrough, PeerStalled
from passel.gateway.hotpath import PinnedFile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from passel.gateway.connection import Connection
    from passel.gateway.context import Context
    from passel.gateway.door import Ensure
    from passel.ids import BlobRef
    from passel.store import BlobView

log = logging.getLogger(__name__)

#: How long the body of a pull may stand still before the origin is asked: much of it may be here,
#: only not the piece that is next.
STALL_LONG_S = 20.0
#: And how long before the client is told, by an error or by breaking the body off. nydusd waits for
#: 5 s and then reads anew, from elsewhere if it must; containerd gives a pull up that stands still
#: for a minute, and others wait for ever.
STILL_SHORT_S = 4.5
STILL_LONG_S = 30.0
#: However late it is, so much time is left for the first bytes of an answer of the origin.
STILL_LEAST_S = 0.5
#: A peer that is asked anew in the middle of a lazy read leaves so much of that time to the origin.
FOR_ORIGIN_S = 2.0
#: A range up to here is a lazy read, a longer one a pull.
SHORT = 4 * 1024 * 1024
#: How long a peer that is alive may work on the first byte: it is waiting for a slow origin then,
#: and its gateway going there too would add to the load that makes it slow.
FIRST_BYTE_S = 4.0
FIRST_BYTE_LONG_S = 12.0
#: An origin that says 429 in the middle of a body is asked again so much later. Its client answers
#: for it until the time is over that it wants to be left alone.
LIMITED_PAUSE_S = 1.0
TOO_MANY_REQUESTS = 429
#: How often one read asks a peer anew after losing it. More would be a peer that dies by our
#: question.
ROUNDS_MAX = 8
#: An origin whose answers break off at the same place, in spite of all that its client tries.
BROKEN_MAX = 2
#: A read on its way from the origin goes back to the store when that much more of it is there.
HOP_BACK = 4 * 1024 * 1024
#: The origin's own client has deadlines too; this is the sum of all that it may try.
DIRECT_S = 20.0
#: How long a read waits for one of the few direct connections before the client is told 503.
DIRECT_SLOT_S = 0.5
#: The last bytes of a whole blob, which wait for its digest. A blob that is no longer than this can
#: still end in an error that says so.
HELD_BACK = 64 * 1024
#: The peer hashes as the pieces come; who hears nothing of it for so long does it himself.
OWN_HASH_S = 5.0


class Reading:
    """Brings ``[start, stop)`` of one blob to one connection. Close it, whatever happened."""

    def __init__(self, context: Context, ref: BlobRef, authorization: str | None) -> None:
        self._context = context
        self._ref = ref
        self._credential = context.grants.credential(ref.upstream, authorization)
        self._authorization = authorization
        self.priority = "on-demand"
        self.through_peer = True
        #: All of the blob goes to the client as one: set it before `send`.
        self.is_whole = False
        self.size: int | None = None
        #: Where the first byte comes from: local, peer, seed or origin.
        self.source = "local"
        #: What the cluster says about the need for credentials.
        self.public = False
        #: This client's own request was answered by the origin, which is the best of grants.
        self.proven = False
        self._view: BlobView | None = None
        self._ensure: Ensure | None = None
        self._rounds = 0
        self._stack = AsyncExitStack()
        self._chunks: AsyncIterator[bytes] | None = None
        #: The next byte that the client gets, and what must go out before it.
        self._at = 0
        self._lead = b""
        self._is_blind = False
        #: The digest of the whole was checked here.
        self._is_proven = False
        #: Of a whole blob, as far as it was needed: the bytes up to there, and their hash.
        self._hashed_to = 0
        self._hasher = ref.digest.hasher()
        self._still_s = STILL_LONG_S
        #: How often the origin broke off since the client got something.
        self._n_broken = 0
        #: When the client last got something. A lazy read's time begins with the question.
        self._moved_at = asyncio.get_running_loop().time()

    async def open(self, start: int, stop: int | None) -> None:
        """First bytes at `start` are at hand, and `size`, `source` and `public` are known.

        `stop` None: to the end. Raises the tree's errors; nothing was sent.
        """
        self._at = start
        is_short = stop is not None and stop - start <= SHORT
        self._still_s = STILL_SHORT_S if is_short else STILL_LONG_S
        if not self.through_peer:
            await self._go_direct(start, stop, PeerUnavailable("the client wants no peers"))
        else:
            try:
                await self._ask_peer(start, stop)
            except PeerUnavailable as error:
                await self._go_direct(start, stop, error)
        if not is_short:
            self._moved()

    def _moved(self) -> None:
        self._n_broken = 0
        self._moved_at = asyncio.get_running_loop().time()

    def _left_s(self) -> float:
        """For how much longer the client may be left without a byte, in seconds."""
        return self._moved_at + self._still_s - asyncio.get_running_loop().time()

    async def _ask_peer(self, start: int, stop: int | None) -> None:
        self._rounds += 1
        is_short = stop is not None and stop - start <= SHORT
        patience_s = FIRST_BYTE_S if is_short else FIRST_BYTE_LONG_S
        if is_short and self._rounds > 1:
            patience_s = min(patience_s, max(self._left_s() - FOR_ORIGIN_S, STILL_LEAST_S))
        ensure = await self._context.door.ensure(
            self._ref,
            start,
            stop,
            authorization=self._credential,
            priority=self.priority,
            patience_s=patience_s,
        )
        if self.size is not None and ensure.size != self.size:
            ensure.close()
            raise LengthMismatch("the blob's size has changed")
        self._ensure = ensure
        if self.size is None:
            self.size, self.source, self.public = ensure.size, ensure.source, ensure.public

    async def _go_direct(self, start: int, stop: int | None, why: PeerUnavailable) -> None:
        """Open the origin at `start`; one of few such reads. Raises the origin's errors."""
        reason = "full" if isinstance(why, PeerPassesThrough) else "peer"
        self._context.metrics.direct.labels(reason).inc()
        log.info("read_direct upstream=%s reason=%s", self._ref.upstream, why)
        self._drop_ensure()
        upstream = self._ref.upstream
        await self._stack.enter_async_context(self._context.direct_slot(upstream, DIRECT_SLOT_S))
        origin = self._context.origin(upstream)
        opening = self._stack.enter_async_context(
            origin.fetch_blob(self._ref, start, stop, authorization=self._credential)
        )
        try:
            stream = await asyncio.wait_for(opening, DIRECT_S)
        except asyncio.TimeoutError:
            raise OriginTimeout("the origin did not begin in time") from None
        if self.size is not None and stream.size != self.size:
            raise LengthMismatch("the blob's size has changed")
        if self.size is None:
            self.size, self.source = stream.size, "origin"
            self.public, self.proven = stream.anonymous, True
        stream.still_s = min(stream.still_s, max(self._left_s(), STILL_LEAST_S))
        self._chunks = stream.chunks()

    async def send(self, connection: Connection, lead: bytes, start: int, stop: int) -> None:
        """Send `lead` (headers), then the bytes. The first call is for what `open` opened."""
        if start != self._at:
            # The next span of a multi-range read.
            self._drop_ensure()
            await self._end_direct()
            self._rounds = 0
            self._moved()
        self._at, self._lead = start, lead
        while self._at < stop or self._lead:
            verified = min(self._verified_to(self._at), stop)
            reach = self._sendable(verified, stop)
            if self._chunks is not None and self._at < stop:
                # Before the store: the origin's answer goes on where it stands.
                await self._from_origin_or_store(connection, stop)
            elif reach > self._at or start == stop:
                await self._from_store(connection, reach)
            elif verified == stop:
                await self._until_whole()
            else:
                await self._wait_in_time(stop)

    def _sendable(self, verified: int, stop: int) -> int:
        """Up to where verified bytes may go out now."""
        if not self.is_whole or verified <= stop - HELD_BACK:
            return verified
        assert self._view is not None or verified == self._at
        if self._is_proven or (self._view is not None and self._view.is_whole):
            return verified
        return max(self._at, stop - HELD_BACK)

    async def _until_whole(self) -> None:
        """All is here; wait until it is known to be what its name says. Raises DigestMismatch."""
        view = self._view
        assert view is not None
        loop = asyncio.get_running_loop()
        patience_s = OWN_HASH_S if self._context.door.is_up else 0.0
        ends_at, pause_s = loop.time() + patience_s, 0.001
        while not view.is_whole and not view.is_dead and loop.time() < ends_at:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.02)
        if not view.is_whole and not view.is_dead:
            # No peer, or one that has its hands full. What came from the origin was hashed on its
            # way, and need not be in the store.
            start, self._hashed_to = self._hashed_to, view.size
            if not view.covers(start, view.size):
                raise PeerUnavailable("what was sent cannot be checked any more")
            found = await asyncio.to_thread(view.hash_into, self._hasher, start, view.size)
            if found != self._ref.digest.hex:
                raise DigestMismatch("blob", str(self._ref.digest), found)
            self._is_proven = True

    async def _from_origin_or_store(self, connection: Connection, stop: int) -> None:
        """Send from the origin; when it breaks off, by now the peer may have it."""
        try:
            await self._from_origin(connection, stop)
        except OriginTimeout:
            await self._end_direct()
            if self._verified_to(self._at) == self._at:
                raise  # silent for long, over several connections, and nobody else has it
        except OriginUnavailable:
            self._n_broken += 1
            if self._n_broken >= BROKEN_MAX or self._rounds >= ROUNDS_MAX:
                raise
            await self._end_direct()

    async def _wait_in_time(self, stop: int) -> None:
        """`_wait`, unless the client has waited for too long already."""
        try:
            await asyncio.wait_for(self._wait_unless_limited(stop), self._left_s())
        except asyncio.TimeoutError:
            raise OriginTimeout(f"no byte came for {self._still_s:g} s") from None

    async def _from_store(self, connection: Connection, stop: int) -> None:
        lead, self._lead = self._lead, b""
        count = stop - self._at
        if count <= 0:
            await connection.write(lead)
            return
        assert self._view is not None
        await connection.send_file(lead, PinnedFile(self._view.fd), self._at, count)
        self._at = stop
        self._moved()
        self._context.metrics.bytes.labels(self.source).inc(count)

    async def _write(self, connection: Connection, data: bytes) -> None:
        lead, self._lead = self._lead, b""
        await connection.write(lead + data)
        self._at += len(data)
        self._moved()
        self._context.metrics.bytes.labels("origin").inc(len(data))

    async def _from_origin(self, connection: Connection, stop: int) -> None:
        """Send from the origin up to `stop`, or to where the store can take over."""
        assert self._chunks is not None
        if self._is_far_here(stop):
            await self._end_direct()
            return
        # Nothing else vouches for bytes of the origin. Of a part of a blob nothing does.
        is_checked = self.is_whole or (self._at == 0 and stop == self.size)
        if is_checked:
            await self._hash_what_was_sent()
        held = b""
        async for chunk in self._chunks:
            if self._at + len(held) + len(chunk) > stop:
                raise LengthMismatch("the origin sent more than was asked for")
            # One chunk is held back: the last one goes out only when the digest is right.
            if held:
                if is_checked:
                    self._hash(held)
                await self._write(connection, held)
            held = chunk
            if self._is_far_here(stop):
                await self._end_direct()
                return
        if self._at + len(held) < stop:
            raise LengthMismatch("the origin ended too early")
        if is_checked:
            self._hash(held)
            found = self._hasher.hexdigest()
            if found != self._ref.digest.hex:
                log.error("origin_wrong_bytes upstream=%s", self._ref.upstream)
                raise DigestMismatch("blob", str(self._ref.digest), found)
        await self._write(connection, held)
        await self._end_direct()

    def _is_far_here(self, stop: int) -> bool:
        """So much of the rest is in the store that the origin is not needed for now."""
        reach = self._verified_to(self._at)
        return reach >= stop or reach - self._at >= HOP_BACK

    def _hash(self, data: bytes) -> None:
        """The bytes that the client gets next."""
        assert self._hashed_to == self._at
        self._hasher.update(data)
        self._hashed_to += len(data)

    async def _hash_what_was_sent(self) -> None:
        """What the client got from the store was not hashed here."""
        if self._hashed_to < self._at:
            view = self._view
            if view is None or not view.covers(self._hashed_to, self._at):
                raise PeerUnavailable("what was sent cannot be checked any more")
            start, self._hashed_to = self._hashed_to, self._at
            await asyncio.to_thread(view.hash_into, self._hasher, start, self._at)

    async def _wait_unless_limited(self, stop: int) -> None:
        """`_wait`; a client that has a part of its body is not sent away by the origin's 429."""
        was_begun = not self._lead
        try:
            await self._wait(stop)
        except OriginRefused as refused:
            if refused.status != TOO_MANY_REQUESTS or not was_begun:
                raise
            await self._end_direct()
            self._rounds = 0  # nobody died by our questions
            await asyncio.sleep(LIMITED_PAUSE_S)

    async def _wait(self, stop: int) -> None:
        """Until there is something to send, or a new way to get it."""
        sent = not self._lead
        try:
            await self._progress(stop)
        except PeerUnavailable as error:
            self._drop_ensure()
            if not isinstance(error, PeerPassesThrough | PeerStalled) and self._rounds < ROUNDS_MAX:
                # It died on us: another one takes its place within seconds.
                try:
                    await self._ask_peer(self._at, stop)
                except PeerUnavailable as again:
                    error = again
                else:
                    return
            await self._go_direct(self._at, stop, error)
        except (NoSpace, OriginRefused, OriginTimeout) as error:
            if not sent:
                raise
            # Too late to tell the client. Perhaps its own credentials do.
            await self._go_direct(self._at, stop, PeerUnavailable(str(error)))

    async def _progress(self, stop: int) -> None:
        ensure = self._ensure
        if ensure is not None and not ensure.done and ensure.upto <= self._at:
            await self._more(ensure, stop)
        elif ensure is not None and ensure.upto > self._at and not self._is_blind:
            # Said to be there and not seen: look at the store again, once.
            self._is_blind = True
        else:
            self._drop_ensure()
            self._is_blind = False
            if self._rounds >= ROUNDS_MAX:
                raise PeerStalled("the peer was asked often enough")
            await self._ask_peer(self._at, stop)
        self._refresh_view()

    async def _more(self, ensure: Ensure, stop: int) -> None:
        # Who reads a little at a time (nydusd) gives up after 5 s; who pulls a layer waits for
        # minutes, and going to a slow origin too would make it slower for everybody.
        look_s = self._context.config.gateway.limits.peer_wait.total_seconds()
        patience_s = look_s if stop - self._at <= SHORT else STALL_LONG_S
        waited_s = 0.0
        while not await ensure.more(look_s):
            waited_s += look_s
            if waited_s >= patience_s or not await self._context.door.is_alive():
                raise PeerStalled("the peer makes no progress")

    def _verified_to(self, position: int) -> int:
        if self._view is not None and self._view.is_dead and not self._lead:
            # Another copy may be right; what went out from this one was not, or may not have been.
            raise DigestMismatch("blob", str(self._ref.digest), "the cluster's copy was destroyed")
        if self._view is None or self._view.is_dead:
            self._refresh_view()
        return position if self._view is None else self._view.verified_to(position)

    def _refresh_view(self) -> None:
        if self._view is not None:
            self._view.close()
        self._view = self._context.reader.view(self._ref.key)
        if self._view is not None and self._view.size != self.size and self.size is not None:
            self._view.close()
            self._view = None

    def _drop_ensure(self) -> None:
        if self._ensure is not None:
            self._ensure.close()
            self._ensure = None

    async def _end_direct(self) -> None:
        self._chunks = None
        await self._stack.aclose()

    async def close(self) -> None:
        """Take back all questions, close all files."""
        self._drop_ensure()
        if self._view is not None:
            self._view.close()
            self._view = None
        await self._end_direct()
