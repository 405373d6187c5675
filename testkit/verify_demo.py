#!/usr/bin/env python3
"""Checks the demo's lake against its source: nothing missing, nothing doubled, nothing half.

    .venv/bin/python testkit/verify_demo.py headworks-demo

The expected rows come from SQL over the production database (SQLite), written apart from the jobs; the actual ones from the
lake, read by DuckDB through the catalog. Prints a line per check and ends with `N checks passed`; the exit code is 1 when one
differs, and 2 when the folder cannot be checked.
"""

from __future__ import annotations

import argparse
import glob
import sqlite3
import sys
import time
from collections import Counter
from datetime import date, timedelta
from pathlib import Path

import duckdb

LATE_MINUTES = 15
BY_DAY = ["flights", "weather"]
WHOLE = ["airlines", "airports", "planes"]
COMPUTED = ["flights_flat", "carrier_daily", "company_metrics", "route_delays_7d"]
HOURLY, FROM_HOURS = "departures_hourly", "departures_daily"
# The last day of jobs that stop before the year does: a UTC day of the hourly one, a New York day of the other.
ENDS = {HOURLY: date(2013, 2, 1), FROM_HOURS: date(2013, 1, 31)}
DAY = timedelta(days=1)


class Report:
    """Prints a line per check and counts."""

    def __init__(self) -> None:
        self.passed, self.failed = 0, 0

    def check(self, name: str, ok: bool, detail: str = "") -> None:
        self.passed += ok
        self.failed += not ok
        print(f"{'ok  ' if ok else 'FAIL'}  {name}{': ' + detail if detail else ''}", flush=True)

    def same_rows(self, name: str, expected: list, actual: list) -> None:
        """Compares two lists of rows as multisets."""
        rows = len(expected)
        if len(actual) == rows and Counter(expected) == Counter(actual):
            return self.check(name, True, f"{rows:,} rows")
        expected, actual = Counter(map(rounded, expected)), Counter(map(rounded, actual))
        if expected == actual:
            return self.check(name, True, f"{rows:,} rows")
        missing, extra = expected - actual, actual - expected
        lines = [f"{sum(missing.values()):,} rows missing, {sum(extra.values()):,} too many or wrong"]
        lines += [f"        missing  {row}" for row in sorted(missing, key=str)[:3]]
        lines += [f"        too many {row}" for row in sorted(extra, key=str)[:3]]
        self.check(name, False, "\n".join(lines))


def rounded(row: tuple) -> tuple:
    """Numbers without their last bits: two engines may add up the same mean in another order."""
    return tuple(round(v, 9) if isinstance(v, float) else v for v in row)


def open_source(path: Path, data: Path) -> sqlite3.Connection:
    """The production tables in memory, with `ds` and `t` (seconds since 1970) beside the source's own columns.

    `ds` comes from the source's year, month and day, not from its time stamp: they are New York's calendar.
    """
    db = sqlite3.connect(":memory:")
    if path.exists():
        db.execute("attach ? as production", (str(path),))
        origin = "production."
    else:
        print(f"note: no {path}; the Parquet files in {data} are the source instead")
        load_parquet(db, data)
        origin = "main.raw_"
    for table in BY_DAY:
        seconds = seconds_of(db, f"{origin}{table}")
        db.execute(f"""create table {table} as
            select printf('%04d-%02d-%02d', year, month, day) as ds, {seconds} as t, * from {origin}{table}""")
    for table in WHOLE:
        db.execute(f"create table {table} as select * from {origin}{table}")
    db.executescript(f"""
        create index flights_at on flights (ds); create index weather_at on weather (origin, t);
        create index planes_at on planes (tailnum); create index airports_at on airports (faa);
        create view flown as select *, dep_time is null as cancelled,
            dep_time is null or dep_delay >= {LATE_MINUTES} as late,
            case when dep_time is null then 0 else distance end as miles from flights;""")
    return db


def load_parquet(db: sqlite3.Connection, data: Path) -> None:
    for table in BY_DAY + WHOLE:
        found = duckdb.sql(f"select * from read_parquet('{data / (table + '.parquet')}')")
        names = [f'"{c}"' if c != "time_hour" else "epoch(time_hour)::bigint as time_hour" for c in found.columns]
        db.execute(f"create table raw_{table} ({', '.join(found.columns)})")
        slots = ", ".join("?" * len(names))
        db.executemany(f"insert into raw_{table} values ({slots})", found.project(", ".join(names)).fetchall())


