"""The page in a real browser: before a real cluster, and before 500 simulated nodes.

`PASSEL_SHOTS` names a folder that keeps the pictures.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import signal
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import Page, browser
from conftest import gateway_of
from ray_lab import Lab, eventually
from tools import DockerRegistry, need
from unit.gateway_fakes import World, world
from watched_rollout import Rollout

from passel.client.admin import ask
from passel.client.status import peer_status
from passel.errors import PasselError

pytestmark = pytest.mark.e2e

MIB = 1 << 20
SIZES = {"desk": (1280, 800), "phone": (390, 844)}
TEXT = "document.getElementById('{}').textContent"
TWO_FRAMES = """new Promise((then) =>
  requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(then, 100))))"""
#: The colours of the canvas, coarsely: one of which only a blank one has few.
COLOURS = """(() => {
  const c = document.getElementById('graph');
  const data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
  const seen = new Set();
  for (let i = 0; i < data.length; i += 4) {
    seen.add([data[i] >> 4, data[i + 1] >> 4, data[i + 2] >> 4].join());
  }
  return seen.size;
})()"""


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("PASSEL_SHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


async def text(page: Page, name: str) -> str:
    return str(await page.value(TEXT.format(name)))


async def look_at_all(page: Page, shots: Path, name: str) -> None:
    """In the light and in the dark, at a desk and on a phone: it fits, and it is drawn."""
    pictures = set()
    for (size, (width, height)), dark in itertools.product(SIZES.items(), (False, True)):
        await page.look(width, height, dark=dark)
        await page.until("document.documentElement.clientWidth", lambda w, width=width: w == width)
        # Two frames: one that notices the new size, one that draws.
        await page.tell("Runtime.evaluate", expression=TWO_FRAMES, awaitPromise=True)
        assert await page.value("document.documentElement.scrollWidth") == width, (size, dark)
        assert await page.value(COLOURS) >= 8, (size, dark)
        file = shots / f"{name}-{size}-{'dark' if dark else 'light'}.png"
        pictures.add(hashlib.sha256(await page.picture(file)).digest())
    assert len(pictures) == 4
    await page.look(*SIZES["desk"])


def only_from(page: Page, base: str) -> bool:
    return all(url.startswith(f"{base}/ui") for url in page.requested)


async def test_a_real_cluster_is_seen_as_it_is(
    lab: Lab, registry: DockerRegistry, shots: Path
) -> None:
    need("chromium")
    data = os.urandom(24 * MIB)
    digest = push(lab, registry, data)
    # Any node's gateway shows the whole cluster; n3 is in the other zone.
    health = gateway_of(lab.nodes["n3"].folder)["health"]
    async with browser() as page:
        await page.look(*SIZES["desk"])
        await page.open(f"{health}/ui")
        await page.until(TEXT.format("live-text"), lambda t: t == "live")
        assert "3 nodes" in await page.until(TEXT.format("census"), lambda t: "blobs" in t)
        for name in ("n2", "n3"):
            await asyncio.to_thread(pull, gateway_of(lab.nodes[name].folder)["gateway"], digest)
        await page.until(TEXT.format("blobs"), lambda t: "3/3" in t and digest[:19] in t)
        await page.until(TEXT.format("nodes"), lambda t: t.count("all") == 3)
        nodes = await text(page, "nodes")
        assert "origin 100" in nodes  # the seed, and nobody else
        assert nodes.count("origin") == 1
        assert "24.0\u00a0MiB" in nodes
        assert await text(page, "tile-origin-more") == "24.0\u00a0MiB in all"

        order = {"what": "org/app", "to": "all", "blobs": [wanted(digest, len(data))]}
        socket = lab.nodes["n1"].folder / "store" / "peer.sock"
        await asyncio.to_thread(ask, [socket], "submit", order)
        await page.until(TEXT.format("jobs"), lambda t: "done" in t and "3 of 3 nodes" in t)
        assert "preheats" in (await text(page, "jobs-title")).lower()
        await look_at_all(page, shots, "cluster")

        # Ray starts a killed controller again, and it finds the peers as they are.
        former = controller_of(lab)
        assert former is not None
        os.kill(former, signal.SIGKILL)
        await asyncio.to_thread(eventually, lambda: controller_of(lab) not in (None, former), 30)
        other = push(lab, registry, os.urandom(MIB))
        await asyncio.to_thread(pull, gateway_of(lab.nodes["n2"].folder)["gateway"], other)
        await page.until(TEXT.format("blobs"), lambda t: other[:19] in t and digest[:19] in t)
        await page.until(TEXT.format("live-text"), lambda t: t == "live")
        assert page.complaints == []
        assert only_from(page, health)


def push(lab: Lab, registry: DockerRegistry, data: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    blob = lab.folder / "blob"
    blob.write_bytes(data)
    registry.push_blob("org/app", blob, digest)
    return digest


def controller_of(lab: Lab) -> int | None:
    """Its process id; None while it does not answer."""
    try:
        status = peer_status(lab.nodes["n1"].folder / "store")
    except PasselError:
        return None
    return int(status["controller"]["pid"])


def wanted(digest: str, size: int) -> dict[str, Any]:
    return {"upstream": "lab", "repository": "org/app", "digest": digest, "size": size}


def pull(gateway: str, digest: str) -> None:
    with urllib.request.urlopen(f"{gateway}/v2/org/app/blobs/{digest}", timeout=60) as answer:
        assert answer.status == 200
        answer.read()


@asynccontextmanager
async def watched(tmp_path: Path, views: list[dict[str, Any]]) -> AsyncIterator[tuple[World, Page]]:
    """A gateway whose controller says these, the last one for ever, and a browser before it."""
    need("chromium")
    async with world(tmp_path) as w, browser() as page:
        w.door.view = views[0]
        await page.look(*SIZES["desk"])
        await page.open(f"{w.base}/ui")
        await page.until(TEXT.format("census"), lambda t: "nodes" in t)
        for view in views[1:]:
            await asyncio.sleep(1.0)  # the stream's own pace
            w.door.view = view
        await asyncio.sleep(1.0)
        yield w, page


async def test_500_nodes_are_legible_and_silence_is_said(tmp_path: Path, shots: Path) -> None:
    need("chromium")
    rollout = Rollout(nodes=500, mib=32, begin_s=2.0, dead=2)
    views = await asyncio.to_thread(lambda: list(itertools.islice(rollout.views(), 8)))
    async with watched(tmp_path, views[-3:]) as (w, page):
        census = await text(page, "census")
        assert "500 nodes" in census
        assert "2 away" in census
        assert "5 zones" in census
        assert await text(page, "nodes-count") == "25 of 500 nodes"
        assert "800 pairs" in await text(page, "graph-detail")
        await look_at_all(page, shots, "rollout")

        # By keyboard: a node of the graph, then the table.
        await page.value("document.getElementById('graph').focus()")
        for key in ("End", "Home", "ArrowRight"):
            await page.tell("Input.dispatchKeyEvent", type="keyDown", key=key)
        about = await page.until(TEXT.format("graph-detail"), lambda t: " in z0: " in t)
        assert "from" in about
        await page.picture(shots / "rollout-node.png")
        await page.value(
            "(() => { const f = document.getElementById('nodes-find'); f.value = 'p49';"
            " f.dispatchEvent(new Event('input')); })()"
        )
        await page.until(TEXT.format("nodes-count"), lambda t: t == "11 nodes")
        assert "away" in await text(page, "nodes")

        w.door.view = None
        await page.until(TEXT.format("live-text"), lambda t: t == "not live")
        assert "controller does not answer" in await text(page, "banner-text")
        assert await page.value("document.getElementById('banner').offsetHeight") > 0
        await page.picture(shots / "rollout-away.png")
        # What was known stays there to be read.
        assert await text(page, "nodes-count") == "11 nodes"
        w.door.view = views[-1]
        await page.until(TEXT.format("live-text"), lambda t: t == "live")

        await w.page.close()  # as when the gateway goes
        await page.until(TEXT.format("banner-title"), lambda t: "does not answer" in t)
        w.page._feed.is_closed = False  # and comes again
        await page.until(TEXT.format("live-text"), lambda t: t == "live")
        assert [c for c in page.complaints if "503" not in c] == []
        assert only_from(page, w.base)
