# pgjdbc in a JVM whose zone is not UTC, as on most desks.
import sys
import jpype, jpype.imports
from jpype import JArray, JByte, JInt, JLong, JString

port, jar = sys.argv[1:]
jpype.startJVM("-Duser.timezone=Europe/Amsterdam", "-Xmx128m", "-XX:TieredStopAtLevel=1", classpath=[jar])
from java.lang import Boolean, Class, Double, Float, Integer, Long, Short
from java.math import BigDecimal
from java.sql import Date, DriverManager, Time, Timestamp, Types, SQLException, ResultSet
from java.time import Instant, LocalDate, LocalDateTime, LocalTime, OffsetDateTime, ZoneOffset
from java.util import Properties, TimeZone, UUID

assert str(TimeZone.getDefault().getID()) == "Europe/Amsterdam"

def connect(**more):
    properties = Properties()
    for name, value in {"user": "ann", "password": "pencil", "sslmode": "disable", **more}.items():
        properties.setProperty(name, value)
    return DriverManager.getConnection(f"jdbc:postgresql://127.0.0.1:{port}/headworks", properties)

def rows(found):
    columns = found.getMetaData().getColumnCount()
    all = []
    while found.next():
        values = [found.getString(n + 1) for n in range(columns)]
        all.append(tuple(None if value is None else str(value) for value in values))
    return all

def asked(c, sql):
    with c.createStatement() as statement:
        return rows(statement.executeQuery(sql))

def fails(state, work):
    try:
        work()
    except SQLException as error:
        assert str(error.getSQLState()) == state, (error.getSQLState(), str(error.getMessage()))
        return error
    raise AssertionError(f"no error, {state} was expected")

def getters(c):
    with c.prepareStatement("select * from things order by id") as statement:
        # From the fifth time on it has a name and its values are binary.
        for _ in range(8):
            found = statement.executeQuery()
            assert found.next()
            assert found.getLong("id") == 1 and found.getBoolean("flag") and found.getShort("small") == -7
            assert found.getInt("whole") == 70000 and found.getDouble("ratio") == 0.1 and found.getFloat("real") == 1.5
            assert found.getBigDecimal("price").equals(BigDecimal("-12345.67"))
            assert found.getString("word") == 'grün, "x"\t\\'
            assert [b & 255 for b in found.getBytes("bytes")] == [0, 255]
            assert found.getDate("day").equals(Date.valueOf("2018-02-20")), found.getDate("day")
            assert found.getObject("day", LocalDate.class_).equals(LocalDate.of(2018, 2, 20))
            assert found.getObject("at_time", LocalTime.class_).equals(LocalTime.parse("12:34:56.000001"))
            local = LocalDateTime.parse("2018-02-20T12:21:36.5")
            assert found.getObject("moment", LocalDateTime.class_).equals(local)
            # What clocks show is read by the clocks of Amsterdam; a moment is what it is.
            assert found.getTimestamp("moment").toLocalDateTime().equals(local)
            assert found.getTimestamp("moment_utc").toInstant().equals(Instant.parse("2018-02-20T12:21:36.5Z"))
            moment = OffsetDateTime.of(local, ZoneOffset.UTC)
            assert found.getObject("moment_utc", OffsetDateTime.class_).isEqual(moment)
            assert list(found.getArray("list").getArray()) == [1, None, 3]
            assert str(found.getObject("nested").getType()) == "json" and found.getString("nested") == '{"a":5}'
            kinds = [str(found.getMetaData().getColumnTypeName(n)) for n in range(1, 16)]
            assert kinds == ["int8", "bool", "int2", "int4", "float8", "float4", "numeric", "text", "bytea", "date",
                             "time", "timestamp", "timestamptz", "_int8", "json"], kinds
            assert found.getMetaData().getPrecision(7) == 12 and found.getMetaData().getScale(7) == 2
            assert found.next()
            for n in range(2, 16):
                assert found.getObject(n) is None and found.wasNull(), n
            assert not found.next()

