"""The gateway that a peer starts must not end with it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from passel.actors.keeper import GatewayKeeper, read_announcement
from passel.config.load import parse


async def test_a_gateway_that_a_peer_starts_is_not_its_child(tmp_path: Path) -> None:
    config = parse(
        f"store: {{path: {tmp_path}/store, capacity: 1 MiB, reserve: 0 B}}\n"
        "gateway: {listen: ['127.0.0.1:0'], health: ['127.0.0.1:0']}\n",
        source="the test",
    )
    keeper = asyncio.create_task(GatewayKeeper(config, None, "n1").run())

    ends_at = asyncio.get_running_loop().time() + 30
    note = None
    try:
        while note is None and asyncio.get_running_loop().time() < ends_at:
            await asyncio.sleep(0.05)
            note = read_announcement(config.store.path)
    finally:
        keeper.cancel()
    assert note is not None
    pid = note["pid"]
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        parent, session = int(fields[1]), int(fields[3])
        # A worker of Ray that loses its raylet ends all its children before it goes.
        assert parent != os.getpid()
        assert session != os.getsid(0)
    finally:
        os.kill(pid, signal.SIGTERM)
