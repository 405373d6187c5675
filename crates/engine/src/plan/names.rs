//! What DataFusion's planner asks about names.

use std::{collections::BTreeMap, sync::Arc};

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::{
    catalog::cte_worktable::CteWorkTable,
    common::TableReference,
    config::ConfigOptions,
    datasource::provider_as_source,
    error::DataFusionError,
    execution::SessionState,
    logical_expr::{
        AggregateUDF, Expr, HigherOrderUDF, ScalarUDF, TableSource, WindowUDF,
        planner::{ContextProvider, ExprPlanner, TypePlanner},
        simplify::SimplifyContext,
    },
    optimizer::simplify_expressions::ExprSimplifier,
    sql::planner::{NullOrdering, ParserOptions},
};
use headworks_domain::nearest;

use crate::{
    PgSession, QueryOptions, Result, pg_catalog,
    resolve::{Name, Space},
    types::Times,
};

/// What each name of a statement stands for.
pub(super) type Sources = BTreeMap<Name, Arc<dyn TableSource>>;

/// Answers the planner's questions about names: tables that were looked up before, functions of the session.
pub(crate) struct Names<'a> {
    state: &'a SessionState,
    sources: Sources,
    /// The session of the PostgreSQL protocol, and whose it is.
    session: Option<(&'a PgSession, &'a str)>,
}

impl<'a> Names<'a> {
    pub(super) fn new(state: &'a SessionState, sources: Sources, options: &'a QueryOptions) -> Self {
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

pub(super) fn parser_options(options: &ConfigOptions) -> ParserOptions {
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
