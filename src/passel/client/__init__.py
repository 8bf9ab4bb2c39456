"""The Python API over a gateway: read blobs and images through the cluster."""

from passel.client.client import AsyncClient, Client
from passel.client.exchange import RequestRefused
from passel.client.reading import RemoteFile
from passel.client.targets import Target, parse_target

__all__ = ["AsyncClient", "Client", "RemoteFile", "RequestRefused", "Target", "parse_target"]
