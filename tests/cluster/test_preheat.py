"""`passel preheat`, `jobs`, `ls`, `rm` as an operator types them, on a cluster of three nodes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Origin
from ray_lab import Lab, eventually, lab_with_gateways

pytestmark = pytest.mark.cluster

PASSEL = str(Path(sys.executable).with_name("passel"))
MIB = 1 << 20
OCI = "application/vnd.oci.image"


@pytest.fixture(scope="module")
def slow_origin(folder: Path) -> Iterator[Origin]:
    """Slow enough for a job to be caught in the middle."""
    (folder / "slow").mkdir()
    origin = Origin(folder / "slow", "--rate", "8 MiB")
    yield origin
    origin.stop()


@pytest.fixture(scope="module")
def jobs_lab(slow_origin: Origin) -> Iterator[Lab]:
    with lab_with_gateways(slow_origin.url, ["a", "b", "b"]) as lab:
        yield lab


def facts(lab: Lab, *words: str) -> Any:
    done = lab.passel(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def holders(lab: Lab, digest: str) -> set[str]:
    _, _, name = digest.partition(":")
    return {
        node.name
        for node in lab.nodes.values()
        if (node.store / "blobs" / "sha256" / name[:2] / name).exists()
    }


def push_image(origin: Origin, tag: str, layers: dict[str, bytes]) -> dict[str, str]:
    """An image of several platforms, one layer each, as org/image:<tag>; layer digests."""
    digests: dict[str, str] = {}
    manifests = []
    for platform, data in layers.items():
        digests[platform] = origin.put(data)
        config = origin.put(json.dumps({"architecture": platform}).encode())
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": {"mediaType": f"{OCI}.config.v1+json", "digest": config, "size": 25},
            "layers": [
                {"mediaType": f"{OCI}.layer.v1.tar", "digest": digests[platform], "size": len(data)}
            ],
        }
        manifest["config"]["size"] = len(json.dumps({"architecture": platform}))
        body = json.dumps(manifest).encode()
        operating, architecture = platform.split("/")
        manifests.append(
            {
                "mediaType": f"{OCI}.manifest.v1+json",
                "digest": push_manifest(origin, body, f"{OCI}.manifest.v1+json", None),
                "size": len(body),
                "platform": {"os": operating, "architecture": architecture},
            }
        )
    index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": manifests}
    push_manifest(origin, json.dumps(index).encode(), f"{OCI}.index.v1+json", tag)
    return digests


def push_manifest(origin: Origin, body: bytes, media_type: str, tag: str | None) -> str:
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    url = f"{origin.url}/v2/org/image/manifests/{tag or digest}"
    request = urllib.request.Request(url, body, {"Content-Type": media_type}, method="PUT")
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.status == 201
    return digest


def test_a_blob_to_a_zone_and_to_all(jobs_lab: Lab, slow_origin: Origin) -> None:
    data = os.urandom(6 * MIB + 123)
    digest = slow_origin.put(data)
    name = f"lab/org/app@{digest}"
    job = facts(jobs_lab, "preheat", name, "--to", "zone=b", "--watch")
    assert job["state"] == "done"
    assert {node["node"]: node["bytes"] for node in job["nodes"]} == {
        "n2": len(data),
        "n3": len(data),
    }
    assert {"n2", "n3"} <= holders(jobs_lab, digest)
    everybody = facts(jobs_lab, "preheat", name, "--watch")
    assert everybody["job"] != job["job"]
    assert holders(jobs_lab, digest) == {"n1", "n2", "n3"}
    again = facts(jobs_lab, "preheat", name, "--watch")
    assert (again["job"], again["state"]) == (everybody["job"], "done")
    assert slow_origin.sent(digest) == len(data), "the registry has sent it once for all three"

    def listed() -> bool:
        blobs = {blob["digest"]: blob for blob in facts(jobs_lab, "ls")["blobs"]}
        return bool(digest in blobs and blobs[digest]["complete"] == 3)

    eventually(listed)
    assert facts(jobs_lab, "rm", digest)["removed"] == ["n1", "n2", "n3"]
    assert holders(jobs_lab, digest) == set()
    eventually(lambda: digest not in [b["digest"] for b in facts(jobs_lab, "ls")["blobs"]])
    assert "no node has it" in jobs_lab.passel("rm", digest).stdout


def test_a_pin_is_listed_survives_its_controller_and_ends(
    jobs_lab: Lab, slow_origin: Origin
) -> None:
    data = os.urandom(MIB)
    digest = slow_origin.put(data)
    name = f"lab/org/app@{digest}"
    assert facts(jobs_lab, "preheat", name, "--to", "node=n1", "--ttl", "7d", "--watch")
    (pin,) = facts(jobs_lab, "pin")
    assert (pin["what"], pin["blobs"]) == (name, 1)

    def entry() -> dict[str, Any]:
        blobs = {blob["digest"]: blob for blob in facts(jobs_lab, "ls")["blobs"]}
        found: dict[str, Any] = blobs[digest]
        return found

    assert entry()["pinned_until"] == pin["until"]
    assert facts(jobs_lab, "pin", digest)["until"] is None, "the same blob, now for good"
    assert entry()["pinned"]
    os.kill(controller_pid(jobs_lab), signal.SIGKILL)
    eventually(lambda: jobs_lab.passel("pin").stdout.count(pin["pin"]) == 1)
    assert len(facts(jobs_lab, "unpin", name)["unpinned"]) == 1
    assert not entry()["pinned"]
    short = facts(jobs_lab, "pin", digest, "--ttl", "1 s")
    assert short["until"] is not None
    eventually(lambda: facts(jobs_lab, "pin") == [], 10)


def test_an_image_of_one_platform_or_of_all(jobs_lab: Lab, slow_origin: Origin) -> None:
    layers = {"linux/amd64": os.urandom(MIB), "linux/arm64": os.urandom(MIB)}
    digests = push_image(slow_origin, "v1", layers)
    words = ("preheat", "lab/org/image:v1", "--to", "seeds", "--watch")
    one = facts(jobs_lab, *words, "--platform", "linux/arm64")
    assert (one["blobs"], one["state"], len(one["nodes"])) == (2, "done", 1)
    assert len(holders(jobs_lab, digests["linux/arm64"])) == 1
    assert holders(jobs_lab, digests["linux/amd64"]) == set()
    every = facts(jobs_lab, *words, "--platform", "all")
    assert every["blobs"] == 4
    assert len(holders(jobs_lab, digests["linux/amd64"])) == 1
    wrong = jobs_lab.passel(*words, "--platform", "plan9/mips")
    assert wrong.returncode == 2
    assert "it has linux/amd64, linux/arm64" in wrong.stderr


def controller_pid(lab: Lab) -> int:
    pid: int = lab.status()["controller"]["pid"]
    return pid


def test_a_job_survives_its_controller(jobs_lab: Lab, slow_origin: Origin) -> None:
    data = os.urandom(40 * MIB)
    digest = slow_origin.put(data)
    job = facts(jobs_lab, "preheat", f"lab/org/app@{digest}")
    assert job["state"] == "running"
    pid = controller_pid(jobs_lab)
    os.kill(pid, signal.SIGKILL)
    over = facts(jobs_lab, "jobs", job["job"], "--watch")
    assert over["state"] == "done"
    assert over["created"] == job["created"]
    assert controller_pid(jobs_lab) != pid
    assert holders(jobs_lab, digest) == {"n1", "n2", "n3"}
    assert slow_origin.sent(digest) == len(data)
    assert job["job"] in jobs_lab.passel("jobs").stdout


def test_cancelled_jobs_begin_nothing_more(jobs_lab: Lab, slow_origin: Origin) -> None:
    layers = {f"linux/{i}": os.urandom(4 * MIB) for i in range(8)}
    digests = push_image(slow_origin, "v2", layers)
    job = facts(jobs_lab, "preheat", "lab/org/image:v2", "--platform", "all")
    assert facts(jobs_lab, "jobs", job["job"], "--cancel")["state"] == "cancelled"
    assert job["blobs"] == 16

    def sent() -> int:
        return sum(slow_origin.sent(each) for each in digests.values())

    # What was begun (4 blobs at a time) arrives, and then it is quiet.
    settled = -1
    while sent() != settled:
        settled = sent()
        time.sleep(2)
    assert settled < 32 * MIB, "all were fetched although it was cancelled"
    assert facts(jobs_lab, "jobs", job["job"])["state"] == "cancelled"


def test_a_copy_that_its_disk_spoilt_is_put_aside_and_comes_anew(
    jobs_lab: Lab, slow_origin: Origin
) -> None:
    data = os.urandom(2 * MIB)
    digest = slow_origin.put(data)
    assert facts(jobs_lab, "preheat", f"lab/org/app@{digest}", "--watch")["state"] == "done"
    name = digest.removeprefix("sha256:")
    node = jobs_lab.nodes["n2"]
    copy = node.store / "blobs" / "sha256" / name[:2] / name
    copy.chmod(0o600)
    with copy.open("r+b") as file:
        file.write(b"rotten")
    command = [PASSEL, "fsck", "--config", str(node.folder / "passel.yaml")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 1, found.stderr
    assert digest in found.stdout
    mended = subprocess.run(
        [*command, "--repair"], capture_output=True, text=True, timeout=60, check=False
    )
    assert mended.returncode == 0, mended.stderr
    assert "put aside" in mended.stdout
    assert holders(jobs_lab, digest) == {"n1", "n3"}
    assert facts(jobs_lab, "preheat", f"lab/org/app@{digest}", "--watch")["state"] == "done"
    assert copy.read_bytes() == data
    assert slow_origin.sent(digest) == len(data), "it came from the other nodes"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("preheat", "lab/org/none:v1"), 1, "404"),
        (("preheat", "what is this"), 2, "expected <upstream>"),
        (("preheat", "{blob}", "--to", "zone=z"), 1, "no node is in zone=z; zones are a, b"),
        (("preheat", "{blob}", "--to", "everywhere"), 1, "expected all, seeds, zone="),
        (("jobs", "nix"), 1, "there is no job nix"),
        (("jobs", "nix", "--cancel"), 1, "there is no job nix"),
        (("rm", "sha256:12"), 2, "the digest must be"),
        (("preheat", "{blob}", "--ttl", "7"), 2, "--ttl: expected a number and one of"),
        (("pin", "sha256:12"), 1, "the digest must be"),
        (("unpin", "nix"), 1, "there is no pin nix"),
    ],
)
def test_mistakes_are_one_sentence(
    jobs_lab: Lab, slow_origin: Origin, words: tuple[str, ...], status: int, said: str
) -> None:
    blob = f"lab/org/app@{slow_origin.put(b'hello')}"
    done = jobs_lab.passel(*(word.replace("{blob}", blob) for word in words))
    assert said in done.stderr
    assert (done.returncode, done.stderr.count("\n")) == (status, 1), done.stderr


def test_a_blob_that_the_registry_does_not_have_fails_the_job(
    jobs_lab: Lab, slow_origin: Origin
) -> None:
    layers = {"linux/amd64": b"x" * 1000}
    digests = push_image(slow_origin, "v3", layers)
    name = digests["linux/amd64"].removeprefix("sha256:")
    (slow_origin.root / "blobs" / "sha256" / name).unlink()
    words = ("preheat", "lab/org/image:v3", "--platform", "linux/amd64", "--to", "seeds")
    done = jobs_lab.passel(*words, "--watch")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "failed" in done.stderr
