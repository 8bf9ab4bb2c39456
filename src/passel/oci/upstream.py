"""Which upstream a request means.

A client names an upstream in one of eight ways (see `choose`). Each of them is only ever a key into
the closed table of configured upstreams, handed in here as a function; never a place to dial.
Messages name upstreams by their configured key and never repeat what the client sent.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from passel.errors import InputError
from passel.oci.names import V2Request, parse_path

#: Normalised name -> key of the upstream, or None. `Config.upstream_for` is one; so is `dict.get`.
Lookup = Callable[[str], "str | None"]

Way = Literal["dedicated", "absolute", "header", "ns", "path", "host", "learned", "default"]

DOCKER_HUB = "docker.io"
#: docker.io itself is a web site. Source: distribution/reference, `defaultDomain`.
DOCKER_HUB_API = "https://registry-1.docker.io"
DOCKER_HUB_ALIASES = ("index.docker.io", "registry-1.docker.io", "registry.hub.docker.com")

#: Headers that name an upstream, first one first, and whether a URL is allowed as the value
#: (Dragonfly's clients send ``X-Dragonfly-Registry: https://index.docker.io``).
_HEADERS: tuple[tuple[str, bool], ...] = (
    ("x-passel-registry", True),
    ("x-dragonfly-registry", True),
    ("oci-namespace", False),
)

_DEFAULT_PORTS = {"http": 80, "https": 443}
_LABEL = r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[^\[\]:]+)(?::([0-9]{1,5}))?")
_NO_REPOSITORY = re.compile(r"(?:manifests|blobs|referrers)/[^/]*|tags/list")


def split_authority(text: str) -> tuple[str, int | None] | None:
    """``host[:port]`` in parts, lower case and without a trailing dot; None if it is no such thing.

    IPv6 addresses are in brackets. User names, schemes, paths and control characters have no place
    in the grammar. Port 0 is not a port to name.
    """
    match = _AUTHORITY.fullmatch(text.lower()) if len(text) <= 262 and text.isascii() else None
    if match is None:
        return None
    host = match[1]
    if host.startswith("["):
        try:
            host = f"[{ipaddress.IPv6Address(host[1:-1]).compressed}]"
        except ValueError:
            return None
    else:
        host = host.removesuffix(".")
        if len(host) > 253 or not _HOST.fullmatch(host):
            return None
    port = int(match[2]) if match[2] else None
    if port is not None and not 1 <= port <= 65535:
        return None
    return host, port


def normalise_name(text: str, *, url: bool = False) -> str:
    """The name of an upstream as tables are keyed: lower case, no trailing dot, port without zeros.

    With `url`, ``https://host[:port][/]`` and ``http://...`` are read too and lose the port that
    their scheme implies. Raises InputError 400 ``NAME_INVALID``.
    """
    scheme = ""
    rest = text
    if url and (match := re.match(r"(https?)://", text, re.IGNORECASE)):
        scheme = match[1].lower()
        rest = text[match.end() :].removesuffix("/")
    parts = split_authority(rest)
    if parts is None:
        shape = "[https://]host[:port]" if url else "host[:port]"
        raise InputError(
            400, "NAME_INVALID", f"the upstream must be named as {shape} and nothing else"
        )
    host, port = parts
    if port is None or port == _DEFAULT_PORTS.get(scheme):
        return host
    return f"{host}:{port}"


def split_upstream(raw_path: str, known: Lookup) -> tuple[str | None, str]:
    """Take the upstream's name off a path: (key, path without it), or (None, the path as it was).

    Both forms are read: ``/v2/<upstream>/<repository>/...`` (podman, `override_path`, images named
    with the gateway as their registry) and ``/<upstream>/v2/<repository>/...`` (containerd and
    dockerd append ``/v2`` to a mirror's path). ``/v2/<name>/blobs/<digest>`` is left alone: with
    nothing between, the name is the repository. The path stays %-encoded.
    """
    path = raw_path.partition("?")[0]
    first, _, rest = path.removeprefix("/").partition("/")
    if not path.startswith("/"):
        return None, raw_path
    if first == "v2":
        name, _, rest = rest.partition("/")
        if _NO_REPOSITORY.fullmatch(rest):
            return None, raw_path
    elif rest == "v2" or rest.startswith("v2/"):
        name, rest = first, rest[3:]
    else:
        return None, raw_path
    key = _look_up(unquote(name), known)
    return (None, raw_path) if key is None else (key, f"/v2/{rest}")


@dataclass(frozen=True, slots=True)
class Selectors:
    """Everything in one request that can name an upstream.

    `headers` may be all headers of the request; `ns` are the decoded values of that query
    parameter; `absolute` is scheme and authority of an absolute-form target, ``http://host[:port]``.
    `dedicated` is the key that the listener is bound to, `default` the configured default.
    """

    raw_path: str
    dedicated: str | None = None
    absolute: str | None = None
    headers: Sequence[tuple[str, str]] = ()
    ns: Sequence[str] = ()
    host: str | None = None
    default: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The upstream that a request means, how it said so, and the path that is left (%-encoded).

    `upstream` is None only for a ping that names none: the gateway answers that one itself.
    """

    upstream: str | None
    way: Way | None
    path: str


def choose(
    selectors: Selectors,
    known: Lookup,
    *,
    own: Callable[[str], bool] = lambda authority: False,
    learned: Callable[[V2Request], str | None] = lambda request: None,
) -> Choice:
    """The upstream of a request: the first of these that applies.

    1. a listener bound to one upstream: whatever else is named must be the same one (404);
    2. the authority of an absolute-form target (403 if it is not configured);
    3. ``X-Passel-Registry``, ``X-Dragonfly-Registry``, ``OCI-Namespace`` (404 if not configured);
    4. ``?ns=`` (404 if not configured; two different values are a 400 in any case);
    5. the path, in the two forms of `split_upstream`;
    6. a ``Host`` that is a configured name;
    7. what `learned` knows from manifests that named the digest;
    8. the configured default, else 404.

    After 2 and 3 the path is taken as it stands. After 4 a prefix that names the same upstream is
    taken off: containerd sends both with `override_path`. `own` says whether ``host[:port]`` is an
    address of the gateway itself, which as ``Host`` or absolute target names nothing.
    """
    ns = _one_ns(selectors.ns)
    named = _named(selectors, ns, known, own)
    if selectors.dedicated is not None:
        return _on_dedicated(selectors, named, known)
    if named is not None:
        return named
    request: V2Request | None
    try:
        request = parse_path(selectors.raw_path)
    except InputError:
        request = None
    if request is not None and (key := learned(request)) is not None:
        return Choice(key, "learned", selectors.raw_path)
    if selectors.default is not None:
        return Choice(selectors.default, "default", selectors.raw_path)
    if request is not None and request.kind == "ping":
        return Choice(None, None, selectors.raw_path)
    raise InputError(
        404,
        "NAME_UNKNOWN",
        "the request names no upstream and there is no default upstream:"
        " say ?ns=<upstream>, /v2/<upstream>/<repository>/... or X-Passel-Registry: <upstream>",
    )


def resolve(
    selectors: Selectors,
    known: Lookup,
    *,
    own: Callable[[str], bool] = lambda authority: False,
    learned: Callable[[V2Request], str | None] = lambda request: None,
) -> tuple[Choice, V2Request]:
    """`choose`, and what the rest of the path asks for, as that upstream names it."""
    choice = choose(selectors, known, own=own, learned=learned)
    request = parse_path(choice.path)
    if choice.upstream is not None:
        request = at_upstream(choice.upstream, request)
    return choice, request


def at_upstream(upstream: str, request: V2Request) -> V2Request:
    """The request as that upstream names it: ``alpine`` on Docker Hub means ``library/alpine``."""
    if upstream == DOCKER_HUB and request.repository is not None and "/" not in request.repository:
        return request.in_repository(f"library/{request.repository}")
    return request


def _look_up(text: str, known: Lookup) -> str | None:
    """For places where a name that is malformed or unknown simply means nothing."""
    try:
        return known(normalise_name(text))
    except InputError:
        return None


def _one_ns(values: Sequence[str]) -> str | None:
    names = {normalise_name(value) for value in values}
    if len(names) > 1:
        raise InputError(400, "NAME_INVALID", "the query names two different upstreams as ns")
    return names.pop() if names else None


def _header_name(headers: Sequence[tuple[str, str]]) -> str | None:
    for header, url in _HEADERS:
        names = {
            normalise_name(value.strip(" \t"), url=url)
            for name, value in headers
            if name.lower() == header
        }
        if len(names) > 1:
            raise InputError(400, "NAME_INVALID", "a header names two different upstreams")
        if names:
            return names.pop()
    return None


def _named(
    selectors: Selectors, ns: str | None, known: Lookup, own: Callable[[str], bool]
) -> Choice | None:
    """What the request itself names: ways 2 to 6."""
    path = selectors.raw_path
    if selectors.absolute is not None:
        authority = normalise_name(selectors.absolute, url=True)
        if not own(authority):
            key = known(authority)
            if key is None:
                raise InputError(
                    403, "DENIED", "this gateway is a proxy for its configured upstreams only"
                )
            return Choice(key, "absolute", path)
    if (name := _header_name(selectors.headers)) is not None:
        return Choice(_must_know(name, known), "header", path)
    prefix, rest = split_upstream(path, known)
    if ns is not None:
        key = _must_know(ns, known)
        return Choice(key, "ns", rest if prefix == key else path)
    if prefix is not None:
        return Choice(prefix, "path", rest)
    if selectors.host is not None and (key := _look_up(selectors.host, known)) is not None:
        return None if own(normalise_name(selectors.host)) else Choice(key, "host", path)
    return None


def _must_know(name: str, known: Lookup) -> str:
    key = known(name)
    if key is None:
        raise InputError(
            404, "NAME_UNKNOWN", "no upstream of the name in the request is configured here"
        )
    return key


def _on_dedicated(selectors: Selectors, named: Choice | None, known: Lookup) -> Choice:
    assert selectors.dedicated is not None
    if named is not None and named.upstream != selectors.dedicated:
        raise InputError(
            404,
            "NAME_UNKNOWN",
            f"this listener serves {selectors.dedicated} only,"
            " and the request names another upstream",
        )
    path = selectors.raw_path if named is None else named.path
    return Choice(selectors.dedicated, "dedicated", path)
