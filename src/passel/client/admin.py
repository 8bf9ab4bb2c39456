"""Asking the controller for jobs, blobs and removals, through the peer of this host.

Any peer hands the question on: the controller may be anywhere in the cluster.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passel.client.exchange import to_socket
from passel.client.image import BLOBS_MAX, MANIFESTS_MAX, same_place
from passel.client.targets import Target
from passel.errors import InputError, OriginNonsense, PeerUnavailable
from passel.ids import Digest
from passel.oci.manifests import MANIFEST_BYTES_MAX, Manifest, check_manifest, compute_digest
from passel.oci.upstream import DOCKER_HUB

if TYPE_CHECKING:
    from passel.client.client import Client

#: The controller waits up to 20 s for a registry, the peer 25 s for the controller.
ADMIN_TIMEOUT_S = 30.0
ANSWER_BYTES_MAX = 64 * 1024 * 1024


def ask(sockets: list[Path], verb: str, fields: dict[str, Any]) -> dict[str, Any]:
    """What the controller answers through one of the peers' `sockets`.

    Raises RequestRefused with its sentence, PeerBusy or PeerUnavailable.
    """
    error = PeerUnavailable("no peer is known on this host: name its configuration, or a state")
    for path in sockets:
        try:
            with to_socket(path, ADMIN_TIMEOUT_S) as exchange:
                body = json.dumps(fields).encode()
                headers = {"Content-Type": "application/json"}
                exchange.send("POST", f"/v1/admin/{verb}", headers, body)
                answer = json.loads(exchange.read(ANSWER_BYTES_MAX))
        except PeerUnavailable as problem:
            error = problem
            continue
        if isinstance(answer, dict):
            return answer
    raise error


def blobs_of(client: Client, target: Target, platform: str) -> list[dict[str, Any]]:
    """The blobs that `target` is made of, as a job's order wants them.

    `platform` picks from an index: ``os/architecture[/variant]``, or all. Raises InputError when
    the index has no such platform, RequestRefused, DigestMismatch, OriginNonsense.
    """
    if target.asked is None or target.asked.repository is None:
        raise InputError(400, "NAME_INVALID", "expected an image or a blob")
    headers = client.headers(target)
    upstream = headers.get("oci-namespace", target.upstream or "")
    repository = _repository(target.asked.repository, upstream)
    if not target.is_image:
        length = headers.get("content-length", "")
        size = int(length) if length.isdigit() else None
        return [_blob(upstream, repository, target.digest, size)]
    found: dict[str, dict[str, Any]] = {}
    for manifest in _images(client, target, platform):
        for each in manifest.descriptors:
            found[str(each.digest)] = _blob(upstream, repository, each.digest, each.size)
        if len(found) > BLOBS_MAX:
            raise OriginNonsense("an image of more parts than any image has")
    return list(found.values())


def _images(client: Client, target: Target, platform: str) -> list[Manifest]:
    root = _manifest(client, target)
    if not root.is_index:
        return [root]
    chosen = [
        each
        for each in root.descriptors
        if platform == "all"
        or each.platform == platform
        or each.platform.startswith(f"{platform}/")
    ]
    if not chosen:
        known = ", ".join(sorted({each.platform or "(none)" for each in root.descriptors})[:20])
        text = f"the image has no platform {platform}: it has {known}"
        raise InputError(400, "MANIFEST_UNKNOWN", text)
    if len(chosen) > MANIFESTS_MAX:
        raise OriginNonsense("an image of more parts than any image has")
    return [_manifest(client, same_place(target, "manifest", each.digest)) for each in chosen]


def _manifest(client: Client, target: Target) -> Manifest:
    body, content_type, announced = client.manifest(target, MANIFEST_BYTES_MAX)
    digest = target.digest or (Digest.parse(announced) if announced else compute_digest(body))
    return check_manifest(body, content_type, digest)


def _repository(name: str, upstream: str) -> str:
    """As the upstream calls it: without the upstream in front, and with ``library/`` where due."""
    name = name.removeprefix(f"{upstream}/")
    return f"library/{name}" if upstream == DOCKER_HUB and "/" not in name else name


def _blob(upstream: str, repository: str, digest: object, size: int | None) -> dict[str, Any]:
    return {
        "upstream": upstream,
        "repository": repository,
        "digest": str(digest),
        "size": size,
    }
