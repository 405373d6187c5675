//! Waits: who misses which partition, who will publish it, and what to say when nobody does. `outside` has the waits on what
//! is not in the lake.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use headworks_domain::{Ds, ErrorKind, PartitionKey, TableName};

use super::{
    super::{record::Partition, shape::RunShape},
    Board, Command, Publication,
    entry::{Entry, Phase},
};
use crate::machine::{Event, Failure};

impl Board {
    /// The partitions that the planned runs wait for.
    pub(crate) fn awaited(&self) -> Vec<Partition> {
        let mut awaited = BTreeSet::new();
        for shape in self.runs.iter().filter_map(|r| r.shape.as_ref()) {
            awaited.extend(shape.waits.iter().flat_map(RunShape::partitions_of));
        }
        awaited.into_iter().collect()
    }

    /// True while somebody waits for a partition.
    pub(crate) fn awaits_partitions(&self) -> bool {
        self.waits > 0
    }

    /// Since when the run that is blocked longest misses something that nobody will bring. None while a last look is under way,
    /// whose answer decides for those too who wait for what its run would make.
    pub(crate) fn blocked_since(&self) -> Option<DateTime<Utc>> {
        if self.outside.has_last_looks() { None } else { self.blocked.values().min().copied() }
    }

    /// These partitions are published.
    pub(crate) fn published(&mut self, partitions: impl IntoIterator<Item = Partition>, now: DateTime<Utc>) {
        for partition in partitions {
            // One that nobody waits for or makes is not worth remembering for ever.
            if self.serves && !self.partitions.contains_key(&partition) {
                continue;
            }
            let known = self.partitions.entry(partition).or_default();
            known.published = true;
            for (run, task) in std::mem::take(&mut known.waiting) {
                self.found(run, task, now);
            }
        }
    }

    /// The registry was asked; these are published. One that a run of ours is about to replace is waited for all the same.
    pub(crate) fn looked(&mut self, published: Vec<Partition>, now: DateTime<Utc>) {
        self.looking = false;
        for partition in published {
            let Some(known) = self.partitions.get_mut(&partition) else { continue };
            known.published = true;
            if known.producers == 0 {
                self.published([partition], now);
            }
        }
    }

    /// Has the registry asked about what came to be waited for since the last time.
    pub(crate) fn look(&mut self) {
        if !self.looking && !self.unasked.is_empty() {
            self.looking = true;
            self.commands.push(Command::Look(std::mem::take(&mut self.unasked).into_iter().collect()));
        }
    }

    /// Forgets what is known of a partition that nobody waits for and nobody makes.
    pub(super) fn forget_partition(&mut self, partition: &Partition) {
        if self.partitions.get(partition).is_some_and(|known| known.producers == 0 && known.waiting.is_empty()) {
            self.partitions.remove(partition);
            self.unasked.remove(partition);
        }
    }

    /// Other processes' runs that will publish doubtful partitions. Those that none will publish block who waits for them.
    pub(crate) fn sought(&mut self, asked: Vec<Partition>, found: &[Partition], now: DateTime<Utc>) {
        self.seeking = false;
        for partition in found {
            self.partitions.entry(partition.clone()).or_default().producers += 1;
        }
        for partition in asked {
            let Some(known) = self.partitions.get(&partition) else { continue };
            if known.published || known.producers > 0 {
                continue;
            }
            for (run, task) in known.waiting.clone() {
                let waits = self.runs[run].phase == Phase::Mine && self.runs[run].missing.contains_key(&task);
                if waits && self.blocked.insert(run, now).is_none() {
                    self.withdraw(run, now);
                }
            }
        }
    }

    /// Another process's run, which was found to publish these, is over or abandoned.
    pub(crate) fn producer_gone(&mut self, partitions: &[Partition], now: DateTime<Utc>) {
        for partition in partitions {
            self.producer_less(partition.clone(), now);
        }
    }

    /// Looks for whoever may publish what is doubtful, once all runs are claimed.
    pub(crate) fn seek(&mut self) {
        if self.unclaimed == 0 && !self.seeking && !self.doubtful.is_empty() {
            let asked: Vec<_> = std::mem::take(&mut self.doubtful)
                .into_iter()
                .filter(|p| {
                    self.partitions.get(p).is_some_and(|k| !k.published && k.producers == 0 && !k.waiting.is_empty())
                })
                .collect();
            if !asked.is_empty() {
                self.seeking = true;
                self.commands.push(Command::Seek(asked));
            }
        }
    }

    /// Fails the runs that were blocked by then, and so for as long as they may `wait`. They don't wait for the command's end: two
    /// commands could wait for each other.
    pub(crate) fn close_blocked(&mut self, by: DateTime<Utc>, wait: TimeDelta, now: DateTime<Utc>) {
        // What a run misses may be on its way again, and so what that run will bring, and so on.
        let mut left = usize::MAX;
        while self.blocked.len() < left {
            left = self.blocked.len();
            for run in self.blocked_by(by) {
                self.lacks_what_nobody_brings(run);
            }
        }
        let (outside, others): (Vec<usize>, Vec<usize>) =
            self.blocked_by(by).into_iter().partition(|run| self.asks_outside(*run));
        for run in outside {
            if let Some(since) = self.blocked.get(&run).copied() {
                self.close(run, since + wait, now);
            }
        }
        if self.outside.has_last_looks() {
            return;
        }
        for run in others {
            if self.blocked.contains_key(&run) {
                self.give_up(run, now);
            }
        }
    }

