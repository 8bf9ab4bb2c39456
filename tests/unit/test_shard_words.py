"""How shard and peer keep knowing each other: lives of a process, late failures, new hellos."""

from __future__ import annotations

import asyncio
import logging

import pytest

from passel.actors.duties import Duties
from passel.actors.handles import PeerHandle
from passel.actors.links import ShardLink
from passel.actors.outbox import Outbox
from passel.actors.words import Reply
from passel.core.messages import (
    Announced,
    PeerEvent,
    ReportItem,
    Revoke,
    ShardHeard,
    ShardLost,
    ShardMessage,
    ShardReborn,
)
from passel.core.pins import Pinned
from passel.core.versions import OLDEST, WIRE, refusal
from passel.errors import PeerUnavailable
from passel.ids import BlobId, PeerId

ME = PeerId("me")


def word(n: int) -> ShardMessage:
    return Revoke(BlobId(bytes([n]) * 32), n)


class Line:
    """Stands for the calls to one peer: each waits until the test lets it end."""

    def __init__(self) -> None:
        self.life: int | None = 1
        self.sent: list[tuple[ShardMessage, ...]] = []
        self.ends: list[asyncio.Future[None]] = []
        self.lost: list[tuple[PeerId, int]] = []
        duties = Duties(logging.getLogger(__name__))
        self.outbox = Outbox(
            duties, self.deliver, lambda _: self.life, lambda *who: self.lost.append(who)
        )

    async def deliver(self, peer: PeerId, messages: tuple[ShardMessage, ...]) -> None:
        self.sent.append(messages)
        self.ends.append(asyncio.get_running_loop().create_future())
        await self.ends[-1]

    async def ended(self, error: Exception | None = None) -> None:
        if error is None:
            self.ends[-1].set_result(None)
        else:
            self.ends[-1].set_exception(error)
        await asyncio.sleep(0.01)


async def test_one_call_at_a_time_and_the_next_takes_all_that_waits() -> None:
    line = Line()
    line.outbox.post(ME, word(1))
    await asyncio.sleep(0.01)
    line.outbox.post(ME, word(2))
    line.outbox.post(ME, word(3))
    await asyncio.sleep(0.01)
    assert line.sent == [(word(1),)]
    await line.ended()
    assert line.sent == [(word(1),), (word(2), word(3))]
    await line.ended()
    assert line.lost == []
    assert line.outbox.n_calls == 2


async def test_a_call_that_fails_late_says_nothing_of_the_next_life() -> None:
    line = Line()
    line.outbox.post(ME, word(1))
    await asyncio.sleep(0.01)
    line.outbox.post(ME, word(2))
    line.life = 2
    line.outbox.post(ME, word(3))
    await line.ended(PeerUnavailable("it died"))
    assert line.lost == [(ME, 1)]
    assert line.sent[1:] == [(word(3),)], "what was meant for the first life went with it"
    await line.ended()
    line.outbox.post(ME, word(4))
    await asyncio.sleep(0.01)
    assert line.sent[-1] == (word(4),)
    await line.ended()


async def test_what_waits_for_a_life_that_ended_is_dropped() -> None:
    line = Line()
    line.outbox.post(ME, word(1))
    await asyncio.sleep(0.01)
    line.outbox.post(ME, word(2))
    await line.ended(PeerUnavailable("it died"))
    assert line.sent == [(word(1),)]
    assert line.lost == [(ME, 1)]


class AnsweringShard:
    def __init__(self, replies: list[Reply]) -> None:
        self.replies = replies
        self.is_done = asyncio.Event()

    async def report(
        self,
        peer: PeerId,
        incarnation: int,
        items: tuple[ReportItem, ...],
        timeout_s: float,
        unless: asyncio.Future[None],
    ) -> Reply:
        if not self.replies:
            self.is_done.set()
            await unless
            raise PeerUnavailable("it died")
        return self.replies.pop(0)


