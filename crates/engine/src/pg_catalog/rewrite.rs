//! Statements as clients of PostgreSQL write them, turned into those that DataFusion plans.

use std::sync::LazyLock;

use arrow::datatypes::DataType;
use datafusion::sql::sqlparser::{
    ast::{Expr, Query, SelectItem, SetExpr, Statement},
    dialect::PostgreSqlDialect,
    tokenizer::{Token, Tokenizer},
};
use datafusion_pg_catalog::{
    pg_catalog::PG_CATALOG_TABLES,
    sql::rules::{
        AliasDuplicatedProjectionRewrite, CurrentUserVariableToSessionUserFunctionCall, FixArrayLiteral,
        PrependUnqualifiedPgTableName, ResolveUnqualifiedIdentifier, RewriteArrayAnyAllOperation,
        RewritePgCatalogOperator, RewriteRegCastToSubquery, SqlStatementRewriteRule, StripCallableQualifier,
        StripCollate,
    },
};

use super::{PG_CATALOG, prune, spelling, tables};
use crate::{
    Error, Result, SqlLimits,
    dialect::Sql,
    parse::{self, Parsed, Reading},
    resolve::{self, INFORMATION_SCHEMA, Space},
};

/// The rules of the library that change no answer. It has one more, which answers subqueries with null.
static RULES: LazyLock<Vec<Box<dyn SqlStatementRewriteRule>>> = LazyLock::new(|| {
    vec![
        Box::new(RewriteArrayAnyAllOperation),
        Box::new(PrependUnqualifiedPgTableName),
        Box::new(StripCallableQualifier),
        Box::new(FixArrayLiteral),
        Box::new(CurrentUserVariableToSessionUserFunctionCall),
        Box::new(StripCollate),
        Box::new(RewritePgCatalogOperator),
        Box::new(RewriteRegCastToSubquery::new()),
    ]
});

/// Those for the catalog's columns of one name, as in `select n.oid, n.*`.
static CATALOG_RULES: LazyLock<Vec<Box<dyn SqlStatementRewriteRule>>> =
    LazyLock::new(|| vec![Box::new(AliasDuplicatedProjectionRewrite), Box::new(ResolveUnqualifiedIdentifier)]);

/// A statement that was read as PostgreSQL reads it.
pub(crate) struct Rewritten {
    pub(crate) parsed: Parsed,
    /// The query as it was written, for the names of its columns.
    pub(crate) written: Option<Box<Query>>,
}

/// True when a text may read `pg_catalog` or `information_schema`.
pub(crate) fn names_catalog(sql: &str) -> bool {
    let Ok(tokens) = Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize() else { return false };
    tokens.iter().any(|token| match token {
        Token::Word(word) => {
            let name = word.value.to_ascii_lowercase();
            name == PG_CATALOG
                || name == INFORMATION_SCHEMA
                || PG_CATALOG_TABLES.contains(&name.as_str())
                || tables::MORE.contains(&name.as_str())
        }
        _ => false,
    })
}

/// Parses one statement of a client that speaks PostgreSQL. Errors: as [`parse::parse`].
pub(crate) fn parse_postgres(sql: &str, limits: &SqlLimits, types: &[Option<DataType>]) -> Result<Rewritten> {
    if names_catalog(sql)
        && let Some(rewritten) = of_catalog(sql, limits, types)
    {
        return Ok(rewritten);
    }
    let mut parsed = match parse::parse_as(sql, limits, &Sql) {
        // PostgreSQL's dialect has operators that the generic one lacks.
        Err(error @ Error::Syntax { .. }) => parse::parse_as(sql, limits, &PostgreSqlDialect {}).map_err(|_| error)?,
        other => other?,
    };
    let written = match &parsed.statement {
        Reading::Query(query) => Some(query.clone()),
        _ => None,
    };
    if let Some(mut query) = written.clone() {
        spelling::of_statement(&mut query, types);
        parsed.statement = Reading::Query(apply(&RULES, query)?);
    }
    Ok(Rewritten { parsed, written })
}

fn apply(rules: &[Box<dyn SqlStatementRewriteRule>], query: Box<Query>) -> Result<Box<Query>> {
    match rules.iter().fold(Statement::Query(query), |statement, rule| rule.rewrite(statement)) {
        Statement::Query(query) => Ok(query),
        other => Err(Error::Internal { message: format!("`{other}` came of a query") }),
    }
}

