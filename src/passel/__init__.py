"""passel: container images and other large immutable blobs onto every node of a Ray cluster.

Imported by every Ray worker, so it imports nothing heavy.
"""

from passel._version import __version__

__all__ = ["__version__"]