def parameters(c, is_simple=False):
    uuid = UUID.fromString("c0ffee00-1234-5678-9abc-def012345678")
    instant = Timestamp.from_(Instant.parse("2018-02-20T12:21:36.5Z"))
    noon = OffsetDateTime.parse("2018-07-20T12:00:00+02:00")
    longs = c.createArrayOf("int8", JArray(Long)([Long(3), Long(5)]))
    texts = c.createArrayOf("text", JArray(JString)(["number 3", 'a,"b"']))
    cases = [
        ("select n + 1 from numbers where n = ?", lambda s: s.setLong(1, 41), "42"),
        ("select n + 1 from numbers where n = ?", lambda s: s.setInt(1, 41), "42"),
        ("select n + 1 from numbers where n = ?", lambda s: s.setShort(1, 41), "42"),
        ("select n from numbers where text = ?", lambda s: s.setString(1, "number 7"), "7"),
        ("select n from numbers where text like ? and n < ?", lambda s: (s.setString(1, "number 9%"), s.setInt(2, 10)), "9"),
        ("select id from things where flag = ?", lambda s: s.setBoolean(1, True), "1"),
        ("select id from things where ratio = ?", lambda s: s.setDouble(1, 0.1), "1"),
        ("select id from things where real = ?", lambda s: s.setFloat(1, 1.5), "1"),
        ("select id from things where price = ?", lambda s: s.setBigDecimal(1, BigDecimal("-12345.67")), "1"),
        ("select id from things where bytes = ?", lambda s: s.setBytes(1, JArray(JByte)([0, -1])), "1"),
        ("select id from things where day = ?", lambda s: s.setDate(1, Date.valueOf("2018-02-20")), "1"),
        ("select id from things where day = ?", lambda s: s.setObject(1, LocalDate.of(2018, 2, 20)), "1"),
        ("select id from things where at_time = ?", lambda s: s.setObject(1, LocalTime.parse("12:34:56.000001")), "1"),
        ("select id from things where moment = ?", lambda s: s.setObject(1, LocalDateTime.parse("2018-02-20T12:21:36.5")), "1"),
        ("select id from things where moment = ?", lambda s: s.setTimestamp(1, Timestamp.valueOf("2018-02-20 12:21:36.5")), "1"),
        ("select id from things where moment_utc = ?", lambda s: s.setTimestamp(1, instant), "1"),
        ("select id from things where moment_utc < ?", lambda s: s.setObject(1, noon), "1"),
        ("select count(*) from numbers where ds between ? and ?",
         lambda s: (s.setDate(1, Date.valueOf("2018-02-20")), s.setDate(2, Date.valueOf("2018-02-21"))), "10000"),
        ("select sum(n) from numbers where n = any(?)", lambda s: s.setArray(1, longs), "8"),
        ("select sum(n) from numbers where text = any(?)", lambda s: s.setArray(1, texts), "3"),
        ("select ?::uuid::text", lambda s: s.setObject(1, uuid), str(uuid)),
        ("select coalesce(?, 'none')", lambda s: s.setNull(1, Types.VARCHAR), "none"),
        ("select count(*) from things where id = ? or ? is null", lambda s: (s.setLong(1, 1), s.setNull(2, Types.BIGINT)), "2"),
        ("select n from numbers order by n limit ? offset ?", lambda s: (s.setInt(1, 1), s.setInt(2, 12)), "12"),
        ("select ?", lambda s: s.setString(1, "x'y"), "x'y"),
        ("select ? + 1", lambda s: s.setInt(1, 1), "2"),
        ("select date_trunc('day', ?::timestamp)::date", lambda s: s.setString(1, "2018-02-20 01:02:03"), "2018-02-20"),
    ]
    for sql, put, expected in cases:
        # In simple mode the driver cuts bytes off at the first zero, and writes days as texts with a zone.
        if is_simple and ("bytes" in sql or "day = " in sql or "ds " in sql or "moment = " in sql):
            continue
        with c.prepareStatement(sql) as statement:
            for time in range(10):
                put(statement)
                found = rows(statement.executeQuery())
                assert found == [(expected,)], (sql, time, found)
            assert statement.getParameterMetaData().getParameterCount() == sql.count("?"), sql

