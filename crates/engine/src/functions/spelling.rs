//! Functions of other databases that say in other words what DataFusion has: rewritten in the parsed text.

mod json;
mod templates;

use std::{collections::HashMap, ops::ControlFlow, sync::LazyLock};

use datafusion::sql::sqlparser::{
    ast::{
        CaseWhen, CastKind, DataType, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentClause,
        FunctionArgumentList, FunctionArguments, Ident, LambdaFunction, LambdaFunctionParameter, LambdaSyntax,
        ObjectName, OneOrManyWithParens, Value, Visit, VisitMut, Visitor, VisitorMut,
        helpers::attached_token::AttachedToken,
    },
    parser::Parser,
};

use self::templates::{AROUND, TEMPLATES};
use super::{attempt, intervals};
use crate::dialect::Sql;

/// Calls whose first argument may be a unit without quotes, as `dateadd(day, 1, ds)`.
const WITH_UNIT: [&str; 7] = ["date_add", "date_diff", "date_part", "date_trunc", "dateadd", "datediff", "date_bucket"];

static BODIES: LazyLock<HashMap<&str, Vec<(usize, Expr)>>> = LazyLock::new(|| {
    let mut bodies: HashMap<&str, Vec<(usize, Expr)>> = HashMap::new();
    for (name, count, sql) in TEMPLATES {
        bodies.entry(name).or_default().push((*count, parsed(sql)));
    }
    bodies
});

type Aggregates = HashMap<(&'static str, usize), (Expr, Expr)>;

/// The aggregates of `AROUND` and what stands around each, by name and number of arguments.
static AGGREGATES: LazyLock<Aggregates> = LazyLock::new(|| {
    AROUND.iter().map(|(name, count, inner, around)| ((*name, *count), (parsed(inner), parsed(around)))).collect()
});

fn parsed(sql: &str) -> Expr {
    let tokens = Parser::new(&Sql).try_with_sql(sql);
    tokens.and_then(|mut parser| parser.parse_expr()).expect("the templates are SQL")
}

/// Rewrites one expression whose parts are rewritten already. Gives how many expressions are in it now when some of its
/// arguments were written out more than once.
pub(crate) fn rewrite(expr: &mut Expr) -> usize {
    let copied = rewrite_one(expr);
    if json::is_chosen(expr) {
        *expr = call("json_marked", vec![take(expr)]);
    }
    copied
}

fn rewrite_one(expr: &mut Expr) -> usize {
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
                        template(&name, args.len()).is_some()
                            || AGGREGATES.contains_key(&(name.as_str(), args.len()))
                            || matches!(name.as_str(), "try" | "decode" | "listagg")
                    }
                    (Some(name), None) => name == "session_user",
                    _ => false,
                },
                Expr::Identifier(name) => name.quote_style.is_none() && stands_for(&name.value).is_some(),
                Expr::AtTimeZone { .. } => true,
                _ => false,
            };
            if is_other || json::is_chosen(expr) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
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
    if name == "make_interval" {
        parts_in_order(function);
    }
    let Some(args) = arguments(function) else { return 0 };
    match (name.as_str(), args.as_slice()) {
        ("try", [inner]) => {
            *expr = tried(inner.clone());
            0
        }
        // With two it is the decoding of base64 and hex.
        ("decode", [operand, pairs @ ..]) if pairs.len() >= 2 => {
            *expr = case(operand, pairs);
            0
        }
        ("approx_percentile", [_, Expr::Array(_)]) => percentiles(expr, &args),
        _ => match (template(&name, args.len()), AGGREGATES.get(&(name.as_str(), args.len()))) {
            (Some(body), _) => expand(expr, body.clone(), &args),
            (None, Some((inner, around))) => surround(expr, inner, around, &args),
            (None, None) => 0,
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

/// `make_interval(days => 3)` as `make_interval(0, 0, 0, 3)`. What names no part of an interval is left as it is.
fn parts_in_order(function: &mut Function) {
    let FunctionArguments::List(list) = &mut function.args else { return };
    let mut parts: Vec<Option<FunctionArg>> = Vec::new();
    for (index, arg) in list.args.iter().enumerate() {
        let (place, arg) = match arg {
            FunctionArg::Named { name, arg, .. } => {
                let name = name.value.to_ascii_lowercase();
                let Some(place) = intervals::MAKE_PARTS.iter().position(|part| *part == name) else { return };
                (place, FunctionArg::Unnamed(arg.clone()))
            }
            other => (index, other.clone()),
        };
        parts.resize(parts.len().max(place + 1), None);
        if parts[place].replace(arg).is_some() {
            return;
        }
    }
    let zero = FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::value(Value::Number("0".to_owned(), false))));
    list.args = parts.into_iter().map(|part| part.unwrap_or_else(|| zero.clone())).collect();
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

/// The aggregate with what stands behind the call, and around it what a template has.
fn surround(expr: &mut Expr, inner: &Expr, around: &Expr, args: &[Expr]) -> usize {
    let mut aggregate = expr.clone();
    expand(&mut aggregate, inner.clone(), args);
    let mut body = around.clone();
    let copied = Filling::fill(&mut body, Some(&aggregate), args);
    *expr = Expr::Nested(Box::new(body));
    if copied { size(expr) } else { 0 }
}

fn expand(expr: &mut Expr, mut body: Expr, args: &[Expr]) -> usize {
    let is_copied = Filling::fill(&mut body, None, args);
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
    /// What `$0` stands for.
    aggregate: Option<&'a Expr>,
    args: &'a [Expr],
    used: Vec<usize>,
    is_copied: bool,
}

impl Filling<'_> {
    /// Gives whether something is written out more than once now.
    fn fill(body: &mut Expr, aggregate: Option<&Expr>, args: &[Expr]) -> bool {
        let mut filling = Filling { aggregate, args, used: vec![0; args.len()], is_copied: false };
        let _ = VisitMut::visit(body, &mut filling);
        filling.is_copied || filling.used.iter().any(|times| *times > 1)
    }
}

