//! Why a run is not there: from facts to a reason, and from a chain of reasons to words. Reads nothing by itself.

use chrono::{DateTime, Utc};
use headworks_flow::{
    Answer, Failure, Span, State,
    exec::{Placement, RunRow, Takes},
};
use headworks_meta::{Holder, PoolRow};
use serde_json::{Value, json};

use crate::output::{ago, count, counted, shown};

/// When the schedule asks for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Never: the job has no schedule.
    ByHand,
    /// At this tick.
    At(DateTime<Utc>),
    /// The schedule has no tick for it.
    NoTick,
}

/// What is known of one run of one job.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) now: DateTime<Utc>,
    pub(crate) due: Due,
    pub(crate) paused_at: Option<DateTime<Utc>>,
    /// The last tick of the job that was seen to.
    pub(crate) cursor: Option<DateTime<Utc>>,
    /// Processes that keep the project running.
    pub(crate) schedulers: usize,
    /// True when a success leaves partitions; tasks and views leave none.
    pub(crate) stores: bool,
    /// When its partitions were published, and by which run.
    pub(crate) published: Option<(DateTime<Utc>, Option<String>)>,
    /// Somebody has asked for it, and it was not begun.
    pub(crate) asked_at: Option<DateTime<Utc>>,
    /// The stored backfill that asked for it, and whether it is paused.
    pub(crate) backfill: Option<(i64, bool)>,
    /// The newest run.
    pub(crate) run: Option<RunRow>,
    /// The task that runs.
    pub(crate) task: Option<String>,
    /// When it is tried again, about.
    pub(crate) retry_at: Option<DateTime<Utc>>,
    /// When it gives up waiting.
    pub(crate) wait_until: Option<DateTime<Utc>>,
    /// What it waits for, with how many partitions of each table are missing.
    pub(crate) missing: Vec<(String, usize)>,
    /// What it waits for outside of the lake, as it is now.
    pub(crate) outside: Vec<Sight>,
    /// Runs of the job that are at work.
    pub(crate) active: usize,
    /// How many may be.
    pub(crate) active_max: Option<usize>,
    /// Where it may be carried out.
    pub(crate) placement: Placement,
    /// What the living processes take that carry runs out.
    pub(crate) workers: Vec<Takes>,
    /// The pool whose slots it lacks, because tasks of whichever process have them.
    pub(crate) full_pool: Option<PoolRow>,
}

/// Something outside of the lake that a run waits for, and what a look found just now.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sight {
    /// What it is, as "file `in/a.csv`".
    pub(crate) what: String,
    pub(crate) found: Result<Answer, Failure>,
    /// The pause between two looks of whoever has the run.
    pub(crate) every: Span,
}

impl Sight {
    pub(crate) fn is_there(&self) -> bool {
        matches!(self.found, Ok(Answer { is_yes: true, .. }))
    }

    /// The reason as a link of the chain.
    pub(crate) fn node(&self) -> Node {
        let reason = match &self.found {
            Ok(answer) => Reason::Outside { is_there: answer.is_yes, said: answer.said.clone(), every: self.every },
            Err(failure) => {
                let hint = failure.hint.clone().unwrap_or_default();
                Reason::Unseen { message: failure.message.clone(), hint }
            }
        };
        Node { name: self.what.clone(), ds: String::new(), hour: None, reason, because: Vec::new() }
    }
}

/// Why a run stands as it does.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reason {
    Published {
        at: DateTime<Utc>,
        run: Option<String>,
    },
    /// It succeeded; `gone` when it should have left partitions that are not there: they were dropped, or the run was marked.
    Done {
        run: String,
        gone: bool,
    },
    FileBroken {
        problem: String,
    },
    NoMaker,
    ByHand,
    NoTick,
    NotDue {
        at: DateTime<Utc>,
    },
    Paused {
        since: DateTime<Utc>,
    },
    NobodyServes {
        asked: bool,
    },
    Asked {
        since: DateTime<Utc>,
    },
    /// A backfill will ask for it, once what it needs is there.
    Piece {
        backfill: i64,
        paused: bool,
        lacks: Vec<(String, usize)>,
    },
    Missed {
        tick: DateTime<Utc>,
    },
    StartsSoon,
    Waits {
        run: String,
        missing: Vec<(String, usize)>,
        outside: Vec<String>,
        until: Option<DateTime<Utc>>,
    },
    /// All that it waits for is there by now; some of it is found by the next look only.
    FoundSoon {
        run: String,
        within: Span,
    },
    /// Something outside of the lake, as it is now.
    Outside {
        is_there: bool,
        said: String,
        every: Span,
    },
    /// Something outside of the lake that cannot be looked at from here.
    Unseen {
        message: String,
        hint: String,
    },
    Abandoned {
        run: String,
        owner: String,
        schedulers: usize,
    },
    Running {
        run: String,
        owner: String,
        attempt: u32,
        task: Option<String>,
        since: Option<DateTime<Utc>>,
    },
    Retry {
        run: String,
        attempt: u32,
        at: Option<DateTime<Utc>>,
        message: String,
    },
    JobLimit {
        active: usize,
        max: usize,
    },
    Slots {
        run: String,
        owner: String,
    },
    Pool {
        run: String,
        pool: PoolRow,
    },
    /// It is ready, and no living process takes such runs.
    NoWorker {
        run: String,
        placement: Placement,
    },
    Ended {
        run: String,
        state: State,
        message: Option<String>,
        hint: Option<String>,
        logs: bool,
    },
    /// The chain was followed far enough, or leads back to where it was.
    More,
}

