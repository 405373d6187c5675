//! Upsert tasks: new rows take the place of those with the same key, and every partition that they touch is rewritten.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::{Array, AsArray},
    compute::cast,
    datatypes::DataType,
};
use futures::TryStreamExt;
use headworks_domain::{ErrorKind, JobName, PartitionKey};
use headworks_flow::{
    Failure, RunPlan,
    exec::{Segment, Stop},
};
use headworks_lake::{At, StageRequest, Staged};

use super::{Runner, source_error, sql};

impl Runner {
    /// Stages the query's rows, then the touched partitions with those rows in place of the old ones.
    pub(super) async fn stage_upsert(
        &self,
        segment: &Segment,
        plan: &RunPlan,
        request: StageRequest,
    ) -> Result<Staged, Stop> {
        let fresh = self.stage_sql(segment, plan, request.clone()).await?;
        let this = self.lake().staged(&fresh).map_err(|e| Stop::from(&e))?;
        let keys: Vec<String> = plan.job.spec.key.iter().map(|k| quoted(k)).collect();
        self.refuse_doubles(&plan.job.name, &this, &keys).await?;
        let table = request.spec.name.as_str();
        let old = self.lake().table(table, At::Now).await.map_err(|e| Stop::from(&e))?;
        let Some(old) = old else { return Ok(fresh) };
        let cut: Vec<String> = request.spec.partition_by.iter().map(|c| quoted(c)).collect();
        let same = keys.iter().map(|k| format!("old.{k} = new.{k}")).collect::<Vec<_>>().join(" and ");
        let texts = cut.iter().map(|c| format!("cast(old.{c} as varchar)")).collect::<Vec<_>>().join(", ");
        let name = quoted(table);
        let touched = format!("select distinct {texts} from {name} as old join this as new on {same}");
        let job = &plan.job.name;
        let options = || sql::table_option(sql::options(job), "this", Arc::clone(&this));
        let mut partitions: BTreeSet<PartitionKey> = fresh.keys().cloned().collect();
        for batch in self.engine.rows(&touched, options()).await.map_err(|e| Stop::from(&e))? {
            let texts = batch.columns().iter().map(|c| cast(c, &DataType::Utf8)).collect::<Result<Vec<_>, _>>();
            let texts = texts.map_err(|e| Stop::from(&headworks_lake::Error::from(e)))?;
            for row in 0..batch.num_rows() {
                let text = |at: usize| {
                    texts.get(at).filter(|c| c.is_valid(row)).map(|c| c.as_string::<i32>().value(row).to_owned())
                };
                let Some(ds) = text(0).and_then(|t| t.parse().ok()) else { continue };
                let hour = request.spec.partition_by.iter().position(|c| c == "hour").and_then(&text);
                let event_type = request.spec.partition_by.iter().position(|c| c == "event_type").and_then(&text);
                partitions.insert(PartitionKey { ds, hour: hour.and_then(|h| h.parse().ok()), event_type });
            }
        }
        let inside = partitions.iter().map(|key| format!("({})", condition(key))).collect::<Vec<_>>().join(" or ");
        let columns = |of: &str| {
            let named = fresh.columns().iter().map(|c| match old.column(&c.name) {
                None if of == "old" => format!("null as {}", quoted(&c.name)),
                _ => format!("{of}.{}", quoted(&c.name)),
            });
            named.collect::<Vec<_>>().join(", ")
        };
        let merged = format!(
            "select {} from {name} as old where ({inside}) and not exists (select 1 from this as new where {same})
             union all select {} from this as new",
            columns("old"),
            columns("new")
        );
        let rows = self.engine.query(&merged, options()).await.map_err(|e| Stop::from(&e))?;
        let rows = headworks_lake::rows(rows.schema(), rows.map_err(source_error));
        let request = StageRequest { keys: partitions.into_iter().collect(), ..request };
        let staged = self.lake().stage(request, rows).await.map_err(|e| Stop::from(&e))?;
        self.lake().discard(&fresh).await.map_err(|e| Stop::from(&e))?;
        Ok(staged)
    }

    async fn refuse_doubles(
        &self,
        job: &JobName,
        this: &Arc<headworks_lake::LakeTable>,
        keys: &[String],
    ) -> Result<(), Stop> {
        let keys = keys.join(", ");
        let options = sql::table_option(sql::options(job), "this", Arc::clone(this));
        let doubles = format!("select {keys} from this group by {keys} having count(*) > 1 limit 1");
        let found = self.engine.rows(&doubles, options).await.map_err(|e| Stop::from(&e))?;
        if found.iter().all(|batch| batch.num_rows() == 0) {
            return Ok(());
        }
        let message = format!("the result has several rows with the same key ({keys})");
        Err(Stop::Failed(
            Failure::new(ErrorKind::Invalid, "UPSERT_KEY", message).with_hint("group the result by its key"),
        ))
    }
}

fn condition(key: &PartitionKey) -> String {
    let mut parts = vec![format!("old.ds = DATE '{}'", key.ds)];
    parts.extend(key.hour.map(|h| format!("old.\"hour\" = {h}")));
    parts.extend(key.event_type.as_ref().map(|e| format!("old.event_type = '{}'", e.replace('\'', "''"))));
    parts.join(" and ")
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
