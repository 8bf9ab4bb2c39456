"""Manifests and indexes: checked when they come in, read for the descriptors that they hold.

Bytes are kept and served as they came; nothing here writes JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from passel.errors import DigestMismatch, InputError, OriginNonsense
from passel.ids import Digest
from passel.oci.media import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX,
    OCI_MANIFEST,
    bare_media_type,
)

#: The limit of distribution and of containers/image; containerd's is a little above.
MANIFEST_BYTES_MAX = 4 * 1024 * 1024

_SIZE_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a manifest says about content that it refers to."""

    digest: Digest
    size: int
    media_type: str
    platform: str = ""
    """``os/architecture[/variant]`` where an index says it."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest whose bytes were checked: what to serve it as, and what it names.

    `descriptors` are the manifests of an index, or config and layers of an image. A hint: a
    descriptor that makes no sense is left out, the bytes are served all the same.
    """

    digest: Digest
    size: int
    media_type: str
    descriptors: tuple[Descriptor, ...]

    @property
    def is_index(self) -> bool:
        return self.media_type in INDEX_TYPES


def check_manifest(body: bytes, content_type: str | None, digest: Digest) -> Manifest:
    """A manifest from an origin, checked to be one and to have `digest`.

    That is the digest asked for, or else the announced one, or else `compute_digest` of the body.
    Raises DigestMismatch if the bytes are others, OriginNonsense if they are no manifest: too
    large, not a JSON object, of no known type, or an image and an index at once (CVE-2021-41190).
    """
    if len(body) > MANIFEST_BYTES_MAX:
        raise OriginNonsense(f"a manifest of more than {MANIFEST_BYTES_MAX} bytes")
    hasher = digest.hasher()
    hasher.update(body)
    if hasher.hexdigest() != digest.hex:
        got = f"{digest.algorithm}:{hasher.hexdigest()}"
        raise DigestMismatch("manifest", str(digest), got)
    document = _object(body)
    media_type = _media_type(document, content_type)
    return Manifest(digest, len(body), media_type, tuple(_descriptors(document, media_type)))


def compute_digest(body: bytes) -> Digest:
    """The SHA-256 digest of `body`."""
    return Digest("sha256", hashlib.sha256(body).hexdigest())


def descriptors(body: bytes, media_type: str) -> tuple[Descriptor, ...]:
    """What a manifest of this type refers to. Raises OriginNonsense if it is no JSON object."""
    return tuple(_descriptors(_object(body), bare_media_type(media_type)))


def _object(body: bytes) -> dict[str, object]:
    try:
        document = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise OriginNonsense("a manifest that is not JSON") from None
    if not isinstance(document, dict):
        raise OriginNonsense("a manifest that is not a JSON object")
    return document


def _media_type(document: dict[str, object], content_type: str | None) -> str:
    """The type to serve a manifest as: its own word, else the header's, else what it looks like."""
    is_index = "manifests" in document
    is_image = "layers" in document or "config" in document
    if is_index and is_image:
        raise OriginNonsense("a manifest that is an image and an index at once")
    own = document.get("mediaType")
    media_type = own if isinstance(own, str) and own else bare_media_type(content_type)
    if not own and media_type not in MANIFEST_TYPES and document.get("schemaVersion") == 2:
        # OCI leaves `mediaType` optional, and some plain file servers say application/json.
        media_type = OCI_INDEX if is_index else OCI_MANIFEST if is_image else media_type
    if media_type not in MANIFEST_TYPES:
        raise OriginNonsense("a manifest of a type that passel does not know")
    if (is_index and media_type not in INDEX_TYPES) or (is_image and media_type in INDEX_TYPES):
        raise OriginNonsense("a manifest whose content is not of its type")
    return media_type


def _descriptors(document: dict[str, object], media_type: str) -> Iterator[Descriptor]:
    fields = ("manifests",) if media_type in INDEX_TYPES else ("config", "layers")
    for field in fields:
        value = document.get(field)
        for item in value if isinstance(value, list) else [value]:
            descriptor = _descriptor(item)
            if descriptor is not None:
                yield descriptor


def _descriptor(item: object) -> Descriptor | None:
    if not isinstance(item, dict):
        return None
    digest, size, media_type = item.get("digest"), item.get("size"), item.get("mediaType")
    if not isinstance(digest, str) or isinstance(size, bool) or not isinstance(size, int):
        return None
    if not 0 <= size <= _SIZE_MAX:
        return None
    try:
        parsed = Digest.parse(digest)
    except InputError:
        return None
    return Descriptor(
        parsed, size, media_type if isinstance(media_type, str) else "", _platform(item)
    )


def _platform(item: dict[str, object]) -> str:
    platform = item.get("platform")
    if not isinstance(platform, dict):
        return ""
    words = [platform.get(key) for key in ("os", "architecture", "variant")]
    return "/".join(word for word in words if isinstance(word, str) and word)