/// Concludes why a run stands as it does.
pub(crate) fn conclude(facts: &Facts) -> Reason {
    if let Some(run) = facts.run.as_ref().filter(|run| run.finished_at.is_none()) {
        return of_live(facts, run);
    }
    let ended = facts.run.as_ref();
    if let Some((at, run)) = &facts.published {
        // A repetition that failed afterwards is what a person asks about.
        let failed_since =
            ended.is_some_and(|r| r.state == State::Failed && r.finished_at.is_some_and(|end| end > *at));
        if !failed_since && facts.asked_at.is_none() {
            return Reason::Published { at: *at, run: run.clone() };
        }
    }
    if let Some(since) = facts.asked_at {
        return match facts.backfill {
            Some((backfill, true)) => Reason::Piece { backfill, paused: true, lacks: Vec::new() },
            _ if facts.schedulers == 0 => Reason::NobodyServes { asked: true },
            Some((backfill, false)) => Reason::Piece { backfill, paused: false, lacks: facts.missing.clone() },
            None => Reason::Asked { since },
        };
    }
    match ended {
        Some(run) if run.state == State::Success => {
            return Reason::Done { run: run.id.to_string(), gone: facts.stores };
        }
        Some(run) => {
            return Reason::Ended {
                run: run.id.to_string(),
                state: run.state,
                message: run.failure.as_ref().map(|f| f.message.clone()),
                hint: run.failure.as_ref().and_then(|f| f.hint.clone()),
                logs: run.started_at.is_some(),
            };
        }
        None => {}
    }
    let tick = match facts.due {
        Due::ByHand => return Reason::ByHand,
        Due::NoTick => return Reason::NoTick,
        Due::At(tick) => tick,
    };
    match facts.paused_at {
        Some(since) => Reason::Paused { since },
        None if tick > facts.now => Reason::NotDue { at: tick },
        None if facts.cursor.is_some_and(|cursor| cursor >= tick) => Reason::Missed { tick },
        None if facts.schedulers == 0 => Reason::NobodyServes { asked: false },
        None => Reason::StartsSoon,
    }
}

fn of_live(facts: &Facts, run: &RunRow) -> Reason {
    let (id, owner) = (run.id.to_string(), run.owner.clone());
    if run.owner.is_empty() && !facts.workers.iter().any(|takes| takes.may(&facts.placement)) {
        return Reason::NoWorker { run: id, placement: facts.placement.clone() };
    }
    if run.owner.is_empty() {
        // Its owner had more than it could do, and gave it to whoever has room.
        return Reason::Slots { run: id, owner: "any worker".to_owned() };
    }
    if run.is_abandoned() {
        return Reason::Abandoned { run: id, owner, schedulers: facts.schedulers };
    }
    match run.state {
        State::Running => {
            Reason::Running { run: id, owner, attempt: run.attempt, task: facts.task.clone(), since: run.started_at }
        }
        State::Retry => Reason::Retry {
            run: id,
            attempt: run.attempt,
            at: facts.retry_at,
            message: run.failure.as_ref().map(|f| f.message.clone()).unwrap_or_default(),
        },
        _ if !facts.missing.is_empty() || !facts.outside.iter().all(Sight::is_there) => {
            let lacks = facts.outside.iter().filter(|sight| !sight.is_there());
            let outside = lacks.map(|sight| sight.what.clone()).collect();
            Reason::Waits { run: id, missing: facts.missing.clone(), outside, until: facts.wait_until }
        }
        _ => match (facts.active_max, &facts.full_pool) {
            (Some(max), _) if facts.active >= max => Reason::JobLimit { active: facts.active, max },
            (_, Some(pool)) => Reason::Pool { run: id, pool: pool.clone() },
            _ if !facts.outside.is_empty() => {
                let within = facts.outside.iter().map(|sight| sight.every).max().unwrap_or_default();
                Reason::FoundSoon { run: id, within }
            }
            _ => Reason::Slots { run: id, owner },
        },
    }
}

