"""A real multi-layer OCI image made on the spot, pushed to a registry and pulled again."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import os
import tarfile
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from passel.errors import DigestMismatch, OriginUnavailable
from passel.oci.media import OCI_MANIFEST

#: Not "demo/...": a first component that names an upstream would be taken for it.
REPOSITORY = "sample/image"
TAG = "v1"
#: Shares of the layers in the image's size: a base, dependencies, a model, a little code.
LAYERS = (0.4, 0.3, 0.25, 0.05)
CHUNK_BYTES = 256 * 1024
TIMEOUT_S = 60.0
_GZIP = b"\x1f\x8b"
#: As many layers at once as containerd fetches by default.
LAYERS_AT_ONCE = 3


@dataclass(frozen=True, slots=True)
class Image:
    """What was pushed."""

    digest: str
    layers: tuple[tuple[str, int], ...]

    @property
    def size(self) -> int:
        return sum(size for _, size in self.layers)


def make_and_push(registry: str, size: int) -> Image:
    """An image of about `size` bytes, incompressible, is in the registry."""
    layers = (_tar(f"layer{i}.bin", int(size * share)) for i, share in enumerate(LAYERS))
    return push_layers(registry, REPOSITORY, layers)


def push_layers(registry: str, repository: str, layers: Iterable[bytes]) -> Image:
    """An image of these layers, tar or tar.gz, is in the registry under `TAG`."""
    described, diff_ids = [], []
    for layer in layers:
        is_packed = layer.startswith(_GZIP)
        media_type = "application/vnd.oci.image.layer.v1.tar" + ("+gzip" if is_packed else "")
        described.append({"mediaType": media_type, **push_blob(registry, repository, layer)})
        diff_ids.append(_sha256(gzip.decompress(layer) if is_packed else layer))
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
    about = push_blob(registry, repository, json.dumps(config).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **about},
        "layers": described,
    }
    body = json.dumps(manifest).encode()
    _send(registry, "PUT", f"/v2/{repository}/manifests/{TAG}", body, OCI_MANIFEST)
    blobs = [*described, about]
    return Image(_sha256(body), tuple((blob["digest"], blob["size"]) for blob in blobs))


def _tar(name: str, size: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = size
        member.mtime = int(time.time())
        archive.addfile(member, io.BytesIO(os.urandom(size)))
    return buffer.getvalue()


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def push_blob(registry: str, repository: str, data: bytes) -> dict[str, Any]:
    """The blob is in the registry; its descriptor without the media type."""
    digest = _sha256(data)
    location = _send(registry, "POST", f"/v2/{repository}/blobs/uploads/", b"")
    joiner = "&" if "?" in location else "?"
    _send(registry, "PUT", f"{location}{joiner}digest={digest}", data)
    return {"digest": digest, "size": len(data)}


def _send(
    registry: str, method: str, path: str, body: bytes, media_type: str = "application/octet-stream"
) -> str:
    """The Location of the registry's answer, as a path."""
    with _talking_to(registry) as connection:
        connection.request(method, path, body, {"Content-Type": media_type})
        answer = connection.getresponse()
        answer.read()
        if answer.status >= 300:
            raise OriginUnavailable(f"the registry answers {answer.status} to {method} {path}")
        location = urllib.parse.urlsplit(answer.getheader("Location", ""))
        return f"{location.path}?{location.query}" if location.query else location.path


@contextmanager
def _talking_to(base: str) -> Iterator[http.client.HTTPConnection]:
    host = urllib.parse.urlsplit(base).netloc
    connection = http.client.HTTPConnection(host, timeout=TIMEOUT_S)
    try:
        yield connection
    except (OSError, http.client.HTTPException) as error:
        raise OriginUnavailable(f"{base} broke off: {error}") from error
    finally:
        connection.close()


def pull(base: str, told: Callable[[int], None]) -> float:
    """Pull the image as a client would, from a gateway or a registry; seconds that it took.

    Every layer's digest is checked. `told` gets the bytes as they come, from several threads.
    """
    began = time.monotonic()
    manifest = json.loads(b"".join(_get(base, f"/v2/{REPOSITORY}/manifests/{TAG}")))
    blobs = [manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]

    def one(digest: str) -> None:
        hasher = hashlib.sha256()
        for chunk in _get(base, f"/v2/{REPOSITORY}/blobs/{digest}"):
            hasher.update(chunk)
            told(len(chunk))
        got = f"sha256:{hasher.hexdigest()}"
        if got != digest:
            raise DigestMismatch("a layer of the demo image", digest, got)

    with ThreadPoolExecutor(LAYERS_AT_ONCE) as pool:
        list(pool.map(one, blobs))
    return time.monotonic() - began


def _get(base: str, path: str) -> Iterator[bytes]:
    with _talking_to(base) as connection:
        connection.request("GET", path, headers={"Accept": f"{OCI_MANIFEST}, */*"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise OriginUnavailable(f"{base} answers {answer.status} to GET {path}")
        while chunk := answer.read(CHUNK_BYTES):
            yield chunk
