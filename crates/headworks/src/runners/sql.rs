//! SQL tasks: a query of the lake becomes a staged result.

use std::sync::Arc;

use futures::TryStreamExt;
use headworks_domain::{Fault, JobName};
use headworks_engine::{Caller, Error, QueryOptions, SqlLimits};
use headworks_flow::{
    Failure, JOBS_QUEUE, RunPlan,
    exec::{Segment, Stop},
};
use headworks_lake::{At, StageRequest, Staged};

use super::{Runner, internal, source_error};
use crate::planner;

impl Runner {
    pub(super) async fn stage_sql(
        &self,
        segment: &Segment,
        plan: &RunPlan,
        request: StageRequest,
    ) -> Result<Staged, Stop> {
        let sql = plan.sql.as_ref().ok_or_else(|| internal("a SQL job without SQL"))?;
        segment.log.line(format!("running SQL:\n{}", sql.sql));
        let (query, unmade) = self.with_unmade_tables(plan, &request).await?;
        let rows = self.engine.query(&sql.sql, query).await.map_err(|error| match sql_stop(plan, &error) {
            Stop::Failed(failure) if matches!(error, Error::Plan { .. }) => Stop::Failed(of_unmade(failure, &unmade)),
            stop => stop,
        })?;
        let schema = rows.schema();
        // Batches are taken as they come; an error of the query keeps its kind through the writer.
        let rows = headworks_lake::rows(schema, rows.map_err(source_error));
        self.lake().stage(request, rows).await.map_err(|error| match error {
            headworks_lake::Error::Source(source) => sql_failure(plan, source.as_ref()),
            other => Stop::from(&other),
        })
    }

    /// Tables that the run waits for and that nobody has published yet stand in empty: a job that builds on its own past reads
    /// itself on its first day, and an interval before another job's `start` has nothing to wait for.
    async fn with_unmade_tables(
        &self,
        plan: &RunPlan,
        request: &StageRequest,
    ) -> Result<(QueryOptions, Vec<String>), Stop> {
        let (mut query, mut unmade) = (options(&plan.job.name), Vec::new());
        for wait in &plan.waits {
            let name = wait.table.as_str();
            let lake = self.lakes.reading(name).await.map_err(|e| Stop::from(&e))?;
            if lake.table(name, At::Now).await.map_err(|e| Stop::from(&e))?.is_some() {
                continue;
            }
            let spec = if Some(&wait.table) == plan.job.table.as_ref() {
                Some(request.spec.clone())
            } else {
                self.project.current().maker(name).map(|job| self.table_spec(job)).transpose().map_err(Stop::Failed)?
            };
            if let Some(spec) = spec {
                query = table_option(query, name, self.lake().unmade(&spec).map_err(|e| Stop::from(&e))?);
                unmade.push(name.to_owned());
            }
        }
        Ok((query, unmade))
    }

    /// Plans a view's SQL once, so that a broken one is never published.
    pub(super) async fn try_view(&self, plan: &RunPlan, sql: &str) -> Result<(), Stop> {
        self.engine
            .query(&format!("explain {sql}"), options(&plan.job.name))
            .await
            .map(drop)
            .map_err(|e| sql_stop(plan, &e))
    }
}

/// Says of a query that does not fit its tables that some of them are not there yet.
fn of_unmade(failure: Failure, unmade: &[String]) -> Failure {
    if unmade.is_empty() {
        return failure;
    }
    let hint = format!(
        "`{}` is not published yet: until then it has the columns that its job lists under `columns:` with a type",
        unmade.join("`, `")
    );
    Failure { hint: Some(hint), ..failure }
}

/// How the SQL of a job is run.
pub(super) fn options(job: &JobName) -> QueryOptions {
    QueryOptions {
        limits: SqlLimits::jobs(),
        caller: Caller::trusted(format!("job {job}")),
        queue: Some(JOBS_QUEUE.to_owned()),
        // Each interval is read once.
        is_cached: false,
        ..QueryOptions::default()
    }
}

/// Shows an error of the engine at the line of the job file where its SQL stands.
pub(super) fn sql_stop(plan: &RunPlan, error: &Error) -> Stop {
    let mut failure = Failure::of(error);
    if let (Some(rendered), Some(position)) = (&plan.sql, error.position()) {
        let problem = plan.job.sql_problem(
            rendered,
            position.line,
            position.column,
            failure.message.clone(),
            failure.hint.clone(),
        );
        let shown = planner::failure(&[problem], &format!("the SQL of job `{}` does not run", plan.job.name));
        failure = Failure { message: shown.message, ..failure };
    }
    Stop::Failed(failure)
}

fn sql_failure(plan: &RunPlan, error: &dyn Fault) -> Stop {
    let any: &(dyn std::error::Error + 'static) = error;
    match any.downcast_ref::<Error>() {
        Some(error) => sql_stop(plan, error),
        None => Stop::Failed(Failure::of(error)),
    }
}

/// Keeps an `Arc` of a provider under the trait that the engine takes.
pub(super) fn table_option(options: QueryOptions, name: &str, table: Arc<headworks_lake::LakeTable>) -> QueryOptions {
    options.with_table(name, table)
}
