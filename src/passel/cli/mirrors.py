"""`passel node mirrors`: containerd and podman of this host are told to ask the gateway first.

Both fall back to the registry by themselves when the gateway is away. Files that somebody else
wrote are left alone; what is written here carries a mark, by which it is found again.

Sources: containerd, docs/hosts.md (one folder per registry host, ``hosts.toml`` in it);
containers-registries.conf(5) (a mirror is asked with its location in place of the prefix).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from passel.cli.console import errors_are_sentences, out
from passel.cli.gatewayprocess import NodeGateway
from passel.config import Config, UpstreamConfig, host_port, load
from passel.errors import ConfigError, PasselError
from passel.oci.upstream import DOCKER_HUB
from passel.store import fileio

MARK = "# Written by passel node mirrors; --remove takes it away."
_FILE_BYTES_MAX = 1024 * 1024


def mirrors(
    config: Annotated[
        Path, typer.Option(envvar="PASSEL_CONFIG", help="The configuration (YAML) of this node.")
    ],
    containerd: Annotated[
        Path | None, typer.Option(help="Its config_path, as a rule /etc/containerd/certs.d.")
    ] = None,
    podman: Annotated[
        Path | None,
        typer.Option(help="A file, as a rule /etc/containers/registries.conf.d/50-passel.conf."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take away what was written.")] = False,
) -> None:
    """Point containerd and podman at this node's gateway, for all configured upstreams."""
    with errors_are_sentences():
        settings = load(config)
        if containerd is None and podman is None:
            raise ConfigError("say for whom: --containerd FOLDER, --podman FILE, or both")
        wanted = dict(_files(settings, containerd, podman))
        if remove:
            gone = [path for path in wanted if _take_away(path)]
            out.print(f"{len(gone)} files are gone", markup=False)
            return
        for path in wanted:
            _check_ours(path)
        written = [path for path, text in wanted.items() if _write(path, text)]
        out.print(f"{len(wanted)} files, {len(written)} of them new or changed", markup=False)


def _files(
    config: Config, containerd: Path | None, podman: Path | None
) -> Iterator[tuple[Path, str]]:
    gateway = gateway_address(config)
    if containerd is not None:
        for key, upstream in config.upstreams.items():
            yield containerd / key / "hosts.toml", containerd_hosts(upstream, gateway)
    if podman is not None:
        yield podman, podman_registries(config, gateway)


def gateway_address(config: Config) -> str:
    """``host:port`` for clients on this host. Raises PasselError when nobody knows the port."""
    for address in config.gateway.listen:
        host, port = host_port(address)
        if port != 0:
            host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    running = NodeGateway(config).address
    if running is None:
        raise PasselError("the gateway's port is chosen when it starts: passel node start first")
    return running.removeprefix("http://")


def containerd_hosts(upstream: UpstreamConfig, gateway: str) -> str:
    """``hosts.toml`` for one registry: the gateway first, then the registry itself."""
    lines = [MARK, f"server = {_quoted(upstream.api)}"]
    if upstream.ca is not None:
        lines.append(f"ca = {_quoted(str(upstream.ca))}")
    if upstream.insecure:
        lines.append("skip_verify = true")
    lines += ["", f"[host.{_quoted(f'http://{gateway}')}]", '  capabilities = ["pull", "resolve"]']
    return "\n".join(lines) + "\n"


def podman_registries(config: Config, gateway: str) -> str:
    """``registries.conf`` with a mirror for every upstream. Raises ConfigError.

    podman puts the upstream into the path, where there is no room for a port: an alias stands in.
    """
    lines = [MARK]
    for key, upstream in config.upstreams.items():
        scheme, _, host = upstream.api.partition("://")
        name = next((each for each in (key, *upstream.aliases) if ":" not in each), None)
        if name is None:
            raise ConfigError(
                f"upstreams.{key}: podman needs a name without a port: give it aliases: [...]"
            )
        lines += [
            "",
            "[[registry]]",
            f"prefix = {_quoted(key)}",
            f"location = {_quoted(key if key == DOCKER_HUB else host)}",
            f"insecure = {'true' if upstream.insecure or scheme == 'http' else 'false'}",
            "[[registry.mirror]]",
            f"location = {_quoted(f'{gateway}/{name}')}",
            "insecure = true  # plain HTTP, on this host",
        ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A basic string of TOML. Names and URLs hold neither quotes nor control characters."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _read(path: Path) -> str | None:
    try:
        return fileio.read_small(path, _FILE_BYTES_MAX).decode("utf-8", "replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PasselError(f"{path} cannot be read: {error.strerror}") from error


def _check_ours(path: Path) -> None:
    text = _read(path)
    if text is not None and not text.startswith(MARK):
        raise PasselError(f"{path} was written by somebody else: take it away first, or edit it")


def _write(path: Path, text: str) -> bool:
    if _read(path) == text:
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fileio.publish(path, text.encode())
        path.chmod(0o644)
    except OSError as error:
        raise PasselError(f"{path} cannot be written: {error.strerror}") from error
    return True


def _take_away(path: Path) -> bool:
    text = _read(path)
    if text is None or not text.startswith(MARK):
        return False
    try:
        path.unlink()
    except OSError as error:
        raise PasselError(f"{path} cannot be removed: {error.strerror}") from error
    return True
