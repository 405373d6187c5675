//! The process between Headworks and a task's command: `headworks supervise`, which nobody types.
//!
//! It starts the command in a process group of its own and sees to it that nothing of it is left once the command ended, once
//! Headworks says stop, or once Headworks itself is gone, however it went. That a process is told of its parent's death would
//! need code between fork and exec; so this one holds the end of a pipe whose other end dies with Headworks. It adopts
//! whatever the command forks off (`PR_SET_CHILD_SUBREAPER`), so that daemons are found too.
//!
//! stdin brings the [`Order`] as one line, then `stop` or the end. stdout takes [`Report`]s, a line each. stderr is where the
//! command's stdout and stderr go.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{self, Write},
    os::{fd::AsFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitOptions, WaitStatus},
};
use serde::{Deserialize, Serialize};

/// What the supervisor is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The program and its arguments.
    pub(crate) argv: Vec<String>,
    /// Its whole environment.
    pub(crate) env: BTreeMap<String, String>,
    /// The folder it runs in.
    pub(crate) dir: PathBuf,
    /// A folder for this attempt alone: made before, removed after.
    pub(crate) work: PathBuf,
    /// The text of [`script_path`].
    pub(crate) script: Option<String>,
    /// From the polite signal to the one that kills.
    pub(crate) kill_after_ms: u64,
    /// The most memory of all its processes.
    pub(crate) memory_max: Option<u64>,
    /// The most bytes of [`output_path`].
    pub(crate) output_bytes_max: usize,
}

/// What the supervisor tells.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// The command could not be started.
    NotStarted(String),
    /// The command runs as this process, the leader of its group.
    Started(i32),
    /// The command ended, and nothing of it is left.
    Ended(Ended),
}

/// How a command ended.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// Its exit code, when it ended by itself.
    pub(crate) exit: Option<i32>,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
    /// What its processes took when that was too much.
    pub(crate) memory: Option<u64>,
    /// How many processes it had left running.
    pub(crate) left: usize,
    /// What it wrote to its output file.
    pub(crate) output: Option<String>,
    /// The size of that file, when it is too large to be told.
    pub(crate) output_too_large: Option<u64>,
}

/// Where a task writes what later tasks read.
pub(crate) fn output_path(work: &Path) -> PathBuf {
    work.join("output.json")
}

/// Where the text of a script stands.
pub(crate) fn script_path(work: &Path) -> PathBuf {
    work.join("script.py")
}

/// Once Headworks is gone, the command has this long: whoever takes the run over should not find it at work.
const GONE_GRACE: Duration = Duration::from_secs(2);
/// What a command left running has this long to end.
const LEFT_GRACE: Duration = Duration::from_secs(1);
/// The pause between two kills, until all are gone.
const KILL_EVERY: Duration = Duration::from_millis(50);
/// The pause between two looks at the memory.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The pause when there is nothing to look at.
const IDLE: Duration = Duration::from_secs(3600);

/// Runs the supervisor to its end.
pub(crate) fn main() -> ExitCode {
    match supervise() {
        Ok(ended) => report(&Report::Ended(ended)),
        Err(error) => report(&Report::NotStarted(error.to_string())),
    }
    ExitCode::SUCCESS
}

fn report(report: &Report) {
    if let Ok(mut line) = serde_json::to_string(report) {
        line.push('\n');
        // Nobody may be there to read it.
        let _ = io::stdout().write_all(line.as_bytes()).and_then(|()| io::stdout().flush());
    }
}

fn supervise() -> io::Result<Ended> {
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    let order: Order = serde_json::from_str(&line)?;
    let result = make_work(&order).and_then(|()| carry_out(&order));
    // What cannot be removed is small, and nobody reads it.
    let _ = fs::remove_dir_all(&order.work);
    result
}

