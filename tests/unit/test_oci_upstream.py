from typing import Any

import pytest

from passel.errors import InputError
from passel.oci.upstream import (
    Choice,
    Selectors,
    at_upstream,
    choose,
    normalise_name,
    resolve,
    split_upstream,
)

HEX = "ab" * 32
BLOB = f"blobs/sha256:{HEX}"
TABLE = {
    "docker.io": "docker.io",
    "index.docker.io": "docker.io",
    "ghcr.io": "ghcr.io",
    "registry.corp:5000": "registry.corp:5000",
    "corp": "registry.corp:5000",
    "lab": "lab",
}
PLAIN = f"/v2/org/app/{BLOB}"


def known(name: str) -> str | None:
    return TABLE.get(name)


def own(authority: str) -> bool:
    return authority in ("127.0.0.1:65001", "localhost:65001", "lab")


def chosen(path: str = PLAIN, **selectors: Any) -> Choice:
    return choose(Selectors(path, **selectors), known)


def refused(path: str = PLAIN, **selectors: Any) -> tuple[int, str]:
    with pytest.raises(InputError) as caught:
        choose(Selectors(path, **selectors), known)
    return caught.value.status, caught.value.code


def test_every_way_to_name_an_upstream() -> None:
    assert chosen(dedicated="lab") == Choice("lab", "dedicated", PLAIN)
    assert chosen(absolute="http://ghcr.io") == Choice("ghcr.io", "absolute", PLAIN)
    assert chosen(headers=[("X-Passel-Registry", "ghcr.io")]) == Choice("ghcr.io", "header", PLAIN)
    assert chosen(ns=["ghcr.io"]) == Choice("ghcr.io", "ns", PLAIN)
    assert chosen(f"/v2/ghcr.io/org/app/{BLOB}") == Choice("ghcr.io", "path", PLAIN)
    assert chosen(f"/ghcr.io/v2/org/app/{BLOB}") == Choice("ghcr.io", "path", PLAIN)
    assert chosen(host="ghcr.io") == Choice("ghcr.io", "host", PLAIN)
    learned = choose(Selectors(PLAIN, default="lab"), known, learned=lambda request: "ghcr.io")
    assert learned == Choice("ghcr.io", "learned", PLAIN)
    assert chosen(default="docker.io") == Choice("docker.io", "default", PLAIN)
    assert refused() == (404, "NAME_UNKNOWN")


def test_the_first_way_that_applies_wins() -> None:
    everything: dict[str, Any] = {
        "absolute": "http://docker.io",
        "headers": [("oci-namespace", "ghcr.io")],
        "ns": ["lab"],
        "host": "ghcr.io",
        "default": "docker.io",
    }
    path = f"/v2/corp/org/app/{BLOB}"
    ways = []
    for name, nothing in (
        ("absolute", None), ("headers", ()), ("ns", ()), ("path", None), ("host", None),
        ("default", None),
    ):  # fmt: skip
        choice = chosen(path, **everything)
        ways.append((choice.upstream, choice.way))
        if name == "path":
            path = PLAIN
        else:
            everything[name] = nothing
    assert ways == [
        ("docker.io", "absolute"),
        ("ghcr.io", "header"),
        ("lab", "ns"),
        ("registry.corp:5000", "path"),
        ("ghcr.io", "host"),
        ("docker.io", "default"),
    ]


def test_headers_in_their_order_and_as_urls() -> None:
    headers = [
        ("OCI-Namespace", "lab"),
        ("X-Dragonfly-Registry", "https://index.docker.io/"),
        ("Authorization", "Basic x"),
    ]
    assert chosen(headers=headers).upstream == "docker.io"
    assert chosen(headers=[("X-Passel-Registry", "ghcr.io"), *headers]).upstream == "ghcr.io"
    assert refused(headers=[("OCI-Namespace", "https://ghcr.io")]) == (400, "NAME_INVALID")
    twice = [("X-Passel-Registry", "ghcr.io"), ("x-passel-registry", "lab")]
    assert refused(headers=twice) == (400, "NAME_INVALID")
    assert refused(headers=[("X-Passel-Registry", "ghcr.io/v2")]) == (400, "NAME_INVALID")
    assert refused(headers=[("X-Passel-Registry", "")]) == (400, "NAME_INVALID")


