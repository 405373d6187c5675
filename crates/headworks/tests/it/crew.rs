//! Processes that serve a project, and what is done to them: killed, stopped, cut off.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use headworks_domain::{Clock, Ds, SystemClock};
use rustix::process::{Pid, Signal};

use crate::project::{Project, outcome};

/// How long a test waits for what should come within a second or two.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A process that serves; killed when the test is done with it.
pub(crate) struct Serving(Option<Child>);

impl Serving {
    pub(crate) fn start(mut command: Command) -> Self {
        Self(Some(command.spawn().unwrap()))
    }

    /// Starts one of many over a long time: what it says goes to a file, for a pipe that nobody reads would hold it up.
    pub(crate) fn start_into(mut command: Command, log: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).unwrap();
        Self::start({
            command.stdout(Stdio::null()).stderr(log);
            command
        })
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(self.0.as_ref().unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    pub(crate) fn kill(mut self) {
        let mut child = self.0.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Stops it politely; what it wrote.
    pub(crate) fn stop(mut self) -> String {
        self.signal(Signal::TERM);
        let outcome = outcome(self.0.take().unwrap());
        assert_eq!(outcome.code, 0, "{outcome:?}");
        outcome.stderr
    }

    /// True once it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.as_mut().unwrap().try_wait().unwrap().is_some()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Asks again until the answer is there.
pub(crate) fn until<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    until_within(PATIENCE, what, ask)
}

pub(crate) fn until_within<T>(patience: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < patience, "waited {patience:?} for {what}");
        pass(Duration::from_millis(50));
    }
}

/// Lets time pass for processes that tell nobody how far they are.
pub(crate) fn pass(time: Duration) {
    let end = Instant::now() + time;
    while let Some(rest) = end.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
        std::thread::park_timeout(rest);
    }
}

/// A day so many days ago.
pub(crate) fn days_ago(days: u64) -> String {
    Ds::from(SystemClock.now().date_naive()).plus_days(-i64::try_from(days).unwrap()).to_string()
}

/// Numbers that look random and follow from a seed.
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % end
    }
}

/// True while a process is there and no zombie.
pub(crate) fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// The processes whose working folder is the project's: those that serve it, and whatever they have started.
pub(crate) fn processes_in(project: &Project) -> Vec<(i32, String)> {
    let root = fs::canonicalize(project.path()).unwrap();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let of_ours = |pid: i32| {
        let cwd: PathBuf = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        cwd.starts_with(&root).then(|| (pid, String::from_utf8_lossy(&line).replace('\0', " ")))
    };
    pids.filter_map(of_ours).collect()
}

/// A process and all below it, itself first.
pub(crate) fn family(of: Pid) -> Vec<Pid> {
    let parent_of = |pid: i32| -> Option<i32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    let pids: Vec<(i32, i32)> = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| Some((pid, parent_of(pid)?)))
        .collect();
    let mut found = vec![of.as_raw_nonzero().get()];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(pids.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.into_iter().filter_map(Pid::from_raw).collect()
}
