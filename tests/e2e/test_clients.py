"""Every client against every kind of registry: cold, warm, and with the registry gone.

The cells that are not plain successes, and why, are in `matrix`; docs/clients.md shows the same.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import snapshotter
import yaml
from clients import Client, PullFailed, Site, clients
from conftest import gateway_of
from matrix import CELLS, EXCEPTIONS, Cell
from matrix import CLIENTS as TABLE
from origins import BASIC, MANIFEST, PASSWORD, Image, Origins
from ray_lab import Lab, eventually
from tools import REQUIRED, free_port, need

from passel.actors import launch
from passel.actors.words import NAMESPACE
from passel.config.load import load

pytestmark = pytest.mark.e2e

CLIENTS = clients()
#: In the clients' own words.
REFUSED = (
    "(?i)401|unauthorized|authentication required|authorization failed|no basic auth credentials"
    "|insufficient_scope|invalid auth config"
)
#: Short, so that what happens after their end is seen.
TAG_TTL_S = GRANT_TTL_S = 1


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Two nodes; the clients are on the one that is not the seed."""
    folder = Path(tempfile.mkdtemp(prefix="pcli"))
    origins = Origins(folder)
    lab = Lab(folder, "")
    site = None
    try:
        upstreams = origins.upstreams(tag_ttl=f"{TAG_TTL_S} s", grant_ttl=f"{GRANT_TTL_S} s")
        more = {
            "upstreams": upstreams,
            "default_upstream": "public.test",
            "logging": {"level": "debug"},
        }
        lab.add("n1", "a", more)
        addresses = {kind: f"127.0.0.{11 + i}" for i, kind in enumerate(origins.registries)}
        dedicated = {f"{ip}:{free_port()}": f"{kind}.test" for kind, ip in addresses.items()}
        gateway = {
            "listen": [f"127.0.0.1:{free_port()}"],
            "health": [f"127.0.0.1:{free_port()}"],
            "dedicated": dedicated,
        }
        lab.add("n2", "a", {**more, "gateway": gateway})
        assert lab.cluster is not None
        ray.init(address=lab.cluster.address, namespace=NAMESPACE, log_to_driver=False)
        launch.start(load(lab.nodes["n1"].folder / "passel.yaml"))
        for node in lab.nodes.values():
            eventually(node.health, 60)
            eventually(lambda n=node: gateway_of(n.folder), 30)
        note = gateway_of(lab.nodes["n2"].folder)
        site = Site(
            folder,
            origins,
            note["gateway"],
            note["health"],
            {key.removesuffix(".test"): url for url, key in _by_url(note)},
            lab.nodes["n2"].folder / "passel.yaml",
        )
        assert yaml.safe_load(site.config.read_text())["gateway"] == gateway
        eventually(lambda: _is_joined(site), 60)
        yield site
    finally:
        if site is not None:
            site.stop()
        lab.stop()
        origins.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _is_joined(site: Site) -> bool:
    """Whether reads go through the seed: a node that has no shard yet goes to the origin itself."""
    image = site.origins.push("public", f"warm-up/{os.urandom(4).hex()}", 1000)
    url = f"{site.gateway}/v2/{image.repository}/blobs/{image.largest}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.headers["X-Passel-Source"] in ("seed", "peer")


def _by_url(note: dict[str, dict[str, str]]) -> list[tuple[str, str]]:
    return list(note["dedicated"].items())


@pytest.fixture(scope="module")
def images(site: Site) -> dict[Cell, Image]:
    """An image of its own for every cell, so that every cell has a cold read."""
    return {
        cell: site.origins.push(cell.kind, f"app/{cell.client.lower().replace(' ', '-')}")
        for cell in CELLS
    }


@pytest.fixture(scope="module")
def down(site: Site, images: dict[Cell, Image]) -> Iterator[None]:
    """The registries are gone, and grants and tags have run out."""
    time.sleep(max(TAG_TTL_S, GRANT_TTL_S) + 0.1)
    site.origins.stop_registries()
    yield
    site.origins.start_registries()


