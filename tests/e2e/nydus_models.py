"""nydusd of the generations that no package offers, as models that speak their exact requests.

A model reads one blob as nydusd reads it: the tail first, then readers at random chunks and
prefetchers that go upwards, twelve at a time, headers in nydusd's order and case, its retries, its
token requests, its way of leaving a mirror or a proxy. Generation A is the real program, see
`clients`. Source: storage/src/backend/{registry,connection,mod}.rs of nydus 2.2.5, 2.3.4, 2.4.4.
"""

from __future__ import annotations

import base64
import http.client
import json
import random
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

TIMEOUT_S = 5.0
CHUNK = 100_003  # compressed chunks are aligned to nothing
STEP = 128 * 1024
TAIL = 4616


class ReadFailed(Exception):
    """What would end in EIO."""


class CallFailed(Exception):
    """An error inside `call`: of the transport, or of a status that is to be caught."""


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


@dataclass
class Model:
    """What is common: URLs, authorization, reads. `call` is each generation's own."""

    registry: str
    repository: str
    #: base64(user:password), as in the configuration.
    auth: str | None = None
    #: (method, URL that was asked, headers) of every request, and its status.
    log: list[tuple[str, str, dict[str, str], int]] = field(default_factory=list)
    _cached: str | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _local: threading.local = field(default_factory=threading.local)
    #: Of all threads: each has its own pool.
    _connections: list[http.client.HTTPConnection] = field(default_factory=list)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    # --- the wire -------------------------------------------------------------------------------

    def send(
        self, method: str, url: str, headers: dict[str, str], form: str | None, proxy: str | None
    ) -> Answer:
        """One request as reqwest and hyper write it; no redirect is followed."""
        parts = urllib.parse.urlsplit(url)
        place = urllib.parse.urlsplit(proxy).netloc if proxy else parts.netloc
        target = url if proxy else urllib.parse.urlunsplit(("", "", *parts[2:]))
        pool: dict[str, http.client.HTTPConnection] = self._local.__dict__
        connection = pool.get(place)
        if connection is None:
            connection = pool[place] = http.client.HTTPConnection(place, timeout=TIMEOUT_S)
            self._connections.append(connection)
        body = (form or "").encode()
        lines = {**headers, "content-length": str(len(body)), "accept": "*/*", "host": parts.netloc}
        try:
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in lines.items():
                connection.putheader(name, value)
            connection.endheaders(body or None)
            got = connection.getresponse()
            answer = Answer(got.status, got.headers, got.read())
        except (OSError, http.client.HTTPException) as error:
            pool.pop(place).close()
            raise CallFailed(f"{method} {place}: {type(error).__name__}: {error}") from error
        if answer.headers.get("Connection", "").lower() == "close":
            pool.pop(place).close()
        with self._lock:
            self.log.append((method, f"{place} {target}", headers, answer.status))
        return answer

    def call(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        form: str | None = None,
        *,
        catch: bool = False,
        is_token: bool = False,
        is_last: bool = False,
    ) -> Answer:
        raise NotImplementedError

    def direct(
        self, method: str, url: str, headers: dict[str, str], form: str | None, catch: bool
    ) -> Answer:
        return caught(self.send(method, url, headers, form, None), catch)

    # --- authorization (REG request) ------------------------------------------------------------

    def request(self, method: str, url: str, headers: dict[str, str], is_last: bool) -> Answer:
        """Nothing is sent before it is asked for; what worked is kept for all later requests."""
        headers = dict(headers)
        if self._cached is not None:
            headers["authorization"] = self._cached
        answer = self.call(method, url, headers, is_last=is_last)
        if answer.status != 401:
            return answer
        if headers.pop("authorization", None) is not None:
            answer = self.call(method, url, headers, is_last=is_last)
        challenge = parse_auth(answer.headers.get("WWW-Authenticate", ""))
        if challenge is None:
            return answer
        scheme, words = challenge
        if scheme == "Basic":
            if self.auth is None:
                raise CallFailed("401, and no auth is configured")
            fresh = f"Basic {self.auth}"
        else:
            fresh = f"Bearer {self.token(words)}"
        answer = self.call(method, url, {**headers, "authorization": fresh}, is_last=is_last)
        if answer.status < 400:
            self._cached = fresh
        return answer

    def token(self, words: dict[str, str]) -> str:
        """POST with a form, and if that fails GET with the same in the query."""
        fields = {"service": words["service"], "scope": words["scope"], **self.token_fields()}
        fields["client_id"] = "nydus-registry-client"
        text = urllib.parse.urlencode(fields)
        basic = {"authorization": f"Basic {self.auth}"} if self.auth else {}
        form = {"content-type": "application/x-www-form-urlencoded"}
        realm = words["realm"]
        try:
            headers = {**form, **(basic if self.post_with_basic else {})}
            answer = self.call("POST", realm, headers, text, catch=True, is_token=True)
        except CallFailed:
            answer = self.call("GET", f"{realm}?{text}", basic, catch=True, is_token=True)
        try:
            said = json.loads(answer.body)
            return str(said.get("token") or said["access_token"])
        except (ValueError, KeyError) as error:
            raise CallFailed("token: Invalid argument (os error 22)") from error

    post_with_basic = True

    def token_fields(self) -> dict[str, str]:
        return {}

    # --- reads (MOD read, REG try_read) ---------------------------------------------------------

    def url(self, digest: str) -> str:
        return f"{self.registry}/v2/{self.repository}/blobs/{digest}"

    def read(self, digest: str, start: int, length: int, *, prefetch: bool = False) -> bytes:
        """One range; ReadFailed when it would be EIO."""
        trouble = ""
        for is_last, pause_s in self.tries(prefetch):
            time.sleep(pause_s)
            headers = {"range": f"bytes={start}-{start + length - 1}", **self.marks(prefetch)}
            try:
                answer = self.request("GET", self.url(digest), headers, is_last)
            except CallFailed as error:
                trouble = str(error)
                continue
            if answer.status >= 400:
                trouble = f"{answer.status} {answer.body[:300]!r}"
                continue
            if answer.status in (301, 302, 303, 307, 308):
                raise ReadFailed(f"a redirect was handed out: {answer.status}")
            if len(answer.body) != length:
                raise ReadFailed(f"request for {length} bytes but got {len(answer.body)} bytes")
            return answer.body
        raise ReadFailed(trouble)

    def tries(self, prefetch: bool) -> list[tuple[bool, float]]:
        """(is it the last one, seconds before it): retry_limit 2 of the snapshotter's file."""
        return [(False, 0.0), (False, 0.5), (True, 1.0)]

    def marks(self, prefetch: bool) -> dict[str, str]:
        return {}


