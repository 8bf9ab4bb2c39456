"""Requests are accepted from members of the cluster, for what they signed, lately, once."""

from __future__ import annotations

import pickle

import pytest

from passel.transport.auth import ClusterAuth

SECRET = b"a cluster secret of 32 bytes...."
PATH = "/v1/blobs/" + "0f" * 32 + "/pieces/3?turn=0&wait=1.000"
NOW = 1_700_000_000.25


def test_signed_request_is_accepted_by_another_member() -> None:
    header = ClusterAuth(SECRET).sign("GET", PATH, NOW)
    assert ClusterAuth(SECRET).verify("GET", PATH, header, NOW + 1)


def test_each_signature_is_good_once() -> None:
    auth = ClusterAuth(SECRET)
    header = auth.sign("GET", PATH, NOW)
    assert auth.verify("GET", PATH, header, NOW)
    assert not auth.verify("GET", PATH, header, NOW)
    assert not auth.verify("GET", PATH, header, NOW + 59)
    assert auth.verify("GET", PATH, auth.sign("GET", PATH, NOW), NOW)


def test_what_was_signed_is_what_counts() -> None:
    auth = ClusterAuth(SECRET)
    header = auth.sign("GET", PATH, NOW)
    assert not auth.verify("HEAD", PATH, header, NOW)
    assert not auth.verify("GET", PATH + "0", header, NOW)
    assert not auth.verify("GET", PATH.partition("?")[0], header, NOW)
    assert not ClusterAuth(SECRET[::-1]).verify("GET", PATH, header, NOW)
    later = header.replace(f"t={int(NOW * 1000)}", f"t={int(NOW * 1000) + 1}")
    assert later != header
    assert not auth.verify("GET", PATH, later, NOW)


@pytest.mark.parametrize("skew_s", [-60.0, -59.0, 0.0, 59.0, 60.0])
def test_clocks_may_differ_within_the_window(skew_s: float) -> None:
    auth = ClusterAuth(SECRET)
    assert auth.verify("GET", PATH, auth.sign("GET", PATH, NOW), NOW + skew_s)


@pytest.mark.parametrize("skew_s", [-3600.0, -60.01, 60.01, 3600.0])
def test_clocks_may_not_differ_more(skew_s: float) -> None:
    auth = ClusterAuth(SECRET)
    assert not auth.verify("GET", PATH, auth.sign("GET", PATH, NOW), NOW + skew_s)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer abc",
        "Passel-MAC",
        "Passel-MAC v=1,t=1,n=,m=",
        "Passel-MAC v=1,t=" + "9" * 400 + ",n=" + "0" * 24 + ",m=" + "0" * 64,
        "Passel-MAC v=1,t=\u0661,n=" + "0" * 24 + ",m=" + "0" * 64,
        "Passel-MAC v=2,t=1700000000250,n=" + "0" * 24 + ",m=" + "0" * 64,
    ],
)
def test_other_headers_are_refused(header: str | None) -> None:
    assert not ClusterAuth(SECRET).verify("GET", PATH, header, NOW)


def test_replay_table_is_bounded_and_still_refuses_replays() -> None:
    auth = ClusterAuth(SECRET, replays_max=10)
    headers = [auth.sign("GET", PATH, NOW + i / 100) for i in range(50)]
    assert all(auth.verify("GET", PATH, header, NOW + 1) for header in headers)
    assert len(auth._seen) == len(auth._recent) == 10
    assert not any(auth.verify("GET", PATH, header, NOW + 1) for header in headers)


def test_clock_set_back_lets_nothing_in_again() -> None:
    auth = ClusterAuth(SECRET)
    header = auth.sign("GET", PATH, NOW)
    assert auth.verify("GET", PATH, header, NOW)
    assert auth.verify("GET", PATH, auth.sign("GET", PATH, NOW + 100), NOW + 100)
    assert len(auth._seen) == 1
    assert not auth.verify("GET", PATH, header, NOW + 1)


def test_outsiders_do_not_fill_the_table() -> None:
    auth, outsider = ClusterAuth(SECRET), ClusterAuth(b"x" * 32)
    for _ in range(100):
        assert not auth.verify("GET", PATH, outsider.sign("GET", PATH, NOW), NOW)
    assert not auth._seen


def test_secret_is_not_shown_and_not_pickled() -> None:
    auth = ClusterAuth(SECRET)
    assert SECRET.decode() not in repr(auth)
    assert auth._keys[0].hex() not in repr(auth)
    with pytest.raises(TypeError):
        pickle.dumps(auth)


@pytest.mark.parametrize("secrets", [(), (b"short",), (SECRET, b"short")])
def test_short_secrets_are_refused(secrets: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match="at least 16"):
        ClusterAuth(*secrets)


def test_the_first_secret_signs_and_all_verify() -> None:
    old, new = SECRET, SECRET[::-1]
    spreading, signing = ClusterAuth(old, new), ClusterAuth(new, old)
    for signer, accepted in (
        (ClusterAuth(old), {"old", "spreading", "signing"}),
        (spreading, {"old", "spreading", "signing"}),
        (signing, {"spreading", "signing", "new"}),
        (ClusterAuth(new), {"spreading", "signing", "new"}),
    ):
        header = signer.sign("GET", PATH, NOW)
        verifiers = {
            "old": ClusterAuth(old),
            "spreading": ClusterAuth(old, new),
            "signing": ClusterAuth(new, old),
            "new": ClusterAuth(new),
        }
        told = {name for name, auth in verifiers.items() if auth.verify("GET", PATH, header, NOW)}
        assert told == accepted


def test_a_replaced_secret_is_one_of_nobody_and_replays_stay_refused() -> None:
    auth = ClusterAuth(SECRET)
    before, unused = (auth.sign("GET", PATH, NOW) for _ in range(2))
    assert auth.verify("GET", PATH, before, NOW)
    auth.replace(SECRET[::-1], SECRET)
    assert not auth.verify("GET", PATH, before, NOW), "a replay"
    auth.replace(SECRET[::-1])
    assert not auth.verify("GET", PATH, unused, NOW), "the secret is not ours any more"
