#!/usr/bin/env python3
"""Says when schedules tick around changes of the clock, minute by minute: the second opinion on `flow`'s schedules.

    .venv/bin/python testkit/schedule_oracle.py '{"tzdb": "2025b", ...}' > answers.jsonl

It knows the written rules (docs/concepts/time.md) and none of the program's ways of finding ticks: it looks at every minute of
real time, asks the zone what its clock shows, and decides for that minute alone. Slow and plain on purpose.

The question is its argument: `{"tzdb": "2025b", "zones": [...], "schedules": [[text, grain], ...], "years": [2024, 2026],
"extra": [[zone, date], ...]}`. Each answer is a line for one window, three days to both sides of one change of one zone's
clock: `{"zone", "at", "from", "to", "before", "after", "ticks": [[[tick, start, end, ds, hour], ...] per schedule]}`. Zones whose
clock never changes in these years get windows around the last Sundays of March and October. Times are minutes since 1970
UTC, `before` and `after` the offsets in minutes. `start` to `hour` are null for a tick that covers nothing, and false where
the tick before it lies outside what was looked at.
"""

from __future__ import annotations

import json
import sys
import zoneinfo
from datetime import date, datetime, timedelta, timezone

import tzdata

DAY = 24 * 60
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
AROUND = 3 * DAY
# Looked at before a window, for what the clock showed and which tick came last.
LEAD = 2 * DAY
MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
WEEKDAYS = "sun mon tue wed thu fri sat".split()


class Cron:
    """Five fields as sets of numbers."""

    def __init__(self, text: str) -> None:
        minute, hour, day, month, weekday = text.split()
        self.minutes = field(minute, 0, 59)
        self.hours = field(hour, 0, 23)
        self.days = field(day, 1, 31)
        self.months = field(month, 1, 12, MONTHS, 1)
        self.weekdays = {n % 7 for n in field(weekday, 0, 7, WEEKDAYS, 0)}
        self.either_day = not day.startswith("*") and not weekday.startswith("*")
        self.is_elapsed = len(self.hours) == 24
        self.known: dict[int, bool] = {}

    def names_date(self, day_number: int) -> bool:
        if day_number not in self.known:
            when = date.fromordinal(day_number + EPOCH_ORDINAL)
            by_day, by_weekday = when.day in self.days, when.isoweekday() % 7 in self.weekdays
            both = (by_day or by_weekday) if self.either_day else (by_day and by_weekday)
            self.known[day_number] = when.month in self.months and both
        return self.known[day_number]

    def names(self, shown: int) -> bool:
        """Whether it names a moment of the wall clock, in minutes since 1970 on that clock."""
        day_number, minute = divmod(shown, DAY)
        return minute % 60 in self.minutes and minute // 60 in self.hours and self.names_date(day_number)


def field(text: str, first: int, last: int, names: list[str] | None = None, names_from: int = 0) -> set[int]:
    def number(word: str) -> int:
        return names.index(word.lower()) + names_from if names and word.lower() in names else int(word)

    found: set[int] = set()
    for item in text.split(","):
        item, _, step = item.partition("/")
        if item == "*":
            low, high = first, last
        elif "-" in item:
            low, high = map(number, item.split("-"))
        else:
            low = number(item)
            high = last if step else low
        found.update(range(low, high + 1, int(step or 1)))
    return found


