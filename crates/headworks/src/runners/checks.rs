//! Check tasks: nothing is published that its job's own checks refuse.

use headworks_domain::ErrorKind;
use headworks_engine::checks::{self, Check, CheckKind};
use headworks_flow::{
    ColumnCheck, Failure, OnFail, RunContext, RunPlan, TableCheck,
    exec::{Segment, Stop},
};

use super::{Runner, Work, internal, sql};

impl Runner {
    pub(super) async fn check(&self, segment: &Segment, plan: &RunPlan, work: &Work) -> Result<(), Stop> {
        let staged = work.staged.as_ref().ok_or_else(|| internal("nothing was staged"))?;
        let checks = self.checks_of(segment, plan)?;
        let this = self.lake().staged(staged).map_err(|e| Stop::from(&e))?;
        let options = sql::table_option(sql::options(&plan.job.name), "this", this);
        let report = checks::run(&self.engine, &checks, &options).await.map_err(|e| Stop::from(&e))?;
        for outcome in &report.outcomes {
            let word = match (outcome.passed, outcome.block) {
                (true, _) => "passed",
                (false, true) => "FAILED",
                (false, false) => "warning",
            };
            segment.log.line(format!("check {}: {word}: {}", outcome.name, outcome.message));
            for example in &outcome.examples {
                segment.log.line(format!("  {example}"));
            }
        }
        if report.is_publishable() {
            return Ok(());
        }
        let failed: Vec<_> = report.outcomes.iter().filter(|o| !o.passed && o.block).collect();
        let mut message = match failed.as_slice() {
            [one] => format!("check `{}` failed: {}", one.name, one.message),
            many => format!(
                "{} checks failed: {}",
                many.len(),
                many.iter().map(|o| format!("`{}`: {}", o.name, o.message)).collect::<Vec<_>>().join("; ")
            ),
        };
        if let Some(example) = failed.first().and_then(|o| o.examples.first()) {
            message.push_str(&format!(" (as {example})"));
        }
        let hint = "nothing was published: readers still see what was there before; mend the job or its source and run it again";
        Err(Stop::Failed(Failure::new(ErrorKind::Invalid, "CHECK_FAILED", message).with_hint(hint)))
    }

    fn checks_of(&self, segment: &Segment, plan: &RunPlan) -> Result<Vec<Check>, Stop> {
        let job = &plan.job;
        let mut checks = Vec::new();
        for (column, spec) in job.spec.columns.iter() {
            for check in &spec.checks {
                let column = column.to_owned();
                let (word, kind) = match check {
                    ColumnCheck::NotNull => ("not_null", CheckKind::NotNull { column: column.clone() }),
                    ColumnCheck::Unique => ("unique", CheckKind::Unique { columns: vec![column.clone()] }),
                    ColumnCheck::AcceptedValues(values) => (
                        "accepted_values",
                        CheckKind::AcceptedValues { column: column.clone(), values: values.clone() },
                    ),
                    ColumnCheck::Relationships(to) => (
                        "relationships",
                        CheckKind::Relationships {
                            column: column.clone(),
                            table: format!("{}_latest", to.table),
                            to: to.column.clone(),
                        },
                    ),
                };
                checks.push(Check { name: format!("{column} {word}"), kind, block: true });
            }
        }
        let context =
            RunContext { run_id: segment.run_id().clone(), env: self.env.clone(), params: plan.params.clone() };
        let tables = job.render_checks(&self.project.current(), plan.interval, &context).map_err(|problems| {
            Stop::Failed(crate::planner::failure(
                &problems,
                &format!("the checks of job `{}` cannot be used", job.name),
            ))
        })?;
        for check in tables {
            let block = check.on_fail() == OnFail::Block;
            let name = check.name().to_owned();
            let kind = match check {
                TableCheck::Sql(check) => CheckKind::Sql(check.sql),
                TableCheck::RowCount(check) => {
                    CheckKind::RowCount { min: check.row_count.min, max: check.row_count.max }
                }
            };
            checks.push(Check { name, kind, block });
        }
        Ok(checks)
    }
}
