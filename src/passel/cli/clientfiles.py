"""The files of image clients, and what belongs into them so that they use a gateway.

An `Edit` is two functions of a file's text, one that puts passel in and one that takes it out
again; neither reads or writes anything. TOML keeps its comments: in files of others ours is a
marked block, or one key that tomlkit changes. Source of what each client reads: reference oci.md
§7, nydus.md §2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from passel.config import Config, host_port
from passel.errors import ConfigError

BEGIN = "# passel begin: written by `passel config`, taken back by its --undo"
END = "# passel end"

#: A file's text (None: there is none) to the text that it should have (None: no file).
Change = Callable[[str | None], "str | None"]


@dataclass(frozen=True, slots=True)
class Edit:
    """One file, and how passel gets into it and out again."""

    path: Path
    put: Change
    take: Change


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that one client needs."""

    edits: list[Edit]
    #: What to do afterwards.
    restart: str
    #: What cannot be configured this way, and what to do about it.
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Where:
    """The gateway as a client on this node sees it; URLs without a path."""

    config: Config
    gateway: str
    health: str
    #: Upstream -> a listener that serves nothing else.
    dedicated: dict[str, str]

    def of(self, upstream: str) -> str:
        """Where that upstream is served to a client that cannot say which one it means."""
        return self.dedicated.get(upstream, self.gateway)


def where(config: Config, gateway: str | None = None) -> Where:
    """From the configuration; `gateway` replaces the first listener."""

    def url(address: str) -> str:
        host, port = host_port(address)
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        if port == 0:
            raise ConfigError(
                f"the kernel chooses the port of {address}: say where the gateway is (--gateway,"
                " as `passel status` prints it)"
            )
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    listen = config.gateway.listen
    if gateway is None and not listen:
        raise ConfigError("gateway.listen is empty: there is nothing that a client could use")
    base = url(listen[0]) if gateway is None else gateway.rstrip("/")
    health = config.gateway.health
    dedicated = {key: url(address) for address, key in config.gateway.dedicated.items()}
    return Where(config, base, url(health[0]) if health else base, dedicated)


def containerd(at: Where, root: Path) -> Plan:
    """A hosts.toml per upstream, and config_path so that CRI looks there."""
    folder = root / "etc/containerd/certs.d"
    edits = []
    for key, upstream in at.config.upstreams.items():
        top = f'server = "{upstream.api}"\n'
        if upstream.ca is not None:
            top += f'ca = "{upstream.ca}"\n'
        block = f'[host."{at.gateway}"]\n  capabilities = ["pull", "resolve"]\n'
        edits.append(_hosts_file(folder / key / "hosts.toml", top, block))
    path = root / "etc/containerd/config.toml"
    edits.append(Edit(path, _containerd_put, _containerd_take))
    return Plan(
        edits,
        "if config.toml changed: systemctl restart containerd (hosts.toml is read at every pull)",
    )


def podman(at: Where, root: Path) -> Plan:
    """One drop-in for podman, buildah, skopeo and CRI-O; a prefix names the upstream."""
    tables, notes, public_only = [], [], []
    for key, upstream in at.config.upstreams.items():
        name = next((each for each in (key, *upstream.aliases) if _fits_a_path(each)), None)
        if key in at.dedicated:
            location = at.dedicated[key].partition("://")[2]
        elif name is not None:
            location = f"{at.gateway.partition('://')[2]}/{name}"
        else:
            notes.append(
                f"{key} does not fit into a path: give it an alias without a port, or a listener of"
                " its own (gateway.dedicated)"
            )
            continue
        scheme, _, host = upstream.api.partition("://")
        host = key if key == "docker.io" else host
        insecure = "insecure = true\n" if scheme == "http" or upstream.insecure else ""
        tables.append(
            f'[[registry]]\nprefix = "{key}"\nlocation = "{host}"\n{insecure}'
            f'[[registry.mirror]]\nlocation = "{location}"\ninsecure = true\n'
        )
        if key not in at.dedicated and upstream.auth == "passthrough":
            public_only.append(key)
    if public_only:
        notes.append(
            f"private images of {', '.join(public_only)} are pulled from there directly: these"
            " tools show credentials to a mirror only if it has a listener of its own"
            " (gateway.dedicated)"
        )
    path = root / "etc/containers/registries.conf.d/50-passel.conf"
    edits = [_own_file(path, "\n".join(tables))]
    return Plan(edits, "nothing: the file is read at every pull", notes)


def crio(at: Where, root: Path) -> Plan:
    """CRI-O reads the same drop-in as podman."""
    plan = podman(at, root)
    return Plan(plan.edits, "systemctl reload crio", plan.notes)