class Window:
    """Every minute of a stretch of real time: what the clock shows, what it showed before, which day it is."""

    def __init__(self, zone: zoneinfo.ZoneInfo, start: int, end: int) -> None:
        self.start, self.end = start, end
        self.shown: list[int] = []
        # Moments that have their turn at this minute: shown for the first time, or jumped over just before.
        self.due: list[list[int]] = []
        # The latest date shown so far: a clock that is set back over midnight does not bring yesterday back.
        self.day: list[int] = []
        seen: set[int] = set()
        when = EPOCH + timedelta(minutes=start)
        step = timedelta(minutes=1)
        for minute in range(start, end):
            offset = zone.utcoffset(when.astimezone(zone))
            shown = minute + offset // step
            due = []
            if self.shown and shown > self.shown[-1] + 1:
                due = [m for m in range(self.shown[-1] + 1, shown) if m not in seen]
                seen.update(due)
            if shown not in seen:
                due.append(shown)
                seen.add(shown)
            self.due.append(due)
            self.day.append(max(shown // DAY, self.day[-1] if self.day else shown // DAY))
            self.shown.append(shown)
            when += step

    def ticks(self, schedule: str) -> list[int]:
        """The minutes at which a schedule ticks."""
        every = every_minutes(schedule)
        if every is not None:
            return [m for m in range(self.start, self.end) if m % every == 0]
        cron = Cron(schedule)
        if cron.is_elapsed:
            return [self.start + n for n, shown in enumerate(self.shown) if cron.names(shown)]
        return [self.start + n for n, due in enumerate(self.due) if any(cron.names(moment) for moment in due)]

    def grain(self, minute: int, grain: str) -> int:
        """The number of the grain that a minute lies in."""
        if grain == "hour":
            return minute // 60
        day = self.day[minute - self.start]
        if grain == "day":
            return day
        if grain == "week":
            return (day + 3) // 7
        when = date.fromordinal(day + EPOCH_ORDINAL)
        return when.year * 12 + when.month - 1

    def first_minute(self, minute: int, grain: str) -> int | None:
        """The first minute of the grain that a minute lies in; None when it lies before what was looked at."""
        number = self.grain(minute, grain)
        if grain == "hour":
            return number * 60
        while minute > self.start and self.grain(minute - 1, grain) == number:
            minute -= 1
        return minute if minute > self.start else None

    def covered(self, before: int | None, tick: int, grain: str) -> list:
        """The start, end, ds and hour of what a tick's run covers."""
        if before is None:
            return [False] * 4
        start, end = self.first_minute(before, grain), self.first_minute(tick, grain)
        if end is None:
            return [False] * 4
        if start == end:
            return [None] * 4
        if start is None:
            return [False] * 4
        # Named by its last grain: by the last minute before its end.
        last = end - 1
        if grain == "hour":
            day, minute = divmod(last, DAY)
            return [start, end, str(date.fromordinal(day + EPOCH_ORDINAL)), minute // 60]
        if grain == "day":
            return [start, end, str(date.fromordinal(self.day[last - self.start] + EPOCH_ORDINAL)), None]
        # The last day of a week or a month is the one before the next begins, also when the zone skipped it.
        return [start, end, str(date.fromordinal(first_day(self.grain(tick, grain), grain) - 1)), None]


def first_day(number: int, grain: str) -> int:
    if grain == "week":
        return number * 7 - 3 + EPOCH_ORDINAL
    return date(number // 12, number % 12 + 1, 1).toordinal()


def every_minutes(text: str) -> int | None:
    words = text.split()
    if words[0] != "every":
        return None
    number = int(words[1]) if len(words) == 3 else 1
    return number * (60 if words[-1].startswith("hour") else 1)


def minutes_of(when: datetime) -> int:
    return int((when - EPOCH).total_seconds()) // 60


def changes(zone: zoneinfo.ZoneInfo, first: int, last: int) -> list[int]:
    """The minutes at which the zone's clock is set, looked for hour by hour."""

    def offset(minute: int) -> timedelta:
        return (EPOCH + timedelta(minutes=minute)).astimezone(zone).utcoffset()

    found = []
    before = offset(first)
    for hour in range(first + 60, last, 60):
        after = offset(hour)
        if after != before:
            found.append(next(m for m in range(hour - 59, hour + 1) if offset(m) == after))
        before = after
    return found


def last_sunday(year: int, month: int) -> int:
    day = next(d for d in range(31, 0, -1) if date(year, month, d).isoweekday() == 7)
    return minutes_of(datetime(year, month, day, 1, tzinfo=timezone.utc))


def answer(question: dict) -> None:
    first_year, last_year = question["years"]
    first = minutes_of(datetime(first_year, 1, 1, tzinfo=timezone.utc))
    last = minutes_of(datetime(last_year + 1, 1, 1, tzinfo=timezone.utc))
    windows = []
    for name in question["zones"]:
        found = changes(zoneinfo.ZoneInfo(name), first, last)
        still = [last_sunday(y, m) for y in range(first_year, last_year + 1) for m in (3, 10)]
        windows += [(name, minute) for minute in found or still]
    for name, day in question["extra"]:
        noon = minutes_of(datetime.fromisoformat(day + "T12:00:00+00:00"))
        found = changes(zoneinfo.ZoneInfo(name), noon - 2 * DAY, noon + 2 * DAY)
        if not found:
            sys.exit(f"the clock of {name} does not change around {day}")
        windows += [(name, minute) for minute in found]
    for name, minute in windows:
        zone = zoneinfo.ZoneInfo(name)
        start, end = minute - AROUND, minute + AROUND
        window = Window(zone, start - LEAD, end)
        all_ticks = []
        for schedule, grain in question["schedules"]:
            before, ticks = None, []
            for tick in window.ticks(schedule):
                if tick >= start:
                    ticks.append([tick, *window.covered(before, tick, grain)])
                before = tick
            all_ticks.append(ticks)
        at = window.start
        line = {
            "zone": name,
            "at": minute,
            "from": start,
            "to": end,
            "before": window.shown[minute - 1 - at] - (minute - 1),
            "after": window.shown[minute - at] - minute,
            "ticks": all_ticks,
        }
        print(json.dumps(line))


def main() -> None:
    # The packaged rules and not the machine's, whatever its age.
    zoneinfo.reset_tzpath(to=[])
    question = json.loads(sys.argv[1])
    if tzdata.IANA_VERSION != question["tzdb"]:
        sys.exit(
            f"the program has the time zones of {question['tzdb']} and Python those of {tzdata.IANA_VERSION}\n"
            "hint: pin the matching tzdata in testkit/requirements.txt and run make setup"
        )
    answer(question)


if __name__ == "__main__":
    main()
