"""containerd 2 with the nydus snapshotter: a Nydus image is pulled, mounted and read lazily.

The snapshotter starts a nydusd of its own for the image, and tells it of the mirrors that
`passel config nydus-snapshotter` wrote.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from clients import OFF_2, Site, run, succeeds
from origins import INDEX, MANIFEST
from tools import need, until

from passel.cli.demo.nydus import NydusImage, build_image

_BLOB = "application/vnd.oci.image.layer.nydus.blob.v1"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
#: Of the snapshotter's own example (misc/snapshotter/config.toml of 0.15.15), what is needed here.
_CONFIG = """version = 1
root = "{folder}/data"
address = "{folder}/s.sock"
daemon_mode = "dedicated"
cleanup_on_close = true

[system]
enable = false

[daemon]
nydusd_path = "{nydusd}"
nydusimage_path = "{nydus_image}"
nydusd_config = "{folder}/nydusd.json"
fs_driver = "fusedev"
recover_policy = "none"

[cgroup]
enable = false

[log]
log_to_stdout = true
level = "debug"

[metrics]
address = ""
"""
_CONTAINERD = """version = 3
disabled_plugins = {off}
root = "{folder}/root"
state = "{folder}/state"

[grpc]
address = "{folder}/c.sock"

[ttrpc]
address = "{folder}/t.sock"

[proxy_plugins.nydus]
type = "snapshot"
address = "{folder}/s.sock"

[proxy_plugins.nydus.exports]
enable_remote_snapshot_annotations = "true"

[plugins."io.containerd.transfer.v1.local"]
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/amd64"
snapshotter = "nydus"
differ = "walking"
"""


def nydusd_config() -> dict[str, Any]:
    """What the snapshotter starts from. Without a token nydusd 2.2.0 leaves mirrors out."""
    backend = {"scheme": "http", "registry_token": "none", "timeout": 5, "connect_timeout": 5}
    return {
        "device": {
            "backend": {"type": "registry", "config": {**backend, "retry_limit": 2}},
            "cache": {"type": "blobcache", "config": {"work_dir": "cache"}},
        },
        "mode": "direct",
        "digest_validate": False,
        "iostats_files": False,
        "enable_xattr": True,
        "fs_prefetch": {"enable": False, "threads_count": 8, "merging_size": 1048576},
    }


def push(site: Site, kind: str, repository: str) -> NydusImage:
    """A Nydus image as nydusify makes them: a data blob, and a layer that has its bootstrap."""
    need("nydusd")
    need("nydus-image")
    folder = site.folder / "nydus-snapshotter-image"
    source = folder / "source"
    source.mkdir(parents=True)
    (source / "model.bin").write_bytes(os.urandom(2_500_000))
    (source / "small").write_text("small\n")
    made = build_image(folder, source)
    registry, who = site.origins.registries[kind], site.origins.credential(kind, repository)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        boot = made.bootstrap.read_bytes()
        entry = tarfile.TarInfo("image")
        entry.type = tarfile.DIRTYPE
        archive.addfile(entry)
        entry = tarfile.TarInfo("image/image.boot")
        entry.size = len(boot)
        archive.addfile(entry, io.BytesIO(boot))

    def put(data: bytes) -> dict[str, Any]:
        path = folder / "push"
        path.write_bytes(data)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        registry.push_blob(repository, path, digest, who)
        return {"digest": digest, "size": len(data)}

    tar = raw.getvalue()
    diff_ids = [made.digest, f"sha256:{hashlib.sha256(tar).hexdigest()}"]
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
    marks = {"containerd.io/snapshot/nydus-bootstrap": "true"}
    marks["containerd.io/snapshot/nydus-fs-version"] = "6"
    layers = [
        {
            "mediaType": _BLOB,
            **put(made.blob.read_bytes()),
            "annotations": {"containerd.io/snapshot/nydus-blob": "true"},
        },
        {"mediaType": _LAYER, **put(gzip.compress(tar, 1, mtime=0)), "annotations": marks},
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            **put(json.dumps(config).encode()),
        },
        "layers": layers,
    }
    body = json.dumps(manifest).encode()
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    registry.push_manifest(repository, digest, body, MANIFEST, who)
    platform = {"architecture": "amd64", "os": "linux"}
    described = {"mediaType": MANIFEST, "digest": digest, "size": len(body), "platform": platform}
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [described]}
    registry.push_manifest(repository, "v1", json.dumps(index).encode(), INDEX, who)
    return made


class Snapshotter:
    """The snapshotter and a containerd that uses it. `stop` ends both, and nydusd with them."""

    def __init__(self, site: Site) -> None:
        self.site = site
        # Short: it holds sockets, whose names may have 107 bytes.
        self.folder = site.folder / "ns"
        self.folder.mkdir()
        self._processes: list[subprocess.Popen[bytes]] = []
        self.ctr = [need("ctr2"), "-a", f"{self.folder}/c.sock"]
        self._start("containerd-nydus-grpc", "--config", str(self._configure()))
        until((self.folder / "s.sock").exists)
        site.configure("containerd")
        config = self.folder / "containerd.toml"
        config.write_text(_CONTAINERD.format(folder=self.folder, off=json.dumps(OFF_2)))
        self._start("containerd2", "--config", str(config))
        until(lambda: succeeds([*self.ctr, "version"]))

    def _configure(self) -> Path:
        """`passel config` into a copy of the machine's files, whose root is not /."""
        written = self.site.root / "etc/nydus/config.toml"
        written.parent.mkdir(parents=True, exist_ok=True)
        # Without CAP_SYS_RESOURCE nydusd would fail to ask for a million descriptors.
        nydusd = self.folder / "nydusd"
        nydusd.write_text(f'#!/bin/sh\nexec {need("nydusd")} "$@" --rlimit-nofile 0\n')
        nydusd.chmod(0o755)
        programs = {"nydusd": nydusd, "nydus_image": need("nydus-image")}
        written.write_text(_CONFIG.format(folder=self.folder, **programs))
        (self.folder / "nydusd.json").write_text(json.dumps(nydusd_config()))
        self.site.configure("nydus-snapshotter")
        text = written.read_text()
        assert 'dir = "/etc/nydus/certs.d"' in text
        path = self.folder / "config.toml"
        path.write_text(text.replace("/etc/nydus/certs.d", str(written.parent / "certs.d")))
        return path

    def _start(self, program: str, *words: str) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        docker = self.folder / "docker"
        docker.mkdir(exist_ok=True)
        with (self.folder / f"{program}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    [need(program), *words],
                    stdout=log,
                    stderr=log,
                    env={**clean, "DOCKER_CONFIG": str(docker)},
                )
            )

    def pull(self, name: str) -> None:
        hosts = self.site.root / "etc/containerd/certs.d"
        words = ["images", "pull", "--hosts-dir", str(hosts), "--snapshotter", "nydus"]
        run([*self.ctr, *words, "--platform", "linux/amd64", name])

    def mount(self, name: str) -> Path:
        """The image's files, through the snapshotter's nydusd."""
        target = self.folder / "mnt"
        target.mkdir()
        words = ["images", "mount", "--snapshotter", "nydus", "--platform", "linux/amd64"]
        run([*self.ctr, *words, name, str(target)])
        return target

    def unmount(self, name: str, target: Path) -> None:
        run([*self.ctr, "images", "unmount", "--snapshotter", "nydus", "--rm", str(target)])
        run([*self.ctr, "images", "rm", "--sync", name])

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)
