//! Functions of other databases that say in other words what DataFusion has: rewritten in the parsed text.

use std::{collections::HashMap, ops::ControlFlow, sync::LazyLock};

use datafusion::sql::sqlparser::{
    ast::{
        BinaryOperator, CaseWhen, CastKind, DataType, Expr, Function, FunctionArg, FunctionArgExpr,
        FunctionArgumentClause, FunctionArgumentList, FunctionArguments, Ident, ObjectName, Value, Visit, VisitMut,
        Visitor, VisitorMut, helpers::attached_token::AttachedToken,
    },
    parser::Parser,
};

use crate::dialect::Sql;

/// Name, number of arguments, and what it stands for with `$1`, `$2` for the arguments.
///
/// A template that is itself one call keeps what stands behind the call that was written: `FILTER`, `OVER`, `DISTINCT`.
const TEMPLATES: &[(&str, usize, &str)] = &[
    // Parts of dates.
    ("year", 1, "date_part('year', $1)"),
    ("quarter", 1, "date_part('quarter', $1)"),
    ("month", 1, "date_part('month', $1)"),
    ("week", 1, "date_part('week', $1)"),
    ("week_of_year", 1, "date_part('week', $1)"),
    ("day", 1, "date_part('day', $1)"),
    ("day_of_month", 1, "date_part('day', $1)"),
    ("day_of_week", 1, "date_part('isodow', $1)"),
    ("day_of_year", 1, "date_part('doy', $1)"),
    ("hour", 1, "date_part('hour', $1)"),
    ("minute", 1, "date_part('minute', $1)"),
    ("second", 1, "date_part('second', $1)"),
    ("millisecond", 1, "date_part('millisecond', $1) % 1000"),
    // Dates.
    ("date", 1, "cast($1 as date)"),
    ("add_months", 2, "date_add('month', $2, $1)"),
    ("age", 1, "age(cast(current_date() as timestamp), $1)"),
    ("from_iso8601_date", 1, "cast($1 as date)"),
    ("from_iso8601_timestamp", 1, "to_timestamp($1)"),
    ("from_unixtime", 1, "to_timestamp($1)"),
    ("getdate", 0, "now()"),
    ("last_day", 1, "cast(date_trunc('month', $1) + interval '1 month' - interval '1 day' as date)"),
    ("last_day_of_month", 1, "cast(date_trunc('month', $1) + interval '1 month' - interval '1 day' as date)"),
    (
        "months_between",
        2,
        "case when cast($1 as date) = last_day($1) and cast($2 as date) = last_day($2) \
         then cast((year($1) - year($2)) * 12 + month($1) - month($2) as double) \
         else (year($1) - year($2)) * 12 + month($1) - month($2) + (day($1) - day($2)) / 31.0 end",
    ),
    ("sysdate", 0, "now()"),
    ("to_date", 2, "cast(to_timestamp_format($1, $2) as date)"),
    ("to_timestamp", 2, "to_timestamp_format($1, $2)"),
    ("to_unixtime", 1, "cast(date_part('epoch', $1) as double)"),
    ("unix_timestamp", 0, "cast(date_part('epoch', now()) as bigint)"),
    ("unix_timestamp", 1, "cast(date_part('epoch', $1) as bigint)"),
    ("convert_timezone", 2, "timezone($1, timezone('UTC', $2))"),
    ("convert_timezone", 3, "timezone($2, timezone($1, $3))"),
    ("with_timezone", 2, "timezone($2, $1)"),
    // Choices.
    ("if", 2, "case when $1 then $2 end"),
    ("if", 3, "case when $1 then $2 else $3 end"),
    ("iff", 3, "case when $1 then $2 else $3 end"),
    ("zeroifnull", 1, "coalesce($1, 0)"),
    // Aggregates.
    ("approx_percentile", 2, "approx_percentile_cont($1, $2)"),
    ("arbitrary", 1, "any_value($1)"),
    ("count_if", 1, "count(case when $1 then 1 end)"),
    ("every", 1, "bool_and($1)"),
    ("listagg", 1, "string_agg($1, '')"),
    ("listagg", 2, "string_agg($1, $2)"),
    ("max_by", 2, "first_value($1 order by $2 desc nulls last)"),
    ("min_by", 2, "first_value($1 order by $2 asc nulls last)"),
    ("variance", 1, "var_samp($1)"),
    // Numbers.
    ("bitwise_and", 2, "$1 & $2"),
    ("bitwise_or", 2, "$1 | $2"),
    ("ceiling", 1, "ceil($1)"),
    ("infinity", 0, "cast('Infinity' as double)"),
    ("is_nan", 1, "isnan($1)"),
    ("mod", 2, "$1 % $2"),
    ("nan", 0, "cast('NaN' as double)"),
    ("sign", 1, "signum($1)"),
    ("truncate", 1, "trunc($1)"),
    ("truncate", 2, "trunc($1, $2)"),
    (
        "width_bucket",
        4,
        "cast(case when $1 is null or $2 is null or $3 is null then null when $1 < $2 then 0 when $1 >= $3 then $4 + 1 \
         else floor(cast($1 - $2 as double) * $4 / ($3 - $2)) + 1 end as int)",
    ),
    // Text.
    ("char", 1, "chr($1)"),
    ("charindex", 2, "strpos($2, $1)"),
    ("from_base64", 1, "decode($1, 'base64')"),
    ("from_hex", 1, "decode($1, 'hex')"),
    ("gen_random_uuid", 0, "uuid()"),
    ("lcase", 1, "lower($1)"),
    ("len", 1, "char_length($1)"),
    ("levenshtein_distance", 2, "levenshtein($1, $2)"),
    ("locate", 2, "strpos($2, $1)"),
    ("regexp_extract", 2, "regexp_match($1, '(' || $2 || ')')[1]"),
    ("regexp_extract", 3, "regexp_match($1, '(' || $2 || ')')[$3 + 1]"),
    ("regexp_substr", 2, "regexp_match($1, '(' || $2 || ')')[1]"),
    ("split", 2, "string_to_array($1, $2)"),
    ("string_split", 2, "string_to_array($1, $2)"),
    ("to_base64", 1, "encode($1, 'base64')"),
    ("ucase", 1, "upper($1)"),
    // Arrays and maps.
    ("element_at", 2, "$1[$2]"),
    ("sequence", 2, "generate_series($1, $2)"),
    ("sequence", 3, "generate_series($1, $2, $3)"),
    ("slice", 3, "array_slice($1, $2, $2 + $3 - 1)"),
];

