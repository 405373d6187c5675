use proptest::prelude::*;

use super::*;

/// Shows the rewritten SQL and what it reads, or the problems.
fn check(text: &str, expected: &str) {
    let analysis = analyse(text, "own_table");
    let mut shown = vec![analysis.sql];
    shown.extend(analysis.waits.iter().map(|(at, wait)| format!("wait {wait} at {}:{}", at.0, at.1)));
    shown.extend(analysis.latest.iter().map(|(at, table)| format!("latest {table} at {}:{}", at.0, at.1)));
    shown.extend(analysis.plain.iter().map(|(at, table)| format!("plain {table} at {}:{}", at.0, at.1)));
    shown.extend(
        analysis.problems.iter().map(|p| format!("problem at {}:{}: {} ({})", p.at.0, p.at.1, p.message, p.hint)),
    );
    assert_eq!(shown.join(" | "), expected, "{text}");
}

#[test]
fn tables_are_found_and_rewritten() {
    check("SELECT * FROM wait::flights", "SELECT * FROM flights | wait flights at 1:15");
    check("select * from WAIT::Flights@-1 f", "select * from flights f | wait flights@-1 at 1:15");
    check("SELECT * FROM wait::\"Ünï\"@-2", "SELECT * FROM \"Ünï\" | wait Ünï@-2 at 1:15");
    check("SELECT * FROM latest::t", "SELECT * FROM t_latest | latest t at 1:15");
    check("SELECT * FROM latest::\"T\"", "SELECT * FROM \"T_latest\" | latest T at 1:15");
    check("SELECT * FROM wait::self@-1", "SELECT * FROM own_table | wait self@-1 at 1:15");
    check("SELECT 1 FROM wait::this@-1 x;", "SELECT 1 FROM own_table x | wait this@-1 at 1:15");
    check("SELECT * FROM a, wait::b, c", "SELECT * FROM a, b, c | wait b at 1:18 | plain a at 1:15 | plain c at 1:27");
    check(
        "SELECT * FROM wait::a x JOIN wait::b ON x.i = b.i, latest::c",
        "SELECT * FROM a x JOIN b ON x.i = b.i, c_latest | wait a at 1:15 | wait b at 1:30 | latest c at 1:52",
    );
    check(
        "WITH x AS (SELECT * FROM wait::a), y (i, j) AS (SELECT i, j FROM x)\nSELECT * FROM y\nWHERE i IN (SELECT i FROM wait::b)",
        "WITH x AS (SELECT * FROM a), y (i, j) AS (SELECT i, j FROM x)\nSELECT * FROM y\nWHERE i IN (SELECT i FROM b) | wait a at 1:26 | wait b at 3:27",
    );
    check(
        "SELECT * FROM (wait::a CROSS JOIN (SELECT 1 FROM wait::b) q)",
        "SELECT * FROM (a CROSS JOIN (SELECT 1 FROM b) q) | wait a at 1:16 | wait b at 1:50",
    );
    check(
        "SELECT 1 FROM wait::a UNION ALL SELECT 2 FROM wait::b",
        "SELECT 1 FROM a UNION ALL SELECT 2 FROM b | wait a at 1:15 | wait b at 1:47",
    );
    check(
        "SELECT 1 FROM a, LATERAL (SELECT 2 FROM wait::b) c",
        "SELECT 1 FROM a, LATERAL (SELECT 2 FROM b) c | wait b at 1:41 | plain a at 1:15",
    );
    check("SELECT 1 FROM main.flights", "SELECT 1 FROM main.flights | plain flights at 1:15");
}

#[test]
fn everything_else_is_left_alone() {
    for same in [
        "SELECT wait::int, latest::text FROM (VALUES (1, 2)) v (wait, latest)",
        "SELECT 'FROM wait::t', \"FROM wait::t\" AS q, $$FROM wait::t$$ -- FROM wait::t\n/* FROM wait::t /* nested */ */",
        "SELECT e'it\\'s FROM wait::t'",
        "SELECT extract(day FROM wait::date), trim(both 'x' FROM latest::text) FROM generate_series(1, 2) g (wait)",
        "SELECT a IS DISTINCT FROM wait::int, substring(latest::text FROM 2) FROM unnest([1]) u (wait)",
        "SELECT x::int, y::varchar(3)[] ORDER BY wait::int, latest::int",
        "SELECT sum(x) OVER (PARTITION BY a, wait::int ORDER BY b ROWS BETWEEN 1 PRECEDING AND CURRENT ROW)",
    ] {
        let analysis = analyse(same, "own");
        assert_eq!((analysis.sql.as_str(), analysis.waits.len(), analysis.latest.len()), (same, 0, 0), "{same}");
        assert_eq!(analysis.problems, vec![], "{same}");
    }
}

