"""Paths of the registry API and the names in them.

Source: OCI distribution-spec v1.1, "Endpoints" and "Pulling manifests" (grammar of name and tag).
Every check is a full match on the path decoded exactly once; `$` in a pattern would let a trailing
newline through. Messages never repeat what the client sent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import unquote

from passel.errors import InputError
from passel.ids import Digest

Kind = Literal["ping", "catalog", "manifest", "blob", "tags", "referrers"]

#: Clients count host and name together against this number: no longer name can be pulled anyway.
NAME_LENGTH_MAX = 255
#: Enough for a name of 255 and a digest of 135 characters, all of them %-encoded.
PATH_LENGTH_MAX = 2048

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_KINDS: tuple[tuple[str, Kind], ...] = (
    ("manifests", "manifest"),
    ("blobs", "blob"),
    ("referrers", "referrers"),
)
_TAGS_LIST = "/tags/list"


@dataclass(frozen=True, slots=True)
class V2Request:
    """What a path asks for; every part is valid by the grammar.

    `repository` is None for ping and catalog. `reference` is the digest of a blob or of a referrers
    request, the digest or the tag of a manifest, else None.
    """

    kind: Kind
    repository: str | None = None
    reference: Digest | str | None = None

    @property
    def digest(self) -> Digest | None:
        """The digest that the path names, if it names one."""
        return self.reference if isinstance(self.reference, Digest) else None

    @property
    def tag(self) -> str | None:
        """The tag that the path names, if it names one."""
        return self.reference if isinstance(self.reference, str) else None

    @property
    def path(self) -> str:
        """The path to ask an origin for: the grammar leaves nothing that needs %-encoding."""
        if self.kind == "ping":
            return "/v2/"
        if self.kind == "catalog":
            return "/v2/_catalog"
        if self.kind == "tags":
            return f"/v2/{self.repository}{_TAGS_LIST}"
        word = next(word for word, kind in _KINDS if kind == self.kind)
        return f"/v2/{self.repository}/{word}/{self.reference}"

    def in_repository(self, repository: str) -> V2Request:
        """The same request for another repository."""
        return replace(self, repository=repository)


def is_repository(text: str) -> bool:
    """Whether `text` is a valid repository name."""
    return len(text) <= NAME_LENGTH_MAX and _NAME.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Whether `text` is a valid tag."""
    return _TAG.fullmatch(text) is not None


def parse_repository(text: str) -> str:
    """`text` if it is a valid repository name, else InputError 400 ``NAME_INVALID``."""
    if not is_repository(text):
        raise InputError(
            400,
            "NAME_INVALID",
            "the repository name must be lower-case components [a-z0-9] joined by one of"
            f" '.', '_', '__', '-' and '/', {NAME_LENGTH_MAX} characters at most",
        )
    return text


def parse_reference(text: str) -> Digest | str:
    """A manifest's reference: a digest if there is a colon in it, else a tag."""
    if ":" in text:
        return Digest.parse(text)
    if not is_tag(text):
        raise InputError(
            400,
            "MANIFEST_INVALID",
            "the tag must be up to 128 of A-Z a-z 0-9 . _ - and not begin with . or -",
        )
    return text


def decode_path(raw_path: str) -> str:
    """The path without its query, %-decoded exactly once, or InputError 400."""
    path = raw_path.partition("?")[0]
    if len(path) > PATH_LENGTH_MAX:
        raise InputError(
            400, "NAME_INVALID", f"the path is longer than {PATH_LENGTH_MAX} characters"
        )
    try:
        return unquote(path, errors="strict")
    except UnicodeDecodeError:
        raise InputError(400, "NAME_INVALID", "the path is not UTF-8 once decoded") from None


def parse_path(raw_path: str) -> V2Request:
    """What the still %-encoded path of a request asks for. Nothing but InputError is raised.

    A prefix that names an upstream must be gone by now: see `passel.oci.upstream.split_upstream`.
    A repository may itself have components named ``manifests``, ``blobs`` or ``tags``: the last
    separator counts.
    """
    path = decode_path(raw_path)
    if path in ("/v2", "/v2/"):
        return V2Request("ping")
    if not path.startswith("/v2/"):
        raise _unsupported()
    rest = path.removeprefix("/v2/")
    if rest == "_catalog":
        return V2Request("catalog")
    if rest.endswith(_TAGS_LIST):
        return V2Request("tags", parse_repository(rest.removesuffix(_TAGS_LIST)))
    for word, kind in _KINDS:
        name, separator, reference = rest.rpartition(f"/{word}/")
        if not separator or not name or "/" in reference:
            continue
        repository = parse_repository(name)
        if kind == "manifest":
            return V2Request(kind, repository, parse_reference(reference))
        return V2Request(kind, repository, Digest.parse(reference))
    raise _unsupported()


def _unsupported() -> InputError:
    return InputError(
        404, "UNSUPPORTED", "this path is not part of the registry API that is served here"
    )
