"""What a user may write to name a blob or an image, and the request that a gateway gets for it.

======================================================  ==========================================
``http://gateway/v2/<repo>/blobs/<digest>``             asked of that gateway as it stands
``https://registry/v2/<repo>/blobs/<digest>``           the registry is looked up as an upstream
``<upstream>/<repo>@sha256:...``                        that blob
``<upstream>/<repo>:<tag>``                             that image: manifests, configuration, layers
======================================================  ==========================================
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from passel.errors import InputError
from passel.ids import BlobRef, Digest
from passel.oci.names import V2Request, parse_path, parse_reference, parse_repository
from passel.oci.upstream import normalise_name

_FORMS = (
    "expected <upstream>/<repository>@sha256:<digest>, <upstream>/<repository>:<tag> or a URL with"
    " /v2/ in it"
)


@dataclass(frozen=True, slots=True)
class Target:
    """One request of the registry API, and which upstream it is meant for.

    `base` is ``scheme://host[:port]`` of the URL that it was given as, if it was one; `upstream` is
    what the gateway is told in ``X-Passel-Registry`` (None: the path says it, or the gateway's
    default holds). `path` is what stands in the request line, query included.
    """

    path: str
    asked: V2Request | None
    upstream: str | None = None
    base: str | None = None

    @property
    def digest(self) -> Digest | None:
        """The digest that the content must have, if the name says one."""
        return self.asked.digest if self.asked is not None else None

    @property
    def is_image(self) -> bool:
        """Whether this names an image and not a single blob."""
        return self.asked is not None and self.asked.kind == "manifest"


def parse_target(text: str) -> Target:
    """Read what a user wrote. Raises InputError with one sentence that says what was expected."""
    scheme, separator, _ = text.partition("://")
    if separator:
        if scheme not in ("http", "https"):
            raise InputError(400, "NAME_INVALID", f"{scheme}:// is no scheme to get from")
        return _parse_url(text)
    return _parse_reference(text)


def blob_target(ref: BlobRef) -> Target:
    """The blob `ref`."""
    asked = V2Request("blob", ref.repository, ref.digest)
    return Target(asked.path, asked, ref.upstream)


def _parse_url(text: str) -> Target:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise InputError(400, "NAME_INVALID", f"this is no URL: {error}") from None
    if not parts.hostname or parts.username is not None:
        raise InputError(400, "NAME_INVALID", "the URL must have a host, and no user name in it")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    base = f"{parts.scheme}://{host}" + ("" if port is None else f":{port}")
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    asked: V2Request | None = None
    at = parts.path.find("/v2/")
    if at < 0:
        raise InputError(400, "NAME_INVALID", _FORMS)
    # In front of /v2/ there may be the name of an upstream; that is the gateway's business.
    asked = parse_path(parts.path[at:])
    if asked.kind not in ("blob", "manifest"):
        raise InputError(400, "NAME_INVALID", "the URL must name a blob or a manifest")
    return Target(path, asked, None, base)


def _parse_reference(text: str) -> Target:
    upstream, slash, rest = text.partition("/")
    name, at, digest = rest.partition("@")
    if at:
        # repo:tag@digest is what people copy from other tools: the digest counts.
        name = name.partition(":")[0]
        reference: Digest | str = Digest.parse(digest)
    else:
        name, colon, tag = rest.partition(":")
        if not slash or not colon:
            raise InputError(400, "NAME_INVALID", f"{_FORMS}, got {text!r}")
        reference = parse_reference(tag)
    if not slash or not name:
        raise InputError(400, "NAME_INVALID", f"{_FORMS}, got {text!r}")
    kind = "blob" if isinstance(reference, Digest) else "manifest"
    asked = V2Request("blob" if kind == "blob" else "manifest", parse_repository(name), reference)
    return Target(asked.path, asked, normalise_name(upstream))
