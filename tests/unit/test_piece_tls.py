"""Pieces through TLS: whoever has no certificate of the cluster gets nothing, and the rest all."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import ssl
import stat
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from unit.piece_fakes import BLOB, SECRET, FakeSource, until

from passel.errors import ConfigError, PeerUnavailable
from passel.transport import certificates
from passel.transport.auth import AUTH_HEADER, ClusterAuth
from passel.transport.certificates import Authority, NodeCertificate
from passel.transport.piece_client import PieceClient
from passel.transport.piece_server import PieceServer
from passel.transport.wire import piece_path

PIECE = 1 << 20
SIZE = 5 * PIECE + 12_345


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make("test")


def kept(certificate: NodeCertificate, folder: Path) -> tuple[NodeCertificate, Path]:
    path = folder / "peer.pem"
    certificate.keep(path)
    return certificate, path


class Lab:
    def __init__(self, folder: Path, authority: Authority, piece_size: int = PIECE) -> None:
        self.folder = folder
        self.source = FakeSource(folder, max(SIZE, piece_size), piece_size)
        certificate, path = kept(authority.issue("server"), folder)
        self.auth = ClusterAuth(SECRET)
        self.server = PieceServer(
            self.source, self.auth, 8, stall_s=0.5, tls=certificate.server_context(path)
        )
        self.address = ""

    def client(self, authority: Authority | None, *secrets: bytes) -> PieceClient:
        tls = None
        if authority is not None:
            certificate, path = kept(authority.issue("client"), self.folder)
            tls = certificate.client_context(path)
        return PieceClient(ClusterAuth(*(secrets or (SECRET,))), tls=tls)

    async def fetch(self, client: PieceClient, piece: int, timeout_s: float = 5.0) -> bytes:
        got = bytearray(len(self.source.piece(piece)))

        def sink(offset: int, view: memoryview) -> None:
            got[offset : offset + len(view)] = view

        digest = await client.fetch(
            self.address, BLOB, piece, len(got), sink, turn=1, wait_s=0.0, timeout_s=timeout_s
        )
        assert digest == hashlib.sha256(got).digest()
        return bytes(got)


@pytest.fixture
async def lab(tmp_path: Path, authority: Authority) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path, authority)
    lab.address = f"127.0.0.1:{await lab.server.start('127.0.0.1', 0)}"
    yield lab
    await lab.server.stop(0.2)
    lab.source.close()


async def test_members_get_every_byte_and_keep_their_connections(
    lab: Lab, authority: Authority
) -> None:
    client = lab.client(authority)
    try:
        for _ in range(3):
            everything = await asyncio.gather(*(lab.fetch(client, i) for i in range(6)))
            assert b"".join(everything) == lab.source.content
        # Four are kept between two rounds of six.
        assert client.n_connects == 10
        assert client.n_reused == 8
        assert lab.server.bytes_sent == 3 * SIZE
    finally:
        await client.close()


@pytest.mark.parametrize("who", ["no TLS", "no certificate", "of another cluster"])
async def test_outsiders_with_the_secret_get_nothing(lab: Lab, tmp_path: Path, who: str) -> None:
    """What they lack is the certificate alone."""
    if who == "no certificate":
        with pytest.raises((OSError, ssl.SSLError)):
            await asyncio.to_thread(ask_without_certificate, lab.address)
    else:
        client = lab.client(Authority.make("other") if who == "of another cluster" else None)
        try:
            with pytest.raises(PeerUnavailable):
                await lab.fetch(client, 0)
        finally:
            await client.close()
    assert lab.server.n_requests == 0
    assert lab.server.bytes_sent == 0


def ask_without_certificate(address: str) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 5) as plain:
        plain.settimeout(5)
        with context.wrap_socket(plain) as sock:
            path = piece_path(BLOB, 0)
            signature = ClusterAuth(SECRET).sign("GET", path, time.time())
            request = f"GET {path} HTTP/1.1\r\nHost: x\r\n{AUTH_HEADER}: {signature}\r\n\r\n"
            sock.sendall(request.encode())
            answer = sock.recv(100)
            if not answer:
                raise ConnectionResetError("closed")
            return answer


async def test_a_certificate_without_the_secret_is_not_enough(
    lab: Lab, authority: Authority
) -> None:
    client = lab.client(authority, b"the secret of others")
    try:
        with pytest.raises(PeerUnavailable, match="refused our signature"):
            await lab.fetch(client, 0)
    finally:
        await client.close()
    assert lab.server.bytes_sent == 0


async def test_a_client_talks_to_no_impostor(lab: Lab, tmp_path: Path) -> None:
    """Somebody else listens where the peer was: no signature reaches him."""
    folder = tmp_path / "other"
    folder.mkdir()
    certificate, path = kept(Authority.make("other").issue("server"), folder)
    impostor = PieceServer(lab.source, ClusterAuth(SECRET), 8, tls=certificate.server_context(path))
    lab.address = f"127.0.0.1:{await impostor.start('127.0.0.1', 0)}"
    client = lab.client(Authority.make("ours"))
    try:
        with pytest.raises(PeerUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await lab.fetch(client, 0)
        assert impostor.n_requests == 0
    finally:
        await client.close()
        await impostor.stop(0.2)


async def test_a_fetch_that_is_not_wanted_any_more_ends_at_once(
    lab: Lab, authority: Authority
) -> None:
    client = lab.client(authority)
    began = time.monotonic()

    def slow(offset: int, view: memoryview) -> None:
        time.sleep(0.05)

    try:
        with pytest.raises(PeerUnavailable):
            await client.fetch(lab.address, BLOB, 0, PIECE, slow, turn=1, wait_s=0.0, timeout_s=0.1)
        assert time.monotonic() - began < 2
    finally:
        await client.close()


async def test_a_receiver_that_stops_reading_is_cut_off(
    tmp_path: Path, authority: Authority
) -> None:
    # More than kernel and library keep for somebody who does not read.
    lab = Lab(tmp_path, authority, 32 * PIECE)
    port = await lab.server.start("127.0.0.1", 0)
    certificate, path = kept(authority.issue("client"), lab.folder)
    context = certificate.client_context(path)
    plain = socket.create_connection(("127.0.0.1", port), 5)
    try:
        with await asyncio.to_thread(context.wrap_socket, plain) as sock:
            target = piece_path(BLOB, 0)
            signature = ClusterAuth(SECRET).sign("GET", target, time.time())
            request = f"GET {target} HTTP/1.1\r\nHost: x\r\n{AUTH_HEADER}: {signature}\r\n\r\n"
            await asyncio.to_thread(sock.sendall, request.encode())
            await until(lambda: lab.server.n_cut == 1, 10.0)
        assert lab.server.n_uploads == 0
    finally:
        await lab.server.stop(0.2)
        lab.source.close()


async def test_rotation_under_running_transfers_loses_nothing(
    lab: Lab, authority: Authority
) -> None:
    old, new = SECRET, SECRET[::-1]
    auth = ClusterAuth(old)
    certificate, path = kept(authority.issue("client"), lab.folder)
    client = PieceClient(auth, tls=certificate.client_context(path))
    is_over = False
    n_fetched = 0

    async def keep_fetching() -> None:
        nonlocal n_fetched
        while not is_over:
            piece = n_fetched % 6
            assert await lab.fetch(client, piece) == lab.source.piece(piece)
            n_fetched += 1

    running = [asyncio.create_task(keep_fetching()) for _ in range(4)]
    try:
        for ring in ((old, new), (new, old), (new,)):
            for each in (auth, lab.auth):
                before = n_fetched
                each.replace(*ring)
                await until(lambda before=before: n_fetched > before + 8, 10.0)  # type: ignore[misc]
        is_over = True
        await asyncio.gather(*running)
        late = lab.client(authority, old)
        with pytest.raises(PeerUnavailable, match="refused our signature"):
            await lab.fetch(late, 0)
        await late.close()
    finally:
        is_over = True
        await client.close()


def test_the_key_is_its_owners_alone(tmp_path: Path, authority: Authority) -> None:
    path = tmp_path / "peer.pem"
    path.write_text("an old one, readable by all")
    path.chmod(0o666)
    made = authority.issue("n1")
    old_mask = os.umask(0)
    try:
        made.keep(path)
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for secret in (made, authority):
        assert "PRIVATE" not in repr(secret)


def test_without_the_package_one_sentence_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    certificates.check_available()
    monkeypatch.setattr(certificates.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'passel\[tls\]'"):
        certificates.check_available()


async def test_handshakes_that_never_end_count_as_connections(
    tmp_path: Path, authority: Authority
) -> None:
    """Until their deadline: then they are cut, and there is room again."""
    certificate, path = kept(authority.issue("server"), tmp_path)
    tls = certificate.server_context(path)
    lab = Lab(tmp_path, authority)
    server = PieceServer(
        lab.source, lab.auth, 8, tls=tls, connections_max=3, handshake_s=0.5, stall_s=0.5
    )
    port = await server.start("127.0.0.1", 0)
    lab.address = f"127.0.0.1:{port}"
    mute = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
    client = lab.client(authority)
    try:
        await until(lambda: server.n_refused_busy == 2)
        with pytest.raises(PeerUnavailable):
            await lab.fetch(client, 0)
        for reader, _ in mute:
            with suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 5.0) == b"", "it was cut"
        for _ in range(5):
            # What is over counts no more.
            assert await lab.fetch(client, 1) == lab.source.piece(1)
    finally:
        for _, writer in mute:
            writer.close()
        await client.close()
        await server.stop(0.2)
