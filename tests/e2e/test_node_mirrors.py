"""containerd and skopeo as `passel node mirrors` configures them go through the gateway."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from conftest import gateway_of
from ray_lab import Lab, LabNode, eventually
from test_registry_clients import make_multi_arch, skopeo
from tools import DockerRegistry, need, until

pytestmark = pytest.mark.e2e

PASSEL = str(Path(sys.executable).with_name("passel"))
NAME = "lab.test/org/mirrored:v1"


@pytest.fixture(scope="module")
def node(registry: DockerRegistry) -> Iterator[LabNode]:
    path = Path(tempfile.mkdtemp(prefix="pmir"))
    lab = Lab(path, registry.url)
    upstream = {"api": registry.url, "networks": ["127.0.0.0/8"]}
    try:
        lab.start(["a"], {"upstreams": {"lab.test": upstream}})
        eventually(lambda: gateway_of(lab.nodes["n1"].folder), 30)
        yield lab.nodes["n1"]
    finally:
        lab.stop()
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def layout(registry: DockerRegistry, folder: Path) -> Path:
    """The image is in the registry."""
    layout = make_multi_arch(folder / "mirrored")
    host = registry.url.removeprefix("http://")
    words = ("copy", "--all", "--preserve-digests", "--dest-tls-verify=false")
    skopeo(*words, f"oci:{layout}:v1", f"docker://{host}/org/mirrored:v1")
    return layout


def mirrors(node: LabNode, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PASSEL, "node", "mirrors", "--config", str(node.folder / "passel.yaml"), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def served(node: LabNode) -> int:
    """Blob bytes that have come out of the node's gateway."""

    with urlopen(f"{gateway_of(node.folder)['health']}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    lines = [line for line in text.splitlines() if line.startswith("passel_gateway_bytes_total{")]
    return int(sum(float(line.split()[1]) for line in lines))


def test_containerd(node: LabNode, layout: Path, tmp_path: Path) -> None:
    hosts = tmp_path / "certs.d"
    done = mirrors(node, "--containerd", str(hosts))
    assert done.returncode == 0, done.stderr
    folder = Path(tempfile.mkdtemp(prefix="pctr"))
    config = folder / "config.toml"
    config.write_text(
        f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\naddress = "{folder}/sock"\n'
    )
    with (folder / "log").open("wb") as output:
        daemon = subprocess.Popen(
            [need("containerd"), "--config", str(config)], stdout=output, stderr=output
        )
    try:
        until((folder / "sock").exists)
        before = served(node)
        command = [need("ctr"), "--address", f"{folder}/sock", "content", "fetch"]
        command += ["--hosts-dir", str(hosts), "--all-platforms", NAME]
        fetched = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert fetched.returncode == 0, fetched.stderr
        blobs = folder / "root" / "io.containerd.content.v1.content" / "blobs" / "sha256"
        for blob in (layout / "blobs" / "sha256").iterdir():
            assert (blobs / blob.name).read_bytes() == blob.read_bytes()
        assert served(node) - before > 17_000_000
    finally:
        daemon.terminate()
        daemon.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def test_skopeo_and_so_podman(node: LabNode, layout: Path, tmp_path: Path) -> None:
    file = tmp_path / "registries.conf"
    done = mirrors(node, "--podman", str(file))
    assert done.returncode == 0, done.stderr
    before = served(node)
    target = tmp_path / "out"
    words = ("--registries-conf", str(file), "copy", "--all", "--preserve-digests")
    skopeo(*words, f"docker://{NAME}", f"oci:{target}:v1")
    for blob in (layout / "blobs" / "sha256").iterdir():
        assert (target / "blobs" / "sha256" / blob.name).read_bytes() == blob.read_bytes()
    assert served(node) - before > 17_000_000
    index = json.loads((target / "index.json").read_text())
    assert len(index["manifests"]) == 1


def test_what_somebody_else_wrote_stays(node: LabNode, tmp_path: Path) -> None:
    hosts, file = tmp_path / "certs.d", tmp_path / "registries.conf"
    both = ("--containerd", str(hosts), "--podman", str(file))
    (hosts / "lab.test").mkdir(parents=True)
    (hosts / "lab.test" / "hosts.toml").write_text("server = 'https://other'\n")
    done = mirrors(node, *both)
    assert done.returncode == 1
    assert "was written by somebody else" in done.stderr
    assert not file.exists(), "nothing is written by halves"
    (hosts / "lab.test" / "hosts.toml").unlink()
    assert "3 files, 3 of them new" in mirrors(node, *both).stdout
    assert "3 files, 0 of them new" in mirrors(node, *both).stdout
    (hosts / "lab" / "hosts.toml").write_text("server = 'https://other'\n")
    assert "2 files are gone" in mirrors(node, *both, "--remove").stdout
    assert (hosts / "lab" / "hosts.toml").exists()
    assert mirrors(node).returncode == 2
