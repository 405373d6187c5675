//! What PostgreSQL writes otherwise than DataFusion, put into DataFusion's words.

use std::{collections::HashSet, ops::ControlFlow};

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, CastKind, DataType, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectName,
    OrderByKind, Query, Select, SelectItem, SetExpr, TableAliasColumnDef, TableFactor, Value, ValueWithSpan, VisitMut,
    VisitorMut, With, visit_expressions_mut,
};
use datafusion_pg_catalog::pg_catalog::PG_CATALOG_TABLES;

use super::{
    PG_CATALOG,
    array::ARRAY_IN,
    rewrite::{column_name, first_select},
};
use crate::{parse, resolve};

/// For every statement. `types` are those of its parameters that are known.
pub(super) fn of_statement(query: &mut Query, types: &[Option<arrow::datatypes::DataType>]) {
    let _: ControlFlow<()> = query.visit(&mut Any { types });
    name_columns(&mut query.body);
}

/// What asyncpg asks about types that it does not know, arrays above all, without the recursion through types of rows.
const ASYNCPG_TYPES: &str = "select t.oid as oid, n.nspname as ns, t.typname as name, t.typtype as kind, \
    null::int as basetype, t.typelem as elemtype, e.typdelim as elemdelim, null::int as range_subtype, \
    null::text as attrtypoids, null::text as attrnames, 0 as depth, null::text as basetype_name, \
    e.typname as elemtype_name, null::text as range_subtype_name \
    from pg_catalog.pg_type t join pg_catalog.pg_namespace n on n.oid = t.typnamespace \
    left join pg_catalog.pg_type e on e.oid = t.typelem and t.typlen = -1 \
    where array_has($1::oid[], t.oid)";

/// For statements that read the catalog alone.
pub(super) fn of_catalog(query: &mut Query) {
    let is_asyncpg = |with: &With| with.cte_tables.iter().any(|cte| cte.alias.name.value == "typeinfo_tree");
    if query.with.as_ref().is_some_and(is_asyncpg)
        && let Ok(types) = parse::generated(ASYNCPG_TYPES)
    {
        *query = *types;
    }
    let _: ControlFlow<()> = query.visit(&mut Catalog);
}

struct Any<'a> {
    types: &'a [Option<arrow::datatypes::DataType>],
}

impl Any<'_> {
    /// True for a parameter that may be a list of texts: clients send one without a type.
    fn is_texts(&self, placeholder: &str) -> bool {
        let number = placeholder.trim_start_matches('$').parse::<usize>().ok().and_then(|n| n.checked_sub(1));
        match number.and_then(|n| self.types.get(n)) {
            Some(Some(arrow::datatypes::DataType::List(item))) => item.data_type().is_string(),
            Some(Some(_)) => false,
            _ => true,
        }
    }
}

