//! What each kind of task does: the one place where a run is seen end to end.
//!
//! A segment is `stage -> check -> publish -> latest` under one fence. What is staged is kept between its tasks; the publish
//! swaps the partitions in and records the run's end in one transaction. A task of a job file's own is a segment by itself: a
//! command, a script, a call or a small query.

mod checks;
mod http;
mod import;
mod look;
mod output;
mod process;
mod sql;
mod tasks;
mod upsert;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use headworks_domain::{EnvironmentName, ErrorKind, Fault, PartitionKey, TableName};
use headworks_engine::Engine;
use headworks_flow::{
    Answer, Failure, Job, JobBody, Kind, Question, RunPlan, TaskKind,
    exec::{Done, Segment, Stop, TaskRunner},
};
use headworks_lake::{Action, At, ColumnSpec, Input, Lake, PublishInfo, StageRequest, Staged, TableSpec};

pub(crate) use look::Looker;
pub(crate) use process::Children;

use crate::{app::App, lakes::Lakes, live::LiveProject};

/// The runner of all tasks of a command. `as_of_now`: the command fills past days with the present of whole tables.
pub(crate) async fn open(app: &App, project: LiveProject, as_of_now: bool) -> anyhow::Result<Arc<dyn TaskRunner>> {
    Ok(Arc::new(Runner {
        looker: Looker::new(app, project.clone())?,
        project,
        lakes: app.lakes().await?.clone(),
        engine: app.engine().await?.clone(),
        env: app.env_name()?.to_string(),
        as_of_now,
        described: Mutex::default(),
        surroundings: tasks::Surroundings::new(app)?,
    }))
}

struct Runner {
    project: LiveProject,
    lakes: Lakes,
    engine: Engine,
    env: String,
    /// Looks at the outside world; its connections are those of imports too.
    looker: Looker,
    as_of_now: bool,
    /// The specs of tables by job version: parsed once, used by every run.
    described: Mutex<HashMap<String, TableSpec>>,
    surroundings: tasks::Surroundings,
}

/// What goes from one task of a segment to the next.
#[derive(Default)]
struct Work {
    staged: Option<Staged>,
    inputs: Vec<Input>,
    /// Tables of the waits that are read from production's lake.
    borrowed: Vec<TableName>,
}

#[async_trait]
impl TaskRunner for Runner {
    async fn run(&self, segment: &mut Segment) -> Result<Done, Stop> {
        let shape = Arc::clone(&segment.shape);
        let plan = shape.plan.clone().ok_or_else(|| internal("the run has no plan"))?;
        if plan.job.body == JobBody::Tasks {
            return self.task(segment, &plan).await;
        }
        let mut work = Work::default();
        let mut done = Done::default();
        for name in segment.tasks.clone() {
            let kind = plan.tasks.iter().find(|t| t.name == name).map(|t| t.kind);
            segment.begin(&name);
            match kind {
                Some(TaskKind::Stage) => self.stage(segment, &plan, &mut work).await?,
                Some(TaskKind::Check) => self.check(segment, &plan, &work).await?,
                Some(TaskKind::Publish) if plan.job.is_view() => self.publish_view(segment, &plan, &mut done).await?,
                Some(TaskKind::Publish) => self.publish(segment, &plan, &mut work, &mut done).await?,
                // The publish has made the view, or found it there.
                Some(TaskKind::Latest | TaskKind::Wait) => {}
                Some(TaskKind::Shell | TaskKind::Python | TaskKind::Http | TaskKind::Sql) | None => {
                    return Err(internal("the plan lacks a task of the segment"));
                }
            }
            segment.end(&name);
        }
        Ok(done)
    }

    async fn look(&self, question: &Question) -> Result<Answer, Failure> {
        self.looker.look(question).await
    }
}

impl Runner {
    async fn stage(&self, segment: &Segment, plan: &RunPlan, work: &mut Work) -> Result<(), Stop> {
        (work.inputs, work.borrowed) = self.inputs(plan).await?;
        for table in &work.borrowed {
            segment.log.line(format!("reading `{table}` from production: this environment has no such table"));
        }
        let request = StageRequest {
            spec: self.table_spec(&plan.job).map_err(Stop::Failed)?,
            keys: plan.partitions.clone(),
            attempt: segment.fence(),
        };
        let staged = match &plan.job.body {
            JobBody::Sql(_) if plan.job.spec.kind == Kind::Upsert => self.stage_upsert(segment, plan, request).await?,
            JobBody::Sql(_) => self.stage_sql(segment, plan, request).await?,
            JobBody::Import(import) => self.stage_import(segment, plan, import, request).await?,
            JobBody::Tasks => return Err(internal("a job with tasks stages nothing")),
        };
        segment.log.line(format!(
            "staged {} rows, {} bytes in {} files",
            staged.rows(),
            staged.bytes(),
            staged.files().len()
        ));
        work.staged = Some(staged);
        Ok(())
    }

