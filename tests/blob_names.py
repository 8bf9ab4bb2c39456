"""Digests and references of blobs that tests only talk about."""

from __future__ import annotations

import hashlib

from passel.ids import BlobRef, Digest


def a_digest(name: str) -> Digest:
    return Digest("sha256", hashlib.sha256(name.encode()).hexdigest())


def a_ref(name: str = "blob", upstream: str = "up", repository: str = "org/app") -> BlobRef:
    return BlobRef(upstream, repository, a_digest(name))