def test_names_that_are_not_configured() -> None:
    assert refused(headers=[("X-Passel-Registry", "evil.example")]) == (404, "NAME_UNKNOWN")
    assert refused(ns=["evil.example"], default="docker.io") == (404, "NAME_UNKNOWN")
    assert refused(absolute="http://169.254.169.254") == (403, "DENIED")
    assert refused(absolute="http://u:p@ghcr.io") == (400, "NAME_INVALID")
    assert chosen(host="evil.example", default="lab").way == "default"
    assert chosen(host="\x00", default="lab").way == "default"


def test_two_values_of_ns() -> None:
    assert refused(ns=["ghcr.io", "lab"]) == (400, "NAME_INVALID")
    assert refused(ns=["ghcr.io", "lab"], headers=[("OCI-Namespace", "lab")])[0] == 400
    assert refused(ns=["ghcr.io", "lab"], dedicated="lab")[0] == 400
    assert chosen(ns=["ghcr.io", "GHCR.io."]).upstream == "ghcr.io"


def test_a_dedicated_listener_serves_one_upstream_only() -> None:
    for other in (
        {"ns": ["ghcr.io"]},
        {"headers": [("X-Passel-Registry", "ghcr.io")]},
        {"absolute": "http://ghcr.io"},
        {"host": "ghcr.io"},
        {"path": f"/v2/ghcr.io/org/app/{BLOB}"},
        {"path": f"/ghcr.io/v2/org/app/{BLOB}"},
    ):
        assert refused(dedicated="docker.io", **other) == (404, "NAME_UNKNOWN")
    with pytest.raises(InputError, match=r"this listener serves docker\.io only"):
        choose(Selectors(PLAIN, dedicated="docker.io", ns=["lab"]), known)
    assert chosen(dedicated="docker.io", ns=["index.docker.io"]).way == "dedicated"
    prefixed = chosen(f"/v2/docker.io/org/app/{BLOB}", dedicated="docker.io")
    assert prefixed == Choice("docker.io", "dedicated", PLAIN)


def test_a_prefix_next_to_other_names() -> None:
    path = f"/v2/ghcr.io/org/app/{BLOB}"
    # containerd with override_path sends prefix and ns
    assert chosen(path, ns=["ghcr.io"]) == Choice("ghcr.io", "ns", PLAIN)
    assert chosen(path, ns=["docker.io"]) == Choice("docker.io", "ns", path)
    # with a header and in proxy mode the path stands as it is
    assert chosen(path, headers=[("X-Passel-Registry", "ghcr.io")]).path == path
    assert chosen(path, absolute="http://ghcr.io").path == path


def test_the_gateways_own_address_names_nothing() -> None:
    selectors = Selectors(PLAIN, absolute="http://127.0.0.1:65001", host="lab", default="docker.io")
    assert choose(selectors, known, own=own).way == "default"
    assert choose(selectors, known, own=lambda authority: authority != "lab").way == "host"


