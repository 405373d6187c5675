//! From a statement to a physical plan.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef},
};
use datafusion::{
    catalog::cte_worktable::CteWorkTable,
    common::{ScalarValue, TableReference, tree_node::TreeNode, tree_node::TreeNodeRecursion},
    config::ConfigOptions,
    datasource::{ViewTable, provider_as_source},
    error::DataFusionError,
    execution::{FunctionRegistry, SessionState, SessionStateBuilder, context::SQLOptions, runtime_env::RuntimeEnv},
    logical_expr::{
        AggregateUDF, Expr, HigherOrderUDF, LogicalPlan, LogicalPlanBuilder, ScalarUDF, TableSource, Volatility,
        WindowUDF, col, lit,
        planner::{ContextProvider, ExprPlanner, TypePlanner},
        simplify::SimplifyContext,
    },
    optimizer::simplify_expressions::ExprSimplifier,
    physical_plan::{ExecutionPlan, joins::HashJoinExec},
    prelude::SessionConfig,
    sql::{
        parser::Statement as DfStatement,
        planner::{NullOrdering, ParserOptions, PlannerContext, SqlToRel},
        sqlparser::ast::Statement,
    },
};
use headworks_domain::{Grant, PartitionKey, nearest};

use crate::{
    At, Catalog, Described, Error, Found, GrantCheck, Listed, Moment, Newest, PgSession, QueryOptions, Result,
    SqlLimits,
    access::{self, Barrier, Guarded, Shown},
    coop::Pauses,
    early_filters::EarlyFilters,
    explain::{self, AnalyzeExec, Besides},
    extremes::Extremes,
    functions,
    guard::{self, Nature, ValueLimits},
    information, lake,
    listing::Listing,
    parse::{self, Reading},
    pg_catalog::{self, PgCatalog, Rewritten},
    resolve::{self, Name, Space, Wanted},
    semi_joins::EarlySemiJoins,
    types::Times,
    wanted,
};

/// The most views that may stand on each other.
const VIEWS_DEPTH_MAX: usize = 16;

/// Plans statements; built once, shared by all queries.
pub(crate) struct Planner {
    catalog: Arc<dyn Catalog>,
    /// Plans for one thread: no exchanges, which cost more than they win on small inputs.
    narrow: SessionState,
    /// The same with PostgreSQL's functions and type names.
    postgres: SessionState,
    pg_catalog: PgCatalog,
    listing: Listing,
    threads: usize,
    parallel_bytes_min: u64,
    limits: ValueLimits,
}

/// A statement that is ready to run.
#[allow(clippy::large_enum_variant, reason = "there is one a query")]
pub(crate) enum Planned {
    /// Rows that are known already.
    Rows(RecordBatch),
    /// A plan, and what is needed to plan it once more.
    Plan(Runnable),
}

pub(crate) struct Runnable {
    /// The optimised logical plan, kept for a second try.
    logical: LogicalPlan,
    pub(crate) physical: Arc<dyn ExecutionPlan>,
    pub(crate) state: SessionState,
    /// The columns as the caller is told of them.
    schema: SchemaRef,
    /// What the rows depend on; `None` when they depend on more than that, as on the time.
    reads: Option<Reads>,
    pub(crate) nature: Nature,
    /// Of one whose steps are told instead of its rows: what is told besides.
    analyzed: Option<Besides>,
}

impl Runnable {
    /// Its steps shall be told instead of its rows.
    fn analyze(&mut self, besides: Besides) {
        self.physical = Arc::new(AnalyzeExec::new(Arc::clone(&self.physical), besides.clone()));
        self.schema = self.physical.schema();
        self.analyzed = Some(besides);
    }
}

/// What a query's rows depend on.
#[derive(Debug, Clone)]
pub(crate) struct Reads {
    /// Tables and views of the lake.
    pub(crate) tables: Vec<String>,
    /// When they are read.
    pub(crate) moment: Moment,
}

impl Planned {
    pub(crate) fn schema(&self) -> SchemaRef {
        match self {
            Self::Rows(batch) => batch.schema(),
            Self::Plan(plan) => Arc::clone(&plan.schema),
        }
    }

    /// What the rows depend on; `None` when they may differ though nothing of the lake does.
    pub(crate) fn reads(&self) -> Option<&Reads> {
        match self {
            Self::Rows(_) => None,
            Self::Plan(plan) => plan.reads.as_ref(),
        }
    }
}