def check(cell: Cell, phase: str, client: Client, site: Site, image: Image) -> bool:
    """Pull; True if that went as a pull through the gateway should."""
    expected = EXCEPTIONS.get((cell.client, cell.kind, phase))
    private = cell.kind != "public"
    if expected is None:
        client.pull(site, cell.kind, image, user=private)
        return True
    if expected.fails is not None:
        with pytest.raises(PullFailed, match=expected.fails):
            client.pull(site, cell.kind, image, user=private)
    else:
        client.pull(site, cell.kind, image, user=private)
    return False


@pytest.mark.parametrize("name", TABLE)
def test_versions_are_those_of_the_table(name: str) -> None:
    version = CLIENTS[name].version()
    if not REQUIRED:
        pytest.skip(f"{name} {version}: the table is about the versions in CI")
    assert version == TABLE[name][1]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_cold(site: Site, images: dict[Cell, Image], cell: Cell) -> None:
    """The registry sends every blob once, and to nobody but passel."""
    image, registry = images[cell], site.origins.registries[cell.kind]
    if not check(cell, "cold", CLIENTS[cell.client], site, image):
        return
    assert registry.who_got(image.repository) == {"passel"}
    for digest in image.layers:
        assert registry.blob_bytes(digest) == len(image.blobs[digest])


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_warm(site: Site, images: dict[Cell, Image], cell: Cell) -> None:
    """The registry is asked whether the client may, and for no blob."""
    image, registry = images[cell], site.origins.registries[cell.kind]
    before = {digest: registry.blob_bytes(digest) for digest in image.layers}
    if not check(cell, "warm", CLIENTS[cell.client], site, image):
        return
    assert registry.who_got(image.repository) == {"passel"}
    assert {digest: registry.blob_bytes(digest) for digest in image.layers} == before


@pytest.mark.parametrize("kind", ["basic", "bearer"])
@pytest.mark.parametrize(
    "name",
    [
        "containerd 1",
        "containerd 2",
        "podman",
        "skopeo",
        "docker",
        "crane",
        "curl",
        "nydusd host",
        "nydusd B mirror",
        "nydusd C proxy",
        "nydusd D host",
    ],
)
def test_nobody_inherits_the_right_to_read(
    site: Site, images: dict[Cell, Image], name: str, kind: str
) -> None:
    """The image is here, somebody with rights has pulled it: the next one is told why not."""
    image, registry = images[Cell(name, kind)], site.origins.registries[kind]
    before = {digest: registry.blob_bytes(digest) for digest in image.layers}
    with pytest.raises(PullFailed, match=REFUSED):
        CLIENTS[name].pull(site, kind, image, user=False)
    for digest in image.layers:
        assert registry.blob_bytes(digest) == before.get(digest, 0)


def test_a_token_for_another_repository_is_none_here(site: Site, images: dict[Cell, Image]) -> None:
    image = images[Cell("curl", "bearer")]
    access = {"type": "repository", "name": "app/another", "actions": ["pull"]}
    token = site.origins.tokens.mint([access], "alice")
    for path in ("manifests/v1", f"blobs/{image.largest}"):
        url = f"{site.gateway}/v2/bearer.test/{image.repository}/{path}"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=10)
        assert caught.value.code == 401
        assert "insufficient_scope" in caught.value.headers["WWW-Authenticate"]
        caught.value.close()


def test_nydus_snapshotter(site: Site) -> None:
    """containerd pulls the image's small layers, nydusd reads its data: both through passel."""
    repository, registry = "app/nydus-snapshotter", site.origins.registries["public"]
    made = snapshotter.push(site, "public", repository)
    nydus = snapshotter.Snapshotter(site)
    try:
        name = f"public.test/{repository}:v1"
        nydus.pull(name)
        assert registry.blob_bytes(made.digest) == 0, "the data is not pulled"
        mount = nydus.mount(name)
        try:
            for path in made.source.iterdir():
                assert (mount / path.name).read_bytes() == path.read_bytes()
            assert registry.who_got(repository) == {"passel"}
            assert registry.blob_bytes(made.digest) == made.blob.stat().st_size
        finally:
            nydus.unmount(name, mount)
    finally:
        nydus.stop()


