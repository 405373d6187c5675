//! Tables and views of a statement, at one version of the lake, as their caller may see them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arrow::datatypes::{DataType, Schema};
use datafusion::{
    common::{ScalarValue, TableReference},
    datasource::{ViewTable, provider_as_source},
    error::DataFusionError,
    execution::SessionState,
    logical_expr::{Expr, LogicalPlanBuilder, TableSource, col, lit},
    sql::{planner::SqlToRel, sqlparser::ast::Statement},
};
use headworks_domain::{PartitionKey, nearest};

use super::{
    Planner, changes_by_itself,
    names::{Names, Sources, parser_options},
    of_statement,
};
use crate::{
    At, Error, Found, Listed, Moment, Newest, QueryOptions, Result, SqlLimits,
    access::{self, Guarded, Shown},
    information,
    parse::{self, Reading},
    pg_catalog,
    resolve::{self, Name, Space, Wanted},
};

/// The most views that may stand on each other.
const VIEWS_DEPTH_MAX: usize = 16;

/// Looks up the tables of one statement and of the views it reads.
pub(super) struct Lookup<'a> {
    pub(super) planner: &'a Planner,
    pub(super) options: &'a QueryOptions,
    pub(super) seen: Mutex<Seen>,
    /// True while all tables are being listed: a view that asks for the list gets it without the columns of views.
    pub(super) is_listing: bool,
}

/// What a statement and its views read.
#[derive(Default)]
pub(super) struct Seen {
    /// Names of the lake.
    pub(super) names: BTreeSet<String>,
    /// True when there is more than the lake's tables in it: `information_schema`, or a view with `now()`.
    pub(super) has_more: bool,
}

impl Lookup<'_> {
    /// Looks all names up at one version of the lake.
    pub(super) async fn sources(
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
    pub(super) async fn view(
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
