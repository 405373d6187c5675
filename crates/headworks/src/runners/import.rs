//! Import tasks: a slice of a source's table becomes a staged result.

use futures::TryStreamExt;
use headworks_connect::{By, Names, ReadRequest};
use headworks_flow::{
    ColumnNames, ImportSpec, RunPlan,
    exec::{Segment, Stop},
};
use headworks_lake::{StageRequest, Staged};

use super::{Runner, source_error};

impl Runner {
    pub(super) async fn stage_import(
        &self,
        segment: &Segment,
        plan: &RunPlan,
        import: &ImportSpec,
        mut request: StageRequest,
    ) -> Result<Staged, Stop> {
        let source = self.looker.connections.source(&self.project.current(), &import.connection)?;
        let by = import.by.as_ref().map(|column| By {
            column: column.clone(),
            interval: plan.interval,
            zone: plan.job.zone,
        });
        segment.log.line(match &by {
            Some(by) => format!(
                "reading `{}` of {} where `{}` lies in {}",
                import.table, import.connection, by.column, plan.interval
            ),
            None => format!("reading `{}` of {} whole", import.table, import.connection),
        });
        let reader = source
            .read(ReadRequest {
                table: import.table.clone(),
                columns: import.columns.clone(),
                by,
                filter: import.where_sql.clone(),
                types: import.types.iter().map(|(name, t)| (name.to_owned(), t.to_string())).collect(),
                names: match import.names {
                    ColumnNames::Keep => Names::Keep,
                    ColumnNames::Safe => Names::Safe,
                },
                keys: request.spec.partition_by.clone(),
                specials: Default::default(),
            })
            .await
            .map_err(|e| Stop::from(&e))?;
        // The source describes its columns where the job file does not.
        for column in &reader.columns {
            let Some(comment) = &column.comment else { continue };
            match request.spec.columns.iter_mut().find(|c| c.name == column.name) {
                Some(declared) if declared.comment.is_none() => declared.comment = Some(comment.clone()),
                Some(_) => {}
                None => request.spec.columns.push(headworks_lake::ColumnSpec {
                    name: column.name.clone(),
                    data_type: None,
                    comment: Some(comment.clone()),
                }),
            }
        }
        let report = reader.report.clone();
        let rows = headworks_lake::rows(reader.schema.clone(), reader.stream.map_err(source_error));
        let staged = self.lake().stage(request, rows).await.map_err(|e| Stop::from(&e))?;
        for warning in report.get().warnings {
            segment
                .log
                .line(format!("warning: {} values of column `{}`: {}", warning.count, warning.column, warning.what));
        }
        Ok(staged)
    }
}