/// Calls whose first argument may be a unit without quotes, as `dateadd(day, 1, ds)`.
const WITH_UNIT: [&str; 7] = ["date_add", "date_diff", "date_part", "date_trunc", "dateadd", "datediff", "date_bucket"];

static BODIES: LazyLock<HashMap<&str, Vec<(usize, Expr)>>> = LazyLock::new(|| {
    let body = |sql: &str| {
        let tokens = Parser::new(&Sql).try_with_sql(sql);
        tokens.and_then(|mut parser| parser.parse_expr()).expect("the templates above are SQL")
    };
    let mut bodies: HashMap<&str, Vec<(usize, Expr)>> = HashMap::new();
    for (name, count, sql) in TEMPLATES {
        bodies.entry(name).or_default().push((*count, body(sql)));
    }
    bodies
});

/// Rewrites one expression whose parts are rewritten already. Gives how many expressions are in it now when some of its
/// arguments were written out more than once.
pub(crate) fn rewrite(expr: &mut Expr) -> usize {
    match expr {
        Expr::Function(_) => rewrite_call(expr),
        Expr::Identifier(name) if name.quote_style.is_none() => {
            if let Some(function) = stands_for(&name.value) {
                *expr = call(function, Vec::new());
            }
            0
        }
        Expr::AtTimeZone { timestamp, time_zone } => {
            *expr = call("timezone", vec![take(time_zone), take(timestamp)]);
            0
        }
        Expr::Cast { data_type: DataType::JSON | DataType::JSONB, expr: inner, .. } => {
            *expr = call("json_parse", vec![take(inner)]);
            0
        }
        Expr::Cast { data_type: DataType::Uuid, kind: CastKind::Cast | CastKind::DoubleColon, expr: inner, .. } => {
            *expr = call("to_uuid", vec![take(inner)]);
            0
        }
        _ => 0,
    }
}

/// The name that a column has whose expression will be rewritten somewhere: what was written.
pub(crate) fn written(expr: &Expr) -> Option<String> {
    struct Looking;
    impl Visitor for Looking {
        type Break = ();

        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            let is_other = match expr {
                Expr::Function(function) => match (name(function), arguments(function)) {
                    (Some(name), Some(args)) => {
                        template(&name, args.len()).is_some() || matches!(name.as_str(), "try" | "decode" | "listagg")
                    }
                    (Some(name), None) => name == "session_user",
                    _ => false,
                },
                Expr::Identifier(name) => name.quote_style.is_none() && stands_for(&name.value).is_some(),
                Expr::AtTimeZone { .. } => true,
                _ => false,
            };
            if is_other { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }
    Visit::visit(expr, &mut Looking).is_break().then(|| expr.to_string())
}

/// The function that a bare word stands for.
fn stands_for(word: &str) -> Option<&'static str> {
    match word.to_ascii_lowercase().as_str() {
        "current_user" | "session_user" => Some("current_user"),
        "localtimestamp" | "sysdate" => Some("now"),
        _ => None,
    }
}

