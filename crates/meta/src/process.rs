//! Who owns runs, and whether it still lives.

use std::{
    fs, io,
    sync::{Arc, OnceLock},
};

use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};

/// A process, told apart from every other that ever had its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessInfo {
    /// The machine's name, for people.
    pub host: String,
    /// This start of the machine, and the space in which its process numbers count.
    pub boot_id: String,
    /// The process's number.
    pub pid: u32,
    /// When it started, in the kernel's ticks since the machine did; 0 when unknown.
    pub pid_start: u64,
}

/// Asks the operating system about processes; passed in, so that tests can let one die.
pub trait Processes: Send + Sync + 'static {
    /// This process.
    fn this(&self) -> ProcessInfo;

    /// What is to be seen of a process.
    fn life(&self, process: &ProcessInfo) -> Life;
}

/// What a machine knows of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It is on this machine and has not ended; it may stand still.
    There,
    /// Nothing is known but its lease: it is on another machine, or hidden.
    Unknown,
    /// It was on this machine, and is not any more.
    Gone,
}

/// Tells at one moment which processes live.
pub(crate) struct Judge {
    /// The database's time in microseconds.
    pub(crate) now: i64,
    /// Leases that ran out say nothing.
    pub(crate) doubts: bool,
    /// For so many microseconds somebody else may have kept a process from renewing its lease.
    pub(crate) held_up: i64,
    pub(crate) processes: Arc<dyn Processes>,
}

impl Judge {
    /// True while a process's lease runs and nothing says that it is gone, and a little longer for one that is seen to be there.
    pub(crate) fn lives(&self, process: &ProcessInfo, lease_until: i64) -> bool {
        match self.processes.life(process) {
            Life::Gone => false,
            _ if self.doubts || lease_until > self.now => true,
            life => life == Life::There && lease_until + self.held_up > self.now,
        }
    }
}

/// The processes of this machine, as `/proc` shows them. Without a `/proc` only leases count.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemProcesses;

impl Processes for SystemProcesses {
    fn this(&self) -> ProcessInfo {
        // Read once: it is asked for with every look at runs.
        static THIS: OnceLock<ProcessInfo> = OnceLock::new();
        THIS.get_or_init(this_process).clone()
    }

    fn life(&self, process: &ProcessInfo) -> Life {
        let this = self.this();
        if process.boot_id.is_empty()
            || process.boot_id != this.boot_id
            || process.host != this.host
            || this.pid_start == 0
        {
            return Life::Unknown;
        }
        match start_of(process.pid) {
            Ok(start) if start == Some(process.pid_start) => Life::There,
            Ok(_) => Life::Gone,
            // Some systems show nobody the processes of others.
            Err(_) => match i32::try_from(process.pid).ok().and_then(Pid::from_raw).map(test_kill_process) {
                None | Some(Err(Errno::SRCH)) => Life::Gone,
                Some(_) => Life::Unknown,
            },
        }
    }
}

/// Reads who this process is.
fn this_process() -> ProcessInfo {
    let pid = std::process::id();
    let read = |path: &str| fs::read_to_string(path).map(|s| s.trim().to_owned()).unwrap_or_default();
    // Two containers of one machine have the same boot, and processes of the same number.
    let space = fs::read_link("/proc/self/ns/pid").map(|p| p.display().to_string()).unwrap_or_default();
    ProcessInfo {
        host: read("/proc/sys/kernel/hostname"),
        boot_id: format!("{} {space}", read("/proc/sys/kernel/random/boot_id")).trim().to_owned(),
        pid,
        pid_start: start_of(pid).ok().flatten().unwrap_or(0),
    }
}

/// When a process started, in ticks since the machine did (proc(5), field 22 of `stat`); `None` when it has ended and only waits
/// to be reaped. Errors: there is none, or it is not for our eyes.
fn start_of(pid: u32) -> io::Result<Option<u64>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let start = || {
        // The name, field 2, may hold blanks and brackets.
        let (_, rest) = stat.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        let state = fields.next()?;
        if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
    };
    Ok(start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_its_namesake_of_another_time_does_not() {
        let this = SystemProcesses.this();
        assert_eq!(SystemProcesses.life(&this), Life::There, "{this:?}");
        let earlier = ProcessInfo { pid_start: this.pid_start + 1, ..this.clone() };
        assert_eq!(SystemProcesses.life(&earlier), Life::Gone);
        let elsewhere = ProcessInfo { host: "elsewhere".to_owned(), ..earlier.clone() };
        assert_eq!(SystemProcesses.life(&elsewhere), Life::Unknown, "of other machines only the lease tells");
        let before_boot = ProcessInfo { boot_id: "other".to_owned(), ..earlier };
        assert_eq!(SystemProcesses.life(&before_boot), Life::Unknown);
    }

    #[test]
    fn a_child_that_ended_is_gone() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let this = SystemProcesses.this();
        let info = ProcessInfo { pid: child.id(), pid_start: start_of(child.id()).unwrap().unwrap_or(1), ..this };
        child.wait().unwrap();
        assert_eq!(SystemProcesses.life(&info), Life::Gone);
    }
}
