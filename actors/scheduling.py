"""Scheduled preheats on the controller: a shell around the `ScheduleMachine`."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from passel.actors.duties import Duties
from passel.actors.handles import strike_out, write_down, written_down
from passel.actors.pinning import stamp
from passel.client.targets import parse_target
from passel.core.jobs import check_to
from passel.core.schedules import Rule, Schedule, ScheduleMachine, make_rule
from passel.errors import InputError

log = logging.getLogger(__name__)

KEY = "schedule/"
TICK_S = 1.0

#: Submits a preheat; the job's facts, or InputError.
Submit = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class Scheduling:
    """Belongs to the controller's event loop."""

    def __init__(self, submit: Submit) -> None:
        self._submit = submit
        self._machine = ScheduleMachine()

    async def restore(self) -> None:
        """Take up the schedules of a former life."""
        for value in await asyncio.to_thread(written_down, KEY):
            try:
                fields = json.loads(value)
                self._machine.restore(Schedule(**{**fields, "rule": Rule(**fields["rule"])}))
            except (ValueError, KeyError, TypeError) as error:
                log.error("schedule_unreadable why=%s", error)

    async def run(self, duties: Duties, has_nodes: Callable[[], bool]) -> None:
        """For ever: begin what is due, once the controller knows nodes to do it."""
        while True:
            for schedule in self._machine.due(time.time()) if has_nodes() else ():
                duties.start(self._run(schedule))
            await asyncio.sleep(TICK_S)

    async def _run(self, schedule: Schedule) -> None:
        order = {
            "what": schedule.what,
            "to": schedule.to,
            "platform": schedule.platform,
            "ttl_s": schedule.ttl_s,
        }
        job = trouble = ""
        try:
            job = str((await self._submit(order))["job"])
        except InputError as error:
            trouble = error.message
        ran = self._machine.ran(schedule.id, job, trouble, time.time())
        if ran is not None:
            level = logging.WARNING if trouble else logging.INFO
            text = "schedule_ran schedule=%s what=%s job=%s trouble=%s"
            log.log(level, text, ran.id, ran.what, job, trouble)
            await asyncio.to_thread(write_down, KEY + ran.id, _written(ran))
            if ran.id not in self._machine.schedules:  # dropped while it was written
                await asyncio.to_thread(strike_out, KEY + ran.id)

    async def plan(self, fields: dict[str, Any], ttl_s: float | None) -> dict[str, Any]:
        """A preheat that comes again. Raises InputError."""
        every_s = fields.get("every_s")
        at = fields.get("at")
        rule = make_rule(
            None if every_s is None else float(every_s), None if at is None else str(at)
        )
        what, to = str(fields["what"]), check_to(str(fields["to"]))
        parse_target(what)
        platform = str(fields["platform"])
        schedule = self._machine.plan(what, to, platform, ttl_s, rule, time.time())
        await asyncio.to_thread(write_down, KEY + schedule.id, _written(schedule))
        return _facts(schedule)

    async def drop(self, name: str) -> dict[str, Any]:
        """It does not come again; what runs goes on. Raises InputError."""
        schedule = self._machine.drop(name)
        await asyncio.to_thread(strike_out, KEY + name)
        return _facts(schedule)

    def all(self) -> dict[str, Any]:
        """Every schedule, for people and programs."""
        return {"schedules": [_facts(each) for each in self._machine.schedules.values()]}


def _facts(schedule: Schedule) -> dict[str, Any]:
    return {
        "schedule": schedule.id,
        "what": schedule.what,
        "to": schedule.to,
        "platform": schedule.platform,
        "when": str(schedule.rule),
        "next": stamp(schedule.due_s),
        "last": None if schedule.last_s is None else stamp(schedule.last_s),
        "job": schedule.last_job,
        "trouble": schedule.trouble,
    }


def _written(schedule: Schedule) -> bytes:
    return json.dumps(asdict(schedule)).encode()
