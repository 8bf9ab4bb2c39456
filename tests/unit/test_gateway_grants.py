from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from unit.gateway_fakes import CHALLENGE, PIECE, config_for, noise, world

DATA = noise(3 * PIECE)
ALICE = "Basic YWxpY2U6c2VjcmV0"
BOB = "Basic Ym9iOnNlY3JldA=="


async def test_cached_content_is_not_for_everybody(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.public.clear()
        w.origin.private["app"] = ALICE
        path = f"/v2/app/blobs/{digest}"
        status, headers, body = await w.get(path, Authorization=ALICE)
        assert (status, body) == (200, DATA)
        assert headers["Cache-Control"].startswith("private")
        # It is here now, and the second client has no rights.
        for credentials in ({}, {"Authorization": BOB}):
            for method in ("GET", "HEAD"):
                status, headers, body = await w.get(path, method, **credentials)
                assert status == 401
                assert headers["WWW-Authenticate"] == CHALLENGE
                assert DATA[:16] not in body
        status, _, _ = await w.get(path, Range="bytes=0-9", Authorization=BOB)
        assert status == 401
        # A right in another repository is none here.
        w.origin.blobs["mine", str(digest)] = DATA
        w.origin.private["mine"] = BOB
        assert (await w.get(f"/v2/mine/blobs/{digest}", Authorization=BOB))[0] == 200
        assert (await w.get(path, Authorization=BOB))[0] == 401
        # And an alleged one in a repository that has it not, is none either.
        assert (await w.get(f"/v2/none/blobs/{digest}", Authorization=BOB))[0] == 404


async def test_a_grant_saves_the_question(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.public.clear()
        w.door.put(DATA)
        w.origin.private["app"] = ALICE
        path = f"/v2/app/blobs/{digest}"
        answers = await asyncio.gather(*(w.get(path, Authorization=ALICE) for _ in range(8)))
        assert {status for status, _, _ in answers} == {200}
        # One that finds the repository private, one for all eight.
        assert [who for _, _, who in w.origin.calls] == [None, ALICE]
        await w.get(path, Authorization=BOB)
        await w.get(path, Authorization=BOB)
        # A no is remembered for a while, too.
        assert [who for _, _, who in w.origin.calls] == [None, ALICE, BOB]


async def test_a_right_that_was_taken_away_ends_with_its_grant(tmp_path: Path) -> None:
    async with world(tmp_path, config_for(tmp_path, grant_ttl="200 ms")) as w:
        digest = w.add(DATA)
        w.door.public.clear()
        w.door.put(DATA)
        w.origin.private["app"] = ALICE
        path = f"/v2/app/blobs/{digest}"
        assert (await w.get(path, Authorization=ALICE))[0] == 200
        w.origin.private["app"] = BOB
        await asyncio.sleep(0.25)
        for _ in range(2):
            assert (await w.get(path, Authorization=ALICE))[0] == 401
        # And is not given back by the origin's going away.
        w.origin.is_down = True
        assert (await w.get(path, Authorization=ALICE))[0] == 401
        w.context.grants._refused.clear()
        assert (await w.get(path, Authorization=ALICE))[0] == 502


async def test_public_content_is_found_out_once_and_told(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.public.clear()
        w.door.put(DATA)
        path = f"/v2/app/blobs/{digest}"
        status, headers, _ = await w.get(path)
        assert status == 200
        assert headers["Cache-Control"].startswith("max-age")
        assert (await w.get(path, Authorization=ALICE))[0] == 200
        await asyncio.sleep(0.05)
        assert w.origin.count("HEAD") == 1
        assert w.door.told_public[0]["digest"] == str(digest)


async def test_what_the_cluster_knows_is_enough(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.put(DATA)
        assert (await w.get(f"/v2/app/blobs/{digest}"))[0] == 200
        assert w.origin.calls == []


async def test_cold_read_of_private_content_checks_before_the_first_byte(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.public.clear()
        w.origin.private["app"] = ALICE
        assert (await w.get(f"/v2/app/blobs/{digest}", Authorization=BOB))[0] == 401


@pytest.mark.parametrize(
    ("policy", "expected"), [("granted", (200, 502)), ("refuse", (502, 502)), ("serve", (200, 200))]
)
async def test_when_the_origin_is_down(
    tmp_path: Path, policy: str, expected: tuple[int, int]
) -> None:
    config = config_for(tmp_path, when_origin_down=policy, grant_ttl="50 ms")
    async with world(tmp_path, config) as w:
        digest = w.add(DATA)
        w.door.public.clear()
        w.door.put(DATA)
        w.origin.private["app"] = ALICE
        path = f"/v2/app/blobs/{digest}"
        assert (await w.get(path, Authorization=ALICE))[0] == 200
        await asyncio.sleep(0.1)
        w.origin.is_down = True
        assert (await w.get(path, Authorization=ALICE))[0] == expected[0]
        assert (await w.get(path, Authorization=BOB))[0] == expected[1]


async def test_open_asks_nobody_and_always_asks_each_time(tmp_path: Path) -> None:
    async with world(tmp_path, config_for(tmp_path, read_policy="open")) as w:
        digest = w.add(DATA)
        w.door.put(DATA)
        w.origin.private["app"] = ALICE
        assert (await w.get(f"/v2/app/blobs/{digest}"))[0] == 200
        assert w.origin.calls == []
    (tmp_path / "b").mkdir()
    config = config_for(tmp_path / "b", read_policy="always")
    async with world(tmp_path / "b", config) as w:
        digest = w.add(DATA)
        w.door.put(DATA)
        for _ in range(3):
            assert (await w.get(f"/v2/app/blobs/{digest}"))[0] == 200
        assert w.origin.count("HEAD") == 3
        w.origin.private["app"] = ALICE
        assert (await w.get(f"/v2/app/blobs/{digest}"))[0] == 401


async def test_credentials_go_nowhere_unless_they_are_to_pass_through(tmp_path: Path) -> None:
    async with world(tmp_path, config_for(tmp_path, auth="anonymous")) as w:
        digest = w.add(DATA)
        w.door.public.clear()
        assert (await w.get(f"/v2/app/blobs/{digest}", Authorization=ALICE))[0] == 200
        assert {authorization for _, _, authorization in w.origin.calls} == {None}
        assert w.door.asked[0]["authorization"] is None


@pytest.mark.parametrize("headers", [{"Range": "bytes=0-9"}, {}], ids=["range", "whole"])
async def test_a_template_is_for_the_same_credentials_only(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    async with world(tmp_path) as w:
        digest = w.add(DATA)
        w.door.public.clear()
        w.door.put(DATA)
        w.origin.private["app"] = ALICE
        path = f"/v2/app/blobs/{digest}"
        for _ in range(3):
            assert (await w.get(path, Authorization=ALICE, **headers))[0] in (200, 206)
        assert w.context.servers[0].repeats == 2
        assert (await w.get(path, Authorization=BOB, **headers))[0] == 401
        assert (await w.get(path, **headers))[0] == 401
