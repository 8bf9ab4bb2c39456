"""The page of the health listeners: who gets it, what it is made of, and its stream."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from unit.gateway_fakes import World, config_for, world

from passel.errors import PeerUnavailable
from passel.gateway import feed as feeds
from passel.gateway import page as pages
from passel.gateway.exchange import Exchange
from passel.gateway.feed import WATCHERS_MAX, Feed

CLOSE = "Connection: close\r\n\r\n"
FILES = Path(pages.__file__).parent / "page_files"


def view(at: int = 1, n_nodes: int = 2, life: str = "life") -> dict[str, Any]:
    nodes = [[i, f"n{i}", "a", "peer", 1, 0, at, *([0] * 7)] for i in range(1, n_nodes + 1)]
    totals = {"rates": [at, 0, 0, 0], "cross_zone": 0, "bytes": [0] * 4, "blobs": 0}
    rest = {"edges": [], "zone_flows": [], "blobs": [], "jobs": []}
    return {"life": life, "cluster": "test", "at": at, "totals": totals, "nodes": nodes, **rest}


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "EVERY_S", 0.01)


@asynccontextmanager
async def stream(w: World, **headers: str) -> AsyncIterator[Callable[[], Any]]:
    """An open stream; the next event of it."""
    clean = {name.replace("_", "-"): value for name, value in headers.items()}
    async with w.session.get(f"{w.base}/ui/events", headers=clean) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"

        async def following() -> Any:
            while line := await asyncio.wait_for(answer.content.readline(), 5):
                if line.startswith(b"data: "):
                    return json.loads(line[6:])
            return None

        yield following


async def until(true: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + 5
    while not true():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.005)


async def test_the_page_is_all_that_it_needs_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        status, headers, body = await w.get("/ui")
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        names = re.findall(r'(?:src|href)="(ui/[^"]+)"', body.decode())
        assert {"ui/page.css", "ui/main.js", "ui/icon.svg"} <= set(names)
        for script in FILES.glob("*.js"):
            names += [f"ui/{name}" for name in re.findall(r'from "\./(\S+)"', script.read_text())]
        for name in names:
            status, headers, _ = await w.get(f"/{name}")
            assert status == 200, name
            assert "Content-Security-Policy" in headers
        assert (await w.get("/ui", "HEAD"))[::2] == (200, b"")
        assert not any(origin.calls for origin in w.origins.values())
        for file in FILES.iterdir():
            assert not re.search(r"(src|href|url|import)\W{1,3}https?:", file.read_text()), file


@pytest.mark.parametrize(
    "path", ["/ui/", "/ui/nothing.js", "/ui/..%2Fpage.py", "/ui/../page.py", "/ui/%2e%2e/app.py"]
)
async def test_no_other_file_is_reached(tmp_path: Path, path: str) -> None:
    async with world(tmp_path) as w:
        got = await w.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{CLOSE}".encode())
        assert got[9:12] in (b"404", b"308")
        assert b"import" not in got


async def test_slash_goes_to_the_page(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.session.get(f"{w.base}/ui/") as answer:
        assert answer.status == 200
        assert answer.url.path == "/ui"


@pytest.mark.parametrize("host", ["evil.test", "localhost.evil.test", "127.0.0.1.evil.test:80", ""])
@pytest.mark.parametrize("path", ["/ui", "/ui/events", "/ui/main.js"])
async def test_a_name_that_points_here_shows_nothing(tmp_path: Path, host: str, path: str) -> None:
    async with world(tmp_path) as w:
        w.door.view = view()
        got = await w.raw(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{CLOSE}".encode())
        assert got.startswith(b"HTTP/1.1 403 "), got
        assert b"DENIED" in got


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8080", "127.0.0.1", "[::1]:40901", "10.1.2.3:40901"]
)
async def test_a_tunnel_may_have_any_port(tmp_path: Path, host: str) -> None:
    async with world(tmp_path) as w:
        got = await w.raw(f"GET /ui HTTP/1.1\r\nHost: {host}\r\n{CLOSE}".encode())
        assert got.startswith(b"HTTP/1.1 200 ")


async def test_other_nodes_and_other_sites_get_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as w:
        w.door.view = view()
        site = {"Sec_Fetch_Site": "cross-site"}
        assert (await w.get("/ui/events", **site))[0] == 403
        assert (await w.get("/ui/main.js", **site))[0] == 403
        assert (await w.get("/ui", Sec_Fetch_Mode="no-cors", **site))[0] == 403
        # A link in an operator's wiki.
        assert (await w.get("/ui", Sec_Fetch_Mode="navigate", **site))[0] == 200
        monkeypatch.setattr(Exchange, "client", "10.0.0.7")
        status, _, body = await w.get("/ui")
        assert status == 403
        assert b"ssh -L" in body
        assert (await w.get("/server/ping"))[0] == 200


async def test_off_by_switch_and_only_where_it_belongs(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    off = config.gateway.model_copy(update={"ui": False})
    async with world(tmp_path, config.model_copy(update={"gateway": off})) as w:
        assert (await w.get("/ui"))[0] == 404
    async with world(tmp_path) as w:
        # A listener for registry clients has no page.
        assert (await w.get(f"{w.dedicated}/ui"))[0] == 404


async def test_one_whole_picture_then_what_changes(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.door.view = view(1)
        async with stream(w) as following:
            whole = await following()
            assert whole["kind"] == "all"
            assert [row[1] for row in whole["nodes"]] == ["n1", "n2"]
            w.door.view = view(2)
            change = await following()
            while "at" not in change:
                change = await following()
            assert (change["kind"], change["at"]) == ("change", 2)
            assert change["nodes"] == [[1, 1, 0, 2, *([0] * 7)], [2, 1, 0, 2, *([0] * 7)]]
            async with stream(w) as other:
                assert (await other())["kind"] == "all"
            w.door.view = view(3, n_nodes=1)
            change = await following()
            while "gone" not in change:
                change = await following()
            assert change["gone"] == [2]


async def test_it_says_what_is_wrong_and_when_it_is_well_again(tmp_path: Path) -> None:
    async with world(tmp_path) as w, stream(w) as following:
        why = {"kind": "trouble", "why": "the controller does not answer"}
        assert await following() == why
        w.door.view = view()
        assert [(await following())["kind"], (await following())["kind"]] == ["all", "well"]
        await w.door.stop()
        said = await following()
        while said["kind"] == "change":
            said = await following()
        assert said == {"kind": "trouble", "why": "the peer of this node does not answer"}
        await w.door.start()
        said = await following()
        while said["kind"] != "well":
            said = await following()


async def test_nobody_is_asked_while_nobody_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "LINGER_S", 0.02)
    asked = 0

    async def ask(timeout_s: float) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return view(asked)

    feed = Feed(ask)
    assert asked == 0
    with feed.watching(), feed.watching():
        await until(lambda: asked >= 5)
        assert feed._runner is not None
        runner = feed._runner
    await asyncio.wait_for(runner, 5)
    before = asked
    with feed.watching():
        await until(lambda: asked > before)
        assert feed._runner is not runner
    await feed.close()
    assert not feed.has_room


async def test_views_of_another_version_are_a_sentence_not_a_crash() -> None:
    said: list[Any] = [{"life": 1}, PeerUnavailable("gone"), {}, {**view(), "nodes": [[]]}]

    async def ask(timeout_s: float) -> dict[str, Any]:
        word = said.pop(0)
        if isinstance(word, Exception):
            raise word
        assert isinstance(word, dict)
        return word

    feed = Feed(ask)
    whys = []
    while said:
        await feed.step()
        events, _ = feed.events((None, ""))
        whys.append(json.loads(events.split(b"data: ")[-1])["why"])
    version = "the controller is of another version"
    assert whys == [version, "gone", version, version]


async def test_as_many_watchers_as_may_be_and_no_more(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.door.view = view()
        answers = []
        for _ in range(WATCHERS_MAX):
            answer = await w.session.get(f"{w.base}/ui/events")
            assert answer.status == 200
            answers.append(answer)
        status, headers, body = await w.get("/ui/events")
        assert (status, headers["Retry-After"]) == (503, "10")
        assert json.loads(body)["errors"][0]["code"] == "TOOMANYREQUESTS"
        # Who leaves makes room.
        for answer in answers:
            answer.close()
        await until(lambda: w.page._feed._n_watchers == 0)
        async with stream(w) as following:
            assert (await following())["kind"] == "all"


async def test_who_does_not_read_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "SLOW_S", 0.1)
    async with world(tmp_path) as w:
        w.door.view = view(n_nodes=2000)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        with sock:
            await loop.sock_connect(sock, ("127.0.0.1", w.port))
            await loop.sock_sendall(sock, b"GET /ui/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await until(lambda: w.page._feed._n_watchers == 1)
            at = 0
            while w.page._feed._n_watchers:
                at += 1
                w.door.view = view(at, n_nodes=2000)
                await asyncio.sleep(0.01)
        async with stream(w) as following:
            assert (await following())["kind"] == "all"


async def test_a_quiet_stream_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(feeds, "EVERY_S", 5.0)
    async with world(tmp_path) as w:
        w.door.view = view()
        async with w.session.get(f"{w.base}/ui/events") as answer:
            lines = [await asyncio.wait_for(answer.content.readline(), 5) for _ in range(8)]
        assert lines.count(b": nothing new\n") >= 2


async def test_streams_end_with_the_gateway_and_with_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as w:
        w.door.view = view()
        async with stream(w) as following:
            assert (await following())["kind"] == "all"
            await w.page.close()
            while await following() is not None:
                pass
        assert (await w.get("/ui/events"))[0] == 503
    monkeypatch.setattr(pages, "STREAM_S", 0.05)
    async with world(tmp_path / "other") as w:
        w.door.view = view()
        async with stream(w) as following:
            while await following() is not None:
                pass
