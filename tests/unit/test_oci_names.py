import pytest

from passel.errors import InputError
from passel.ids import Digest
from passel.oci.names import V2Request, parse_path

HEX = "ab" * 32
SHA256 = f"sha256:{HEX}"
SHA512 = "sha512:" + "cd" * 64
DIGEST = Digest.parse(SHA256)


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        ("/v2", V2Request("ping")),
        ("/v2/", V2Request("ping")),
        ("/v2/_catalog", V2Request("catalog")),
        ("/v2/alpine/manifests/3.20", V2Request("manifest", "alpine", "3.20")),
        (f"/v2/a/b__c/manifests/{SHA256}", V2Request("manifest", "a/b__c", DIGEST)),
        (f"/v2/a/blobs/{SHA256}", V2Request("blob", "a", DIGEST)),
        (f"/v2/a/blobs/{SHA512}", V2Request("blob", "a", Digest.parse(SHA512))),
        (f"/v2/a/blobs/sha256%3A{HEX}", V2Request("blob", "a", DIGEST)),
        (f"/v2/a/blobs/{SHA256}?ns=docker.io", V2Request("blob", "a", DIGEST)),
        (f"/v2/a/referrers/{SHA256}", V2Request("referrers", "a", DIGEST)),
        ("/v2/a/b/tags/list", V2Request("tags", "a/b")),
        ("/v2/a/blobs/b/manifests/v1", V2Request("manifest", "a/blobs/b", "v1")),
        ("/v2/a/manifests/b/manifests/v1", V2Request("manifest", "a/manifests/b", "v1")),
        ("/v2/manifests/manifests/v1", V2Request("manifest", "manifests", "v1")),
        ("/v2/tags/list/tags/list", V2Request("tags", "tags/list")),
        # The fallback tag of the referrers API is an ordinary tag.
        (f"/v2/a/manifests/sha256-{HEX}", V2Request("manifest", "a", f"sha256-{HEX}")),
    ],
)
def test_paths_that_mean_something(path: str, request_: V2Request) -> None:
    assert parse_path(path) == request_


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("", 404, "UNSUPPORTED"),
        ("/", 404, "UNSUPPORTED"),
        ("/v1/_ping", 404, "UNSUPPORTED"),
        ("/v2x", 404, "UNSUPPORTED"),
        ("/v2/_oci/ext/discover", 404, "UNSUPPORTED"),
        ("/v2/manifests/v1", 404, "UNSUPPORTED"),
        ("/v2/a/blobs/uploads/", 404, "UNSUPPORTED"),
        ("/v2/a/blobs/uploads", 400, "DIGEST_INVALID"),
        ("/v2/A/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/a%0A/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/a/../b/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/a//b/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/%2Fa/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/a%252Fb/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/%ff/manifests/v1", 400, "NAME_INVALID"),
        (f"/v2/{'a' * 256}/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/a/manifests/" + "v" * 3000, 400, "NAME_INVALID"),
        ("/v2/a/manifests/", 400, "MANIFEST_INVALID"),
        ("/v2/a/manifests/.v1", 400, "MANIFEST_INVALID"),
        ("/v2/a/manifests/v1%0A", 400, "MANIFEST_INVALID"),
        (f"/v2/a/manifests/{'v' * 129}", 400, "MANIFEST_INVALID"),
        ("/v2/a/manifests/md5:00", 400, "DIGEST_INVALID"),
        (f"/v2/a/blobs/{SHA256}%0A", 400, "DIGEST_INVALID"),
        (f"/v2/a/blobs/{SHA256.upper()}", 400, "DIGEST_INVALID"),
        (f"/v2/a/blobs/{SHA256[:-1]}", 400, "DIGEST_INVALID"),
        (f"/v2/a/blobs/{HEX}", 400, "DIGEST_INVALID"),
    ],
)
def test_paths_that_are_refused(path: str, status: int, code: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_path(path)
    assert (caught.value.status, caught.value.code) == (status, code)


@pytest.mark.parametrize(
    "path",
    ["/v2/", "/v2/_catalog", "/v2/a/b/tags/list", "/v2/a/manifests/v1", f"/v2/a/blobs/{SHA256}"],
)
def test_the_path_for_the_origin_is_the_same_request(path: str) -> None:
    assert parse_path(path).path == path


def test_digest_and_tag_of_a_request() -> None:
    assert parse_path("/v2/a/manifests/v1").tag == "v1"
    assert parse_path("/v2/a/manifests/v1").digest is None
    assert parse_path(f"/v2/a/blobs/{SHA256}").digest == DIGEST
    assert parse_path(f"/v2/a/blobs/{SHA256}").tag is None