def test_a_ping_without_a_name_is_the_gateways_own() -> None:
    assert chosen("/v2/") == Choice(None, None, "/v2/")
    assert chosen("/v2/", default="lab").upstream == "lab"
    assert chosen("/v2/ghcr.io/").path == "/v2/"
    assert resolve(Selectors("/v2"), known)[1].kind == "ping"
    with pytest.raises(InputError):
        resolve(Selectors("/metrics"), known)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v2/ghcr.io/a/manifests/v1", ("ghcr.io", "/v2/a/manifests/v1")),
        ("/v2/GHCR.io/a/manifests/v1?ns=x", ("ghcr.io", "/v2/a/manifests/v1")),
        ("/ghcr.io/v2/a/manifests/v1", ("ghcr.io", "/v2/a/manifests/v1")),
        ("/ghcr.io/v2/", ("ghcr.io", "/v2/")),
        ("/ghcr.io/v2", ("ghcr.io", "/v2/")),
        ("/v2/registry.corp%3A5000/a/tags/list", ("registry.corp:5000", "/v2/a/tags/list")),
        ("/v2/corp/blobs/manifests/v1", ("registry.corp:5000", "/v2/blobs/manifests/v1")),
        # what is left must have a repository
        ("/v2/lab/manifests/v1", (None, "/v2/lab/manifests/v1")),
        (f"/v2/lab/{BLOB}", (None, f"/v2/lab/{BLOB}")),
        ("/v2/lab/tags/list", (None, "/v2/lab/tags/list")),
        ("/v2/other/a/manifests/v1", (None, "/v2/other/a/manifests/v1")),
        ("/v2/ghcr.io%2Fa/manifests/v1", (None, "/v2/ghcr.io%2Fa/manifests/v1")),
        ("/ghcr.io/v1/a", (None, "/ghcr.io/v1/a")),
        ("v2/ghcr.io/a/manifests/v1", (None, "v2/ghcr.io/a/manifests/v1")),
        ("/", (None, "/")),
        ("", (None, "")),
    ],
)
def test_split_upstream(path: str, expected: tuple[str | None, str]) -> None:
    assert split_upstream(path, known) == expected


def test_docker_hub_has_a_library() -> None:
    choice, request = resolve(Selectors("/v2/alpine/manifests/3", default="docker.io"), known)
    assert (choice.upstream, request.repository) == ("docker.io", "library/alpine")
    _, request = resolve(Selectors("/v2/index.docker.io/alpine/tags/list"), known)
    assert request.repository == "library/alpine"
    _, request = resolve(Selectors("/v2/alpine/manifests/3", default="lab"), known)
    assert request.repository == "alpine"
    _, request = resolve(Selectors("/v2/", default="docker.io"), known)
    assert at_upstream("docker.io", request).repository is None


@pytest.mark.parametrize(
    ("text", "url", "name"),
    [
        ("Docker.IO", False, "docker.io"),
        ("docker.io.", False, "docker.io"),
        ("docker.io.:443", False, "docker.io:443"),
        ("registry.corp:05000", False, "registry.corp:5000"),
        ("https://index.docker.io", True, "index.docker.io"),
        ("HTTPS://index.docker.io:443/", True, "index.docker.io"),
        ("http://lab:80", True, "lab"),
        ("http://lab:443", True, "lab:443"),
        ("lab", True, "lab"),
        ("[::1]:5000", False, "[::1]:5000"),
        ("[0:0::1]", False, "[::1]"),
        ("127.0.0.1:5055", False, "127.0.0.1:5055"),
    ],
)
def test_normalise_name(text: str, url: bool, name: str) -> None:
    assert normalise_name(text, url=url) == name


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "a..b", "-a", "a-", "a b", "a\n", "a\x00", "a/b", "u@a", "u:p@a", "a:", "a:0",
        "a:65536", "a:1:2", "::1", "[::1", "[x]", "https://a", "ftp://a", "a?b", "a#b", "a%2eb",
        "bücher.example", "a" * 64, ("a" * 60 + ".") * 5 + "a", "a:\u0661",
    ],
)  # fmt: skip
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(InputError) as caught:
        normalise_name(text)
    assert caught.value.status == 400
    assert len(text) < 2 or text not in caught.value.message


@pytest.mark.parametrize(
    "text", ["https://", "https://a/b", "https://u@a", "ftp://a", "https://a?x"]
)
def test_urls_that_name_nothing(text: str) -> None:
    with pytest.raises(InputError):
        normalise_name(text, url=True)
