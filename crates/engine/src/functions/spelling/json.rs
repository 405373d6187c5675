//! JSON that is chosen among others: a type of arguments says nothing of it behind `case`, `coalesce` and in a subquery.

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, DataType, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, SelectItem, SetExpr, Value,
};

use crate::functions::json::is_valid;

/// Functions that give JSON.
const MAKERS: [&str; 27] = [
    "array_to_json",
    "json_agg",
    "json_build_array",
    "json_build_object",
    "json_extract",
    "json_extract_path",
    "json_get",
    "json_get_path",
    "json_marked",
    "json_object_agg",
    "json_of_items",
    "json_of_pairs",
    "json_parse",
    "json_query",
    "jsonb_agg",
    "jsonb_build_array",
    "jsonb_build_object",
    "jsonb_extract_path",
    "jsonb_object_agg",
    "jsonb_of_items",
    "jsonb_of_pairs",
    "jsonb_path_query_first",
    "row_to_json",
    "to_json",
    "to_jsonb",
    "json_array_get",
    "json_get_json",
];

/// Functions that give one of their arguments.
const CHOOSERS: [&str; 7] = ["coalesce", "if", "iff", "ifnull", "nullif", "nvl", "nvl2"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Json,
    /// Null, or a literal that is JSON beside JSON.
    Either,
    Other,
}

/// True for an expression that chooses among others, when what it gives is JSON.
pub(super) fn is_chosen(expr: &Expr) -> bool {
    let is_choice = match expr {
        Expr::Case { .. } | Expr::Subquery(_) => true,
        Expr::Function(function) => super::name(function).is_some_and(|name| CHOOSERS.contains(&name.as_str())),
        _ => false,
    };
    is_choice && kind(expr) == Kind::Json
}

fn kind(expr: &Expr) -> Kind {
    match expr {
        Expr::Nested(inner) => kind(inner),
        Expr::Value(value) => match &value.value {
            Value::Null => Kind::Either,
            Value::SingleQuotedString(text) if is_valid(text) => Kind::Either,
            _ => Kind::Other,
        },
        Expr::Cast { data_type: DataType::JSON | DataType::JSONB, .. }
        | Expr::BinaryOp { op: BinaryOperator::Arrow | BinaryOperator::HashArrow, .. } => Kind::Json,
        Expr::Case { conditions, else_result, .. } => {
            all(conditions.iter().map(|when| &when.result).chain(else_result.as_deref()))
        }
        Expr::Subquery(query) => match query.body.as_ref() {
            SetExpr::Select(select) => match select.projection.as_slice() {
                [SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }] => kind(expr),
                _ => Kind::Other,
            },
            _ => Kind::Other,
        },
        Expr::Function(function) => match (super::name(function), &function.args) {
            (Some(name), _) if MAKERS.contains(&name.as_str()) => Kind::Json,
            (Some(name), FunctionArguments::List(list)) if CHOOSERS.contains(&name.as_str()) => {
                let conditions = usize::from(matches!(name.as_str(), "if" | "iff" | "nvl2"));
                let chosen = list.args.iter().skip(conditions).filter_map(|arg| match arg {
                    FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr),
                    _ => None,
                });
                all(chosen)
            }
            _ => Kind::Other,
        },
        _ => Kind::Other,
    }
}

fn all<'a>(exprs: impl Iterator<Item = &'a Expr>) -> Kind {
    let mut found = Kind::Either;
    for expr in exprs {
        match kind(expr) {
            Kind::Other => return Kind::Other,
            Kind::Json => found = Kind::Json,
            Kind::Either => {}
        }
    }
    found
}
