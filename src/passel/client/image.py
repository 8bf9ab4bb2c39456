"""A whole image into a folder: the OCI image layout, which skopeo and others read.

Source: OCI image-spec v1.1, "image-layout.md".
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from passel.client.download import Got, Progress
from passel.client.targets import Target
from passel.errors import InputError, OriginNonsense, StoreError
from passel.ids import Digest
from passel.oci.manifests import MANIFEST_BYTES_MAX, Manifest, check_manifest, compute_digest
from passel.oci.names import V2Request
from passel.store import fileio

if TYPE_CHECKING:
    from passel.client.client import Client

#: An index of all platforms has some dozens; more is no image that anybody made on purpose.
MANIFESTS_MAX = 200
BLOBS_MAX = 5000


@dataclass(frozen=True, slots=True)
class GotImage:
    """What came with an image."""

    digest: Digest
    manifests: int
    blobs: int
    size: int
    seconds: float


def get_image(client: Client, target: Target, folder: Path, progress: Progress) -> GotImage:
    """`folder` holds the image of `target`; blobs that are there already do not come again."""
    if not target.is_image or target.asked is None:
        raise InputError(400, "NAME_INVALID", "expected <upstream>/<repository>:<tag>")
    _make(folder)
    root, blobs, n_manifests = _manifests(client, target, folder)
    total = sum(size for _, size in blobs.values())
    done, seconds = 0, 0.0
    for digest, size in blobs.values():
        output = _blob(folder, digest)
        if not (output.is_file() and output.stat().st_size == size):
            got = _one(client, target, digest, output, progress, done, total)
            seconds += got.seconds
            if got.size != size:
                raise OriginNonsense(f"the manifest gives {digest} another size than it has")
        done += size
        progress(done, total)
    _write_layout(folder, root, target)
    return GotImage(root.digest, n_manifests, len(blobs), total, seconds)


def _one(
    client: Client,
    target: Target,
    digest: Digest,
    output: Path,
    progress: Progress,
    before: int,
    total: int,
) -> Got:
    def shown(done: int, _: int | None) -> None:
        progress(before + done, total)

    return client.get(same_place(target, "blob", digest), output, progress=shown)


def _manifests(
    client: Client, target: Target, folder: Path
) -> tuple[Manifest, dict[str, tuple[Digest, int]], int]:
    """The image's own manifest, all blobs that it and those below it name, how many manifests."""
    root: Manifest | None = None
    blobs: dict[str, tuple[Digest, int]] = {}
    waiting = [target]
    seen: set[str] = set()
    while waiting:
        each = waiting.pop()
        manifest = _manifest(client, each, folder)
        root = root or manifest
        for descriptor in manifest.descriptors:
            key = str(descriptor.digest)
            if not manifest.is_index:
                blobs[key] = (descriptor.digest, descriptor.size)
            elif key not in seen:
                seen.add(key)
                waiting.append(same_place(target, "manifest", descriptor.digest))
        if len(seen) > MANIFESTS_MAX or len(blobs) > BLOBS_MAX:
            raise OriginNonsense("an image of more parts than any image has")
    assert root is not None
    return root, blobs, len(seen) + 1


def _manifest(client: Client, target: Target, folder: Path) -> Manifest:
    body, content_type, announced = client.manifest(target, MANIFEST_BYTES_MAX)
    digest = target.digest or (Digest.parse(announced) if announced else compute_digest(body))
    manifest = check_manifest(body, content_type, digest)
    output = _blob(folder, digest)
    _make(output.parent)
    output.write_bytes(body)
    return manifest


def same_place(target: Target, kind: str, digest: Digest) -> Target:
    """Another content of the same repository, asked for in the same way."""
    assert target.asked is not None
    asked = V2Request("blob" if kind == "blob" else "manifest", target.asked.repository, digest)
    prefix, _, rest = target.path.partition("/v2/")
    query = f"?{rest.partition('?')[2]}" if "?" in rest else ""
    named = rest.partition("?")[0].removesuffix(target.asked.path.removeprefix("/v2/"))
    path = f"{prefix}/v2/{named}{asked.path.removeprefix('/v2/')}{query}"
    return Target(path, asked, target.upstream, target.base)


def _blob(folder: Path, digest: Digest) -> Path:
    path = folder / "blobs" / digest.algorithm / digest.hex
    _make(path.parent)
    return path


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        text = f"cannot make the folder {folder}: {(error.strerror or str(error)).lower()}"
        raise StoreError(text) from error


def _write_layout(folder: Path, root: Manifest, target: Target) -> None:
    tag = target.asked.tag if target.asked is not None else None
    entry: dict[str, object] = {
        "mediaType": root.media_type,
        "digest": str(root.digest),
        "size": root.size,
    }
    if tag is not None:
        entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
    index = {"schemaVersion": 2, "manifests": [entry]}
    fileio.publish(folder / "oci-layout", b'{"imageLayoutVersion": "1.0.0"}\n')
    fileio.publish(folder / "index.json", json.dumps(index, indent=1).encode() + b"\n")
