"""Schedules in virtual time: regular, missed, failed, over a clock that jumps."""

from __future__ import annotations

import random

import pytest

from passel.core.schedules import (
    RETRY_MAX_S,
    RETRY_S,
    RUNNING_MAX,
    SCHEDULES_MAX,
    Rule,
    Schedule,
    ScheduleMachine,
    make_rule,
)
from passel.errors import InputError

HOUR = 3600.0
DAY = 24 * HOUR
#: Midnight of some day.
MIDNIGHT = 20_000 * DAY
SIX_HOURS = Rule(6 * HOUR, None)


def plan(machine: ScheduleMachine, rule: Rule, now: float, what: str = "lab/app:v1") -> Schedule:
    return machine.plan(what, "all", "all", None, rule, now)


def names(machine: ScheduleMachine, now: float) -> list[str]:
    found = [each.what for each in machine.due(now)]
    machine.check_invariants()
    return found


def test_every_six_hours_from_now_on() -> None:
    machine = ScheduleMachine()
    one = plan(machine, SIX_HOURS, 100.0)
    assert names(machine, 100.0) == ["lab/app:v1"], "the first one at once"
    assert names(machine, 101.0) == [], "it runs already"
    machine.ran(one.id, "job1", "", 130.0)
    assert names(machine, 100.0 + 6 * HOUR - 1) == []
    assert names(machine, 100.0 + 6 * HOUR) == ["lab/app:v1"], "counted from the beginning"


def test_each_day_at_a_time() -> None:
    machine = ScheduleMachine()
    rule = make_rule(None, "03:30")
    one = plan(machine, rule, MIDNIGHT + 4 * HOUR)
    assert one.due_s == MIDNIGHT + DAY + 3.5 * HOUR, "today's is over"
    assert names(machine, one.due_s - 1) == []
    assert names(machine, one.due_s + 1) == ["lab/app:v1"]
    again = machine.ran(one.id, "job1", "", one.due_s + 2)
    assert again is not None
    assert again.due_s == one.due_s + DAY
    assert str(rule) == "at 03:30 UTC"


def test_missed_runs_run_once() -> None:
    machine = ScheduleMachine()
    one = plan(machine, SIX_HOURS, 0.0)
    machine.due(0.0)
    kept = machine.ran(one.id, "job1", "", 1.0)
    assert kept is not None
    reborn = ScheduleMachine()
    reborn.restore(kept)
    late = 5 * DAY + 7.0
    assert names(reborn, late) == ["lab/app:v1"]
    after = reborn.ran(one.id, "job2", "", late)
    assert after is not None
    assert after.due_s == 5 * DAY + 6 * HOUR
    assert names(reborn, late + 10) == []


def test_one_that_was_running_when_its_controller_died_runs_again() -> None:
    machine = ScheduleMachine()
    one = plan(machine, SIX_HOURS, 0.0)
    machine.due(0.0)
    reborn = ScheduleMachine()
    reborn.restore(one)
    assert names(reborn, 3.0) == ["lab/app:v1"]


def test_a_failed_run_is_tried_again_later_and_later() -> None:
    machine = ScheduleMachine()
    one = plan(machine, SIX_HOURS, 0.0)
    now, waits = 0.0, []
    for _ in range(8):
        assert names(machine, now) == ["lab/app:v1"]
        after = machine.ran(one.id, "", "the registry is down", now)
        assert after is not None
        assert after.trouble == "the registry is down"
        waits.append(after.due_s - now)
        now = after.due_s
    assert waits[:3] == [RETRY_S, 2 * RETRY_S, 4 * RETRY_S]
    assert waits[-1] == RETRY_MAX_S
    machine.due(now)
    good = machine.ran(one.id, "job", "", now)
    assert good is not None
    assert (good.trouble, good.n_failed, good.due_s) == ("", 0, 6 * HOUR)
    soon = machine.due(6 * HOUR - 1) or machine.due(12 * HOUR - 1)
    machine.ran(soon[0].id, "", "down", 12 * HOUR - 1)
    assert machine.schedules[one.id].due_s == 12 * HOUR, "no later than the next regular time"


def test_a_clock_that_goes_back_puts_nothing_off() -> None:
    machine = ScheduleMachine()
    one = plan(machine, make_rule(None, "03:30"), MIDNIGHT)
    back = MIDNIGHT - 100 * DAY
    assert names(machine, back) == []
    assert machine.schedules[one.id].due_s <= max(back + DAY, MIDNIGHT)


def test_the_same_again_is_the_same_and_dropped_is_dropped() -> None:
    machine = ScheduleMachine()
    one = plan(machine, SIX_HOURS, 0.0)
    assert plan(machine, SIX_HOURS, 50.0).created_s == 0.0
    assert len(machine.schedules) == 1
    machine.due(0.0)
    machine.drop(one.id)
    assert machine.ran(one.id, "job", "", 1.0) is None
    with pytest.raises(InputError, match="there is no schedule"):
        machine.drop(one.id)


@pytest.mark.parametrize(
    ("every_s", "at", "sentence"),
    [
        (None, None, "either every so often, or at"),
        (3600.0, "10:00", "either every so often, or at"),
        (1.0, None, "every 60 s at most often"),
        (1e9, None, "once a year at least"),
        (None, "24:00", "expected HH:MM between 00:00 and 23:59"),
        (None, "9:5", "expected HH:MM"),
    ],
)
def test_rules_that_cannot_be(every_s: float | None, at: str | None, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        make_rule(every_s, at)


def test_schedules_are_bounded() -> None:
    machine = ScheduleMachine()
    for number in range(SCHEDULES_MAX):
        plan(machine, SIX_HOURS, 0.0, f"lab/app:v{number}")
    with pytest.raises(InputError, match="schedules already"):
        plan(machine, SIX_HOURS, 0.0, "lab/app:new")
    assert len(machine.due(0.0)) == RUNNING_MAX
    assert machine.due(0.0) == []
    machine.check_invariants()


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_forgotten_and_nothing_runs_twice_in_its_time(seed: int) -> None:
    rng = random.Random(seed)
    machine = ScheduleMachine()
    plan(machine, Rule(1000.0, None), 0.0)
    now, ran = 0.0, []
    while now < 20_000:
        for each in machine.due(now):
            machine.check_invariants()
            if rng.random() < 0.1:  # the controller dies with it
                reborn = ScheduleMachine()
                reborn.restore(machine.schedules[each.id])
                machine = reborn
                continue
            ran.append(now)
            machine.ran(each.id, "job", "", now)
        now += rng.uniform(1, 300)
    periods = [int(at // 1000) for at in ran]
    assert periods == sorted(set(periods)), "once in each period"
    assert len(periods) >= 19
