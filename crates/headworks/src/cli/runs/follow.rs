//! Showing logs as they grow.

use std::{collections::BTreeMap, io, process::ExitCode, time::Duration};

use anyhow::Context;
use headworks_flow::exec::{AttemptRecord, RunDetail, whose};

use super::{LogsArgs, detail, heading, is_meant, log_file::read_from};
use crate::{
    app::App,
    fail::{DONE, Failure},
};

/// The pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Shows what a run's attempts write, until the run is over.
pub(super) async fn follow(app: &App, args: &LogsArgs) -> anyhow::Result<ExitCode> {
    if app.out.json {
        return Err(Failure::usage("--follow shows text only", "leave --json or --follow out").into());
    }
    let mut logs = Logs::default();
    let mut waits = false;
    loop {
        // Asked before the logs are read: what is written before the end is shown.
        let detail = detail(app, &args.run).await?;
        let mut files: Vec<&AttemptRecord> = Vec::new();
        for attempt in detail.attempts.iter().filter(|attempt| is_meant(attempt, args)) {
            if files.iter().all(|earlier| earlier.log_path != attempt.log_path) {
                files.push(attempt);
            }
        }
        for first in files {
            logs.show(app, &detail, first, args)?;
        }
        if detail.run.finished_at.is_some() {
            app.note(format_args!("run {} ended: {}", args.run, detail.run.state));
            return Ok(ExitCode::from(DONE));
        }
        if detail.attempts.is_empty() && !std::mem::replace(&mut waits, true) {
            app.note(format_args!("run {} has not begun yet; headworks runs show {0} says why", args.run));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// How much was looked at of each file, by its path.
#[derive(Default)]
struct Logs {
    seen: BTreeMap<String, usize>,
    /// The attempt whose lines were shown last.
    last: Option<u32>,
}

impl Logs {
    /// Shows what has come to the file that holds the log of `first` and of others.
    fn show(&mut self, app: &App, run: &RunDetail, first: &AttemptRecord, args: &LogsArgs) -> anyhow::Result<()> {
        let path = app.logs_dir()?.join(&first.log_path);
        let from = self.seen.get(&first.log_path).copied();
        let is_over = run.run.finished_at.is_some();
        let text = match read_from(&path, from.unwrap_or(0) as u64, is_over) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if from.is_none() {
                    self.seen.insert(first.log_path.clone(), 0);
                    app.note(format_args!("the log of attempt {} is not on this machine", first.attempt));
                }
                return Ok(());
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read the log `{}`", path.display())),
        };
        let is_alone = run.attempts.len() == 1 && first.task.is_none();
        let of_file: Vec<&AttemptRecord> = run.attempts.iter().filter(|a| a.log_path == first.log_path).collect();
        let (looked_at, pieces) = by_attempt(&text, &of_file, is_over);
        self.seen.insert(first.log_path.clone(), from.unwrap_or(0) + looked_at);
        for (attempt, lines) in pieces.into_iter().filter(|(attempt, _)| is_meant(attempt, args)) {
            if self.last.replace(attempt.attempt) != Some(attempt.attempt) && !is_alone {
                app.out.line(heading(app, attempt))?;
            }
            app.out.data(&lines)?;
        }
        Ok(())
    }
}

/// The lines of a text, in their order, by the attempts of its file, which come sorted; and how many bytes they were.
///
/// An attempt that is not kept yet will be with the next look: all from its first line on waits for that.
fn by_attempt<'a>(
    text: &[u8],
    of_file: &[&'a AttemptRecord],
    is_over: bool,
) -> (usize, Vec<(&'a AttemptRecord, Vec<u8>)>) {
    let mut looked_at = 0;
    let mut pieces: Vec<(&AttemptRecord, Vec<u8>)> = Vec::new();
    for whole in text.split_inclusive(|byte| *byte == b'\n') {
        let (number, line) = whose(whole);
        let attempt = match number {
            Some(number) => of_file.binary_search_by_key(&number, |attempt| attempt.attempt).ok().map(|at| of_file[at]),
            None => of_file.first().copied(),
        };
        if attempt.is_none() && !is_over {
            break;
        }
        looked_at += whole.len();
        match (attempt, pieces.last_mut()) {
            (Some(attempt), Some((last, lines))) if last.attempt == attempt.attempt => lines.extend_from_slice(line),
            (Some(attempt), _) => pieces.push((attempt, line.to_vec())),
            (None, _) => {}
        }
    }
    (looked_at, pieces)
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use headworks_flow::State;

    use super::*;

    #[test]
    fn lines_of_an_attempt_that_is_not_kept_yet_wait() {
        let attempt = |attempt| AttemptRecord {
            attempt,
            task: None,
            state: State::Running,
            started_at: DateTime::UNIX_EPOCH,
            finished_at: None,
            failure: None,
            log_path: "x.log".to_owned(),
            log_bytes: 0,
        };
        let attempts = [attempt(1), attempt(3)];
        let of_file: Vec<&AttemptRecord> = attempts.iter().collect();
        let check = |text: &str, is_over: bool, looked_at: usize, expected: &[(u32, &str)]| {
            let (bytes, pieces) = by_attempt(text.as_bytes(), &of_file, is_over);
            let shown: Vec<_> = pieces.iter().map(|(a, lines)| (a.attempt, str::from_utf8(lines).unwrap())).collect();
            assert_eq!((bytes, &shown[..]), (looked_at, expected), "{text}");
        };
        check("1 T a\n3 T b\n3 T c\n1 T d\n", false, 24, &[(1, "T a\n"), (3, "T b\nT c\n"), (1, "T d\n")]);
        check("1 T a\n2 T b\n1 T c\n", false, 6, &[(1, "T a\n")]);
        // Nobody will keep it any more.
        check("1 T a\n2 T b\n1 T c\n", true, 18, &[(1, "T a\nT c\n")]);
        // A version before had a file for each attempt.
        check("T a\nT b\n", false, 8, &[(1, "T a\nT b\n")]);
    }
}
