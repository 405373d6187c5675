//! From a statement to a physical plan.

mod lookup;
mod names;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef},
};
use datafusion::{
    common::tree_node::{TreeNode, TreeNodeRecursion},
    execution::{FunctionRegistry, SessionState, SessionStateBuilder, context::SQLOptions, runtime_env::RuntimeEnv},
    logical_expr::{Expr, LogicalPlan, Volatility},
    physical_optimizer::optimizer::PhysicalOptimizer,
    physical_plan::{ExecutionPlan, joins::HashJoinExec},
    prelude::SessionConfig,
    sql::{
        parser::Statement as DfStatement,
        planner::{PlannerContext, SqlToRel},
        sqlparser::ast::Statement,
    },
};
use headworks_domain::Grant;

use crate::{
    At, Catalog, Described, Error, Found, GrantCheck, Listed, Moment, QueryOptions, Result,
    access::{self, Barrier},
    arithmetic::{Arithmetic, Constants},
    conjunctions::Conjunctions,
    coop::Pauses,
    early_filters::EarlyFilters,
    early_groups::EarlyGroups,
    explain::{self, AnalyzeExec, Besides},
    extremes::Extremes,
    filters_first::FiltersFirst,
    functions,
    guard::{self, Nature, ValueLimits},
    information, lake,
    listing::Listing,
    parse::{self, Reading},
    pg_catalog::{self, PgCatalog, Rewritten},
    resolve,
    semi_joins::EarlySemiJoins,
    shared::{SharedExec, plan_sharing},
    wanted,
    window_columns::WindowColumns,
};

use lookup::Lookup;
pub(crate) use names::Names;
use names::parser_options;

/// A join by one integer looks its keys up in an array when they span less than this, 4 bytes each, or are at least so dense;
/// otherwise in a hash table, which took up to twice as long in TPC-H and about a fifth of the memory of the thinnest array.
const KEYS_MAX: usize = 1_000_000;
const KEY_DENSITY_MIN: f64 = 0.02;

/// What a join's smaller side may have, by the planner's estimate, for one thread to make its table alone, divided by the
/// square of the threads. It is seldom worth it to spread both sides over the threads by their keys: the larger side has to be
/// copied for that.
const ALONE_ROWS_MAX: usize = 64 << 20;
const ALONE_ROW_BYTES: usize = 64;

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
        options.execution.perfect_hash_join_small_build_threshold = KEYS_MAX;
        options.execution.perfect_hash_join_min_key_density = KEY_DENSITY_MIN;
        let mut physical_rules = PhysicalOptimizer::new().rules;
        physical_rules.insert(0, Arc::new(Arithmetic));
        let mut narrow = SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(runtime)
            .with_default_features()
            // Nothing of a query's text may name a file.
            .with_file_formats(Vec::new())
            .with_table_factories(HashMap::new())
            .with_analyzer_rule(Arc::new(Constants))
            .with_optimizer_rule(Arc::new(Extremes))
            .with_optimizer_rule(Arc::new(EarlyGroups))
            .with_optimizer_rule(Arc::new(EarlySemiJoins))
            .with_optimizer_rule(Arc::new(WindowColumns))
            .with_physical_optimizer_rules(physical_rules)
            .with_physical_optimizer_rule(Arc::new(FiltersFirst))
            .with_physical_optimizer_rule(Arc::new(Conjunctions))
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
    /// table, nothing is held for a second reader, and half as many parts share the memory. None when that would change nothing.
    pub(crate) async fn plan_spilling(&self, failed: &Runnable) -> Result<Option<Runnable>> {
        if !holds_rows(&failed.physical) {
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
        let rows = ALONE_ROWS_MAX / (threads * threads);
        let known = &mut options.optimizer.hash_join_single_partition_threshold_rows;
        *known = rows.max(*known);
        let known = &mut options.optimizer.hash_join_single_partition_threshold;
        *known = (rows * ALONE_ROW_BYTES).max(*known);
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

/// True when a part of the plan has to hold all rows of something in memory, and another plan would not.
fn holds_rows(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let behind = plan.downcast_ref::<Barrier>().map(Barrier::inner);
    let holds = plan.is::<HashJoinExec>() || plan.is::<SharedExec>();
    holds || plan.children().into_iter().chain(behind).any(holds_rows)
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
pub(crate) fn changes_by_itself(plan: &LogicalPlan) -> datafusion::error::Result<bool> {
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

/// One that may hold much in memory, or one that spills where it can.
async fn physical_plan(logical: &LogicalPlan, state: &SessionState) -> Result<Arc<dyn ExecutionPlan>> {
    Ok(match state.config_options().optimizer.prefer_hash_join {
        true => plan_sharing(logical, state).await?,
        false => state.query_planner().create_physical_plan(logical, state).await?,
    })
}
