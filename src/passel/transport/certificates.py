"""The cluster's own certificates, for TLS between its peers.

The authority belongs to the controller; it makes one certificate for each node. Both sides show
theirs and check the other's against the authority. Names are not compared: every member may be any
member, and pieces are checked against the shard's digests. Needs the package cryptography (the
extra ``tls``), which is imported where it is used.
"""

from __future__ import annotations

import importlib.util
import os
import ssl
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Final

from passel.errors import ConfigError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

#: As long as a cluster can live: Ray restarts a peer with what it was given at first.
_LIFE: Final = timedelta(days=3650)
#: Clocks of nodes differ.
_BACKDATED: Final = timedelta(days=1)
_NAME_MAX: Final = 64


def check_available() -> None:
    """Raise ConfigError when certificates cannot be made here."""
    if importlib.util.find_spec("cryptography") is None:
        raise ConfigError(
            "peer.tls: true needs the package cryptography: pip install 'passel[tls]'"
        )


@dataclass(frozen=True, slots=True)
class NodeCertificate:
    """What one node needs, PEM: the authority's certificate, its own, its private key."""

    authority: str
    certificate: str
    key: str = field(repr=False)

    def keep(self, path: Path) -> None:
        """Write key and certificate to a file that only its owner may read."""
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(self.key + self.certificate)

    def server_context(self, path: Path) -> ssl.SSLContext:
        """For the piece server; the files must have been kept at `path`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._settle(context, path)
        # Nobody resumes sessions, and an idle connection is one with nothing to read.
        context.num_tickets = 0
        return context

    def client_context(self, path: Path) -> ssl.SSLContext:
        """For the piece client; the files must have been kept at `path`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        self._settle(context, path)
        return context

    def _settle(self, context: ssl.SSLContext, path: Path) -> None:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=self.authority)
        context.load_cert_chain(path)


@dataclass(frozen=True, slots=True)
class Authority:
    """The cluster's certificate authority, PEM."""

    certificate: str
    key: str = field(repr=False)

    @classmethod
    def make(cls, cluster: str) -> Authority:
        """A new one. Takes a millisecond."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(cluster)
        builder = _builder(name, key, is_authority=True).issuer_name(name)
        return cls(_pem(builder.sign(key, hashes.SHA256())), _key_pem(key))

    def issue(self, node: str) -> NodeCertificate:
        """A new key and certificate for a node."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        signer = serialization.load_pem_private_key(self.key.encode(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        issuer = x509.load_pem_x509_certificate(self.certificate.encode()).subject
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(node), key, is_authority=False).issuer_name(issuer)
        signed = builder.sign(signer, hashes.SHA256())
        return NodeCertificate(self.certificate, _pem(signed), _key_pem(key))


def _name(text: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:_NAME_MAX] or "node")])


def _builder(
    name: x509.Name, key: EllipticCurvePrivateKey, *, is_authority: bool
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.now(timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + _LIFE)
        .add_extension(x509.BasicConstraints(is_authority, 0 if is_authority else None), True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not is_authority,
                key_cert_sign=is_authority,
                crl_sign=is_authority,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            True,
        )
    )


def _pem(certificate: x509.Certificate) -> str:
    from cryptography.hazmat.primitives import serialization

    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: EllipticCurvePrivateKey) -> str:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