with connect(ApplicationName="report") as c:
    assert asked(c, "select 1, 'x'") == [("1", "x")]
    assert asked(c, "select current_setting('application_name')") == [("report",)]
    zone = asked(c, "show timezone")
    assert asked(c, "select 1; ") == [("1",)]
    with c.createStatement() as statement:
        assert statement.execute("select 1; select 2") and statement.getMoreResults()
        assert rows(statement.getResultSet()) == [("2",)]
    getters(c)
    parameters(c)

    # An error tells its state and its place.
    error = fails("42703", lambda: asked(c, "select nonsense from numbers"))
    assert error.getServerErrorMessage().getPosition() == 8, error.getServerErrorMessage().getPosition()
    fails("42P01", lambda: asked(c, "select 1 from nosuch"))
    fails("42601", lambda: asked(c, "selec 1"))
    fails("25006", lambda: c.createStatement().executeUpdate("create table x (a int)"))
    fails("22012", lambda: asked(c, "select 1 / (n - n) from numbers"))

    # Rows in parts, by a portal that stays.
    c.setAutoCommit(False)
    c.setReadOnly(True)
    with c.prepareStatement("select n from numbers order by n") as statement:
        statement.setFetchSize(100)
        for _ in range(6):
            assert [int(n) for (n,) in rows(statement.executeQuery())] == list(range(10000))
        found = statement.executeQuery()
        found.next()
        assert asked(c, "select 1") == [("1",)] and found.next()
        found.close()
    c.commit()
    savepoint = c.setSavepoint("before")
    fails("42P01", lambda: asked(c, "select 1 from nosuch"))
    fails("25P02", lambda: asked(c, "select 1"))
    c.rollback(savepoint)
    assert asked(c, "select 1") == [("1",)]
    fails("25006", lambda: c.createStatement().executeUpdate("delete from numbers"))
    c.rollback()
    for level in (1, 2, 4, 8):
        c.setTransactionIsolation(level)
        assert c.getTransactionIsolation() == level, (level, c.getTransactionIsolation())
    c.setReadOnly(False)
    c.setAutoCommit(True)

    # A query that takes too long, and one that is cancelled.
    with c.createStatement() as statement:
        statement.setQueryTimeout(1)
        fails("57014", lambda: statement.executeQuery("select count(*) from generate_series(1, 1000000000000) a"))
    assert c.isValid(5)
    with c.createStatement() as statement:
        for milliseconds in (60000, 1500, 0):
            statement.addBatch(f"set statement_timeout = {milliseconds}")
        assert list(statement.executeBatch()) == [0, 0, 0]
    c.setSchema("public")
    assert str(c.getSchema()) == "public" and str(c.getCatalog()) == "headworks"
    c.setClientInfo("ApplicationName", "other")
    assert asked(c, "show application_name") == [("other",)]

    # What tools ask before they show anything.
    about = c.getMetaData()
    assert str(about.getDatabaseProductName()) == "PostgreSQL" and about.getDatabaseMajorVersion() >= 15
    def listed(found, *columns):
        all = []
        while found.next():
            all.append(tuple(None if found.getObject(c) is None else str(found.getString(c)) for c in columns))
        return all
    assert ("public",) in listed(about.getSchemas(), "TABLE_SCHEM")
    assert listed(about.getCatalogs(), "TABLE_CAT") == [("headworks",)]
    kinds = JArray(JString)(["TABLE", "VIEW", "PARTITIONED TABLE", "FOREIGN TABLE", "MATERIALIZED VIEW"])
    tables = listed(about.getTables(None, "public", "%", kinds), "TABLE_NAME", "TABLE_TYPE")
    assert tables == [("numbers", "TABLE"), ("things", "TABLE"), ("flagged", "VIEW"), ("numbers_latest", "VIEW")], tables
    columns = listed(about.getColumns(None, "public", "things", "%"), "COLUMN_NAME", "TYPE_NAME", "DATA_TYPE", "COLUMN_SIZE",
                     "DECIMAL_DIGITS", "NULLABLE", "ORDINAL_POSITION")
    assert columns[0] == ("id", "int8", "-5", "19", "0", "1", "1"), columns
    assert columns[6] == ("price", "numeric", "2", "12", "2", "1", "7") and len(columns) == 15, columns
    assert columns[13][:3] == ("list", "_int8", "2003"), columns
    assert len(listed(about.getColumns(None, None, None, None), "COLUMN_NAME")) > 20
    for nothing in (about.getPrimaryKeys(None, "public", "things"), about.getImportedKeys(None, "public", "things"),
                    about.getExportedKeys(None, "public", "things"), about.getCrossReference(None, "public", "a", None, "public", "b"),
                    about.getIndexInfo(None, "public", "things", False, True), about.getProcedures(None, "public", "%"),
                    about.getFunctions(None, "public", "%"), about.getUDTs(None, "public", "%", None),
                    about.getBestRowIdentifier(None, "public", "things", 1, True), about.getVersionColumns(None, "public", "things")):
        rows(nothing)
    types = dict(listed(about.getTypeInfo(), "TYPE_NAME", "DATA_TYPE"))
    assert types["int8"] == "-5" and types["timestamptz"] == "93" and types["_int8"] == "2003", types
    assert ("TABLE",) in listed(about.getTableTypes(), "TABLE_TYPE")
    rows(about.getTablePrivileges(None, "public", "things"))
    rows(about.getColumnPrivileges(None, "public", "things", "%"))
    rows(about.getClientInfoProperties())
    assert "abs" in str(about.getNumericFunctions()) and str(about.getSQLKeywords())
    assert about.getMaxColumnNameLength() == 63 and about.getMaxStatements() == 0
    assert about.getDefaultTransactionIsolation() == 2

