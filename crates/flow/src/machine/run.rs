//! One run: its tasks with their states, and the function that takes it from one state to the next.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::{Action, Event, RetryPolicy, Rule, State, TaskRecord, TaskShape};

/// A run's tasks with their states.
///
/// A task's [`Rule`] decides by the ends of those before it whether it runs, ends as `upstream_failed`, or is skipped. The run
/// fails when any task failed whose failure is not allowed.
#[derive(Debug, Clone)]
pub struct Run {
    tasks: Vec<Task>,
    /// Tasks that are not closed.
    open: usize,
    retry: RetryPolicy,
    seed: u64,
    cancelled: bool,
}

#[derive(Debug, Clone)]
struct Task {
    record: TaskRecord,
    waits: bool,
    rule: Rule,
    allow_failure: bool,
    retry: Option<RetryPolicy>,
    alone: bool,
    each: bool,
    parents: Vec<usize>,
    children: Vec<usize>,
    /// The tasks before it that are not closed yet.
    unmet: usize,
    /// True once it may go; so that no two parents let it go.
    admitted: bool,
    /// True when its state is final and those after it know. A task of a running segment may say `success` before that.
    closed: bool,
    /// True for the head of a segment that holds a slot.
    holds_slot: bool,
    /// Attempts of the segment that begins here which failed.
    failures: u32,
    /// The task whose item it is, and which one.
    item: Option<(usize, usize)>,
    /// Its items that are not closed.
    items_open: usize,
    /// True when one of its items failed.
    item_failed: bool,
}

impl Run {
    /// A run that nobody has claimed. `seed` decides the jitter of its retries.
    pub fn new(shapes: Vec<TaskShape>, retry: RetryPolicy, seed: u64) -> Self {
        let mut tasks: Vec<Task> = Vec::with_capacity(shapes.len());
        for (place, shape) in shapes.into_iter().enumerate() {
            for &parent in &shape.after {
                debug_assert!(parent < place, "tasks stand after what they need");
                tasks[parent].children.push(place);
            }
            tasks.push(Task::new(shape));
        }
        Self { open: tasks.len(), tasks, retry, seed, cancelled: false }
    }

    /// The run's state, which follows from its tasks.
    pub fn state(&self) -> State {
        let any = |state| self.tasks.iter().any(|t| t.record.state == state);
        if self.open > 0 {
            let busy = [State::Running, State::Queued, State::Ready, State::Retry];
            return if self.holds_slot() {
                State::Running
            } else {
                busy.into_iter().find(|state| any(*state)).unwrap_or(State::Waiting)
            };
        }
        if self.cancelled {
            State::Cancelled
        } else if self.tasks.iter().any(Task::is_bad) {
            State::Failed
        } else {
            State::Success
        }
    }

    /// The tasks with their states: those of the plan in its order, then the items in the order in which they came.
    pub fn tasks(&self) -> impl ExactSizeIterator<Item = &TaskRecord> {
        self.tasks.iter().map(|t| &t.record)
    }

    /// The places of a segment's tasks: from the head on, as long as each has one task after it that needs nothing else.
    pub fn segment(&self, head: usize) -> Vec<usize> {
        let mut chain = vec![head];
        let mut last = head;
        while let [next] = self.tasks[last].children[..] {
            let apart = |task: &Task| task.waits || task.alone;
            if apart(&self.tasks[last]) || apart(&self.tasks[next]) || self.tasks[next].parents.len() != 1 {
                break;
            }
            chain.push(next);
            last = next;
        }
        chain
    }

    /// The task whose item this one is, and which item; `None` for the plan's own tasks.
    pub fn item(&self, task: usize) -> Option<(usize, usize)> {
        self.tasks.get(task)?.item
    }

    /// How many of a task's items are not over.
    pub fn items_open(&self, task: usize) -> usize {
        self.tasks[task].items_open
    }

    /// How many attempts of a segment failed.
    pub fn failures(&self, head: usize) -> u32 {
        self.tasks.get(head).map_or(0, |task| task.failures)
    }

    /// True when a task's failure does not fail the run.
    pub fn allows_failure(&self, task: usize) -> bool {
        let group = self.tasks[task].item.map_or(task, |(group, _)| group);
        self.tasks[group].allow_failure
    }

    /// True while a segment of the run holds a slot.
    pub fn holds_slot(&self) -> bool {
        self.tasks.iter().any(|t| t.holds_slot)
    }

    /// True when the run is over once this segment has done its work.
    pub fn ends_with(&self, head: usize) -> bool {
        self.segment(head).len() == self.open
    }

