use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

/// A project folder for one test.
pub(crate) struct Project {
    dir: TempDir,
}

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Project {
    /// An empty folder: no project yet.
    pub(crate) fn nothing() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// A project without jobs.
    pub(crate) fn empty() -> Self {
        Self::nothing().file("headworks.toml", "[project]\nname = \"test\"\n")
    }

    /// A project with one job, `numbers`: for each day three rows.
    pub(crate) fn numbers() -> Self {
        Self::empty().file("jobs/numbers.sql", NUMBERS)
    }

    /// Writes a file.
    pub(crate) fn file(self, path: &str, text: &str) -> Self {
        self.write(path, text);
        self
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// The text of a file; nothing when it is not there.
    pub(crate) fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path().join(path)).ok()
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// All files below a folder, sorted.
    pub(crate) fn files(&self, below: &str) -> Vec<PathBuf> {
        fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
            let Ok(entries) = fs::read_dir(folder) else { return };
            for entry in entries {
                let path = entry.unwrap().path();
                if path.is_dir() { walk(&path, files) } else { files.push(path) }
            }
        }
        let mut files = Vec::new();
        walk(&self.path().join(below), &mut files);
        files.sort();
        files
    }

    /// The binary with its arguments, in this folder, with an environment of its own.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headworks"));
        command
            .args(args)
            .current_dir(self.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            // Tests run side by side: each takes a free port.
            .env("HEADWORKS__SERVER__POSTGRES_LISTEN", "127.0.0.1:0");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Outcome {
        outcome(self.command(args).spawn().unwrap())
    }

    /// Runs a command with something on stdin.
    pub(crate) fn run_with_input(&self, args: &[&str], input: &str) -> Outcome {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        outcome(child)
    }

    /// Runs a command that must succeed, and gives its stdout.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let outcome = self.run(args);
        assert_eq!(outcome.code, 0, "headworks {args:?}: {outcome:?}");
        outcome.stdout
    }

    /// Runs a command that must succeed, and gives its JSON.
    pub(crate) fn json(&self, args: &[&str]) -> serde_json::Value {
        let mut args = args.to_vec();
        args.push("--json");
        let text = self.ok(&args);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
    }

    /// Runs a command that may fail, and gives its JSON.
    pub(crate) fn json_of_any(&self, args: &[&str]) -> serde_json::Value {
        let outcome = self.run(&[args, &["--json"]].concat());
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}: {outcome:?}"))
    }

    /// What a person sees of a command: its arguments, exit code, stdout and stderr, without what differs each time.
    pub(crate) fn seen(&self, args: &[&str]) -> String {
        let outcome = self.run(args);
        let text = format!(
            "$ headworks {}\n[exit {}]\n--- stdout\n{}--- stderr\n{}",
            args.join(" "),
            outcome.code,
            outcome.stdout,
            outcome.stderr
        );
        self.filtered(&text)
    }

    /// Replaces what differs each time: paths, ids, times, durations, sizes.
    pub(crate) fn filtered(&self, text: &str) -> String {
        let path = self.path().display().to_string();
        let name = self.path().file_name().unwrap().to_string_lossy().into_owned();
        let text =
            text.replace(&path, "[DIR]").replace(&name, "[NAME]").replace(env!("CARGO_PKG_VERSION"), "[VERSION]");
        text.split_inclusive('\n').map(filtered_line).collect()
    }

    /// The same, with the room between columns gone: widths differ with what differs.
    pub(crate) fn seen_loosely(&self, args: &[&str]) -> String {
        let seen = self.seen(args);
        let words = |line: &str| line.split(' ').filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" ") + "\n";
        seen.lines().map(words).collect()
    }
}

pub(crate) fn outcome(child: Child) -> Outcome {
    let output = child.wait_with_output().unwrap();
    Outcome {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Durations, sizes, times and ids become words in brackets; spaces around them shrink to one, since widths differ with them.
fn filtered_line(line: &str) -> String {
    let words: Vec<&str> = line.trim_end_matches('\n').split(' ').collect();
    let mut kept: Vec<String> = Vec::new();
    let mut changed = false;
    let mut i = 0;
    while i < words.len() {
        let word = words[i];
        let next = words.get(i + 1).copied().unwrap_or_default();
        let bare = next.trim_end_matches([',', ':', ')', ';']);
        let tail = &next[bare.len()..];
        let number = !word.is_empty() && word.chars().all(|c| c.is_ascii_digit() || c == '.');
        if word == "in" && later_words(&words[i + 1..]) > 0 {
            kept.push("[LATER]".to_owned());
            i += later_words(&words[i + 1..]);
            changed = true;
        } else if number && matches!(bare, "ms" | "s") {
            kept.push(format!("[TIME]{tail}"));
            i += 1;
            changed = true;
        } else if number && matches!(bare, "B" | "KiB" | "MiB" | "GiB" | "TiB") {
            kept.push(format!("[SIZE]{tail}"));
            i += 1;
            changed = true;
        } else if is_instant(word) {
            kept.push("[INSTANT]".to_owned());
            changed = true;
        } else if is_clock(word) {
            // The day stands before it.
            kept.pop();
            kept.push("[INSTANT]".to_owned());
            changed = true;
        } else if is_run_id(word) {
            kept.push("[RUN]".to_owned());
            changed = true;
        } else {
            kept.push(word.to_owned());
        }
        i += 1;
    }
    if changed {
        kept.retain(|word| !word.is_empty());
    }
    let end = if line.ends_with('\n') { "\n" } else { "" };
    kept.join(" ") + end
}

/// How many words say how long it is until something, as `16 h 25 min`.
fn later_words(words: &[&str]) -> usize {
    let is_number = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    words.chunks(2).take_while(|pair| matches!(pair, [n, "d" | "h" | "min" | "s"] if is_number(n))).count() * 2
}

fn is_instant(word: &str) -> bool {
    word.len() >= 20 && word.as_bytes()[10] == b'T' && word.ends_with('Z') && word.starts_with("20")
}

/// As `hoduycsugc-1`: a process in base 36, and a number.
fn is_run_id(word: &str) -> bool {
    let (process, number) = word.split_once('-').unwrap_or_default();
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    process.len() == 10 && digits(number) && process.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
}

fn is_clock(word: &str) -> bool {
    word.len() == 8 && word.bytes().enumerate().all(|(i, b)| if i % 3 == 2 { b == b':' } else { b.is_ascii_digit() })
}

/// The job of [`Project::numbers`].
pub(crate) const NUMBERS: &str = r#"/* job
description: Three numbers a day
owner: tests
schedule: "@daily"
start: 2026-01-01
columns:
  n: {type: bigint, description: "the number", checks: [not_null, unique]}
  name: {type: varchar}
checks:
  - {name: three_rows, sql: "select count(*) = 3 from this"}
*/
SELECT n, name FROM (VALUES (1, 'one'), (2, 'two'), (3, 'Ünï')) AS t(n, name)
"#;
