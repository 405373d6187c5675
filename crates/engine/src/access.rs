//! What a caller may read of a table: grants become conditions, columns and masks here, and [`Guarded`] applies them.

mod barrier;
mod guarded;

use std::{collections::BTreeSet, ops::ControlFlow, sync::Arc};

use arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::{
    common::{
        Column, DFSchema, ScalarValue,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    logical_expr::{Expr, ExprSchemable, Volatility, lit, utils::disjunction},
    sql::{
        planner::{PlannerContext, SqlToRel},
        sqlparser::ast::{Expr as SqlExpr, Query, Value, VisitMut, VisitorMut},
    },
};
use headworks_domain::{Access, Columns, Days, Ds, Grant, nearest};

pub(crate) use self::{barrier::Barrier, guarded::Guarded};
use crate::{Error, Listed, Result, SqlLimits, parse, plan::Names, types::sql_type_name};

/// The column that ranges of days are about.
const DS: &str = "ds";
/// The column that event types are values of.
const EVENT_TYPE: &str = "event_type";

/// How much of a table somebody sees.
pub(crate) enum Shown {
    /// All of it.
    All,
    /// What the policy shows.
    Part(Policy),
    /// As much as of a table that is not there.
    Nothing,
}

/// What several grants on one table show together.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    /// The columns that are shown, in the table's order.
    schema: SchemaRef,
    /// The rows that are shown; `None` for all.
    rows: Option<Expr>,
    /// For each column the rows in which it is shown; `None` for all that are.
    cells: Vec<Option<Expr>>,
    /// The days of each grant.
    days: Vec<Days>,
    /// True when it may show other rows the next time, as with `now()`.
    pub(crate) changes_by_itself: bool,
}

impl Policy {
    /// The columns that are shown.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// True when rows of a day may be among those that are shown.
    pub(crate) fn shows_day(&self, day: Ds) -> bool {
        self.days.iter().any(|days| days.has(day))
    }

    /// The same for those rows only that a condition over the table holds for.
    pub(crate) fn and(self, condition: Expr) -> Self {
        let rows = match self.rows {
            Some(rows) => rows.and(condition),
            None => condition,
        };
        Self { rows: Some(rows), ..self }
    }
}

/// What a grant shows of one table.
struct Part<'g> {
    grant: &'g Grant,
    /// `None` for all rows.
    rows: Option<Expr>,
}

/// Finds what an access shows of a table or view.
///
/// A grant that cannot be held against the table, because a column is missing or a filter does not fit, shows nothing of it.
pub(crate) fn shown(access: &Access, name: &str, schema: &Schema, names: &Names<'_>) -> Shown {
    let Some(grants) = access.on(name) else { return Shown::All };
    let part = |grant| match condition(grant, schema, access.user(), names) {
        Ok(rows) => shows_a_column(grant, schema).then_some(Part { grant, rows }),
        Err(error) => {
            tracing::debug!(table = name, %error, "a grant does not fit a table and shows nothing of it");
            None
        }
    };
    let parts: Vec<Part<'_>> = grants.filter_map(part).collect();
    if parts.is_empty() {
        return Shown::Nothing;
    }
    let is_shown = |column: &str| parts.iter().any(|part| part.grant.columns.has(column));
    let mut fields = Vec::new();
    let mut cells = Vec::new();
    for field in schema.fields().iter().filter(|field| is_shown(field.name())) {
        let is_masked = !parts.iter().all(|part| part.grant.columns.has(field.name()));
        let having = parts.iter().filter(|part| part.grant.columns.has(field.name()));
        let cell = if is_masked { any(having) } else { None };
        fields.push(if cell.is_some() {
            Arc::new(field.as_ref().clone().with_nullable(true))
        } else {
            Arc::clone(field)
        });
        cells.push(cell);
    }
    let rows = any(parts.iter());
    if rows.is_none() && fields.len() == schema.fields().len() && cells.iter().all(Option::is_none) {
        return Shown::All;
    }
    let changes_by_itself =
        rows.iter().chain(cells.iter().flatten()).any(|expr| volatility(expr) != Volatility::Immutable);
    Shown::Part(Policy {
        schema: Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone())),
        rows,
        cells,
        days: parts.iter().map(|part| part.grant.days).collect(),
        changes_by_itself,
    })
}

/// The tables and views of a list that an access shows, with the columns that it shows.
pub(crate) fn visible(access: &Access, listed: Vec<Listed>, names: &Names<'_>) -> Vec<Listed> {
    if access.is_everything() {
        return listed;
    }
    let seen = |mut one: Listed| {
        match &one.schema {
            // Of a view's columns one knows when it is read.
            None if access.hides(&one.name) => return None,
            None => {}
            Some(schema) => match shown(access, &one.name, schema, names) {
                Shown::All => {}
                Shown::Part(policy) => one.schema = Some(Arc::clone(policy.schema())),
                Shown::Nothing => return None,
            },
        }
        Some(one)
    };
    listed.into_iter().filter_map(seen).collect()
}

/// Refuses a grant that shows nothing of a table though it names it, with the reason.
pub(crate) fn check(grant: &Grant, schema: &Schema, names: &Names<'_>) -> Result<()> {
    condition(grant, schema, "somebody", names)?;
    let missing = match &grant.columns {
        Columns::All => None,
        Columns::Only(columns) | Columns::Except(columns) => {
            columns.iter().find(|column| schema.field_with_name(column).is_err())
        }
    };
    if let Some(column) = missing {
        let near = nearest(column, schema.fields().iter().map(|field| field.name().as_str()));
        return Err(Error::Plan {
            message: format!("there is no column `{column}`"),
            position: None,
            hint: near.map(|near| format!("did you mean `{near}`?")),
        });
    }
    if shows_a_column(grant, schema) { Ok(()) } else { Err(Error::plan("no column is left to be shown", None)) }
}