impl Planner {
    pub(crate) fn new(
        catalog: Arc<dyn Catalog>,
        runtime: Arc<RuntimeEnv>,
        threads: usize,
        parallel_bytes_min: u64,
        limits: ValueLimits,
    ) -> Result<Self> {
        let mut config = SessionConfig::new().with_target_partitions(1).with_create_default_catalog_and_schema(false);
        let options = config.options_mut();
        options.sql_parser.collect_spans = true;
        // What has a zone is told in this one; without it `timestamptz` would be a type without zone.
        options.execution.time_zone = Some("UTC".to_owned());
        let mut narrow = SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(runtime)
            .with_default_features()
            // Nothing of a query's text may name a file.
            .with_file_formats(Vec::new())
            .with_table_factories(HashMap::new())
            .with_optimizer_rule(Arc::new(Extremes))
            .with_optimizer_rule(Arc::new(EarlySemiJoins))
            .with_physical_optimizer_rule(Arc::new(EarlyFilters))
            .with_physical_optimizer_rule(Arc::new(Pauses))
            .build();
        functions::register(&mut narrow, limits)?;
        guard::hold(&mut narrow, limits)?;
        wanted::watch_functions(&mut narrow)?;
        let operators = functions::operators(&narrow)?;
        let planners = [vec![operators], narrow.expr_planners().to_vec()].concat();
        let narrow = SessionStateBuilder::new_from_existing(narrow).with_expr_planners(planners).build();
        let narrow = wanted::watch_rules(narrow);
        let mut postgres = pg_catalog::with_functions(&narrow, limits)?;
        wanted::watch_functions(&mut postgres)?;
        let (pg_catalog, listing) = (PgCatalog::new()?, Listing::default());
        Ok(Self { catalog, narrow, postgres, pg_catalog, listing, threads, parallel_bytes_min, limits })
    }

    /// Plans one statement. Runs on a thread with a large stack.
    pub(crate) async fn plan(&self, sql: &str, options: &QueryOptions) -> Result<Planned> {
        let begun = Instant::now();
        let state = self.state_of(options)?;
        let types = options.parameters.iter().map(|value| Some(value.data_type())).collect();
        let Logical { plan, kind, reads, names } = self.logical(sql, options, types, &state).await?;
        if kind == Kind::Describe {
            let schema = Arc::new(plan.schema().as_arrow().clone());
            return Ok(Planned::Rows(information::description(&schema)?));
        }
        let plan = match options.parameters.is_empty() {
            true => plan,
            false => plan.with_param_values(options.parameters.clone())?,
        };
        let is_kept = kind == Kind::Query && !changes_by_itself(&plan)?;
        let logical = state.optimize(&plan)?;
        let reads = reads.filter(|_| is_kept);
        let mut runnable = self.physical(logical, reads, state, options).await?;
        match kind {
            Kind::Explain => {
                let reads = explain::reads(&runnable.logical)?;
                return Ok(Planned::Rows(explain::plan(&runnable.physical, reads)?));
            }
            Kind::Analyze => {
                let reads = explain::reads(&runnable.logical)?;
                runnable.analyze(Besides { reads, planned_in: begun.elapsed() });
            }
            _ => runnable.schema = renamed(&runnable.schema, names),
        }
        Ok(Planned::Plan(runnable))
    }

    /// Plans one statement as far as its columns and parameters are known.
    pub(crate) async fn describe(&self, sql: &str, options: &QueryOptions) -> Result<Described> {
        let state = self.state_of(options)?;
        let Logical { plan, kind, names, .. } =
            self.logical(sql, options, options.parameter_types.clone(), &state).await?;
        let schema = match kind {
            Kind::Describe => information::description(&Arc::new(plan.schema().as_arrow().clone()))?.schema(),
            Kind::Explain | Kind::Analyze => explain::schema(),
            Kind::Query | Kind::Verbose => renamed(&Arc::new(plan.schema().as_arrow().clone()), names),
        };
        let mut types = plan.get_parameter_types()?;
        types.extend(cast_parameters(&plan)?);
        let number = |name: &str| name.trim_start_matches('$').parse::<usize>().ok().filter(|n| *n > 0);
        let count = types.keys().filter_map(|name| number(name)).max().unwrap_or(0);
        if count > options.limits.tokens_max {
            return Err(Error::plan(format!("there is no parameter ${count}"), None));
        }
        let mut parameters = vec![None; count];
        for (name, data_type) in types {
            if let Some(n) = number(&name) {
                parameters[n - 1] = data_type;
            }
        }
        Ok(Described { parameters, schema })
    }

