"""The client of one upstream registry.

What comes back is either the origin's answer, or one of four errors: `OriginRefused` (its own 4xx,
to be passed on), `OriginUnavailable`, `OriginTimeout`, `OriginNonsense`. Redirects are followed by
hand, credentials stay with the host that they are for, and no signed URL appears in any text.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from passel._version import __version__
from passel.config.sections import UpstreamConfig
from passel.errors import (
    OriginNonsense,
    OriginRefused,
    OriginTimeout,
    OriginUnavailable,
    PasselError,
)
from passel.ids import BlobRef
from passel.oci.challenge import parse_challenges
from passel.oci.ranges import parse_content_range
from passel.transport.origin_auth import TOKEN_BYTES_MAX, OriginAuth
from passel.transport.origin_net import ForbiddenAddress, VettingResolver, check_url, tls_of

CONNECT_S: Final = 5.0
READ_S: Final = 30.0
OPEN_S: Final = 30.0
TRIES_MAX: Final = 3
#: How long each of these tries waits for the head of an answer. A connection that a router forgot
#: costs the first of them, and not `OPEN_S`; an origin that is slow to begin gets longer each time.
ANSWERS_S: Final = (5.0, 10.0, OPEN_S)
REDIRECTS_MAX: Final = 5
HEADER_BYTES_MAX: Final = 65536
ERROR_BODY_MAX: Final = 65536
RETRY_AFTER_MAX_S: Final = 120.0
#: How often a stream may be resumed without having moved on since.
RESUMES_MAX: Final = 3
#: A body that is silent for so long is asked for again on another connection, from the very byte
#: on: the first time, the second, and then. A connection that a router forgot is mended before
#: nydusd, which waits for 5 s, gives up; and an origin that pauses gets longer each time.
STALLS_S: Final = (2.0, 3.0, 5.0)
#: A stream that got nothing for so long, over all connections, is given up.
STILL_S: Final = 10.0
IGNORES_RANGES_S: Final = 3600.0
_REDIRECTS = (301, 302, 303, 307, 308)
#: What clients may see of a refusal.
_PASSED_ON = ("www-authenticate", "retry-after", "content-type", "docker-ratelimit-source")


class _Again(Exception):
    """The try failed in a way that another one may mend."""

    def __init__(self, error: PasselError, after_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.after_s = after_s


@dataclass(frozen=True, slots=True)
class BlobStat:
    """A blob as its origin sees it. `anonymous`: it was shown to nobody in particular."""

    size: int
    anonymous: bool


class OriginAnswer:
    """A 2xx or 304 of the origin. The body is read once, in chunks."""

    def __init__(self, response: aiohttp.ClientResponse, anonymous: bool) -> None:
        self._response = response
        self.status = response.status
        self.headers: CIMultiDictProxy[str] = response.headers
        self.anonymous = anonymous

    async def iter_chunks(self, silence_s: float = STILL_S) -> AsyncIterator[bytes]:
        """The body as it comes; chunks that the caller is busy with count for nobody's silence.

        A body that ends early raises OriginUnavailable, one that is silent for `silence_s`
        OriginTimeout.
        """
        content = self._response.content
        watch = _SilenceWatch(content, silence_s)
        try:
            while True:
                watch.begin()
                chunk = await content.readany()
                watch.end()
                if not chunk:
                    return
                yield chunk
        except asyncio.TimeoutError as error:
            raise OriginTimeout("the origin stopped in the middle of an answer") from error
        except aiohttp.ClientError as error:
            # The break overtakes what came before it and was not read yet.
            content.set_exception(None)  # type: ignore[arg-type]
            if rest := content.read_nowait():
                yield rest
            raise OriginUnavailable("the origin broke off in the middle of an answer") from error
        finally:
            watch.close()

    def close(self) -> None:
        """Drop the connection unless the body was read to its end."""
        if not self._response.content.at_eof():
            self._response.close()
        else:
            self._response.release()


class _SilenceWatch:
    """Ends a wait for a body that is too long.

    One timer for the whole body, which looks at the clock when it goes off: one per chunk, or a
    task per chunk as `asyncio.wait_for` makes it, costs more than receiving the chunk.
    """

    def __init__(self, content: aiohttp.StreamReader, silence_s: float) -> None:
        self._content = content
        self._silence_s = silence_s
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        self._timer = self._loop.call_later(silence_s, self._look)

    def begin(self) -> None:
        self._since = self._loop.time()

    def end(self) -> None:
        self._since = None

    def _look(self) -> None:
        left_s = self._silence_s
        if self._since is not None:
            left_s += self._since - self._loop.time()
            if left_s <= 0:
                self._content.set_exception(asyncio.TimeoutError())
                return
        self._timer = self._loop.call_later(left_s, self._look)

    def close(self) -> None:
        self._timer.cancel()


class OriginClient:
    """Asks one upstream. Belongs to one event loop; `close` ends its connections."""

    def __init__(
        self,
        key: str,
        upstream: UpstreamConfig,
        *,
        cluster: str,
        rng: random.Random | None = None,
        backoff_s: float = 0.2,
    ) -> None:
        self._key = key
        self._upstream = upstream
        self._api = URL(upstream.api)
        self._via = f"1.1 {cluster}"
        self._rng = rng or random.Random()
        self._backoff_s = backoff_s
        self._session: aiohttp.ClientSession | None = None
        self._auth = OriginAuth(key, upstream, self._ask_token)
        self._gate: tuple[float, OriginRefused] | None = None
        self._ignores_ranges_until = 0.0

    async def close(self) -> None:
        """End all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    # --- the interface --------------------------------------------------------------------------

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        authorization: str | None,
        deadline_s: float = OPEN_S,
    ) -> AsyncIterator[OriginAnswer]:
        """GET or HEAD `path` (with query). `deadline_s` is for the head of the answer."""
        answer = await self.ask(method, path, headers, authorization, deadline_s)
        try:
            yield answer
        finally:
            answer.close()

    async def stat_blob(
        self, ref: BlobRef, *, authorization: str | None, deadline_s: float = OPEN_S
    ) -> BlobStat:
        """HEAD a blob; where the origin gives no length on HEAD, its first byte tells the size."""
        path = _blob_path(ref)
        async with self.open(
            "HEAD", path, headers={}, authorization=authorization, deadline_s=deadline_s
        ) as answer:
            length = answer.headers.get("Content-Length", "")
            if length.isdecimal():
                return BlobStat(int(length), answer.anonymous)
        async with self.fetch_blob(ref, 0, 1, authorization=authorization) as stream:
            return BlobStat(stream.size, stream.anonymous)

    async def ping(self, authorization: str | None, deadline_s: float) -> None:
        """GET /v2/ once, and answer no challenge: it is the challenge that is asked for.

        Raises OriginRefused with it. With a token for nothing many registries have none.
        """
        try:
            credential = self._auth.credential(authorization)
            following = self._follow("GET", "/v2/", {}, credential)
            response = await asyncio.wait_for(following, deadline_s)
            (await self._judge(response, anonymous=credential is None)).close()
        except asyncio.TimeoutError as error:
            raise OriginTimeout(f"upstream {self._key} did not answer a ping") from error
        except _Again as again:
            raise again.error from again

    @asynccontextmanager
    async def fetch_blob(
        self, ref: BlobRef, start: int, stop: int | None, *, authorization: str | None
    ) -> AsyncIterator[BlobStream]:
        """The bytes (start, stop) of a blob, clamped to its end; stop None is its end.

        The stream's head is here when this is entered: `size` is known.
        """
        stream = BlobStream(self, ref, start, stop, authorization)
        await stream.begin()
        try:
            yield stream
        finally:
            stream.close()

    # --- one question, several tries ------------------------------------------------------------

    async def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        authorization: str | None,
        deadline_s: float,
    ) -> OriginAnswer:
        """The origin's answer, which the caller closes. Most want `open` instead."""
        ends_at = time.monotonic() + deadline_s
        attempt = 0
        while True:
            attempt += 1
            left_s = ends_at - time.monotonic()
            patience_s = max(min(left_s, ANSWERS_S[attempt - 1]), 0.001)
            try:
                return await asyncio.wait_for(
                    self._try(method, path, headers, authorization), patience_s
                )
            except asyncio.TimeoutError as error:
                if attempt >= TRIES_MAX or left_s <= patience_s:
                    raise OriginTimeout(
                        f"upstream {self._key} did not answer within {deadline_s:g} s"
                    ) from error
            except _Again as again:
                pause_s = again.after_s
                if pause_s is None:
                    pause_s = self.backoff_s(attempt - 1)
                if attempt >= TRIES_MAX or time.monotonic() + pause_s >= ends_at:
                    raise again.error from again.__cause__
                await asyncio.sleep(pause_s)

    def backoff_s(self, n_before: int) -> float:
        """How long to wait before asking again, after so many waits in a row."""
        return self._backoff_s * float(2**n_before) * (0.5 + self._rng.random())

    async def _try(
        self, method: str, path: str, headers: Mapping[str, str], authorization: str | None
    ) -> OriginAnswer:
        self._check_gate()
        repository = _repository(path)
        credential = self._auth.credential(authorization)
        sent = self._auth.kept(repository, credential) or credential
        response = await self._follow(method, path, headers, sent)
        if response.status == 401:
            challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
            answer = await self._auth.answer(challenges, repository, credential)
            if answer is not None and answer != sent:
                response.close()
                response = await self._follow(method, path, headers, answer)
        return await self._judge(response, anonymous=credential is None)

    async def _judge(self, response: aiohttp.ClientResponse, anonymous: bool) -> OriginAnswer:
        status = response.status
        if 200 <= status < 300 or status == 304:
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding.lower() != "identity":
                response.close()
                raise OriginNonsense(f"upstream {self._key} sent {encoding[:20]}-encoded bytes")
            return OriginAnswer(response, anonymous)
        if status == 408 or (status >= 500 and status != 501):
            after_s = _retry_after_s(response)
            response.close()
            text = f"upstream {self._key} answers {status}"
            raise _Again(OriginUnavailable(text, after_s), after_s)
        if 400 <= status < 500:
            refused = await self._refusal(response)
            if status == 429:
                self._shut_gate(refused, _retry_after_s(response))
            raise refused
        response.close()
        raise OriginNonsense(f"upstream {self._key} answers {status}")

    async def _refusal(self, response: aiohttp.ClientResponse) -> OriginRefused:
        headers = {
            name: value
            for name, value in response.headers.items()
            if name.lower() in _PASSED_ON or name.lower().startswith("ratelimit-")
        }
        try:
            body = await asyncio.wait_for(response.content.read(ERROR_BODY_MAX), READ_S)
        except (aiohttp.ClientError, asyncio.TimeoutError):
            body = b""
        response.close()
        return OriginRefused(response.status, headers, body)

    def _check_gate(self) -> None:
        """An origin that said 429 is left alone until its time is over; all get its answer."""
        if self._gate is None:
            return
        until, refused = self._gate
        if time.monotonic() < until:
            raise OriginRefused(refused.status, refused.headers, refused.body)
        self._gate = None

    def _shut_gate(self, refused: OriginRefused, after_s: float | None) -> None:
        pause_s = min(after_s if after_s is not None else 1.0, RETRY_AFTER_MAX_S)
        self._gate = (time.monotonic() + pause_s, refused)

    # --- one request, several hops --------------------------------------------------------------

    async def _follow(
        self, method: str, path: str, headers: Mapping[str, str], authorization: str | None
    ) -> aiohttp.ClientResponse:
        url = self._api.join(URL(path, encoded=True))
        for _ in range(REDIRECTS_MAX + 1):
            fields = {"Accept-Encoding": "identity", "Via": self._via, **headers}
            if authorization is not None and url.origin() == self._api.origin():
                fields["Authorization"] = authorization
            response = await self._send(method, url, fields)
            if response.status not in _REDIRECTS:
                return response
            location = response.headers.get("Location", "")
            response.close()
            if not location:
                raise OriginNonsense(f"upstream {self._key} redirects to nowhere")
            try:
                following = url.join(URL(location, encoded=True))
            except ValueError as error:
                raise OriginNonsense(f"upstream {self._key} redirects to no URL") from error
            if url.scheme == "https" and following.scheme != "https":
                raise OriginNonsense(f"upstream {self._key} redirects from https to http")
            url = following
        raise OriginNonsense(f"upstream {self._key} redirects more than {REDIRECTS_MAX} times")

    async def _send(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        form: Mapping[str, str] | None = None,
    ) -> aiohttp.ClientResponse:
        check_url(url, self._upstream.networks, self._key)
        try:
            return await self._pool().request(
                method, url, headers=headers, data=form, allow_redirects=False
            )
        except aiohttp.ClientConnectorCertificateError as error:
            raise OriginUnavailable(
                f"the TLS certificate of upstream {self._key} is not trusted: set"
                f" upstreams.{self._key}.ca to the file of its certificate authority"
            ) from error
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, ForbiddenAddress):
                raise OriginNonsense(
                    f"upstream {self._key} leads to an address outside the allowed networks; if"
                    f" that is right, list its network under upstreams.{self._key}.networks"
                ) from error
            # The text of aiohttp's errors has the URL's host only; its query may be a signature.
            text = f"upstream {self._key} cannot be reached ({type(error.os_error).__name__})"
            raise _Again(OriginUnavailable(text)) from error
        except asyncio.TimeoutError as error:
            raise _Again(OriginTimeout(f"upstream {self._key} said nothing in time")) from error
        except aiohttp.ClientConnectionError as error:
            raise _Again(OriginUnavailable(f"upstream {self._key} broke off")) from error
        except (aiohttp.ClientError, ssl.SSLError, ValueError) as error:
            raise OriginNonsense(
                f"upstream {self._key} sent something that is not HTTP ({type(error).__name__})"
            ) from None

    async def _ask_token(
        self, url: URL, headers: dict[str, str], form: dict[str, str] | None
    ) -> tuple[int, bytes]:
        try:
            response = await self._send("GET" if form is None else "POST", url, headers, form)
        except _Again as again:
            raise again.error from again
        try:
            return response.status, await response.content.read(TOKEN_BYTES_MAX)
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            text = f"the token server of upstream {self._key} broke off"
            raise OriginUnavailable(text) from error
        finally:
            response.close()

    def _pool(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=self._upstream.connections,
                resolver=VettingResolver(self._upstream.networks),
                ssl=tls_of(self._key, self._upstream),
                ttl_dns_cache=30,
                keepalive_timeout=15.0,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=CONNECT_S, sock_read=READ_S, connect=READ_S
                ),
                auto_decompress=False,
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": f"passel/{__version__}"},
                max_line_size=HEADER_BYTES_MAX,
                max_field_size=HEADER_BYTES_MAX,
                # Whole pieces come in a few reads instead of hundreds.
                read_bufsize=1 << 20,
            )
        return self._session

    def ignores_ranges(self) -> bool:
        """Whether this origin answered a ranged request with the whole body lately."""
        return time.monotonic() < self._ignores_ranges_until

    def note_ignored_range(self) -> None:
        self._ignores_ranges_until = time.monotonic() + IGNORES_RANGES_S


