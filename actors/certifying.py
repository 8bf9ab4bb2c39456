"""The certificates of TLS between peers: one authority per cluster, one certificate per node."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path

from passel.actors.handles import write_down, written_down
from passel.transport.certificates import Authority, NodeCertificate

KEY = "authority"
#: In the node's store, for its owner alone.
FILE = "peer.pem"


async def take_up(cluster: str) -> Authority:
    """The authority of a former life; the first life makes it and writes it down."""
    return await asyncio.to_thread(_take_up, cluster)


def _take_up(cluster: str) -> Authority:
    values = written_down(KEY)
    if values:
        fields = json.loads(values[0])
        return Authority(fields["certificate"], fields["key"])
    made = Authority.make(cluster)
    fields = {"certificate": made.certificate, "key": made.key}
    write_down(KEY, json.dumps(fields).encode())
    return made


def contexts(
    certificate: NodeCertificate | None, store: Path
) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    """For the piece server and the piece client of a node; none of them where TLS is off."""
    path = store / FILE
    if certificate is None:
        path.unlink(missing_ok=True)
        return None, None
    certificate.keep(path)
    return certificate.server_context(path), certificate.client_context(path)