def docker(at: Where, root: Path) -> Plan:
    """The engine's registry-mirrors, which are for Docker Hub only."""
    hub = "docker.io"
    if hub not in at.config.upstreams:
        raise ConfigError(
            "docker asks a mirror for docker.io only, and that is not among the upstreams"
        )
    notes = []
    if hub not in at.dedicated and at.config.default_upstream != hub:
        raise ConfigError(
            "docker cannot say which registry it means: make docker.io the default_upstream, or"
            " give it a listener of its own (gateway.dedicated)"
        )
    notes.append("images of other registries than docker.io do not go through docker's mirror")
    mirror = at.of(hub)

    def put(document: dict[str, Any]) -> None:
        mirrors = document.setdefault("registry-mirrors", [])
        if mirror not in mirrors:
            mirrors.insert(0, mirror)

    def take(document: dict[str, Any]) -> None:
        mirrors = document.get("registry-mirrors", [])
        if mirror in mirrors:
            mirrors.remove(mirror)
            if not mirrors:
                del document["registry-mirrors"]

    path = root / "etc/docker/daemon.json"
    return Plan([_json_edit(path, put, take)], "systemctl reload docker", notes)


def nydus_snapshotter(at: Where, root: Path) -> Plan:
    """Its mirrors folder, and the key that names it."""
    folder = root / "etc/nydus/certs.d"
    edits = []
    for key, upstream in at.config.upstreams.items():
        url = at.of(key)
        block = f'[host."{url}"]\n  ping_url = "{at.health}/server/ping"\n'
        block += f'[host."{url}".header]\n  X-Dragonfly-Registry = ["{upstream.api}"]\n'
        # The snapshotter knows Docker Hub by this name.
        name = "index.docker.io" if key == "docker.io" else key
        edits.append(_hosts_file(folder / name / "hosts.toml", "", block))
    value = "/etc/nydus/certs.d"

    def put(text: str | None) -> str:
        document = _toml(text)
        remote = document.setdefault("remote", tomlkit.table())
        mirrors = remote.setdefault("mirrors_config", tomlkit.table())
        if mirrors.get("dir"):
            if mirrors["dir"] != value:
                raise ConfigError(
                    f"remote.mirrors_config.dir is {mirrors['dir']} already: put the folders of"
                    f" {folder} there, or remove the key"
                )
            return text or ""
        mirrors["dir"] = value
        return tomlkit.dumps(document)

    def take(text: str | None) -> str | None:
        document = _toml(text)
        mirrors = document.get("remote", {}).get("mirrors_config", {})
        if mirrors.get("dir") != value:
            return text
        del mirrors["dir"]
        _prune(document, ["remote", "mirrors_config"])
        return tomlkit.dumps(document) or None

    edits.append(Edit(root / "etc/nydus/config.toml", put, take))
    return Plan(
        edits,
        "systemctl restart nydus-snapshotter; images that are mounted keep what they have",
        _ambiguous(at, "snapshotters from 2026 on drop the header"),
    )


def nydusd(at: Where, path: Path, *, proxy: bool = False) -> Plan:
    """A nydusd configuration (JSON): `mirrors` up to 2.3.4, `proxy` for every version."""

    def backend(document: dict[str, Any]) -> dict[str, Any]:
        try:
            found = document["device"]["backend"]["config"]
        except (KeyError, TypeError):
            found = None
        if not isinstance(found, dict):
            raise ConfigError(f"{path} has no device.backend.config, which a registry backend has")
        return found

    def put(document: dict[str, Any]) -> None:
        config = backend(document)
        if proxy:
            config["proxy"] = {
                "url": at.gateway,
                "ping_url": f"{at.health}/server/ping",
                "fallback": True,
                "check_interval": 5,
                "use_http": True,
            }
            return
        mirrors = [each for each in config.get("mirrors", []) if each.get("host") != at.gateway]
        registry = f"{config.get('scheme') or 'https'}://{config.get('host', '')}"
        own = {
            "host": at.gateway,
            "headers": {"X-Dragonfly-Registry": registry},
            "auth_through": False,
            "ping_url": f"{at.health}/server/ping",
            "health_check_interval": 5,
            "failure_limit": 5,
        }
        config["mirrors"] = [own, *mirrors]

    def take(document: dict[str, Any]) -> None:
        config = backend(document)
        if config.get("proxy", {}).get("url") == at.gateway:
            del config["proxy"]
        mirrors = [each for each in config.get("mirrors", []) if each.get("host") != at.gateway]
        if mirrors:
            config["mirrors"] = mirrors
        else:
            config.pop("mirrors", None)

    edit = _json_edit(path, put, take, must_exist=True)
    return Plan([edit], "mounts made from now on use it; running nydusd processes do not")


# Files that are ours, files that are not.


def _own_file(path: Path, content: str) -> Edit:
    def put(text: str | None) -> str:
        if text is not None and not text.startswith(BEGIN):
            raise ConfigError(f"{path} is there and was not written by passel: move it away first")
        return f"{BEGIN}\n{content}{END}\n"

    def take(text: str | None) -> str | None:
        return None if text is not None and text.startswith(BEGIN) else text

    return Edit(path, put, take)