# Without the extended protocol, and with binary values from the first.
with connect(preferQueryMode="simple") as c:
    assert asked(c, "select count(*) from numbers") == [("10000",)]
    parameters(c, is_simple=True)
with connect(prepareThreshold="-1", binaryTransfer="true") as c:
    getters(c)
    parameters(c)
with connect(readOnly="true", readOnlyMode="always", options="-c statement_timeout=1min", currentSchema="public",
             assumeMinServerVersion="9.4", tcpKeepAlive="true", targetServerType="any") as c:
    assert c.isReadOnly() and asked(c, "show statement_timeout") == [("1min",)]
fails("28P01", lambda: connect(password="wrong"))
fails("08004", lambda: connect(sslmode="require"))

# As Metabase connects and asks.
with connect(ApplicationName="Metabase v0.50.0 [demo]", sslmode="prefer", OpenSourceSubProtocolOverride="true") as c:
    with c.createStatement() as statement:
        for sql in ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "SET SESSION TIMEZONE TO 'UTC'", "SET TimeZone TO 'UTC';"):
            statement.execute(sql)
        # Of another zone it is told the truth, which it logs; it asks on then.
        fails("22023", lambda: statement.execute("SET SESSION TIMEZONE TO 'Europe/Amsterdam'"))
    assert asked(c, "SHOW TIMEZONE") == [("UTC",)]
    c.setTransactionIsolation(1)
    c.setReadOnly(True)
    c.setHoldability(ResultSet.CLOSE_CURSORS_AT_COMMIT)
    c.setAutoCommit(False)
    with c.createStatement(ResultSet.TYPE_FORWARD_ONLY, ResultSet.CONCUR_READ_ONLY, ResultSet.CLOSE_CURSORS_AT_COMMIT) as statement:
        statement.setFetchDirection(ResultSet.FETCH_FORWARD)
        statement.setFetchSize(500)
        statement.setMaxRows(2000)
        found = statement.executeQuery(
            '-- Metabase:: userID: 1 queryType: MBQL queryHash: 7f\n'
            'SELECT "source"."n" AS "n" FROM (SELECT "public"."numbers"."n" AS "n" FROM "public"."numbers" '
            'WHERE "public"."numbers"."ds" >= DATE \'2018-01-01\') AS "source" ORDER BY "source"."n" ASC LIMIT 1048575')
        assert len(rows(found)) == 2000
        found = statement.executeQuery(
            'SELECT DATE_TRUNC(\'month\', "public"."things"."moment_utc") AS "moment_utc", COUNT(*) AS "count" '
            'FROM "public"."things" GROUP BY DATE_TRUNC(\'month\', "public"."things"."moment_utc") ORDER BY 1 ASC')
        assert found.next() and found.getTimestamp(1).toInstant().equals(Instant.parse("2018-02-01T00:00:00Z"))
        assert str(found.getObject(1, OffsetDateTime.class_).toInstant()) == "2018-02-01T00:00:00Z" and found.getLong(2) == 1
    c.rollback()
