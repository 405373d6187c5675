//! The command of a task: started under a supervisor, listened to, and never left running.

use std::{fs::File, io::Write, path::PathBuf, process::Stdio, time::Duration};

use headworks_domain::ErrorKind;
use headworks_flow::Failure;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStderr, ChildStdout, Command},
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use super::output::Output;
use crate::supervise::{Ended, Order, Report};

/// After the polite signal and the one that kills, a process gets this long to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(20);
/// What is still in the pipe when the last process is gone is read within this.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);
/// A century, for tasks without a timeout.
const NEVER: Duration = Duration::from_secs(100 * 365 * 86_400);
/// The bytes read at once.
const READ_BYTES: usize = 64 * 1024;

/// Counts supervisors that are not gone yet, so that a command ends after its children.
#[derive(Clone, Default)]
pub(crate) struct Children(watch::Sender<usize>);

impl Children {
    fn one_more(&self) -> OneChild {
        self.0.send_modify(|n| *n += 1);
        OneChild(self.0.clone())
    }

    /// Waits until all are gone, so long at most.
    pub(crate) async fn gone(&self, within: Duration) {
        let mut count = self.0.subscribe();
        let _ = timeout(within, count.wait_for(|n| *n == 0)).await;
    }
}

struct OneChild(watch::Sender<usize>);

impl Drop for OneChild {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n = n.saturating_sub(1));
    }
}

/// How a command came to its end.
pub(super) enum Outcome {
    /// By itself, or because it took too much memory.
    Ended(Ended),
    /// Its time was over.
    TimedOut,
}

/// Runs a command to its end. Dropping the future stops it, politely first.
///
/// Errors: `TASK_NOT_STARTED` (not retried), `TASK_SUPERVISOR` when the supervisor itself is gone.
pub(super) async fn run(
    order: &Order,
    limit: Option<Duration>,
    output: &mut Output,
    children: &Children,
) -> Result<Outcome, Failure> {
    let mut running = Running::start(order, children).await.map_err(|error| broken(&error.to_string()))?;
    let mut ends = Instant::now() + limit.unwrap_or(NEVER).min(NEVER);
    let (mut timed_out, mut given_up, mut open, mut leader) = (false, false, true, None);
    let mut piece = vec![0; READ_BYTES];
    let report = loop {
        tokio::select! {
            read = read_some(&mut running.output, &mut piece), if open => match read {
                0 => open = false,
                n => output.take(&piece[..n]),
            },
            line = running.reports.next_line() => match line.ok().flatten().map(|line| serde_json::from_str(&line)) {
                Some(Ok(Report::Started(pid))) => leader = Some(pid),
                Some(Ok(report)) => break Some(report),
                _ => break None,
            },
            () = sleep_until(ends) => {
                if timed_out {
                    // A process that even a kill does not end hangs in the kernel: nobody can wait for it.
                    given_up = true;
                    break None;
                }
                timed_out = true;
                ends = Instant::now() + Duration::from_millis(order.kill_after_ms) + GONE_WITHIN;
                running.control.stop();
            }
        }
    };
    if report.is_none() && !given_up {
        // The supervisor was killed, and nobody else ends its command.
        if let Some(leader) = leader.and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process_group(leader, rustix::process::Signal::KILL);
        }
        let _ = tokio::fs::remove_dir_all(&order.work).await;
    }
    if open && !given_up {
        let drain = async {
            loop {
                match read_some(&mut running.output, &mut piece).await {
                    0 => break,
                    n => output.take(&piece[..n]),
                }
            }
        };
        let _ = timeout(DRAIN_WITHIN, drain).await;
    }
    output.end();
    match report {
        _ if timed_out => Ok(Outcome::TimedOut),
        Some(Report::Ended(ended)) => Ok(Outcome::Ended(ended)),
        Some(Report::NotStarted(reason)) => {
            let hint = "is the program installed, and is it on the PATH of headworks?";
            Err(Failure::new(ErrorKind::Invalid, "TASK_NOT_STARTED", reason).with_hint(hint))
        }
        Some(Report::Started(_)) | None => Err(broken("it was killed")),
    }
}

/// Reads what is there; 0 at the end.
async fn read_some(pipe: &mut Option<ChildStderr>, piece: &mut [u8]) -> usize {
    match pipe {
        Some(pipe) => pipe.read(piece).await.unwrap_or(0),
        None => 0,
    }
}

fn broken(reason: &str) -> Failure {
    Failure::new(ErrorKind::Unavailable, "TASK_SUPERVISOR", format!("the supervisor of the command is gone: {reason}"))
}

/// A supervisor at work. Dropped, it stops its command.
struct Running {
    control: Control,
    reports: tokio::io::Lines<BufReader<ChildStdout>>,
    output: Option<ChildStderr>,
    child: Option<(Child, OneChild)>,
}

impl Running {
    async fn start(order: &Order, children: &Children) -> std::io::Result<Self> {
        let one = children.one_more();
        let mut child = Command::new(own_program())
            .arg("supervise")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C in the terminal is for Headworks, which stops its children itself.
            .process_group(0)
            .spawn()?;
        let gone = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let mut control = child.stdin.take().ok_or_else(gone)?;
        let reports = BufReader::new(child.stdout.take().ok_or_else(gone)?).lines();
        let output = child.stderr.take();
        let mut line = serde_json::to_string(order)?;
        line.push('\n');
        control.write_all(line.as_bytes()).await?;
        control.flush().await?;
        let control = Control(Some(File::from(control.into_owned_fd()?)));
        Ok(Self { control, reports, output, child: Some((child, one)) })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.control.stop();
        let (Some((mut child, one)), control) = (self.child.take(), self.control.0.take()) else { return };
        let mut output = self.output.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // Nobody reads its last words, but a broken pipe would end it before it has tidied up.
                let mut piece = vec![0; READ_BYTES];
                while read_some(&mut output, &mut piece).await > 0 {}
                let _ = child.wait().await;
                // Closed earlier, the pipe would say that Headworks is gone.
                drop((one, control));
            });
        }
    }
}

/// The pipe by which a supervisor knows that Headworks is there.
struct Control(Option<File>);

impl Control {
    /// Asks for the polite stop.
    fn stop(&mut self) {
        if let Some(pipe) = &mut self.0 {
            // A supervisor that is gone needs none.
            let _ = pipe.write_all(b"stop\n");
        }
    }
}

/// This program, even when its file was replaced meanwhile.
fn own_program() -> PathBuf {
    let running = PathBuf::from("/proc/self/exe");
    if running.exists() { running } else { std::env::current_exe().unwrap_or_else(|_| PathBuf::from("headworks")) }
}
