//! Which files a filter on the partition columns leaves.

use std::{collections::HashSet, sync::Arc};

use arrow::{
    array::{Array as _, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions},
    compute::{and, prep_null_mask_filter},
    datatypes::{DataType, FieldRef, Schema, SchemaRef},
};
use datafusion::{
    catalog::Session,
    common::{DFSchema, Result, ScalarValue, tree_node::TreeNode as _},
    logical_expr::{Between, BinaryExpr, Expr, Operator, expr::InList, utils::split_conjunction},
};
use headworks_store::Value;

use crate::{
    table::Table,
    types::{self, partition_text},
};

/// A condition on one partition key that the catalog's database can look up in an index.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Narrow {
    /// The key's place among the partition's keys.
    pub key: usize,
    wanted: Wanted,
    /// The key's texts sort as its days do.
    is_sorted: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Wanted {
    /// One of these texts.
    Any(Vec<String>),
    /// Days between these, both included, as texts.
    Days(Option<String>, Option<String>),
}

/// Longer lists are no better than reading all of the table's files.
const TEXTS_MAX: usize = 400;

impl Narrow {
    /// Finds a condition in the filters; an exact match on any key is better than a range.
    ///
    /// `sorted`: the columns of days whose texts sort as they do.
    pub(super) fn find(table: &Table, schema: &Schema, sorted: &[i64], filters: &[Expr]) -> Option<Self> {
        let keys = &table.partition.as_ref()?.columns;
        let mut best: Option<Self> = None;
        for (key, column) in keys.iter().enumerate().filter(|(_, c)| c.transform == "identity") {
            let Ok(field) = schema.field_with_name(&column.name) else { continue };
            let is_sorted = sorted.contains(&column.column_id);
            let mut days: (Option<String>, Option<String>) = (None, None);
            for filter in filters.iter().flat_map(split_conjunction) {
                match Wanted::of(filter, &column.name, field.data_type()) {
                    Some(Wanted::Any(texts)) => return Some(Self { key, wanted: Wanted::Any(texts), is_sorted }),
                    Some(Wanted::Days(from, to)) => {
                        days.0 = days.0.max(from);
                        days.1 = match (days.1, to) {
                            (Some(a), Some(b)) => Some(a.min(b)),
                            (a, b) => a.or(b),
                        };
                    }
                    None => {}
                }
            }
            if best.is_none() && (days.0.is_some() || days.1.is_some()) {
                best = Some(Self { key, wanted: Wanted::Days(days.0, days.1), is_sorted });
            }
        }
        best
    }

    /// The condition in SQL over `column`; its values join `values`.
    pub(super) fn condition(&self, column: &str, values: &mut Vec<Value>) -> String {
        let mut place = |text: &String| {
            values.push(Value::from(text));
            format!("${}", values.len())
        };
        match &self.wanted {
            Wanted::Any(texts) => {
                let places: Vec<String> = texts.iter().map(place).collect();
                format!("{column} in ({})", places.join(", "))
            }
            Wanted::Days(from, to) => {
                let bounds = [
                    from.as_ref().map(|from| format!("{column} >= {}", place(from))),
                    to.as_ref().map(|to| format!("{column} <= {}", place(to))),
                ];
                let bounds: Vec<String> = bounds.into_iter().flatten().collect();
                let within = bounds.join(" and ");
                // Years beyond 9999, years before Christ and `infinity` sort otherwise. Asking for them costs a look at every file.
                if self.is_sorted { within } else { format!("({within} or length({column}) <> 10)") }
            }
        }
    }
}