fn shows_a_column(grant: &Grant, schema: &Schema) -> bool {
    schema.fields().iter().any(|field| grant.columns.has(field.name()))
}

/// Any of the parts' conditions; `None` when one has none.
fn any<'p, 'g: 'p>(parts: impl Iterator<Item = &'p Part<'g>>) -> Option<Expr> {
    let mut conditions = Vec::new();
    for part in parts {
        let rows = part.rows.clone()?;
        if !conditions.contains(&rows) {
            conditions.push(rows);
        }
    }
    Some(disjunction(conditions).unwrap_or_else(|| lit(false)))
}

/// The rows of a table that a grant shows; `None` for all. Errors: the grant cannot be held against the table.
fn condition(grant: &Grant, schema: &Schema, user: &str, names: &Names<'_>) -> Result<Option<Expr>> {
    let mut all = Vec::new();
    if !grant.days.is_open() {
        let day = |day: Ds| -> Result<Expr> {
            let text = day.to_string();
            match schema.field_with_name(DS).map(|field| field.data_type()) {
                Ok(DataType::Date32) => Ok(lit(ScalarValue::try_from_string(text, &DataType::Date32)?)),
                Ok(t) if is_text(t) => Ok(lit(text)),
                _ => Err(Error::plan(format!("it has no column `{DS}` of days"), None)),
            }
        };
        let ds = || Expr::Column(Column::new_unqualified(DS));
        all.extend(grant.days.from.map(|from| Ok::<_, Error>(ds().gt_eq(day(from)?))).transpose()?);
        all.extend(grant.days.to.map(|to| Ok::<_, Error>(ds().lt_eq(day(to)?))).transpose()?);
    }
    if let Some(types) = &grant.event_types {
        if !schema.field_with_name(EVENT_TYPE).is_ok_and(|field| is_text(field.data_type())) {
            return Err(Error::plan(format!("it has no column `{EVENT_TYPE}` of texts"), None));
        }
        let types = types.iter().map(|one| lit(one.as_str())).collect();
        all.push(Expr::Column(Column::new_unqualified(EVENT_TYPE)).in_list(types, false));
    }
    if let Some(rows) = &grant.rows {
        all.push(filter(rows, schema, user, names)?);
    }
    Ok(all.into_iter().reduce(Expr::and))
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// Makes a row filter of a grant an expression over a table's columns.
fn filter(text: &str, schema: &Schema, user: &str, names: &Names<'_>) -> Result<Expr> {
    let parsed = parsed_filter(text, user)?;
    let schema = DFSchema::try_from(schema.clone())?;
    let planner = SqlToRel::new_with_options(names, names.parser_options());
    let expr = planner.sql_to_expr(parsed, &schema, &mut PlannerContext::new())?;
    let mut refused = None;
    expr.apply(|part| {
        refused = match part {
            Expr::AggregateFunction(_) | Expr::WindowFunction(_) | Expr::Unnest(_) => Some("a function over many rows"),
            Expr::Placeholder(_) => Some("a parameter"),
            Expr::ScalarFunction(call) if call.func.signature().volatility == Volatility::Volatile => {
                Some("a function that gives something else each time")
            }
            _ => None,
        };
        Ok(if refused.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    if let Some(what) = refused {
        return Err(Error::plan(format!("a row filter cannot have {what} in it"), None));
    }
    // What does not fit the columns' types is found here and not when somebody reads.
    let expr = names.simplifier().coerce(expr, &schema)?;
    match expr.get_type(&schema)? {
        DataType::Boolean => Ok(expr),
        other => Err(Error::plan(
            format!("a row filter is true or false for a row, and this one gives {}", sql_type_name(&other)),
            None,
        )),
    }
}

/// Reads a row filter, with the user's name for `current_user`. Errors: it is no expression over the columns of one row.
pub(crate) fn parsed_filter(text: &str, user: &str) -> Result<SqlExpr> {
    let mut parsed = parse::expression(text, &SqlLimits::default())?;
    match parsed.visit(&mut OneRow { user }) {
        ControlFlow::Continue(()) => Ok(parsed),
        ControlFlow::Break(()) => Err(Error::plan("a row filter cannot have a subquery in it", None)),
    }
}

/// Refuses subqueries and puts a name for `current_user`.
struct OneRow<'a> {
    user: &'a str,
}

impl VisitorMut for OneRow<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, _query: &mut Query) -> ControlFlow<()> {
        ControlFlow::Break(())
    }

    fn pre_visit_expr(&mut self, expr: &mut SqlExpr) -> ControlFlow<()> {
        if let SqlExpr::Function(call) = expr
            && let [name] = call.name.0.as_slice()
            && let Some(name) = name.as_ident()
            && name.quote_style.is_none()
            && name.value.to_uppercase() == "CURRENT_USER"
        {
            *expr = SqlExpr::Value(Value::SingleQuotedString(self.user.to_owned()).into());
        }
        ControlFlow::Continue(())
    }
}

fn volatility(expr: &Expr) -> Volatility {
    let mut most = Volatility::Immutable;
    let walked = expr.apply(|part| {
        if let Expr::ScalarFunction(call) = part {
            most = most.max(call.func.signature().volatility);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    if walked.is_ok() { most } else { Volatility::Volatile }
}

/// How a grant stands with the tables that there are.
#[derive(Debug, Default)]
pub struct GrantCheck {
    /// Tables and views of which it shows something.
    pub fitting: BTreeSet<String>,
    /// Tables and views that it names and that it cannot be held against, each with the reason.
    pub unfitting: Vec<(String, Error)>,
}
