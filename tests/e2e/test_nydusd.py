"""The main job: real nydusd processes read a real image through the cluster.

The origin is Debian's docker-registry; its own access log counts the bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from nydus_mounts import Mounts, assert_identical
from ray_lab import Lab
from tools import DockerRegistry, make_nydus_image, need

from passel.cli.demo.nydus import Nydusd, NydusImage

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def image(folder: Path, registry: DockerRegistry) -> NydusImage:
    need("nydusd")
    made = make_nydus_image(folder)
    registry.push_blob("test/nydus", made.blob, made.digest)
    return made


@pytest.fixture
def mounts(lab: Lab, image: NydusImage, registry: DockerRegistry) -> Iterator[Mounts]:
    mounts = Mounts(lab.folder, image, registry)
    yield mounts
    mounts.stop()


def test_three_nodes_read_an_image_and_the_registry_sends_each_byte_once(
    lab: Lab, mounts: Mounts, image: NydusImage, registry: DockerRegistry
) -> None:
    source, digest, size = image.source, image.digest, image.blob.stat().st_size
    before = registry.blob_bytes(digest)
    for name in ("n2", "n1", "n3"):
        assert_identical(source, mounts.on(lab.nodes[name]))
    assert registry.blob_bytes(digest) - before == size


def test_all_at_once(lab: Lab, mounts: Mounts, image: NydusImage, registry: DockerRegistry) -> None:
    source, digest, size = image.source, image.digest, image.blob.stat().st_size
    before = registry.blob_bytes(digest)
    daemons = [mounts.on(node) for node in lab.nodes.values()]
    errors: list[BaseException] = []

    def check(daemon: Nydusd) -> None:
        try:
            assert_identical(source, daemon)
        except BaseException as error:  # noqa: BLE001 (handed to the main thread)
            errors.append(error)

    threads = [threading.Thread(target=check, args=(daemon,)) for daemon in daemons]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]
    assert registry.blob_bytes(digest) - before == size
