//! Waits on the outside world: when to look at what, and what an answer means for who waits.
//!
//! Equal questions are one question with many who wait. A question is due, or queued at its place behind others that are
//! due, or being looked at. So thousands of waits cost their looks and nothing in between.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};

use super::{Board, Command};
use crate::{
    machine::{Failure, RetryPolicy},
    outside::{Answer, Question},
};

/// The most looks at once.
const LOOKS_MAX: usize = 32;

/// The most looks at one place at once: one that hangs must not hold up the others, nor be overrun.
const LOOKS_PER_PLACE_MAX: usize = 4;

/// The longest pause after a look that failed for a passing reason, unless looks are further apart anyway.
const AGAIN_MAX: Duration = Duration::from_secs(600);

/// All that somebody on the board asks the outside world.
#[derive(Default)]
pub(super) struct Outside {
    questions: BTreeMap<Arc<Question>, Asked>,
    /// Questions that are neither queued nor looked at, by the time of their next look.
    due: BTreeSet<(DateTime<Utc>, Arc<Question>)>,
    /// Where something is queued or looked at.
    places: BTreeMap<String, Place>,
    /// The place that got the last look: the next one goes to another.
    served: String,
    looking: usize,
    /// Runs whose time is over, and since when: they end unless one more look is a yes.
    ending: BTreeMap<usize, DateTime<Utc>>,
}

/// A question and who waits for a yes.
struct Asked {
    waiting: Vec<Waiting>,
    stage: Stage,
    /// When the last look began.
    looked_at: Option<DateTime<Utc>>,
    /// Looks in a row that failed.
    failures: u32,
    /// What the last look found.
    said: String,
}

#[derive(Clone, Copy)]
struct Waiting {
    run: usize,
    task: usize,
    every: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Due(DateTime<Utc>),
    Queued(DateTime<Utc>),
    Looking,
}

#[derive(Default)]
struct Place {
    queued: BTreeSet<(DateTime<Utc>, Arc<Question>)>,
    looking: usize,
}

impl Board {
    /// Registers a wait on the outside world; the first look is due at once.
    pub(super) fn wait_outside(&mut self, run: usize, task: usize, now: DateTime<Utc>) {
        let Some(shape) = self.runs[run].shape.clone() else { return };
        let Some(wait) = shape.outside_of(task) else { return };
        self.outside.join(&wait.question, Waiting { run, task, every: wait.every }, now);
        self.runs[run].missing.insert(task, 1);
    }

    /// Has everything looked at that is due, as far as there is room.
    pub(super) fn inquire(&mut self, now: DateTime<Utc>) {
        while let Some(question) = self.outside.next(now) {
            self.commands.push(Command::Inquire(question));
        }
    }

    /// What a look at the outside world came to.
    pub(crate) fn answered(&mut self, question: &Arc<Question>, answer: Result<Answer, Failure>, now: DateTime<Utc>) {
        let outside = &mut self.outside;
        outside.looked(question);
        let Some(asked) = outside.questions.get_mut(question) else { return };
        let pause = match answer {
            Ok(Answer { is_yes: true, .. }) => {
                for waiting in outside.forget(question) {
                    self.found(waiting.run, waiting.task, now);
                }
                return;
            }
            Err(failure) if !failure.retryable => {
                let refused = question.refused(&failure);
                for waiting in outside.forget(question) {
                    if self.runs[waiting.run].missing.contains_key(&waiting.task) {
                        self.end_waits(waiting.run, refused.clone(), now);
                    }
                }
                return;
            }
            Ok(answer) => {
                (asked.failures, asked.said) = (0, answer.said);
                asked.every()
            }
            Err(failure) => {
                asked.failures += 1;
                asked.said = failure.message;
                asked.again(failure.retry_after)
            }
        };
        let (waiting, looked_at) = (asked.waiting.clone(), asked.looked_at.unwrap_or(now));
        if waiting.is_empty() {
            outside.forget(question);
            return;
        }
        let wants_more = |w: &Waiting| outside.ending.get(&w.run).is_some_and(|end| looked_at < *end);
        let pause = if waiting.iter().any(wants_more) { TimeDelta::zero() } else { pause };
        outside.set_due(question, now.checked_add_signed(pause).unwrap_or(DateTime::<Utc>::MAX_UTC));
        for Waiting { run, .. } in waiting {
            // Nobody of ours will bring it about: a command waits as long as it was told to, a board that serves for ever.
            if !self.serves && !self.blocked.contains_key(&run) {
                self.blocked.insert(run, looked_at);
                self.withdraw(run, now);
            }
            self.end_after_last_look(run, now);
        }
    }

