"""Parsers against brute force, and against whatever text hypothesis thinks of."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from passel.errors import DigestMismatch, InputError, OriginNonsense
from passel.oci.challenge import format_challenge, parse_challenges
from passel.oci.manifests import check_manifest, compute_digest
from passel.oci.media import OCI_MANIFEST, accepts
from passel.oci.names import parse_path
from passel.oci.ranges import content_range, none_match, parse_content_range, parse_range
from passel.oci.upstream import Selectors, normalise_name, resolve, split_upstream

HEX = "0123456789abcdef" * 4
PATH_PARTS = st.sampled_from(
    ["/v2/", "/", "v2", "a", "A", "ghcr.io", "blobs", "manifests", "tags/list", "referrers", "%",
     "%2f", "%0a", "..", f"sha256:{HEX}", f"sha256:{HEX}\n", "sha256%3A", "_catalog", "?", "__",
     "-", "é", "\udc80"]
)  # fmt: skip
PATHS = st.text() | st.lists(PATH_PARTS | st.text(max_size=3), max_size=12).map("".join)
TABLE = {"ghcr.io": "ghcr.io", "a": "a", "docker.io": "docker.io"}

NUMBERS = st.integers(0, 14).map(str) | st.just("")
SPECS = st.tuples(NUMBERS, NUMBERS).map("-".join)


def known(name: str) -> str | None:
    return TABLE.get(name)


@given(PATHS)
@settings(max_examples=400)
def test_parse_path_raises_nothing_but_input_errors(path: str) -> None:
    try:
        request = parse_path(path)
    except InputError:
        return
    assert parse_path(request.path) == request
    assert request.path.isascii()
    assert request.path.isprintable()
    assert ".." not in request.path.split("/")


@given(PATHS)
@settings(max_examples=400)
def test_split_upstream_takes_away_exactly_the_name(path: str) -> None:
    key, rest = split_upstream(path, known)
    if key is None:
        assert rest == path
    else:
        assert rest.startswith("/v2/")
        assert len(rest) < len(path) + 2


@given(
    PATHS,
    st.lists(st.sampled_from(list(TABLE)) | st.text(max_size=8), max_size=2),
    st.lists(st.tuples(st.sampled_from(["x-passel-registry", "oci-namespace", "x"]), st.text())),
    st.none() | st.text(max_size=12),
    st.none() | st.sampled_from(list(TABLE)),
)
@settings(max_examples=300)
def test_a_request_means_a_configured_upstream_or_none(
    path: str,
    ns: list[str],
    headers: list[tuple[str, str]],
    host: str | None,
    dedicated: str | None,
) -> None:
    selectors = Selectors(path, ns=ns, headers=headers, host=host, dedicated=dedicated)
    try:
        choice, request = resolve(selectors, known)
    except InputError:
        return
    assert choice.upstream in TABLE or (choice.upstream is None and request.kind == "ping")
    assert dedicated in (None, choice.upstream)


@given(st.text(), st.booleans())
def test_normalise_name_is_idempotent_or_refuses(text: str, url: bool) -> None:
    try:
        name = normalise_name(text, url=url)
    except InputError:
        return
    assert normalise_name(name) == name
    assert not set(name) & set("/@?#% \n")


def requested(specs: list[str], size: int) -> list[list[int]] | None:
    """The positions that each range means, by listing all of them: the model of `parse_range`."""
    answer = []
    for spec in specs:
        first, last = spec.split("-")
        if not first and not last:
            return None
        if first and last and int(last) < int(first):
            return None
        if not first:
            positions = list(range(size))[-int(last) :] if int(last) else []
        else:
            end = int(last) if last else 10**6
            positions = [i for i in range(size) if int(first) <= i <= end]
        if positions:
            answer.append(positions)
    if size == 0 or (len(answer) > 1 and sum(map(len, answer)) > size):
        return None
    return answer


@given(st.lists(SPECS, min_size=1, max_size=4), st.integers(0, 12))
@settings(max_examples=500)
def test_parse_range_is_what_listing_all_positions_gives(specs: list[str], size: int) -> None:
    spans = parse_range("bytes=" + ",".join(specs), size)
    listed = None if spans is None else [list(range(start, stop)) for start, stop in spans]
    assert listed == requested(specs, size)


@given(st.text() | st.text("bytes=0123456789-, "), st.integers(0, 2**40))
def test_spans_lie_in_the_body_whatever_is_asked_for(header: str, size: int) -> None:
    try:
        spans = parse_range(header, size)
    except InputError:
        return
    assert all(0 <= start < stop <= size for start, stop in spans or ())


@given(st.integers(0, 10**15), st.integers(1, 10**15), st.integers(0, 10**15))
def test_content_range_comes_back(start: int, length: int, more: int) -> None:
    span = (start, start + length, start + length + more)
    assert parse_content_range(content_range(*span)) == span


@given(st.text(), st.text(), st.text())
def test_header_parsers_take_any_text(text: str, other: str, third: str) -> None:
    parse_challenges([text, other])
    accepts([text, other], OCI_MANIFEST)
    none_match([text, other], third)


PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126))


@given(
    st.dictionaries(st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True), PRINTABLE, max_size=5)
)
def test_challenges_come_back(params: dict[str, str]) -> None:
    text = f"{format_challenge('Bearer', params)}, {format_challenge('Basic', {'realm': 'x'})}"
    bearer, basic = parse_challenges([text])
    assert (bearer.scheme, bearer.params) == ("bearer", params)
    assert (basic.scheme, basic.params) == ("basic", {"realm": "x"})


FIELDS = ["config", "layers", "manifests", "digest", "size", "mediaType", "schemaVersion"]
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(FIELDS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON | st.binary(max_size=20))
def test_check_manifest_raises_what_it_says(document: Any) -> None:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    try:
        manifest = check_manifest(body, OCI_MANIFEST, compute_digest(body))
    except (OriginNonsense, DigestMismatch):
        return
    assert all(descriptor.size >= 0 for descriptor in manifest.descriptors)