    /// Holds a grant against the tables that there are.
    pub(crate) async fn check_grant(&self, grant: &Grant) -> Result<GrantCheck> {
        if let Some(rows) = &grant.rows {
            access::parsed_filter(rows, "")?;
        }
        let options = QueryOptions::default();
        let state = self.state(&options, 1, true);
        let mut checked = GrantCheck::default();
        let listed = self.catalog.list(At::Now.into()).await?;
        for one in listed.into_iter().filter(|one| grant.tables.matches(&one.name)) {
            let schema = match one.schema {
                Some(schema) => Ok(schema),
                None => {
                    let sql = format!("select * from \"{}\"", one.name.replace('"', "\"\""));
                    let view = self.logical(&sql, &options, Vec::new(), &state).await;
                    view.map(|view| Arc::new(view.plan.schema().as_arrow().clone()))
                }
            };
            match schema.and_then(|schema| access::check(grant, &schema, &Names::none(&state))) {
                Ok(()) => drop(checked.fitting.insert(one.name)),
                Err(error) => checked.unfitting.push((one.name, error)),
            }
        }
        Ok(checked)
    }

    async fn logical(
        &self,
        sql: &str,
        options: &QueryOptions,
        parameter_types: Vec<Option<DataType>>,
        state: &SessionState,
    ) -> Result<Logical> {
        let Rewritten { mut parsed, written } = match &options.postgres {
            None => Rewritten { parsed: parse::parse(sql, &options.limits)?, written: None },
            Some(_) => pg_catalog::parse_postgres(sql, &options.limits, &parameter_types)?,
        };
        wanted::look()?;
        let wanted = resolve::tables(&mut parsed, &options.limits, false)?;
        let lookup = Lookup { planner: self, options, seen: Mutex::default(), is_listing: false };
        let (sources, moment) = lookup.sources(state, wanted, None, 0).await?;
        let names = Names::new(state, sources, options);
        let planner = SqlToRel::new_with_options(&names, parser_options(state.config_options()));
        let (kind, statement) = match parsed.statement {
            Reading::Query(query) => (Kind::Query, Statement::Query(query)),
            Reading::Explain { query, is_run: false } => (Kind::Explain, Statement::Query(query)),
            Reading::Explain { query, is_run: true } => (Kind::Analyze, Statement::Query(query)),
            Reading::ExplainVerbose { statement } => (Kind::Verbose, statement),
            Reading::Describe(query) => (Kind::Describe, Statement::Query(query)),
        };
        let mut context = PlannerContext::new().with_prepare_param_data_types(parameter_fields(parameter_types));
        let plan = planner.sql_statement_to_plan_with_context(statement, &mut context)?;
        wanted::look()?;
        // The allow-list has refused all of these already; this holds when it has a hole.
        SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false)
            .verify_plan(&plan)?;
        let seen = lookup.seen.into_inner().unwrap_or_else(PoisonError::into_inner);
        let reads = Reads { tables: seen.names.into_iter().collect(), moment };
        let names =
            written.map_or_else(Vec::new, |query| pg_catalog::column_names(&query, plan.schema().fields().len()));
        Ok(Logical { plan, kind, reads: (!seen.has_more).then_some(reads), names })
    }

    async fn physical(
        &self,
        logical: LogicalPlan,
        reads: Option<Reads>,
        narrow: SessionState,
        options: &QueryOptions,
    ) -> Result<Runnable> {
        let threads = options.threads.unwrap_or(self.threads);
        // EXPLAIN shows the plan that the query itself would get.
        let read = match &logical {
            LogicalPlan::Explain(explain) => &explain.plan,
            query => query,
        };
        let is_wide = threads > 1 && lake::bytes(read, &narrow).await? >= self.parallel_bytes_min;
        let mut state = if is_wide { self.state(options, threads, true) } else { narrow };
        let nature = self.limits.nature(&logical)?;
        nature.apply(&mut state);
        let physical = physical_plan(&logical, &state).await?;
        let schema = physical.schema();
        Ok(Runnable { logical, physical, state, schema, reads, nature, analyzed: None })
    }

    /// Plans once more for a query that ran out of memory: joins sort and spill instead of holding one side in a hash
    /// table, and half as many parts share the memory. None when that would change nothing.
    pub(crate) async fn plan_spilling(&self, failed: &Runnable) -> Result<Option<Runnable>> {
        if !has_hash_join(&failed.physical) {
            return Ok(None);
        }
        // With one part DataFusion plans hash joins only.
        let threads = (failed.state.config().target_partitions() / 2).max(2);
        let mut state = with_threads(failed.state.clone(), threads, false);
        failed.nature.apply(&mut state);
        let physical = physical_plan(&failed.logical, &state).await?;
        let mut again = Runnable {
            logical: failed.logical.clone(),
            physical,
            state,
            schema: Arc::clone(&failed.schema),
            reads: failed.reads.clone(),
            nature: failed.nature,
            analyzed: None,
        };
        if let Some(besides) = &failed.analyzed {
            again.analyze(besides.clone());
        }
        Ok(Some(again))
    }

    /// For one thread, with the functions that depend on who asks.
    fn state_of(&self, options: &QueryOptions) -> Result<SessionState> {
        let mut state = self.state(options, 1, true);
        if options.postgres.is_none() {
            state.register_udf(Arc::new(functions::current_user(&options.caller.user)))?;
        }
        Ok(state)
    }

    fn state(&self, options: &QueryOptions, threads: usize, hash_joins: bool) -> SessionState {
        let state = if options.postgres.is_some() { &self.postgres } else { &self.narrow };
        with_threads(state.clone(), threads, hash_joins)
    }

    /// All tables and views, with the columns of views too.
    async fn listed(&self) -> Result<Arc<[Listed]>> {
        let stamp = match self.listing.look(self.catalog.as_ref()).await? {
            Ok(listed) => return Ok(listed),
            Err(stamp) => stamp,
        };
        let (now, _) = self.catalog.fix(At::Now, &[]).await?;
        let mut listed = self.catalog.list(now).await?;
        let options = QueryOptions::default();
        let state = self.state(&options, 1, true);
        let lookup = Lookup { planner: self, options: &options, seen: Mutex::default(), is_listing: true };
        for table in listed.iter_mut().filter(|table| table.definition.is_some() && table.schema.is_none()) {
            let Some(Found::View { sql, columns }) = self.catalog.find(&table.name, now).await? else { continue };
            // One view that cannot be planned does not hide the others.
            let view = lookup.view(&state, &table.name, &sql, columns, now, 0).await;
            table.schema = view.ok().map(|view| view.schema());
        }
        let listed: Arc<[Listed]> = listed.into();
        self.listing.keep(stamp, &listed);
        Ok(listed)
    }
}

