"""Headless Chromium by its DevTools protocol: open a page, ask it things, take its picture."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from tools import need

DEADLINE_S = 30.0
#: A page with a few thousand rows; the default of aiohttp is 4 MiB, pictures are larger.
MESSAGE_BYTES_MAX = 64 * 1024 * 1024


class Page:
    """One tab. `complaints` has what the page wrote to the console as errors, and exceptions."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.complaints: list[str] = []
        self.requested: list[str] = []
        self._listener = asyncio.get_running_loop().create_task(self._listen())

    async def _listen(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
            elif said["method"] == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(said["params"]["exceptionDetails"]))
            elif said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                self.complaints.append(said["params"]["entry"]["text"])
            elif said["method"] == "Network.requestWillBeSent":
                self.requested.append(said["params"]["request"]["url"])

    async def tell(self, method: str, **params: object) -> dict[str, Any]:
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        said = await asyncio.wait_for(answer, DEADLINE_S)
        assert "error" not in said, said
        result: dict[str, Any] = said["result"]
        return result

    async def open(self, url: str) -> None:
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.tell(f"{domain}.enable")
        await self.tell("Page.navigate", url=url)
        await self.until("location.protocol == 'http:' && document.readyState == 'complete'")

    async def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """A window of this size, and what its user prefers."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        await self.tell("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        await self.tell("Emulation.setEmulatedMedia", features=[scheme, still])

    async def value(self, expression: str) -> Any:
        """What an expression of JavaScript is."""
        answer = await self.tell("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, expression: str, good: Callable[[Any], bool] = bool) -> Any:
        """Wait until the expression is `good`; the value that was."""
        deadline = asyncio.get_running_loop().time() + DEADLINE_S
        while not good(value := await self.value(expression)):
            now = asyncio.get_running_loop().time()
            assert now < deadline, f"{expression} stayed {value!r}; {self.complaints}"
            await asyncio.sleep(0.1)
        return value

    async def picture(self, file: Path, *, whole: bool = False) -> bytes:
        """A PNG of what is in the window, or of the whole page."""
        shot = await self.tell("Page.captureScreenshot", captureBeyondViewport=whole)
        data = base64.b64decode(shot["data"])
        file.write_bytes(data)
        return data


@asynccontextmanager
async def browser() -> AsyncIterator[Page]:
    """A new Chromium with an empty profile, and its only tab."""
    with tempfile.TemporaryDirectory(prefix="pchr", ignore_cleanup_errors=True) as profile:
        words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        words += ["--disable-dev-shm-usage", "--no-first-run", "--remote-debugging-port=0"]
        words += ["--disable-background-networking", "--disable-component-update"]
        process = await asyncio.create_subprocess_exec(
            need("chromium"),
            *words,
            f"--user-data-dir={profile}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            port = await asyncio.wait_for(_port(Path(profile)), DEADLINE_S)
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    tabs = [tab for tab in await answer.json() if tab["type"] == "page"]
                url = tabs[0]["webSocketDebuggerUrl"]
                async with session.ws_connect(url, max_msg_size=MESSAGE_BYTES_MAX) as socket:
                    yield Page(socket)
        finally:
            process.terminate()
            await process.wait()


async def _port(profile: Path) -> str:
    """Chromium writes where it listens once it does."""
    file = profile / "DevToolsActivePort"
    while not file.exists() or not file.read_text():  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return file.read_text().splitlines()[0]
