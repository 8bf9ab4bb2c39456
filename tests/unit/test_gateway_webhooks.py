"""What registries tell of pushes, in their own words, and what becomes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from unit.gateway_fakes import World, config_for, world
from unit.test_gateway_api import JOB, TOKEN, call, said, with_api

from passel.config import Config, parse
from passel.errors import ConfigError

DIGEST = f"sha256:{7:064x}"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def webhooks(config: Config, **fields: object) -> Config:
    section = config.webhooks.model_copy(update=fields)
    return config.model_copy(update={"webhooks": section})


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    config = with_api(config_for(tmp_path), token_file=token)
    config = webhooks(config, repositories=("lab/team/*", "docker.io/*"))
    async with world(tmp_path, config) as found:
        found.door.admin["submit"] = 200, JOB
        yield found


def harbor(url: str = "lab.test/team/app:v1", tag: str = "v1") -> dict[str, Any]:
    """As Harbor 2.x sends it. Source: goharbor.io, "Configure Webhook Notifications"."""
    return {
        "type": "PUSH_ARTIFACT",
        "occur_at": 1586922308,
        "operator": "admin",
        "event_data": {
            "resources": [{"digest": DIGEST, "tag": tag, "resource_url": url}],
            "repository": {
                "date_created": 1586922308,
                "name": "app",
                "namespace": "team",
                "repo_full_name": "team/app",
                "repo_type": "private",
            },
        },
    }


def event(repository: str = "team/app", **target: object) -> dict[str, Any]:
    """As distribution 2.8 sends it."""
    return {
        "id": "320678d8-ca14-430f-8bb6-4ca139cd83f7",
        "timestamp": "2016-03-09T14:44:26.402973972-08:00",
        "action": "push",
        "target": {
            "mediaType": MANIFEST,
            "size": 708,
            "digest": DIGEST,
            "length": 708,
            "repository": repository,
            "url": f"http://127.0.0.1:5055/v2/{repository}/manifests/{DIGEST}",
            "tag": "v1",
            **target,
        },
        "request": {"id": "6df24a34", "addr": "10.0.0.7:6431", "host": "lab.test", "method": "PUT"},
        "actor": {},
        "source": {"addr": "registry:5000", "instanceID": "a53db899"},
    }


ORDER = {
    "what": "lab/team/app:v1",
    "digest": DIGEST,
    "to": "seeds",
    "platform": "all",
    "ttl_s": None,
}


async def test_harbors_push_is_one_order(w: World) -> None:
    assert await call(w, "POST", "/webhooks/harbor", harbor()) == (
        202,
        {"jobs": [JOB], "skipped": []},
    )
    assert w.door.admin_asked == [("submit", ORDER)]


async def test_distributions_push_is_one_order_and_the_rest_is_not_ours(w: World) -> None:
    layer = event(mediaType="application/octet-stream")
    pull = {**event(), "action": "pull"}
    events = [layer, event(), pull, event()]
    status, answer = await call(w, "POST", "/webhooks/distribution", {"events": events})
    assert (status, answer) == (202, {"jobs": [JOB], "skipped": []})
    assert w.door.admin_asked == [("submit", ORDER)]


async def test_the_host_of_the_request_counts_where_there_is_no_url(w: World) -> None:
    await call(w, "POST", "/webhooks/distribution", {"events": [event(url="")]})
    assert w.door.admin_asked == [("submit", ORDER)]


@pytest.mark.parametrize("kind", ["harbor", "distribution"])
async def test_a_registry_that_is_no_upstream_is_refused(w: World, kind: str) -> None:
    body: Any = harbor("evil.test/team/app:v1")
    if kind == "distribution":
        evil = event(url="http://evil.test/v2/team/app/manifests/v1")
        body = {"events": [evil, event()]}
    status, answer = await call(w, "POST", f"/webhooks/{kind}", body)
    assert status == 422
    assert said(answer).startswith("there is no upstream evil.test; upstreams are lab, other,")
    # The others are begun all the same.
    assert len(w.door.admin_asked) == (kind == "distribution")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (harbor(tag=""), "has no tag"),
        (harbor(tag=DIGEST), "has no tag"),
        ({"type": "DELETE_ARTIFACT", "event_data": {}}, "is no PUSH_ARTIFACT"),
        (harbor("127.0.0.1:5056/team/app:v1"), "other/team/app is none of webhooks.repositories"),
    ],
)
async def test_what_is_skipped_says_why(w: World, body: Any, reason: str) -> None:
    status, answer = await call(w, "POST", "/webhooks/harbor", body)
    assert (status, answer["jobs"]) == (202, [])
    assert reason in answer["skipped"][0]
    assert w.door.admin_asked == []


async def test_what_asking_again_does_not_change_is_not_asked_for_again(w: World) -> None:
    problem = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "the registry does not know it"}]}
    w.door.admin["submit"] = 422, problem
    status, answer = await call(w, "POST", "/webhooks/harbor", harbor())
    assert (status, answer["skipped"]) == (202, ["the registry does not know it"])
    w.door.admin["submit"] = 503, problem
    assert (await call(w, "POST", "/webhooks/harbor", harbor()))[0] == 503


@pytest.mark.parametrize(
    ("kind", "body", "sentence"),
    [
        ("harbor", {}, "type is missing"),
        ("harbor", {"type": 3}, "type: input should be a valid string"),
        ("distribution", {}, "events is missing"),
        ("distribution", {"events": [event()] * 101}, "events: list should have at most 100"),
        ("distribution", {"events": [event(repository="../x")]}, "the repository"),
        ("distribution", {"events": [event(digest="sha256:1")]}, "the digest"),
        ("harbor", harbor("no host at all/x"), "does not say which registry"),
    ],
)
async def test_bad_payloads_are_one_sentence(w: World, kind: str, body: Any, sentence: str) -> None:
    status, answer = await call(w, "POST", f"/webhooks/{kind}", body)
    assert 400 <= status < 500
    assert sentence in said(answer)
    assert w.door.admin_asked == []


async def test_the_token_is_asked_for_first(w: World) -> None:
    for kind in ("harbor", "distribution"):
        assert (await call(w, "POST", f"/webhooks/{kind}", b"x", token=None))[0] == 401


def test_wrong_targets_are_a_mistake_of_the_file() -> None:
    assert parse("webhooks: {targets: zone=a, ttl: 7 d}").webhooks.targets == "zone=a"
    with pytest.raises(ConfigError, match=r"webhooks.targets: expected all, seeds, zone="):
        parse("webhooks: {targets: everywhere}")
