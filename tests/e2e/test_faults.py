"""Real clients before registries that have a bad day: no wrong byte is served or kept.

Whatever the registry does, a client gets the right bytes or an error that it understands and shows;
and as soon as the registry is well again, so is everything else. All pulls of a phase run at once,
each fault in a registry of its own.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import gateway_of
from faulty import Fault, FaultyOrigin
from origins import Image, make_image
from ray_lab import Lab, eventually
from tools import need

pytestmark = pytest.mark.e2e

CLIENTS = ("curl", "skopeo", "podman")
PATIENCE_S = 36
#: Exit status of a client that had to be stopped.
GAVE_UP = -1
#: curl's own: an error of the server; fewer bytes than promised, a connection that was reset.
HTTP_ERROR = 22
BROKEN_OFF = (18, 56)
#: Several pieces, so that the answer has begun long before the last byte is known to be wrong.
LONG = 3_000_000
#: What passel mends by itself.
MENDED = (Fault.CUT_ONCE, Fault.HALVED, Fault.ELSEWHERE)
#: What curl is told: status, and code and words of the error. Of the others an answer has begun,
#: and all that is left is to break it off.
TOLD = {
    Fault.UNAVAILABLE: ("502", "UNAVAILABLE", "the origin registry cannot be reached"),
    Fault.LIMITED: ("429", "TOOMANYREQUESTS", "slow down"),
    Fault.HANGS: ("504", "UNAVAILABLE", "the origin registry said nothing in time"),
    Fault.FORBIDDEN: ("502", "UNAVAILABLE", "the origin registry's answer is not valid"),
}
#: The same for what may be found out before the answer has begun.
TOLD_EARLY = {
    Fault.GROWN: TOLD[Fault.FORBIDDEN],
    Fault.STALLS: TOLD[Fault.HANGS],
    Fault.CUT: TOLD[Fault.UNAVAILABLE],
}
#: What of it skopeo and podman show, who keep the gateway's own words to themselves.
SHOWN = {
    Fault.UNAVAILABLE: "502",
    Fault.LIMITED: "too many requests",
    Fault.HANGS: "504",
    Fault.FORBIDDEN: "502",
}


@dataclass
class Pull:
    """What one client had of one image."""

    client: str
    image: Image
    folder: Path
    status: int = 0
    text: str = ""
    took_s: float = 0.0

    def run(self, gateway: str, upstream: str) -> None:
        """The client takes the gateway for the registry: it has nowhere else to go."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        name = f"{gateway.partition('://')[2]}/{upstream}/{self.image.repository}:v1"
        policy = self.folder / "policy.json"
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        if self.client == "skopeo":
            command = [need("skopeo"), "--policy", str(policy), "copy", "--src-tls-verify=false"]
            command += [f"docker://{name}", f"oci:{self.folder}/out:v1"]
        elif self.client == "podman":
            command = [need("podman"), "--root", f"{self.folder}/root"]
            command += ["--runroot", f"{self.folder}/run", "--storage-driver", "vfs", "pull", "-q"]
            command += ["--tls-verify=false", "--signature-policy", str(policy), name]
        else:
            repository, digest = self.image.repository, self.image.largest
            url = f"{gateway}/v2/{upstream}/{repository}/blobs/{digest}"
            command = [
                need("curl"),
                "-sS",
                "--fail-with-body",
                "-w",
                "%{http_code}",
                "-o",
                f"{self.folder}/body",
                url,
            ]
        began = time.monotonic()
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
                stdin=subprocess.DEVNULL,
            )
            self.status, self.text = done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            self.status, self.text = GAVE_UP, f"stopped after {PATIENCE_S} s"
        self.took_s = time.monotonic() - began

    @property
    def kept(self) -> bytes | None:
        """What the client has of the largest layer, if it keeps it where one can look."""
        name = self.image.largest.removeprefix("sha256:")
        path = self.folder / ("body" if self.client == "curl" else f"out/blobs/sha256/{name}")
        return path.read_bytes() if path.exists() else None