fn make_work(order: &Order) -> io::Result<()> {
    fs::create_dir_all(&order.work)?;
    fs::set_permissions(&order.work, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    match &order.script {
        Some(script) => fs::write(script_path(&order.work), script),
        None => Ok(()),
    }
}

enum Event {
    Stop,
    Gone,
    Reaped(Pid, WaitStatus),
    /// There is no child any more.
    Alone,
}

fn carry_out(order: &Order) -> io::Result<Ended> {
    #[cfg(target_os = "linux")]
    {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        // When the machine runs out of memory a task goes before Headworks does; not all systems let us say so.
        let _ = fs::write("/proc/self/oom_score_adj", "500");
    }
    let mut ended = Ended::default();
    let child = start(order)?;
    report(&Report::Started(child.as_raw_nonzero().get()));
    let (tell, events) = mpsc::channel();
    let told = tell.clone();
    thread::spawn(move || listen(&told));
    thread::spawn(move || reap(&tell));
    let mut group = Group { leader: child, leader_is_ours: true, kill_at: None };
    loop {
        let wait = match (group.kill_at, order.memory_max) {
            (Some(at), _) => at.saturating_duration_since(Instant::now()).max(KILL_EVERY),
            (None, Some(_)) => LOOK_EVERY,
            (None, None) => IDLE,
        };
        match events.recv_timeout(wait) {
            Ok(Event::Stop) => group.end_within(Duration::from_millis(order.kill_after_ms)),
            Ok(Event::Gone) => group.end_within(Duration::from_millis(order.kill_after_ms).min(GONE_GRACE)),
            Ok(Event::Reaped(pid, status)) if pid == child => {
                (ended.exit, ended.signal) = (status.exit_status(), status.terminating_signal());
                group.leader_is_ours = false;
                if group.kill_at.is_none() {
                    ended.left = below(rustix::process::getpid()).len();
                }
                if ended.left > 0 {
                    group.end_within(LEFT_GRACE);
                }
            }
            Ok(Event::Reaped(..)) | Err(RecvTimeoutError::Timeout) => {}
            Ok(Event::Alone) | Err(RecvTimeoutError::Disconnected) => break,
        }
        if let Some(max) = order.memory_max.filter(|_| ended.memory.is_none() && group.kill_at.is_none()) {
            let taken = memory_of(&below(rustix::process::getpid()));
            if taken > max {
                ended.memory = Some(taken);
                group.end_within(Duration::ZERO);
            }
        }
        if group.kill_at.is_some_and(|at| at <= Instant::now()) {
            group.signal(Signal::KILL);
        }
    }
    take_output(order, &mut ended);
    Ok(ended)
}

fn start(order: &Order) -> io::Result<Pid> {
    let (program, arguments) = order.argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let output = || io::stderr().as_fd().try_clone_to_owned().map(Stdio::from);
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(&order.env)
        .current_dir(&order.dir)
        .stdin(Stdio::null())
        .stdout(output()?)
        .stderr(output()?)
        .process_group(0)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("`{program}` cannot be started: {error}")))?;
    i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::other("it has no process number"))
}

/// Listens to Headworks until that is gone.
fn listen(tell: &Sender<Event>) {
    let mut line = String::new();
    while io::stdin().read_line(&mut line).is_ok_and(|n| n > 0) {
        if line.trim() == "stop" && tell.send(Event::Stop).is_err() {
            return;
        }
        line.clear();
    }
    let _ = tell.send(Event::Gone);
}

/// Takes the ends of all children, adopted ones too.
fn reap(tell: &Sender<Event>) {
    loop {
        let event = match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) => Event::Reaped(pid, status),
            Ok(None) | Err(Errno::INTR) => continue,
            Err(_) => Event::Alone,
        };
        let alone = matches!(event, Event::Alone);
        if tell.send(event).is_err() || alone {
            return;
        }
    }
}

/// The command's processes.
struct Group {
    leader: Pid,
    /// True until the leader is reaped: as long its number is nobody else's.
    leader_is_ours: bool,
    kill_at: Option<Instant>,
}

impl Group {
    /// Asks all to end, and remembers when they are killed.
    fn end_within(&mut self, grace: Duration) {
        let at = Instant::now() + grace;
        if self.kill_at.is_none() && !grace.is_zero() {
            self.signal(Signal::TERM);
        }
        self.kill_at = Some(self.kill_at.map_or(at, |earlier| earlier.min(at)));
    }

    fn signal(&self, signal: Signal) {
        if self.leader_is_ours {
            let _ = rustix::process::kill_process_group(self.leader, signal);
        }
        for pid in below(rustix::process::getpid()) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

/// All processes below one that still run, as `/proc` shows them; without a `/proc` none.
fn below(root: Pid) -> Vec<Pid> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        if let Some(parent) = parent_of(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut open = vec![root.as_raw_nonzero().get()];
    while let Some(parent) = open.pop() {
        let next = children.remove(&parent).unwrap_or_default();
        found.extend(next.iter().copied().filter_map(Pid::from_raw));
        open.extend(next);
    }
    found
}

/// The parent of a process that has not ended (proc(5), fields 3 and 4 of `stat`).
fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, field 2, may hold blanks and brackets.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.next()?.parse().ok() }
}

/// The memory that is the processes' own, swapped out or not, in bytes; what they share with files counts for nobody.
fn memory_of(processes: &[Pid]) -> u64 {
    processes.iter().map(|pid| own_memory(&format!("/proc/{}/status", pid.as_raw_nonzero()))).sum()
}

fn own_memory(status: &str) -> u64 {
    let Ok(text) = fs::read_to_string(status) else { return 0 };
    let kib = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let counts = matches!(name, "RssAnon" | "RssShmem" | "VmSwap");
        if counts { value.trim().strip_suffix(" kB")?.parse::<u64>().ok() } else { None }
    };
    text.lines().filter_map(kib).sum::<u64>() * 1024
}

fn take_output(order: &Order, ended: &mut Ended) {
    let path = output_path(&order.work);
    let size = fs::metadata(&path).map_or(0, |file| file.len());
    if size > order.output_bytes_max as u64 {
        ended.output_too_large = Some(size);
    } else if size > 0 {
        ended.output = fs::read(&path).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_below_are_found_with_their_memory() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).unwrap();
        let found = below(rustix::process::getpid());
        assert!(found.contains(&pid), "{found:?}");
        assert!(!found.contains(&rustix::process::getpid()));
        let own = memory_of(&[rustix::process::getpid()]);
        assert!(own > 100 << 10, "{own}");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!below(rustix::process::getpid()).contains(&pid));
    }
}
