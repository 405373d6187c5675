//! Subqueries of clients over catalogs that have no rows here: indexes, constraints, triggers, policies and the like.
//!
//! Clients ask for them in ways that DataFusion cannot plan, and the answer is known: nothing. What is left are subqueries
//! for one value, which DataFusion can untangle when they aggregate.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    DataType, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, GroupByExpr,
    Ident, JoinOperator, ObjectName, Query, Select, SelectItem, SetExpr, Statement, TableFactor, Value, Visit,
    VisitMut, Visitor, VisitorMut,
};

use super::rewrite::column_name;
use crate::resolve;

/// Tables of `pg_catalog` that have no rows, because a lake has no such things.
pub(super) const EMPTY: [&str; 35] = [
    "pg_attrdef",
    "pg_auth_members",
    "pg_collation",
    "pg_constraint",
    "pg_db_role_setting",
    "pg_default_acl",
    "pg_depend",
    "pg_enum",
    "pg_event_trigger",
    "pg_foreign_data_wrapper",
    "pg_foreign_server",
    "pg_foreign_table",
    "pg_index",
    "pg_indexes",
    "pg_inherits",
    "pg_init_privs",
    "pg_largeobject",
    "pg_largeobject_metadata",
    "pg_matviews",
    "pg_partitioned_table",
    "pg_policy",
    "pg_publication",
    "pg_publication_namespace",
    "pg_publication_rel",
    "pg_replication_origin",
    "pg_replication_slots",
    "pg_rewrite",
    "pg_seclabel",
    "pg_sequence",
    "pg_sequences",
    "pg_shdepend",
    "pg_statistic_ext",
    "pg_statistic_ext_data",
    "pg_trigger",
    "pg_user_mapping",
];

/// Replaces subqueries that give nothing by what that means, and the whole statement too.
pub(super) fn without_empty(query: &mut Query) {
    let _: ControlFlow<()> = query.visit(&mut Pruner);
    // The outermost is pruned like the others, but for its names.
    if is_empty(query)
        && let Some(nothing) = nothing(query)
    {
        *query.body = nothing;
        (query.with, query.order_by, query.limit_clause) = (None, None, None);
    }
}

/// Makes subqueries for one value aggregate: PostgreSQL lets them give one row at most, so the largest is the only one.
pub(super) fn with_one_value(statement: &mut Statement) {
    let _: ControlFlow<()> = statement.visit(&mut OneValue);
}

struct Pruner;

impl VisitorMut for Pruner {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let value = match expr {
            Expr::Subquery(query) if is_empty(query) => Value::Null,
            Expr::Exists { subquery, negated } if is_empty(subquery) => Value::Boolean(*negated),
            Expr::InSubquery { subquery, negated, .. } if is_empty(subquery) => Value::Boolean(*negated),
            Expr::Function(function) if is_array_of_nothing(function) => Value::Null,
            _ => return ControlFlow::Continue(()),
        };
        *expr = Expr::Value(value.into());
        ControlFlow::Continue(())
    }

    fn post_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::Derived { subquery, .. } = factor
            && is_empty(subquery)
            && let Some(nothing) = nothing(subquery)
        {
            *subquery.body = nothing;
            (subquery.order_by, subquery.limit_clause) = (None, None);
        }
        ControlFlow::Continue(())
    }
}

/// `array(select ...)`.
fn is_array_of_nothing(function: &Function) -> bool {
    matches!(&function.args, FunctionArguments::Subquery(query) if is_empty(query))
}

/// True when a query gives no rows whatever else there is.
fn is_empty(query: &Query) -> bool {
    query.with.is_none() && is_empty_body(&query.body)
}

fn is_empty_body(body: &SetExpr) -> bool {
    match body {
        SetExpr::Select(select) => is_empty_select(select),
        SetExpr::Query(query) => is_empty(query),
        SetExpr::SetOperation { left, right, .. } => is_empty_body(left) && is_empty_body(right),
        _ => false,
    }
}

