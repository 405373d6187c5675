import sys, datetime as d
from decimal import Decimal
import psycopg
from psycopg import errors

dsn = f"host=127.0.0.1 port={sys.argv[1]} user=ann password=pencil dbname=headworks application_name=test"
utc = d.timezone.utc
expected = (
    1, True, -7, 70000, 0.1, 1.5, Decimal("-12345.67"), 'grün, "x"\t\\', b"\x00\xff", d.date(2018, 2, 20),
    d.time(12, 34, 56, 1), d.datetime(2018, 2, 20, 12, 21, 36, 500000),
    d.datetime(2018, 2, 20, 12, 21, 36, 500000, utc), [1, None, 3], {"a": 5},
)
nulls = (2,) + (None,) * 14
with psycopg.connect(dsn) as c:
    for binary in (False, True):
        with c.cursor(binary=binary) as cur:
            found = cur.execute("select * from things order by id").fetchall()
            assert found == [expected, nulls], (binary, found)
            oids = [column.type_code for column in cur.description]
            assert oids == [20, 16, 21, 23, 701, 700, 1700, 25, 17, 1082, 1083, 1114, 1184, 1016, 114], oids
            for value in (1, 2**40, 1.5, "x'y", True, None, b"\x00\x01", Decimal("1.50"), Decimal("-0.00001"),
                          d.date(2018, 2, 20), d.datetime(2018, 2, 20, 1, 2, 3), d.datetime(2018, 2, 20, tzinfo=utc),
                          d.time(1, 2, 3), d.timedelta(days=1, seconds=3), [1, 2, None], ["a", "b c"]):
                for style in ("%s", "%b", "%t"):
                    got = cur.execute(f"select {style}", [value]).fetchone()[0]
                    # A list of texts goes without a type, and comes back as a text.
                    same = got == value or str(got) == str(value) or got == '{a,"b c"}'
                    assert same, (binary, style, value, got)
            assert cur.execute("select n from numbers where n = any(%s) order by n", [[3, 5, 7]]).fetchall() == [(3,), (5,), (7,)]
            assert cur.execute("select n from numbers where text = any(%s)", [["number 3", "nosuch"]]).fetchall() == [(3,)]
            assert cur.execute("select count(*) from numbers where ds = %s", [d.date(2018, 2, 20)]).fetchone() == (10000,)
            assert cur.execute("select interval '1 year 2 days 3 seconds'").fetchone()[0].days in (367, 362)
    # Prepared by the client once it has run a few times.
    for n in range(8):
        assert c.execute("select n + 1 from numbers where n = %s", [n]).fetchone() == (n + 1,)
    with c.cursor(name="server side") as cur:
        cur.itersize = 100
        cur.execute("select n from numbers order by n")
        assert [row[0] for row in cur] == list(range(10000))
    with c.cursor().copy("copy (select n, text from numbers where n < 3 order by n) to stdout") as copy:
        assert list(copy.rows()) == [("0", "number 0"), ("1", "number 1"), ("2", "number 2")]
    with c.cursor().copy("copy (select n from numbers where n < 3 order by n) to stdout (format binary)") as copy:
        copy.set_types(["int8"])
        assert list(copy.rows()) == [(0,), (1,), (2,)]
    with c.transaction():
        with c.transaction():
            assert c.execute("select 1").fetchone() == (1,)
    try:
        c.execute("select nonsense from numbers")
        raise AssertionError("no error")
    except errors.UndefinedColumn as error:
        assert error.diag.statement_position == "8", error.diag.statement_position
    c.rollback()
    try:
        c.execute("create table x (a int)")
        raise AssertionError("no error")
    except errors.ReadOnlySqlTransaction:
        c.rollback()
    with c.pipeline():
        cursors = [c.execute("select %s::int", [n]) for n in range(20)]
    assert [cursor.fetchone()[0] for cursor in cursors] == list(range(20))
    c.execute("set statement_timeout = 200")
    try:
        c.execute("select count(*) from generate_series(1, 1000000000000) a")
        raise AssertionError("no error")
    except errors.QueryCanceled:
        c.rollback()
