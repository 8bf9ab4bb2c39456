"""Clients that bring credentials to what everybody may read."""

from __future__ import annotations

import asyncio
from pathlib import Path

from unit.gateway_fakes import PIECE, config_for, noise, world
from unit.test_gateway_manifests import manifest, publish

DATA = noise(3 * PIECE)


def token(number: int) -> str:
    return f"Bearer token-number-{number}"


async def test_a_new_token_for_each_pull_is_no_new_question(tmp_path: Path) -> None:
    """docker and podman fetch a token for public images too, a new one each time."""
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.put(DATA)
        w.door.public.clear()
        for i in range(6):
            status, headers, _ = await w.get(f"/v2/app/blobs/{digest}", Authorization=token(i))
            assert status == 200
            assert not headers["Cache-Control"].startswith("private")
        # The question about the repository, and the one about the blob; no token left the house.
        assert [who for _, _, who in w.origin.calls] == [None, None]


async def test_and_is_read_while_the_origin_is_down(tmp_path: Path) -> None:
    config = config_for(tmp_path, grant_ttl="50 ms", tag_ttl="50 ms")
    async with world(tmp_path, config) as w:
        digest, tag = w.add(DATA), publish(w, manifest())
        w.door.put(DATA)
        w.door.public.clear()
        for path in ("manifests/v1", f"manifests/{tag}", f"blobs/{digest}"):
            assert (await w.get(f"/v2/app/{path}", Authorization=token(1)))[0] == 200
        await asyncio.sleep(0.1)
        w.origin.is_down = True
        for path in ("manifests/v1", f"manifests/{tag}", f"blobs/{digest}"):
            status, headers, _ = await w.get(f"/v2/app/{path}", Authorization=token(2))
            assert status == 200
            assert headers["Warning"].startswith("299 ")


async def test_a_repository_that_was_made_private_is_private_for_strangers_only(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        first, second = w.add(DATA), w.add(noise(PIECE, 2))
        w.door.put(DATA)
        w.door.public.clear()
        assert (await w.get(f"/v2/app/blobs/{first}", Authorization=token(1)))[0] == 200
        w.origin.private["app"] = token(1)
        # Public for five minutes more, as far as the gateway knows: it finds out, and asks again
        # with what the client has.
        assert (await w.get(f"/v2/app/blobs/{second}", Authorization=token(1)))[0] == 200
        assert (await w.get(f"/v2/app/blobs/{second}", Authorization=token(2)))[0] == 401
        assert (await w.get(f"/v2/app/blobs/{second}"))[0] == 401


async def test_private_repositories_are_asked_about_once(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.origin.private["app"] = token(1)
        digests = [w.add(noise(PIECE, i)) for i in range(4)]
        w.door.public.clear()
        for i, digest in enumerate(digests):
            w.door.put(noise(PIECE, i))
            assert (await w.get(f"/v2/app/blobs/{digest}", Authorization=token(1)))[0] == 200
        assert [who for _, _, who in w.origin.calls].count(None) == 1
        # The digest is known and here; knowing it is not a right.
        assert (await w.get(f"/v2/app/blobs/{digests[0]}", Authorization=token(2)))[0] == 401
