"""Names of things: digests, blobs, peers. Parsed once, at the edge, then passed on as values."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NewType

from passel.errors import InputError

if TYPE_CHECKING:
    from hashlib import _Hash

PeerId = NewType("PeerId", str)
"""One peer: the Ray node id (hex) that it is pinned to."""

BlobId = NewType("BlobId", str)
"""One blob of one upstream: 64 hex digits, see :attr:`BlobKey.id`."""

#: Algorithms registered by the OCI image specification v1.1 ("Registered Algorithms") with the
#: length of their hex form. Everything else is refused.
HEX_LENGTHS = {"sha256": 64, "sha512": 128}

_DIGEST = re.compile(r"(sha256):([a-f0-9]{64})|(sha512):([a-f0-9]{128})")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A content digest, ``algorithm:hex``, valid by construction when made by :meth:`parse`."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read ``sha256:<64 hex>`` or ``sha512:<128 hex>``, lower case only.

        Source: OCI image-spec v1.1, descriptor.md, "Digests" and "Registered Algorithms".
        """
        match = _DIGEST.fullmatch(text)
        if match is None:
            raise InputError(
                400,
                "DIGEST_INVALID",
                "the digest must be sha256:<64 lower-case hex digits> or sha512:<128>",
            )
        return cls(match[1] or match[3], match[2] or match[4])

    def hasher(self) -> _Hash:
        """A fresh hash object of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


@dataclass(frozen=True, slots=True, order=True)
class BlobKey:
    """A blob as one upstream names it.

    Until its whole digest was verified, content fetched from one upstream must not be visible under
    another (DESIGN §7): so the unit of everything unverified is upstream *and* digest.
    """

    upstream: str
    digest: Digest

    @property
    def id(self) -> BlobId:
        """SHA-256 over upstream and digest, hex: safe in paths and URLs, the same on every node."""
        text = f"{self.upstream}\n{self.digest}"
        return BlobId(hashlib.sha256(text.encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class BlobRef:
    """Where a blob can be asked for at its origin: upstream, repository, digest."""

    upstream: str
    repository: str
    digest: Digest

    @property
    def key(self) -> BlobKey:
        return BlobKey(self.upstream, self.digest)

    @property
    def id(self) -> BlobId:
        return self.key.id
