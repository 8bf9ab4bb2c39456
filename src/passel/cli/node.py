"""`passel node`: this host as one node of a Ray cluster that was started by other means.

The start commands of a cluster file, a KubeRay manifest and a systemd unit call these; `passel up`
is for trials on one machine and does not.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from passel.cli.cluster import JsonOption, print_nodes
from passel.cli.console import errors_are_sentences, out, print_json
from passel.cli.gatewayprocess import NodeGateway
from passel.cli.mirrors import mirrors
from passel.client.status import peer_status
from passel.config import load, missing_files
from passel.errors import ConfigError, PasselError
from passel.transport.certificates import check_available

#: The controller's constructor waits for the shards, and Ray for its first worker.
CONTROLLER_TIMEOUT_S = 90.0

app = typer.Typer(no_args_is_help=True, help="This host as a node of a Ray cluster.")

app.command()(mirrors)

ConfigOption = Annotated[
    Path,
    typer.Option(envvar="PASSEL_CONFIG", help="The configuration (YAML) of this node."),
]


@app.command()
def start(
    config: ConfigOption,
    head: Annotated[bool, typer.Option("--head", help="Start the controller in Ray too.")] = False,
    name: Annotated[str | None, typer.Option(help="The node's name. [hostname]")] = None,
) -> None:
    """Start this node's gateway; return when it answers. Peers come with the controller."""
    with errors_are_sentences():
        settings = load(config)
        missing = missing_files(settings)
        if missing:
            raise ConfigError("\n".join(missing))
        if settings.peer.tls:
            check_available()
        gateway = NodeGateway(settings)
        try:
            is_new = gateway.start(config, name or socket.gethostname())
        except OSError as error:
            text = f"the gateway cannot be started in {gateway.folder}: {error.strerror}"
            raise PasselError(text) from error
        state = "answers" if is_new else "answers already"
        out.print(f"gateway {gateway.address} {state}", markup=False)
        if head:
            _start_controller(config)
            out.print("the controller is up: every node of this Ray cluster gets its peer")


def _start_controller(config: Path) -> None:
    command = [sys.executable, "-m", "passel.cli.launcher", "--gcs", "auto"]
    command += ["--config", str(config.absolute())]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=CONTROLLER_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        text = f"the controller is not up within {CONTROLLER_TIMEOUT_S:g} s, see ray status"
        raise PasselError(text) from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise PasselError(
            f"passel cannot be started in Ray: {last} (is this host's Ray up? ray start --head)"
        )


@app.command()
def stop(
    config: ConfigOption,
    everywhere: Annotated[
        bool, typer.Option("--all", help="End passel on all nodes of the Ray cluster first.")
    ] = False,
) -> None:
    """End this node's gateway. While the node has a peer, that starts another one."""
    with errors_are_sentences():
        settings = load(config)
        if everywhere:
            # Ray takes a second to import: only who says --all pays for it.
            from passel.cli.dissolving import end_everywhere

            n_nodes = end_everywhere(config.absolute())
            out.print(f"passel has ended on {n_nodes} nodes; stores and logs stay")
        was_there = NodeGateway(settings).stop()
        if not everywhere:
            out.print("the gateway has ended" if was_there else "no gateway runs here")


@app.command()
def status(config: ConfigOption, as_json: JsonOption = False) -> None:
    """The whole cluster, as this node's peer sees it."""
    with errors_are_sentences():
        facts = peer_status(load(config).store.path)
        if as_json:
            print_json(facts)
        else:
            print_nodes(facts)
