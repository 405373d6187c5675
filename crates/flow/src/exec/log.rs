//! The logs of attempts: plain lines with a time, in one file for all attempts that a process makes of a run.
//!
//! Not a file per attempt: making one costs more than all else that a small task does. Where many files went lately, as builds,
//! tests and clean-ups have it, a file system looks past all that they left before it finds a place for the next.

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
/// Lines read `3 2013-01-02T05:00:00.123Z text`, with the number of the attempt before them, by which [`whose`] tells them apart.
/// They go to the file's end, whole ones only, so that attempts at work at the same time mix their lines and nothing else. Errors
/// of the disk never fail an attempt: its log ends there, and a warning goes to the program's own log.
#[derive(Clone)]
pub struct AttemptLog {
    inner: Arc<Mutex<Inner>>,
    clock: Arc<dyn Clock>,
}

struct Inner {
    file_path: PathBuf,
    relative: String,
    /// What stands before each line: the attempt.
    mark: String,
    file: Option<File>,
    buffer: String,
    bytes: u64,
    bytes_max: u64,
    left_out: u64,
    broken: bool,
}

impl AttemptLog {
    /// The path below the folder of logs: `<job>/<month>/<start>-<run>-<fence>.log`, as
    /// `flights/2013-01/20130101T050000Z-m1-7-42.log`.
    ///
    /// With the fence, because attempts that a process began in its last moment may not be kept: the next owner numbers its own from
    /// what is, and would go on in the logs of the lost ones. And so no two processes write to one file.
    ///
    /// Not a folder per interval: each would be one more inode to make, as dear as the log itself.
    pub fn path_of(job: &JobName, interval: &Interval, run_id: &RunId, fence: i64) -> String {
        format!("{job}/{}-{run_id}-{fence}.log", interval.start().format("%Y-%m/%Y%m%dT%H%M%SZ"))
    }

    /// The log of an attempt at `relative` below `folder`, of at most `bytes_max` bytes and some last words. The file comes with the
    /// first write.
    pub fn new(folder: &Path, relative: String, attempt: u32, bytes_max: u64, clock: Arc<dyn Clock>) -> Self {
        let inner = Inner {
            file_path: folder.join(&relative),
            relative,
            mark: format!("{attempt} "),
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
            let bytes = inner.bytes_of(line);
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

    /// The bytes that this attempt has logged so far.
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
    fn bytes_of(&self, line: &str) -> u64 {
        (self.mark.len() + line.len()) as u64 + STAMP_BYTES
    }

    fn add(&mut self, time: &str, line: &str) {
        self.bytes += self.bytes_of(line);
        for part in [&self.mark, time, " ", line, "\n"] {
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
            self.buffer.push_str(&format!("{}--- {} bytes were left out ---\n", self.mark, self.left_out));
        }
        self.write_out();
    }
}

/// Whose a line of a log file is, and the line without that mark: with its time first.
///
/// `None` for the lines of a version before, whose files held one attempt each.
pub fn whose(line: &[u8]) -> (Option<u32>, &[u8]) {
    let digits = line.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let attempt = str::from_utf8(&line[..digits]).ok().and_then(|digits| digits.parse().ok());
    match (attempt, line.get(digits)) {
        (Some(attempt), Some(b' ')) => (Some(attempt), &line[digits + 1..]),
        _ => (None, line),
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
        let path = AttemptLog::path_of(&"a/b".parse().unwrap(), &interval, &"r1".parse().unwrap(), 42);
        AttemptLog::new(folder, path, 2, bytes_max, Arc::new(SystemClock))
    }

    #[test]
    fn lines_reach_the_file_when_the_last_holder_goes() {
        let folder = tempfile::tempdir().unwrap();
        let log = log(folder.path());
        let other = log.clone();
        log.line("one\ntwo");
        other.failure(&Failure::new(ErrorKind::Invalid, "X", "table `t` is not there").with_hint("make it"));
        let path = log.file_path();
        assert!(path.ends_with("a/b/1970-01/19700101T050000Z-r1-42.log"), "{}", path.display());
        assert!(!path.exists(), "short logs are written once");
        let bytes = log.bytes();
        drop((log, other));
        let text = std::fs::read_to_string(path).unwrap();
        let shown: Vec<&str> =
            text.lines().map(|l| l.strip_prefix("2 ").unwrap().split_once("Z ").unwrap().1).collect();
        assert_eq!(shown, ["one", "two", "error: table `t` is not there [X]", "hint: make it"]);
        assert_eq!(bytes, text.len() as u64);
    }

    #[test]
    fn a_full_log_says_where_it_was_cut_and_keeps_the_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let log = bounded(folder.path(), 106);
        log.line("one\ntwo\nthree\nfour");
        assert!(log.is_full());
        log.line("x");
        log.leave_out(1000);
        log.failure(&Failure::new(ErrorKind::Invalid, "X", "it broke"));
        let path = log.file_path();
        drop(log);
        let text = std::fs::read_to_string(path).unwrap();
        let shown: Vec<&str> = text.lines().map(|l| l.split_once("Z ").map_or(l, |(_, line)| line)).collect();
        let cut = "--- cut: the log has reached its 106B (`execution.log_bytes_max`) ---";
        let end = "2 --- 1007 bytes were left out ---";
        assert_eq!(shown, ["one", "two", "three", cut, "error: it broke [X]", end]);
    }

    #[test]
    fn attempts_share_a_file_and_no_line() {
        let folder = tempfile::tempdir().unwrap();
        let first = log(folder.path());
        let logs: Vec<AttemptLog> = (0..4)
            .map(|n| AttemptLog::new(folder.path(), first.relative_path(), n, 1 << 20, Arc::new(SystemClock)))
            .collect();
        std::thread::scope(|scope| {
            for (n, log) in logs.iter().enumerate() {
                scope.spawn(move || {
                    for line in 0..2_000 {
                        log.line(format!("{n}: {line:0100}"));
                        if line % 7 == n {
                            log.flush();
                        }
                    }
                });
            }
        });
        let bytes: Vec<u64> = logs.iter().map(AttemptLog::bytes).collect();
        drop(logs);
        let text = std::fs::read(first.file_path()).unwrap();
        for (n, bytes) in bytes.into_iter().enumerate() {
            let of: Vec<&[u8]> =
                text.split_inclusive(|b| *b == b'\n').filter(|l| whose(l).0 == Some(n as u32)).collect();
            assert_eq!((of.len(), of.concat().len() as u64), (2_000, bytes));
            for (line, shown) in of.into_iter().enumerate() {
                assert!(whose(shown).1.ends_with(format!(" {n}: {line:0100}\n").as_bytes()), "{n} {line}");
            }
        }
    }

    #[test]
    fn a_line_tells_whose_it_is() {
        let check = |line: &str, expected: (Option<u32>, &str)| {
            let (attempt, rest) = whose(line.as_bytes());
            assert_eq!((attempt, str::from_utf8(rest).unwrap()), expected, "{line}");
        };
        check("12 2013-01-02T05:00:00.123Z 3 x\n", (Some(12), "2013-01-02T05:00:00.123Z 3 x\n"));
        check("2 --- 7 bytes were left out ---", (Some(2), "--- 7 bytes were left out ---"));
        // Of the version before.
        check("2013-01-02T05:00:00.123Z 3 x", (None, "2013-01-02T05:00:00.123Z 3 x"));
        check("--- 7 bytes were left out ---", (None, "--- 7 bytes were left out ---"));
        check("", (None, ""));
        check("7", (None, "7"));
        check("99999999999 x", (None, "99999999999 x"));
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