/// A statement that reads nothing but the catalog; `None` for others.
fn of_catalog(sql: &str, limits: &SqlLimits, types: &[Option<DataType>]) -> Option<Rewritten> {
    let mut parsed = parse::parse_as(sql, limits, &PostgreSqlDialect {}).ok()?;
    let Reading::Query(written) = &parsed.statement else { return None };
    let written = written.clone();
    let mut query = written.clone();
    spelling::of_catalog(&mut query);
    spelling::of_statement(&mut query, types);
    let mut query = apply(&RULES[..2], query).ok()?;
    prune::without_empty(&mut query);
    let query = apply(&CATALOG_RULES, query).ok()?;
    let mut statement = Statement::Query(apply(&RULES, query).ok()?);
    prune::with_one_value(&mut statement);
    parsed.statement = parse::allowed(statement.clone()).ok()?;
    let names = resolve::tables(&mut parsed, limits, false).ok()?;
    if names.keys().any(|name| name.space == Space::Lake) {
        return None;
    }
    parsed.statement = parse::allowed(statement).ok()?;
    Some(Rewritten { parsed, written: Some(written) })
}

/// True when a statement asks the server about itself, and so need not wait behind others.
///
/// Runs on a thread with a large stack.
pub(crate) fn reads_catalog_alone(sql: &str, limits: &SqlLimits) -> bool {
    of_catalog(sql, limits, &[]).is_some()
}

/// True when a statement reads no table and is short, as `select 1` and `select version()`.
pub(crate) fn reads_nothing(sql: &str) -> bool {
    const SHORT_BYTES_MAX: usize = 512;
    sql.len() <= SHORT_BYTES_MAX
        && Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize().is_ok_and(|tokens| {
            !tokens.iter().any(|token| {
                matches!(token, Token::Word(word) if ["from", "with", "table", "explain", "describe", "unnest"]
                    .contains(&word.value.to_ascii_lowercase().as_str()))
            })
        })
}

/// The names that PostgreSQL gives the columns of a query: `None` for those that have one already.
///
/// `count` is how many columns there are once `*` is written out.
pub(crate) fn column_names(query: &Query, count: usize) -> Vec<Option<String>> {
    let mut names = vec![None; count];
    let Some(select) = first_select(&query.body) else { return names };
    let of = |item: &SelectItem| match item {
        SelectItem::UnnamedExpr(expr) => Some(Some(column_name(expr).unwrap_or_else(|| "?column?".to_owned()))),
        SelectItem::ExprWithAlias { .. } => Some(None),
        _ => None,
    };
    // What stands between two `*` cannot be counted.
    let before: Vec<_> = select.iter().map_while(of).collect();
    let behind: Vec<_> = select.iter().rev().map_while(of).collect();
    for (slot, name) in names.iter_mut().zip(before.iter()) {
        slot.clone_from(name);
    }
    if before.len() < select.len() {
        for (slot, name) in names.iter_mut().rev().zip(behind.iter()) {
            slot.clone_from(name);
        }
    }
    names
}

pub(super) fn first_select(body: &SetExpr) -> Option<&[SelectItem]> {
    let mut body = body;
    loop {
        match body {
            SetExpr::Select(select) => return Some(&select.projection),
            SetExpr::Query(query) => body = &query.body,
            SetExpr::SetOperation { left, .. } => body = left,
            _ => return None,
        }
    }
}

/// The name of an expression without one; none where PostgreSQL has none either.
pub(super) fn column_name(expr: &Expr) -> Option<String> {
    own_name(expr).or_else(|| match expr {
        Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => column_name(inner),
        // Of casts over casts the last one counts.
        Expr::Cast { data_type, .. } => Some(type_name(&data_type.to_string().to_lowercase())),
        Expr::TypedString(typed) => Some(type_name(&typed.data_type.to_string().to_lowercase())),
        Expr::Interval(_) => Some("interval".to_owned()),
        Expr::Case { .. } => Some("case".to_owned()),
        _ => None,
    })
}