    /// The runs that were blocked by then.
    fn blocked_by(&self, by: DateTime<Utc>) -> Vec<usize> {
        self.blocked.iter().filter(|(_, since)| **since <= by).map(|(run, _)| *run).collect()
    }

    /// Fails a run that has waited long enough, saying what it misses.
    pub(super) fn give_up(&mut self, run: usize, now: DateTime<Utc>) {
        let failure = self.blocked_failure(run);
        self.runs[run].was_blocked = true;
        self.end_waits(run, failure, now);
    }

    /// Fails a run that waits, for this reason.
    pub(super) fn end_waits(&mut self, run: usize, failure: Failure, now: DateTime<Utc>) {
        let tasks: Vec<usize> = self.runs[run].missing.keys().copied().collect();
        self.stop_waiting(run);
        self.runs[run].failure = Some(failure);
        for task in tasks {
            self.apply(run, &Event::WaitFailed { task }, now);
        }
    }

    /// Registers a wait with the partitions that it misses.
    pub(super) fn wait(&mut self, run: usize, task: usize, now: DateTime<Utc>) {
        let Some(shape) = self.runs[run].shape.clone() else { return };
        if shape.outside_of(task).is_some() {
            return self.wait_outside(run, task, now);
        }
        let mut wanted: BTreeSet<Partition> = BTreeSet::new();
        if let Some(wait) = shape.wait_of(task) {
            wanted.extend(RunShape::partitions_of(wait));
            if let Some(upto) = wait.upto {
                wanted.extend(self.on_the_way(&shape, &wait.table, upto));
            }
        }
        let mut missing = 0;
        for partition in wanted {
            let known = self.partitions.entry(partition.clone()).or_default();
            // One that a run is about to replace is waited for, or a repeated backfill would read what it replaces.
            if known.published && known.producers == 0 {
                continue;
            }
            missing += 1;
            known.waiting.push((run, task));
            if self.serves {
                self.unasked.insert(partition);
            } else if known.producers == 0 {
                self.doubtful.insert(partition);
            }
        }
        if missing == 0 {
            self.apply(run, &Event::WaitMet { task }, now);
        } else {
            self.runs[run].missing.insert(task, missing);
            self.waits += 1;
        }
    }

    /// A table's partitions up to a day that are not published yet but will be.
    fn on_the_way(&self, shape: &RunShape, table: &TableName, upto: Ds) -> Vec<Partition> {
        table_range(&self.partitions, table)
            .take_while(|(p, _)| p.key.ds <= upto)
            .filter(|(_, known)| known.producers > 0)
            .filter(|(p, _)| Some(&p.table) != shape.table.as_ref() || !shape.partitions.contains(&p.key))
            .map(|(p, _)| p.clone())
            .collect()
    }

    /// Something that a task misses is there.
    pub(super) fn found(&mut self, run: usize, task: usize, now: DateTime<Utc>) {
        let entry = &mut self.runs[run];
        let Some(missing) = entry.missing.get_mut(&task) else { return };
        *missing -= 1;
        if *missing > 0 {
            return;
        }
        entry.missing.remove(&task);
        let misses_nothing = entry.missing.is_empty();
        self.waits -= usize::from(entry.shape.as_ref().is_some_and(|shape| shape.wait_of(task).is_some()));
        if misses_nothing {
            self.outside.goes_on(run);
            if self.blocked.remove(&run).is_some() {
                self.promise(run);
            }
        }
        self.apply(run, &Event::WaitMet { task }, now);
        self.end_after_last_look(run, now);
    }

    /// Takes the run out of the lists of those who wait.
    pub(super) fn stop_waiting(&mut self, run: usize) {
        let missing = std::mem::take(&mut self.runs[run].missing);
        self.outside.goes_on(run);
        let Some(shape) = self.runs[run].shape.clone() else { return };
        for task in missing.into_keys() {
            if let Some(wait) = shape.outside_of(task) {
                self.outside.leave(&wait.question, run, task);
            } else if let Some(wait) = shape.wait_of(task) {
                self.waits -= 1;
                for (_, known) in table_range_mut(&mut self.partitions, &wait.table) {
                    known.waiting.retain(|(waiting, _)| *waiting != run);
                }
            }
        }
    }

    /// True while a blocked run misses something that nobody known will bring. Else it is blocked no more: what it misses is on
    /// its way.
    pub(super) fn lacks_what_nobody_brings(&mut self, run: usize) -> bool {
        let entry = &self.runs[run];
        let Some(shape) = &entry.shape else { return true };
        let lacks = |task: &usize| match shape.wait_of(*task) {
            None => true,
            Some(wait) => table_range(&self.partitions, &wait.table)
                .any(|(_, known)| !known.published && known.producers == 0 && known.waiting.contains(&(run, *task))),
        };
        let lacks = entry.missing.keys().any(lacks);
        if !lacks && self.blocked.remove(&run).is_some() {
            self.promise(run);
        }
        lacks
    }

