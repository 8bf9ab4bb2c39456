"""The exception tree, split by what the receiver can do about it.

::

    PasselError
      TransientError          try again, or elsewhere
        PeerUnavailable         a peer, shard or socket does not answer
        PeerBusy                it answers, and has no slot (retry_after_s)
        OriginUnavailable       the origin cannot be reached, or answers 5xx
        OriginTimeout           the origin said nothing in time
      OriginRefused           the origin's own word (401, 403, 404, 429 ...): pass it on as it is
      OriginNonsense          the origin broke HTTP or its promises, or redirected elsewhere
      ContentError            someone sent wrong bytes: blame the sender, never ask it again
        DigestMismatch
        LengthMismatch
      StoreError              permanent for this node until someone acts
        NoSpace
        StoreLocked
        StoreCorrupt
      ConfigError             tell the user this sentence and end with exit code 2
      InputError              a request that is wrong in itself (the gateway makes it a 4xx)
      InvalidTransition       a bug; carries the story

Constructors take positional, picklable arguments only: these errors cross process borders.
"""

from __future__ import annotations


class PasselError(Exception):
    """Root of everything that passel raises on purpose."""


class TransientError(PasselError):
    """Try again later, or somewhere else."""


class PeerUnavailable(TransientError):
    """A peer, a shard or the peer's socket does not answer."""


class PeerBusy(TransientError):
    """A peer answered that it has no free upload slot."""

    def __init__(self, message: str, retry_after_s: float = 0.05) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class OriginUnavailable(TransientError):
    """The origin cannot be reached or answers 5xx, after the retries that its answer allows."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class OriginTimeout(TransientError):
    """The origin said nothing within its deadline."""


class OriginRefused(PasselError):
    """The origin answered with a 4xx of its own; clients get to see that answer.

    ``headers`` holds only what may be passed on (``WWW-Authenticate``, ``Retry-After``,
    ``RateLimit-*``); ``body`` is at most 64 KiB.
    """

    def __init__(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        super().__init__(status, headers, body)
        self.status = status
        self.headers = headers
        self.body = body

    def __str__(self) -> str:
        return f"the origin answered {self.status}"


class OriginNonsense(PasselError):
    """The origin broke HTTP or its own promises, or redirected to a forbidden place."""


class ContentError(PasselError):
    """Someone sent wrong bytes. The sender is to blame and is not asked again."""


class DigestMismatch(ContentError):
    """Bytes do not have the digest that they were announced with."""

    def __init__(self, what: str, expected: str, got: str) -> None:
        super().__init__(what, expected, got)
        self.what = what
        self.expected = expected
        self.got = got

    def __str__(self) -> str:
        return f"{self.what}: expected {self.expected}, got {self.got}"


class LengthMismatch(ContentError):
    """More or fewer bytes came than were announced."""


class StoreError(PasselError):
    """The node's store cannot do what was asked until someone acts."""


class NoSpace(StoreError):
    """The disk, the quota or the configured capacity is used up."""


class StoreLocked(StoreError):
    """Another process owns this store."""


class StoreCorrupt(StoreError):
    """The store holds something that passel did not write there."""


class ConfigError(PasselError):
    """The configuration is wrong; the message is one sentence per mistake, for the user."""


class InputError(PasselError):
    """A request that is wrong in itself: HTTP status and OCI error code are part of it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


class InvalidTransition(PasselError):
    """A machine was asked for something impossible: a bug. The message carries the story."""
