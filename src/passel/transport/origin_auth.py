"""Credentials towards an origin: challenges answered, tokens fetched and kept.

Source: distribution's token specifications ("Token Authentication Specification" for GET, "OAuth2
Token Authentication" for POST) and RFC 7617. GET comes first, as docker, podman and crane do it; a
server that knows no GET (404, 405) gets the form.
Where a token may be fetched follows distribution's own proxy (realm on the upstream's host or
registrable domain), so that a challenge cannot send a client's password elsewhere.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from yarl import URL

from passel.config.sections import UpstreamConfig
from passel.errors import ConfigError, OriginNonsense, OriginRefused
from passel.oci.challenge import Challenge

TOKENS_MAX = 1024
TOKEN_BYTES_MAX = 1 << 20
DEFAULT_TTL_S = 60.0


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token; `until` is on the monotonic clock."""

    value: str = field(repr=False)
    until: float


#: Ask a token URL: by GET with these headers, or by POST of a form, unless that is None. Status and
#: at most `TOKEN_BYTES_MAX` of body come back.
Ask = Callable[[URL, dict[str, str], dict[str, str] | None], Awaitable[tuple[int, bytes]]]


class OriginAuth:
    """The tokens of one upstream, by repository and identity; single-flight, bounded."""

    def __init__(self, key: str, upstream: UpstreamConfig, ask: Ask) -> None:
        self._key = key
        self._upstream = upstream
        self._api = URL(upstream.api)
        self._ask = ask
        self._tokens: OrderedDict[tuple[str, str], Token] = OrderedDict()
        self._flights: dict[tuple[str, str], asyncio.Task[Token]] = {}

    def credential(self, authorization: str | None) -> str | None:
        """The ``Authorization`` that counts here: static credentials replace the client's."""
        if self._upstream.auth == "anonymous":
            return None
        if self._upstream.auth == "static":
            return self._static()
        return authorization

    def _static(self) -> str:
        path = self._upstream.password_file
        assert path is not None
        try:
            password = path.read_text(encoding="utf-8").partition("\n")[0]
        except OSError as error:
            raise ConfigError(
                f"upstreams.{self._key}.password_file: {path} cannot be read ({error.strerror})"
            ) from error
        pair = f"{self._upstream.username}:{password}".encode()
        return "Basic " + base64.b64encode(pair).decode()

    def kept(self, repository: str, credential: str | None) -> str | None:
        """A token for this repository that is still good, as an ``Authorization`` value."""
        token = self._tokens.get((repository, _identity(credential)))
        if token is None or token.until <= time.monotonic():
            return None
        return f"Bearer {token.value}"

    async def answer(
        self, challenges: list[Challenge], repository: str, credential: str | None
    ) -> str | None:
        """The ``Authorization`` that satisfies the origin's challenge, None if there is none."""
        for challenge in challenges:
            if challenge.scheme == "bearer" and not _is_bearer(credential):
                return await self._bearer(challenge, repository, credential)
        return None

    async def _bearer(
        self, challenge: Challenge, repository: str, credential: str | None
    ) -> str | None:
        name = (repository, _identity(credential))
        flight = self._flights.get(name)
        if flight is None:
            flight = asyncio.get_running_loop().create_task(
                self._fetch(challenge, repository, credential)
            )
            self._flights[name] = flight
            flight.add_done_callback(lambda _: self._flights.pop(name, None))
        try:
            token = await asyncio.shield(flight)
        except OriginRefused:
            return None  # the token server's no: the origin's own 401 is what clients should see
        self._tokens[name] = token
        self._tokens.move_to_end(name)
        while len(self._tokens) > TOKENS_MAX:
            self._tokens.popitem(last=False)
        return f"Bearer {token.value}"

    async def _fetch(self, challenge: Challenge, repository: str, credential: str | None) -> Token:
        realm = self._realm(challenge)
        query = {"scope": f"repository:{repository}:pull"}
        if "service" in challenge.params:
            query["service"] = challenge.params["service"]
        headers = {"Authorization": credential} if credential is not None else {}
        status, body = await self._ask(realm.update_query(query), headers, None)
        form = _form(query, credential)
        if status in (404, 405) and form is not None:
            status, body = await self._ask(realm, {}, form)
        if status >= 400:
            raise OriginRefused(status, {}, b"")
        return _parse_token(self._key, body)

    def _realm(self, challenge: Challenge) -> URL:
        try:
            realm = URL(challenge.params.get("realm", ""))
        except ValueError as error:
            raise OriginNonsense(f"upstream {self._key} names a realm that is no URL") from error
        same_host = realm.host == self._api.host
        if realm.scheme != "https" and not (same_host and self._api.scheme == "http"):
            raise OriginNonsense(f"upstream {self._key} wants credentials sent without TLS")
        if not same_host and _domain(realm.host) != _domain(self._api.host):
            raise OriginNonsense(
                f"upstream {self._key} wants credentials sent to {realm.host}, which is not of its"
                " own domain"
            )
        return realm


def _form(query: dict[str, str], credential: str | None) -> dict[str, str] | None:
    """What is asked for, with name and password, as OAuth2 has it; None without a password."""
    scheme, _, encoded = (credential or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except ValueError:
        return None
    if not colon:
        return None
    who = {"grant_type": "password", "client_id": "passel", "username": name, "password": password}
    return {**query, **who}


def _domain(host: str | None) -> str:
    """The last two labels: good enough to tell auth.docker.io from evil.example."""
    return ".".join((host or "").lower().rstrip(".").split(".")[-2:])


def _is_bearer(credential: str | None) -> bool:
    return credential is not None and credential.lower().startswith("bearer ")


def _identity(credential: str | None) -> str:
    return "" if credential is None else hashlib.sha256(credential.encode()).hexdigest()


def _parse_token(key: str, body: bytes) -> Token:
    try:
        fields = json.loads(body)
        value = fields.get("token") or fields["access_token"]
        ttl_s = float(fields.get("expires_in") or DEFAULT_TTL_S)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OriginNonsense(f"the token server of upstream {key} sent no token") from error
    if not isinstance(value, str) or not value.isascii() or not value.isprintable():
        raise OriginNonsense(f"the token server of upstream {key} sent no token")
    # A fifth of its life early: it must last for the request that it is fetched for.
    return Token(value, time.monotonic() + 0.8 * max(0.0, min(ttl_s, 86400.0)))
