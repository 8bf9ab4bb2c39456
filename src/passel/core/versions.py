"""The version of what passel's processes say to each other, and who understands whom.

It grows with every change of a message that an older process would misread, and with no other;
`OLDEST` is the oldest that is still understood. Two processes talk if the `WIRE` of each is not
older than what the other understands: so a rolling upgrade goes from one version to the next.

2: a shard tells seeds of their last copies (`Copies`). A process of version 1 cannot even unpickle
   a class that it does not have, and the call with all that is in it fails: it is not told.
"""

from __future__ import annotations

from typing import Final

WIRE: Final = 2
OLDEST: Final = 1
#: Who is told of its last copies speaks this at least.
COPIES_SINCE: Final = 2

#: What a peer says to the gateway of its node, in a header of every answer.
HEADER: Final = "X-Passel-Wire"
SAID: Final = f"{WIRE} {OLDEST}"


def said(text: str | None) -> tuple[int, int]:
    """`SAID` of another process as numbers; one that says nothing is from before there were any."""
    words = (text or "").split(" ")
    if len(words) != 2 or not all(word.isascii() and word.isdigit() for word in words):
        return WIRE, OLDEST
    return int(words[0][:9]), int(words[1][:9])


def understood(wire: int, oldest: int) -> bool:
    """Whether a process with these numbers and this one can talk."""
    return wire >= OLDEST and oldest <= WIRE


def refusal(wire: int, oldest: int, node: str) -> str:
    """Why a process of `node` with that wire version cannot take part; '' if it can."""
    if understood(wire, oldest):
        return ""
    newer = wire > WIRE
    what = "an older" if newer else "a newer"
    return (
        f"node {node} speaks wire version {wire}, this cluster's shard {WIRE}"
        f" ({OLDEST} at the oldest): the shard is of {what} passel; upgrade"
        f" {'the node of the controller' if newer else f'node {node}'}"
    )
