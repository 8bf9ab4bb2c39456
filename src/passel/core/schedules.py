"""Preheats that come again: when each is due, what a missed or failed one means. Wall time, UTC.

::

    planned ──► due ──► running ──► (ran) planned for the next time
                           └──────► (failed) due again in a minute, later and later, at the latest
                                    at the next regular time

What is kept across a restart of the controller is the schedule with its next time. However many
times were missed while nobody ran, it runs once, and then at the next regular time.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, replace

from passel.errors import InputError

SCHEDULES_MAX = 200
EVERY_MIN_S = 60.0
EVERY_MAX_S = 366 * 86_400.0
RETRY_S = 60.0
RETRY_MAX_S = 900.0
#: Each run may wait for a registry.
RUNNING_MAX = 4
DAY_S = 86_400.0
_CLOCK = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")


@dataclass(frozen=True, slots=True)
class Rule:
    """Every so many seconds, or each day at so many seconds after midnight UTC: one of both."""

    every_s: float | None
    at_s: float | None

    def next_after(self, wall_s: float, anchor_s: float) -> float:
        """The first regular time after `wall_s`; periods are counted from `anchor_s`."""
        if self.every_s is not None:
            n_periods = max(0, math.floor((wall_s - anchor_s) / self.every_s) + 1)
            return anchor_s + n_periods * self.every_s
        assert self.at_s is not None
        today = math.floor(wall_s / DAY_S) * DAY_S + self.at_s
        return today if today > wall_s else today + DAY_S

    def __str__(self) -> str:
        if self.every_s is not None:
            return f"every {self.every_s:g} s"
        minutes = round((self.at_s or 0.0) / 60)
        return f"at {minutes // 60:02}:{minutes % 60:02} UTC"


def make_rule(every_s: float | None, at: str | None) -> Rule:
    """The rule that somebody asked for; `at` is ``HH:MM``. Raises InputError."""
    if (every_s is None) == (at is None):
        raise InputError(400, "UNSUPPORTED", "a schedule is either every so often, or at HH:MM")
    if at is not None:
        match = _CLOCK.fullmatch(at)
        if match is None:
            text = f"expected HH:MM between 00:00 and 23:59 (UTC), got {at[:20]!r}"
            raise InputError(400, "UNSUPPORTED", text)
        return Rule(None, int(match[1]) * 3600.0 + int(match[2]) * 60.0)
    assert every_s is not None
    if not EVERY_MIN_S <= every_s <= EVERY_MAX_S:
        text = f"a schedule is for every {EVERY_MIN_S:g} s at most often, and once a year at least"
        raise InputError(400, "UNSUPPORTED", text)
    return Rule(every_s, None)


@dataclass(frozen=True, slots=True)
class Schedule:
    """What is to be preheated, and when. `last_s` None: it never ran."""

    what: str
    to: str
    platform: str
    ttl_s: float | None
    rule: Rule
    created_s: float
    due_s: float
    last_s: float | None = None
    last_job: str = ""
    trouble: str = ""
    n_failed: int = 0

    @property
    def id(self) -> str:
        """The same wish always has the same."""
        lines = (self.what, self.to, self.platform, str(self.rule))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


class ScheduleMachine:
    """All schedules of a cluster. What `plan`, `ran` and `drop` return is to be written down."""

    def __init__(self) -> None:
        self.schedules: dict[str, Schedule] = {}
        self.running: set[str] = set()

    def plan(
        self, what: str, to: str, platform: str, ttl_s: float | None, rule: Rule, wall_s: float
    ) -> Schedule:
        """A new schedule; the same again only takes the new time to live. Raises InputError.

        One that is every so often begins at once.
        """
        due_s = wall_s if rule.every_s is not None else rule.next_after(wall_s, wall_s)
        schedule = Schedule(what, to, platform, ttl_s, rule, wall_s, due_s)
        known = self.schedules.get(schedule.id)
        if known is not None:
            schedule = replace(known, ttl_s=ttl_s)
        elif len(self.schedules) >= SCHEDULES_MAX:
            text = f"there are {SCHEDULES_MAX} schedules already: take some away"
            raise InputError(503, "TOOMANYREQUESTS", text)
        self.schedules[schedule.id] = schedule
        return schedule

    def restore(self, schedule: Schedule) -> None:
        """A schedule of the controller's former life."""
        self.schedules[schedule.id] = schedule

    def drop(self, name: str) -> Schedule:
        """There is no such schedule any more. Raises InputError when there was none."""
        schedule = self.schedules.pop(name, None)
        if schedule is None:
            text = f"there is no schedule {name}: see passel schedules"
            raise InputError(404, "UNSUPPORTED", text)
        self.running.discard(name)
        return schedule

    def due(self, wall_s: float) -> list[Schedule]:
        """Those that are to run now, each until `ran` is called for it."""
        found: list[Schedule] = []
        for name, schedule in self.schedules.items():
            # A clock that went back must not put a run off beyond its regular time.
            regular = schedule.rule.next_after(wall_s, schedule.created_s)
            if schedule.due_s > max(regular, schedule.created_s):
                schedule = self.schedules[name] = replace(schedule, due_s=regular)
            if name not in self.running and schedule.due_s <= wall_s:
                found.append(schedule)
        found.sort(key=lambda each: each.due_s)
        found = found[: RUNNING_MAX - len(self.running)]
        self.running.update(each.id for each in found)
        return found

    def ran(self, name: str, job: str, trouble: str, wall_s: float) -> Schedule | None:
        """A run is over: it became `job`, or did not because of `trouble`. None: it was dropped."""
        schedule = self.schedules.get(name)
        if schedule is None or name not in self.running:
            return None
        self.running.discard(name)
        due_s = schedule.rule.next_after(wall_s, schedule.created_s)
        n_failed = 0
        if trouble:
            n_failed = schedule.n_failed + 1
            due_s = min(due_s, wall_s + min(RETRY_S * 2.0 ** min(n_failed - 1, 10), RETRY_MAX_S))
        schedule = replace(
            schedule,
            due_s=due_s,
            last_s=wall_s,
            last_job=job or schedule.last_job,
            trouble=trouble,
            n_failed=n_failed,
        )
        self.schedules[name] = schedule
        return schedule

    def check_invariants(self) -> None:
        """What must hold between any two calls."""
        assert len(self.schedules) <= SCHEDULES_MAX
        assert len(self.running) <= RUNNING_MAX
        assert self.running <= self.schedules.keys()
        assert all(name == each.id for name, each in self.schedules.items())