    /// One transaction: the run's end by its fence, then the partitions. Either both are there or neither.
    async fn publish(&self, segment: &Segment, plan: &RunPlan, work: &mut Work, done: &mut Done) -> Result<(), Stop> {
        self.refuse_what_came_meanwhile(work).await?;
        let staged = work.staged.take().ok_or_else(|| internal("nothing was staged"))?;
        let (rows, bytes) = (count(staged.rows()), count(staged.bytes()));
        let info = PublishInfo {
            job: plan.job.name.to_string(),
            run_id: segment.run_id().to_string(),
            attempt: segment.fence(),
            job_version: plan.job.version.clone(),
            inputs: std::mem::take(&mut work.inputs),
            as_of_now: self.as_of_now && plan.job.knows_no_past(),
            action: Action::Publish,
        };
        let keys: Vec<PartitionKey> = staged.keys().cloned().collect();
        segment.log.line(format!("publishing {}", keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")));
        let (record, lake) = (segment.finished(rows, bytes), self.lake().clone());
        let outcome = self
            .lake()
            .store()
            .write(move |tx| {
                Box::pin(async move {
                    headworks_meta::finish_in(tx, &record).await.map_err(Unpublished::Run)?;
                    lake.publish(tx, &staged, &info).await.map_err(Unpublished::Lake)
                })
            })
            .await;
        match outcome {
            Ok(_) => {}
            // The reply to COMMIT was lost: the partition's own record says whether it came through.
            Err(Unpublished::Store(headworks_store::Error::CommitUnknown { .. }))
                if self.is_published(segment, plan, &keys).await? => {}
            Err(error) => return Err(error.stop()),
        }
        *done = Done { rows, bytes, published: keys, recorded: true, output: None };
        Ok(())
    }

    /// True when this very attempt's publish is in the lake.
    async fn is_published(&self, segment: &Segment, plan: &RunPlan, keys: &[PartitionKey]) -> Result<bool, Stop> {
        let Some(table) = self.lake().table(plan.job.table_name(), At::Now).await.map_err(|e| Stop::from(&e))? else {
            return Ok(false);
        };
        let Some(key) = keys.first() else { return Ok(false) };
        let newest = self.lake().history(table.id, Some(key), 1).await.map_err(|e| Stop::from(&e))?;
        Ok(newest.first().is_some_and(|v| {
            v.attempt == Some(segment.fence()) && v.run_id.as_deref() == Some(segment.run_id().as_str())
        }))
    }

    async fn publish_view(&self, segment: &Segment, plan: &RunPlan, done: &mut Done) -> Result<(), Stop> {
        let sql = plan.sql.as_ref().map(|r| r.sql.clone()).ok_or_else(|| internal("a view without SQL"))?;
        self.try_view(plan, &sql).await?;
        let (record, lake) = (segment.finished(0, 0), self.lake().clone());
        let name = plan.job.table.clone().ok_or_else(|| internal("a view without a name"))?;
        let comment = plan.job.spec.description.clone();
        let outcome = self
            .lake()
            .store()
            .write(move |tx| {
                Box::pin(async move {
                    headworks_meta::finish_in(tx, &record).await.map_err(Unpublished::Run)?;
                    lake.publish_view(tx, &name, &sql, comment.as_deref()).await.map_err(Unpublished::Lake)
                })
            })
            .await;
        outcome.map_err(|e: Unpublished| e.stop())?;
        done.recorded = true;
        Ok(())
    }

    /// The lake that is written.
    fn lake(&self) -> &Lake {
        self.lakes.own()
    }

    /// The versions of what the run reads, as far as it waits for it: what a number was made of. And which of those tables are
    /// read from production.
    async fn inputs(&self, plan: &RunPlan) -> Result<(Vec<Input>, Vec<TableName>), Stop> {
        let (mut inputs, mut borrowed) = (Vec::new(), Vec::new());
        for wait in &plan.waits {
            let name = wait.table.as_str();
            let lake = self.lakes.reading(name).await.map_err(|e| Stop::from(&e))?;
            let versions = lake.published(name, &wait.partitions).await.map_err(|e| Stop::from(&e))?;
            let is_borrowed = lake.is_read_only();
            if is_borrowed {
                borrowed.push(wait.table.clone());
            }
            if let (Some(production), false) = (self.lakes.production(), is_borrowed) {
                // The wait may have found them in production, before this environment got a table of that name.
                let missing: Vec<PartitionKey> =
                    wait.partitions.iter().filter(|key| !versions.contains_key(key)).cloned().collect();
                let there = production.published(name, &missing).await.map_err(|e| Stop::from(&e))?;
                if let Some(key) = there.keys().min() {
                    return Err(Stop::Failed(self.lacks(&wait.table, key)));
                }
            }
            inputs.extend(versions.into_iter().map(|(partition, version)| Input {
                table: wait.table.to_string(),
                partition,
                version,
                environment: is_borrowed.then(|| EnvironmentName::PRODUCTION.to_owned()),
            }));
        }
        inputs.sort_by(|a, b| (&a.table, &a.partition).cmp(&(&b.table, &b.partition)));
        Ok((inputs, borrowed))
    }

    fn lacks(&self, table: &TableName, key: &PartitionKey) -> Failure {
        let message = format!("environment `{}` has a table `{table}` of its own, without {key}", self.env);
        Failure::new(ErrorKind::NotFound, "ENVIRONMENT_LACKS", message).with_hint(format!(
            "start it with `headworks backfill {table} --from {0} --to {0}`: a table is read from one environment only",
            key.ds
        ))
    }

    /// Refuses to publish when a table that was borrowed from production has come into this environment since: the query may have
    /// read this or that one.
    async fn refuse_what_came_meanwhile(&self, work: &Work) -> Result<(), Stop> {
        for table in &work.borrowed {
            if self.lake().table(table.as_str(), At::Now).await.map_err(|e| Stop::from(&e))?.is_some() {
                let message =
                    format!("table `{table}` came into environment `{}` while it was read from production", self.env);
                let failure = Failure::new(ErrorKind::Conflict, "ENVIRONMENT_CHANGED", message)
                    .with_hint("run it again: it reads the environment's own table then");
                return Err(Stop::Failed(failure));
            }
        }
        Ok(())
    }

    fn table_spec(&self, job: &Job) -> Result<TableSpec, Failure> {
        let mut described = self.described.lock().expect("nothing panics while it holds this lock");
        if let Some(spec) = described.get(&job.version) {
            return Ok(spec.clone());
        }
        let mut columns = Vec::new();
        for (name, column) in job.spec.columns.iter() {
            let data_type = column.column_type.as_ref().map(|t| headworks_connect::types::parse(&t.to_string()));
            let data_type = data_type.transpose().map_err(|e| Failure::of(&e))?.map(|t| t.data_type);
            columns.push(ColumnSpec { name: name.to_owned(), data_type, comment: column.description.clone() });
        }
        let name = job.table.clone();
        let name = name.ok_or_else(|| Failure::new(ErrorKind::Internal, "RUNNER", "the job makes no table"))?;
        let spec = TableSpec {
            name,
            kind: kind_word(job.spec.kind).to_owned(),
            columns,
            partition_by: job.partition_columns().into_iter().map(str::to_owned).collect(),
            comment: job.spec.description.clone(),
            owner: job.spec.owner.clone(),
            job: Some(job.name.to_string()),
            retention_secs: job.spec.retention.map(|r| i64::try_from(r.duration().as_secs()).unwrap_or(i64::MAX)),
        };
        described.insert(job.version.clone(), spec.clone());
        Ok(spec)
    }
}

fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Cumulative => "cumulative",
        Kind::Events => "events",
        Kind::Upsert => "upsert",
        Kind::View => "view",
    }
}

/// Why a publish did not happen.
enum Unpublished {
    Store(headworks_store::Error),
    Run(headworks_meta::Error),
    Lake(headworks_lake::Error),
}

impl From<headworks_store::Error> for Unpublished {
    fn from(error: headworks_store::Error) -> Self {
        Self::Store(error)
    }
}

impl Unpublished {
    fn stop(&self) -> Stop {
        match self {
            Self::Run(headworks_meta::Error::Fenced { .. }) => Stop::Fenced,
            Self::Run(error) => error.into(),
            Self::Store(error) => error.into(),
            Self::Lake(error) => error.into(),
        }
    }
}

fn count(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

fn internal(what: &str) -> Stop {
    Stop::Failed(Failure::new(ErrorKind::Internal, "RUNNER", what))
}

/// An error on its way through the lake's writer, with its kind kept.
fn source_error(error: impl Fault) -> headworks_lake::Error {
    headworks_lake::Error::Source(Box::new(error))
}