    /// A run's time is over: it gives up, after one more look at what it waits for outside.
    pub(super) fn close(&mut self, run: usize, end: DateTime<Utc>, now: DateTime<Utc>) {
        self.outside.ending.insert(run, end);
        for question in self.asked_by(run) {
            self.outside.hasten(&question, end, now);
        }
        self.end_after_last_look(run, now);
    }

    /// Ends a run whose time is over and that waits for no look any more.
    pub(super) fn end_after_last_look(&mut self, run: usize, now: DateTime<Utc>) {
        let Some(end) = self.outside.ending.get(&run).copied() else { return };
        if self.asked_by(run).iter().any(|question| !self.outside.is_seen_since(question, end)) {
            return;
        }
        self.outside.ending.remove(&run);
        if self.serves || self.lacks_what_nobody_brings(run) {
            self.give_up(run, now);
        }
    }

    /// True while the run waits for the outside world.
    pub(super) fn asks_outside(&self, run: usize) -> bool {
        !self.asked_by(run).is_empty()
    }

    /// What the tasks of a run that still wait ask the outside world.
    fn asked_by(&self, run: usize) -> Vec<Arc<Question>> {
        let entry = &self.runs[run];
        let Some(shape) = &entry.shape else { return Vec::new() };
        let mut tasks: Vec<usize> = entry.missing.keys().copied().collect();
        tasks.sort_unstable();
        tasks.into_iter().filter_map(|task| Some(Arc::clone(&shape.outside_of(task)?.question))).collect()
    }

    /// What a run misses outside, each with what the last look found.
    pub(super) fn missing_outside(&self, run: usize) -> Vec<String> {
        let words = |question: Arc<Question>| {
            let said = self.outside.questions.get(&question).map_or("", |asked| asked.said.as_str());
            format!("it waits for {question} ({})", if said.is_empty() { "nobody has looked yet" } else { said })
        };
        self.asked_by(run).into_iter().map(words).collect()
    }
}

impl Outside {
    /// When the next look is due.
    pub(super) fn next_due(&self) -> Option<DateTime<Utc>> {
        self.due.first().map(|(at, _)| *at)
    }

    /// True while runs whose time is over get a last look.
    pub(super) fn has_last_looks(&self) -> bool {
        !self.ending.is_empty()
    }

    /// The run's time counts no more.
    pub(super) fn goes_on(&mut self, run: usize) {
        self.ending.remove(&run);
    }

    /// Takes a task out of those that wait; a question that nobody asks any more is forgotten.
    pub(super) fn leave(&mut self, question: &Arc<Question>, run: usize, task: usize) {
        let Some(asked) = self.questions.get_mut(question) else { return };
        asked.waiting.retain(|w| (w.run, w.task) != (run, task));
        // A look that is under way ends first: who asks the same meanwhile gets its answer.
        if asked.waiting.is_empty() && asked.stage != Stage::Looking {
            self.forget(question);
        }
    }

    /// The clock was set by so much: what was reckoned with it keeps its distance.
    pub(super) fn clock_set(&mut self, moved: impl Fn(DateTime<Utc>) -> DateTime<Utc>) {
        let all = |times: &mut BTreeSet<(DateTime<Utc>, Arc<Question>)>| {
            *times = std::mem::take(times).into_iter().map(|(at, question)| (moved(at), question)).collect();
        };
        all(&mut self.due);
        self.places.values_mut().for_each(|place| all(&mut place.queued));
        for asked in self.questions.values_mut() {
            asked.looked_at = asked.looked_at.map(&moved);
            asked.stage = match asked.stage {
                Stage::Due(at) => Stage::Due(moved(at)),
                Stage::Queued(at) => Stage::Queued(moved(at)),
                Stage::Looking => Stage::Looking,
            };
        }
        self.ending.values_mut().for_each(|end| *end = moved(*end));
    }

    fn join(&mut self, question: &Arc<Question>, waiting: Waiting, now: DateTime<Utc>) {
        match self.questions.get_mut(question) {
            None => {
                let asked = Asked {
                    waiting: vec![waiting],
                    stage: Stage::Looking,
                    looked_at: None,
                    failures: 0,
                    said: String::new(),
                };
                self.questions.insert(Arc::clone(question), asked);
                self.set_due(question, now);
            }
            Some(asked) => {
                asked.waiting.push(waiting);
                // Who looks more often than those before brings the next look forward.
                let next = asked.looked_at.and_then(|at| at.checked_add_signed(delta(waiting.every)));
                if let (Stage::Due(at), Some(next), 0) = (asked.stage, next, asked.failures)
                    && next < at
                {
                    self.due.remove(&(at, Arc::clone(question)));
                    self.set_due(question, next);
                }
            }
        }
    }