fn with_threads(mut state: SessionState, threads: usize, hash_joins: bool) -> SessionState {
    if threads > 1 || !hash_joins {
        let options = state.config_mut().options_mut();
        options.execution.target_partitions = threads;
        options.optimizer.prefer_hash_join = hash_joins;
    }
    state.mark_start_execution();
    state
}

/// The types of parameters that are cast at once, as `$1::date`, where nothing else tells them.
fn cast_parameters(plan: &LogicalPlan) -> Result<HashMap<String, Option<DataType>>> {
    let mut types = HashMap::new();
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|inner| {
                if let Expr::Cast(cast) = inner
                    && let Expr::Placeholder(placeholder) = &*cast.expr
                    && placeholder.field.is_none()
                {
                    types.insert(placeholder.id.clone(), Some(cast.field.data_type().clone()));
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(types)
}

/// Unnamed fields of these types; none where the type is not known.
fn parameter_fields(types: Vec<Option<DataType>>) -> Vec<Option<FieldRef>> {
    types.into_iter().map(|known| Some(Arc::new(Field::new("", known?, true)))).collect()
}

/// The same columns by other names, where there are some.
fn renamed(schema: &SchemaRef, names: Vec<Option<String>>) -> SchemaRef {
    if names.iter().all(Option::is_none) || names.len() != schema.fields().len() {
        return Arc::clone(schema);
    }
    let fields = schema.fields().iter().zip(names).map(|(field, name)| match name {
        None => Arc::clone(field),
        Some(name) => Arc::new(field.as_ref().clone().with_name(name)),
    });
    Arc::new(Schema::new(fields.collect::<Vec<FieldRef>>()))
}

fn has_hash_join(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let behind = plan.downcast_ref::<Barrier>().map(Barrier::inner);
    plan.is::<HashJoinExec>() || plan.children().into_iter().chain(behind).any(has_hash_join)
}

/// A statement that is planned as far as one can without knowing where it runs.
struct Logical {
    plan: LogicalPlan,
    kind: Kind,
    reads: Option<Reads>,
    /// Names for columns, where PostgreSQL would name them otherwise than DataFusion.
    names: Vec<Option<String>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Query,
    Describe,
    /// EXPLAIN: planned and told.
    Explain,
    /// EXPLAIN ANALYZE: run and told.
    Analyze,
    /// EXPLAIN VERBOSE: a query of DataFusion's own.
    Verbose,
}

/// True when a plan has functions such as `now()` and `random()`, which give something else each time.
fn changes_by_itself(plan: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|inner| {
                found |= match inner {
                    Expr::ScalarFunction(call) => call.func.signature().volatility != Volatility::Immutable,
                    Expr::AggregateFunction(call) => call.func.signature().volatility == Volatility::Volatile,
                    _ => false,
                };
                Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
            })
        })
    })?;
    Ok(found)
}