def _hosts_file(path: Path, top: str, block: str) -> Edit:
    """A containerd-style hosts.toml: our host goes before all others, which are asked after it."""
    ours = f"{BEGIN}\n{block}{END}\n"

    def take(text: str | None) -> str | None:
        if text is None:
            return None
        rest = _without_block(text)
        return None if rest.strip() == top.strip() else rest

    def put(text: str | None) -> str:
        rest = _without_block(text) if text is not None else f"{top}\n"
        host = re.search(r"^[ \t]*\[host[.\]]", rest, re.MULTILINE)
        at = len(rest) if host is None else host.start()
        glue = "" if not rest[:at] or rest[:at].endswith("\n") else "\n"
        new = rest[:at] + glue + ours + rest[at:]
        _toml(new, path)
        return new

    return Edit(path, put, take)


def _without_block(text: str) -> str:
    return re.sub(rf"{re.escape(BEGIN)}\n.*?{re.escape(END)}\n", "", text, flags=re.DOTALL)


_CRI = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.images"}
_CERTS = "/etc/containerd/certs.d"


def _containerd_put(text: str | None) -> str:
    document = _toml(text)
    version = document.get("version", 2 if not document else 1)
    if version not in _CRI:
        raise ConfigError(
            f"containerd's config.toml says version {version}: bring it to version 2 first"
            " (`containerd config migrate`, or the manual)"
        )
    plugin = document.get("plugins", {}).get(_CRI[version], {})
    registry = plugin.get("registry", {})
    if registry.get("mirrors") or registry.get("configs"):
        raise ConfigError(
            "containerd's config.toml has registry.mirrors or registry.configs, which it does not"
            " accept beside config_path: move them into hosts.toml files first"
        )
    if registry.get("config_path"):
        if _CERTS not in registry["config_path"].split(":"):
            raise ConfigError(
                f"containerd's config_path is {registry['config_path']} already: add {_CERTS} to it"
            )
        return text or ""
    if not document:
        document["version"] = version
    plugins = document.setdefault("plugins", tomlkit.table(is_super_table=True))
    plugin = plugins.setdefault(_CRI[version], tomlkit.table(is_super_table=True))
    plugin.setdefault("registry", tomlkit.table())["config_path"] = _CERTS
    return tomlkit.dumps(document)


def _containerd_take(text: str | None) -> str | None:
    document = _toml(text)
    for name in _CRI.values():
        registry = document.get("plugins", {}).get(name, {}).get("registry", {})
        if registry.get("config_path") == _CERTS:
            del registry["config_path"]
            _prune(document, ["plugins", name, "registry"])
            rest = tomlkit.dumps(document)
            return None if re.fullmatch(r"\s*version = [23]\s*", rest) else rest
    return text


def _prune(document: Any, way: list[str]) -> None:
    """Remove tables along a way that have become empty, the innermost first."""
    for depth in range(len(way), 0, -1):
        parent = document
        for key in way[: depth - 1]:
            parent = parent[key]
        if len(parent[way[depth - 1]]):
            return
        del parent[way[depth - 1]]


def _toml(text: str | None, path: Path | None = None) -> Any:
    try:
        return tomlkit.parse(text or "")
    except TOMLKitError as error:
        name = "the file" if path is None else str(path)
        raise ConfigError(f"{name} is not valid TOML: {error}") from error


def _json_edit(
    path: Path,
    put: Callable[[dict[str, Any]], None],
    take: Callable[[dict[str, Any]], None],
    *,
    must_exist: bool = False,
) -> Edit:
    """JSON has no comments to lose; order and indentation stay."""

    def read(text: str | None) -> dict[str, Any]:
        if text is None and must_exist:
            raise ConfigError(f"{path} is not there; it is the file that nydusd is started with")
        try:
            document = json.loads(text) if text and text.strip() else {}
        except ValueError as error:
            raise ConfigError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(document, dict):
            raise ConfigError(f"{path} is not a JSON object")
        return document

    def write(document: dict[str, Any], text: str | None) -> str:
        indent = re.search(r"\n([ \t]+)\"", text or "")
        return json.dumps(document, indent=indent[1] if indent else 2, ensure_ascii=False) + "\n"

    def changed(change: Callable[[dict[str, Any]], None], text: str | None) -> str:
        before, document = read(text), read(text)
        change(document)
        return text if document == before and text is not None else write(document, text)

    def taken(text: str | None) -> str | None:
        if text is None:
            return None
        new = changed(take, text)
        return None if not must_exist and json.loads(new or "{}") == {} else new

    return Edit(path, lambda text: changed(put, text), taken)


def _fits_a_path(name: str) -> bool:
    """Whether a name may be the first component of a repository's name."""
    return re.fullmatch(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*", name) is not None


def _ambiguous(at: Where, why: str) -> list[str]:
    missing = [key for key in at.config.upstreams if key not in at.dedicated]
    if len(missing) < 2:
        return []
    return [
        f"{why}: a blob that no manifest has named here is then taken for one of"
        f" {at.config.default_upstream}; gateway.dedicated gives each registry its own address"
    ]