    fn set_due(&mut self, question: &Arc<Question>, at: DateTime<Utc>) {
        if let Some(asked) = self.questions.get_mut(question) {
            asked.stage = Stage::Due(at);
            self.due.insert((at, Arc::clone(question)));
        }
    }

    /// The next question to look at now: the places take turns.
    fn next(&mut self, now: DateTime<Utc>) -> Option<Arc<Question>> {
        while let Some((at, question)) = self.due.first().filter(|(at, _)| *at <= now).cloned() {
            self.due.pop_first();
            if let Some(asked) = self.questions.get_mut(&question) {
                asked.stage = Stage::Queued(at);
                self.places.entry(question.place()).or_default().queued.insert((at, question));
            }
        }
        if self.looking >= LOOKS_MAX {
            return None;
        }
        let after = (Bound::Excluded(self.served.clone()), Bound::Unbounded);
        let has_room = |(_, place): &(&String, &Place)| place.looking < LOOKS_PER_PLACE_MAX && !place.queued.is_empty();
        let found = self.places.range(after).chain(self.places.range(..=self.served.clone())).find(has_room);
        let name = found.map(|(name, _)| name.clone())?;
        let place = self.places.get_mut(&name)?;
        let (_, question) = place.queued.pop_first()?;
        place.looking += 1;
        self.looking += 1;
        self.served = name;
        let asked = self.questions.get_mut(&question)?;
        (asked.stage, asked.looked_at) = (Stage::Looking, Some(now));
        Some(question)
    }

    /// A look is over, whatever it came to.
    fn looked(&mut self, question: &Question) {
        self.looking = self.looking.saturating_sub(1);
        let name = question.place();
        if let Some(place) = self.places.get_mut(&name) {
            place.looking = place.looking.saturating_sub(1);
            if place.looking == 0 && place.queued.is_empty() {
                self.places.remove(&name);
            }
        }
    }

    /// Drops a question, and gives who waited for it.
    fn forget(&mut self, question: &Arc<Question>) -> Vec<Waiting> {
        let Some(asked) = self.questions.remove(question) else { return Vec::new() };
        match asked.stage {
            Stage::Due(at) => {
                self.due.remove(&(at, Arc::clone(question)));
            }
            Stage::Queued(at) => {
                let name = question.place();
                if let Some(place) = self.places.get_mut(&name) {
                    place.queued.remove(&(at, Arc::clone(question)));
                    if place.looking == 0 && place.queued.is_empty() {
                        self.places.remove(&name);
                    }
                }
            }
            Stage::Looking => {}
        }
        asked.waiting
    }

    /// Brings the next look forward unless one has begun since `end`.
    fn hasten(&mut self, question: &Arc<Question>, end: DateTime<Utc>, now: DateTime<Utc>) {
        let Some(asked) = self.questions.get(question) else { return };
        if let Stage::Due(at) = asked.stage
            && at > now
            && asked.looked_at.is_none_or(|looked_at| looked_at < end)
        {
            self.due.remove(&(at, Arc::clone(question)));
            self.set_due(question, now);
        }
    }

    /// True when a look has begun since then and is over.
    fn is_seen_since(&self, question: &Question, end: DateTime<Utc>) -> bool {
        let seen = |asked: &Asked| asked.stage != Stage::Looking && asked.looked_at.is_some_and(|at| at >= end);
        self.questions.get(question).is_none_or(seen)
    }
}

impl Asked {
    fn every(&self) -> TimeDelta {
        delta(self.waiting.iter().map(|w| w.every).min().unwrap_or_default())
    }

    /// The pause after a look that failed for a passing reason: longer each time.
    fn again(&self, asked_for: Option<Duration>) -> TimeDelta {
        let every = self.waiting.iter().map(|w| w.every).min().unwrap_or_default();
        let max = AGAIN_MAX.max(every);
        let policy = RetryPolicy { times: u32::MAX, delay: every, factor: 2.0, max };
        let seed = self.waiting.first().map_or(0, |w| w.run as u64);
        let pause = policy.pause(self.failures, seed).unwrap_or(max);
        delta(pause.max(every).max(asked_for.unwrap_or_default().min(max)))
    }
}

fn delta(pause: Duration) -> TimeDelta {
    TimeDelta::from_std(pause).unwrap_or(TimeDelta::MAX)
}

#[cfg(test)]
mod tests;
