//! How a result meets its table: which column goes where, what the table gains, what does not fit.

use arrow::datatypes::{DataType, Schema};

use crate::{
    Error, Result,
    table::{Column, Table},
    types::{self, TypeTree},
};

/// A column as its job declares it.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnSpec {
    /// The name.
    pub name: String,
    /// The type, when the job states one: results are cast to it.
    pub data_type: Option<DataType>,
    /// The description.
    pub comment: Option<String>,
}

/// Where a column of the table gets its values from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A column of the result.
    Result(usize),
    /// The partition that is written.
    Key,
    /// Nowhere: the result has no such column.
    Nothing,
}

/// How a result is stored in its table.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// The table's columns after the publish.
    pub columns: Vec<Column>,
    /// One for each column.
    pub origins: Vec<Origin>,
    /// Ids of columns that the table gains.
    pub added: Vec<i64>,
    /// Ids of columns whose type grows.
    pub widened: Vec<i64>,
}

/// Fits a result's schema to a table, or designs the table when there is none.
///
/// `next_id` is the first column id that the table never used. Errors: `Schema` with the column and the reason.
pub(crate) fn fit(
    name: &str,
    table: Option<&Table>,
    partition_by: &[&str],
    declared: &[ColumnSpec],
    result: &Schema,
    next_id: i64,
) -> Result<Shape> {
    let wrong = |reason: String| Error::Schema { table: name.to_owned(), reason };
    for spec in declared.iter().filter(|spec| !partition_by.contains(&spec.name.as_str())) {
        if result.column_with_name(&spec.name).is_none() {
            let has = result.fields().iter().map(|f| format!("`{}`", f.name())).collect::<Vec<_>>().join(", ");
            return Err(wrong(format!("the job declares column `{}`, its result has {has}", spec.name)));
        }
    }
    for (i, field) in result.fields().iter().enumerate() {
        if result.fields()[..i].iter().any(|f| f.name().eq_ignore_ascii_case(field.name())) {
            return Err(wrong(format!("the result has two columns called `{}`", field.name())));
        }
    }
    let mut shape = Shape { columns: Vec::new(), origins: Vec::new(), added: Vec::new(), widened: Vec::new() };
    let mut ids = next_id;
    for existing in table.map(|t| t.columns.as_slice()).unwrap_or_default() {
        let at = result.fields().iter().position(|f| f.name().eq_ignore_ascii_case(&existing.name));
        let is_key = partition_by.contains(&existing.name.as_str());
        let mut column = existing.clone();
        let origin = match at {
            Some(i) if is_key => castable(result.field(i).data_type(), &existing.data_type)
                .then_some(Origin::Result(i))
                .ok_or_else(|| wrong(mismatch(&existing.name, result.field(i).data_type(), &existing.data_type)))?,
            Some(i) => {
                let spec = declared.iter().find(|d| d.name == existing.name);
                let wanted = wanted(spec, result.field(i).data_type())
                    .map_err(|r| wrong(format!("column `{}` {r}", existing.name)))?;
                if let Some(spec) = spec {
                    column.comment.clone_from(&spec.comment);
                }
                if stores(&wanted, &existing.data_type) {
                } else if widens(&existing.data_type, &wanted) {
                    column.ducklake_type = types::tree(&wanted).map(|t| t.ducklake_type).unwrap_or_default();
                    column.data_type = wanted;
                    shape.widened.push(existing.id);
                } else {
                    return Err(wrong(mismatch(&existing.name, &wanted, &existing.data_type)));
                }
                Origin::Result(i)
            }
            None if is_key => Origin::Key,
            None => Origin::Nothing,
        };
        shape.columns.push(column);
        shape.origins.push(origin);
    }
    if table.is_none() {
        for key in partition_by {
            let data_type = match *key {
                "ds" => DataType::Date32,
                "hour" => DataType::Int32,
                _ => DataType::Utf8,
            };
            let at = result.fields().iter().position(|f| f.name().eq_ignore_ascii_case(key));
            if let Some(i) = at.filter(|i| !castable(result.field(*i).data_type(), &data_type)) {
                return Err(wrong(mismatch(key, result.field(i).data_type(), &data_type)));
            }
            let comment = declared.iter().find(|d| d.name == *key).and_then(|d| d.comment.clone());
            shape.columns.push(column(
                (*key).to_owned(),
                &types::tree(&data_type).ok_or_else(|| wrong(String::new()))?,
                comment,
                &mut ids,
            ));
            shape.origins.push(at.map_or(Origin::Key, Origin::Result));
        }
    }
    for (i, field) in result.fields().iter().enumerate() {
        if shape.origins.contains(&Origin::Result(i)) {
            continue;
        }
        let spec = declared.iter().find(|d| d.name.eq_ignore_ascii_case(field.name()));
        let wanted = wanted(spec, field.data_type()).map_err(|r| wrong(format!("column `{}` {r}", field.name())))?;
        let tree = types::tree(&wanted).ok_or_else(|| {
            wrong(format!("column `{}` has type {}, which a table cannot store", field.name(), sql_name(&wanted)))
        })?;
        let column = column(field.name().clone(), &tree, spec.and_then(|s| s.comment.clone()), &mut ids);
        if table.is_some() {
            shape.added.push(column.id);
        }
        shape.columns.push(column);
        shape.origins.push(Origin::Result(i));
    }
    Ok(shape)
}

