use std::{
    collections::HashMap,
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, FixedSizeBinaryArray, ListArray, MapArray, RecordBatch, StringArray, StringViewArray,
        StructArray, new_null_array,
    },
    compute::{CastOptions, cast_with_options},
    datatypes::{DataType, Field, FieldRef, Fields, Schema},
};
use datafusion::{
    common::{Result, internal_err},
    logical_expr::ColumnarValue,
    physical_expr::PhysicalExpr,
};
use uuid::Uuid;

use super::columns::{default, field_id};
use crate::table::Column;

/// How the values of one file's column become the table's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Reshape {
    /// They are.
    Same,
    /// A plain cast: a widened type, text as a view.
    Cast(DataType),
    /// The sixteen bytes of a UUID become its text.
    Uuid(DataType),
    /// Each element.
    List(FieldRef, Box<Reshape>),
    /// Each field: where it is in the file, or what it holds when it is not.
    Struct(Fields, Vec<Part>),
    /// Each key and value.
    Map(FieldRef, Box<Reshape>, Box<Reshape>, bool),
}

/// A field of a struct.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Part {
    At(usize, Reshape),
    Missing(datafusion::common::ScalarValue),
}

impl Reshape {
    /// Compares a file's field with the column; parts match by field id, or by `names` in files without ids.
    pub(super) fn plan(
        stored: &Field,
        column: &Column,
        wanted: &DataType,
        names: Option<&HashMap<i64, String>>,
    ) -> Result<Self> {
        Ok(match (stored.data_type(), wanted) {
            (DataType::List(from), DataType::List(to)) if column.children.len() == 1 => {
                match Self::plan(from, &column.children[0], to.data_type(), names)? {
                    Self::Same if from.name() == to.name() && from.is_nullable() == to.is_nullable() => {
                        Self::alike(stored, wanted)
                    }
                    inner => Self::List(Arc::clone(to), Box::new(inner)),
                }
            }
            (DataType::Struct(from), DataType::Struct(to)) if column.children.len() == to.len() => {
                let mut parts = Vec::with_capacity(to.len());
                for (child, field) in column.children.iter().zip(to) {
                    let at = from.iter().position(|f| match names {
                        Some(names) => names.get(&child.id) == Some(f.name()),
                        None => field_id(f) == Some(child.id),
                    });
                    parts.push(match at {
                        Some(at) => Part::At(at, Self::plan(&from[at], child, field.data_type(), names)?),
                        None => Part::Missing(default(child, field.data_type())?),
                    });
                }
                Self::Struct(to.clone(), parts)
            }
            (DataType::Map(from, _), DataType::Map(to, sorted)) if column.children.len() == 2 => {
                let (DataType::Struct(kv), DataType::Struct(wanted_kv)) = (from.data_type(), to.data_type()) else {
                    return internal_err!("a map's entries are no struct");
                };
                let key = Self::plan(&kv[0], &column.children[0], wanted_kv[0].data_type(), names)?;
                let value = Self::plan(&kv[1], &column.children[1], wanted_kv[1].data_type(), names)?;
                Self::Map(Arc::clone(to), Box::new(key), Box::new(value), *sorted)
            }
            (DataType::FixedSizeBinary(16), DataType::Utf8 | DataType::Utf8View) => Self::Uuid(wanted.clone()),
            _ => Self::alike(stored, wanted),
        })
    }

    fn alike(stored: &Field, wanted: &DataType) -> Self {
        if stored.data_type() == wanted { Self::Same } else { Self::Cast(wanted.clone()) }
    }

    fn apply(&self, array: &ArrayRef) -> Result<ArrayRef> {
        Ok(match self {
            Self::Same => Arc::clone(array),
            Self::Cast(to) if array.data_type() == to => Arc::clone(array),
            Self::Cast(to) => cast_with_options(array, to, &CastOptions { safe: false, ..Default::default() })?,
            Self::Uuid(to) => uuid_text(array.as_fixed_size_binary(), to),
            Self::List(field, inner) => {
                let (_, offsets, values, nulls) = array.as_list::<i32>().clone().into_parts();
                Arc::new(ListArray::try_new(Arc::clone(field), offsets, inner.apply(&values)?, nulls)?)
            }
            Self::Struct(fields, parts) => {
                let array = array.as_struct();
                let columns = parts.iter().map(|part| match part {
                    Part::At(at, inner) => inner.apply(array.column(*at)),
                    Part::Missing(value) if value.is_null() => Ok(new_null_array(&value.data_type(), array.len())),
                    Part::Missing(value) => value.to_array_of_size(array.len()),
                });
                let columns = columns.collect::<Result<Vec<_>>>()?;
                Arc::new(StructArray::try_new_with_length(
                    fields.clone(),
                    columns,
                    array.nulls().cloned(),
                    array.len(),
                )?)
            }
            Self::Map(field, key, value, sorted) => {
                let (_, offsets, entries, nulls, _) = array.as_map().clone().into_parts();
                let DataType::Struct(fields) = field.data_type() else {
                    return internal_err!("a map's entries are no struct");
                };
                let columns = vec![key.apply(entries.column(0))?, value.apply(entries.column(1))?];
                let entries = StructArray::try_new_with_length(fields.clone(), columns, None, entries.len())?;
                Arc::new(MapArray::try_new(Arc::clone(field), offsets, entries, nulls, *sorted)?)
            }
        })
    }
}

fn uuid_text(array: &FixedSizeBinaryArray, to: &DataType) -> ArrayRef {
    let texts = array.iter().map(|bytes| bytes.and_then(|b| Uuid::from_slice(b).ok()).map(|u| u.to_string()));
    if *to == DataType::Utf8View {
        Arc::new(texts.collect::<StringViewArray>())
    } else {
        Arc::new(texts.collect::<StringArray>())
    }
}

/// Applies a [`Reshape`] inside a scan. Pruning does not look through it, so statistics of another shape are never used.
#[derive(Debug, Eq)]
pub(super) struct ReshapeExpr {
    input: Arc<dyn PhysicalExpr>,
    reshape: Reshape,
    field: FieldRef,
}

impl ReshapeExpr {
    pub(super) fn new(input: Arc<dyn PhysicalExpr>, reshape: Reshape, field: FieldRef) -> Self {
        Self { input, reshape, field }
    }
}

// Derives do not work for `Arc<dyn ..>`: rust-lang/rust#78808.
impl PartialEq for ReshapeExpr {
    fn eq(&self, other: &Self) -> bool {
        self.input.eq(&other.input) && self.reshape == other.reshape && self.field == other.field
    }
}

impl Hash for ReshapeExpr {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.input.hash(state);
        self.reshape.hash(state);
        self.field.hash(state);
    }
}

impl fmt::Display for ReshapeExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "reshape({} as {})", self.input, self.field.data_type())
    }
}

impl PhysicalExpr for ReshapeExpr {
    fn return_field(&self, _: &Schema) -> Result<FieldRef> {
        Ok(Arc::clone(&self.field))
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        let array = self.input.evaluate(batch)?.into_array(batch.num_rows())?;
        Ok(ColumnarValue::Array(self.reshape.apply(&array)?))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.input]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        let [input] = <[_; 1]>::try_from(children)
            .map_err(|_| datafusion::common::internal_datafusion_err!("reshape has one input"))?;
        Ok(Arc::new(Self::new(input, self.reshape.clone(), Arc::clone(&self.field))))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
