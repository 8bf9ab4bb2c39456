"""While the origin is away: who is served, what it is told, and that nobody waits in vain."""

from __future__ import annotations

import asyncio
from pathlib import Path

from prometheus_client import generate_latest
from unit.gateway_fakes import CHALLENGE, PIECE, config_for, noise, world
from unit.test_gateway_manifests import manifest, publish

DATA = noise(3 * PIECE)
ALICE = "Basic YWxpY2U6c2VjcmV0"


async def test_it_is_said_and_counted(tmp_path: Path) -> None:
    config = config_for(tmp_path, grant_ttl="50 ms", tag_ttl="50 ms")
    async with world(tmp_path, config) as w:
        digest = w.add(DATA)
        w.door.put(DATA)
        w.door.public.clear()
        publish(w, manifest())
        paths = ("/v2/app/manifests/v1", f"/v2/app/blobs/{digest}")
        for path in paths:
            assert "Warning" not in (await w.get(path))[1]
        await asyncio.sleep(0.1)
        w.origin.is_down = True
        for path in paths:
            for method in ("GET", "HEAD"):
                status, headers, _ = await w.get(path, method)
                assert (status, headers["Warning"][:4]) == (200, "299 ")
        metrics = generate_latest(w.context.registry).decode()
        assert 'passel_gateway_origin_up{upstream="lab"} 0.0' in metrics
        assert 'passel_gateway_stale_total{kind="manifest"} 2.0' in metrics
        assert 'passel_gateway_stale_total{kind="blob"} 2.0' in metrics
        w.origin.is_down = False
        w.context.outages._ask_again_at["lab"] = 0.0
        assert "Warning" not in (await w.get(paths[0]))[1]
        metrics = generate_latest(w.context.registry).decode()
        assert 'passel_gateway_origin_up{upstream="lab"} 1.0' in metrics


async def test_an_origin_that_is_away_is_asked_once_in_a_while(tmp_path: Path) -> None:
    """Not once per read: each of those would wait for seconds where packets are dropped."""
    config = config_for(tmp_path, grant_ttl="50 ms", tag_ttl="50 ms")
    async with world(tmp_path, config) as w:
        digests = [w.add(noise(PIECE, i)) for i in range(5)]
        for i in range(5):
            w.door.put(noise(PIECE, i))
        w.door.public.clear()
        publish(w, manifest())
        for digest in digests:
            assert (await w.get(f"/v2/app/blobs/{digest}"))[0] == 200
        assert (await w.get("/v2/app/manifests/v1"))[0] == 200
        await asyncio.sleep(0.1)
        w.origin.is_down = True
        w.origin.calls.clear()
        for _ in range(3):
            for digest in digests:
                assert (await w.get(f"/v2/app/blobs/{digest}"))[0] == 200
            assert (await w.get("/v2/app/manifests/v1"))[0] == 200
        assert len(w.origin.calls) == 1


async def test_clients_are_asked_for_the_credentials_that_their_grants_are_under(
    tmp_path: Path,
) -> None:
    """containerd, podman and nydusd show none before they were asked."""
    config = config_for(tmp_path, grant_ttl="50 ms", tag_ttl="50 ms")
    async with world(tmp_path, config) as w:
        digest = w.add(DATA)
        w.door.put(DATA)
        w.door.public.clear()
        publish(w, manifest())
        w.origin.private["app"] = ALICE
        paths = ("/v2/app/manifests/v1", f"/v2/app/blobs/{digest}")
        for path in paths:
            assert (await w.get(path))[0] == 401
            assert (await w.get(path, Authorization=ALICE))[0] == 200
        await asyncio.sleep(0.1)
        w.origin.is_down = True
        for path in paths:
            status, headers, _ = await w.get(path)
            assert (status, headers["WWW-Authenticate"]) == (401, CHALLENGE)
            assert (await w.get(path, Authorization=ALICE))[0] == 200
            assert (await w.get(path, Authorization=ALICE + "x"))[0] == 502


async def test_a_dedicated_listener_remembers_its_challenge(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        url = f"{w.dedicated}/v2/"
        w.origins["other"].private[""] = ALICE
        assert (await w.get(url))[0] == 401
        w.context.outages.failed("other")
        w.origins["other"].is_down = True
        status, headers, _ = await w.get(url)
        assert (status, headers["WWW-Authenticate"]) == (401, CHALLENGE)


async def test_a_thousand_clients_and_one_tag(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        publish(w, manifest())
        raw = b"GET /v2/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        answers = await asyncio.gather(*(w.raw(raw, wait_s=30) for _ in range(1000)))
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
        assert all(answer.endswith(manifest()) for answer in answers)
        assert w.origin.count("GET") == 1
        assert w.origin.count("HEAD") == 0