/// A run with the reason, and what stands behind that.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    /// The job, or the table that no job makes.
    pub(crate) name: String,
    /// The day, or the partition of a table that no job makes.
    pub(crate) ds: String,
    /// The hour, for jobs by the hour.
    pub(crate) hour: Option<u8>,
    pub(crate) reason: Reason,
    pub(crate) because: Vec<Node>,
}

impl Node {
    /// The chain, a line for each reason, indented; the last line says what to do.
    pub(crate) fn text(&self, now: DateTime<Utc>) -> String {
        let mut text = String::new();
        self.write(0, now, &mut text);
        text.push_str("next: ");
        text.push_str(&self.root_cause().action());
        text.push('\n');
        text
    }

    fn write(&self, depth: usize, now: DateTime<Utc>, text: &mut String) {
        let indent = "  ".repeat(depth);
        let words = self.reason.words(now).replace('\n', &format!("\n{indent}    "));
        let hour = self.hour.map(|hour| format!(" {hour:02} h")).unwrap_or_default();
        let ds = if self.ds.is_empty() { String::new() } else { format!(" {}", self.ds) };
        text.push_str(&format!("{indent}{}{ds}{hour} {words}\n", self.name));
        if let Reason::Ended { hint: Some(hint), .. } = &self.reason {
            text.push_str(&format!("{indent}  hint: {hint}\n"));
        }
        for node in &self.because {
            node.write(depth + 1, now, text);
        }
    }

    /// The first reason that has nothing behind it.
    fn root_cause(&self) -> &Self {
        self.because.first().map_or(self, Self::root_cause)
    }

    /// As `--json` shows it.
    pub(crate) fn json(&self, now: DateTime<Utc>) -> Value {
        let mut document = self.json_of_one(now);
        document["next"] = json!(self.root_cause().action());
        document
    }

    fn json_of_one(&self, now: DateTime<Utc>) -> Value {
        json!({
            "job": self.name,
            "ds": self.ds,
            "hour": self.hour,
            "reason": self.reason.code(),
            "text": self.reason.words(now),
            "run_id": self.reason.run(),
            "because": self.because.iter().map(|node| node.json_of_one(now)).collect::<Vec<_>>(),
        })
    }

    /// What a person can do about it.
    fn action(&self) -> String {
        let hour = self.hour.map(|hour| format!(" --hour {hour}")).unwrap_or_default();
        let (name, ds) = (&self.name, format!("{}{hour}", self.ds));
        match &self.reason {
            Reason::Published { .. } => {
                format!("nothing; headworks run {name} --ds {ds} --reprocess publishes it anew")
            }
            Reason::Done { gone: true, .. } => format!("headworks run {name} --ds {ds} --reprocess makes it again"),
            Reason::Done { gone: false, .. } => {
                format!("nothing; headworks run {name} --ds {ds} --reprocess does it again")
            }
            Reason::FileBroken { .. } => "mend the file; headworks validate checks it".to_owned(),
            Reason::NoMaker => {
                format!("write a job that makes {name}, or take files in with headworks tables adopt")
            }
            Reason::ByHand | Reason::NoTick | Reason::Missed { .. } => {
                format!("headworks run {name} --ds {ds}, or headworks jobs trigger {name} --ds {ds}")
            }
            Reason::NotDue { at } => {
                format!("wait until {} UTC, or headworks run {name} --ds {ds} now", shown(*at))
            }
            Reason::Paused { .. } => format!("headworks jobs resume {name}"),
            Reason::NobodyServes { .. } => format!("headworks up, or headworks run {name} --ds {ds} now"),
            Reason::Asked { .. } | Reason::StartsSoon => "wait a moment, and ask again".to_owned(),
            Reason::Piece { backfill, paused: true, .. } => format!("headworks backfills resume {backfill}"),
            Reason::Piece { backfill, .. } => format!("wait; headworks backfills show {backfill} shows how far it is"),
            Reason::Waits { run, .. } => format!("wait, or headworks runs cancel {run}"),
            Reason::FoundSoon { run, .. } => format!("wait a moment; headworks runs show {run} shows when it starts"),
            Reason::Outside { is_there: true, .. } => "wait for the next look".to_owned(),
            Reason::Outside { .. } => "wait, or ask whoever makes it".to_owned(),
            Reason::Unseen { hint, .. } if !hint.is_empty() => hint.clone(),
            Reason::Unseen { .. } => "see that it can be reached".to_owned(),
            Reason::Abandoned { schedulers: 0, .. } => {
                format!("headworks up takes it over; so does headworks run {name} --ds {ds}")
            }
            Reason::Abandoned { .. } => "wait: the process that keeps the project running takes it over".to_owned(),
            Reason::Running { run, .. } => format!("wait; headworks runs logs {run} shows how far it is"),
            Reason::Retry { run, .. } => format!("wait, or see headworks runs logs {run}"),
            Reason::JobLimit { .. } => format!("wait, or raise max_active_runs of {name}"),
            Reason::Slots { .. } => "wait, or raise execution.tasks_max".to_owned(),
            Reason::NoWorker { placement, .. } => {
                let zone = placement.zone.as_ref().map(|zone| format!(" --zone {zone}")).unwrap_or_default();
                format!("headworks worker{zone}, without --pools or with all pools of its tasks")
            }
            Reason::Pool { pool, .. } => {
                format!("wait, or give pool {} more slots in [pools] of headworks.toml", pool.name)
            }
            Reason::Ended { run, logs: true, .. } => {
                format!("headworks runs logs {run}, mend it, then headworks runs clear {run}")
            }
            Reason::Ended { run, .. } => format!("headworks runs clear {run} carries it out again"),
            Reason::More => format!("headworks why {name} --ds {ds} goes on from there"),
        }
    }
}

