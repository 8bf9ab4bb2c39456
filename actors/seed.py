"""The seed peer: a peer that is asked first and may go back to source."""

from __future__ import annotations

from passel.actors.peer import Peer


class SeedPeer(Peer):
    """A peer in the seed role; the role itself is in its spec, and the shards act on it.

    It is a class of its own so that it is told apart where people look: in Ray's dashboard and in
    the process list.
    """