async def reborn_after(replies: list[Reply]) -> int:
    """How often the peer's machine hears that it has to announce itself."""
    events: list[PeerEvent] = []
    link = ShardLink(0, ME, 1, events.append)
    link.handle = shard = AnsweringShard(replies)  # type: ignore[assignment]
    task = asyncio.get_running_loop().create_task(link.run())
    await asyncio.wait_for(shard.is_done.wait(), 5)
    task.cancel()
    return sum(isinstance(event, ShardReborn) for event in events)


async def test_a_peer_that_was_taken_for_dead_announces_itself_again() -> None:
    assert await reborn_after([Reply(7, True, (), 0.01), Reply(7, True, (), 0.01)]) == 0
    assert await reborn_after([Reply(7, True, (), 0.01), Reply(7, False, (), 0.01)]) == 1
    assert await reborn_after([Reply(7, True, (), 0.01), Reply(8, True, (), 0.01)]) == 1


async def test_a_word_of_the_first_life_does_not_cost_the_answer_to_the_first_report() -> None:
    """A shard speaks up when it hears a hello; what the answer brings would be lost with it."""
    events: list[PeerEvent] = []
    link = ShardLink(0, ME, 1, events.append)
    link.handle = shard = AnsweringShard([])  # type: ignore[assignment]
    task = asyncio.get_running_loop().create_task(link.run())
    link.tell(Announced(), hurry=True)
    await asyncio.wait_for(shard.is_done.wait(), 5)
    assert link.heard(7)
    await asyncio.sleep(0.05)
    assert link.n_calls == 1, "it still waits for the answer"
    task.cancel()
    assert events == []


async def test_a_report_to_the_former_life_does_not_hold_up_the_announcement() -> None:
    shard = AnsweringShard([Reply(7, True, (), 0.01)])
    events: list[PeerEvent] = []
    link = ShardLink(0, ME, 1, events.append)
    link.handle = shard  # type: ignore[assignment]
    task = asyncio.get_running_loop().create_task(link.run())
    await asyncio.wait_for(shard.is_done.wait(), 5)
    assert link.n_calls == 2, "the second one hangs"
    assert link.heard(8)
    shard.replies.append(Reply(8, True, (), 0.01))
    shard.is_done.clear()
    await asyncio.wait_for(shard.is_done.wait(), 1)
    task.cancel()
    assert [type(event) for event in events].count(ShardReborn) == 1
    assert not link.heard(7)


async def test_a_peer_that_the_shard_does_not_understand_says_why_and_tries_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    why = refusal(99, 98, "n1")
    refused = Reply(7, True, (), 0.01, why)
    shard = AnsweringShard([refused, refused, Reply(7, True, (), 0.01)])
    events: list[PeerEvent] = []
    link = ShardLink(0, ME, 1, events.append)
    link.handle = shard  # type: ignore[assignment]
    link.tell(Announced(), hurry=True)
    task = asyncio.get_running_loop().create_task(link.run())
    await asyncio.wait_for(shard.is_done.wait(), 5)
    task.cancel()
    kinds = [type(event) for event in events]
    # Without the shard its reads pass through; each time it says hello again.
    assert kinds[:4] == [ShardLost, ShardReborn, ShardLost, ShardReborn]
    assert ShardHeard in kinds
    assert link.refused == "", "it was let in at last"
    assert caplog.text.count(why) == 1, "said once"


def test_who_understands_whom() -> None:
    assert refusal(WIRE, OLDEST, "n1") == ""
    assert refusal(WIRE + 1, WIRE, "n1") == "", "the next version understands this one"
    newer = refusal(WIRE + 2, WIRE + 1, "n1")
    assert "node n1 speaks wire version" in newer
    assert "upgrade the node of the controller" in newer
    assert "upgrade node n1" in refusal(0, 0, "n1")


async def test_an_actor_of_an_older_version_is_no_bug_of_ours() -> None:
    handle = PeerHandle(ME)
    handle._actor = object()
    with pytest.raises(PeerUnavailable, match="of another version: it knows no take_pins"):
        await handle.take_pins(Pinned(1, frozenset()), 1.0)
