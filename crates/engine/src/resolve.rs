//! Which tables a statement names, and how large it is once its CTEs are written out.

use std::{collections::BTreeMap, ops::ControlFlow};

use datafusion::sql::sqlparser::ast::{
    Expr, Ident, NamedWindowExpr, ObjectName, ObjectNamePart, Query, Select, SelectItem, SetExpr, Spanned, Statement,
    TableAlias, TableFactor, VisitMut, VisitorMut, WindowSpec, WindowType, With,
};

use crate::{
    At, Error, Position, Result, SqlLimits, functions,
    parse::{AtClause, Parsed, Reading, VERSION_MARK, misplaced_version, refused_in_body, refused_in_query},
    pg_catalog::PG_CATALOG,
};

/// The one catalog's name.
pub(crate) const CATALOG: &str = "headworks";
/// The schema that all tables of the lake are in.
pub(crate) const SCHEMA: &str = "main";
/// The name that clients of PostgreSQL look for it under.
pub(crate) const PG_SCHEMA: &str = "public";
/// The schema that describes the others.
pub(crate) const INFORMATION_SCHEMA: &str = "information_schema";

/// A table's name as a statement uses it, without the catalog.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) space: Space,
    /// True when it was written without a schema, so that it may mean one of the statement's own tables.
    pub(crate) is_bare: bool,
    pub(crate) table: String,
}

/// The schemas there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Space {
    /// The tables of the lake, and those that a statement brings.
    Lake,
    /// `information_schema`.
    Information,
    /// `pg_catalog`.
    Postgres,
}

impl Space {
    /// The schema of that name, the lake's when there is no name; `None` when there is no such schema.
    pub(crate) fn of(schema: Option<&str>) -> Option<Self> {
        match schema {
            None | Some(SCHEMA | PG_SCHEMA) => Some(Self::Lake),
            Some(INFORMATION_SCHEMA) => Some(Self::Information),
            Some(PG_CATALOG) => Some(Self::Postgres),
            Some(_) => None,
        }
    }
}

/// A table to look up.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// The table's name in the lake.
    pub(crate) table: String,
    /// Its own version, when the statement names one.
    pub(crate) at: Option<At>,
    pub(crate) position: Option<Position>,
}

/// Finds the tables that a statement reads: the name they have in its (rewritten) text, and what to look up.
///
/// `t AT (...)` becomes `"t@version=3" AS t` in the text. Names of CTEs in scope are not tables. With `any_catalog` the
/// catalog's name is not looked at: a view made by DuckDB has the name that DuckDB attached the lake under. Errors:
/// `TooLarge`, `Refused` for clauses that DataFusion would skip in silence, `UnknownTable` for a schema that does not exist.
pub(crate) fn tables(parsed: &mut Parsed, limits: &SqlLimits, any_catalog: bool) -> Result<BTreeMap<Name, Wanted>> {
    let mut finder = Finder {
        limits,
        any_catalog,
        versions: &parsed.versions,
        versions_used: 0,
        wanted: BTreeMap::new(),
        scope: Vec::new(),
        queries: Vec::new(),
        finished: Size::default(),
        depth: 0,
    };
    let flow = match &mut parsed.statement {
        Reading::Query(query) | Reading::Describe(query) | Reading::Explain { query, .. } => query.visit(&mut finder),
        Reading::ExplainVerbose { statement } => statement.visit(&mut finder),
    };
    if let ControlFlow::Break(error) = flow {
        return Err(*error);
    }
    let (used, wanted) = (finder.versions_used, finder.wanted);
    match parsed.versions.get(used) {
        Some(unused) => Err(misplaced_version(unused.position)),
        None => Ok(wanted),
    }
}

/// How large a query is when every CTE is written out where it is used.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    nodes: usize,
    height: usize,
}

/// A query that is being walked through.
#[derive(Debug, Default)]
struct Frame {
    size: Size,
    /// Operators that stand above each other in the plan though the text has them side by side: joins, pipes.
    row: usize,
    /// Kept aside so that the walk does not enter the CTEs a second time.
    with: Option<With>,
    /// How many names were in scope outside.
    scope: usize,
}