impl Wanted {
    fn of(filter: &Expr, name: &str, data_type: &DataType) -> Option<Self> {
        let is_key = |expr: &Expr| matches!(expr, Expr::Column(column) if column.name == name);
        let text = |expr: &Expr| match expr {
            // A literal of another type would compare after a cast, which the texts do not follow.
            Expr::Literal(value, _) if value.data_type() == *data_type => match data_type {
                DataType::Date32 => partition_text(value).filter(|t| t.len() == 10),
                t if t.is_integer() || *t == DataType::Utf8View => partition_text(value),
                _ => None,
            },
            _ => None,
        };
        match filter {
            // `a = 1 or a = 2`, which short IN lists are rewritten to.
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
                match (Self::of(left, name, data_type)?, Self::of(right, name, data_type)?) {
                    (Self::Any(mut a), Self::Any(b)) => {
                        a.extend(b);
                        Some(Self::Any(a))
                    }
                    _ => None,
                }
            }
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                let (op, literal) = match (is_key(left), is_key(right)) {
                    (true, false) => (*op, right),
                    (false, true) => (op.swap()?, left),
                    _ => return None,
                };
                let text = text(literal)?;
                match op {
                    Operator::Eq => Some(Self::Any(vec![text])),
                    // Files of the bound itself are sorted out later: SQL only has to keep enough.
                    Operator::Gt | Operator::GtEq if *data_type == DataType::Date32 => {
                        Some(Self::Days(Some(text), None))
                    }
                    Operator::Lt | Operator::LtEq if *data_type == DataType::Date32 => {
                        Some(Self::Days(None, Some(text)))
                    }
                    _ => None,
                }
            }
            Expr::InList(InList { expr, list, negated: false }) if is_key(expr) && list.len() <= TEXTS_MAX => {
                list.iter().map(text).collect::<Option<_>>().map(Self::Any)
            }
            Expr::Between(Between { expr, negated: false, low, high })
                if is_key(expr) && *data_type == DataType::Date32 =>
            {
                Some(Self::Days(Some(text(low)?), Some(text(high)?)))
            }
            _ => None,
        }
    }
}

/// True when the filter needs nothing but these columns, so that a file's partition values decide it for all its rows.
pub(super) fn is_on(filter: &Expr, columns: &HashSet<&str>) -> bool {
    let used = filter.column_refs();
    !used.is_empty() && used.iter().all(|c| columns.contains(c.name.as_str())) && !filter.is_volatile()
}

/// True when some part of the filter is a query of its own.
pub(super) fn has_subquery(filter: &Expr) -> bool {
    let is_query = |e: &Expr| {
        Ok(matches!(e, Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) | Expr::SetComparison(_)))
    };
    filter.exists(is_query).unwrap_or(true)
}

/// Says for each row of partition values whether all the filters hold.
pub(super) fn matching(
    state: &dyn Session,
    filters: &[&Expr],
    fields: &[FieldRef],
    columns: Vec<ArrayRef>,
    rows: usize,
) -> Result<BooleanArray> {
    let schema: SchemaRef = Arc::new(Schema::new(fields.to_vec()));
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    let batch = RecordBatch::try_new_with_options(Arc::clone(&schema), columns, &options)?;
    holding(state, filters, &batch)
}

/// Says for each row of a batch whether all the filters hold.
pub(super) fn holding(state: &dyn Session, filters: &[&Expr], batch: &RecordBatch) -> Result<BooleanArray> {
    let schema = DFSchema::try_from(batch.schema())?;
    let mut kept = BooleanArray::from(vec![true; batch.num_rows()]);
    for filter in filters {
        let expr = state.create_physical_expr((*filter).clone(), &schema)?;
        let answer = expr.evaluate(batch)?.into_array(batch.num_rows())?;
        let answer = answer.as_boolean();
        let answer = if answer.null_count() > 0 { prep_null_mask_filter(answer) } else { answer.clone() };
        kept = and(&kept, &answer)?;
    }
    Ok(kept)
}

