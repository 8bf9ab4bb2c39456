"""On a real cluster: TLS between the peers, and a new secret while they transfer."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Origin
from ray_lab import Lab, eventually

from passel.actors.rotating import read_ring
from passel.core.rotation import Stage
from passel.errors import PeerUnavailable
from passel.ids import BlobKey, Digest
from passel.transport.auth import ClusterAuth
from passel.transport.piece_client import PieceClient
from passel.transport.wire import piece_path

pytestmark = pytest.mark.cluster

PASSEL = str(Path(sys.executable).with_name("passel"))
MIB = 1 << 20


@pytest.fixture(scope="module")
def lab(folder: Path, origin: Origin) -> Iterator[Lab]:
    lab = Lab(folder / "tls", origin.url)
    try:
        lab.start(["a", "a", "a"], {"peer": {"tls": True, "listen": "127.0.0.1:0"}})
        yield lab
    finally:
        lab.stop()


def is_on_disk(lab: Lab, name: str, data: bytes, digest: str) -> bool:
    hex_ = digest.removeprefix("sha256:")
    path = lab.nodes[name].store / "blobs" / "sha256" / hex_[:2] / hex_
    return path.exists() and path.read_bytes() == data


def test_pieces_travel_through_tls(lab: Lab, origin: Origin) -> None:
    data = os.urandom(9 * MIB + 77)
    digest = origin.put(data)
    for name, node in lab.nodes.items():
        assert node.ensure("org/app", digest)[-1] == {"event": "done"}
        eventually(lambda name=name: is_on_disk(lab, name, data, digest))
        key = node.store / "peer.pem"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert node.store.stat().st_uid == key.stat().st_uid
    assert origin.sent(digest) == len(data), "a child went to the origin"
    sources = [node["bytes"] for node in lab.status()["nodes"]]
    assert sum(each["peer"] + each["seed"] for each in sources) >= 2 * len(data)


async def test_an_outsider_neither_reads_a_piece_nor_announces_one(
    lab: Lab, origin: Origin
) -> None:
    """With all that the network shows, and even with the secret, but without a certificate."""
    data = os.urandom(MIB)
    digest = origin.put(data)
    lab.nodes["n2"].ensure("org/app", digest)
    ring = read_ring()
    assert ring is not None
    address = lab.nodes["n2"].health()["address"]
    blob = BlobKey("lab", Digest.parse(digest)).id
    client = PieceClient(ClusterAuth(*ring.secrets))
    try:
        with pytest.raises(PeerUnavailable):
            await client.fetch(
                address, blob, 0, MIB, lambda *_: None, turn=1, wait_s=0.0, timeout_s=5.0
            )
    finally:
        await client.close()
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    # Announcements are calls to the shards through Ray: the piece server knows no such request.
    for method, path in (("GET", piece_path(blob, 0)), ("POST", "/v1/announce"), ("PUT", "/")):
        with socket.create_connection((host, int(port)), 5) as plain:
            plain.settimeout(5)
            try:
                with context.wrap_socket(plain) as sock:
                    sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                    assert sock.recv(100) == b""
            except (ssl.SSLError, ConnectionError):
                pass


def stage() -> Stage:
    ring = read_ring()
    assert ring is not None
    return ring.stage


def test_the_secret_is_replaced_while_blobs_travel(lab: Lab, origin: Origin) -> None:
    """Nothing is fetched from the origin twice, no read fails, and a restarted peer is a member.

    The controller is killed as soon as the first peers know two secrets: its next life goes on.
    """
    before = read_ring()
    assert before is not None
    is_over = threading.Event()
    trouble: list[object] = []
    sent: list[tuple[str, int]] = []

    def travel() -> None:
        while not is_over.is_set():
            data = os.urandom(6 * MIB)
            digest = origin.put(data)
            sent.append((digest, len(data)))
            for name, node in lab.nodes.items():
                lines = node.ensure("org/app", digest)
                if lines[-1] != {"event": "done"}:
                    trouble.append((name, lines[-1]))

    travelling = threading.Thread(target=travel)
    travelling.start()
    try:
        controller = lab.status()["controller"]["pid"]
        command = [PASSEL, "rotate", "--config", str(lab.nodes["n3"].folder / "passel.yaml")]
        rotating = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        eventually(lambda: stage() is not Stage.STEADY)
        os.kill(controller, signal.SIGKILL)
        out, error = rotating.communicate(timeout=90)
    finally:
        is_over.set()
        travelling.join()
    assert rotating.returncode == 0, error
    assert "new secret" in out
    assert lab.status()["controller"]["pid"] != controller
    assert len(sent) > 3
    assert not trouble
    assert [(digest, origin.sent(digest)) for digest, _ in sent] == sent
    after = read_ring()
    assert after is not None
    assert len(after.secrets) == 1
    assert not set(after.secrets) & set(before.secrets)
    # Ray starts a peer with what it was given at first: it must find the new secret by itself.
    node = lab.nodes["n2"]
    pid = node.kill_peer()
    eventually(lambda: node.health()["pid"] != pid, 20)
    data = os.urandom(5 * MIB)
    digest = origin.put(data)
    assert hashlib.sha256(data).hexdigest() in digest
    for name in ("n1", "n2", "n3"):
        assert lab.nodes[name].ensure("org/app", digest)[-1] == {"event": "done"}
    assert origin.sent(digest) == len(data)
