"""skopeo and curl through the gateways, against Debian's docker-registry."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from conftest import gateway_of
from ray_lab import Lab
from tools import DockerRegistry, need

pytestmark = pytest.mark.e2e


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_multi_arch(folder: Path) -> Path:
    """An OCI layout with an index of two platforms, two layers each."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes) -> dict[str, Any]:
        (blobs / sha256(data)).write_bytes(data)
        return {"digest": f"sha256:{sha256(data)}", "size": len(data)}

    manifests = []
    for architecture in ("amd64", "arm64"):
        layers, diff_ids = [], []
        for i in range(2):
            content = folder / f"{architecture}{i}.bin"
            content.write_bytes(os.urandom(3_000_000 * (i + 1)))
            tar = folder / f"{architecture}{i}.tar"
            with tarfile.open(tar, "w") as archive:
                archive.add(content, content.name)
            data = tar.read_bytes()
            layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar", **put(data)}
            layers.append(layer)
            diff_ids.append(layer["digest"])
        rootfs = {"type": "layers", "diff_ids": diff_ids}
        config = {"architecture": architecture, "os": "linux", "config": {}, "rootfs": rootfs}
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                **put(json.dumps(config).encode()),
            },
            "layers": layers,
        }
        manifests.append(
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                **put(json.dumps(manifest).encode()),
                "platform": {"architecture": architecture, "os": "linux"},
            }
        )
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    }
    descriptor = {
        "mediaType": "application/vnd.oci.image.index.v1+json",
        **put(json.dumps(index).encode()),
        "annotations": {"org.opencontainers.image.ref.name": "v1"},
    }
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))
    return folder


def skopeo(*words: str) -> str:
    command = [need("skopeo"), "--insecure-policy", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_skopeo_copies_a_multi_arch_image_and_the_second_node_asks_nobody(
    lab: Lab, registry: DockerRegistry, tmp_path: Path
) -> None:
    layout = make_multi_arch(tmp_path / "layout")
    host = registry.url.removeprefix("http://")
    skopeo(
        "copy",
        "--all",
        "--preserve-digests",
        "--dest-tls-verify=false",
        f"oci:{layout}:v1",
        f"docker://{host}/org/multi:v1",
    )
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{host}/org/multi:v1")
    for name in ("n2", "n3"):
        gateway = gateway_of(lab.nodes[name].folder)["gateway"].removeprefix("http://")
        before = registry.blob_requests()
        target = tmp_path / f"out-{name}"
        skopeo(
            "copy",
            "--all",
            "--preserve-digests",
            "--src-tls-verify=false",
            f"docker://{gateway}/lab/org/multi:v1",
            f"oci:{target}:v1",
        )
        index = json.loads((target / "index.json").read_text())["manifests"][0]
        assert index["digest"] == f"sha256:{sha256(raw.encode())}"
        for blob in (layout / "blobs" / "sha256").iterdir():
            assert (target / "blobs" / "sha256" / blob.name).read_bytes() == blob.read_bytes()
        if name == "n3":
            assert registry.blob_requests() == before, "the registry was asked for a blob again"


def test_curl_ranges_resume_and_unknown_things(lab: Lab, registry: DockerRegistry) -> None:
    data = os.urandom(5_000_000)
    digest = f"sha256:{sha256(data)}"
    path = lab.folder / "blob"
    path.write_bytes(data)
    registry.push_blob("org/file", path, digest)
    gateway = gateway_of(lab.nodes["n3"].folder)["gateway"]
    url = f"{gateway}/v2/org/file/blobs/{digest}"

    def curl(*words: str) -> bytes:
        done = subprocess.run(
            [need("curl"), "-sS", *words], capture_output=True, timeout=60, check=False
        )
        return done.stdout

    assert curl("-f", url) == data
    assert curl("-f", "-r", "1000000-1999999", url) == data[1_000_000:2_000_000]
    assert curl("-f", "-r", "-100", url) == data[-100:]
    status = curl("-o", "/dev/null", "-w", "%{http_code}", "-r", "9000000-", url)
    assert status == b"416"
    unknown = "sha256:" + "0" * 64
    answer = curl("-w", "\n%{http_code}", f"{gateway}/v2/org/file/blobs/{unknown}")
    body, _, status = answer.rpartition(b"\n")
    assert status == b"404"
    assert json.loads(body)["errors"]
    head = curl("-I", url).decode().lower()
    assert f"content-length: {len(data)}" in head
    assert f"docker-content-digest: {digest}" in head
