"""Keeps a gateway running on the node: a peer that finds none starts one, detached.

The gateway is its own process and outlives the peer (DESIGN §2). Whoever starts the node starts it
too; this is for nodes that join by themselves, and for gateways that die.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp

from passel.config.load import dump
from passel.config.sections import Config

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
PING_TIMEOUT_S = 1.5
#: A shell that starts it and ends.
START_TIMEOUT_S = 10.0
#: So many looks in a row must find nobody: a gateway that is being restarted is left to it.
ABSENT_LOOKS = 2


def read_announcement(store: Path) -> dict[str, Any] | None:
    """What the node's gateway wrote when it listened (`gateway`, `health`, `pid`), if it did."""
    try:
        content = json.loads((store.parent / "gateway.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


class GatewayKeeper:
    """Looks after the gateway of one node. `config_path` None: the configuration is written out."""

    def __init__(self, config: Config, config_path: Path | None, node: str) -> None:
        self._config = config
        self._config_path = config_path
        self._node = node

    async def run(self) -> None:
        """For ever."""
        absent = 0
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=PING_TIMEOUT_S), trust_env=False
        ) as session:
            while True:
                absent = 0 if await self._answers(session) else absent + 1
                if absent >= ABSENT_LOOKS:
                    absent = -3  # time to come up before it is looked for again
                    try:
                        await asyncio.to_thread(self._start)
                    except (OSError, subprocess.SubprocessError) as error:
                        log.error("gateway_not_started node=%s why=%s", self._node, error)
                await asyncio.sleep(LOOK_EVERY_S)

    async def _answers(self, session: aiohttp.ClientSession) -> bool:
        announced = read_announcement(self._config.store.path)
        if announced is None or not announced.get("gateway"):
            return False
        try:
            async with session.get(f"{announced['gateway']}/server/ping") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError):
            return False

    def _start(self) -> None:
        folder = self._config.store.path.parent
        path = self._config_path
        if path is None:
            path = folder / "passel.yaml"
            path.write_text(dump(self._config), encoding="utf-8")
        command = [sys.executable, "-m", "passel.gateway", "--config", str(path)]
        state = os.environ.get("PASSEL_STATE")
        if state:
            command += ["--state", state]
        command += ["--node", self._node]
        with (folder / "gateway.log").open("ab") as output:
            # By way of a shell that ends at once: a worker of Ray that loses its raylet kills its
            # children before it goes, and the gateway is to outlive both.
            done = subprocess.run(
                ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
                check=True,
                text=True,
                timeout=START_TIMEOUT_S,
            )
        log.info("gateway_started node=%s pid=%d", self._node, int(done.stdout))