/// The type to store: the declared one, else the result's own in its normal form.
fn wanted(spec: Option<&ColumnSpec>, result: &DataType) -> Result<DataType, String> {
    if let Some(declared) = spec.and_then(|s| s.data_type.as_ref()) {
        return if castable(result, declared) {
            Ok(declared.clone())
        } else {
            Err(format!("is declared as {}, the result has {}", sql_name(declared), sql_name(result)))
        };
    }
    match result {
        // A column of nothing but nulls.
        DataType::Null => Ok(DataType::Utf8),
        // Nanoseconds are DataFusion's default for literals, not a wish; the SQL type is microseconds.
        DataType::Timestamp(_, None) => Ok(DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, None)),
        // What count() and row_number() give is a bigint to everybody else.
        DataType::UInt64 => Ok(DataType::Int64),
        other => {
            types::normal(other).ok_or_else(|| format!("has type {}, which a table cannot store", sql_name(other)))
        }
    }
}

fn column(name: String, tree: &TypeTree, comment: Option<String>, ids: &mut i64) -> Column {
    let id = *ids;
    *ids += 1;
    let children: Vec<Column> = tree
        .children
        .iter()
        .map(|(name, nullable, child)| Column { nullable: *nullable, ..column(name.clone(), child, None, ids) })
        .collect();
    let data_type = types::data_type(&tree.ducklake_type, &children).unwrap_or(DataType::Null);
    Column {
        id,
        name,
        data_type,
        ducklake_type: tree.ducklake_type.clone(),
        nullable: true,
        comment,
        initial_default: None,
        children,
    }
}

fn mismatch(column: &str, result: &DataType, table: &DataType) -> String {
    format!("column `{column}` is {} in the table and {} in the result", sql_name(table), sql_name(result))
}

/// True when every value of `from` fits `to` unchanged, or the cast says which does not.
fn stores(from: &DataType, to: &DataType) -> bool {
    use DataType as T;
    from == to
        || *from == T::Null
        || widens(from, to)
        || matches!((from, to), (T::Date32, T::Timestamp(_, None)))
        || matches!(from, T::Int8 | T::Int16 | T::Int32 | T::Int64) && matches!(to, T::Decimal128(..))
        || matches!((from, to), (T::Struct(_), T::Struct(_)) | (T::List(_), T::List(_)) | (T::Map(..), T::Map(..)))
            && arrow::compute::can_cast_types(from, to)
            && format!("{from}").len() == format!("{to}").len()
}

/// True when a column of type `from` can become one of type `to` with every value kept: DuckLake's type promotion.
fn widens(from: &DataType, to: &DataType) -> bool {
    use DataType as T;
    let rank = |t: &T| match t {
        T::Int8 => Some((true, 8)),
        T::Int16 => Some((true, 16)),
        T::Int32 => Some((true, 32)),
        T::Int64 => Some((true, 64)),
        T::UInt8 => Some((false, 8)),
        T::UInt16 => Some((false, 16)),
        T::UInt32 => Some((false, 32)),
        T::UInt64 => Some((false, 64)),
        _ => None,
    };
    match (rank(from), rank(to)) {
        (Some((false, a)), Some((_, b))) => return a < b,
        (Some((true, a)), Some((true, b))) => return a < b,
        _ => {}
    }
    match (from, to) {
        (T::Float32, T::Float64) => true,
        (T::Int8 | T::Int16 | T::Int32, T::Float64) => true,
        (T::Decimal128(p, s), T::Decimal128(q, t)) => {
            t >= s && i16::from(*q) - i16::from(*t) >= i16::from(*p) - i16::from(*s) && (q, t) != (p, s)
        }
        _ => false,
    }
}

/// True when a declared type may be made of a result's: numbers of numbers (but no whole numbers of fractions), times of days,
/// text of anything. Values that do not fit are errors when they come.
fn castable(from: &DataType, to: &DataType) -> bool {
    use DataType as T;
    let text = |t: &T| matches!(t, T::Utf8 | T::LargeUtf8 | T::Utf8View);
    let fraction = |t: &T| matches!(t, T::Float16 | T::Float32 | T::Float64);
    if *from == T::Null || from == to {
        return true;
    }
    match (from, to) {
        (T::Dictionary(_, values), _) => castable(values, to),
        (a, b) if text(b) => !a.is_nested() || text(a),
        (a, T::Binary) => matches!(a, T::Binary | T::LargeBinary | T::BinaryView | T::FixedSizeBinary(_)),
        (a, b) if a.is_integer() && b.is_numeric() => true,
        (a, b) if fraction(a) => fraction(b) || matches!(b, T::Decimal128(..)),
        (a, b) if a.is_decimal() => b.is_decimal() || fraction(b),
        (T::Date32 | T::Date64, T::Date32 | T::Timestamp(..)) => true,
        (T::Timestamp(_, a), T::Timestamp(_, b)) => a.is_some() == b.is_some(),
        (T::Time32(_) | T::Time64(_), T::Time64(_)) => true,
        // `ds` and `hour` come as text from sources that have no dates.
        (a, T::Date32) => text(a),
        (a, b) => types::normal(a).as_ref() == Some(b) || a.is_nested() && arrow::compute::can_cast_types(a, b),
    }
}

