//! The log of one attempt: a plain file with a time on every line.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use headworks_domain::{Clock, Interval, JobName, RunId};

use crate::machine::Failure;

/// The most bytes that wait in memory; short logs, which are nearly all, cost one write.
const BUFFER_BYTES_MAX: usize = 32 * 1024;

/// The bytes of a line's time and end.
const STAMP_BYTES: u64 = 26;

/// Writes the log of one attempt. Clones write to the same file; the last one to go writes what is left.
///
/// Lines read `2013-01-02T05:00:00.123Z text`. Errors of the disk never fail an attempt: the log ends there, and a warning
/// goes to the program's own log.
#[derive(Clone)]
pub struct AttemptLog {
    inner: Arc<Mutex<Inner>>,
    clock: Arc<dyn Clock>,
}

struct Inner {
    file_path: PathBuf,
    relative: String,
    file: Option<File>,
    buffer: String,
    bytes: u64,
    bytes_max: u64,
    left_out: u64,
    broken: bool,
}

impl AttemptLog {
    /// The path below the folder of logs: `<job>/<month>/<start>-<run>-<fence>.<attempt>.log`, as
    /// `flights/2013-01/20130101T050000Z-m1-7-42.1.log`.
    ///
    /// With the fence, because attempts that a process began in its last moment may not be kept: the next owner numbers its own from
    /// what is, and would go on in the logs of the lost ones.
    ///
    /// Not a folder per interval: each would be one more inode to make, as dear as the log itself.
    pub fn path_of(job: &JobName, interval: &Interval, run_id: &RunId, fence: i64, attempt: u32) -> String {
        format!("{job}/{}-{run_id}-{fence}.{attempt}.log", interval.start().format("%Y-%m/%Y%m%dT%H%M%SZ"))
    }

    /// A log at `relative` below `folder`, of at most `bytes_max` bytes and some last words. The file comes with the first write.
    pub fn new(folder: &Path, relative: String, bytes_max: u64, clock: Arc<dyn Clock>) -> Self {
        let inner = Inner {
            file_path: folder.join(&relative),
            relative,
            file: None,
            buffer: String::new(),
            bytes: 0,
            bytes_max,
            left_out: 0,
            broken: false,
        };
        Self { inner: Arc::new(Mutex::new(inner)), clock }
    }

    /// Adds a line; each line of a longer text gets the time. What goes beyond the log's bound is left out and counted.
    pub fn line(&self, text: impl AsRef<str>) {
        let time = self.time();
        let mut inner = self.lock();
        for line in text.as_ref().lines() {
            let bytes = line.len() as u64 + STAMP_BYTES;
            if inner.left_out > 0 || inner.bytes + bytes > inner.bytes_max {
                if inner.left_out == 0 {
                    let max = crate::units::ByteSize::from_bytes(inner.bytes_max);
                    let cut = format!("--- cut: the log has reached its {max} (`execution.log_bytes_max`) ---");
                    inner.add(&time, &cut);
                }
                inner.left_out += line.len() as u64 + 1;
                continue;
            }
            inner.add(&time, line);
        }
    }

    /// Adds lines that must be read even when the log is full; they should be few.
    pub fn last_words(&self, text: impl AsRef<str>) {
        let time = self.time();
        let mut inner = self.lock();
        for line in text.as_ref().lines() {
            inner.add(&time, line);
        }
    }

    /// Counts output that is left out, once [`AttemptLog::is_full`].
    pub fn leave_out(&self, bytes: u64) {
        self.lock().left_out += bytes;
    }

    /// True when nothing more goes in but last words.
    pub fn is_full(&self) -> bool {
        self.lock().left_out > 0
    }

    /// Adds a failure with its next step.
    pub fn failure(&self, failure: &Failure) {
        self.last_words(format!("error: {} [{}]", failure.message, failure.code));
        if let Some(hint) = &failure.hint {
            self.last_words(format!("hint: {hint}"));
        }
    }

    fn time(&self) -> String {
        self.clock.now().format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
    }

    /// Writes what waits in memory to the file.
    pub fn flush(&self) {
        self.lock().write_out();
    }

    /// The bytes logged so far.
    pub fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// The path below the folder of logs.
    pub fn relative_path(&self) -> String {
        self.lock().relative.clone()
    }