impl Reason {
    /// A stable short name.
    fn code(&self) -> &'static str {
        match self {
            Self::Published { .. } => "published",
            Self::Done { .. } => "done",
            Self::FileBroken { .. } => "file_broken",
            Self::NoMaker => "no_maker",
            Self::ByHand => "by_hand",
            Self::NoTick => "no_tick",
            Self::NotDue { .. } => "not_due",
            Self::Paused { .. } => "paused",
            Self::NobodyServes { .. } => "nobody_serves",
            Self::Asked { .. } => "asked",
            Self::Piece { .. } => "backfill",
            Self::Missed { .. } => "missed",
            Self::StartsSoon => "starts_soon",
            Self::Waits { .. } => "waits",
            Self::FoundSoon { .. } => "found_soon",
            Self::Outside { is_there: true, .. } => "there",
            Self::Outside { .. } => "not_there",
            Self::Unseen { .. } => "unseen",
            Self::Abandoned { .. } => "abandoned",
            Self::Running { .. } => "running",
            Self::Retry { .. } => "retry",
            Self::JobLimit { .. } => "job_limit",
            Self::Slots { .. } => "slots",
            Self::Pool { .. } => "pool",
            Self::NoWorker { .. } => "no_worker",
            Self::Ended { state, .. } => state.as_str(),
            Self::More => "more",
        }
    }

    fn run(&self) -> Option<&str> {
        match self {
            Self::Published { run, .. } => run.as_deref(),
            Self::Done { run, .. }
            | Self::Waits { run, .. }
            | Self::FoundSoon { run, .. }
            | Self::Abandoned { run, .. }
            | Self::Running { run, .. }
            | Self::Retry { run, .. }
            | Self::Slots { run, .. }
            | Self::Pool { run, .. }
            | Self::NoWorker { run, .. }
            | Self::Ended { run, .. } => Some(run),
            _ => None,
        }
    }

    fn words(&self, now: DateTime<Utc>) -> String {
        let when = |at: DateTime<Utc>| format!("{} UTC ({})", shown(at), ago(at, now));
        match self {
            Self::Published { at, run } => {
                let by = run.as_ref().map(|run| format!(" by run {run}")).unwrap_or_default();
                format!("is published, since {}{by}", when(*at))
            }
            Self::Done { run, gone: true } => format!("succeeded in run {run}, and what it made is not there any more"),
            Self::Done { run, gone: false } => format!("succeeded in run {run}"),
            Self::FileBroken { problem } => format!("has a file with errors: {problem}"),
            Self::NoMaker => "is not published, and no job makes it".to_owned(),
            Self::ByHand => "was never run: the job has no schedule".to_owned(),
            Self::NoTick => "was never run: no tick of the schedule asks for it".to_owned(),
            Self::NotDue { at } => format!("is not due before {}", when(*at)),
            Self::Paused { since } => format!("does not start: the job is paused since {}", when(*since)),
            Self::NobodyServes { asked: false } => "is due, and nobody keeps the project running".to_owned(),
            Self::NobodyServes { asked: true } => "is asked for, and nobody keeps the project running".to_owned(),
            Self::Asked { since } => format!("is asked for since {}, and comes when its turn is", when(*since)),
            Self::Piece { backfill, paused: true, .. } => format!("is a piece of backfill {backfill}, which is paused"),
            Self::Piece { backfill, lacks, .. } if lacks.is_empty() => {
                format!("is a piece of backfill {backfill}, and comes when its turn is")
            }
            Self::Piece { backfill, lacks, .. } => {
                format!("is a piece of backfill {backfill}, and waits for {}", tables_words(lacks))
            }
            Self::Missed { tick } => {
                format!("was never run: its tick at {} was passed over, as catchup says", when(*tick))
            }
            Self::StartsSoon => "is due, and about to start".to_owned(),
            Self::Waits { missing, outside, until, .. } => {
                let until = until.map(|at| format!("; gives up at {}", when(at))).unwrap_or_default();
                let tables = Some(tables_words(missing)).filter(|words| !words.is_empty());
                let words: Vec<String> = tables.into_iter().chain(outside.iter().cloned()).collect();
                format!("waits for {}{until}", words.join(" and "))
            }
            Self::FoundSoon { within, .. } => {
                format!(
                    "has all it needs: the next look finds that within {within}, unless it queues for a slot already"
                )
            }
            Self::Outside { is_there: true, said, .. } => format!("is there now: {said}"),
            Self::Outside { said, every, .. } => {
                format!("is not there yet: {said}, says a look just now; whoever has the run looks every {every}")
            }
            Self::Unseen { message, .. } => format!("cannot be looked at from here: {message}"),
            Self::Abandoned { run, owner, .. } => format!("was begun as run {run} by {owner}, which is gone"),
            Self::Running { run, owner, attempt, task, since } => {
                let task = task.as_ref().map(|task| format!(", task {task}")).unwrap_or_default();
                let since = since.map(|at| format!(", since {}", when(at))).unwrap_or_default();
                format!("runs as {run} on {owner}, attempt {attempt}{task}{since}")
            }
            Self::Retry { attempt, at, message, .. } => {
                let at = at.map(|at| format!(" at about {}", when(at))).unwrap_or_default();
                format!("is tried again, attempt {attempt}{at}, after: {message}")
            }
            Self::JobLimit { active, max } => {
                format!("has all it needs, and queues behind {active} runs of the job (max_active_runs: {max})")
            }
            Self::Slots { owner, .. } => {
                format!("has all it needs, and queues for a free slot of {owner} (execution.tasks_max)")
            }
            Self::NoWorker { placement, .. } => format!("has all it needs, and there is no live worker of {placement}"),
            Self::Pool { pool, .. } => format!(
                "has all it needs, and waits for pool {}: of its {} {} taken by {}",
                pool.name,
                counted(pool.slots as u64, "slot"),
                match pool.taken() {
                    1 => "1 is".to_owned(),
                    n => format!("{} are", count(n as u64)),
                },
                holders_words(&pool.holders)
            ),
            Self::Ended { run, state, message, .. } => {
                let message = message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
                format!("{state} as run {run}{message}")
            }
            Self::More => "is not there; more stands behind it".to_owned(),
        }
    }
}

/// The most holders of a pool's slots that are named.
const HOLDERS_TOLD_MAX: usize = 4;

/// Who has slots of a pool.
fn holders_words(holders: &[Holder]) -> String {
    let words = |holder: &Holder| {
        let Holder { job, ds, run_id, task, process, slots, .. } = holder;
        let slots = if *slots > 1 { format!(", {}", counted(*slots as u64, "slot")) } else { String::new() };
        format!("{job} {ds} (run {run_id}, task {task} on {process}{slots})")
    };
    let mut named: Vec<String> = holders.iter().take(HOLDERS_TOLD_MAX).map(words).collect();
    if holders.len() > HOLDERS_TOLD_MAX {
        named.push(format!("{} more", count((holders.len() - HOLDERS_TOLD_MAX) as u64)));
    }
    named.join(" and ")
}

/// The partitions that are missing, by table.
fn tables_words(missing: &[(String, usize)]) -> String {
    let words = missing.iter().map(|(table, n)| match n {
        1 => format!("a partition of {table}"),
        n => format!("{} partitions of {table}", count(*n as u64)),
    });
    words.collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests;
