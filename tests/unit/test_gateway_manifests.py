from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest
from unit.gateway_fakes import World, config_for, digest_of, world

from passel.gateway.manifestcache import ManifestCache, checked
from passel.ids import Digest
from passel.oci.media import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST

ALICE = "Bearer alice-token"


def manifest(layer: str = "a", media_type: str = OCI_MANIFEST) -> bytes:
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": {"mediaType": "c", "digest": "sha256:" + "c" * 64, "size": 3},
            "layers": [{"mediaType": "l", "digest": "sha256:" + layer * 64, "size": 77}],
        }
    ).encode()


def publish(w: World, body: bytes, tag: str = "v1", media_type: str = OCI_MANIFEST) -> str:
    digest = str(digest_of(body))
    w.origin.manifests["app", tag] = (media_type, body)
    w.origin.manifests["app", digest] = (media_type, body)
    return digest


async def test_by_digest_is_asked_once(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        body = manifest()
        digest = publish(w, body)
        path = f"/v2/app/manifests/{digest}"
        answers = await asyncio.gather(*(w.get(path) for _ in range(6)))
        for status, headers, got in answers:
            assert (status, got) == (200, body)
            assert headers["Content-Type"] == OCI_MANIFEST
            assert headers["Docker-Content-Digest"] == digest
            assert headers["ETag"] == f'"{digest}"'
            assert headers["OCI-Namespace"] == "lab"
            assert "Set-Cookie" not in headers
        assert w.origin.count("GET") == 1
        status, headers, got = await w.get(path, "HEAD")
        assert (status, headers["Content-Length"], got) == (200, str(len(body)), b"")
        status, headers, got = await w.get(path, Range="bytes=0-")
        assert (status, got) == (206, body)
        assert headers["Content-Range"] == f"bytes 0-{len(body) - 1}/{len(body)}"
        assert (await w.get(path, If_None_Match=f'"{digest}"'))[0] == 304
        assert len(w.origin.calls) == 1


async def test_it_survives_a_restart(tmp_path: Path) -> None:
    body = manifest()
    async with world(tmp_path) as w:
        digest = publish(w, body)
        assert (await w.get(f"/v2/app/manifests/{digest}"))[0] == 200
        await asyncio.sleep(0.1)
    async with world(tmp_path) as w:
        publish(w, body)
        assert (await w.get(f"/v2/app/manifests/{digest}"))[2] == body
        assert w.origin.count("GET") == 0
        assert w.origin.count("HEAD") == 1


async def test_tags_are_fresh_for_a_while(tmp_path: Path) -> None:
    async with world(tmp_path, config_for(tmp_path, tag_ttl="200 ms")) as w:
        old, new = manifest("a"), manifest("b")
        publish(w, old)
        for _ in range(3):
            status, headers, got = await w.get("/v2/app/manifests/v1")
            assert (status, got) == (200, old)
            assert headers["Cache-Control"] == "no-cache"
        assert len(w.origin.calls) == 1
        await asyncio.sleep(0.25)
        assert (await w.get("/v2/app/manifests/v1"))[2] == old
        assert (w.origin.count("HEAD"), w.origin.count("GET")) == (1, 1)
        publish(w, new)
        assert (await w.get("/v2/app/manifests/v1"))[2] == old
        assert (await w.get("/v2/app/manifests/v1", Cache_Control="no-cache"))[2] == new
        assert (w.origin.count("HEAD"), w.origin.count("GET")) == (2, 2)
        # The digest that the tag had a moment ago can still be asked for.
        assert (await w.get(f"/v2/app/manifests/{digest_of(old)}"))[2] == old


@pytest.mark.parametrize("trouble", ["is_down", "limited"])
async def test_stale_while_the_origin_is_away(tmp_path: Path, trouble: str) -> None:
    config = config_for(tmp_path, tag_ttl="0 s", grant_ttl="50 ms")
    async with world(tmp_path, config) as w:
        body = manifest()
        publish(w, body)
        assert (await w.get("/v2/app/manifests/v1"))[0] == 200
        await asyncio.sleep(0.1)
        setattr(w.origin, trouble, True)
        status, headers, got = await w.get("/v2/app/manifests/v1")
        assert (status, got) == (200, body)
        assert headers["Warning"].startswith("299 - ")
        status, _, _ = await w.get("/v2/app/manifests/other")
        assert status == (502 if trouble == "is_down" else 429)


async def test_a_tag_that_is_gone_is_gone(tmp_path: Path) -> None:
    async with world(tmp_path, config_for(tmp_path, tag_ttl="0 s")) as w:
        publish(w, manifest())
        assert (await w.get("/v2/app/manifests/v1"))[0] == 200
        w.origin.manifests.clear()
        status, _, body = await w.get("/v2/app/manifests/v1")
        assert status == 404
        assert json.loads(body)["errors"][0]["code"] == "MANIFEST_UNKNOWN"


async def test_private_manifests_need_rights(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        body = manifest()
        digest = publish(w, body)
        w.origin.private["app"] = ALICE
        for path in ("/v2/app/manifests/v1", f"/v2/app/manifests/{digest}"):
            assert (await w.get(path, Authorization=ALICE))[2] == body
            for credentials in ({}, {"Authorization": "Bearer other"}):
                status, headers, got = await w.get(path, **credentials)
                assert status == 401
                assert "WWW-Authenticate" in headers
                assert body not in got


async def test_all_accept_lines_count(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        body = manifest()
        digest = publish(w, body)
        lines = "".join(
            f"Accept: {kind}\r\n" for kind in (OCI_INDEX, DOCKER_MANIFEST, OCI_MANIFEST)
        )
        got = await w.raw(
            f"GET /v2/app/manifests/{digest} HTTP/1.1\r\nHost: x\r\n{lines}"
            "Connection: close\r\n\r\n".encode()
        )
        assert got.endswith(body)
        assert len(w.origin.calls) == 1
        # A client that cannot take what we have gets the origin's own choice.
        status, headers, _ = await w.get(f"/v2/app/manifests/{digest}", Accept=DOCKER_MANIFEST)
        assert status == 200
        assert headers["X-Passel-Source"] == "origin"
        assert w.origin.count("GET") == 2


@pytest.mark.parametrize(
    "body",
    [
        b"no json",
        b"[]",
        json.dumps({"manifests": [], "layers": [], "mediaType": OCI_INDEX}).encode(),
        b'{"x": "' + b"y" * (4 << 20) + b'"}',
    ],
)
async def test_nonsense_is_502(tmp_path: Path, body: bytes) -> None:
    async with world(tmp_path) as w:
        publish(w, body)
        status, headers, _ = await w.get("/v2/app/manifests/v1")
        assert status == 502
        assert headers["X-Dragonfly-Error-Type"] == "backend"


async def test_wrong_digest_is_502(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = publish(w, manifest())
        w.origin.manifests["app", digest] = (OCI_MANIFEST, manifest("f"))
        assert (await w.get(f"/v2/app/manifests/{digest}"))[0] == 502


async def test_repeats_end_with_the_tag_and_with_the_grant(tmp_path: Path) -> None:
    config = config_for(tmp_path, tag_ttl="300 ms", grant_ttl="10 min")
    async with world(tmp_path, config) as w:
        old, new = manifest("a"), manifest("b")
        digest = publish(w, old)
        server = w.context.servers[0]
        for path in ("/v2/app/manifests/v1", f"/v2/app/manifests/{digest}"):
            before = server.answer_repeats
            for method in ("GET", "HEAD", "GET"):
                answers = [await w.get(path, method) for _ in range(3)]
                assert {body for _, _, body in answers} == {old if method == "GET" else b""}
                assert {answer[1]["Content-Length"] for answer in answers} == {str(len(old))}
            assert server.answer_repeats - before == 7
        # Other words are another question.
        assert (await w.get(path, If_None_Match=f'"{digest}"'))[0] == 304
        assert (await w.get(path, Accept="text/plain"))[1]["X-Passel-Source"] == "origin"
        publish(w, new)
        await asyncio.sleep(0.35)
        assert (await w.get("/v2/app/manifests/v1"))[2] == new
        # And what one may read, another may not.
        w.origin.private["app"] = ALICE
        w.context.grants._grants.clear()
        w.context.grants._is_public.clear()
        server.templates.clear()
        for _ in range(3):
            assert (await w.get(path, Authorization=ALICE))[2] == old
            assert (await w.get(path, Authorization=ALICE + "x"))[0] == 401
            assert (await w.get(path))[0] == 401


async def test_sizes_are_learned(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        publish(w, manifest())
        await w.get("/v2/app/manifests/v1")
        w.door.public.add("sha256:" + "a" * 64)
        status, headers, _ = await w.get("/v2/app/blobs/sha256:" + "a" * 64, "HEAD")
        assert (status, headers["Content-Length"]) == (200, "77")
        assert w.origin.count("HEAD") == 0


async def test_lists_are_handed_through(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        link = '<https://127.0.0.1:5055/v2/app/tags/list?n=2&last=b>; rel="next"'
        body = b'{"name": "app", "tags": ["a", "b"]}'
        w.origin.lists["/v2/app/tags/list?n=2"] = ({"Link": link, "Set-Cookie": "x"}, body)
        status, headers, got = await w.get("/v2/lab/app/tags/list?n=2&ns=lab")
        assert (status, got) == (200, body)
        assert headers["Link"] == '</v2/lab/app/tags/list?n=2&last=b&ns=lab>; rel="next"'
        assert "Set-Cookie" not in headers
        digest = "sha256:" + "a" * 64
        status, _, got = await w.get(f"/v2/app/referrers/{digest}")
        assert status == 404
        assert json.loads(got)["errors"]


async def test_the_cache_is_bounded_and_checks_what_it_reads(tmp_path: Path) -> None:
    cache = ManifestCache(tmp_path / "m", memory_bytes=1000, folder_bytes=3000)
    kept = [checked(manifest(c), OCI_MANIFEST, digest_of(manifest(c))) for c in "0123456789abcdef"]
    for each in kept:
        cache.put(each)
        await asyncio.sleep(0.02)
    await asyncio.gather(*cache._tasks)
    assert sum(path.stat().st_size for path in (tmp_path / "m").iterdir()) <= 3000
    assert await cache.get(kept[0].digest) is None
    last = kept[-1].digest
    file = tmp_path / "m" / f"sha256-{last.hex}"
    fresh = ManifestCache(tmp_path / "m")
    assert await fresh.get(last) == kept[-1]
    file.write_bytes(file.read_bytes().replace(b"77", b"78"))
    assert await ManifestCache(tmp_path / "m").get(last) is None
    assert not file.exists()


async def test_what_comes_while_the_folder_is_looked_at_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a crowd for a cold manifest would now and then ask the origin twice."""
    cache = ManifestCache(tmp_path / "m")
    body = manifest()
    kept = checked(body, OCI_MANIFEST, digest_of(body))
    came = threading.Event()

    def not_there(digest: Digest) -> None:
        assert came.wait(10)

    monkeypatch.setattr(cache, "_load", not_there)
    looking = asyncio.create_task(cache.get(kept.digest))
    await asyncio.sleep(0)
    cache.put(kept)
    came.set()
    assert await looking == kept