fn of_statement(statement: Statement) -> DfStatement {
    DfStatement::Statement(Box::new(statement))
}

async fn physical_plan(logical: &LogicalPlan, state: &SessionState) -> Result<Arc<dyn ExecutionPlan>> {
    Ok(state.query_planner().create_physical_plan(logical, state).await?)
}

/// Looks up the tables of one statement and of the views it reads.
struct Lookup<'a> {
    planner: &'a Planner,
    options: &'a QueryOptions,
    seen: Mutex<Seen>,
    /// True while all tables are being listed: a view that asks for the list gets it without the columns of views.
    is_listing: bool,
}

/// What a statement and its views read.
#[derive(Default)]
struct Seen {
    /// Names of the lake.
    names: BTreeSet<String>,
    /// True when there is more than the lake's tables in it: `information_schema`, or a view with `now()`.
    has_more: bool,
}

type Sources = BTreeMap<Name, Arc<dyn TableSource>>;

impl Lookup<'_> {
    /// Looks all names up at one version of the lake.
    async fn sources(
        &self,
        state: &SessionState,
        wanted: BTreeMap<Name, Wanted>,
        fixed: Option<Moment>,
        views: usize,
    ) -> Result<(Sources, Moment)> {
        let catalog = &self.planner.catalog;
        let mut sources = Sources::new();
        let mut own = Sources::new();
        let mut latest_of: Vec<&str> = Vec::new();
        for (name, table) in &wanted {
            if name.is_bare
                && table.at.is_none()
                && let Some(provider) = self.options.tables.get(&name.table)
            {
                own.insert(name.clone(), provider_as_source(provider.clone()));
            } else if let (Space::Lake, Some(base)) = (name.space, table.table.strip_suffix("_latest")) {
                latest_of.push(base);
            }
        }
        let (at, newest) = match fixed {
            Some(at) => {
                let mut newest = Newest::new();
                for base in latest_of {
                    newest.insert(base.to_owned(), catalog.latest(base, at).await?);
                }
                (at, newest)
            }
            None if own.len() == wanted.len() => (self.options.at.into(), Newest::new()),
            None => catalog.fix(self.options.at, &latest_of).await?,
        };
        for (name, table) in wanted {
            let source = match own.remove(&name) {
                Some(source) => source,
                None if name.space == Space::Information => self.information(state, &table, at).await?,
                None if name.space == Space::Postgres => self.postgres(state, &table, at).await?,
                None => self.find(state, &table, at, &newest, views).await?,
            };
            sources.insert(name, source);
        }
        Ok((sources, at))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn information(&self, state: &SessionState, wanted: &Wanted, at: Moment) -> Result<Arc<dyn TableSource>> {
        self.seen().has_more = true;
        if !information::is_table(&wanted.table) && self.options.postgres.is_none() {
            return Err(unknown_in(resolve::INFORMATION_SCHEMA, wanted, information::names()));
        }
        let listed = self.listed(state, at).await?;
        let table = match &self.options.postgres {
            None => information::table(&wanted.table, &listed)?,
            Some(_) => pg_catalog::information(&wanted.table, &listed)?,
        };
        table
            .map(provider_as_source)
            .ok_or_else(|| unknown_in(resolve::INFORMATION_SCHEMA, wanted, pg_catalog::information_names()))
    }

    /// A table of `pg_catalog`, for those who speak PostgreSQL.
    async fn postgres(&self, state: &SessionState, wanted: &Wanted, at: Moment) -> Result<Arc<dyn TableSource>> {
        self.seen().has_more = true;
        let Some(session) = &self.options.postgres else {
            return Err(unknown_in(pg_catalog::PG_CATALOG, wanted, std::iter::empty()));
        };
        let listed = self.listed(state, at).await?;
        let table = self.planner.pg_catalog.table(&wanted.table, &listed, &self.options.caller.user, session)?;
        table.map(provider_as_source).ok_or_else(|| unknown_in(pg_catalog::PG_CATALOG, wanted, pg_catalog::names()))
    }

    /// All that the caller may see: `information_schema`, `pg_catalog` and hints show this and nothing else.
    async fn listed(&self, state: &SessionState, at: Moment) -> Result<Vec<Listed>> {
        let listed = if self.options.at == At::Now && !self.is_listing {
            Box::pin(self.planner.listed()).await?.to_vec()
        } else {
            self.planner.catalog.list(at).await?
        };
        Ok(access::visible(&self.options.caller.access, listed, &Names::none(state)))
    }

    /// A table or view as the caller sees it; `None` when that is nothing.
    fn shown(
        &self,
        state: &SessionState,
        name: &str,
        source: Arc<dyn TableSource>,
        newest: Option<&Option<PartitionKey>>,
    ) -> Result<Option<Arc<dyn TableSource>>> {
        let schema = source.schema();
        let policy = match access::shown(&self.options.caller.access, name, &schema, &Names::none(state)) {
            Shown::Nothing => return Ok(None),
            Shown::All => {
                return Ok(Some(match newest {
                    Some(key) => latest(name, source, newest_rows(&schema, key.as_ref())?)?,
                    None => source,
                }));
            }
            Shown::Part(policy) => policy,
        };
        self.seen().has_more |= policy.changes_by_itself;
        let policy = match newest {
            None => policy,
            // Not even the day is told to those who may not read it. The filter is the policy's: `ds` itself may be hidden.
            Some(key) => {
                let key = key.as_ref().filter(|key| policy.shows_day(key.ds));
                policy.and(newest_rows(&schema, key)?)
            }
        };
        Ok(Some(provider_as_source(Arc::new(Guarded::new(name, source, policy)))))
    }

    async fn find(
        &self,
        state: &SessionState,
        wanted: &Wanted,
        at: Moment,
        newest: &Newest,
        views: usize,
    ) -> Result<Arc<dyn TableSource>> {
        let (catalog, access) = (&self.planner.catalog, &self.options.caller.access);
        let base = wanted.table.strip_suffix("_latest");
        self.seen().names.extend([Some(wanted.table.as_str()), base].into_iter().flatten().map(str::to_owned));
        if let Some(base) = base.filter(|base| !access.hides(base))
            && let Some(Found::Table(table)) = catalog.find(base, at).await?
            && table.schema().field_with_name("ds").is_ok()
            && let key = newest.get(base).cloned().flatten()
            && let Some(source) = self.shown(state, base, provider_as_source(table), Some(&key))?
        {
            if wanted.at.is_some() {
                return Err(Error::Plan {
                    message: format!("`{}` has one version only, the newest", wanted.table),
                    position: wanted.position,
                    hint: Some(format!("read `{base} AT (...)` with the `ds` you want")),
                });
            }
            return Ok(source);
        }
        let at = match wanted.at {
            Some(own) => catalog.fix(own, &[]).await?.0,
            None => at,
        };
        let found = if access.hides(&wanted.table) { None } else { catalog.find(&wanted.table, at).await? };
        let source = match found {
            Some(Found::Table(table)) => Some(provider_as_source(table)),
            Some(Found::View { sql, columns }) => {
                Some(self.view(state, &wanted.table, &sql, columns, at, views).await?)
            }
            None => None,
        };
        if let Some(source) = source
            && let Some(source) = self.shown(state, &wanted.table, source, None)?
        {
            return Ok(source);
        }
        let listed = self.listed(state, at).await?;
        let mut names: Vec<String> = listed.iter().map(|l| l.name.clone()).collect();
        names.extend(listed.iter().filter(|l| l.has_latest).map(|l| format!("{}_latest", l.name)));
        names.extend(self.options.tables.keys().cloned());
        Err(Error::UnknownTable {
            name: wanted.table.clone(),
            position: wanted.position,
            near: nearest(&wanted.table, names.iter().map(String::as_str)).map(str::to_owned),
        })
    }

    /// Plans the text of a view that somebody made, perhaps in another dialect.
    async fn view(
        &self,
        state: &SessionState,
        name: &str,
        sql: &str,
        columns: Vec<String>,
        at: Moment,
        views: usize,
    ) -> Result<Arc<dyn TableSource>> {
        let unreadable = |error: Error| match error {
            Error::Syntax { .. } | Error::Plan { .. } | Error::UnknownTable { .. } | Error::Refused { .. } => {
                Error::Plan {
                    message: format!("view `{name}` cannot be read: {error}"),
                    position: None,
                    hint: Some("it was made by another tool: make it again in SQL that Headworks reads".to_owned()),
                }
            }
            other => other,
        };
        if views == VIEWS_DEPTH_MAX {
            return Err(Error::TooLarge {
                what: "views on views",
                limit: VIEWS_DEPTH_MAX,
                setting: "views",
                position: None,
            });
        }
        let limits = SqlLimits::default();
        let mut parsed = parse::parse(sql, &limits).map_err(unreadable)?;
        let wanted = resolve::tables(&mut parsed, &limits, true).map_err(unreadable)?;
        let Reading::Query(query) = parsed.statement else {
            return Err(unreadable(Error::Refused { what: "a view that is no query".to_owned(), position: None }));
        };
        let (sources, _) = Box::pin(self.sources(state, wanted, Some(at), views + 1)).await.map_err(unreadable)?;
        let names = Names::new(state, sources, self.options);
        let planner = SqlToRel::new_with_options(&names, parser_options(state.config_options()));
        let planned =
            planner.statement_to_plan(of_statement(Statement::Query(query))).map_err(|e| unreadable(e.into()))?;
        let planned = match columns.len() {
            0 => planned,
            n if n == planned.schema().fields().len() => {
                let renamed: Vec<Expr> = planned
                    .schema()
                    .columns()
                    .into_iter()
                    .zip(columns)
                    .map(|(c, new)| Expr::Column(c).alias(new))
                    .collect();
                LogicalPlanBuilder::from(planned).project(renamed)?.build()?
            }
            _ => return Err(unreadable(Error::plan("its column names do not fit its SELECT", None))),
        };
        if changes_by_itself(&planned)? {
            self.seen().has_more = true;
        }
        Ok(provider_as_source(Arc::new(ViewTable::new(planned, Some(sql.to_owned())))))
    }
}

