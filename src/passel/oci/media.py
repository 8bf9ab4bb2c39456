"""Media types of manifests, and what an Accept header lets through.

Source: OCI image-spec v1.1 "media-types.md"; Docker "Image Manifest V 2, Schema 2".
"""

from __future__ import annotations

from collections.abc import Sequence

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES = frozenset({OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST})
BLOB_TYPE = "application/octet-stream"

#: What origins are asked for manifests with. Always the same, so that a tag means the same digest
#: for everybody; a registry that is asked for ``*/*`` alone may say 404 to an index.
CANONICAL_ACCEPT = f"{OCI_INDEX}, {DOCKER_LIST}, {OCI_MANIFEST}, {DOCKER_MANIFEST}, */*;q=0.1"


def bare_media_type(content_type: str | None) -> str:
    """The media type of a Content-Type without its parameters, in lower case; '' for none."""
    return (content_type or "").partition(";")[0].strip().lower()


def is_manifest_type(content_type: str | None) -> bool:
    """Whether this is a manifest that passel understands.

    Schema 1 is not one: its digest is not that of its bytes.
    """
    return bare_media_type(content_type) in MANIFEST_TYPES


def accepts(lines: Sequence[str], media_type: str) -> bool:
    """Whether all Accept lines of a request together let `media_type` through.

    containers/image and docker send six lines, so all of them must be handed in. No line at all
    accepts everything. A range with ``q=0`` refuses; the most specific range that matches decides.
    """
    if not lines:
        return True
    main = media_type.partition("/")[0]
    ranks = {media_type: 3, f"{main}/*": 2, "*/*": 1}
    best, accepted = 0, False
    for line in lines:
        for element in line.split(","):
            name, *parameters = element.split(";")
            rank = ranks.get(name.strip().lower(), 0)
            if rank > best or (rank == best > 0 and not accepted):
                best, accepted = rank, _quality(parameters) > 0
    return accepted


def _quality(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                return float(value)
            except ValueError:
                return 1.0
    return 1.0