struct Finder<'a> {
    limits: &'a SqlLimits,
    any_catalog: bool,
    versions: &'a [AtClause],
    versions_used: usize,
    wanted: BTreeMap<Name, Wanted>,
    scope: Vec<(String, Size)>,
    queries: Vec<Frame>,
    finished: Size,
    depth: usize,
}

type Flow = ControlFlow<Box<Error>>;

fn stop(error: Error) -> Flow {
    ControlFlow::Break(Box::new(error))
}

/// The most keys of a window: the planner orders each by each, in one step and hundreds of megabytes for some thousands.
const WINDOW_KEYS_MAX: usize = 256;

fn check_window(spec: &WindowSpec, position: Option<Position>) -> Flow {
    if spec.partition_by.len() + spec.order_by.len() <= WINDOW_KEYS_MAX {
        return ControlFlow::Continue(());
    }
    let (what, setting) = ("keys of a window", "window keys");
    stop(Error::TooLarge { what, limit: WINDOW_KEYS_MAX, setting, position })
}

impl Finder<'_> {
    fn enter(&mut self, at: impl FnOnce() -> Option<Position>) -> Flow {
        self.depth += 1;
        if let Some(frame) = self.queries.last_mut() {
            frame.size.nodes += 1;
        }
        self.check(self.depth, at)
    }

    fn check(&self, depth: usize, at: impl FnOnce() -> Option<Position>) -> Flow {
        let nodes: usize = self.queries.last().map_or(0, |f| f.size.nodes);
        let (what, limit, setting) = if depth > self.limits.depth_max {
            ("nested expressions, joins or set operations", self.limits.depth_max, "sql.depth_max")
        } else if nodes > self.limits.nodes_max {
            ("expressions and tables", self.limits.nodes_max, "sql.nodes_max")
        } else {
            return ControlFlow::Continue(());
        };
        stop(Error::TooLarge { what, limit, setting, position: at() })
    }

    /// Walks the operands of set operations without recursion: 5,000 UNION ALLs are a chain of that depth.
    fn enter_body(&self, body: &SetExpr) -> Flow {
        let mut operands = vec![(body, self.depth)];
        while let Some((operand, depth)) = operands.pop() {
            if let Some(what) = refused_in_body(operand) {
                return stop(Error::Refused { what, position: None });
            }
            if let SetExpr::SetOperation { left, right, .. } = operand {
                self.check(depth + 1, || None)?;
                operands.push((left, depth + 1));
                operands.push((right, depth + 1));
            }
        }
        ControlFlow::Continue(())
    }

    fn table(&mut self, name: &mut ObjectName, alias: &mut Option<TableAlias>) -> Flow {
        let versions = self.versions;
        let position = Position::of(name.span().start);
        let mut parts = Vec::with_capacity(name.0.len());
        for part in &name.0 {
            match part {
                ObjectNamePart::Identifier(ident) => parts.push(normal(ident)),
                ObjectNamePart::Function(_) => return stop(Error::plan("a table's name cannot be computed", position)),
            }
        }
        let Some(last) = parts.pop() else { return ControlFlow::Continue(()) };
        let (table, version) = match last.split_once(VERSION_MARK) {
            Some((table, number)) => {
                self.versions_used += 1;
                (table.to_owned(), number.parse().ok().and_then(|n: usize| versions.get(n)))
            }
            None => (last, None),
        };
        if parts.is_empty()
            && let Some((_, size)) = self.scope.iter().rev().find(|(cte, _)| *cte == table)
        {
            if let Some(version) = version {
                return stop(Error::plan(format!("`{table}` is a WITH query and has no versions"), version.position));
            }
            if let Some(frame) = self.queries.last_mut() {
                frame.size.nodes = frame.size.nodes.saturating_add(size.nodes);
                frame.size.height = frame.size.height.max(size.height);
            }
            return self.check(0, || position);
        }
        let schema = parts.pop();
        let catalog = parts.pop().filter(|c| !self.any_catalog && c != CATALOG);
        let space = match (catalog, Space::of(schema.as_deref())) {
            (None, Some(space)) => space,
            _ => return stop(Error::UnknownTable { name: name.to_string(), position, near: Some(table) }),
        };
        let is_bare = schema.is_none();
        let shown = match version {
            None => table.clone(),
            Some(version) => {
                let shown = format!("{table}@{}", version.label);
                *name = ObjectName::from(vec![Ident { span: name.span(), ..Ident::with_quote('"', &shown) }]);
                alias.get_or_insert_with(|| TableAlias {
                    explicit: true,
                    name: Ident::with_quote('"', &table),
                    columns: Vec::new(),
                    at: None,
                });
                shown
            }
        };
        let is_bare = is_bare || version.is_some();
        let wanted = Wanted { table, at: version.map(|v| v.at), position };
        self.wanted.entry(Name { space, is_bare, table: shown }).or_insert(wanted);
        ControlFlow::Continue(())
    }
}