@dataclass
class Days:
    """All pulls, on the bad day and on the day after."""

    lab: Lab
    bad: dict[tuple[Fault, str], Pull] = field(default_factory=dict)
    good: dict[tuple[Fault, str], Pull] = field(default_factory=dict)


@pytest.fixture(scope="module")
def days() -> Iterator[Days]:
    """Two nodes; the clients are on the one that is not the seed."""
    folder = Path(tempfile.mkdtemp(prefix="pflt"))
    origins = {fault: FaultyOrigin(fault) for fault in Fault}
    lab = Lab(folder, "")
    try:
        upstreams: dict[str, Any] = {
            fault.upstream: {"api": origin.url, "networks": ["127.0.0.0/8"]}
            for fault, origin in origins.items()
        }
        lab.start(["a", "a"], {"upstreams": upstreams})
        for node in lab.nodes.values():
            eventually(lambda n=node: gateway_of(n.folder), 30)
        days = Days(lab)
        gateway = gateway_of(lab.nodes["n2"].folder)["gateway"]
        for client in CLIENTS:
            need(client)
            for fault, origin in origins.items():
                long = fault is Fault.WRONG
                image = make_image(f"of/{client}", LONG if long else 300_000)
                origin.add_image(image.repository, image.blobs, image.largest)
                path = folder / f"{client}-{fault.name}"
                days.bad[fault, client] = Pull(client, image, path)
                days.good[fault, client] = Pull(client, image, path.with_suffix(".good"))
        for pulls in (days.bad, days.good):
            with ThreadPoolExecutor(len(pulls)) as pool:
                running = [
                    pool.submit(pull.run, gateway, fault.upstream)
                    for (fault, _), pull in pulls.items()
                ]
            for each in running:
                each.result()
            for origin in origins.values():
                origin.well.set()
            # A registry that was away is tried again after five seconds.
            time.sleep(6 if pulls is days.bad else 0)
        yield days
    finally:
        lab.stop()
        for origin in origins.values():
            origin.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.value)
def test_a_bad_day(days: Days, fault: Fault, client: str) -> None:
    """The right bytes, or an error in words that name the reason."""
    pull = days.bad[fault, client]
    right = pull.image.blobs[pull.image.largest]
    if fault in MENDED:
        assert pull.status == 0, pull.text
        assert client == "podman" or pull.kept == right
        return
    if client != "curl":
        assert pull.status != 0
        assert pull.kept is None
        assert re.search(SHOWN.get(fault, ""), pull.text), pull.text
        return
    # curl compares no digests: that it fails is our doing, and in time.
    assert pull.status not in (0, GAVE_UP), pull.took_s
    if fault in TOLD or pull.status == HTTP_ERROR:
        status, code, words = TOLD.get(fault) or TOLD_EARLY[fault]
        assert pull.text.startswith(status), pull.text
        assert pull.kept is not None
        (error,) = json.loads(pull.kept)["errors"]
        assert error["code"] == code
        assert words in error["message"]
    else:
        # The answer had begun: it was broken off, and what came is the beginning of the blob. Of
        # wrong bytes, which are at its end, none came.
        assert pull.status in BROKEN_OFF, pull.text
        assert pull.kept is None or right.startswith(pull.kept)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.value)
def test_the_day_after(days: Days, fault: Fault, client: str) -> None:
    pull = days.good[fault, client]
    assert pull.status == 0, pull.text
    assert client == "podman" or pull.kept == pull.image.blobs[pull.image.largest]


def test_nothing_wrong_is_kept(days: Days) -> None:
    """What a node calls complete is what its name says."""
    n_seen = 0
    for node in days.lab.nodes.values():
        for pull in days.good.values():
            for digest, data in pull.image.blobs.items():
                hex_ = digest.removeprefix("sha256:")
                path = node.store / "blobs" / "sha256" / hex_[:2] / hex_
                if path.exists():
                    n_seen += 1
                    assert path.read_bytes() == data
    assert n_seen > len(days.good)