fn rewrite_call(expr: &mut Expr) -> usize {
    let Expr::Function(function) = &mut *expr else { return 0 };
    let Some(name) = name(function) else { return 0 };
    if function.args == FunctionArguments::None {
        if let Some(function) = stands_for(&name) {
            *expr = call(function, Vec::new());
        }
        return 0;
    }
    if WITH_UNIT.contains(&name.as_str()) {
        unit_as_text(function);
    }
    if name == "string_agg" || name == "listagg" {
        order_inside(function);
    }
    let Some(args) = arguments(function) else { return 0 };
    match (name.as_str(), args.as_slice()) {
        ("try", [inner]) => {
            let mut inner = inner.clone();
            let _ = VisitMut::visit(&mut inner, &mut Trying);
            *expr = inner;
            0
        }
        // With two it is the decoding of base64 and hex.
        ("decode", [operand, pairs @ ..]) if pairs.len() >= 2 => {
            *expr = case(operand, pairs);
            0
        }
        ("approx_percentile", [_, Expr::Array(_)]) => percentiles(expr, &args),
        _ => match template(&name, args.len()) {
            Some(body) => expand(expr, body.clone(), &args),
            None => 0,
        },
    }
}

fn template(name: &str, count: usize) -> Option<&'static Expr> {
    BODIES.get(name)?.iter().find(|(takes, _)| *takes == count).map(|(_, body)| body)
}

/// The name of a function without a schema.
fn name(function: &Function) -> Option<String> {
    match function.name.0.as_slice() {
        [part] if function.parameters == FunctionArguments::None => Some(part.as_ident()?.value.to_ascii_lowercase()),
        _ => None,
    }
}

/// The arguments, when all are plain.
fn arguments(function: &Function) -> Option<Vec<Expr>> {
    let FunctionArguments::List(list) = &function.args else { return None };
    let plain = |arg: &FunctionArg| match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
        _ => None,
    };
    list.args.iter().map(plain).collect()
}

fn call(name: &str, args: Vec<Expr>) -> Expr {
    let args = args.into_iter().map(|arg| FunctionArg::Unnamed(FunctionArgExpr::Expr(arg))).collect();
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args, clauses: Vec::new() }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

fn take(expr: &mut Expr) -> Expr {
    std::mem::replace(expr, Expr::value(Value::Null))
}

fn unit_as_text(function: &mut Function) {
    if let FunctionArguments::List(list) = &mut function.args
        && let Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(first))) = list.args.first_mut()
        && let Expr::Identifier(unit) = first
        && unit.quote_style.is_none()
    {
        *first = Expr::value(Value::SingleQuotedString(unit.value.to_ascii_lowercase()));
    }
}

/// `f(x) within group (order by y)` as `f(x order by y)`.
fn order_inside(function: &mut Function) {
    if let FunctionArguments::List(list) = &mut function.args
        && !function.within_group.is_empty()
    {
        list.clauses.push(FunctionArgumentClause::OrderBy(std::mem::take(&mut function.within_group)));
    }
}

fn case(operand: &Expr, pairs: &[Expr]) -> Expr {
    let (pairs, rest) = pairs.as_chunks::<2>();
    Expr::Case {
        case_token: AttachedToken::empty(),
        end_token: AttachedToken::empty(),
        operand: Some(Box::new(operand.clone())),
        conditions: pairs
            .iter()
            .map(|[condition, result]| CaseWhen { condition: condition.clone(), result: result.clone() })
            .collect(),
        else_result: rest.first().map(|rest| Box::new(rest.clone())),
    }
}

/// `approx_percentile(x, [p, q])` as an array of two calls.
fn percentiles(expr: &mut Expr, args: &[Expr]) -> usize {
    let (Expr::Array(array), Some(body)) = (&args[1], template("approx_percentile", 2)) else { return 0 };
    let mut array = array.clone();
    for item in &mut array.elem {
        let mut one = expr.clone();
        expand(&mut one, body.clone(), &[args[0].clone(), item.clone()]);
        *item = one;
    }
    *expr = Expr::Array(array);
    size(expr)
}

