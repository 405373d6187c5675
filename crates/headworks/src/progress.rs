//! What a person sees while runs are at work: a bar on a terminal, a line every few seconds elsewhere, nothing with `--quiet`.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use headworks_domain::RunId;
use headworks_flow::{
    State,
    exec::{Counts, Progress, RunProgress},
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::{Out, Style, count, duration, styled};

/// How often the view moves on without news.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often a line comes where nothing can be redrawn.
const LINE_EVERY_SECS: i64 = 5;
/// The most tasks named under the bar.
const CURRENT_MAX: usize = 4;
/// The most failures told at once, while runs are at work; the summary has the rest.
const FAILURES_TOLD_MAX: usize = 10;

/// Shows how runs move on, until it is dropped.
pub(crate) struct View {
    out: Out,
    started: DateTime<Utc>,
    bar: Option<ProgressBar>,
    last_line: DateTime<Utc>,
    counts: Counts,
    current: BTreeMap<RunId, String>,
    failures_told: usize,
}

impl View {
    /// Begins to show.
    pub(crate) fn new(out: Out, now: DateTime<Utc>) -> Self {
        let draws = out.stderr_tty && !out.quiet && !out.json;
        let bar = draws.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
            let template =
                if out.stderr_color { "{prefix}  {bar:30.green}  {msg}" } else { "{prefix}  {bar:30}  {msg}" };
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style.progress_chars("━╸─"));
            bar
        });
        Self {
            out,
            started: now,
            bar,
            last_line: now,
            counts: Counts::default(),
            current: BTreeMap::new(),
            failures_told: 0,
        }
    }

    /// Takes in what happened; cheap, for it is called thousands of times a second.
    pub(crate) fn take(&mut self, progress: &Progress) {
        match progress {
            Progress::Planned(counts) => self.counts = *counts,
            Progress::Run(run, counts) => {
                self.counts = *counts;
                if run.state == State::Running {
                    self.current.insert(run.run_id.clone(), format!("{} {}", run.job, run.ds));
                } else {
                    self.current.remove(&run.run_id);
                    self.tell_failure(run);
                }
            }
            Progress::Task { run_id, job, task, state } => {
                if let Some(text) = self.current.get_mut(run_id).filter(|_| *state == State::Running) {
                    let whole = text.split(": ").next().unwrap_or(job.as_str()).to_owned();
                    *text = format!("{whole}: {task}");
                }
            }
        }
    }

    /// Draws what was taken in, or writes a line when its time has come.
    pub(crate) fn show(&mut self, now: DateTime<Utc>) {
        if let Some(bar) = &self.bar {
            let finished = finished(&self.counts);
            bar.set_length(self.counts.total as u64);
            bar.set_position(finished);
            bar.set_prefix(format!("{}/{}", count(finished), count(self.counts.total as u64)));
            bar.set_message(self.words(now, "\n  "));
        } else if (now - self.last_line).num_seconds() >= LINE_EVERY_SECS && !self.out.json {
            self.last_line = now;
            let done = format!("{} of {} runs", count(finished(&self.counts)), count(self.counts.total as u64));
            self.out.note(format_args!("{done}, {}", self.words(now, "; ")));
        }
    }

    /// Says something without disturbing the bar.
    pub(crate) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => self.out.note(text),
        }
    }

    fn tell_failure(&mut self, run: &RunProgress) {
        let Some(failure) = &run.failure else { return };
        if self.failures_told >= FAILURES_TOLD_MAX || self.out.json {
            return;
        }
        self.failures_told += 1;
        let (word, style) = if run.state == State::Retry { ("retries", Style::Yellow) } else { ("failed", Style::Red) };
        let word = styled(self.out.stderr_color, style, word);
        self.say(&format!("{word}: {} {}: {}", run.job, run.ds, failure.message));
        if self.failures_told == FAILURES_TOLD_MAX {
            self.say("further failures come with the summary");
        }
    }

    fn words(&self, now: DateTime<Utc>, between: &str) -> String {
        let c = &self.counts;
        let mut parts = vec![rate(c, self.started, now)];
        for (n, word) in [(c.running, "running"), (c.waiting, "waiting"), (c.retry, "to retry"), (c.failed, "failed")] {
            if n > 0 {
                parts.push(format!("{} {word}", count(n as u64)));
            }
        }
        if c.rows > 0 {
            parts.push(format!("{} rows", count(c.rows)));
        }
        let mut text = parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(", ");
        for task in self.current.values().take(CURRENT_MAX) {
            text += between;
            text += task;
        }
        if self.current.len() > CURRENT_MAX {
            text += &format!("{between}and {} more", self.current.len() - CURRENT_MAX);
        }
        text
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn finished(counts: &Counts) -> u64 {
    (counts.done_before + counts.success + counts.failed + counts.cancelled) as u64
}

/// Runs per second since the start, and the time that the rest will take at that pace.
fn rate(counts: &Counts, started: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let millis = (now - started).num_milliseconds();
    let here = counts.success + counts.failed;
    if here == 0 || millis < 500 {
        return String::new();
    }
    let per_second = here as f64 * 1000.0 / millis as f64;
    let left = (counts.total as u64).saturating_sub(finished(counts)) as f64 / per_second;
    let left = duration(TimeDelta::milliseconds((left * 1000.0) as i64));
    if per_second >= 10.0 {
        format!("{per_second:.0}/s, {left} left")
    } else {
        format!("{per_second:.1}/s, {left} left")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quiet() -> Out {
        Out { json: false, quiet: true, stdout_tty: false, stderr_tty: false, stdout_color: false, stderr_color: false }
    }

    #[test]
    fn the_rate_tells_what_is_left() {
        let start = DateTime::from_timestamp(0, 0).unwrap();
        let check = |success, done_before, total, secs, expected: &str| {
            let counts = Counts { total, success, done_before, ..Counts::default() };
            assert_eq!(rate(&counts, start, start + TimeDelta::seconds(secs)), expected);
        };
        check(0, 5, 10, 5, "");
        check(100, 0, 300, 10, "10/s, 20.0 s left");
        check(1, 0, 4, 10, "0.1/s, 30.0 s left");
        check(100, 100, 300, 10, "10/s, 10.0 s left");
    }

    #[test]
    fn the_words_follow_runs_and_tasks() {
        let start = DateTime::from_timestamp(0, 0).unwrap();
        let mut view = View::new(quiet(), start);
        let counts = Counts { total: 3, running: 1, waiting: 2, ..Counts::default() };
        let mut run = RunProgress {
            trigger: headworks_flow::exec::Trigger::Manual,
            run_id: "r1".parse().unwrap(),
            job: "flights".parse().unwrap(),
            interval: headworks_domain::Interval::new(start, start + TimeDelta::days(1)).unwrap(),
            ds: "2013-01-01".parse().unwrap(),
            state: State::Running,
            attempt: 1,
            rows: 0,
            took: None,
            failure: None,
        };
        view.take(&Progress::Planned(counts));
        view.take(&Progress::Run(run.clone(), counts));
        view.take(&Progress::Task {
            run_id: run.run_id.clone(),
            job: run.job.clone(),
            task: "stage".parse().unwrap(),
            state: State::Running,
        });
        assert_eq!(view.words(start, "; "), "1 running, 2 waiting; flights 2013-01-01: stage");
        run.state = State::Success;
        view.take(&Progress::Run(run, Counts { total: 3, success: 1, waiting: 2, rows: 1234, ..Counts::default() }));
        assert_eq!(view.words(start, "; "), "2 waiting, 1,234 rows");
    }
}
