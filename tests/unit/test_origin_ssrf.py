"""Where an upstream may lead: judged by the address that is dialled, whatever it is called."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver

from passel.config.sections import UpstreamConfig
from passel.errors import OriginNonsense, OriginRefused, PasselError
from passel.transport.origin import OriginClient
from passel.transport.origin_net import is_allowed

NAMES = {
    "registry.test": "127.0.0.1",
    "auth.registry.test": "127.0.0.2",
    "inside.test": "127.0.0.2",
    "tokens.registry.test": "127.0.0.1",
    "elsewhere.example": "127.0.0.1",
}


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS for these tests; everything else goes to the system, as number forms do."""
    real = ThreadedResolver.resolve

    async def resolve(
        self: ThreadedResolver, host: str, port: int = 0, family: Any = socket.AF_INET
    ) -> list[ResolveResult]:
        if host not in NAMES:
            return await real(self, host, port, family)
        return [
            ResolveResult(
                hostname=host, host=NAMES[host], port=port, family=socket.AF_INET, proto=0, flags=0
            )
        ]

    monkeypatch.setattr(ThreadedResolver, "resolve", resolve)


class Victim:
    """Something on the inside that nobody should reach."""

    def __init__(self) -> None:
        self.touched = 0
        self.port = 0

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.touched += 1
        writer.close()

    @asynccontextmanager
    async def listening(self, address: str = "127.0.0.2") -> AsyncIterator[Victim]:
        server = await asyncio.start_server(self._accept, address, 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()


@asynccontextmanager
async def origin(answer: Any) -> AsyncIterator[OriginClient]:
    """A registry called registry.test at 127.0.0.1, and its client; 127.0.0.1 alone is allowed."""
    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    config = UpstreamConfig(api=f"http://registry.test:{port}", networks=("127.0.0.1/32",))
    client = OriginClient("lab", config, cluster="here", backoff_s=0.001)
    try:
        yield client
    finally:
        await client.close()
        await runner.cleanup()


async def ask(client: OriginClient, authorization: str | None = None) -> None:
    async with client.open(
        "GET", "/v2/a/blobs/x", headers={}, authorization=authorization, deadline_s=5
    ):
        pass


@pytest.mark.parametrize(
    "place",
    [
        "http://127.0.0.2:{port}/x",
        "http://inside.test:{port}/x",
        "http://2130706434:{port}/x",
        "http://0x7f000002:{port}/x",
        "http://0177.0.0.2:{port}/x",
        "http://127.2:{port}/x",
        "http://[::ffff:127.0.0.2]:{port}/x",
        "http://registry.test@inside.test:{port}/x",
        "//inside.test:{port}/x",
    ],
)
async def test_a_redirect_to_the_inside_is_not_followed(place: str) -> None:
    async with Victim().listening() as victim:

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            return web.Response(status=307, headers={"Location": place.format(port=victim.port)})

        async with origin(answer) as client:
            with pytest.raises(PasselError):
                await ask(client)
        assert victim.touched == 0


async def test_a_redirect_where_it_may_go_is_followed() -> None:
    """So that the tests above fail for the right reason."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/elsewhere":
            return web.Response(text="here")
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    async with origin(answer) as client:
        await ask(client)


async def test_a_name_that_moves_inside_later_is_judged_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Victim().listening() as victim:

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            return web.Response(headers={"Connection": "close"})

        async with origin(answer) as client:
            await ask(client)
            monkeypatch.setitem(NAMES, "registry.test", "127.0.0.2")
            client._api = client._api.with_port(victim.port)
            assert client._session is not None
            connector = client._session.connector
            connector.clear_dns_cache()  # type: ignore[union-attr]
            with pytest.raises(OriginNonsense, match="networks"):
                await ask(client)
        assert victim.touched == 0


@pytest.mark.parametrize(
    "realm",
    [
        "http://127.0.0.2:{port}/token",
        "http://inside.test:{port}/token",
        "http://auth.registry.test:{port}/token",
        "https://auth.registry.test:{port}/token",
    ],
)
async def test_a_realm_on_the_inside_gets_no_request(realm: str) -> None:
    async with Victim().listening() as victim:
        challenge = f'Bearer realm="{realm.format(port=victim.port)}",service="s"'

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})

        async with origin(answer) as client:
            for credential in (None, "Basic dTpw"):
                with pytest.raises((OriginNonsense, OriginRefused)):
                    await ask(client, credential)
        assert victim.touched == 0


@pytest.mark.parametrize(
    ("realm", "touched"),
    [
        # Another domain, and the own one without TLS: not even asked.
        ("https://elsewhere.example:{port}/token", False),
        ("http://elsewhere.example:{port}/token", False),
        ("http://tokens.registry.test:{port}/token", False),
        ("http://registry.test:{port}/token", True),
        ("https://tokens.registry.test:{port}/token", True),
    ],
)
async def test_a_realm_is_of_the_upstreams_own_domain_and_behind_tls(
    realm: str, touched: bool
) -> None:
    async with Victim().listening("127.0.0.1") as server:
        challenge = f'Bearer realm="{realm.format(port=server.port)}",service="s"'

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})

        async with origin(answer) as client:
            with pytest.raises(PasselError):
                await ask(client, "Basic dTpw")
        assert (server.touched > 0) == touched


async def test_a_redirect_from_https_to_http_is_not_followed() -> None:
    config = UpstreamConfig(api="https://registry.test", networks=("127.0.0.1/32",))
    client = OriginClient("lab", config, cluster="here", backoff_s=0.001)
    asked: list[str] = []

    class Redirect:
        status = 307
        headers = {"Location": "http://registry.test/elsewhere"}

        def close(self) -> None:
            """Nothing to close."""

    async def send(method: str, url: Any, headers: Any) -> Any:
        asked.append(str(url))
        return Redirect()

    client._send = send  # type: ignore[method-assign]
    with pytest.raises(OriginNonsense, match="https to http"):
        await ask(client)
    assert asked == ["https://registry.test/v2/a/blobs/x"]


def test_metadata_services_cannot_even_be_configured() -> None:
    everything = [ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")]
    for address in ("169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "0.0.0.0", "224.0.0.1"):
        assert not is_allowed(address, everything)