    /// Takes an event and answers what to do. Events that do not fit the state (a late reply of a cancelled task) are ignored.
    pub fn apply(&mut self, event: &Event, now: DateTime<Utc>) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.open == 0 {
            return actions;
        }
        match *event {
            Event::Begun => {
                for place in 0..self.tasks.len() {
                    if self.tasks[place].unmet == 0 || self.tasks[place].rule == Rule::Always {
                        self.admit(place, now, &mut actions);
                    }
                }
            }
            Event::WaitMet { task } => self.end_wait(task, State::Success, now, &mut actions),
            Event::WaitFailed { task } => self.end_wait(task, State::Failed, now, &mut actions),
            Event::Queued { head } => {
                if self.tasks[head].record.state == State::Ready {
                    self.tasks[head].record.state = State::Queued;
                }
            }
            Event::Started { head } => {
                if self.tasks[head].record.state == State::Queued {
                    self.tasks[head].holds_slot = true;
                    self.set(head, State::Running, now);
                }
            }
            Event::Moved { task, state, at } => {
                let fits = matches!(state, State::Running | State::Success);
                if fits && !self.tasks[task].closed && self.holds_slot() {
                    self.set(task, state, at);
                }
            }
            Event::Done { head } => {
                if self.tasks[head].holds_slot {
                    self.tasks[head].holds_slot = false;
                    let chain = self.segment(head);
                    let (last, before) = chain.split_last().expect("a segment has its head");
                    for &place in before {
                        self.succeed(place, now);
                        self.tasks[place].closed = true;
                        self.open -= 1;
                    }
                    self.succeed(*last, now);
                    self.close(*last, State::Success, now, &mut actions);
                }
            }
            Event::Broke { head, retryable, after } => {
                if self.tasks[head].holds_slot {
                    self.tasks[head].holds_slot = false;
                    self.break_off(head, retryable, after, now, &mut actions);
                }
            }
            Event::Expanded { task, items } => self.expand(task, items, now, &mut actions),
            Event::ExpandFailed { task } => {
                if self.tasks[task].awaits_items() {
                    self.close(task, State::Failed, now, &mut actions);
                }
            }
            Event::RetryDue { head } => {
                if self.tasks[head].record.state == State::Retry {
                    self.tasks[head].record.state = State::Ready;
                    actions.push(Action::Enqueue { head });
                }
            }
            Event::Cancelled => {
                self.cancelled = true;
                self.open = 0;
                for place in 0..self.tasks.len() {
                    if !self.tasks[place].closed {
                        self.set(place, State::Cancelled, now);
                        self.tasks[place].closed = true;
                        self.tasks[place].holds_slot = false;
                    }
                }
            }
        }
        if self.open == 0 {
            actions.push(Action::Finish(self.state()));
        }
        actions
    }

    /// Lets a task go, once.
    fn admit(&mut self, place: usize, now: DateTime<Utc>, actions: &mut Vec<Action>) {
        if self.tasks[place].closed || std::mem::replace(&mut self.tasks[place].admitted, true) {
            return;
        }
        if self.tasks[place].waits {
            self.set(place, State::Waiting, now);
            self.tasks[place].record.started_at = Some(now);
            actions.push(Action::Await { task: place });
        } else if self.tasks[place].each {
            self.set(place, State::Running, now);
            actions.push(Action::Expand { task: place });
        } else {
            self.tasks[place].record.state = State::Ready;
            actions.push(Action::Enqueue { head: place });
        }
    }

    fn end_wait(&mut self, place: usize, state: State, now: DateTime<Utc>, actions: &mut Vec<Action>) {
        if self.tasks[place].waits && !self.tasks[place].closed {
            self.close(place, state, now, actions);
        }
    }

    /// Makes a task of each item; none at all is done at once.
    fn expand(&mut self, group: usize, items: usize, now: DateTime<Utc>, actions: &mut Vec<Action>) {
        if !self.tasks[group].awaits_items() {
            return;
        }
        if items == 0 {
            return self.close(group, State::Success, now, actions);
        }
        self.tasks[group].items_open = items;
        for n in 0..items {
            let of = &self.tasks[group];
            // The name only fails to be one when it is too long; then the items share their task's.
            let name = format!("{}.{n}", of.record.name).parse().unwrap_or_else(|_| of.record.name.clone());
            let mut item = Task::new(TaskShape { retry: of.retry, alone: true, ..TaskShape::new(name, Vec::new()) });
            item.item = Some((group, n));
            self.tasks.push(item);
            self.open += 1;
            self.admit(self.tasks.len() - 1, now, actions);
        }
    }

    fn break_off(
        &mut self,
        head: usize,
        retryable: bool,
        after: Option<Duration>,
        now: DateTime<Utc>,
        actions: &mut Vec<Action>,
    ) {
        let chain = self.segment(head);
        let policy = self.tasks[head].retry.unwrap_or(self.retry);
        self.tasks[head].failures += 1;
        let seed = self.seed.wrapping_add(head as u64);
        let pause = if retryable { policy.pause(self.tasks[head].failures, seed) } else { None };
        if let Some(pause) = pause {
            for place in chain {
                self.set(place, State::Waiting, now);
                self.tasks[place].record.started_at = None;
            }
            self.tasks[head].record.state = State::Retry;
            let pause = pause.max(after.unwrap_or_default().min(policy.max));
            let pause = TimeDelta::from_std(pause).unwrap_or(TimeDelta::MAX);
            actions
                .push(Action::RetryAt { head, at: now.checked_add_signed(pause).unwrap_or(DateTime::<Utc>::MAX_UTC) });
            return;
        }
        let done = chain.iter().take_while(|p| self.tasks[**p].record.state == State::Success).count();
        // All tasks may say success and the segment still be lost: then it is the last whose word does not count.
        let failed = chain[done.min(chain.len() - 1)];
        for &place in chain.iter().take_while(|p| **p != failed) {
            self.tasks[place].closed = true;
            self.open -= 1;
            for child in self.tasks[place].children.clone() {
                self.tasks[child].unmet -= 1;
            }
        }
        self.close(failed, State::Failed, now, actions);
    }

    /// Makes a task's state final and tells those after it, and the task whose item it is.
    fn close(&mut self, place: usize, state: State, now: DateTime<Utc>, actions: &mut Vec<Action>) {
        if self.tasks[place].record.state != state {
            self.set(place, state, now);
        }
        self.tasks[place].closed = true;
        self.open -= 1;
        self.tell_children(place, now, actions);
        if let Some((group, _)) = self.tasks[place].item {
            let of = &mut self.tasks[group];
            of.items_open -= 1;
            of.item_failed |= state == State::Failed;
            if of.items_open == 0 {
                let state = if of.item_failed { State::Failed } else { State::Success };
                self.close(group, state, now, actions);
            }
        }
    }

    fn tell_children(&mut self, place: usize, now: DateTime<Utc>, actions: &mut Vec<Action>) {
        for child in self.tasks[place].children.clone() {
            self.tasks[child].unmet -= 1;
            if self.tasks[child].admitted || self.tasks[child].closed {
                continue;
            }
            match self.verdict(child) {
                Verdict::Wait => {}
                Verdict::Run => self.admit(child, now, actions),
                Verdict::End(state) => self.close(child, state, now, actions),
            }
        }
    }

    /// What a task's rule says, now that one before it is closed.
    fn verdict(&self, child: usize) -> Verdict {
        let task = &self.tasks[child];
        let all_closed = task.unmet == 0;
        let mut parents = task.parents.iter().map(|p| &self.tasks[*p]).filter(|p| p.closed);
        match task.rule {
            Rule::OneFailed if parents.any(Task::has_failed) => Verdict::Run,
            _ if !all_closed => Verdict::Wait,
            Rule::OneFailed => Verdict::End(State::Skipped),
            Rule::AllDone | Rule::Always => Verdict::Run,
            Rule::AllSuccess | Rule::NoneFailed if parents.clone().any(Task::is_bad) => {
                Verdict::End(State::UpstreamFailed)
            }
            Rule::AllSuccess if parents.any(|p| p.record.state == State::Skipped) => Verdict::End(State::Skipped),
            Rule::AllSuccess | Rule::NoneFailed => Verdict::Run,
        }
    }

    /// A task that said `success` itself keeps the time at which it did.
    fn succeed(&mut self, place: usize, now: DateTime<Utc>) {
        if self.tasks[place].record.state != State::Success {
            self.set(place, State::Success, now);
        }
    }

    fn set(&mut self, place: usize, state: State, at: DateTime<Utc>) {
        let record = &mut self.tasks[place].record;
        record.state = state;
        match state {
            State::Running => (record.started_at, record.finished_at) = (Some(at), None),
            state if state.is_final() => record.finished_at = Some(at),
            _ => record.finished_at = None,
        }
    }
}

