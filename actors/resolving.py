"""What an image is made of, asked of its registry through the gateway of the controller's node.

So there is one way to read manifests: the gateway's, with its checks, credentials and patience.
"""

from __future__ import annotations

import asyncio
from typing import Any

from passel.client.admin import blobs_of
from passel.client.client import Client
from passel.client.exchange import RequestRefused
from passel.client.image import same_place
from passel.client.targets import parse_target
from passel.errors import InputError, PasselError, PeerUnavailable, TransientError
from passel.ids import Digest

#: A registry far away, a token, an index, and the manifests of its platforms.
DEADLINE_S = 20.0


async def resolve(
    gateway: str | None, what: str, platform: str, digest: str | None = None
) -> list[dict[str, Any]]:
    """The blobs of the image or blob `what`, as an order wants them.

    `digest`: the manifest that a tag is known to stand for now. Raises InputError with a sentence.
    """
    if gateway is None:
        text = "the controller's node has no gateway to ask the registry through: try again"
        raise InputError(503, "UNAVAILABLE", text)
    target = parse_target(what)
    if digest is not None:
        target = same_place(target, "manifest", Digest.parse(digest))

    def work() -> list[dict[str, Any]]:
        return blobs_of(Client(gateway, timeout_s=DEADLINE_S), target, platform)

    try:
        return await asyncio.wait_for(asyncio.to_thread(work), DEADLINE_S)
    except (asyncio.TimeoutError, PeerUnavailable, TransientError):
        text = f"{what}: its registry cannot be asked at the moment"
        raise InputError(503, "UNAVAILABLE", text) from None
    except RequestRefused as error:
        if error.status in (401, 403):
            text = f"{what}: its registry wants credentials: give the upstream auth: static"
            raise InputError(422, "DENIED", text) from None
        status = 422 if error.status == 404 else error.status
        raise InputError(status, error.code, f"{what}: {error.message}") from None
    except InputError:
        raise
    except PasselError as error:
        raise InputError(502, "UNAVAILABLE", f"{what}: {error}") from None
