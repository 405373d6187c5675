import sys, warnings
import pandas
import sqlalchemy as sa

for driver in ("psycopg", "psycopg2", "pg8000"):
    e = sa.create_engine(f"postgresql+{driver}://ann:pencil@127.0.0.1:{sys.argv[1]}/headworks")
    i = sa.inspect(e)
    assert i.default_schema_name == "public", i.default_schema_name
    assert "public" in i.get_schema_names(), i.get_schema_names()
    assert sorted(i.get_table_names()) == ["numbers", "things"], i.get_table_names()
    assert sorted(i.get_view_names()) == ["flagged", "numbers_latest"], i.get_view_names()
    assert i.has_table("numbers") and not i.has_table("nosuch")
    columns = {c["name"]: c["type"] for c in i.get_columns("things")}
    assert isinstance(columns["id"], sa.BIGINT) and isinstance(columns["flag"], sa.BOOLEAN), columns
    assert isinstance(columns["price"], sa.NUMERIC) and (columns["price"].precision, columns["price"].scale) == (12, 2)
    assert isinstance(columns["moment_utc"], sa.TIMESTAMP) and columns["moment_utc"].timezone
    assert isinstance(columns["list"], sa.ARRAY), columns
    assert isinstance(columns["nested"], sa.JSON), columns
    assert [c["name"] for c in i.get_columns("flagged")] == ["id", "word"]
    assert i.get_pk_constraint("things")["constrained_columns"] == []
    assert i.get_foreign_keys("things") == [] and i.get_indexes("things") == [] and i.get_unique_constraints("things") == []
    assert i.get_check_constraints("things") == [] and i.get_table_comment("things") == {"text": None}
    meta = sa.MetaData()
    meta.reflect(e, views=True)
    numbers = meta.tables["numbers"]
    with e.connect() as c:
        q = sa.select(sa.func.count(), sa.func.sum(numbers.c.n)).where(numbers.c.n.in_([1, 2, 3]), numbers.c.text.like("number%"))
        assert tuple(c.execute(q).one()) == (3, 6)
        with c.begin_nested():
            assert c.execute(sa.text("select :x"), {"x": "a"}).scalar() == "a"
        assert c.get_isolation_level() == "READ COMMITTED"
    frame = pandas.read_sql("select n, text, ds from numbers order by n", e, chunksize=None)
    assert frame.shape == (10000, 3) and frame.n.sum() == 49995000, frame
    frame = pandas.read_sql_table("things", e)
    assert frame.shape == (2, 15), frame.shape
    chunks = list(pandas.read_sql(sa.text("select n from numbers"), e.connect().execution_options(stream_results=True), chunksize=3000))
    assert sum(len(chunk) for chunk in chunks) == 10000
    e.dispose()
