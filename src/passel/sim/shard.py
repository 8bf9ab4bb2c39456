"""A scheduler shard in virtual time: the shell around one `ShardMachine`. Decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from passel.core import messages as m
from passel.core.shard import ShardMachine
from passel.ids import PeerId

if TYPE_CHECKING:
    from passel.sim.line import Line
    from passel.sim.node import Node
    from passel.sim.world import World

#: The live shell's own number, seconds: how long a restarted shard listens before it leases.
QUIET_S = 2.0
REPORT_TIMEOUT_S = 2.0


class Shard:
    """One shard process; a restart makes a new machine that knows nothing."""

    def __init__(self, world: World, number: int, zone: str) -> None:
        self.world = world
        self.number = number
        self.zone = zone
        self.alive = True
        self.incarnation = 0
        self.n_reports = 0
        self._free_at = 0.0
        self._timer_at = float("inf")
        self.machine = self._new_machine()

    def _new_machine(self) -> ShardMachine:
        self.incarnation += 1
        setup = self.world.setup
        rng = np.random.default_rng([setup.seed, self.number, self.incarnation])
        quiet_until = self.world.clock.now + QUIET_S if self.incarnation > 1 else 0.0
        return ShardMachine(setup.shard_limits, self.incarnation, rng, quiet_until)

    # --- reports --------------------------------------------------------------------------------

    def call(self, line: Line, items: tuple[m.ReportItem, ...]) -> None:
        """A peer's report sets out."""
        delay_s = self.world.control_s(line.node.info.zone, self.zone)
        if delay_s is None:
            self.world.clock.after(REPORT_TIMEOUT_S, line.failed, items)
            return
        self.world.clock.after(delay_s, self._arrive, line, items, delay_s)

    def _arrive(self, line: Line, items: tuple[m.ReportItem, ...], delay_s: float) -> None:
        if not self.alive:
            line.failed(items)
            return
        cost_s = self.world.setup.shard_call_s
        if cost_s:
            # One call after the other: the shard is one process.
            clock = self.world.clock
            self._free_at = max(self._free_at, clock.now) + cost_s
            clock.at(self._free_at, self._take, line, items, delay_s)
        else:
            self._take(line, items, delay_s)

    def _take(self, line: Line, items: tuple[m.ReportItem, ...], delay_s: float) -> None:
        if not self.alive:
            line.failed(items)
            return
        self.n_reports += 1
        info = line.node.info
        mine = self.step(m.Reported(info.peer, info.incarnation, items), info.peer)
        known = self.machine.peers.get(info.peer)
        is_known = known is not None and known.incarnation == info.incarnation
        self.world.clock.after(delay_s, line.answered, self.incarnation, is_known, mine)

    # --- the machine ----------------------------------------------------------------------------

    def step(self, event: m.ShardEvent, caller: PeerId | None = None) -> tuple[m.ShardMessage, ...]:
        """An event for the machine; what it says to the caller comes back."""
        if not self.alive:
            return ()
        out = self.machine.handle(event, self.world.clock.now)
        self._rearm()
        return self._send(out, caller)

    def hear_of(self, gone: m.PeerGone) -> None:
        """Somebody noticed that a peer does not answer."""
        self.step(gone)

    def _rearm(self) -> None:
        at = self.machine.next_timer()
        if at is not None and at < self._timer_at:
            self._timer_at = at
            self.world.clock.at(at, self._on_timer, at, self.incarnation)

    def _on_timer(self, at: float, incarnation: int) -> None:
        if at != self._timer_at or incarnation != self.incarnation or not self.alive:
            return
        self._timer_at = float("inf")
        before = self.machine.n_edges
        out = self.machine.handle_timer(self.world.clock.now)
        self.world.record_epoch(self, self.machine.n_edges - before)
        self._rearm()
        self._send(out, None)

    def _send(self, out: list[m.Deliver], caller: PeerId | None) -> tuple[m.ShardMessage, ...]:
        pending: dict[PeerId, list[m.ShardMessage]] = {}
        for deliver in out:
            pending.setdefault(deliver.peer, []).append(deliver.message)
        if out:
            self.world.record_messages(self, out)
        mine = tuple(pending.pop(caller, ())) if caller is not None else ()
        for peer, messages in pending.items():
            self._speak(self.world.nodes[peer], tuple(messages))
        return mine

    def _speak(self, node: Node, messages: tuple[m.ShardMessage, ...]) -> None:
        delay_s = self.world.control_s(self.zone, node.info.zone)
        if delay_s is not None and node.alive:
            line = node.lines[self.number]
            self.world.clock.after(delay_s, line.heard, self.incarnation, messages)

    # --- death ----------------------------------------------------------------------------------

    def die(self) -> None:
        """The process ends, and all that it knew with it."""
        self.alive = False
        self._timer_at = float("inf")

    def restart(self) -> None:
        """A new life; it makes itself known to those who are alive, as the live one does."""
        self.machine = self._new_machine()
        self.alive = True
        alive = [node for node in self.world.nodes.values() if node.alive]
        self.step(m.PeersExpected(tuple(node.peer for node in alive)))
        for node in alive:
            self._speak(node, ())