def seconds_of(db: sqlite3.Connection, table: str) -> str:
    """SQL for `time_hour` in seconds: SQLite has no time type, so it may be text or a number of any unit."""
    kind, sample = db.execute(f"select typeof(time_hour), time_hour from {table} limit 1").fetchone()
    if kind == "text":
        return "cast(strftime('%s', time_hour) as integer)"
    digits = len(str(int(sample)))
    return f"cast(time_hour / {10 ** max(0, digits - 10)} as integer)"


def open_lake(args: argparse.Namespace) -> duckdb.DuckDBPyConnection:
    con = duckdb.connect(config={"allow_unsigned_extensions": "true"})
    con.execute("set autoinstall_known_extensions = false; set autoload_known_extensions = false")
    packages = Path(duckdb.__file__).resolve().parent.parent
    for file in glob.glob(str(packages / "duckdb_extension_*" / "**" / "*.duckdb_extension"), recursive=True):
        con.execute(f"load '{file}'")
    schema = f", metadata_schema '{args.schema}_lake'" if args.metadata.startswith("postgres") else ""
    con.execute(f"attach 'ducklake:{args.metadata}' as lake (read_only{schema})")
    con.execute("use lake; set timezone = 'UTC'")
    return con


class Demo:
    """One demo folder under check."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.report = Report()
        self.first, self.last, self.clean = args.first, args.last, args.clean
        self.span = (str(self.first), str(self.last))
        self.db = open_source(args.source or args.demo / "production.db", args.data)
        self.con = open_lake(args)
        # The database behind the catalog, which DuckDB shows under this name; on PostgreSQL our own tables have a schema.
        on_postgres = args.metadata.startswith("postgres")
        behind = "__ducklake_metadata_lake."
        self.catalog = f"{behind}{args.schema}_lake." if on_postgres else behind
        self.registry = f"{behind}{args.schema}." if on_postgres else behind

    def expect(self, sql: str, *values) -> list:
        """Rows of the source."""
        return self.db.execute(sql, values).fetchall()

    def actual(self, sql: str, *values) -> list:
        """Rows of the lake."""
        return self.con.execute(sql, list(values)).fetchall()

    def days_of(self, table: str, columns: str, last: date | None = None, more: str = "") -> list:
        """Rows of one of the lake's tables within the days under check."""
        span = (str(self.first), str(last or self.last))
        return self.actual(f"select {columns} from lake.{table} where ds between ?::date and ?::date {more}", *span)

    def last_of(self, table: str) -> date:
        """The last day that a table should have.

        A demo that ends early ends with a UTC day, so its last day in New York lacks five hours and is not there.
        """
        early = self.last <= ENDS.get(table, date.min)
        return min(self.last - DAY if table == FROM_HOURS and early else self.last, ENDS.get(table, self.last))

    def run(self) -> Report:
        sql = "select table_name from duckdb_tables() where database_name = 'lake' and schema_name = 'main'"
        there = {name for (name,) in self.actual(sql)}
        wanted = BY_DAY + WHOLE + COMPUTED
        wanted += [table for table in ENDS if self.first <= self.last_of(table)]
        absent = sorted(set(wanted) - there)
        self.report.check("tables", not absent, f"{', '.join(absent)} missing" if absent else f"{len(wanted)} are there")
        if absent:
            return self.report
        own = {
            "flights_flat": self.flights_flat, "carrier_daily": self.carrier_daily, HOURLY: self.departures_hourly,
            "company_metrics": self.company_metrics, "route_delays_7d": self.route_delays, FROM_HOURS: self.departures_daily,
        }
        steps = [("files", self.files)]
        for table in wanted:
            steps += [(table, lambda t=table: self.shape(t)), (table, lambda t=table: self.partitions(t))]
        steps += [(table, lambda t=table: self.import_by_day(t)) for table in BY_DAY]
        steps += [(table, lambda t=table: self.whole_import(t)) for table in WHOLE]
        steps += [(table, check) for table, check in own.items() if table in wanted]
        steps += [(table, lambda t=table: self.latest_view(t)) for table in COMPUTED]
        for name, check in steps:
            try:
                check()
            except duckdb.Error as error:  # a broken file, say, must not hide what the other checks find
                self.report.check(f"{name} can be read", False, str(error).splitlines()[0])
        return self.report

    def files(self) -> None:
        """Every live file is on disk at its size; with --clean nothing else is."""
        root = self.actual(f"select value from {self.catalog}ducklake_metadata where key = 'data_path'")[0][0]
        if "://" in root and not root.startswith("file://"):
            return print(f"note: the files in {root} are not looked at")
        folder = Path(root.removeprefix("file://"))
        listed = []
        for kind in ("data", "delete"):
            listed += self.actual(f"""
                select case when f.path_is_relative in (1, true) then s.path || t.path || f.path else f.path end,
                    f.file_size_bytes, f.end_snapshot is null
                from {self.catalog}ducklake_{kind}_file f join {self.catalog}ducklake_table t using (table_id)
                join {self.catalog}ducklake_schema s on s.schema_id = t.schema_id""")
        sizes = {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
        live = [(name, size) for name, size, is_live in listed if is_live]
        wrong = [name for name, size in live if sizes.get(name) != size]
        detail = f"{len(wrong)} are not, as {wrong[0]}" if wrong else f"{len(live):,} files"
        self.report.check("live files are on disk, whole", not wrong, detail)
        scheduled = self.actual(f"select path from {self.catalog}ducklake_files_scheduled_for_deletion")
        unknown = sorted(set(sizes) - {name for name, *_ in listed} - {name for (name,) in scheduled})
        detail = f"{len(unknown)}, as {unknown[0]}" if unknown else ""
        if self.clean:
            self.report.check("no file on disk that the catalog does not know", not unknown, detail)
        elif unknown:
            print(f"note: files on disk that the catalog does not know: {detail}; `headworks gc` removes them in time")

    def shape(self, table: str) -> None:
        found = self.actual("""select column_name, data_type from duckdb_columns()
            where database_name = 'lake' and table_name = ? order by column_index""", table)
        wanted = [("ds", "DATE")] + ([("hour", "INTEGER")] if table == HOURLY else [])
        ok = found[: len(wanted)] == wanted
        self.report.check(f"{table} begins with its partition columns", ok, "" if ok else str(found[:2]))

    def partitions(self, table: str) -> None:
        """The registry knows each partition once, those without rows too, and counts as the lake does."""
        last = self.last_of(table)
        days = [self.first + timedelta(n) for n in range((last - self.first).days + 1)]
        names, key = [f"ds={d}" for d in days], "'ds=' || ds::varchar"
        if table == HOURLY:
            names = [f"{name}/hour={hour:02}" for name in names for hour in range(24)]
            key += " || '/hour=' || lpad(hour::varchar, 2, '0')"
        counts = dict(self.actual(f"select {key}, count(*) from lake.{table} group by 1"))
        found = self.actual(f"""
            select p.partition, p.row_count from {self.registry}hw_partition p
            join {self.catalog}ducklake_table t using (table_id)
            where t.table_name = ? and t.end_snapshot is null and p.partition >= ? and p.partition < ?""",
            table, f"ds={self.first}", f"ds={last + DAY}")
        expected = [(name, counts.get(name, 0)) for name in names]
        self.report.same_rows(f"{table}: partitions in the registry, and their rows", expected, found)

    def import_by_day(self, table: str) -> None:
        expected = self.expect(f"select ds, count(*) from {table} where ds between ? and ? group by 1", *self.span)
        actual = self.days_of(table, "ds::varchar, count(*)", more="group by 1")
        self.report.same_rows(f"{table}: days with rows, and how many", expected, actual)
        columns = [f'"{c}"' for c in self.columns(table) if c not in ("ds", "t", "time_hour")]
        listed = ", ".join(columns)
        expected = self.expect(f"select ds, t, {listed} from {table} where ds between ? and ?", *self.span)
        actual = self.days_of(table, f"ds::varchar, epoch(time_hour)::bigint, {listed}")
        self.report.same_rows(f"{table}: every row, all columns", expected, actual)

    def whole_import(self, table: str) -> None:
        listed = ", ".join(f'"{c}"' for c in self.columns(table))
        # Equal copies in all days: each row then comes once per day, and one copy tells the rest.
        copies = (self.last - self.first).days + 1
        expected = [(*row, copies, copies) for row in self.expect(f"select {listed} from {table}")]
        actual = self.days_of(table, f"{listed}, count(*), count(distinct ds)", more="group by all")
        self.report.same_rows(f"{table}: the whole table in each of {copies} days", expected, actual)

    def columns(self, table: str) -> list[str]:
        return [row[1] for row in self.db.execute(f"pragma table_info({table})")]

    def flights_flat(self) -> None:
        expected = self.expect("""
            select f.ds, f.t, f.carrier || f.flight || '-' || f.origin, f.carrier, a.name, f.flight, f.tailnum,
                p.manufacturer, p.model, p.year, p.seats, f.origin, o.name, f.dest, d.name, f.distance, f.sched_dep_time,
                f.dep_time, f.dep_delay, f.arr_delay, f.air_time, f.cancelled, f.late, w.temp, w.wind_speed, w.precip, w.visib
            from flown f
            left join airlines a on a.carrier = f.carrier
            left join planes p on p.tailnum = f.tailnum
            left join airports o on o.faa = f.origin
            left join airports d on d.faa = f.dest
            left join weather w on w.origin = f.origin and w.t = f.t
            where f.ds between ? and ?""", *self.span)
        actual = self.days_of("flights_flat", """
            ds::varchar, epoch(time_hour)::bigint, flight_key, carrier, carrier_name, flight, tailnum, plane_manufacturer,
            plane_model, plane_year, plane_seats, origin, origin_name, dest, dest_name, distance, sched_dep_time, dep_time,
            dep_delay, arr_delay, air_time, is_cancelled, is_late, temp, wind_speed, precip, visib""")
        self.report.same_rows("flights_flat: every row with its joins", expected, actual)

    def carrier_daily(self) -> None:
        expected = self.expect("""
            select f.ds, f.carrier, a.name, count(*), sum(cancelled), sum(late), coalesce(sum(dep_delay), 0),
                avg(dep_delay), coalesce(sum(arr_delay), 0), sum(miles), count(distinct tailnum)
            from flown f join airlines a on a.carrier = f.carrier
            where f.ds between ? and ? group by f.ds, f.carrier""", *self.span)
        actual = self.days_of("carrier_daily", """
            ds::varchar, carrier, carrier_name, flights, cancelled, late, dep_delay_minutes, dep_delay_avg,
            arr_delay_minutes, miles_flown, planes""")
        self.report.same_rows("carrier_daily: every carrier and day", expected, actual)

    def company_metrics(self) -> None:
        """Running totals by a window over carriers and days, where the job adds a day to the partition before it."""
        expected = self.expect("""
            with daily as (
                select ds, carrier, count(*) as n, sum(cancelled) as c, sum(late) as l,
                    coalesce(sum(dep_delay), 0) as d, sum(miles) as m
                from flown where ds between ? and ? group by ds, carrier),
            grid as (select * from (select distinct ds from daily) cross join (select distinct carrier from daily)),
            totals as (
                select g.ds, g.carrier, min(x.ds) over past as first_ds, max(x.ds) over past as last_ds,
                    count(x.ds) over past as days, sum(x.n) over past as n, sum(x.c) over past as c,
                    sum(x.l) over past as l, sum(x.d) over past as d, sum(x.m) over past as m
                from grid g left join daily x on x.ds = g.ds and x.carrier = g.carrier
                window past as (partition by g.carrier order by g.ds rows unbounded preceding))
            select t.ds, t.carrier, a.name, first_ds, last_ds, days, n, c, l, d, m
            from totals t join airlines a on a.carrier = t.carrier where first_ds is not null""", *self.span)
        actual = self.days_of("company_metrics", """
            ds::varchar, carrier, carrier_name, first_ds::varchar, last_ds::varchar, days_active, flights_total,
            cancelled_total, late_total, dep_delay_minutes_total, miles_total""")
        self.report.same_rows("company_metrics: running totals of every carrier and day", expected, actual)
        expected = self.expect("select count(*) from flights where ds between ? and ?", *self.span)
        actual = self.actual("select sum(flights_total)::bigint from lake.company_metrics where ds = ?::date", self.span[1])
        self.report.same_rows("company_metrics: the last day's total is the number of flights", expected, actual)

    def route_delays(self) -> None:
        expected = self.expect("""
            with days as (select distinct ds from flights where ds between ?1 and ?2)
            select days.ds, f.origin, f.dest, count(distinct f.ds), count(*), sum(f.cancelled), sum(f.late),
                avg(f.dep_delay), avg(f.arr_delay), max(f.arr_delay)
            from days join flown f on f.ds between max(date(days.ds, '-6 days'), ?1) and days.ds
            group by days.ds, f.origin, f.dest""", *self.span)
        actual = self.days_of("route_delays_7d", """
            ds::varchar, origin, dest, days, flights, cancelled, late, dep_delay_avg, arr_delay_avg, arr_delay_max""")
        self.report.same_rows("route_delays_7d: every route and day", expected, actual)

    def departures_hourly(self) -> None:
        last = self.last_of(HOURLY)
        expected = self.expect("""
            select date(t, 'unixepoch'), cast(strftime('%H', t, 'unixepoch') as integer), t, origin, count(*),
                sum(cancelled), coalesce(sum(dep_delay), 0)
            from flown where date(t, 'unixepoch') between ?1 and ?2 and ds >= ?1 group by t, origin""", self.span[0], str(last))
        actual = self.days_of(HOURLY, """
            ds::varchar, hour, epoch(hour_start)::bigint, origin, departures, cancelled, dep_delay_minutes""", last)
        self.report.same_rows(f"{HOURLY}: every airport and UTC hour", expected, actual)

    def departures_daily(self) -> None:
        last = self.last_of(FROM_HOURS)
        expected = self.expect("""
            with hours as (
                select ds, t, origin, count(*) as n, sum(cancelled) as c, coalesce(sum(dep_delay), 0) as d
                from flown group by ds, t, origin)
            select ds, origin, count(*), sum(n), sum(c), sum(d), max(n) from hours
            where ds between ? and ? group by ds, origin""", self.span[0], str(last))
        actual = self.days_of(FROM_HOURS, """
            ds::varchar, origin, hours, departures, cancelled, dep_delay_minutes, busiest_hour_departures""", last)
        self.report.same_rows(f"{FROM_HOURS}: every airport and day", expected, actual)

    def latest_view(self, table: str) -> None:
        summary = "select count(*), min(ds)::varchar, max(ds)::varchar from"
        expected = self.actual(f"{summary} lake.{table} where ds = (select max(ds) from lake.{table})")
        self.report.same_rows(f"{table}_latest is the newest day", expected, self.actual(f"{summary} lake.{table}_latest"))


def main() -> int:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("demo", type=Path, help="the demo's project folder")
    parser.add_argument("--from", dest="first", type=date.fromisoformat, default=date(2013, 1, 1), metavar="DAY")
    parser.add_argument("--to", dest="last", type=date.fromisoformat, default=date(2013, 12, 31), metavar="DAY")
    parser.add_argument("--source", type=Path, help="another SQLite file than DEMO/production.db")
    parser.add_argument("--metadata", metavar="CATALOG", help="as postgres:dbname=headworks; else the demo's SQLite file")
    parser.add_argument("--schema", default="headworks", help="PostgreSQL: the schema of the metadata (%(default)s)")
    parser.add_argument("--clean", action="store_true", help="also fail on files the catalog does not know, as after gc")
    parser.add_argument("--data", type=Path, default=here.parent / "examples/flights/data", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.metadata = args.metadata or f"sqlite:{args.demo / '.headworks/metadata.db'}"
    began = time.monotonic()
    try:
        report = Demo(args).run()
    except (duckdb.Error, sqlite3.Error, OSError) as error:
        print(f"error: cannot check {args.demo}: {error}", file=sys.stderr)
        return 2
    failed = f", {report.failed} FAILED" if report.failed else ""
    print(f"{report.passed} checks passed{failed} in {time.monotonic() - began:.1f} s")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
