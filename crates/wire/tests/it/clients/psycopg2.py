import sys, datetime as d, io
from decimal import Decimal
import psycopg2
from psycopg2 import errors

c = psycopg2.connect(host="127.0.0.1", port=sys.argv[1], user="ann", password="pencil", dbname="headworks")
utc = d.timezone.utc
cur = c.cursor()
cur.execute("select * from things order by id")
found = cur.fetchall()
row = [bytes(value) if isinstance(value, memoryview) else value for value in found[0]]
assert row == [
    1, True, -7, 70000, 0.1, 1.5, Decimal("-12345.67"), 'grün, "x"\t\\', b"\x00\xff", d.date(2018, 2, 20),
    d.time(12, 34, 56, 1), d.datetime(2018, 2, 20, 12, 21, 36, 500000),
    d.datetime(2018, 2, 20, 12, 21, 36, 500000, utc), [1, None, 3], {"a": 5},
], row
assert found[1][1:] == (None,) * 14
cur.execute("select %s, %s, %s, %s", [1, "x'y", d.date(2018, 2, 20), [1, 2]])
assert cur.fetchone() == (1, "x'y", d.date(2018, 2, 20), [1, 2])
assert c.server_version == 160000 and c.encoding == "UTF8"
named = c.cursor("named")
named.itersize = 1000
named.execute("select n from numbers order by n")
assert [n for (n,) in named] == list(range(10000))
named.close()
out = io.StringIO()
cur.copy_expert("copy (select n from numbers where n < 2 order by n) to stdout with csv header", out)
assert out.getvalue() == "n\n0\n1\n", out.getvalue()
c.commit()
c.set_session(isolation_level="REPEATABLE READ", readonly=True)
cur.execute("select 1")
c.rollback()
c.set_session(autocommit=True)
try:
    cur.execute("delete from numbers")
    raise AssertionError("no error")
except errors.ReadOnlySqlTransaction:
    pass
cur.execute("select pg_backend_pid()")
assert cur.fetchone()[0] == c.info.backend_pid
c.close()