fn is_empty_select(select: &Select) -> bool {
    if matches!(&select.selection, Some(Expr::Value(value)) if value.value == Value::Boolean(false)) {
        return !aggregates(select);
    }
    let reads_nothing = select.from.iter().any(|table| {
        let keeps_first = |operator: &JoinOperator| {
            matches!(
                operator,
                JoinOperator::Join(_)
                    | JoinOperator::Inner(_)
                    | JoinOperator::CrossJoin(_)
                    | JoinOperator::Left(_)
                    | JoinOperator::LeftOuter(_)
            )
        };
        let needs_second = |operator: &JoinOperator| {
            matches!(operator, JoinOperator::Join(_) | JoinOperator::Inner(_) | JoinOperator::CrossJoin(_))
        };
        let is_simple = table.joins.iter().all(|join| keeps_first(&join.join_operator));
        is_simple
            && (is_empty_table(&table.relation)
                || table.joins.iter().any(|join| needs_second(&join.join_operator) && is_empty_table(&join.relation)))
    });
    reads_nothing && !aggregates(select)
}

fn is_empty_table(table: &TableFactor) -> bool {
    match table {
        TableFactor::Table { name, args: None, .. } => {
            let last = name.0.last().and_then(|part| part.as_ident()).map(resolve::normal);
            last.is_some_and(|name| EMPTY.contains(&name.as_str()))
        }
        TableFactor::Derived { subquery, .. } => is_empty(subquery),
        // Storage parameters, which no relation has.
        TableFactor::UNNEST { array_exprs, .. } => matches!(array_exprs.as_slice(), [array] if is_reloptions(array)),
        TableFactor::Table { name, args: Some(args), .. } => {
            let last = name.0.last().and_then(|part| part.as_ident()).map(resolve::normal);
            last.as_deref() == Some("unnest")
                && matches!(args.args.as_slice(), [FunctionArg::Unnamed(FunctionArgExpr::Expr(array))] if is_reloptions(array))
        }
        TableFactor::NestedJoin { table_with_joins, .. } if table_with_joins.joins.is_empty() => {
            is_empty_table(&table_with_joins.relation)
        }
        _ => false,
    }
}

fn is_reloptions(expr: &Expr) -> bool {
    let column = match expr {
        Expr::Identifier(name) => Some(name),
        Expr::CompoundIdentifier(names) => names.last(),
        _ => None,
    };
    column.is_some_and(|name| resolve::normal(name) == "reloptions")
}

/// True when a select may give one row of no rows.
fn aggregates(select: &Select) -> bool {
    let has_groups = match &select.group_by {
        GroupByExpr::All(_) => true,
        GroupByExpr::Expressions(exprs, _) => !exprs.is_empty(),
    };
    if has_groups {
        return false;
    }
    let mut finder = Aggregates { depth: 0 };
    select.having.is_some() || select.projection.iter().any(|item| item.visit(&mut finder).is_break())
}

/// Finds aggregates, but not those of subqueries.
struct Aggregates {
    depth: usize,
}

impl Visitor for Aggregates {
    type Break = ();

