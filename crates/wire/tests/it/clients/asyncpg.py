import asyncio, sys, datetime as d
from decimal import Decimal
import asyncpg

utc = d.timezone.utc

async def main():
    c = await asyncpg.connect(host="127.0.0.1", port=int(sys.argv[1]), user="ann", password="pencil", database="headworks")
    rows = [tuple(row) for row in await c.fetch("select * from things order by id")]
    assert rows[0] == (
        1, True, -7, 70000, 0.1, 1.5, Decimal("-12345.67"), 'grün, "x"\t\\', b"\x00\xff", d.date(2018, 2, 20),
        d.time(12, 34, 56, 1), d.datetime(2018, 2, 20, 12, 21, 36, 500000),
        d.datetime(2018, 2, 20, 12, 21, 36, 500000, utc), [1, None, 3], '{"a":5}',
    ), rows[0]
    assert rows[1][1:] == (None,) * 14
    assert await c.fetchval("select n from numbers where n = $1", 7) == 7
    assert await c.fetchval("select count(*) from numbers where ds = $1 and text like $2", d.date(2018, 2, 20), "number 1%") == 1111
    assert [r["n"] for r in await c.fetch("select n from numbers where n = any($1::bigint[]) order by n", [1, 2])] == [1, 2]
    for sql, value in (("select $1::int", 5), ("select $1::text", "x"), ("select $1::float8", 2.5), ("select $1::numeric(10,2)", Decimal("1.25")),
                       ("select $1::timestamptz", d.datetime(2018, 2, 20, tzinfo=utc)), ("select $1::bool", True)):
        assert await c.fetchval(sql, value) == value, sql
    async with c.transaction(readonly=True):
        assert len([r async for r in c.cursor("select n from numbers order by n", prefetch=1000)]) == 10000
    out = []
    async def sink(data):
        out.append(data)
    await c.copy_from_query("select n from numbers where n < 2 order by n", output=sink, format="csv", header=True)
    assert b"".join(out) == b"n\n0\n1\n", out
    try:
        await c.execute("select count(*) from generate_series(1, 1000000000000) a", timeout=0.3)
        raise AssertionError("no timeout")
    except asyncio.TimeoutError:
        pass
    assert await c.fetchval("select 1") == 1
    try:
        await c.fetch("select * from nosuch")
        raise AssertionError("no error")
    except asyncpg.UndefinedTableError as error:
        assert error.position == "15", error.position
    await c.close()
    pool = await asyncpg.create_pool(host="127.0.0.1", port=int(sys.argv[1]), user="ann", password="pencil", database="headworks", min_size=2)
    async with pool.acquire() as p:
        assert await p.fetchval("select 2") == 2
    async with pool.acquire() as p:
        assert await p.fetchval("select 3") == 3
    await pool.close()

asyncio.run(main())
