"""Three registries that differ in what they ask for: nothing, a password, a token.

All are Debian's docker-registry; the token server is here, and signs with openssl what
docker-registry verifies. Source: distribution, "Token Authentication Specification" and "Docker
Registry v2 Bearer token specification".
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
import threading
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tools import DockerRegistry, need

USER = "alice"
PASSWORD = "Planted-Password-7f3a"
#: bcrypt of PASSWORD, cost 5: libxcrypt made it, docker-registry takes no other kind.
_HTPASSWD = f"{USER}:$2b$05$abcdefghijklmnopqrstuu4IDhNT6yhfGX8lO2KFWUzg5a0oMO.fO\n"

BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class TokenServer:
    """Gives USER what he asks for, and everybody else a token that allows nothing."""

    TTL_S = 60

    def __init__(self, folder: Path) -> None:
        self.key, self.certificate = folder / "token.key", folder / "token.crt"
        make = [need("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        make += ["-subj", "/CN=token", "-keyout", str(self.key), "-out", str(self.certificate)]
        subprocess.run(make, check=True, capture_output=True)
        pem = self.certificate.read_text().splitlines()
        self._x5c = "".join(line for line in pem if "-----" not in line)
        #: (method, account, scope) of every token asked for.
        self.asked: list[tuple[str, str | None, str]] = []
        #: Everything that was handed out; none of it may turn up anywhere.
        self.tokens: list[str] = []
        self._lock = threading.Lock()
        handler = type("Handler", (_TokenHandler,), {"tokens": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        # By name: crane asks for no token at a private address.
        self.realm = f"http://localhost:{self._server.server_address[1]}/token"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def auth(self) -> dict[str, Any]:
        """The section of docker-registry's configuration."""
        return {
            "token": {
                "realm": self.realm,
                "service": "registry.test",
                "issuer": "issuer.test",
                "rootcertbundle": str(self.certificate),
            }
        }

    def mint(self, access: list[dict[str, Any]], subject: str = "") -> str:
        now = int(time.time())
        header = {"typ": "JWT", "alg": "RS256", "x5c": [self._x5c]}
        claims = {
            "iss": "issuer.test",
            "sub": subject,
            "aud": "registry.test",
            "exp": now + self.TTL_S,
            "nbf": now - 10,
            "iat": now,
            "jti": os.urandom(8).hex(),
            "access": access,
        }
        text = f"{_b64(json.dumps(header).encode())}.{_b64(json.dumps(claims).encode())}"
        command = [need("openssl"), "dgst", "-sha256", "-sign", str(self.key)]
        signed = subprocess.run(command, input=text.encode(), capture_output=True, check=True)
        token = f"{text}.{_b64(signed.stdout)}"
        with self._lock:
            self.tokens.append(token)
        return token

    def pusher(self, repository: str) -> str:
        """An Authorization that may push."""
        access = {"type": "repository", "name": repository, "actions": ["pull", "push"]}
        return f"Bearer {self.mint([access], USER)}"

    def answer(self, method: str, account: str | None, scopes: list[str]) -> dict[str, Any]:
        with self._lock:
            self.asked.append((method, account, " ".join(scopes)))
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            if account == USER and kind == "repository":
                allowed = [each for each in actions.split(",") if each == "pull"]
                access.append({"type": kind, "name": name, "actions": allowed})
        token = self.mint(access, account or "")
        return {"token": token, "access_token": token, "expires_in": self.TTL_S}

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _TokenHandler(BaseHTTPRequestHandler):
    tokens: TokenServer

    def do_GET(self) -> None:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        authorization = self.headers.get("Authorization")
        if authorization is None:
            self._reply(self.tokens.answer("GET", None, query.get("scope", [])))
        elif authorization == BASIC:
            self._reply(self.tokens.answer("GET", USER, query.get("scope", [])))
        else:
            self._reply({"errors": [{"code": "UNAUTHORIZED"}]}, 401)

    def do_POST(self) -> None:
        """The OAuth form of it: containerd and nydusd try this first."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        form = {key: values[-1] for key, values in urllib.parse.parse_qs(body).items()}
        if form.get("username") == USER and form.get("password") == PASSWORD:
            scopes = form.get("scope", "").split()
            self._reply(self.tokens.answer("POST", USER, scopes))
        elif self.headers.get("Authorization") == BASIC:
            self._reply(self.tokens.answer("POST", USER, form.get("scope", "").split()))
        else:
            self._reply({"errors": [{"code": "UNAUTHORIZED"}]}, 401)

    def _reply(self, document: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@dataclass
class Image:
    """A small image in a registry: one architecture behind an index, two layers."""

    repository: str
    manifest: str
    layers: list[str]
    #: digest -> bytes of layers, config, manifest, index.
    blobs: dict[str, bytes] = field(default_factory=dict)

    @property
    def largest(self) -> str:
        return max(self.layers, key=lambda digest: len(self.blobs[digest]))


class Origins:
    """The three registries. `stop` and `start` them together to take the origin away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "htpasswd").write_text(_HTPASSWD)
        self.tokens = TokenServer(folder)
        htpasswd = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
        self.registries = {
            "public": DockerRegistry(folder, "public"),
            "basic": DockerRegistry(folder, "basic", htpasswd),
            "bearer": DockerRegistry(folder, "bearer", self.tokens.auth(), "localhost"),
        }

    def upstreams(self, **more: Any) -> dict[str, Any]:
        """The table for passel's configuration: public.test, basic.test, bearer.test."""
        return {
            f"{name}.test": {"api": registry.url, "networks": ["127.0.0.0/8"], **more}
            for name, registry in self.registries.items()
        }

    def credential(self, kind: str, repository: str) -> str | None:
        """Who may push."""
        if kind == "public":
            return None
        return BASIC if kind == "basic" else self.tokens.pusher(repository)

    def push(self, kind: str, repository: str, size: int = 1_500_000) -> Image:
        """A new image under repository:v1."""
        image = make_image(repository, size)
        registry, who = self.registries[kind], self.credential(kind, repository)
        path = self.folder / "push"
        index = list(image.blobs)[-1]
        for digest, data in image.blobs.items():
            if digest in (image.manifest, index):
                continue
            path.write_bytes(data)
            registry.push_blob(repository, path, digest, who)
        manifest = image.blobs[image.manifest]
        registry.push_manifest(repository, image.manifest, manifest, MANIFEST, who)
        registry.push_manifest(repository, "v1", image.blobs[index], INDEX, who)
        return image

    def stop_registries(self) -> None:
        for registry in self.registries.values():
            registry.stop()

    def start_registries(self) -> None:
        for registry in self.registries.values():
            registry.start()

    def stop(self) -> None:
        for registry in self.registries.values():
            if registry.process.poll() is None:
                registry.stop()
        self.tokens.stop()


def _layer(files: dict[str, bytes]) -> tuple[bytes, str]:
    """A gzipped tar and the digest of the tar."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    tar = raw.getvalue()
    return gzip.compress(tar, 1, mtime=0), f"sha256:{hashlib.sha256(tar).hexdigest()}"


def make_image(repository: str, size: int) -> Image:
    image = Image(repository, "", [])

    def put(data: bytes) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        image.blobs[digest] = data
        return {"digest": digest, "size": len(data)}

    layers, diff_ids = [], []
    for files in (
        {"etc/os-release": b"NAME=test\n", "bin/tool": os.urandom(60_000)},
        {"opt/model.bin": os.urandom(size)},
    ):
        data, diff_id = _layer(files)
        layers.append({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", **put(data)})
        diff_ids.append(diff_id)
        image.layers.append(layers[-1]["digest"])
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            **put(json.dumps(config).encode()),
        },
        "layers": layers,
    }
    described = put(json.dumps(manifest).encode())
    image.manifest = described["digest"]
    platform = {"architecture": "amd64", "os": "linux"}
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [{"mediaType": MANIFEST, **described, "platform": platform}],
    }
    put(json.dumps(index).encode())
    return image