/// A name that stays through a cast: of a column, a function.
fn own_name(expr: &Expr) -> Option<String> {
    let named = |name: &str| Some(name.to_owned());
    match expr {
        Expr::Identifier(ident) => Some(parse_name(ident)),
        Expr::CompoundIdentifier(idents) => idents.last().map(parse_name),
        Expr::Nested(inner) | Expr::Collate { expr: inner, .. } | Expr::Cast { expr: inner, .. } => own_name(inner),
        Expr::Function(function) => function.name.0.last()?.as_ident().map(parse_name),
        Expr::Case { else_result, .. } => own_name(else_result.as_deref()?),
        Expr::CompoundFieldAccess { root, .. } => own_name(root),
        Expr::Subquery(query) => match first_select(&query.body)?.first()? {
            SelectItem::UnnamedExpr(expr) => column_name(expr).or_else(|| named("?column?")),
            SelectItem::ExprWithAlias { alias, .. } => Some(parse_name(alias)),
            _ => None,
        },
        Expr::Exists { .. } => named("exists"),
        Expr::Array(_) => named("array"),
        Expr::Extract { .. } => named("extract"),
        Expr::Substring { .. } => named("substring"),
        Expr::Trim { .. } => named("btrim"),
        Expr::Position { .. } => named("position"),
        Expr::Overlay { .. } => named("overlay"),
        Expr::Ceil { .. } => named("ceil"),
        Expr::Floor { .. } => named("floor"),
        Expr::AtTimeZone { .. } => named("timezone"),
        Expr::Tuple(_) => named("row"),
        _ => None,
    }
}

fn parse_name(ident: &datafusion::sql::sqlparser::ast::Ident) -> String {
    resolve::normal(ident)
}

/// The short name that PostgreSQL has for a type.
fn type_name(written: &str) -> String {
    let base = written.split(['(', '[']).next().unwrap_or(written).trim();
    match base.strip_prefix("pg_catalog.").unwrap_or(base) {
        "int" | "integer" | "int4" => "int4",
        "bigint" | "int8" => "int8",
        "smallint" | "int2" => "int2",
        "boolean" | "bool" => "bool",
        "real" | "float4" => "float4",
        "double" | "double precision" | "float" | "float8" => "float8",
        "decimal" | "numeric" | "dec" => "numeric",
        "character varying" | "varchar" => "varchar",
        "char" | "character" => "bpchar",
        "timestamp with time zone" | "timestamptz" => "timestamptz",
        "timestamp without time zone" | "timestamp" => "timestamp",
        other => other,
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_without_a_name_have_postgresqls() {
        let check = |sql: &str, count: usize, expected: &[Option<&str>]| {
            let query = parse::generated(sql).unwrap();
            let names = column_names(&query, count);
            assert_eq!(names.iter().map(Option::as_deref).collect::<Vec<_>>(), expected, "{sql}");
        };
        check(
            "select 1, a, a::text, upper(a), a as b from t",
            5,
            &[Some("?column?"), Some("a"), Some("a"), Some("upper"), None],
        );
        check("select '1'::int, null::numeric(1), true", 3, &[Some("int4"), Some("numeric"), Some("?column?")]);
        check(
            "select 1::int::text, (1 + 1)::bigint, upper(a)::text, (select 1)::text, case when a then 1 else b end::text from t",
            5,
            &[Some("text"), Some("int8"), Some("upper"), Some("?column?"), Some("b")],
        );
        check("select 1, *, 2 from t", 4, &[Some("?column?"), None, None, Some("?column?")]);
        check("select *, 1, t.* from t", 5, &[None; 5]);
        check("select count(*) from t union all select 2", 1, &[Some("count")]);
        check("values (1)", 1, &[None]);
    }

    #[test]
    fn statements_of_clients_are_told_from_others() {
        assert!(names_catalog("select * from pg_class"));
        assert!(names_catalog("select * from \"information_schema\".tables"));
        assert!(!names_catalog("select pg_backend_pid(), 'pg_class' from pg_mine"));
        assert!(reads_nothing("select version()"));
        assert!(!reads_nothing("select 1 from t"));
        let alone = |sql: &str| reads_catalog_alone(sql, &SqlLimits::default());
        assert!(alone("select c.relname from pg_class c, pg_catalog.pg_namespace n"));
        assert!(!alone("select c.relname from pg_class c, flights"));
        assert!(!alone("insert into pg_class values (1)"));
    }
}