    /// The file's path.
    pub fn file_path(&self) -> PathBuf {
        self.lock().file_path.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic between two lines leaves a log that can still be written.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Inner {
    fn add(&mut self, time: &str, line: &str) {
        self.bytes += line.len() as u64 + STAMP_BYTES;
        for part in [time, " ", line, "\n"] {
            self.buffer.push_str(part);
        }
        if self.buffer.len() >= BUFFER_BYTES_MAX {
            self.write_out();
        }
    }

    fn write_out(&mut self) {
        if self.buffer.is_empty() || self.broken {
            return;
        }
        let buffer = std::mem::take(&mut self.buffer);
        let written = self.opened().and_then(|mut file| file.write_all(buffer.as_bytes()));
        if let Err(error) = written {
            tracing::warn!(path = %self.file_path.display(), %error, "a log cannot be written");
            self.broken = true;
        }
    }

    fn opened(&mut self) -> std::io::Result<&File> {
        if self.file.is_none() {
            let open = || OpenOptions::new().create(true).append(true).open(&self.file_path);
            // The folder is there but for the first log of a month, and looking for it costs as much as the file.
            let opened = open().or_else(|error| match self.file_path.parent() {
                Some(folder) if error.kind() == ErrorKind::NotFound => {
                    std::fs::create_dir_all(folder)?;
                    open()
                }
                _ => Err(error),
            });
            self.file = Some(opened?);
        }
        Ok(self.file.as_ref().expect("opened above"))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.left_out > 0 {
            self.buffer.push_str(&format!("--- {} bytes were left out ---\n", self.left_out));
        }
        self.write_out();
    }
}

#[cfg(test)]
mod tests {
    use headworks_domain::{ErrorKind, SystemClock};

    use super::*;

    fn log(folder: &Path) -> AttemptLog {
        bounded(folder, 1 << 20)
    }

    fn bounded(folder: &Path, bytes_max: u64) -> AttemptLog {
        let hour = |h: u32| chrono::DateTime::from_timestamp(i64::from(h) * 3600, 0).unwrap();
        let interval = Interval::new(hour(5), hour(6)).unwrap();
        let path = AttemptLog::path_of(&"a/b".parse().unwrap(), &interval, &"r1".parse().unwrap(), 42, 2);
        AttemptLog::new(folder, path, bytes_max, Arc::new(SystemClock))
    }

    #[test]
    fn lines_reach_the_file_when_the_last_holder_goes() {
        let folder = tempfile::tempdir().unwrap();
        let log = log(folder.path());
        let other = log.clone();
        log.line("one\ntwo");
        other.failure(&Failure::new(ErrorKind::Invalid, "X", "table `t` is not there").with_hint("make it"));
        let path = log.file_path();
        assert!(path.ends_with("a/b/1970-01/19700101T050000Z-r1-42.2.log"), "{}", path.display());
        assert!(!path.exists(), "short logs are written once");
        let bytes = log.bytes();
        drop((log, other));
        let text = std::fs::read_to_string(path).unwrap();
        let shown: Vec<&str> = text.lines().map(|l| l.split_once("Z ").unwrap().1).collect();
        assert_eq!(shown, ["one", "two", "error: table `t` is not there [X]", "hint: make it"]);
        assert_eq!(bytes, text.len() as u64);
    }

    #[test]
    fn a_full_log_says_where_it_was_cut_and_keeps_the_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let log = bounded(folder.path(), 100);
        log.line("one\ntwo\nthree\nfour");
        assert!(log.is_full());
        log.line("x");
        log.leave_out(1000);
        log.failure(&Failure::new(ErrorKind::Invalid, "X", "it broke"));
        let path = log.file_path();
        drop(log);
        let text = std::fs::read_to_string(path).unwrap();
        let shown: Vec<&str> = text.lines().map(|l| l.split_once("Z ").map_or(l, |(_, line)| line)).collect();
        let cut = "--- cut: the log has reached its 100B (`execution.log_bytes_max`) ---";
        assert_eq!(shown, ["one", "two", "three", cut, "error: it broke [X]", "--- 1007 bytes were left out ---"]);
    }

    #[test]
    fn a_folder_that_cannot_be_made_fails_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let log = log(&file);
        log.line("x");
        log.flush();
        log.line("y");
    }
}