def test_tags(site: Site) -> None:
    """All on one page: this registry has no others. tests/unit has pages."""
    repository, registry = "app/tags", site.origins.registries["basic"]
    image = site.origins.push("basic", repository, 1000)
    registry.push_manifest(repository, "v2", image.blobs[image.manifest], MANIFEST, BASIC)
    url = f"{site.gateway}/v2/basic.test/{repository}/tags/list"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url, timeout=10)
    assert caught.value.code == 401
    caught.value.close()
    request = urllib.request.Request(url, headers={"Authorization": BASIC})
    with urllib.request.urlopen(request, timeout=10) as answer:
        said = json.loads(answer.read())
    assert (said["name"], sorted(said["tags"])) == (repository, ["v1", "v2"])


def test_conformance(site: Site) -> None:
    """The pull half of the OCI distribution specification's own suite.

    It looks for Docker-Content-Digest only where it has pushed: tests/unit does that.
    """
    program = need("conformance")
    image = site.origins.push("public", "app/conformance")
    index = list(image.blobs)[-1]
    settings = {
        "OCI_REGISTRY": site.dedicated["public"].partition("://")[2],
        "OCI_TLS": "disabled",
        "OCI_REPO1": image.repository,
        "OCI_RESULTS_DIR": str(site.folder / "conformance"),
        "OCI_VERSION": "1.1",
        "OCI_API_PUSH": "false",
        "OCI_API_BLOBS_DELETE": "false",
        "OCI_API_MANIFESTS_DELETE": "false",
        "OCI_API_TAGS_DELETE": "false",
        # Debian's docker-registry has no referrers.
        "OCI_API_REFERRER": "false",
        "OCI_RO_DATA_TAGS": "v1",
        "OCI_RO_DATA_MANIFESTS": f"{image.manifest} {index}",
        "OCI_RO_DATA_BLOBS": " ".join(image.layers),
    }
    # Its exit status says nothing: without pushes it breaks after its report, at the files of it.
    said = subprocess.run(
        [program], env={**os.environ, **settings}, capture_output=True, text=True, check=False
    ).stdout
    results = re.findall(r"^ *OCI Conformance Test(\S*): (\w+)$", said, re.MULTILINE)
    assert ("", "Pass") in results, said
    assert {status for _, status in results} == {"Pass", "Disabled"}, said
    passed = {name.rpartition("/")[2] for name, status in results if status == "Pass"}
    assert {"ping", "tag-list", "manifest-head-by-tag", "blob-head", "blob-get"} <= passed, said
    assert {"manifest-by-tag", "manifest-by-digest"} <= passed, said


@pytest.mark.usefixtures("down")
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_origin_down(site: Site, images: dict[Cell, Image], cell: Cell) -> None:
    """Whoever could read it before can read it now."""
    check(cell, "down", CLIENTS[cell.client], site, images[cell])


def test_no_secret_was_written(site: Site) -> None:
    """Last, after everything: passwords and tokens are in no file, log or metric of passel's."""
    tokens = {token.rpartition(".")[2].encode() for token in site.origins.tokens.tokens}
    assert len(tokens) > 20
    words = re.compile(rb"[A-Za-z0-9_-]{100,}")
    basic = BASIC.removeprefix("Basic ").encode()

    def planted_in(data: bytes) -> bool:
        return PASSWORD.encode() in data or basic in data or bool(tokens & {*words.findall(data)})

    assert planted_in(f"Authorization: {BASIC}".encode())
    assert planted_in(f"Bearer {site.origins.tokens.tokens[3]}\n".encode())
    context = ray.get_runtime_context()
    session = Path(context.get_temp_dir()) / context.get_session_name()
    folders = [site.folder / "n1", site.folder / "n2", session / "logs"]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert {"gateway.json", "gateway.log"} <= {path.name for path in files}
    logs = [path.read_bytes() for path in files if path.suffix in (".log", ".err")]
    assert any(b" debug passel." in log for log in logs)
    for path in files:
        assert not planted_in(path.read_bytes()), path
    metrics = urllib.request.urlopen(f"{site.gateway}/metrics", timeout=10).read()
    assert b"passel_gateway_requests_total" in metrics
    assert not planted_in(metrics)