@dataclass
class GenerationB(Model):
    """2.2.3 to 2.3.4: the mirror sees everything, also requests for tokens."""

    mirror: str = ""
    mirror_headers: dict[str, str] = field(default_factory=dict)
    failed: int = 0
    failure_limit: int = 5
    post_with_basic = False

    def token_fields(self) -> dict[str, str]:
        user, _, password = base64.b64decode(self.auth or "").decode().partition(":")
        # As it is spelt in 2.2.3 to 2.2.5.
        return {"grant_type": "password", "username": user, "passward": password}

    def call(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        form: str | None = None,
        *,
        catch: bool = False,
        is_token: bool = False,
        is_last: bool = False,
    ) -> Answer:
        if self.failed < self.failure_limit:
            parts = urllib.parse.urlsplit(url)
            place = urllib.parse.urlsplit(self.mirror)
            rewritten = urllib.parse.urlunsplit((place.scheme, place.netloc, *parts[2:]))
            try:
                both = {**headers, **self.mirror_headers}
                answer = caught(self.send(method, rewritten, both, form, None), catch)
                if answer.status < 500:
                    return answer
            except CallFailed:
                with self._lock:
                    self.failed += 1
        return self.direct(method, url, headers, form, catch)


@dataclass
class GenerationC(Model):
    """2.3.5 to 2.4.2: no mirrors any more, an HTTP proxy that it leaves when that fails."""

    proxy: str = ""
    fallback: bool = True

    def call(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        form: str | None = None,
        *,
        catch: bool = False,
        is_token: bool = False,
        is_last: bool = False,
    ) -> Answer:
        if self.proxy and not self.bypasses(is_token):
            try:
                answer = caught(self.send(method, url, headers, form, self.proxy), catch)
                if answer.status < 500 or not self.fallback:
                    return answer
            except CallFailed:
                if not self.fallback:
                    raise
        return self.direct(method, url, headers, form, catch)

    def bypasses(self, is_token: bool) -> bool:
        return False