/// An identifier as DataFusion compares it: in lowercase unless quoted.
pub(crate) fn normal(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_ascii_lowercase() }
}

impl VisitorMut for Finder<'_> {
    type Break = Box<Error>;

    fn pre_visit_statement(&mut self, _statement: &mut Statement) -> Flow {
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &mut Query) -> Flow {
        self.enter(|| None)?;
        if let Some(what) = refused_in_query(query) {
            return stop(Error::Refused { what, position: None });
        }
        self.enter_body(&query.body)?;
        let mut with = query.with.take();
        self.queries.push(Frame { scope: self.scope.len(), row: query.pipe_operators.len(), ..Frame::default() });
        if let Some(with) = &mut with {
            for cte in &mut with.cte_tables {
                let name = normal(&cte.alias.name);
                if with.recursive {
                    self.scope.push((name.clone(), Size { nodes: 1, height: 1 }));
                }
                // A CTE that is not recursive does not see itself: `with t as (select * from t)` reads the table.
                cte.query.visit(self)?;
                self.scope.push((name, self.finished));
            }
        }
        if let Some(frame) = self.queries.last_mut() {
            frame.with = with;
        }
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &mut Query) -> Flow {
        self.depth -= 1;
        let Some(frame) = self.queries.pop() else { return ControlFlow::Continue(()) };
        query.with = frame.with;
        self.scope.truncate(frame.scope);
        let size = Size { nodes: frame.size.nodes + 1, height: frame.size.height + frame.row + 1 };
        self.finished = size;
        if let Some(parent) = self.queries.last_mut() {
            parent.size.nodes = parent.size.nodes.saturating_add(size.nodes);
            parent.size.height = parent.size.height.max(size.height);
        }
        self.check(size.height, || None)
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> Flow {
        let joins: usize = select.from.iter().map(|t| 1 + t.joins.len()).sum();
        if let Some(frame) = self.queries.last_mut() {
            frame.row = frame.row.max(joins);
        }
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(expr) = item
                && let Some(name) = functions::written(expr)
            {
                let alias = Ident::with_quote('"', name);
                *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
            }
        }
        let position = Position::of(select.select_token.0.span.start);
        for window in &select.named_window {
            if let NamedWindowExpr::WindowSpec(spec) = &window.1 {
                check_window(spec, position)?;
            }
        }
        self.check(joins, || position)
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> Flow {
        self.enter(|| None)?;
        match factor {
            TableFactor::Table {
                name,
                alias,
                args,
                with_hints,
                version,
                partitions,
                json_path,
                sample,
                index_hints,
                with_ordinality,
            } => {
                let position = Position::of(name.span().start);
                let clause = if sample.is_some() {
                    Some("`TABLESAMPLE`")
                } else if version.is_some() {
                    Some("`FOR SYSTEM_TIME`")
                } else if *with_ordinality {
                    Some("`WITH ORDINALITY`")
                } else if !partitions.is_empty() {
                    Some("`PARTITION (...)`")
                } else if !with_hints.is_empty() || !index_hints.is_empty() {
                    Some("a hint")
                } else if json_path.is_some() {
                    Some("a path behind a table")
                } else {
                    None
                };
                if let Some(clause) = clause {
                    return stop(Error::Refused { what: clause.to_owned(), position });
                }
                if args.is_none() {
                    return self.table(name, alias);
                }
            }
            TableFactor::Derived { sample: Some(_), .. } => {
                return stop(Error::Refused { what: "`TABLESAMPLE`".to_owned(), position: None });
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn post_visit_table_factor(&mut self, _factor: &mut TableFactor) -> Flow {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> Flow {
        if let Expr::Function(function) = expr
            && let Some(WindowType::WindowSpec(spec)) = &function.over
        {
            check_window(spec, Position::of(function.span().start))?;
        }
        self.enter(|| if let Expr::Identifier(i) = expr { Position::of(i.span.start) } else { None })
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> Flow {
        self.depth -= 1;
        let copied = functions::rewrite(expr);
        if let Some(frame) = self.queries.last_mut() {
            frame.size.nodes = frame.size.nodes.saturating_add(copied);
        }
        self.check(0, || None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::parse;

    /// With a stack as the engine's threads have it: dropping what is refused goes as deep as it nests.
    fn names(sql: &str) -> Result<Vec<String>> {
        let sql = sql.to_owned();
        let thread = std::thread::Builder::new().stack_size(64 << 20).spawn(move || found(&sql)).unwrap();
        thread.join().unwrap()
    }

    fn found(sql: &str) -> Result<Vec<String>> {
        let mut parsed = parse(sql, &SqlLimits::default())?;
        let found = tables(&mut parsed, &SqlLimits::default(), false)?;
        Ok(found
            .into_keys()
            .map(|n| if n.space == Space::Information { format!("i.{}", n.table) } else { n.table })
            .collect())
    }

    #[test]
    fn tables_are_found_and_ctes_are_not() {
        let check = |sql: &str, expected: &[&str]| {
            let mut found = names(sql).unwrap();
            found.sort();
            assert_eq!(found, expected, "{sql}");
        };
        check("select 1", &[]);
        check("select * from a join main.b on true where x in (select y from headworks.main.c)", &["a", "b", "c"]);
        check("with t as (select * from t) select * from t", &["t"]);
        check("with t as (select 1), u as (select * from t) select * from u", &[]);
        check("with recursive t as (select 1 union all select * from t) select * from t", &[]);
        check("select (with t as (select 1) select * from t), * from t", &["t"]);
        check("select * from T, \"T\"", &["T", "t"]);
        check("select * from generate_series(1, 2)", &[]);
        check("select * from t at (version => 3), t", &["t", "t@version=3"]);
        check("explain select * from information_schema.tables", &["i.tables"]);
        check("describe t", &["t"]);
        check("from t select a", &["t"]);
        check("select * from ((a join b using (x)) join (select * from c) d using (x))", &["a", "b", "c"]);
    }

    #[test]
    fn unreadable_clauses_are_refused() {
        for bad in [
            "select * from t for update",
            "select * from t tablesample (10)",
            "select * into x from t",
            "select * from (select * into x from t) y",
            "with x as (insert into t values (1) returning 1) select * from x",
            "select * from other.t",
            "with a as (select 1) select * from a at (version => 1)",
            "select a.x at (version => 1) from t a",
        ] {
            assert!(names(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_count_what_ctes_multiply() {
        let mut bomb = String::from("with c0 as (select 1 as x)");
        for i in 1..40 {
            bomb.push_str(&format!(", c{i} as (select a.x from c{} a, c{} b)", i - 1, i - 1));
        }
        bomb.push_str(" select * from c39");
        let chain = |n: usize| {
            let mut text = String::from("with c0 as (select 1 as x)");
            for i in 1..n {
                text.push_str(&format!(", c{i} as (select x from c{})", i - 1));
            }
            format!("{text} select * from c{}", n - 1)
        };
        let check = |sql: &str, expected: Option<&str>| match (names(sql), expected) {
            (Ok(_), None) => {}
            (Err(Error::TooLarge { setting, .. }), Some(expected)) => assert_eq!(setting, expected),
            (found, _) => panic!("{found:?}"),
        };
        check(&bomb, Some("sql.nodes_max"));
        check(&chain(100), None);
        check(&chain(300), Some("sql.nodes_max"));
        check(&format!("select {}1", "1+".repeat(12_000)), Some("sql.depth_max"));
        check(&format!("select 1 {}", "union all select 1 ".repeat(5_000)), Some("sql.depth_max"));
        check(&format!("select * from t where a in ({}1)", "1,".repeat(15_000)), None);
        let keys = |n: usize| format!("{}a", "a,".repeat(n - 1));
        check(&format!("select rank() over (partition by {} order by a) from t", keys(255)), None);
        check(&format!("select rank() over (partition by {} order by a) from t", keys(256)), Some("window keys"));
        check(&format!("select rank() over w from t window w as (order by {})", keys(257)), Some("window keys"));
    }
}