impl VisitorMut for Filling<'_> {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::Value(value) = &*expr
            && let Value::Placeholder(number) = &value.value
            && number == "$0"
            && let Some(aggregate) = self.aggregate
        {
            *expr = aggregate.clone();
        } else if let Expr::Value(value) = &*expr
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

/// `try(x)` as an attempt of `x`; a cast of what cannot fail needs none.
fn tried(expr: Expr) -> Expr {
    match expr {
        Expr::Identifier(_) | Expr::CompoundIdentifier(_) | Expr::Value(_) => expr,
        Expr::Nested(inner) => Expr::Nested(Box::new(tried(*inner))),
        Expr::Cast { kind: CastKind::Cast | CastKind::DoubleColon, expr: inner, data_type, array, format } => {
            Expr::Cast { kind: CastKind::TryCast, expr: Box::new(tried(*inner)), data_type, array, format }
        }
        body => {
            let name = Ident::with_quote('"', attempt::PARAMETER);
            let lambda = Expr::Lambda(LambdaFunction {
                params: OneOrManyWithParens::One(LambdaFunctionParameter { name, data_type: None }),
                body: Box::new(body),
                syntax: LambdaSyntax::Arrow,
            });
            call(attempt::APART, vec![call(attempt::ATTEMPT, vec![lambda])])
        }
    }
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::ast::BinaryOperator;

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
        check("try(cast(a as int))", "TRY_CAST(a AS INT)");
        check("try(a / b)", "try_apart(try(\"\u{1}row\" -> a / b))");
        check("json_agg(a order by b)", "(json_of_items(array_agg((a) ORDER BY b)))");
        check("ratio_to_report(a) over (partition by b)", "(CAST((a) AS DOUBLE) / sum((a)) OVER (PARTITION BY b))");
        check("coalesce(json_agg(a), '[]')", "json_marked(coalesce((json_of_items(array_agg((a)))), '[]'))");
        check("coalesce(json_agg(a), 'no json')", "coalesce((json_of_items(array_agg((a)))), 'no json')");
        check("case when a then b else c end", "CASE WHEN a THEN b ELSE c END");
        check("make_interval(1, days => 3)", "make_interval(1, 0, 0, 3)");
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
