import json

import pytest

from passel.errors import DigestMismatch, OriginNonsense
from passel.ids import Digest
from passel.oci.manifests import (
    MANIFEST_BYTES_MAX,
    Descriptor,
    check_manifest,
    compute_digest,
    descriptors,
)
from passel.oci.media import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST

A, B, C = (Digest("sha256", letter * 64) for letter in "abc")


def item(digest: object, size: object = 7, media_type: object = "t") -> dict[str, object]:
    return {"digest": str(digest), "size": size, "mediaType": media_type}


IMAGE = {"schemaVersion": 2, "config": item(A), "layers": [item(B, 0), item(C, 2**40)]}
INDEX = {"schemaVersion": 2, "manifests": [item(A, media_type=OCI_MANIFEST)]}


def check(document: object, content_type: str | None, body: bytes | None = None) -> str:
    body = json.dumps(document).encode() if body is None else body
    return check_manifest(body, content_type, compute_digest(body)).media_type


def test_an_image_and_an_index() -> None:
    body = json.dumps(IMAGE).encode()
    manifest = check_manifest(body, f"{OCI_MANIFEST}; charset=utf-8", compute_digest(body))
    assert (manifest.size, manifest.media_type, manifest.is_index) == (
        len(body),
        OCI_MANIFEST,
        False,
    )
    assert manifest.descriptors == (
        Descriptor(A, 7, "t"), Descriptor(B, 0, "t"), Descriptor(C, 2**40, "t"),
    )  # fmt: skip
    assert descriptors(body, OCI_MANIFEST) == manifest.descriptors
    body = json.dumps(INDEX).encode()
    index = check_manifest(body, OCI_INDEX, compute_digest(body))
    assert index.is_index
    assert index.descriptors == (Descriptor(A, 7, OCI_MANIFEST),)


def test_sha512() -> None:
    body = json.dumps(IMAGE).encode()
    digest = Digest("sha512", "0" * 128)
    with pytest.raises(DigestMismatch) as caught:
        check_manifest(body, OCI_MANIFEST, digest)
    assert check_manifest(body, OCI_MANIFEST, Digest.parse(caught.value.got)).size == len(body)


def test_the_type_comes_from_the_manifest_first() -> None:
    assert check({**IMAGE, "mediaType": DOCKER_MANIFEST}, OCI_MANIFEST) == DOCKER_MANIFEST
    assert check({**INDEX, "mediaType": DOCKER_LIST}, "application/json") == DOCKER_LIST
    assert check(IMAGE, "application/json") == OCI_MANIFEST
    assert check(INDEX, None) == OCI_INDEX


def test_bytes_with_another_digest() -> None:
    with pytest.raises(DigestMismatch):
        check_manifest(b"{}", OCI_MANIFEST, A)


@pytest.mark.parametrize(
    ("document", "content_type"),
    [
        ([], OCI_MANIFEST),
        ({}, None),
        ({}, "application/json"),
        ({**IMAGE, **INDEX}, OCI_INDEX),
        ({**INDEX, "layers": []}, OCI_INDEX),
        (IMAGE, OCI_INDEX),
        (INDEX, DOCKER_MANIFEST),
        ({**IMAGE, "mediaType": "application/evil"}, OCI_MANIFEST),
        (
            {"schemaVersion": 1, "fsLayers": []},
            "application/vnd.docker.distribution.manifest.v1+json",
        ),
    ],
)
def test_what_is_no_manifest(document: object, content_type: str | None) -> None:
    with pytest.raises(OriginNonsense):
        check(document, content_type)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\xff", b"{", b"\xff\xfe{\x00}\x00", b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}",
        b" " * (MANIFEST_BYTES_MAX + 1),
    ],
)  # fmt: skip
def test_bytes_that_are_no_json(body: bytes) -> None:
    with pytest.raises(OriginNonsense):
        check(None, OCI_MANIFEST, body)


def test_descriptors_without_sense_are_left_out() -> None:
    layers = [
        None, 5, {}, item("sha256:x"), item(A, -1), item(A, True), item(A, "7"), item(A, 2**63),
        item(B), {"digest": str(C), "size": 1},
    ]  # fmt: skip
    body = json.dumps({"schemaVersion": 2, "config": [], "layers": layers}).encode()
    found = descriptors(body, OCI_MANIFEST)
    assert found == (Descriptor(B, 7, "t"), Descriptor(C, 1, ""))