fn unknown_in(schema: &str, wanted: &Wanted, names: impl Iterator<Item = &'static str>) -> Error {
    Error::UnknownTable {
        name: format!("{schema}.{}", wanted.table),
        position: wanted.position,
        near: nearest(&wanted.table, names).map(|name| format!("{schema}.{name}")),
    }
}

/// The newest partition of a table as a condition with literal values, which prunes; `ds = (select max(ds) ...)` prunes nothing.
fn newest_rows(schema: &Schema, key: Option<&PartitionKey>) -> Result<Expr, DataFusionError> {
    let Some(key) = key else { return Ok(lit(false)) };
    let day = ScalarValue::try_from_string(key.ds.to_string(), &DataType::Date32)?;
    let filter = col("ds").eq(lit(day));
    Ok(match key.hour.filter(|_| schema.field_with_name("hour").is_ok()) {
        Some(hour) => filter.and(col("hour").eq(lit(i32::from(hour)))),
        None => filter,
    })
}

/// The newest partition of a table as a view.
fn latest(base: &str, table: Arc<dyn TableSource>, rows: Expr) -> Result<Arc<dyn TableSource>, DataFusionError> {
    let plan = LogicalPlanBuilder::scan(TableReference::bare(base), table, None)?.filter(rows)?.build()?;
    Ok(provider_as_source(Arc::new(ViewTable::new(plan, None))))
}