impl VisitorMut for Any<'_> {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, alias: Some(alias), args: Some(_), .. } = factor
            && alias.columns.is_empty()
            && last(name).is_some_and(|name| ["generate_series", "range", "unnest"].contains(&name.as_str()))
        {
            // The one column of `generate_series(1, 2) as i` is `i`.
            alias.columns.push(TableAliasColumnDef { name: alias.name.clone(), data_type: None });
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match expr {
            Expr::Like { pattern, escape_char: escape @ Some(_), .. }
            | Expr::ILike { pattern, escape_char: escape @ Some(_), .. } => {
                // DataFusion knows the backslash only.
                if let Some(ValueWithSpan { value: Value::SingleQuotedString(sign), .. }) = escape
                    && sign != "\\"
                    && let Some(replaced) = escaped_by_backslash(pattern, sign)
                {
                    **pattern = replaced;
                    *escape = None;
                }
            }
            // `x = any($1)` and `x = any('{1,2}')` with a list of no type is one of texts, and so compares texts.
            Expr::AnyOp { left, compare_op: BinaryOperator::Eq, right, .. } => {
                let list = match without_parentheses(right) {
                    Expr::Value(ValueWithSpan { value: Value::Placeholder(placeholder), .. })
                        if self.is_texts(placeholder) =>
                    {
                        format!("{placeholder}::text[]")
                    }
                    text @ Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(_), .. }) => {
                        format!("{ARRAY_IN}({text})")
                    }
                    _ => return ControlFlow::Continue(()),
                };
                if let (Some(list), Some(text)) = (expression(&list), expression(&format!("({left})::text"))) {
                    (**left, **right) = (text, list);
                }
            }
            // Names of the catalog's own tables go before those of the lake's.
            Expr::Cast { expr: name, data_type: DataType::Regclass, .. } => {
                if let Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(name), .. }) = &mut **name
                    && PG_CATALOG_TABLES.contains(&name.as_str())
                {
                    *name = format!("{PG_CATALOG}.{name}");
                }
            }
            // `'{1,2}'::int[]`
            Expr::Cast { expr: text, data_type: DataType::Array(_), .. }
                if matches!(&**text, Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(_), .. })) =>
            {
                if let Some(array) = expression(&format!("{ARRAY_IN}({text})")) {
                    **text = array;
                }
            }
            Expr::Cast { expr: object, data_type, .. } if is_text(data_type) => {
                if let Some(name) = object_name(object) {
                    *expr = name;
                }
            }
            Expr::Function(function) => {
                let target = match last(&function.name).as_deref() {
                    Some("to_regclass") => "regclass",
                    Some("to_regtype") => "regtype",
                    Some("to_regproc") => "regproc",
                    Some("to_regnamespace") => "regnamespace",
                    _ => return ControlFlow::Continue(()),
                };
                if let FunctionArguments::List(list) = &function.args
                    && let [FunctionArg::Unnamed(FunctionArgExpr::Expr(name))] = list.args.as_slice()
                {
                    *expr = Expr::Cast {
                        kind: CastKind::DoubleColon,
                        expr: Box::new(name.clone()),
                        data_type: DataType::Custom(ObjectName::from(vec![Ident::new(target)]), Vec::new()),
                        array: false,
                        format: None,
                    };
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

fn last(name: &ObjectName) -> Option<String> {
    name.0.last().and_then(|part| part.as_ident()).map(resolve::normal)
}

/// An expression of our own making.
fn expression(sql: &str) -> Option<Expr> {
    let query = parse::generated(&format!("select {sql}")).ok()?;
    match *query.body {
        SetExpr::Select(mut select) => match select.projection.pop()? {
            SelectItem::UnnamedExpr(expr) => Some(expr),
            _ => None,
        },
        _ => None,
    }
}

fn without_parentheses(expr: &Expr) -> &Expr {
    match expr {
        Expr::Nested(inner) => without_parentheses(inner),
        other => other,
    }
}

fn is_text(data_type: &DataType) -> bool {
    let name = data_type.to_string().to_lowercase();
    let name = name.strip_prefix("pg_catalog.").unwrap_or(&name);
    ["text", "varchar", "character varying", "name"].contains(&name)
}

/// The name behind `x::regclass` and the like, whose value is a number here.
fn object_name(object: &Expr) -> Option<Expr> {
    let object = without_parentheses(object);
    let Expr::Cast { data_type, .. } = object else { return None };
    let kind = data_type.to_string().to_lowercase();
    let (table, column) = match kind.strip_prefix("pg_catalog.").unwrap_or(&kind) {
        "regclass" => ("pg_class", "relname"),
        "regnamespace" => ("pg_namespace", "nspname"),
        "regrole" => ("pg_roles", "rolname"),
        "regtype" => return expression(&format!("format_type({object}, null)")),
        _ => return None,
    };
    // No column of the subquery has a name that `x` may mean.
    expression(&format!(
        "coalesce((select max(format('%I', \"its name\")) \
         from (select oid as \"its oid\", {column} as \"its name\" from pg_catalog.{table}) \"objects\" \
         where \"its oid\" = {object}), {object}::oid::varchar)"
    ))
}

fn escaped_by_backslash(pattern: &Expr, sign: &str) -> Option<Expr> {
    let doubled = Value::SingleQuotedString(sign.to_owned());
    expression(&format!("replace(replace({pattern}, '\\', '\\\\'), {doubled}, '\\')"))
}

/// Gives columns names of their own where DataFusion would refuse two of one: `select x, x::text`, `select null, null`.
fn name_columns(body: &mut SetExpr) {
    let select = match body {
        SetExpr::Select(select) => select,
        SetExpr::Query(query) => return name_columns(&mut query.body),
        SetExpr::SetOperation { left, right, .. } => {
            name_columns(left);
            return name_columns(right);
        }
        _ => return,
    };
    let (mut seen, mut seen_bare) = (HashSet::new(), HashSet::new());
    for (index, item) in select.projection.iter_mut().enumerate() {
        let (name, is_plain) = match item {
            SelectItem::UnnamedExpr(expr) => {
                let is_plain = matches!(expr, Expr::CompoundIdentifier(_));
                // Of two tables they are two columns.
                let name = if is_plain { expr.to_string() } else { column_name(expr).unwrap_or_default() };
                (name, is_plain)
            }
            SelectItem::ExprWithAlias { alias, .. } => (resolve::normal(alias), false),
            _ => continue,
        };
        let is_new = seen.insert(name.clone())
            && match item {
                SelectItem::UnnamedExpr(expr) => seen_bare.insert(bare(expr)),
                _ => true,
            };
        if let SelectItem::UnnamedExpr(expr) = item
            && !is_new
        {
            let name = if is_plain { column_name(expr).unwrap_or_default() } else { name };
            let alias = Ident::with_quote('"', format!("{name} {index}"));
            *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
        }
    }
}

/// What DataFusion names a column by: it leaves out casts, and a subquery has the name of its one column.
fn bare(expr: &Expr) -> String {
    match expr {
        Expr::Cast { expr, .. } | Expr::Nested(expr) => bare(expr),
        Expr::Subquery(query) => match first_select(&query.body).and_then(<[SelectItem]>::first) {
            Some(SelectItem::UnnamedExpr(expr)) => bare(expr),
            Some(SelectItem::ExprWithAlias { alias, .. }) => alias.to_string(),
            _ => expr.to_string(),
        },
        other => other.to_string(),
    }
}

struct Catalog;

/// Columns of `pg_type` and others that hold functions. They are kept as names, and no function is `-`.
const FUNCTIONS: [&str; 12] = [
    "typinput",
    "typoutput",
    "typreceive",
    "typsend",
    "typmodin",
    "typmodout",
    "typanalyze",
    "typsubscript",
    "amhandler",
    "prosupport",
    "oprcode",
    "tgfoid",
];

impl VisitorMut for Catalog {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match expr {
            Expr::BinaryOp { left, op: BinaryOperator::Eq | BinaryOperator::NotEq, right } => {
                let column = column_name(left);
                if column.is_some_and(|name| FUNCTIONS.contains(&name.as_str()))
                    && let Some(name) = function_name(right)
                {
                    **right = Expr::Value(Value::SingleQuotedString(name).into());
                }
            }
            // A name that is put together while the query runs; what clients look up by it, a lake has not.
            Expr::Cast { data_type: DataType::Regclass, expr: name, .. } if matches!(**name, Expr::Function(_)) => {
                **name = Expr::Value(Value::Null.into());
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        for item in &mut select.projection {
            let _: ControlFlow<()> = visit_expressions_mut(item, in_array);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        if let Some(OrderByKind::Expressions(exprs)) = query.order_by.as_mut().map(|order| &mut order.kind) {
            for expr in exprs {
                let _: ControlFlow<()> = visit_expressions_mut(&mut expr.expr, in_array);
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        const TABLES: [&str; 4] = ["generate_series", "range", "unnest", "pg_get_keywords"];
        if let TableFactor::Table { name, alias, args: Some(args), .. } = factor
            && let Some(function) = last(name)
            && !TABLES.contains(&function.as_str())
        {
            // Any function may stand there, as a table of one row.
            let args = args.args.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let column = alias.as_ref().map_or_else(|| Ident::new(function), |alias| alias.name.clone());
            if let Ok(subquery) = parse::generated(&format!("select {name}({args}) as {column}")) {
                *factor = TableFactor::Derived { lateral: false, subquery, alias: alias.clone(), sample: None };
            }
        }
        ControlFlow::Continue(())
    }
}

fn function_name(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Value(ValueWithSpan { value: Value::Number(number, _), .. }) if number == "0" => Some("-".to_owned()),
        Expr::Cast { expr, data_type, .. } if data_type.to_string().to_lowercase().ends_with("regproc") => {
            match &**expr {
                Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(name), .. }) => {
                    Some(name.rsplit('.').next().unwrap_or(name).to_owned())
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// `x IN (SELECT ...)` outside of WHERE, which DataFusion does not plan, over an array.
fn in_array(expr: &mut Expr) -> ControlFlow<()> {
    if let Expr::InSubquery { expr: value, subquery, negated } = expr {
        let not = if *negated { "not " } else { "" };
        let sql = format!("{not}coalesce(array_has((select array_agg(v) from ({subquery}) a(v)), {value}), false)");
        if let Some(replaced) = expression(&sql) {
            *expr = replaced;
        }
    }
    ControlFlow::Continue(())
}
