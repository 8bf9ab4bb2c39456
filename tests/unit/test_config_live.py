"""What can be changed while passel runs, and what becomes of a node's own file."""

from __future__ import annotations

from pathlib import Path

import pytest

from passel.config import dump, parse
from passel.config.live import (
    LIVE,
    Applied,
    applied_path,
    decode,
    encode,
    merged,
    read_applied,
    refusals,
    with_applied,
    written_keys,
)
from passel.errors import ConfigError

OWN = parse(
    """
    upstreams: {lab: {api: "http://127.0.0.1:5055"}}
    default_upstream: lab
    gateway: {listen: ["127.0.0.1:7001"], dedicated: {"127.0.0.1:7002": lab}}
    store: {path: /data/n2/store, capacity: 10 GiB}
    peer: {upload_slots: 7}
    """
)
WANTED = """
    upstreams:
      lab: {api: "http://127.0.0.1:5055", quota: 2 GiB, read_policy: open}
      ghcr.io: {}
    default_upstream: ghcr.io
    gateway: {limits: {client_misses: 9}}
    store: {capacity: 20 GiB}
    webhooks: {targets: all}
    logging: {level: debug}
    """


def test_live_keys_are_taken_and_the_nodes_own_stay() -> None:
    result = merged(OWN, WANTED)
    assert list(result.upstreams) == ["lab", "ghcr.io"]
    assert result.upstreams["lab"].quota == 2 * 2**30
    assert result.default_upstream == "ghcr.io"
    assert result.gateway.limits.client_misses == 9
    assert result.store.capacity == 20 * 2**30
    assert result.webhooks.targets == "all"
    assert result.logging.level == "debug"
    assert result.store.path == Path("/data/n2/store")
    assert result.gateway.listen == ("127.0.0.1:7001",)
    assert result.gateway.dedicated == {"127.0.0.1:7002": "lab"}
    assert result.peer.upload_slots == 7
    # What the file does not say has its default again, as if passel had been started with it.
    lab = 'upstreams: {lab: {api: "http://127.0.0.1:5055"}}'
    assert merged(result, lab).gateway.limits.client_misses == 512
    assert merged(OWN, dump(OWN)) == OWN


def test_both_together_must_make_sense() -> None:
    with pytest.raises(ConfigError, match=r"gateway.dedicated.*expected the key of an upstream"):
        merged(OWN, "upstreams: {ghcr.io: {}}")
    with pytest.raises(ConfigError, match="capacity"):
        merged(OWN, "store: {capacity: 10}")


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (WANTED, []),
        ("{}", []),
        ("gateway: {listen: ['127.0.0.1:7001']}", []),
        ("gateway: {listen: ['127.0.0.1:1']}", ["gateway.listen"]),
        ("gateway: {dedicated: {'127.0.0.1:7002': docker.io}}", ["gateway.dedicated"]),
        ("store: {path: /elsewhere, scrub: 1 d}", ["store.path", "store.scrub"]),
        ("peer: {upload_slots: 8, tls: false}", ["peer.upload_slots"]),
        ("cluster: other", ["cluster"]),
        ("gateway: {limits: {header_bytes: 128 KiB}}", ["gateway.limits.header_bytes"]),
    ],
)
def test_what_needs_a_restart_is_refused_with_its_key(text: str, keys: list[str]) -> None:
    said = refusals(OWN, written_keys(parse(text)))
    assert [each.partition(":")[0] for each in said] == keys
    assert all("cannot be changed while passel runs" in each for each in said)


def test_every_live_key_is_a_key() -> None:
    for key in LIVE:
        section: object = OWN
        for step in key.split("."):
            assert hasattr(section, step), key
            section = getattr(section, step)


def test_what_the_peer_writes_the_gateway_reads(tmp_path: Path) -> None:
    own = parse(f"store: {{path: {tmp_path}/store}}")
    path = applied_path(own)
    assert read_applied(path) is None
    assert with_applied(own, None) is own
    path.write_bytes(encode(Applied(3, WANTED)))
    applied = read_applied(path)
    assert applied == Applied(3, WANTED)
    assert with_applied(own, applied).webhooks.targets == "all"
    assert with_applied(own, Applied(4, "upstreams: [")) is own
    for nonsense in (b"", b"[]", b'{"version": "x", "text": ""}', b"\xff"):
        assert decode(nonsense) is None
