//! Showing logs as they grow.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use headworks_flow::exec::{AttemptRecord, RunDetail};

use super::{LogsArgs, detail, heading, is_meant};
use crate::{
    app::App,
    fail::{DONE, Failure},
};

/// The pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A line that is longer is shown before its end.
const LINE_MAX: usize = 64 << 10;

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
        for attempt in detail.attempts.iter().filter(|attempt| is_meant(attempt, args)) {
            logs.show(app, &detail, attempt)?;
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

/// What was shown of each log, by its path.
#[derive(Default)]
struct Logs {
    shown: BTreeMap<String, u64>,
    /// The attempt whose log was shown last.
    last: Option<u32>,
}

impl Logs {
    fn show(&mut self, app: &App, run: &RunDetail, attempt: &AttemptRecord) -> anyhow::Result<()> {
        let path = app.logs_dir()?.join(&attempt.log_path);
        let from = self.shown.get(&attempt.log_path).copied();
        let text = match read_from(&path, from.unwrap_or(0), attempt.finished_at.is_some()) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if from.is_none() {
                    self.shown.insert(attempt.log_path.clone(), 0);
                    app.note(format_args!("the log of attempt {} is not on this machine", attempt.attempt));
                }
                return Ok(());
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read the log `{}`", path.display())),
        };
        self.shown.insert(attempt.log_path.clone(), from.unwrap_or(0) + text.len() as u64);
        if text.is_empty() {
            return Ok(());
        }
        let is_alone = run.attempts.len() == 1 && attempt.task.is_none();
        if self.last.replace(attempt.attempt) != Some(attempt.attempt) && !is_alone {
            app.out.line(heading(app, attempt))?;
        }
        app.out.data(&text)
    }
}

/// Reads what has come since; the beginning of a line waits for its end, so that no two tasks share one.
fn read_from(path: &Path, from: u64, is_over: bool) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    if !is_over && text.len() - whole < LINE_MAX {
        text.truncate(whole);
    }
    Ok(text)
}