fn expand(expr: &mut Expr, mut body: Expr, args: &[Expr]) -> usize {
    let mut filling = Filling { args, used: vec![0; args.len()], is_copied: false };
    let _ = VisitMut::visit(&mut body, &mut filling);
    let is_copied = filling.is_copied || filling.used.iter().any(|times| *times > 1);
    if let (Expr::Function(written), Expr::Function(new)) = (&mut *expr, &mut body) {
        new.filter = written.filter.take();
        new.over = written.over.take();
        new.null_treatment = written.null_treatment.take();
        new.within_group = std::mem::take(&mut written.within_group);
        if let (FunctionArguments::List(written), FunctionArguments::List(new)) = (&mut written.args, &mut new.args) {
            new.duplicate_treatment = written.duplicate_treatment;
            new.clauses.append(&mut written.clauses);
        }
    }
    *expr = body;
    if is_copied { size(expr) } else { 0 }
}

/// How many expressions an expression is made of.
fn size(expr: &Expr) -> usize {
    struct Counting(usize);
    impl Visitor for Counting {
        type Break = ();

        fn pre_visit_expr(&mut self, _: &Expr) -> ControlFlow<()> {
            self.0 += 1;
            ControlFlow::Continue(())
        }
    }
    let mut counting = Counting(0);
    let _ = Visit::visit(expr, &mut counting);
    counting.0
}

/// Puts arguments where a template has `$1`, and templates where it has calls of others.
struct Filling<'a> {
    args: &'a [Expr],
    used: Vec<usize>,
    is_copied: bool,
}

impl VisitorMut for Filling<'_> {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::Value(value) = &*expr
            && let Value::Placeholder(number) = &value.value
            && let Some(index) = number.trim_start_matches('$').parse::<usize>().ok().and_then(|n| n.checked_sub(1))
            && let Some(arg) = self.args.get(index)
        {
            self.used[index] += 1;
            *expr = Expr::Nested(Box::new(arg.clone()));
        } else if let Expr::Function(_) = expr {
            self.is_copied |= rewrite(expr) > 0;
        }
        ControlFlow::Continue(())
    }
}

/// Makes null of what fails: casts and divisions.
struct Trying;

impl VisitorMut for Trying {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match expr {
            Expr::Cast { kind, .. } => *kind = CastKind::TryCast,
            Expr::BinaryOp { op: BinaryOperator::Divide | BinaryOperator::Modulo, right, .. } => {
                **right = call("nullif", vec![take(right), Expr::value(Value::Number("0".to_owned(), false))]);
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(written: &str, expected: &str) {
        struct All;
        impl VisitorMut for All {
            type Break = ();
            fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
                rewrite(expr);
                ControlFlow::Continue(())
            }
        }
        let mut expr = Parser::new(&Sql).try_with_sql(written).unwrap().parse_expr().unwrap();
        let _ = VisitMut::visit(&mut expr, &mut All);
        assert_eq!(expr.to_string(), expected, "{written}");
    }

    #[test]
    fn other_words_are_rewritten() {
        check("year(a)", "date_part('year', (a))");
        check("YEAR(month(a))", "date_part('year', (date_part('month', (a))))");
        check("dateadd(day, 1, ds)", "dateadd('day', 1, ds)");
        check("count_if(a > 1) filter (where b)", "count(CASE WHEN (a > 1) THEN 1 END) FILTER (WHERE b)");
        check("listagg(a, ',') within group (order by b)", "string_agg((a), (',') ORDER BY b)");
        check("try(cast(a as int) / b)", "TRY_CAST(a AS INT) / nullif(b, 0)");
        check("decode(a, 1, 'x', 'y')", "CASE a WHEN 1 THEN 'x' ELSE 'y' END");
        check("decode(a, 'hex')", "decode(a, 'hex')");
        check("a at time zone 'UTC'", "timezone('UTC', a)");
        check("a::json", "json_parse(a)");
        check("a ->> 'b' = 'c'", "a ->> 'b' = 'c'");
        check("\"year\"(a, b)", "\"year\"(a, b)");
        check("s.year(a)", "s.year(a)");
    }

    #[test]
    fn copies_are_counted() {
        let mut expr = Parser::new(&Sql).try_with_sql("slice(a, b, c)").unwrap().parse_expr().unwrap();
        assert!(rewrite(&mut expr) > 5);
        let mut expr = Parser::new(&Sql).try_with_sql("year(a)").unwrap().parse_expr().unwrap();
        assert_eq!(rewrite(&mut expr), 0);
    }

    #[test]
    fn json_operators_bind_before_comparisons() {
        let expr = Parser::new(&Sql).try_with_sql("a -> 'b' ->> 'c' = d ->> 'e'").unwrap().parse_expr().unwrap();
        assert!(matches!(expr, Expr::BinaryOp { op: BinaryOperator::Eq, .. }), "{expr:?}");
        let expr = Parser::new(&Sql).try_with_sql("a ->> 'b' is null").unwrap().parse_expr().unwrap();
        assert!(matches!(expr, Expr::IsNull(_)), "{expr:?}");
    }
}
