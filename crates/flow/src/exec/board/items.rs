//! What tasks of a run give to later ones, and the items that a task goes through.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use super::{super::segment::TaskInput, Board, entry::Entry};
use crate::machine::{Event, State};

/// The items of one task, and what each gave.
#[derive(Debug, Clone)]
pub(super) struct Items {
    values: Vec<Value>,
    outputs: Vec<Value>,
}

impl Board {
    /// What a segment gets when it starts.
    pub(crate) fn input(&self, run: usize, head: usize) -> TaskInput {
        let entry = &self.runs[run];
        let item = entry.machine.item(head).and_then(|(group, n)| {
            let items = entry.items.get(&group)?;
            Some((items.values.get(n)?.clone(), items.values.len()))
        });
        TaskInput {
            place: entry.planned(head),
            tries: entry.machine.failures(head) + 1,
            item,
            outputs: Arc::clone(&entry.outputs),
        }
    }

    /// Finds the items of a task whose turn has come.
    pub(super) fn expand(&mut self, run: usize, task: usize, now: DateTime<Utc>) {
        let entry = &mut self.runs[run];
        let Some(shape) = entry.shape.clone() else { return };
        match shape.items(task, &entry.outputs) {
            Ok(values) => {
                let count = values.len();
                if count == 0 {
                    entry.give(task, Value::Array(Vec::new()));
                }
                entry.items.insert(task, Items { outputs: vec![Value::Null; count], values });
                self.apply(run, &Event::Expanded { task, items: count }, now);
            }
            Err(failure) => {
                entry.note_failure(task, failure);
                self.apply(run, &Event::ExpandFailed { task }, now);
            }
        }
    }
}

impl Entry {
    /// The place in the plan of a segment's head; of an item, its task's.
    pub(super) fn planned(&self, head: usize) -> usize {
        self.machine.item(head).map_or(head, |(group, _)| group)
    }

    /// Keeps what a segment gave, for the tasks after it. What items gave becomes a list when the last of them is over.
    pub(super) fn note_output(&mut self, head: usize, output: Option<Value>) {
        let Some((group, n)) = self.machine.item(head) else {
            if let Some(output) = output {
                self.give(head, output);
            }
            return;
        };
        let Some(items) = self.items.get_mut(&group) else { return };
        if let (Some(slot), Some(output)) = (items.outputs.get_mut(n), output) {
            *slot = output;
        }
        if self.machine.items_open(group) == 1 {
            let outputs = items.outputs.clone();
            self.give(group, Value::Array(outputs));
        }
    }

    /// The run is over: nobody reads what its tasks gave.
    pub(super) fn forget_outputs(&mut self) {
        self.outputs = Arc::default();
        self.items.clear();
    }

    fn give(&mut self, task: usize, output: Value) {
        if let Some(record) = self.machine.tasks().nth(task) {
            let name = record.name.to_string();
            let outputs: &mut Map<String, Value> = Arc::make_mut(&mut self.outputs);
            outputs.insert(name, output);
        }
    }

    /// Keeps why a segment failed, unless its failure is allowed. The run shows what failed first and did not mend.
    pub(super) fn note_failure(&mut self, head: usize, failure: crate::machine::Failure) {
        if self.machine.allows_failure(head) {
            return;
        }
        self.failures.retain(|(of, _)| *of != head);
        self.failures.push((head, failure));
        self.show_failure();
    }

    /// A segment that failed before is done.
    pub(super) fn mend_failure(&mut self, head: usize) {
        if self.failures.iter().any(|(of, _)| *of == head) {
            self.failures.retain(|(of, _)| *of != head);
            self.show_failure();
        }
    }

    fn show_failure(&mut self) {
        let failed = |head: usize| self.machine.tasks().nth(head).is_some_and(|task| task.state == State::Failed);
        let shown = self.failures.iter().find(|(head, _)| failed(*head)).or(self.failures.first());
        self.failure = shown.map(|(_, failure)| failure.clone());
    }
}
