"""Clients of the query service beside the same clients of PostgreSQL, on the same rows.

One JSON object as argument: `flight`, `token`, `ours` and `theirs` (URLs for libpq), `psql` (the program), `server` (our
process), `rows`.
"""

import json
import os
import resource
import subprocess
import sys
import time

import adbc_driver_flightsql
import adbc_driver_flightsql.dbapi as flightsql
import pandas
import psycopg
import pyarrow

HZ = os.sysconf("SC_CLK_TCK")
CONNECTS = 200
# Of three copies by each server in turn, the one in the middle counts.
ROUNDS = 3


def server_cpu(process):
    with open(f"/proc/{process}/stat", encoding="utf-8") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / HZ


def own_cpu():
    """With the clients that were started and have ended."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in both)


class Took:
    """Wall clock and CPU of a block: ours and, when a process is given, its."""

    def __init__(self, process=None):
        self.process = process

    def __enter__(self):
        self.wall, self.cpu = time.perf_counter(), own_cpu()
        self.server = server_cpu(self.process) if self.process else 0.0
        return self

    def __exit__(self, *_):
        self.wall, self.cpu = time.perf_counter() - self.wall, own_cpu() - self.cpu
        self.server = server_cpu(self.process) - self.server if self.process else None

    def __str__(self):
        server = "" if self.server is None else f", server {self.server:.2f} CPU-s"
        return f"{self.wall:.2f} s (client {self.cpu:.2f} CPU-s{server})"


def copied(psql, url, sql, process=None):
    """By psql, which costs little: a client in Python is at work for as long as PostgreSQL is, whichever server it asks."""
    with Took(process) as took:
        subprocess.run([psql, url, "--no-psqlrc", "--quiet", "--command", sql], stdout=subprocess.DEVNULL, check=True)
    return took


def fetched(url, sql, wanted, is_binary, process=None):
    """Whole results as libpq holds them: nothing is made of the values."""
    with psycopg.connect(url) as connection, Took(process) as took:
        result = connection.pgconn.exec_params(sql.encode(), None, result_format=int(is_binary))
        assert result.ntuples == wanted, result.error_message
    return took


def fill(asked):
    """Gives PostgreSQL the rows, through both servers' COPY."""
    with psycopg.connect(asked["ours"]) as source, psycopg.connect(asked["theirs"], autocommit=True) as target:
        target.execute(
            "create table wide (id bigint, k1 int, k2 int, a double precision, b double precision, "
            "price numeric(12, 2), happened timestamp, day date, word text, line text)"
        )
        columns = "id, k1, k2, a, b, price, happened, day, word, line"
        with (
            source.cursor().copy(f"copy (select {columns} from wide) to stdout (format binary)") as read,
            target.cursor().copy("copy wide from stdin (format binary)") as write,
        ):
            for data in read:
                write.write(data)
        target.execute("vacuum (freeze, analyze) wide")
        assert target.execute("select count(*) from wide").fetchone()[0] == asked["rows"]


def frame_of_arrow(table):
    """What the package `headworks` makes of a result: decimals in Arrow's type, which pandas calculates with too."""
    return table.to_pandas(types_mapper=lambda kind: pandas.ArrowDtype(kind) if pyarrow.types.is_decimal(kind) else None)


def frames(asked):
    columns = "id, k1, k2, a, b, price, happened, day, word, line"
    options = {adbc_driver_flightsql.DatabaseOptions.AUTHORIZATION_HEADER.value: f"Bearer {asked['token']}"}
    with flightsql.connect(asked["flight"], db_kwargs=options) as connection, connection.cursor() as cursor:
        with Took(asked["server"]) as ours:
            cursor.execute(f"select {columns} from wide")
            frame = frame_of_arrow(cursor.fetch_arrow_table())
        assert len(frame) == asked["rows"]
        del frame
        with Took(asked["server"]) as objects:
            cursor.execute(f"select {columns} from wide")
            frame = cursor.fetch_df()
        assert len(frame) == asked["rows"]
        del frame
    with psycopg.connect(asked["theirs"]) as connection, Took() as theirs:
        cursor = connection.execute(f"select {columns} from wide")
        frame = pandas.DataFrame(cursor.fetchall(), columns=[column.name for column in cursor.description])
    assert len(frame) == asked["rows"]
    print(f"{asked['rows']:,} rows x 10 columns into pandas: Flight SQL {ours}; psycopg from PostgreSQL {theirs}: "
          f"{theirs.wall / ours.wall:.1f} x quicker (goal 5); with decimals as Python objects {objects}: {theirs.wall / objects.wall:.1f} x")


def wire(asked):
    columns = "id, k1, k2, a, b, price, happened, day, word, line"
    for form in ("binary", "csv", "text"):
        sql = f"copy (select {columns} from wide) to stdout (format {form})"
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(copied(asked["psql"], asked["ours"], sql, asked["server"]))
            theirs.append(copied(asked["psql"], asked["theirs"], sql))
        ours, theirs = (sorted(looks, key=lambda took: took.wall)[ROUNDS // 2] for looks in (ours, theirs))
        print(f"COPY TO STDOUT by psql, {form}: ours {ours}; PostgreSQL {theirs}: ratio {ours.wall / theirs.wall:.2f} (goal 1)")
    wanted = asked["rows"] // 5
    sql = f"select {columns} from wide where id < {wanted}"
    for is_binary in (False, True):
        ours = fetched(asked["ours"], sql, wanted, is_binary, asked["server"])
        theirs = fetched(asked["theirs"], sql, wanted, is_binary)
        form = "binary" if is_binary else "text"
        print(f"SELECT of {wanted:,} rows, {form}: ours {ours}; PostgreSQL {theirs}: ratio {ours.wall / theirs.wall:.2f} (goal 1)")


def connects(asked):
    for what, sql in (("connect by SCRAM", None), ("connect by SCRAM and select 1", "select 1")):
        for name, url, process in (("ours", asked["ours"], asked["server"]), ("PostgreSQL", asked["theirs"], None)):
            with Took(process) as took:
                for _ in range(CONNECTS):
                    with psycopg.connect(url) as connection:
                        if sql:
                            connection.execute(sql).fetchone()
            server = "" if took.server is None else f", {1000 * took.server / CONNECTS:.2f} ms CPU of the server (goal of a connect: 2)"
            print(f"{what}, {name}: {1000 * took.wall / CONNECTS:.2f} ms{server}")


def main():
    asked = json.loads(sys.argv[1])
    fill(asked)
    frames(asked)
    wire(asked)
    connects(asked)


main()