/// Answers the planner's questions about names: tables that were looked up before, functions of the session.
pub(crate) struct Names<'a> {
    state: &'a SessionState,
    sources: Sources,
    /// The session of the PostgreSQL protocol, and whose it is.
    session: Option<(&'a PgSession, &'a str)>,
}

impl<'a> Names<'a> {
    fn new(state: &'a SessionState, sources: Sources, options: &'a QueryOptions) -> Self {
        let session = options.postgres.as_deref().map(|session| (session, options.caller.user.as_str()));
        Self { state, sources, session }
    }

    /// Functions only.
    pub(crate) fn none(state: &'a SessionState) -> Self {
        Self { state, sources: Sources::new(), session: None }
    }

    pub(crate) fn parser_options(&self) -> ParserOptions {
        parser_options(self.state.config_options())
    }

    pub(crate) fn simplifier(&self) -> ExprSimplifier {
        let context = SimplifyContext::builder()
            .with_config_options(Arc::clone(self.state.config_options()))
            .with_query_execution_start_time(self.state.execution_props().query_execution_start_time)
            .build();
        ExprSimplifier::new(context)
    }
}

fn parser_options(options: &ConfigOptions) -> ParserOptions {
    let sql = &options.sql_parser;
    ParserOptions {
        parse_float_as_decimal: sql.parse_float_as_decimal,
        enable_ident_normalization: sql.enable_ident_normalization,
        support_varchar_with_length: sql.support_varchar_with_length,
        enable_options_value_normalization: sql.enable_options_value_normalization,
        collect_spans: sql.collect_spans,
        map_string_types_to_utf8view: sql.map_string_types_to_utf8view,
        default_null_ordering: NullOrdering::from(sql.default_null_ordering.as_str()),
    }
}

