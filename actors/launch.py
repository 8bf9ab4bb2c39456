"""Every actor's options: names, lifetimes, restarts, placement. Nobody else says `ray.remote`."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from passel.actors import certifying, configuring, rotating
from passel.actors.controller import Controller
from passel.actors.handles import end_actor, live_nodes, strike_out
from passel.actors.peer import Peer
from passel.actors.seed import SeedPeer
from passel.actors.shard import Shard
from passel.actors.words import NAMESPACE, PeerSpec, controller_name, peer_name, shard_name
from passel.config.sections import Config
from passel.core.messages import Role
from passel.errors import PeerUnavailable

ON_NODES_TIMEOUT_S = 60.0

#: Detached: they outlive the driver. Restarted for ever: all can rebuild what they know. No CPUs
#: claimed: a cluster full of jobs must still get its blobs. Calls wait in the actor, not outside.
_COMMON: dict[str, Any] = {
    "namespace": NAMESPACE,
    "lifetime": "detached",
    "get_if_exists": True,
    "max_restarts": -1,
    "max_task_retries": 0,
    "num_cpus": 0,
    "max_concurrency": 1000,
}


def start(config: Config) -> None:
    """See to it that the cluster that this process is connected to has a controller. Idempotent."""
    cluster = config.cluster or f"passel-{secrets.token_hex(4)}"
    node = ray.get_runtime_context().get_node_id()
    # Soft: the controller goes elsewhere when its node is gone.
    near = NodeAffinitySchedulingStrategy(node, soft=True)
    actor = ray.remote(Controller).options(
        name=controller_name(), scheduling_strategy=near, **_COMMON
    )
    actor.remote(config, cluster, Launcher())


def end() -> None:
    """Every actor of passel has ended, the controller first: it would start the others again."""
    found = [
        each["name"]
        for each in ray.util.list_named_actors(all_namespaces=True)
        if each["namespace"] == NAMESPACE
    ]
    for name in sorted(found, key=lambda name: name != controller_name()):
        end_actor(name)
    for key in (rotating.KEY, certifying.KEY, configuring.KEY):
        strike_out(key)  # a cluster that is started again has a secret and files of its own


def on_every_node(function: Callable[[str], object], argument: str) -> int:
    """Run `function(argument)` once on each live node; how many did within a minute.

    Raises PeerUnavailable when it failed on any of them.
    """
    task = ray.remote(num_cpus=0, max_retries=2)(function)
    calls = [
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(argument)
        for node in live_nodes()
    ]
    try:
        return len(ray.get(calls, timeout=ON_NODES_TIMEOUT_S))
    except (RayError, GetTimeoutError) as error:
        raise PeerUnavailable(f"not all nodes answer: {type(error).__name__}") from error


class Launcher:
    """What the controller starts actors with; handed in, so that it needs no import of this."""

    def shard(self, number: int, config: Config, node: str) -> None:
        """See to it that a shard exists, near the controller if that can be. Idempotent."""
        near = NodeAffinitySchedulingStrategy(node, soft=True)
        actor = ray.remote(Shard).options(
            name=shard_name(number), scheduling_strategy=near, **_COMMON
        )
        actor.remote(number, config)

    def peer(self, spec: PeerSpec) -> None:
        """See to it that a node has its peer, there and nowhere else. Idempotent."""
        here = NodeAffinitySchedulingStrategy(spec.peer, soft=False)
        kind = SeedPeer if spec.role is Role.SEED else Peer
        actor = ray.remote(kind).options(
            name=peer_name(spec.peer), scheduling_strategy=here, **_COMMON
        )
        actor.remote(spec)
