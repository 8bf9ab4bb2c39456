"""The simulator cannot drift from production: it has no decision of its own to drift with.

The import law (contract `drift`) keeps planners out of it; here decisions of a simulated shard are
replayed through the production actor's own code.
"""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from passel.actors import shard as live
from passel.config import Config
from passel.core import messages as m
from passel.core.peer import PeerMachine
from passel.core.shard import ShardMachine
from passel.ids import PeerId
from passel.sim import world as sim_world
from passel.sim.world import Setup, World

MIB = 1 << 20
ENGINE = Path(sim_world.__file__).parent
Said = list[tuple[PeerId, m.ShardMessage]]


class Recorded(ShardMachine):
    """Notes what went in and what came out; decides nothing else."""

    log: list[tuple[m.ShardEvent | None, float, Said]]

    def handle(self, event: m.ShardEvent, now: float) -> list[m.Deliver]:
        out = super().handle(event, now)
        self.log.append((event, now, [(d.peer, d.message) for d in out]))
        return out

    def handle_timer(self, now: float) -> list[m.Deliver]:
        out = super().handle_timer(now)
        self.log.append((None, now, [(d.peer, d.message) for d in out]))
        return out


def a_rollout(setup: Setup) -> list[tuple[m.ShardEvent | None, float, Said]]:
    world = World(setup)
    machine = world.shards[0].machine
    machine.__class__ = Recorded
    assert isinstance(machine, Recorded)
    machine.log = []
    ref = world.blob("b", 12 * MIB + 5)
    for name in list(world.nodes):
        world.read(name, ref)
    world.run(0.2, check=False)
    world.kill_peer("p0")
    world.run(0.9, check=False)
    world.restart_peer("p0")
    assert world.run_reads(60)
    return machine.log


class Loop:
    """The event loop's clock, set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, _: Any) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(1e6, lambda: None)


async def test_what_a_simulated_shard_decides_the_production_actor_decides_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setup = Setup(n_peers=8, zones=2, seed=5, jitter=0.3)
    log = a_rollout(setup)
    assert sum(len(said) for _, _, said in log) > 50

    monkeypatch.setattr(live, "is_second_life", lambda: False)
    monkeypatch.setattr(live, "own_node", lambda: "n0")
    actor = live.Shard.__new__(live.Shard)
    await actor.__init__(0, Config())  # type: ignore[misc]
    loop = Loop()
    actor._loop = loop  # type: ignore[assignment]
    rng = np.random.default_rng([setup.seed, 0, 1])
    actor._machine = ShardMachine(setup.shard_limits, 1, rng)
    said: Said = []

    def deliver(peer: PeerId, *messages: m.ShardMessage) -> None:
        said.extend((peer, message) for message in messages)

    monkeypatch.setattr(actor._outbox, "post", deliver)
    for event, now, expected in log:
        loop.now = now
        said.clear()
        if event is None:
            actor._on_timer()
        elif isinstance(event, m.Reported):
            reply = await actor.report(event.peer, event.incarnation, event.items)
            said.extend((event.peer, message) for message in reply.messages)
        else:
            actor._step(event)
        assert sorted(map(repr, said)) == sorted(map(repr, expected))
        order = [message for peer, message in said if peer == PeerId("p1")]
        assert order == [message for peer, message in expected if peer == PeerId("p1")]


def test_the_machines_of_a_world_are_the_production_classes() -> None:
    world = World(Setup(n_peers=2))
    assert {type(shard.machine) for shard in world.shards} == {ShardMachine}
    assert {type(node.machine) for node in world.nodes.values()} == {PeerMachine}


def test_nothing_in_the_simulator_extends_or_changes_a_machine() -> None:
    for path in sorted(ENGINE.glob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base) for base in node.bases}
                assert not {base for base in bases if "Machine" in base}, (path, node.name)
            if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    text = ast.unparse(target)
                    assert ".machine." not in text, f"{path}: {text} is the machine's own"
