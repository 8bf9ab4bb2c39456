"""Media types, error bodies and challenges."""

import json

import pytest

from passel.errors import InputError
from passel.oci.challenge import Challenge, format_challenge, parse_challenges
from passel.oci.errors import error_body, input_error_body
from passel.oci.media import (
    CANONICAL_ACCEPT,
    DOCKER_MANIFEST,
    MANIFEST_TYPES,
    OCI_INDEX,
    accepts,
    bare_media_type,
    is_manifest_type,
)


@pytest.mark.parametrize(
    ("lines", "accepted"),
    [
        ([], True),
        ([OCI_INDEX], True),
        ([OCI_INDEX.upper()], True),
        ([f"{DOCKER_MANIFEST}, {OCI_INDEX};q=0.5"], True),
        ([DOCKER_MANIFEST, OCI_INDEX], True),
        ([DOCKER_MANIFEST], False),
        ([f"{DOCKER_MANIFEST}, */*"], True),
        (["application/*"], True),
        (["text/*"], False),
        ([f"{OCI_INDEX};q=0, */*"], False),
        (["*/*", f"{OCI_INDEX};q=0"], False),
        (["*/*;q=0"], False),
        ([""], False),
        ([f"{OCI_INDEX};q=x"], True),
    ],
)
def test_accept(lines: list[str], accepted: bool) -> None:
    assert accepts(lines, OCI_INDEX) is accepted


def test_the_canonical_accept_takes_every_manifest() -> None:
    assert all(accepts([CANONICAL_ACCEPT], media_type) for media_type in MANIFEST_TYPES)


def test_media_types_lose_their_parameters() -> None:
    assert bare_media_type(f"{OCI_INDEX}; charset=utf-8") == OCI_INDEX
    assert bare_media_type(None) == ""
    assert is_manifest_type(f"{OCI_INDEX.upper()};x")
    assert not is_manifest_type("application/vnd.docker.distribution.manifest.v1+prettyjws")


def test_error_body() -> None:
    body = error_body("BLOB_UNKNOWN", 'no "blob" ü', {"digest": "x"})
    assert body.isascii()
    assert json.loads(body) == {
        "errors": [
            {"code": "BLOB_UNKNOWN", "message": 'no "blob" ü', "detail": {"digest": "x"}},
        ]
    }
    assert json.loads(input_error_body(InputError(400, "NAME_INVALID", "m"))) == {
        "errors": [{"code": "NAME_INVALID", "message": "m"}]
    }


def test_challenges() -> None:
    assert parse_challenges(
        [
            'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",'
            'scope="repository:x:pull,push"',
            'Basic realm="a \\"quoted\\" \\\\ name"',
        ]
    ) == [
        Challenge(
            "bearer",
            {
                "realm": "https://auth.docker.io/token",
                "service": "registry.docker.io",
                "scope": "repository:x:pull,push",
            },
        ),
        Challenge("basic", {"realm": 'a "quoted" \\ name'}),
    ]


def test_several_challenges_in_one_line() -> None:
    line = 'Newauth realm="apps", type=1 , Title="Log, in", Negotiate, NTLM TlRM==, Basic realm=""'
    assert parse_challenges([line]) == [
        Challenge("newauth", {"realm": "apps", "type": "1", "title": "Log, in"}),
        Challenge("negotiate"),
        Challenge("ntlm", {}, "TlRM=="),
        Challenge("basic", {"realm": ""}),
    ]


@pytest.mark.parametrize(
    ("line", "challenges"),
    [
        ("", []),
        (",,", []),
        ('Bearer realm="open', [Challenge("bearer")]),
        (
            'Bearer realm = "x"  ,  service = y',
            [Challenge("bearer", {"realm": "x", "service": "y"})],
        ),
        ('Bearer realm="x",realm="y"', [Challenge("bearer", {"realm": "x"})]),
        ('Basic realm="x" junk', [Challenge("basic")]),
        ("Bearer " + "a" * 20_000, []),
        ("Basic", [Challenge("basic")]),
    ],
)
def test_challenges_that_are_odd(line: str, challenges: list[Challenge]) -> None:
    assert parse_challenges([line]) == challenges


def test_a_challenge_is_read_as_it_was_written() -> None:
    params = {"realm": 'https://h/"x"\\', "service": "a,b"}
    text = format_challenge("Bearer", params)
    assert text == 'Bearer realm="https://h/\\"x\\"\\\\",service="a,b"'
    assert parse_challenges([text]) == [Challenge("bearer", params)]
    assert format_challenge("Negotiate", {}) == "Negotiate"
    with pytest.raises(ValueError, match="ASCII"):
        format_challenge("Bearer", {"realm": "a\r\nb"})
