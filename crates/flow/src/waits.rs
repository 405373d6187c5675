//! From a job's interval to the partitions of other tables that it needs.

use std::collections::BTreeSet;

use headworks_domain::{Grain, Interval, PartitionKey, TableName};

use crate::{
    grid::{GRAINS_MAX, Grid},
    job::Job,
    plan::WaitOn,
    project::Project,
    spec::{Reach, WaitRef},
};

/// Finds what a run must wait for: one entry per table, in the order in which the tables are named first.
///
/// Partitions before the first day of the job that makes them (its `start`) will never come, and are not waited for.
pub(crate) fn resolve(job: &Job, project: &Project, refs: &[WaitRef], interval: Interval) -> Vec<WaitOn> {
    let mut order: Vec<TableName> = Vec::new();
    for wait in refs {
        if let Some(table) = table_of(job, wait)
            && !order.contains(&table)
        {
            order.push(table);
        }
    }
    let entry = |table: TableName| {
        let maker = if Some(&table) == job.table.as_ref() {
            Some(job)
        } else {
            project.maker(table.as_str()).map(AsRef::as_ref)
        };
        // A table that no job makes has a ds in whatever zone its writers meant: ours is the best guess.
        let grid = maker.map_or(Grid { grain: Grain::Day, zone: job.zone }, Job::grid);
        let first = maker.and_then(|m| m.spec.start).map(|start| grid.number_of_date(start.date()));
        let mut partitions: BTreeSet<PartitionKey> = BTreeSet::new();
        let mut upto = None;
        for wait in refs.iter().filter(|wait| table_of(job, wait).as_ref() == Some(&table)) {
            let touched = grid.touched(&interval);
            let (from, to) = match (wait.reach, first) {
                (Reach::Offset(offset), _) => (touched.start() + offset, touched.end() + offset),
                (Reach::Upto, Some(first)) => (first, *touched.end()),
                (Reach::Upto, None) => {
                    upto = upto.max(Some(grid.key(*touched.end()).ds));
                    (*touched.start(), *touched.end())
                }
            };
            let from = first.map_or(from, |first| from.max(first));
            let to = to.min(from.saturating_add(GRAINS_MAX));
            // A run over several grains makes some of its own past itself.
            let is_own = |n: &i64| Some(&table) == job.table.as_ref() && touched.contains(n);
            let wanted = (from..=to).filter(|n| grid.interval(*n).is_some() && !is_own(n));
            partitions.extend(wanted.map(|n| grid.key(n)));
        }
        let task = format!("wait_{table}").parse().expect("a table's name is part of a task's");
        WaitOn { task, table, partitions: partitions.into_iter().collect(), upto }
    };
    order.into_iter().map(entry).collect()
}

/// The table that a wait means.
pub(crate) fn table_of(job: &Job, wait: &WaitRef) -> Option<TableName> {
    if wait.is_self() { job.table.clone() } else { wait.table.parse().ok() }
}

/// True when a run of `waiter` may wait, through this reach, for a run of `maker` over the same stretch of time.
///
/// Waits for earlier partitions never close a circle, unless the maker's grains are finer and some still lie within the
/// waiter's own interval.
pub(crate) fn is_simultaneous(waiter: Grain, maker: Grain, reach: Reach) -> bool {
    let Reach::Offset(offset) = reach else { return true };
    let hours = |grain| match grain {
        Grain::Hour => 1,
        Grain::Day => 24,
        Grain::Week => 168,
        Grain::Month => 672,
    };
    let finer = (hours(waiter) / hours(maker)).max(1);
    -offset < finer
}