/// Reads partition values as the catalog keeps them. `None` when a text is not of the type.
pub(super) fn value(text: Option<&str>, data_type: &DataType) -> Option<ScalarValue> {
    match text {
        None => ScalarValue::try_from(data_type).ok(),
        // DuckDB writes a blob's bytes in more than one way; such a file is read like any other column.
        Some(_) if matches!(data_type, DataType::Binary | DataType::BinaryView) => None,
        Some(text) => types::scalar(text, data_type),
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Field;
    use datafusion::prelude::{col, lit};

    use super::*;
    use crate::table::{Partition, PartitionColumn};

    fn narrow(filter: Expr, sorted: &[i64]) -> Option<(String, Vec<Value>)> {
        let key = |column_id, name: &str| PartitionColumn {
            column_id,
            name: name.to_owned(),
            transform: "identity".to_owned(),
        };
        let table = Table {
            id: 1,
            uuid: uuid::Uuid::nil(),
            name: "t".to_owned(),
            path: "main/t/".to_owned(),
            columns: Vec::new(),
            partition: Some(Partition { id: 2, columns: vec![key(1, "ds"), key(2, "hour")] }),
            comment: None,
            schema_version: 1,
        };
        let schema =
            Schema::new(vec![Field::new("ds", DataType::Date32, true), Field::new("hour", DataType::Int32, true)]);
        let found = Narrow::find(&table, &schema, sorted, &[filter])?;
        let mut values = Vec::new();
        let sql = found.condition(&format!("k{}", found.key), &mut values);
        Some((sql, values))
    }

    fn day(text: &str) -> Expr {
        lit(types::scalar(text, &DataType::Date32).unwrap())
    }

    fn check(filter: Expr, sql: &str, texts: &[&str]) {
        let (found, values) = narrow(filter, &[]).expect(sql);
        assert_eq!(found, sql);
        assert_eq!(values, texts.iter().map(|t| Value::from(*t)).collect::<Vec<_>>());
    }

    #[test]
    fn filters_become_conditions_that_an_index_serves() {
        check(col("ds").eq(day("2013-01-01")), "k0 in ($1)", &["2013-01-01"]);
        check(day("2013-01-01").eq(col("ds")), "k0 in ($1)", &["2013-01-01"]);
        check(
            col("ds").in_list(vec![day("2013-01-01"), day("2013-01-03")], false),
            "k0 in ($1, $2)",
            &["2013-01-01", "2013-01-03"],
        );
        check(
            col("ds").eq(day("2013-01-01")).or(col("ds").eq(day("2013-01-03"))),
            "k0 in ($1, $2)",
            &["2013-01-01", "2013-01-03"],
        );
        check(
            col("ds")
                .gt(day("2013-01-01"))
                .and(col("ds").lt_eq(day("2013-01-09")))
                .and(day("2013-01-05").lt(col("ds"))),
            "(k0 >= $1 and k0 <= $2 or length(k0) <> 10)",
            &["2013-01-05", "2013-01-09"],
        );
        check(
            col("ds").between(day("2013-01-01"), day("2013-01-02")),
            "(k0 >= $1 and k0 <= $2 or length(k0) <> 10)",
            &["2013-01-01", "2013-01-02"],
        );
        check(col("hour").eq(lit(5_i32)).and(col("ds").gt(day("2013-01-01"))), "k1 in ($1)", &["5"]);
        check(col("hour").eq(lit(5_i32)).and(col("ds").eq(day("2013-01-01"))), "k0 in ($1)", &["2013-01-01"]);
    }

    #[test]
    fn days_that_sort_as_texts_are_one_range() {
        let week = col("ds").between(day("2013-01-01"), day("2013-01-07"));
        assert_eq!(narrow(week, &[1]).map(|(sql, _)| sql).as_deref(), Some("k0 >= $1 and k0 <= $2"));
    }

    #[test]
    fn other_filters_narrow_nothing() {
        for filter in [
            col("ds").not_eq(day("2013-01-01")),
            col("ds").eq(lit("2013-01-01")),
            col("ds").in_list(vec![day("2013-01-01")], true),
            col("ds").eq(day("2013-01-01")).or(col("other").eq(lit(1))),
            col("hour").gt(lit(5_i32)),
            col("ds").eq(col("hour")),
            col("ds").is_null(),
        ] {
            assert_eq!(narrow(filter.clone(), &[]), None, "{filter}");
        }
    }
}
