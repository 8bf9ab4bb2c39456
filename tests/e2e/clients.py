"""Image clients as they are, each told by `passel config` where its gateway is.

A client's `pull` gets one image whole, verified by the client itself, into a place of its own, and
raises PullFailed with what the client printed. Nothing outside the test's folder is read or
changed.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nydus_models import (
    CallFailed,
    GenerationB,
    GenerationC,
    GenerationD,
    Model,
    ReadFailed,
    read_blob,
)
from origins import BASIC, PASSWORD, USER, Image, Origins
from tools import need, until

from passel.cli.demo.nydus import Nydusd, NydusFailed, NydusImage, build_image

PASSEL = str(Path(sys.executable).with_name("passel"))
PULL_S = 60


class PullFailed(Exception):
    """The client gave up; its own words."""


@dataclass
class Site:
    """One node's gateway and the configuration files that clients of that node have."""

    folder: Path
    origins: Origins
    gateway: str
    health: str
    #: public, basic, bearer -> URL of a listener for that registry alone.
    dedicated: dict[str, str]
    #: passel.yaml that names these addresses.
    config: Path
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def root(self) -> Path:
        """What the clients take for /."""
        return self.folder / "root"

    def configure(self, *words: str) -> str:
        """Run `passel config ... --write` for this node."""
        command = [PASSEL, "config", *words, "--config", str(self.config)]
        if words[0] != "nydusd":
            command += ["--root", str(self.root)]
        return run([*command, "--write"])

    def stop(self) -> None:
        for daemon in self.daemons:
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(10)


