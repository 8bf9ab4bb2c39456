"""Ends passel in a whole Ray cluster: its actors, and with a task on each node the gateways."""

from __future__ import annotations

import logging
from pathlib import Path

import ray

from passel.actors import launch
from passel.actors.words import NAMESPACE
from passel.cli.gatewayprocess import NodeGateway
from passel.config import load
from passel.errors import PasselError


def end_everywhere(config: Path) -> int:
    """No actor and no gateway of passel runs any more in this host's Ray cluster; its nodes.

    `config` is the file's path on every node. Raises PasselError.
    """
    try:
        ray.init(
            address="auto", namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR
        )
    except (ConnectionError, RuntimeError) as error:
        raise PasselError(
            "no Ray runs on this host: nothing else can be ended from here"
        ) from error
    try:
        launch.end()
        return launch.on_every_node(_end_gateway, str(config))
    finally:
        ray.shutdown()


def _end_gateway(config: str) -> bool:
    return NodeGateway(load(config)).stop()