class BlobStream:
    """A run of a blob's bytes from its origin; resumed by range when the origin breaks off."""

    def __init__(
        self,
        client: OriginClient,
        ref: BlobRef,
        start: int,
        stop: int | None,
        authorization: str | None,
    ) -> None:
        self._client = client
        self._ref = ref
        self._authorization = authorization
        self._answer: OriginAnswer | None = None
        self._skip = 0
        self._wanted_stop = stop
        self._stop = -1
        self.start = start
        #: For how long the origin may send nothing before `chunks` gives up, in seconds.
        self.still_s = STILL_S
        #: Total size of the blob.
        self.size = -1
        self.anonymous = False

    @property
    def stop(self) -> int:
        """Where this run ends: as asked, or the end of the blob."""
        return self._stop

    async def begin(self) -> None:
        """Ask for the bytes; `size` is known afterwards."""
        await self._open(self.start, OPEN_S)

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    async def _open(self, at: int, deadline_s: float) -> None:
        last = "" if self._wanted_stop is None else str(self._wanted_stop - 1)
        headers = {"Range": f"bytes={at}-{last}"}
        try:
            answer = await self._client.ask(
                "GET", _blob_path(self._ref), headers, self._authorization, deadline_s
            )
        except OriginRefused as refused:
            if refused.status == 416:
                raise OriginNonsense(
                    f"the origin says that byte {at} is beyond the end of {self._ref.digest}"
                ) from refused
            raise
        self._answer = answer
        try:
            size = self._check(answer, at)
        except (OriginNonsense, ValueError) as error:
            self.close()
            raise OriginNonsense(f"the origin's range of {self._ref.digest} is wrong") from error
        if self.size not in (-1, size):
            self.close()
            raise OriginNonsense(f"the origin changed the size of {self._ref.digest}")
        self.size = size
        self._stop = size if self._wanted_stop is None else min(self._wanted_stop, size)
        self.anonymous = answer.anonymous

    def _check(self, answer: OriginAnswer, at: int) -> int:
        """The blob's size; the answer's body begins at `at` once `_skip` bytes are thrown away."""
        length = answer.headers.get("Content-Length", "")
        if answer.status == 206:
            start, stop, size = parse_content_range(answer.headers.get("Content-Range", ""))
            if size is None or start != at:
                raise OriginNonsense("another range than was asked for")
            wanted = size if self._wanted_stop is None else min(self._wanted_stop, size)
            if stop != wanted or (length.isdecimal() and int(length) != stop - start):
                raise OriginNonsense("another range than was asked for")
            self._skip = 0
            return size
        if answer.status != 200 or not length.isdecimal():
            raise OriginNonsense("neither a range nor the whole blob")
        self._client.note_ignored_range()
        self._skip = at
        return int(length)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes, in order, none twice, none left out; raises if they cannot be had.

        An origin that breaks off or falls silent is asked again, from the very byte on; after an
        answer that brought nothing at all not at once.
        """
        now = asyncio.get_running_loop().time
        at = self.start
        resumes = 0
        moved_at = now()
        while True:
            # What is left of the time, and a little of it however late it is: the answer to what
            # was just asked may be on its way.
            left_s = max(moved_at + self.still_s - now(), 0.05)
            try:
                if self._answer is None:
                    await self._open(at, left_s)
                assert self._answer is not None
                silence_s = min(STALLS_S[min(resumes, len(STALLS_S) - 1)], left_s)
                async for chunk in self._answer.iter_chunks(silence_s):
                    piece = self._cut(chunk, at)
                    if piece:
                        at += len(piece)
                        resumes = 0
                        yield piece
                    moved_at = now()
                    if at >= self._stop:
                        break
                if at >= self._stop:
                    return
                raise OriginUnavailable("the origin's answer ended early")
            except (OriginUnavailable, OriginTimeout):
                self.close()
                resumes += 1
                if resumes > RESUMES_MAX or now() - moved_at >= self.still_s:
                    raise
                if resumes > 1:
                    await asyncio.sleep(self._client.backoff_s(resumes))

    def _cut(self, chunk: bytes, at: int) -> bytes:
        """The part of a chunk that is wanted."""
        if self._skip:
            skipped = min(self._skip, len(chunk))
            self._skip -= skipped
            chunk = chunk[skipped:]
        if at + len(chunk) > self._stop:
            chunk = chunk[: self._stop - at]
        return chunk


def _blob_path(ref: BlobRef) -> str:
    return f"/v2/{ref.repository}/blobs/{ref.digest}"


def _repository(path: str) -> str:
    """The repository of a path of the distribution API, "" for the ping."""
    bare = path.partition("?")[0].removeprefix("/v2/")
    for kind in ("/blobs/", "/manifests/", "/referrers/", "/tags/list"):
        head, found, _ = bare.rpartition(kind)
        if found:
            return head
    return ""


def _retry_after_s(response: aiohttp.ClientResponse) -> float | None:
    """Source: RFC 9110 10.2.3; seconds or a date, at most two minutes."""
    text = response.headers.get("Retry-After")
    if text is None:
        return None
    if text.strip().isdecimal():
        return min(float(text), RETRY_AFTER_MAX_S)
    try:
        at = parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError):
        return None
    return min(max(at - time.time(), 0.0), RETRY_AFTER_MAX_S)