/// What a rule says.
enum Verdict {
    /// It cannot be told yet.
    Wait,
    /// The task runs.
    Run,
    /// The task ends so without having run.
    End(State),
}

impl Task {
    fn new(shape: TaskShape) -> Self {
        Self {
            record: TaskRecord { name: shape.name, state: State::Waiting, started_at: None, finished_at: None },
            waits: shape.waits,
            rule: shape.rule,
            allow_failure: shape.allow_failure,
            retry: shape.retry,
            alone: shape.alone || shape.each || shape.rule != Rule::AllSuccess,
            each: shape.each,
            unmet: shape.after.len(),
            parents: shape.after,
            children: Vec::new(),
            admitted: false,
            closed: false,
            holds_slot: false,
            failures: 0,
            item: None,
            items_open: 0,
            item_failed: false,
        }
    }

    fn has_failed(&self) -> bool {
        matches!(self.record.state, State::Failed | State::UpstreamFailed)
    }

    /// True when its end stops others. An item's failure is its task's to tell.
    fn is_bad(&self) -> bool {
        let failed = self.record.state == State::Failed && !self.allow_failure && self.item.is_none();
        failed || self.record.state == State::UpstreamFailed
    }

    /// True when its turn has come and its list is not known yet.
    fn awaits_items(&self) -> bool {
        self.each && self.admitted && !self.closed && self.items_open == 0
    }
}