    /// Counts the run as a producer of its partitions.
    pub(super) fn promise(&mut self, run: usize) {
        if !std::mem::replace(&mut self.runs[run].promised, true) {
            for partition in self.runs[run].own_partitions() {
                let known = self.partitions.entry(partition).or_default();
                known.producers += 1;
                known.by = Some(run);
            }
        }
    }

    /// Counts the run as a producer no more.
    pub(super) fn withdraw(&mut self, run: usize, now: DateTime<Utc>) {
        if std::mem::take(&mut self.runs[run].promised) {
            for partition in self.runs[run].own_partitions() {
                self.producer_less(partition, now);
            }
        }
    }

    /// Who waits for it gets the older version when there is one; else another producer is looked for.
    fn producer_less(&mut self, partition: Partition, now: DateTime<Utc>) {
        let known = self.partitions.entry(partition.clone()).or_default();
        known.producers = known.producers.saturating_sub(1);
        if known.producers > 0 || known.waiting.is_empty() {
            return;
        }
        if known.published {
            self.published([partition], now);
        } else if !self.serves {
            self.doubtful.insert(partition);
        }
    }

    /// Says what a blocked run misses, and how to get it.
    fn blocked_failure(&self, run: usize) -> Failure {
        let entry = &self.runs[run];
        let job = &entry.request.job;
        let ds = entry.shape.as_ref().map(|s| s.ds).unwrap_or_default();
        let mut reasons = Vec::new();
        let mut hint = None;
        if let Some((reason, next)) = self.missing_partitions(run, ds) {
            reasons.push(reason);
            hint = Some(next);
        }
        reasons.extend(self.missing_outside(run));
        let mut message = format!("job `{job}` cannot run for ds={ds}");
        if !reasons.is_empty() {
            message.push_str(": ");
            message.push_str(&reasons.join("; "));
        }
        let failure = Failure::new(ErrorKind::NotFound, "FLOW_BLOCKED", message);
        failure.with_hint(hint.unwrap_or_else(|| {
            let longer = if self.serves { "raise `wait_timeout` in the job" } else { "wait for it with `--wait 10m`" };
            format!("see what is there now with `headworks why {job} --ds {ds}`, or {longer}")
        }))
    }

    /// The partitions that a run misses, and what to do about them.
    fn missing_partitions(&self, run: usize, ds: Ds) -> Option<(String, String)> {
        let entry = &self.runs[run];
        let tables: BTreeSet<&TableName> = entry
            .shape
            .iter()
            .flat_map(|s| entry.missing.keys().filter_map(|t| s.wait_of(*t)))
            .map(|w| &w.table)
            .collect();
        let missing_of = |table| -> Vec<&Partition> {
            let known = table_range(&self.partitions, table);
            known.filter(|(_, k)| !k.published && k.waiting.iter().any(|(r, _)| *r == run)).map(|(p, _)| p).collect()
        };
        let table = tables.first()?;
        let missing = missing_of(table);
        let (first, last) = (missing.first()?, missing.last()?);
        let what = match missing.len() {
            1 if first.key == PartitionKey::day(ds) => "no such partition".to_owned(),
            1 => format!("no partition {}", first.key),
            n => format!("no partition {} and {} more", first.key, n - 1),
        };
        let mut reason = format!("table `{table}` has {what}");
        if tables.len() > 1 {
            reason.push_str(&format!(", and {} more tables lack theirs", tables.len() - 1));
        }
        let by = missing.iter().filter_map(|p| self.partitions.get(p)?.by).map(|run| &self.runs[run]).next();
        let hint = match by {
            None => format!(
                "start it with `headworks backfill {table} --from {} --to {}`, or wait for it with `--wait 10m`",
                first.key.ds, last.key.ds
            ),
            Some(Entry { run_id: Some(id), attempt: 1.., .. }) => {
                format!("see why with `headworks runs logs {id}`, and run this command again")
            }
            Some(_) => {
                format!("runs of `{table}` lack their own inputs: see to them first, and run this command again")
            }
        };
        Some((reason, hint))
    }
}

/// The first partition that a table could have.
fn first_of(table: &TableName) -> Partition {
    Partition::new(table.clone(), PartitionKey::day(Ds::from(chrono::NaiveDate::MIN)))
}

fn table_range<'a>(
    partitions: &'a BTreeMap<Partition, Publication>,
    table: &TableName,
) -> impl Iterator<Item = (&'a Partition, &'a Publication)> {
    let table = table.clone();
    partitions.range(first_of(&table)..).take_while(move |(p, _)| p.table == table)
}

fn table_range_mut<'a>(
    partitions: &'a mut BTreeMap<Partition, Publication>,
    table: &TableName,
) -> impl Iterator<Item = (&'a Partition, &'a mut Publication)> {
    let table = table.clone();
    partitions.range_mut(first_of(&table)..).take_while(move |(p, _)| p.table == table)
}
