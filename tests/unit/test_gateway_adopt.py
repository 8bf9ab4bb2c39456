"""A gateway that goes by another configuration, and one whose peer is of another version."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from unit.gateway_fakes import PIECE, config_for, noise, world

from passel.config import Config, dump, parse
from passel.config.live import Applied, applied_path, encode
from passel.core.versions import OLDEST, WIRE
from passel.gateway.app import Gateway
from passel.store import fileio

DATA = noise(2 * PIECE)
ALICE = "Basic YWxpY2U6c2VjcmV0"


def without(config: Config, upstream: str) -> Config:
    values = yaml.safe_load(dump(config))
    del values["upstreams"][upstream]
    return parse(yaml.safe_dump(values))


async def test_an_upstream_that_is_gone_is_unknown_at_once(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA, upstream="other")
        path = f"/v2/app/blobs/{digest}"
        assert (await w.get(f"{path}?ns=other"))[0] == 200
        w.context.adopt(without(w.context.config, "other"))
        assert (await w.get(f"{path}?ns=other"))[0] == 404
        w.context.adopt(config_for(tmp_path))
        assert (await w.get(f"{path}?ns=other"))[0] == 200


async def test_an_upstream_that_changes_has_granted_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.public.clear()
        w.origin.private["app"] = ALICE
        path = f"/v2/app/blobs/{digest}"
        w.door.put(DATA)
        assert (await w.get(path, Authorization=ALICE))[0] == 200
        w.origin.private["app"] = "Basic somebody else"
        assert (await w.get(path, Authorization=ALICE))[0] == 200, "the grant holds"
        w.context.adopt(config_for(tmp_path, tag_ttl="1 s"))
        assert (await w.get(path, Authorization=ALICE))[0] == 401


async def test_what_the_peer_has_written_is_taken_up(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    gateway = Gateway(config)
    try:
        assert gateway.context.config.gateway.limits.client_misses == 512
        text = (
            "upstreams: {lab: {api: 'http://127.0.0.1:5055'}}\n"
            "gateway: {limits: {client_misses: 3}}\n"
        )
        fileio.publish(applied_path(config), encode(Applied(7, text)))
        gateway._look_for_config()
        assert gateway.context.config.gateway.limits.client_misses == 3
        assert list(gateway.context.config.upstreams) == ["lab"]
        assert gateway.note["config_version"] == 7
        # What cannot be used changes nothing, and the file that is gone gives the own one back.
        fileio.publish(applied_path(config), b"half of")
        gateway._look_for_config()
        assert list(gateway.context.config.upstreams) == list(config.upstreams)
        fileio.publish(applied_path(config), encode(Applied(8, text)))
        gateway._look_for_config()
        applied_path(config).unlink()
        gateway._look_for_config()
        assert gateway.context.config == config
    finally:
        await gateway.context.close()
    fileio.publish(applied_path(config), encode(Applied(9, text)))
    again = Gateway(config)
    try:
        assert list(again.context.config.upstreams) == ["lab"], "also at its start"
    finally:
        await again.context.close()


async def test_a_peer_of_another_version_costs_no_read_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path) as w:
        w.door.says_version = f"{WIRE + 2} {WIRE + 1}"
        for seed in (1, 2):
            digest = w.add(noise(PIECE, seed))
            status, headers, body = await w.get(f"/v2/app/blobs/{digest}")
            assert (status, body) == (200, noise(PIECE, seed))
            assert headers["X-Passel-Source"] == "origin"
        assert caplog.text.count("peer_of_another_version") == 1, "said once"
        # The next version understands this one; one that says nothing is from before.
        for says in (f"{WIRE + 1} {OLDEST}", None, "nonsense"):
            w.door.says_version = says
            digest = w.add(noise(PIECE, 3))
            _, headers, _ = await w.get(f"/v2/app/blobs/{digest}")
            assert headers["X-Passel-Source"] != "origin"
