"""A real registry tells of a push, and the image is on the seeds before anybody asks for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import gateway_of
from origins import INDEX, Image, make_image
from ray_lab import Lab, eventually
from tools import DockerRegistry, need

pytestmark = pytest.mark.e2e

TOKEN = "Planted-Token-41c7"


@pytest.fixture(scope="module")
def pushed_lab(registry: DockerRegistry) -> Iterator[Lab]:
    """Two seeds and one node that is none; the registry notifies the gateway of n3."""
    path = Path(tempfile.mkdtemp(prefix="pweb"))
    (path / "token").write_text(TOKEN)
    lab = Lab(path, registry.url)
    try:
        extra = {
            "gateway": {"api": {"token_file": str(path / "token")}},
            "seeds": {"count": 2},
            "webhooks": {"targets": "seeds", "repositories": ["lab/team/*"]},
        }
        lab.start(["a", "a", "b"], extra)
        for node in lab.nodes.values():
            eventually(lambda n=node: gateway_of(n.folder), 30)
        endpoint = {
            "name": "passel",
            "url": f"{gateway_of(lab.nodes['n3'].folder)['health']}/api/v1/webhooks/distribution",
            "headers": {"Authorization": [f"Bearer {TOKEN}"]},
            "timeout": "20s",
            "threshold": 3,
            "backoff": "1s",
        }
        registry.configure(notifications={"endpoints": [endpoint]})
        yield lab
    finally:
        lab.stop()
        shutil.rmtree(path, ignore_errors=True)


def layout(image: Image, folder: Path) -> Path:
    """The image as an OCI layout, for skopeo."""
    for digest, data in image.blobs.items():
        path = folder / "blobs" / "sha256" / digest.removeprefix("sha256:")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    root, data = list(image.blobs.items())[-1]
    entry = {"mediaType": INDEX, "digest": root, "size": len(data)}
    index = {"schemaVersion": 2, "manifests": [entry]}
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def push(registry: DockerRegistry, folder: Path, name: str) -> None:
    where = registry.url.removeprefix("http://")
    command = [need("skopeo"), "--insecure-policy", "copy", "--all", "--dest-tls-verify=false"]
    command += [f"oci:{folder}", f"docker://{where}/{name}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_pushed_is_preheated_on_all_seeds(
    pushed_lab: Lab, registry: DockerRegistry, tmp_path: Path
) -> None:
    image = make_image("team/app", 3_000_000)
    folder = layout(image, tmp_path / "image")
    push(registry, folder, "elsewhere/app:v1")
    push(registry, folder, "team/app:v1")
    url = f"{gateway_of(pushed_lab.nodes['n1'].folder)['health']}/api/v1/jobs"

    def jobs() -> list[dict[str, object]]:
        with urllib.request.urlopen(url, timeout=20) as answer:
            found: list[dict[str, object]] = json.load(answer)["jobs"]
            return found

    eventually(lambda: [job["state"] for job in jobs()] == ["done"], 30)
    (job,) = jobs()
    assert (job["what"], job["to"]) == ("lab/team/app:v1", "seeds")
    content = [*image.layers, *(d for d in image.blobs if b"rootfs" in image.blobs[d])]
    seeds = {node["node"] for node in pushed_lab.status()["nodes"] if node["role"] == "seed"}
    assert len(seeds) == 2
    for digest in content:
        name = digest.removeprefix("sha256:")
        holders = {
            node.name
            for node in pushed_lab.nodes.values()
            if (node.store / "blobs" / "sha256" / name[:2] / name).exists()
        }
        assert holders == seeds
        assert registry.blob_bytes(digest) == len(image.blobs[digest]), "it was sent once for both"