/// A type as SQL names it, for messages.
pub(crate) fn sql_name(data_type: &DataType) -> String {
    use DataType as T;
    match data_type {
        T::Boolean => "boolean".to_owned(),
        T::Int8 => "tinyint".to_owned(),
        T::Int16 => "smallint".to_owned(),
        T::Int32 => "integer".to_owned(),
        T::Int64 => "bigint".to_owned(),
        T::Float32 => "real".to_owned(),
        T::Float64 => "double".to_owned(),
        T::Decimal128(p, s) | T::Decimal256(p, s) => format!("decimal({p},{s})"),
        T::Utf8 | T::LargeUtf8 | T::Utf8View => "varchar".to_owned(),
        T::Binary | T::LargeBinary | T::BinaryView => "blob".to_owned(),
        T::Date32 | T::Date64 => "date".to_owned(),
        T::Time32(_) | T::Time64(_) => "time".to_owned(),
        T::Timestamp(_, None) => "timestamp".to_owned(),
        T::Timestamp(_, Some(_)) => "timestamptz".to_owned(),
        T::List(e) | T::LargeList(e) => format!("{}[]", sql_name(e.data_type())),
        other => format!("{other}").to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{Field, TimeUnit};
    use uuid::Uuid;

    use super::*;

    fn result(fields: &[(&str, DataType)]) -> Schema {
        Schema::new(fields.iter().map(|(n, t)| Field::new(*n, t.clone(), true)).collect::<Vec<_>>())
    }

    fn table(fields: &[(&str, DataType)]) -> Table {
        let shape = fit("t", None, &["ds"], &[], &result(fields), 1).unwrap();
        Table {
            id: 1,
            uuid: Uuid::nil(),
            name: "t".to_owned(),
            path: "main/t/".to_owned(),
            columns: shape.columns,
            partition: None,
            comment: None,
            schema_version: 1,
        }
    }

    #[test]
    fn a_new_table_begins_with_its_keys() {
        let shape =
            fit("t", None, &["ds", "hour"], &[], &result(&[("a", DataType::UInt64), ("ds", DataType::Utf8)]), 1)
                .unwrap();
        let columns: Vec<_> = shape.columns.iter().map(|c| (c.id, c.name.as_str(), c.ducklake_type.as_str())).collect();
        assert_eq!(columns, [(1, "ds", "date"), (2, "hour", "int32"), (3, "a", "int64")]);
        assert_eq!(shape.origins, [Origin::Result(1), Origin::Key, Origin::Result(0)]);
    }

    #[test]
    fn compatible_changes_evolve() {
        let before = table(&[("a", DataType::Int32), ("gone", DataType::Utf8)]);
        let shape =
            fit("t", Some(&before), &["ds"], &[], &result(&[("new", DataType::Utf8), ("a", DataType::Int64)]), 4)
                .unwrap();
        assert_eq!(shape.widened, [2]);
        assert_eq!(shape.added, [4]);
        assert_eq!(shape.origins, [Origin::Key, Origin::Result(1), Origin::Nothing, Origin::Result(0)]);
    }

    #[test]
    fn incompatible_changes_stop() {
        let check = |from: DataType, to: DataType| {
            let before = table(&[("a", from)]);
            let error = fit("t", Some(&before), &["ds"], &[], &result(&[("a", to)]), 9).unwrap_err();
            assert!(error.to_string().contains("column `a` is "), "{error}");
        };
        check(DataType::Int32, DataType::Utf8);
        check(DataType::Utf8, DataType::Int64);
        check(DataType::Float64, DataType::Boolean);
        check(
            DataType::Timestamp(TimeUnit::Microsecond, None),
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        );
    }

    #[test]
    fn declared_columns_must_come() {
        let declared = [ColumnSpec { name: "orders".to_owned(), data_type: Some(DataType::Int32), comment: None }];
        let error = fit("t", None, &["ds"], &declared, &result(&[("a", DataType::Int64)]), 1).unwrap_err();
        assert!(error.to_string().contains("the job declares column `orders`, its result has `a`"), "{error}");
        let error = fit("t", None, &["ds"], &declared, &result(&[("orders", DataType::Float64)]), 1).unwrap_err();
        assert!(error.to_string().contains("is declared as integer, the result has double"), "{error}");
        let shape = fit("t", None, &["ds"], &declared, &result(&[("orders", DataType::Int64)]), 1).unwrap();
        assert_eq!(shape.columns[1].ducklake_type, "int32");
    }
}
