"""Where an origin client may connect to, and over which TLS.

Every address is judged after resolution, at the moment of connecting, so a name that resolves to
something else the second time (DNS rebinding) is judged again. Source: OWASP SSRF prevention cheat
sheet; DESIGN §8.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Sequence

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from passel.config.sections import UpstreamConfig
from passel.errors import ConfigError, OriginNonsense

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class ForbiddenAddress(OSError):
    """A name resolved to addresses that this upstream may not use."""


def _plain(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address itself, taken out of IPv4-mapped, 6to4 and NAT64 wrappings."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def is_allowed(text: str, networks: Sequence[Network]) -> bool:
    """Whether an upstream with these networks may talk to this address.

    Link-local addresses (cloud metadata services among them) are never allowed.
    """
    address = _plain(text)
    if address.is_link_local or address.is_multicast or address.is_unspecified:
        return False
    if address.is_global:
        return True
    return any(address.version == net.version and address in net for net in networks)


class VettingResolver(AbstractResolver):
    """Resolves names, and gives only addresses that may be dialled."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = networks
        self._real = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._real.resolve(host, port, family)
        allowed = [each for each in found if is_allowed(each["host"], self._networks)]
        if not allowed:
            raise ForbiddenAddress(f"{host} resolves to an address outside the allowed networks")
        return allowed

    async def close(self) -> None:
        await self._real.close()


def check_url(url: URL, networks: Sequence[Network], key: str) -> None:
    """A URL with a literal address never reaches the resolver: it is judged here."""
    if url.scheme not in ("http", "https") or not url.host:
        raise OriginNonsense(f"upstream {key} points to something that is no http or https URL")
    try:
        address = url.host.split("%")[0]
        ipaddress.ip_address(address)
    except ValueError:
        return
    if not is_allowed(address, networks):
        raise OriginNonsense(
            f"upstream {key} leads to the address {address}; if that is right, list its network"
            f" under upstreams.{key}.networks"
        )


def tls_of(key: str, upstream: UpstreamConfig) -> ssl.SSLContext | bool:
    """The TLS settings of an upstream: system CAs, its own CA file, or (explicitly) no check."""
    if upstream.insecure:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    if upstream.ca is None:
        return True
    try:
        context = ssl.create_default_context(cafile=str(upstream.ca))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"upstreams.{key}.ca: {upstream.ca} cannot be read as PEM certificates ({error})"
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
