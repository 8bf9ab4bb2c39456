"""/api/v1 before a controller that says what a test wants: tokens, bad input, the document."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from unit.gateway_fakes import World, config_for, world

from passel.config import ApiConfig, Config
from passel.gateway.api import BODY_BYTES_MAX

TOKEN = "Planted-Token-41c7"
DIGEST = f"sha256:{1:064x}"
JOB = {
    "job": "0123456789ab",
    "what": "lab/app:v1",
    "to": "all",
    "state": "running",
    "trouble": "",
    "created": "2026-01-01T00:00:00Z",
    "blobs": 1,
    "bytes": 5,
    "nodes": [{"node": "n1", "zone": "a", "blobs": 0, "bytes": 0, "trouble": ""}],
}
DRAIN = {
    "node": "n3",
    "state": "incomplete",
    "trouble": "some blobs found no other node",
    "blobs": 1,
    "bytes": 5,
    "left_blobs": 1,
    "left_bytes": 7,
    "left": [{"digest": DIGEST, "size": 7, "trouble": "n1: no room"}],
}


def with_api(config: Config, **api: object) -> Config:
    gateway = config.gateway.model_copy(update={"api": ApiConfig.model_validate(api)})
    return config.model_copy(update={"gateway": gateway})


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\nsecond line\n")
    async with world(tmp_path, with_api(config_for(tmp_path), token_file=token)) as found:
        yield found


async def call(
    w: World, method: str, path: str, body: Any = None, token: str | None = TOKEN, **headers: str
) -> tuple[int, Any]:
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    url = f"{w.health}/api/v1{path}"
    async with w.session.request(method, url, data=data, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None)


def said(answer: Any) -> str:
    (problem,) = answer["errors"]
    text: str = problem["message"]
    return text


async def test_a_preheat_is_handed_to_the_controller(w: World) -> None:
    w.door.admin["submit"] = 200, JOB
    body = {"what": "lab/app:v1", "to": "seeds", "ttl": "7 d"}
    assert await call(w, "POST", "/jobs", body) == (202, JOB)
    fields = {"what": "lab/app:v1", "to": "seeds", "platform": "all", "ttl_s": 7 * 86400.0}
    assert w.door.admin_asked == [("submit", fields)]
    w.door.admin["jobs"] = 200, {"jobs": [JOB]}
    assert await call(w, "GET", "/jobs", token=None) == (200, {"jobs": [JOB]})
    assert await call(w, "GET", f"/jobs/{JOB['job']}", token=None) == (200, JOB)
    assert w.door.admin_asked[-1] == ("jobs", {"job": JOB["job"]})
    w.door.admin["unpin"] = 200, {"unpinned": []}
    url = f"{w.health}/api/v1/pins/lab%2Fapp%3Av1"
    status, _, _ = await w.get(url, "DELETE", Authorization=f"Bearer {TOKEN}")
    assert status == 200
    assert w.door.admin_asked[-1] == ("unpin", {"what": "lab/app:v1"})


async def test_a_drain_is_handed_to_the_controller(w: World) -> None:
    w.door.admin |= dict.fromkeys(("drain", "undrain"), (200, DRAIN))
    w.door.admin["drains"] = 200, {"drains": [DRAIN]}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    url = f"{w.health}/api/v1/drains/n3"
    assert [(await w.get(url, "POST"))[0], (await w.get(url, "DELETE"))[0]] == [401, 401]
    assert (await w.get(url, "POST", **headers))[0] == 202
    assert (await w.get(url, "DELETE", **headers))[0] == 200
    assert await call(w, "GET", "/drains", token=None) == (200, {"drains": [DRAIN]})
    named = {"node": "n3"}
    assert w.door.admin_asked == [("drain", named), ("undrain", named), ("drains", {})]


async def test_whoever_changes_something_shows_the_token(w: World, tmp_path: Path) -> None:
    w.door.admin["submit"] = 200, JOB
    body = {"what": "lab/app:v1"}
    for token in (None, "", "wrong", TOKEN + "x", "Ünï"):
        status, answer = await call(w, "POST", "/jobs", body, token)
        assert (status, "Authorization: Bearer" in said(answer)) == (401, True), token
    status, answer = await call(w, "DELETE", f"/blobs/{DIGEST}", token=None)
    assert status == 401
    assert w.door.admin_asked == []
    # The file is read at every request: a new token counts at once.
    (tmp_path / "token").write_text("another")
    assert (await call(w, "POST", "/jobs", body))[0] == 401
    assert (await call(w, "POST", "/jobs", body, "another"))[0] == 202
    (tmp_path / "token").unlink()
    status, answer = await call(w, "POST", "/jobs", body, "")
    assert (status, said(answer)) == (
        403,
        "nothing can be changed here: the file with the token is missing or empty",
    )


async def test_without_a_token_file_one_may_only_look(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.door.admin["jobs"] = 200, {"jobs": []}
        assert (await call(w, "GET", "/jobs"))[0] == 200
        status, answer = await call(w, "POST", "/jobs", {"what": "lab/app:v1"})
        assert (status, "gateway.api.token_file" in said(answer)) == (403, True)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "sentence"),
    [
        ("POST", "/jobs", b"", 400, "the body must be JSON"),
        ("POST", "/jobs", b"{", 400, "the body must be JSON"),
        ("POST", "/jobs", b"\xff", 400, "the body must be JSON"),
        ("POST", "/jobs", b"[" * 60_000, 400, "the body must be JSON"),
        ("POST", "/jobs", [], 400, "the body must be a JSON object"),
        ("POST", "/jobs", {}, 400, "what is missing"),
        ("POST", "/jobs", {"what": 3}, 400, "what: input should be a valid string"),
        ("POST", "/jobs", {"what": "x", "where": 1}, 400, "a key that is not known: 'where'"),
        ("POST", "/jobs", {"what": "x", "ttl": 7}, 400, "ttl: expected text: a number and one of"),
        ("POST", "/jobs", {"what": "x", "ttl": "7"}, 400, "ttl: expected a number and one of"),
        ("POST", "/jobs", {"what": "x", "ttl": "0 s"}, 400, "ttl: expected more than 0 s"),
        ("POST", "/jobs", {"what": "x", "platform": "?"}, 400, "platform: string should match"),
        ("POST", "/jobs", {"what": "x" * 1001}, 400, "what: string should have at most 1000"),
        ("POST", "/jobs", b"x" * (BODY_BYTES_MAX + 1), 413, "the body is longer than 65536 bytes"),
        ("DELETE", "/jobs/x", {}, 400, "this takes no body"),
        ("GET", "/blobs?limit=x", None, 400, "limit must be a number from 1 to 10000"),
        ("GET", "/nothing", None, 404, "there is nothing of this name"),
        ("GET", "/jobs/a/b", None, 404, "there is nothing of this name"),
        ("PUT", "/jobs", {}, 405, "this can be asked for with GET, POST"),
    ],
)
async def test_bad_input_is_one_sentence(
    w: World, method: str, path: str, body: Any, status: int, sentence: str
) -> None:
    got, answer = await call(w, method, path, body)
    assert got == status
    assert sentence in said(answer)
    assert w.door.admin_asked == []


async def test_a_body_without_an_end_is_cut_off(w: World) -> None:
    async def flood() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 8192

    url = f"{w.health}/api/v1/jobs"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with w.session.post(url, data=flood(), headers=headers) as answer:
        assert answer.status == 413


async def test_curl_is_told_to_go_on(w: World) -> None:
    w.door.admin["submit"] = 200, JOB
    body = json.dumps({"what": "lab/app:v1"}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(w.health.rpartition(":")[2]))
    head = f"POST /api/v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    head += f"Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode())
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 2) == (
        b"HTTP/1.1 100 Continue\r\n\r\n"
    )
    writer.write(body)
    assert b" 202 " in await asyncio.wait_for(reader.readline(), 2)
    writer.close()


async def test_the_controllers_word_and_its_absence(w: World) -> None:
    refused = {"errors": [{"code": "UNSUPPORTED", "message": "there is no job nix"}]}
    w.door.admin["jobs"] = 404, refused
    assert await call(w, "GET", "/jobs/nix") == (404, refused)
    del w.door.admin["jobs"]
    status, answer = await call(w, "GET", "/jobs")
    assert (status, "controller does not answer" in said(answer)) == (503, True)
    await w.door.stop()
    status, answer = await call(w, "GET", "/status")
    assert (status, "peer does not answer" in said(answer)) == (503, True)


async def test_no_other_listener_has_it(w: World) -> None:
    for base in (w.base, w.dedicated):
        status, _, _ = await w.get(f"{base}/api/v1/jobs")
        assert status == 404
        status, _, _ = await w.get(f"{base}/api/v1/jobs", "POST")
        assert status == 405


@pytest.mark.parametrize("verb", ["apply", "rotate", "config", "submit"])
async def test_what_the_table_does_not_name_reaches_no_controller(w: World, verb: str) -> None:
    for method in ("GET", "POST"):
        assert (await call(w, method, f"/{verb}", {}))[0] == 404
    assert w.door.admin_asked == []


async def test_the_token_is_in_no_log_and_no_answer(
    w: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    w.door.admin["submit"] = 200, JOB
    for path, body in (("/jobs", {"what": "lab/app:v1"}), ("/jobs", {"what": TOKEN, "x": TOKEN})):
        _, answer = await call(w, "POST", path, body)
        assert TOKEN not in json.dumps(answer)
    assert "api_call operation=preheat" in caplog.text
    assert TOKEN not in caplog.text


async def test_the_document_describes_what_is_taken_and_given(w: World) -> None:
    status, document = await call(w, "GET", "/openapi.json", token=None)
    assert (status, document["openapi"]) == (200, "3.1.0")
    schemas = document["components"]["schemas"]

    def valid(instance: Any, name: str) -> bool:
        schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
        validator = jsonschema.Draft202012Validator(schema)
        return not list(validator.iter_errors(instance))

    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    assert valid({"what": "lab/app:v1", "ttl": "7 d"}, "Preheat")
    assert not valid({"what": "lab/app:v1", "where": 1}, "Preheat")
    assert valid(JOB, "Job")
    assert valid(DRAIN, "Drain")
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert ("security" in operation) == (method != "get"), path
    names = [op["operationId"] for ops in document["paths"].values() for op in ops.values()]
    assert len(names) == len(set(names))
