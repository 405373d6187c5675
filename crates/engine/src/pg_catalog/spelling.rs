//! What PostgreSQL writes otherwise than DataFusion, put into DataFusion's words.

use std::{collections::HashSet, ops::ControlFlow};

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, CastKind, DataType, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectName,
    OrderByKind, Query, Select, SelectItem, SetExpr, TableAliasColumnDef, TableFactor, Value, ValueWithSpan, VisitMut,
    VisitorMut, visit_expressions_mut,
};

use super::rewrite::column_name;
use crate::{parse, resolve};

/// For every statement.
pub(super) fn of_statement(query: &mut Query) {
    let _: ControlFlow<()> = query.visit(&mut Any);
    name_columns(&mut query.body);
}

/// For statements that read the catalog alone.
pub(super) fn of_catalog(query: &mut Query) {
    let _: ControlFlow<()> = query.visit(&mut Catalog);
}

struct Any;

impl VisitorMut for Any {
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
    let mut seen = HashSet::new();
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
        let is_new = seen.insert(name.clone());
        if let SelectItem::UnnamedExpr(expr) = item
            && !is_new
        {
            let name = if is_plain { column_name(expr).unwrap_or_default() } else { name };
            let alias = Ident::with_quote('"', format!("{name} {index}"));
            *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
        }
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