impl ContextProvider for Names<'_> {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>, DataFusionError> {
        let space = Space::of(name.schema()).unwrap_or(Space::Lake);
        let key = Name { space, is_bare: name.schema().is_none(), table: name.table().to_owned() };
        self.sources.get(&key).cloned().ok_or_else(|| DataFusionError::Plan(format!("table `{name}` does not exist")))
    }

    fn get_table_function_source(&self, name: &str, args: Vec<Expr>) -> Result<Arc<dyn TableSource>, DataFusionError> {
        let name = name.to_lowercase();
        let function = self.state.table_functions().get(&name).ok_or_else(|| {
            let near = nearest(&name, self.state.table_functions().keys().map(String::as_str));
            let near = near.map(|n| format!(". Did you mean '{n}'?")).unwrap_or_default();
            DataFusionError::Plan(format!("table function `{name}` does not exist{near}"))
        })?;
        let simplifier = self.simplifier();
        let schema = datafusion::common::DFSchema::empty();
        let args = args
            .into_iter()
            .map(|arg| simplifier.coerce(arg, &schema).and_then(|e| simplifier.simplify(e)))
            .collect::<Result<Vec<_>, _>>()?;
        let args = datafusion::catalog::TableFunctionArgs::new(&args, self.state);
        Ok(provider_as_source(function.create_table_provider_with_args(args)?))
    }

    fn create_cte_work_table(&self, name: &str, schema: SchemaRef) -> Result<Arc<dyn TableSource>, DataFusionError> {
        Ok(provider_as_source(Arc::new(CteWorkTable::new(name, schema))))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        self.state.expr_planners()
    }

    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        Some(if self.session.is_some() { pg_catalog::type_planner() } else { Arc::new(Times) })
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        if let Some((session, user)) = self.session
            && let Some(function) = pg_catalog::session_function(name, user, session)
        {
            return Some(function);
        }
        self.state.scalar_functions().get(name).cloned()
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        self.state.higher_order_functions().get(name).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.state.aggregate_functions().get(name).cloned()
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.state.window_functions().get(name).cloned()
    }

    fn get_variable_type(&self, _variable_names: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        self.state.config_options()
    }

    fn udf_names(&self) -> Vec<String> {
        self.state.scalar_functions().keys().cloned().collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        self.state.higher_order_functions().keys().cloned().collect()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.state.aggregate_functions().keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        self.state.window_functions().keys().cloned().collect()
    }
}
