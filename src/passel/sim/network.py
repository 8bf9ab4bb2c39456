"""Links and the transfers over them, which share them max-min fairly.

A transfer uses several links at once: its sender's uplink, its receiver's downlink, and whatever
lies between (rack, zone trunk), or the origin's link. While nothing begins or ends, all rates are
constant, so the end of each transfer is known exactly. When something does, the rates of all are
computed anew: at once if `quantum_s` is 0, else not more often than every quantum. A quantum of a
tenth of a piece's time costs 1 or 2 % of accuracy and makes thousands of transfers cheap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from passel.sim.clock import Clock

Floats = NDArray[np.float64]
Links = NDArray[np.int64]

#: Column of a transfer's links that is not used: a link without a limit.
NO_LINK = 0
#: Rounds of the exact algorithm; what is left then gets a share that is safe but may be too small.
ROUNDS_MAX = 12
#: A transfer with less than this to go is over; far below a byte of any piece.
NOTHING_BYTES = 1e-3


def max_min_rates(links: Links, capacity: Floats, rounds_max: int | None = None) -> Floats:
    """The max-min fair rate of every transfer, bytes per second.

    Parameters
    ----------
    links : (n_transfers, n_columns) int64
        The links that each transfer uses; `NO_LINK` fills up.
    capacity : (n_links,) float64
        Bytes per second; infinite for `NO_LINK`, 0 for a link that is down.
    rounds_max : int, optional
        After so many rounds the rest gets what its tightest link has for each: never more than any
        link carries, perhaps less than is fair.

    Notes
    -----
    In each round every link that is the tightest of all its transfers hands out what it has. Such
    links are independent of each other, so they are taken together.
    Source: Bertsekas and Gallager, "Data Networks", 1992, §6.5.2.
    """
    n_links = capacity.size
    rates = np.zeros(links.shape[0])
    left = capacity.copy()
    open_ = np.arange(links.shape[0])
    n_rounds = 0
    while open_.size:
        n_rounds += 1
        used = links[open_]
        flat = used.ravel()
        n_users = np.bincount(flat, minlength=n_links)
        share = np.full(n_links, np.inf)
        np.divide(np.maximum(left, 0.0), n_users, out=share, where=n_users > 0)
        share[NO_LINK] = np.inf
        of_link = share[used]
        rate = of_link.min(axis=1)
        if rounds_max is not None and n_rounds > rounds_max:
            rates[open_] = rate
            break
        # A link hands out its capacity when none of its transfers is held back elsewhere.
        held_back = (rate[:, np.newaxis] < of_link * (1 - 1e-12)).ravel()
        n_held_back = np.bincount(flat, weights=held_back, minlength=n_links)
        is_tight = (n_held_back == 0) & (n_users > 0)
        is_tight[NO_LINK] = False
        settled = is_tight[used].any(axis=1)
        rates[open_[settled]] = rate[settled]
        taken = np.repeat(rate[settled], used.shape[1])
        left -= np.bincount(used[settled].ravel(), weights=taken, minlength=n_links)
        left[NO_LINK] = np.inf
        open_ = open_[~settled]
    return rates


class Network:
    """All links of a world and what is on its way over them."""

    def __init__(self, clock: Clock, quantum_s: float = 0.0) -> None:
        self._clock = clock
        self.quantum_s = quantum_s
        self._capacity: list[float] = [float("inf")]
        self._capacities: Floats = np.array(self._capacity)
        self._columns = 2
        size = 64
        self._links: Links = np.zeros((size, self._columns), dtype=np.int64)
        self._left: Floats = np.zeros(size)
        self._rate: Floats = np.zeros(size)
        self._deadline: Floats = np.zeros(size)
        self._is_active = np.zeros(size, dtype=np.bool_)
        #: How often each place was given to a transfer: what was said of a former one is void.
        self._lives = [0] * size
        self._then: list[tuple[Callable[..., None], tuple[Any, ...]]] = [(print, ())] * size
        self._free = list(range(size - 1, -1, -1))
        self._shared_at = 0.0
        self._version = 0
        self._is_due = False
        self.n_shares = 0

    # --- links ----------------------------------------------------------------------------------

    def add_link(self, bytes_per_s: float) -> int:
        """A new link; infinity makes it `NO_LINK`, which costs nothing."""
        if bytes_per_s == float("inf"):
            return NO_LINK
        self._capacity.append(bytes_per_s)
        self._capacities = np.array(self._capacity)
        return len(self._capacity) - 1

    def set_capacity(self, link: int, bytes_per_s: float) -> None:
        if link == NO_LINK:
            raise ValueError("this link has no limit, it cannot get another one")
        self._capacity[link] = bytes_per_s
        self._capacities[link] = bytes_per_s
        self._change()

    def capacity(self, link: int) -> float:
        return self._capacity[link]

    # --- transfers ------------------------------------------------------------------------------

    @property
    def n_active(self) -> int:
        return len(self._then) - len(self._free)

    def begin(
        self, links: tuple[int, ...], n_bytes: float, deadline_s: float, then: Any, *args: Any
    ) -> int:
        """Start a transfer; `then(is_whole, *args)` is called at its end, or after `deadline_s`.

        If it returns a number of bytes, the same transfer goes on with them, at the same rate:
        a stream is told piece by piece.
        """
        links = tuple(link for link in links if link != NO_LINK)
        if not self._free:
            self._grow()
        if len(links) > self._columns:
            self._widen(len(links))
        transfer = self._free.pop()
        row = self._links[transfer]
        row[:] = NO_LINK
        row[: len(links)] = links
        self._left[transfer] = n_bytes
        self._rate[transfer] = 0.0
        self._deadline[transfer] = self._clock.now + deadline_s
        self._is_active[transfer] = True
        self._then[transfer] = (then, args)
        self._change()
        return transfer

    def cancel(self, transfer: int) -> float:
        """End a transfer without a word; returns the bytes that did not come."""
        gone_s = self._clock.now - self._shared_at
        left = self._left[transfer] - self._rate[transfer] * gone_s
        self._release(transfer)
        return max(float(left), 0.0)

    def _release(self, transfer: int) -> None:
        self._is_active[transfer] = False
        self._lives[transfer] += 1
        self._free.append(transfer)
        self._change()

    def _grow(self) -> None:
        size = len(self._then)
        self._links = np.concatenate([self._links, np.zeros_like(self._links)])
        self._left = np.concatenate([self._left, np.zeros(size)])
        self._rate = np.concatenate([self._rate, np.zeros(size)])
        self._deadline = np.concatenate([self._deadline, np.zeros(size)])
        self._is_active = np.concatenate([self._is_active, np.zeros(size, dtype=np.bool_)])
        self._lives += [0] * size
        self._then += self._then
        self._free += range(2 * size - 1, size - 1, -1)

    def _widen(self, columns: int) -> None:
        more = np.zeros((self._links.shape[0], columns - self._columns), dtype=np.int64)
        self._links = np.concatenate([self._links, more], axis=1)
        self._columns = columns

    # --- sharing --------------------------------------------------------------------------------

    def _change(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._clock.at(self._shared_at + self.quantum_s, self._share)

    def _share(self) -> None:
        """Bring all transfers up to date, and share the links anew."""
        now = self._clock.now
        self._is_due = False
        self._version += 1
        self.n_shares += 1
        gone_s = now - self._shared_at
        self._shared_at = now
        active = np.flatnonzero(self._is_active)
        if not active.size:
            return
        left = np.maximum(self._left[active] - self._rate[active] * gone_s, 0.0)
        exact = self.quantum_s == 0.0
        rounds = None if exact else ROUNDS_MAX
        rates = max_min_rates(self._links[active], self._capacities, rounds)
        self._left[active] = left
        self._rate[active] = rates
        takes_s = np.full(active.size, np.inf)
        np.divide(left, rates, out=takes_s, where=rates > 0)
        takes_s[left <= NOTHING_BYTES] = 0.0
        ends = np.minimum(now + takes_s, np.maximum(self._deadline[active], now))
        horizon = max(now + self.quantum_s, float(ends.min()))
        soon = np.flatnonzero(ends <= horizon)
        soon = soon[np.argsort(ends[soon], kind="stable")]
        version = self._version
        came = now + takes_s[soon] <= ends[soon]
        for transfer, end, is_whole in zip(
            active[soon].tolist(), ends[soon].tolist(), came.tolist(), strict=True
        ):
            self._clock.at(end, self._end, transfer, self._lives[transfer], version, is_whole)

    def _end(self, transfer: int, life: int, version: int, is_whole: bool) -> None:
        if version != self._version or life != self._lives[transfer]:
            return
        then, args = self._then[transfer]
        more: float | None = then(is_whole, *args)
        if more:
            self._go_on(transfer, life, more)
        elif self._lives[transfer] == life:
            self._release(transfer)

    def _go_on(self, transfer: int, life: int, more: float) -> None:
        now, rate = self._clock.now, float(self._rate[transfer])
        self._left[transfer] = more + rate * (now - self._shared_at)
        end = now + more / rate
        self._deadline[transfer] = max(self._deadline[transfer], end)
        self._clock.at(end, self._end, transfer, life, self._version, True)
        # Only the next end of all was asked for: who comes after it must be asked for anew.
        self._change()
