"""One DuckDB session: a JSON object with `sql` per line in, one with `rows` or `error` per line out.

With `measured` in the object the rows are fetched as Arrow and only counted, and the answer tells what they took. The
argument `plain` leaves the extensions out.
"""

import datetime
import decimal
import glob
import json
import math
import os
import sys
import sysconfig
import time
import uuid

import duckdb


def plain(value):
    """Whole numbers beyond 64 bits, decimals, times, bytes (hex) and odd floats become text; nested values keep their shape."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).hex()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        return value.astimezone(datetime.timezone.utc).isoformat()
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (decimal.Decimal, uuid.UUID, datetime.timedelta)):
        return str(value)
    return repr(value)


def extension(name):
    site = sysconfig.get_paths()["purelib"]
    found = glob.glob(os.path.join(site, f"duckdb_extension_{name}", "extensions", "*", f"{name}.duckdb_extension"))
    if len(found) != 1:
        raise SystemExit(f"the DuckDB extension {name} is not in .venv\nhint: run `make setup`")
    return found[0]


def start():
    session = duckdb.connect(config={"allow_unsigned_extensions": "true"})
    session.execute("SET autoinstall_known_extensions = false")
    session.execute("SET autoload_known_extensions = false")
    for name in () if "plain" in sys.argv else ("sqlite_scanner", "postgres_scanner", "ducklake"):
        session.execute(f"LOAD '{extension(name)}'")
    session.execute("SET TimeZone = 'UTC'")
    session.execute("SET threads = 2")
    session.execute("SET enable_progress_bar = false")
    return session


def measured(session, sql):
    wall, cpu = time.perf_counter(), time.process_time()
    rows = sum(batch.num_rows for batch in session.execute(sql).to_arrow_reader())
    return {"count": rows, "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def answer(session, asked):
    if asked.get("measured"):
        return measured(session, asked["sql"])
    cursor = session.execute(asked["sql"])
    names = [column[0] for column in cursor.description or []]
    types = [str(column[1]) for column in cursor.description or []]
    rows = [[plain(value) for value in row] for row in (cursor.fetchall() if names else [])]
    return {"columns": names, "types": types, "rows": rows}


def main():
    session = start()
    print(json.dumps({"ready": duckdb.__version__}), flush=True)
    for line in sys.stdin:
        try:
            reply = answer(session, json.loads(line))
        except duckdb.Error as error:
            reply = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(reply), flush=True)


main()