def run(command: list[str], **environment: str) -> str:
    # No proxy: a real client would use it for loopback addresses of other ports than these.
    clean = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    done = subprocess.run(
        command,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=PULL_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        raise PullFailed(done.stdout + done.stderr)
    return done.stdout


class Client(Protocol):
    """One client in one mode."""

    def version(self) -> str: ...

    def pull(self, site: Site, kind: str, image: Image, *, user: bool) -> None: ...


class Containerd:
    """containerd and its ctr, root and state of their own, the native snapshotter."""

    def __init__(self, ctr: str, daemon: str, config: str) -> None:
        self._ctr, self._daemon, self._config = ctr, daemon, config
        self._socket: Path | None = None

    def version(self) -> str:
        return run([need(self._ctr), "--version"]).split()[2].split("~")[0].split("+")[0]

    def _start(self, site: Site) -> Path:
        if self._socket is None:
            programs = need(self._ctr), need(self._daemon)
            site.configure("containerd")
            folder = site.folder / self._daemon
            folder.mkdir()
            config = folder / "config.toml"
            text = f'root = "{folder}/root"\nstate = "{folder}/state"\n{self._config}\n'
            text += f'[grpc]\naddress = "{folder}/c.sock"\n[ttrpc]\naddress = "{folder}/t.sock"\n'
            config.write_text(text)
            with (folder / "log").open("wb") as log:
                command = [programs[1], "--config", str(config)]
                site.daemons.append(subprocess.Popen(command, stdout=log, stderr=log))
            socket = folder / "c.sock"
            until(lambda: succeeds([programs[0], "-a", str(socket), "version"]))
            self._socket = socket
        return self._socket

    def pull(self, site: Site, kind: str, image: Image, *, user: bool) -> None:
        socket = self._start(site)
        ctr = [need(self._ctr), "-a", str(socket)]
        name = f"{kind}.test/{image.repository}:v1"
        hosts = site.root / "etc/containerd/certs.d"
        who = ["--user", f"{USER}:{PASSWORD}"] if user else []
        try:
            pull = [*ctr, "images", "pull", "--hosts-dir", str(hosts), "--snapshotter", "native"]
            run([*pull, *who, "--platform", "linux/amd64", name])
            got = subprocess.run(
                [*ctr, "content", "get", image.largest], capture_output=True, check=True
            )
            assert got.stdout == image.blobs[image.largest]
        finally:
            succeeds([*ctr, "images", "rm", "--sync", name])


def succeeds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class ContainersImage:
    """podman, buildah, skopeo: the same library, the same registries.conf."""

    def __init__(self, program: str, *, dedicated: bool) -> None:
        self._program = program
        self._dedicated = dedicated

    def version(self) -> str:
        return run([need(self._program), "--version"]).split()[2].rstrip("\n")

    def pull(self, site: Site, kind: str, image: Image, *, user: bool) -> None:
        program = need(self._program)
        if self._dedicated:
            site.configure("podman")
            registries = site.root / "etc/containers/registries.conf.d/50-passel.conf"
        else:
            registries = site.folder / "prefix.conf"
            registries.write_text(
                f'[[registry]]\nprefix = "{kind}.test"\n'
                f'location = "{site.origins.registries[kind].url.partition("://")[2]}"\n'
                "insecure = true\n[[registry.mirror]]\n"
                f'location = "{site.gateway.partition("://")[2]}/{kind}.test"\ninsecure = true\n'
            )
        folder = site.folder / f"{self._program}-store"
        auth = folder / "auth.json"
        folder.mkdir()
        host = site.dedicated[kind].partition("://")[2] if self._dedicated else ""
        origin = site.origins.registries[kind].url.partition("://")[2]
        entry = {"auth": base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}
        names = {host, origin, f"{kind}.test", site.gateway.partition("://")[2]} - {""}
        auth.write_text(json.dumps({"auths": dict.fromkeys(names, entry) if user else {}}))
        name = f"{kind}.test/{image.repository}:v1"
        environment = {
            "CONTAINERS_REGISTRIES_CONF": str(registries),
            "REGISTRY_AUTH_FILE": str(auth),
            "XDG_RUNTIME_DIR": str(folder),
        }
        policy = folder / "policy.json"
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        try:
            if self._program == "skopeo":
                target = folder / "layout"
                # Its only way, and not in its manual page.
                command = [program, "--registries-conf", str(registries)]
                command += ["--policy", str(policy), "copy"]
                run([*command, f"docker://{name}", f"oci:{target}:v1"], **environment)
                name_of = image.largest.removeprefix("sha256:")
                got = (target / "blobs/sha256" / name_of).read_bytes()
                assert got == image.blobs[image.largest]
            else:
                store = ["--root", str(folder / "root"), "--runroot", str(folder / "run")]
                command = [program, *store, "--storage-driver", "vfs", "pull", "-q"]
                run([*command, "--signature-policy", str(policy), name], **environment)
        finally:
            shutil.rmtree(folder)


class Docker:
    """docker's daemon, for whom every mirror is one of Docker Hub and gets its credentials."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path()

    def version(self) -> str:
        return run([need("dockerd"), "--version"]).split()[2].split("+")[0]

    def _start(self, site: Site) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._folder = site.folder / "docker"
            command = [need("dockerd"), "--storage-driver", "vfs", "--iptables=false"]
            command += ["--ip6tables=false", "--bridge=none", "--pidfile", f"{self._folder}/pid"]
            command += ["--data-root", f"{self._folder}/data", "--exec-root", f"{self._folder}/x"]
            command += ["--host", f"unix://{self._folder}/s"]
            command += ["--config-file", str(site.root / "etc/docker/daemon.json")]
            self._folder.mkdir()
            with (self._folder / "log").open("wb") as log:
                self._process = subprocess.Popen(command, stdout=log, stderr=log)
            site.daemons.append(self._process)
            until(lambda: succeeds(self._call("GET", "info")))
        return self._process

    def _call(self, method: str, path: str, *more: str) -> list[str]:
        # Past the command line tool: one of another version would refuse to talk to this daemon.
        url = f"http://docker/v1.41/{path}"
        curl = [need("curl"), "-sS", "--fail-with-body", "--unix-socket", f"{self._folder}/s"]
        return [*curl, "-X", method, *more, url]

    def _configure(self, site: Site, kind: str) -> None:
        """`passel config docker` for a node whose docker.io this registry is."""
        config = site.folder / f"docker-{kind}.yaml"
        address = site.dedicated[kind].partition("://")[2]
        gateway = {"dedicated": {address: "docker.io"}}
        config.write_text(json.dumps({"upstreams": {"docker.io": {}}, "gateway": gateway}))
        command = [PASSEL, "config", "docker", "--root", str(site.root), "--config", str(config)]
        path = site.root / "etc/docker/daemon.json"
        path.unlink(missing_ok=True)
        run([*command, "--write"])
        assert json.loads(path.read_text())["registry-mirrors"] == [site.dedicated[kind]]

    def pull(self, site: Site, kind: str, image: Image, *, user: bool) -> None:
        self._configure(site, kind)
        self._start(site).send_signal(signal.SIGHUP)
        until(lambda: site.dedicated[kind] in run(self._call("GET", "info")))
        login = {"username": USER, "password": PASSWORD} if user else {}
        header = base64.urlsafe_b64encode(json.dumps(login).encode()).decode()
        path = f"images/create?fromImage={image.repository}&tag=v1"
        log = self._folder / "log"
        before = log.stat().st_size
        try:
            said = run(self._call("POST", path, "-H", f"X-Registry-Auth: {header}"))
            if "errorDetail" in said:
                raise PullFailed(said)
        except PullFailed as error:
            # Its last word is about Docker Hub itself, which it asks after the mirror.
            raise PullFailed(str(error) + log.read_text()[before:]) from None
        found = json.loads(run(self._call("GET", f"images/{image.repository}:v1/json")))
        assert len(found["RootFS"]["Layers"]) == len(image.layers)
        run(self._call("DELETE", f"images/{image.repository}:v1?force=1"))


class Crane:
    """crane takes the gateway for the registry: its listener for that upstream."""

    def version(self) -> str:
        return run([need("crane"), "version"]).strip().removeprefix("v")

    def pull(self, site: Site, kind: str, image: Image, *, user: bool) -> None:
        folder = site.folder / "crane"
        folder.mkdir()
        host = site.dedicated[kind].partition("://")[2]
        entry = {"auth": base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}
        auths = {"auths": {host: entry} if user else {}}
        (folder / "config.json").write_text(json.dumps(auths))
        name = f"{host}/{image.repository}:v1"
        try:
            command = [need("crane"), "pull", "--insecure", "--format", "oci", name]
            run([*command, str(folder / "out")], DOCKER_CONFIG=str(folder))
            digest = image.largest.removeprefix("sha256:")
            got = (folder / "out/blobs/sha256" / digest).read_bytes()
            assert got == image.blobs[image.largest]
        finally:
            shutil.rmtree(folder)


class Curl:
    """The path names the upstream. A token is asked for as the challenge says."""

    def version(self) -> str:
        return run([need("curl"), "--version"]).split()[1]

    def pull(self, site: Site, kind: str, image: Image, *, user: bool) -> None:
        base = f"{site.gateway}/v2/{kind}.test/{image.repository}"
        who: list[str] = []
        if user and kind == "basic":
            who = ["-u", f"{USER}:{PASSWORD}"]
        elif user and kind == "bearer":
            scope = f"repository:{image.repository}:pull"
            url = f"{site.origins.tokens.realm}?service=registry.test&scope={scope}"
            answer = json.loads(run([need("curl"), "-sS", "-u", f"{USER}:{PASSWORD}", url]))
            who = ["-H", f"Authorization: Bearer {answer['token']}"]
        target = site.folder / "curl.out"
        try:
            for path in ("manifests/v1", *(f"blobs/{digest}" for digest in image.layers)):
                run([need("curl"), "-sS", "-f", "-o", str(target), *who, f"{base}/{path}"])
                if path.endswith(image.largest):
                    assert target.read_bytes() == image.blobs[image.largest]
        finally:
            target.unlink(missing_ok=True)


class NydusClient:
    """nydusd mounts an image and all of it is read: `mirrors`, `proxy`, or the host rewritten."""

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._made: dict[str, NydusImage] = {}

    def version(self) -> str:
        return "2.2.0"

    def make(self, site: Site, kind: str, image: Image) -> NydusImage:
        """A Nydus image in the same repository, the first time that it is asked for."""
        made = self._made.get(kind)
        if made is None:
            need("nydusd")
            need("nydus-image")
            folder = site.folder / f"{kind}-{image.repository.replace('/', '-')}"
            source = folder / "source"
            source.mkdir(parents=True)
            (source / "model.bin").write_bytes(os.urandom(2_500_000))
            (source / "small").write_text("small\n")
            made = self._made[kind] = build_image(folder, source)
            data = made.blob.read_bytes()
            image.blobs[made.digest] = data
            image.layers[:] = [made.digest]
            who = site.origins.credential(kind, image.repository)
            registry = site.origins.registries[kind]
            registry.push_blob(image.repository, made.blob, made.digest, who)
        return made

    def pull(self, site: Site, kind: str, image: Image, *, user: bool) -> None:
        made = self.make(site, kind, image)
        folder = site.folder / "nydusd"
        folder.mkdir()
        config = folder / "wanted.json"
        config.write_text(json.dumps(self._settings(site, kind, image, folder, user)))
        if self._mode != "host":
            words = ["--proxy"] if self._mode == "proxy" else []
            site.configure("nydusd", str(config), *words)
        settings = json.loads(config.read_text())
        try:
            daemon = Nydusd(folder, made, "", "", "", "", settings=settings)
        except NydusFailed as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise PullFailed(str(error)) from error
        try:
            for name in ("model.bin", "small"):
                self._compare(daemon, made.source / name, folder / "nydusd.log")
        finally:
            daemon.stop()
            shutil.rmtree(folder, ignore_errors=True)

    def _compare(self, daemon: Nydusd, wanted: Path, log: Path) -> None:
        """Read a file of the mount; not for all of the minute that nydusd tries to get a byte."""
        reader = subprocess.Popen(["cmp", str(daemon.mount / wanted.name), str(wanted)])
        while reader.poll() is None:
            if log.read_text().count("Read from backend failed") > 1:
                reader.kill()
                # It would not end before its last retry.
                daemon._process.kill()
                daemon.stop()
                reader.wait(10)
                raise PullFailed(log.read_text())
            time.sleep(0.02)
        assert reader.returncode == 0

    def _settings(
        self, site: Site, kind: str, image: Image, folder: Path, user: bool
    ) -> dict[str, Any]:
        url = site.dedicated[kind] if self._mode == "host" else site.origins.registries[kind].url
        backend: dict[str, Any] = {
            "scheme": "http",
            "host": url.partition("://")[2],
            "repo": image.repository,
            "timeout": 5,
            "connect_timeout": 5,
            "retry_limit": 2,
        }
        if user:
            backend["auth"] = BASIC.removeprefix("Basic ")
        elif self._mode == "mirror":
            # Of this generation: without any Authorization the mirror is left out.
            backend["registry_token"] = "none"
        return {
            "device": {
                "backend": {"type": "registry", "config": backend},
                "cache": {"type": "blobcache", "config": {"work_dir": str(folder / "cache")}},
            },
            "mode": "direct",
            "digest_validate": False,
            "iostats_files": False,
            "enable_xattr": True,
            "fs_prefetch": {"enable": False, "threads_count": 8, "merging_size": 1048576},
        }


class NydusModel:
    """A model of a nydusd generation that cannot be had: it reads the layers of an image."""

    def __init__(self, generation: str, mode: str, versions: str) -> None:
        self._generation, self._mode, self._versions = generation, mode, versions

    def version(self) -> str:
        return self._versions

    def model(self, site: Site, kind: str, image: Image, *, user: bool) -> Model:
        auth = BASIC.removeprefix("Basic ") if user else None
        registry = (
            site.dedicated[kind] if self._mode == "host" else site.origins.registries[kind].url
        )
        if self._generation == "B":
            headers = {"x-dragonfly-registry": registry}
            return GenerationB(
                registry, image.repository, auth, mirror=site.gateway, mirror_headers=headers
            )
        cls = GenerationC if self._generation == "C" else GenerationD
        proxy = site.gateway if self._mode == "proxy" else ""
        return cls(registry, image.repository, auth, proxy=proxy)

    def pull(self, site: Site, kind: str, image: Image, *, user: bool) -> None:
        model = self.model(site, kind, image, user=user)
        try:
            for digest in image.layers:
                wanted = image.blobs[digest]
                assert read_blob(model, digest, len(wanted)) == wanted
                if isinstance(model, GenerationD):
                    assert model.size(digest) == len(wanted)
                    assert model.stream(digest) == wanted
                    assert model.stream(digest, 777) == wanted[777:]
        except (ReadFailed, CallFailed) as error:
            raise PullFailed(str(error)) from error
        finally:
            model.close()


_OFF_1 = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.internal.v1.tracing",
]
OFF_2 = [
    *(f"io.containerd.cri.v1.{each}" for each in ("images", "runtime")),
    *_OFF_1,
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.differ.v1.erofs",
    "io.containerd.nri.v1.nri",
    "io.containerd.internal.v1.cri-image",
]


def clients() -> dict[str, Client]:
    """By the names that docs/clients.md has."""
    parallel = "\n".join(
        [
            f"version = 3\ndisabled_plugins = {json.dumps(OFF_2)}",
            '[plugins."io.containerd.transfer.v1.local"]',
            "max_concurrent_downloads = 4",
            "concurrent_layer_fetch_buffer = 1048576",
            '[[plugins."io.containerd.transfer.v1.local".unpack_config]]',
            'platform = "linux/amd64"',
            'snapshotter = "native"',
            'differ = "walking"',
        ]
    )
    old = f"version = 2\ndisabled_plugins = {json.dumps(_OFF_1)}"
    return {
        "containerd 1": Containerd("ctr", "containerd", old),
        "containerd 2": Containerd("ctr2", "containerd2", parallel),
        "podman": ContainersImage("podman", dedicated=True),
        "buildah": ContainersImage("buildah", dedicated=True),
        "skopeo": ContainersImage("skopeo", dedicated=True),
        "skopeo prefix": ContainersImage("skopeo", dedicated=False),
        "docker": Docker(),
        "crane": Crane(),
        "curl": Curl(),
        "nydusd mirror": NydusClient("mirror"),
        "nydusd proxy": NydusClient("proxy"),
        "nydusd host": NydusClient("host"),
        "nydusd B mirror": NydusModel("B", "mirror", "2.2.3 to 2.3.4"),
        "nydusd C proxy": NydusModel("C", "proxy", "2.3.5 to 2.4.2"),
        "nydusd C host": NydusModel("C", "host", "2.3.5 to 2.4.2"),
        "nydusd D proxy": NydusModel("D", "proxy", "from 2.4.3"),
        "nydusd D host": NydusModel("D", "host", "from 2.4.3"),
    }