    fn pre_visit_query(&mut self, _query: &Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _query: &Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        const NAMES: [&str; 12] = [
            "count",
            "sum",
            "min",
            "max",
            "avg",
            "array_agg",
            "string_agg",
            "bool_and",
            "bool_or",
            "every",
            "json_agg",
            "jsonb_agg",
        ];
        if let Expr::Function(function) = expr
            && self.depth == 0
            // One over a window gives as many rows as there were.
            && function.over.is_none()
            && let Some(name) = function.name.0.last().and_then(|part| part.as_ident()).map(resolve::normal)
            && NAMES.contains(&name.as_str())
        {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

/// The same columns of no rows; none when they cannot be named without the tables.
fn nothing(query: &Query) -> Option<SetExpr> {
    let mut body = query.body.as_ref();
    let select = loop {
        match body {
            SetExpr::Select(select) => break select,
            SetExpr::Query(query) => body = &query.body,
            SetExpr::SetOperation { left, .. } => body = left,
            _ => return None,
        }
    };
    let mut projection = Vec::with_capacity(select.projection.len());
    for (index, item) in select.projection.iter().enumerate() {
        let alias = match item {
            SelectItem::ExprWithAlias { alias, .. } => alias.clone(),
            SelectItem::UnnamedExpr(expr) => {
                let name = column_name(expr).unwrap_or_else(|| format!("column_{index}"));
                Ident::with_quote('"', name)
            }
            _ => return None,
        };
        let expr = Expr::Cast {
            kind: datafusion::sql::sqlparser::ast::CastKind::DoubleColon,
            expr: Box::new(Expr::Value(Value::Null.into())),
            data_type: DataType::Text,
            array: false,
            format: None,
        };
        projection.push(SelectItem::ExprWithAlias { expr, alias });
    }
    // Two columns of one name would not be planned.
    for index in 1..projection.len() {
        let (before, rest) = projection.split_at_mut(index);
        if let SelectItem::ExprWithAlias { alias, .. } = &mut rest[0]
            && before
                .iter()
                .any(|item| matches!(item, SelectItem::ExprWithAlias { alias: a, .. } if a.value == alias.value))
        {
            *alias = Ident::with_quote('"', format!("{}_{index}", alias.value));
        }
    }
    let mut select = select.as_ref().clone();
    select.projection = projection;
    select.from = Vec::new();
    select.selection = Some(Expr::Value(Value::Boolean(false).into()));
    select.group_by = GroupByExpr::Expressions(Vec::new(), Vec::new());
    (select.distinct, select.having) = (None, None);
    Some(SetExpr::Select(Box::new(select)))
}

struct OneValue;

impl VisitorMut for OneValue {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::Subquery(query) = expr
            && query.limit_clause.is_none()
            && query.order_by.is_none()
            && let SetExpr::Select(select) = query.body.as_mut()
            && !select.from.is_empty()
            && matches!(&select.group_by, GroupByExpr::Expressions(exprs, _) if exprs.is_empty())
            && !aggregates(select)
            && let [SelectItem::UnnamedExpr(value) | SelectItem::ExprWithAlias { expr: value, .. }] =
                select.projection.as_mut_slice()
        {
            *value = max(value.clone());
        }
        ControlFlow::Continue(())
    }
}

fn max(expr: Expr) -> Expr {
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new("max")]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: vec![FunctionArg::Unnamed(FunctionArgExpr::Expr(expr))],
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    #[test]
    fn only_what_gives_nothing_is_pruned() {
        let check = |sql: &str, expected: &str| {
            let mut query = parse::generated(sql).unwrap();
            without_empty(&mut query);
            assert_eq!(query.to_string().to_lowercase(), expected, "{sql}");
        };
        let same = |sql: &str| check(sql, sql);
        let nothing = "select null::text as \"indexrelid\" where false";
        check("select indexrelid from pg_index", nothing);
        check(
            "select array(select x from pg_catalog.unnest(c.reloptions) x) from pg_class c",
            "select null from pg_class c",
        );
        same("select array(select x from unnest(c.other) as x) from pg_class as c");
        check("select i.indexrelid from pg_class c join pg_catalog.pg_index i on true order by 1 limit 5", nothing);
        check("select i.indexrelid from pg_index i left join pg_class c on true", nothing);
        check("select (select 1 from pg_index), exists (select 1 from pg_index)", "select null, false");
        check("select a from t where a in (select 1 from pg_trigger)", "select null::text as \"a\" where false");
        check("select a from t where a not in (select 1 from pg_trigger)", "select a from t where true");
        check("select x.a from (select 1 as a from pg_policy) as x, t", "select null::text as \"a\" where false");
        same("select count(*) from pg_index");
        let inner = "select (select count(*) from t) as n from pg_index";
        check(inner, "select null::text as n where false");
        same("select max(indexrelid) from pg_index having true");
        same("select c.oid from pg_class as c left join pg_index as i on true");
        same("select c.oid from pg_class as c right join pg_index as i on true");
        same("select oid from pg_class where false or true");
        same("select 1 from pg_index union all select 2");
    }

    #[test]
    fn subqueries_for_one_value_aggregate() {
        let check = |sql: &str, expected: &str| {
            let mut statement = Statement::Query(parse::generated(sql).unwrap());
            with_one_value(&mut statement);
            assert_eq!(statement.to_string(), expected, "{sql}");
        };
        check(
            "select (select a from t where t.b = u.b) from u",
            "SELECT (SELECT max(a) FROM t WHERE t.b = u.b) FROM u",
        );
        check("select (select count(*) from t)", "SELECT (SELECT count(*) FROM t)");
        check("select (select a from t order by b limit 1)", "SELECT (SELECT a FROM t ORDER BY b LIMIT 1)");
        check("select (select 1)", "SELECT (SELECT 1)");
    }
}
