use std::{fmt, sync::Arc};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::{Column, TableReference},
    error::Result,
    logical_expr::{
        Between, BinaryExpr, Expr, LogicalPlan, LogicalPlanBuilder, Operator, TableProviderFilterPushDown, TableSource,
        TableType, expr::InList, utils::conjunction, when,
    },
    physical_plan::ExecutionPlan,
};

use super::{Barrier, Policy, barrier};

/// A table behind a policy: a security barrier, as PostgreSQL calls it.
///
/// Nothing of a query is evaluated on a row before the policy has let it pass, except filters that can neither fail nor tell
/// anybody what they saw. Rows that are hidden are counted nowhere.
pub(crate) struct Guarded {
    name: String,
    source: Arc<dyn TableSource>,
    policy: Policy,
}

impl Guarded {
    pub(crate) fn new(name: &str, source: Arc<dyn TableSource>, policy: Policy) -> Self {
        Self { name: name.to_owned(), source, policy }
    }

    /// The table as the policy shows it, with the policy and a query's filters where they prune most.
    pub(crate) fn optimized(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<LogicalPlan> {
        state.optimize(&self.plan(projection, filters, limit)?).map_err(|error| barrier::told(&self.name, error))
    }

    fn plan(&self, projection: Option<&Vec<usize>>, filters: &[Expr], limit: Option<usize>) -> Result<LogicalPlan> {
        let mut plan = LogicalPlanBuilder::scan(TableReference::bare(&*self.name), Arc::clone(&self.source), None)?;
        if let Some(rows) = &self.policy.rows {
            plan = plan.filter(rows.clone())?;
        }
        let named = |field: usize| self.policy.schema.field(field).name();
        let column = |field: usize| Expr::Column(Column::new_unqualified(named(field)));
        let mut cells = Vec::new();
        for (field, mask) in self.policy.cells.iter().enumerate() {
            let cell = match mask {
                None => column(field),
                Some(mask) => when(mask.clone(), column(field)).end()?,
            };
            cells.push(cell.alias(named(field)));
        }
        plan = plan.project(cells)?;
        if let Some(filter) = conjunction(filters.iter().cloned()) {
            plan = plan.filter(filter)?;
        }
        if let Some(projection) = projection {
            plan = plan.project(projection.iter().map(|field| column(*field)).collect::<Vec<_>>())?;
        }
        plan.limit(0, limit)?.build()
    }

    fn projected(&self, projection: Option<&Vec<usize>>) -> Result<SchemaRef> {
        Ok(match projection {
            None => Arc::clone(&self.policy.schema),
            Some(projection) => Arc::new(self.policy.schema.project(projection)?),
        })
    }
}

#[async_trait]
impl TableProvider for Guarded {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.policy.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let support = |filter: &&Expr| match is_harmless(filter) {
            true => TableProviderFilterPushDown::Exact,
            false => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(support).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = self.optimized(state, projection, filters, limit)?;
        let inner = state.query_planner().create_physical_plan(&plan, state).await;
        let inner = inner.map_err(|error| barrier::told(&self.name, error))?;
        Ok(Arc::new(Barrier::new(self.name.clone(), inner, self.projected(projection)?)))
    }
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("name", &self.name).finish_non_exhaustive()
    }
}

/// True for filters that compare columns with values and so cannot fail for any row.
fn is_harmless(filter: &Expr) -> bool {
    let is_column = |expr: &Expr| matches!(expr, Expr::Column(_));
    let is_value = |expr: &Expr| matches!(expr, Expr::Literal(..));
    match filter {
        Expr::Column(_) | Expr::Literal(..) => true,
        Expr::Not(inner)
        | Expr::IsNull(inner)
        | Expr::IsNotNull(inner)
        | Expr::IsTrue(inner)
        | Expr::IsFalse(inner)
        | Expr::IsUnknown(inner)
        | Expr::IsNotTrue(inner)
        | Expr::IsNotFalse(inner)
        | Expr::IsNotUnknown(inner) => is_harmless(inner),
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let is_comparison = matches!(
                op,
                Operator::Eq
                    | Operator::NotEq
                    | Operator::Lt
                    | Operator::LtEq
                    | Operator::Gt
                    | Operator::GtEq
                    | Operator::IsDistinctFrom
                    | Operator::IsNotDistinctFrom
            );
            match op {
                Operator::And | Operator::Or => is_harmless(left) && is_harmless(right),
                _ if is_comparison => (is_column(left) && is_value(right)) || (is_value(left) && is_column(right)),
                _ => false,
            }
        }
        Expr::Between(Between { expr, low, high, .. }) => is_column(expr) && is_value(low) && is_value(high),
        Expr::InList(InList { expr, list, .. }) => is_column(expr) && list.iter().all(is_value),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use datafusion::{
        logical_expr::{binary_expr, lit},
        prelude::{cast, col},
    };

    use super::*;

    #[test]
    fn only_filters_that_cannot_fail_are_harmless() {
        for harmless in [
            col("a").eq(lit(1)),
            lit(1).lt(col("a")),
            col("a").in_list(vec![lit(1), lit(2)], true),
            col("a").between(lit(1), lit(2)),
            col("a").is_null().or(Expr::Not(Box::new(col("b")))),
            col("a").eq(lit(1)).and(col("b").is_not_null()),
        ] {
            assert!(is_harmless(&harmless), "{harmless}");
        }
        let division = || binary_expr(lit(1), Operator::Divide, col("a"));
        for harmful in [
            division().gt(lit(1)),
            cast(col("a"), arrow::datatypes::DataType::Int64).eq(lit(1)),
            col("a").eq(col("b")),
            col("a").eq(lit(1)).or(division().gt(lit(1))),
            col("a").in_list(vec![division()], false),
            col("a").between(lit(1), division()),
            col("a").like(lit("x%")),
            division().is_null(),
            when(col("a").eq(lit(1)), lit(true)).end().unwrap(),
            binary_expr(col("a"), Operator::RegexMatch, lit("(")),
        ] {
            assert!(!is_harmless(&harmful), "{harmful}");
        }
    }
}