#[test]
fn problems_have_places() {
    check(
        "SELECT 1 FROM wiat::t",
        "SELECT 1 FROM wiat::t | problem at 1:15: `wiat::` is not a prefix of tables (did you mean `wait::t`?)",
    );
    check(
        "SELECT 1 FROM x::t",
        "SELECT 1 FROM x::t | problem at 1:15: `x::` is not a prefix of tables (the prefixes are `wait::` and `latest::`)",
    );
    check(
        "SELECT 1 FROM wait::t@1",
        "SELECT 1 FROM wait::t@1 | problem at 1:15: the offset of `t` cannot be read (write `wait::t@-1` for the partition before)",
    );
    check(
        "SELECT 1 FROM wait::t@-x",
        "SELECT 1 FROM wait::t@-x | problem at 1:15: the offset of `t` cannot be read (write `wait::t@-1` for the partition before)",
    );
    check(
        "SELECT 1 FROM latest::t@-1",
        "SELECT 1 FROM t_latest | latest t at 1:15 | problem at 1:15: `latest::t` takes no offset (write `latest::t`, or `wait::t@-1`)",
    );
    check(
        "WITH t AS (SELECT 1) SELECT 1 FROM wait::t",
        "WITH t AS (SELECT 1) SELECT 1 FROM t | wait t at 1:36 | problem at 1:36: `wait::t` would read the WITH query `t` (give the WITH query `t` another name)",
    );
    check(
        "WITH t AS (SELECT * FROM wait::t) SELECT 1 FROM t",
        "WITH t AS (SELECT * FROM t) SELECT 1 FROM t | wait t at 1:26",
    );
    check(
        "SELECT a,\n  b c d FROM t",
        "SELECT a,\n  b c d FROM t | plain t at 2:14 | problem at 2:7: the SQL does not parse: expected: end of statement, found: d ()",
    );
    check(
        "SELECT 'x",
        "SELECT 'x | problem at 1:8: the SQL cannot be read: unterminated string literal (close what was opened there)",
    );
    let hint = "a job is one SELECT, with or without WITH; the platform writes its result to the table";
    check("  ", &format!("   | problem at 0:0: there is no query below the header ({hint})"));
    check(
        "SELECT 1;\nSELECT 2",
        &format!("SELECT 1;\nSELECT 2 | problem at 2:1: there is more than one statement ({hint})"),
    );
    check("DELETE FROM t", &format!("DELETE FROM t | problem at 1:1: the SQL is not a query ({hint})"));
    check("SELECT 1 INTO t", &format!("SELECT 1 INTO t | problem at 1:1: the SQL is not a query ({hint})"));
}

#[test]
fn long_texts_do_not_end_the_stack() {
    let deep = format!("SELECT {}1{}", "(".repeat(5_000), ")".repeat(5_000));
    assert_eq!(analyse(&deep, "t").problems[0].message, "the SQL does not parse: it is nested too deeply");
    let long = format!("SELECT 1{}", "+1".repeat(9_000));
    assert_eq!(analyse(&long, "t").problems, vec![]);
    let unions = vec!["SELECT 1"; 5_000].join(" UNION ALL ");
    assert_eq!(analyse(&unions, "t").problems, vec![]);
    assert_eq!(analyse(&"1 ".repeat(20_001), "t").problems[0].message, "the SQL has more than 20000 words");
}

proptest! {
    #[test]
    fn any_text_is_safe(text in "(SELECT|FROM|JOIN| |,|\\(|\\)|wait::|latest::|t|@-1|'|\"|--|\n|/\\*|\\*/|\\$\\$|;|WITH|AS|é|::int|\\.){0,30}") {
        let _ = analyse(&text, "own");
    }

    #[test]
    fn without_prefixes_nothing_changes(text in "(SELECT|FROM|JOIN| |,|\\(|\\)|t|x::int|'|\"|--|\n|/\\*|\\*/|WITH|AS|é|1){0,30}") {
        prop_assert_eq!(analyse(&text, "own").sql, text);
    }
}