@dataclass
class GenerationD(GenerationC):
    """2.4.3 and later: it tells Dragonfly what it wants, and retries in its own way."""

    def send(
        self, method: str, url: str, headers: dict[str, str], form: str | None, proxy: str | None
    ) -> Answer:
        return super().send(method, url, {"user-agent": "nydusd/1.0.0", **headers}, form, proxy)

    def request(self, method: str, url: str, headers: dict[str, str], is_last: bool) -> Answer:
        if is_last:
            # "Via source" is the same proxy once more, without what Dragonfly knows it by.
            headers = {k: v for k, v in headers.items() if not k.startswith("x-dragonfly")}
        return super().request(method, url, headers, is_last)

    def bypasses(self, is_token: bool) -> bool:
        return is_token

    def tries(self, prefetch: bool) -> list[tuple[bool, float]]:
        if prefetch:
            return [(False, 0.0), (False, 0.1)]
        return [(False, 0.0), (False, 0.0), (False, 0.0), (True, 0.0)]

    def marks(self, prefetch: bool) -> dict[str, str]:
        if not self.proxy:
            return {}
        wanted = {"x-dragonfly-priority": "3" if prefetch else "6", "x-dragonfly-use-p2p": "true"}
        return {"x-dragonfly-prefetch": "true", **wanted}

    def stream(self, digest: str, start: int = 0) -> bytes:
        """`fs_prefetch.stream_prefetch`: the whole blob, or from somewhere to its end."""
        headers = {**({"range": f"bytes={start}-"} if start else {}), **self.marks(True)}
        answer = self.request("GET", self.url(digest), headers, False)
        if answer.status >= 400:
            raise ReadFailed(f"{answer.status} {answer.body[:300]!r}")
        return answer.body

    def size(self, digest: str) -> int:
        """`blob_size`, of images whose chunks are validated."""
        answer = self.request("HEAD", self.url(digest), self.marks(False), False)
        if answer.status >= 400:
            raise ReadFailed(f"HEAD: {answer.status}")
        return int(answer.headers["Content-Length"])


def caught(answer: Answer, catch: bool) -> Answer:
    if catch and answer.status >= 400:
        raise CallFailed(f"{answer.status} {answer.body[:300]!r}")
    return answer


def parse_auth(text: str) -> tuple[str, dict[str, str]] | None:
    """REG parse_auth: split at ``",``, and what stands between the first two ``=`` counts."""
    scheme, _, rest = text.partition(" ")
    words = {}
    for each in rest.split('",'):
        name, _, value = each.partition("=")
        words[name.strip()] = value.partition("=")[0].strip().strip('"')
    if scheme == "Basic":
        return scheme, words
    if scheme == "Bearer" and {"realm", "service", "scope"} <= words.keys():
        return scheme, words
    return None


def read_blob(model: Model, digest: str, size: int) -> bytes:
    """The blob as a mount with readers and prefetch reads it. Raises ReadFailed."""
    got = bytearray(size)

    def take(start: int, length: int, prefetch: bool) -> None:
        length = min(length, size - start)
        got[start : start + length] = model.read(digest, start, length, prefetch=prefetch)

    tail = min(TAIL, size)
    # The first request alone: the others wait until it has gone well.
    take(size - tail, tail, False)
    chunks = list(range(0, size, CHUNK))
    random.Random(size).shuffle(chunks)
    with ThreadPoolExecutor(12) as pool:
        running = [pool.submit(take, at, CHUNK, False) for at in chunks]
        running += [pool.submit(take, at, STEP, True) for at in range(0, size, STEP)]
        for each in running:
            each.result()
    return bytes(got)
