import sys, datetime as d
import adbc_driver_postgresql.dbapi as adbc

uri = f"postgresql://ann:pencil@127.0.0.1:{sys.argv[1]}/headworks"
with adbc.connect(uri) as c:
    with c.cursor() as cur:
        cur.execute("select n, text, ds from numbers order by n")
        table = cur.fetch_arrow_table()
        assert table.num_rows == 10000, table.num_rows
        assert [str(f.type) for f in table.schema] == ["int64", "string", "date32[day]"], table.schema
        assert table["n"].to_pylist() == list(range(10000))
        assert table["text"][9999].as_py() == "number 9999"
        cur.execute("select id, flag, small, whole, ratio, real, word, bytes, day, at_time, moment, moment_utc, list from things order by id")
        table = cur.fetch_arrow_table()
        row = [column[0].as_py() for column in table.columns]
        assert row[:9] == [1, True, -7, 70000, 0.1, 1.5, 'grün, "x"\t\\', b"\x00\xff", d.date(2018, 2, 20)], row
        assert row[12] == [1, None, 3], row
        assert [column[1].as_py() for column in table.columns][1:] == [None] * 12
        cur.execute("select n from numbers where n = $1", (7,))
        assert cur.fetch_arrow_table()["n"].to_pylist() == [7]
    names = c.adbc_get_objects(depth="tables").read_all().to_pylist()
    assert "numbers" in str(names), names
