//! What a command writes, on its way into the attempt's log.

use headworks_flow::exec::AttemptLog;

/// Longer lines are cut in several.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// So much of the end is remembered, for the failure and for the end of a full log.
const TAIL_BYTES: usize = 4 * 1024;
/// So many lines of the end are shown.
const TAIL_LINES: usize = 10;

/// Takes output in pieces of any size, in bounded memory. Once the log is full the rest is counted and dropped.
pub(super) struct Output {
    log: AttemptLog,
    /// The line that has no end yet.
    rest: Vec<u8>,
    tail: Vec<u8>,
}

impl Output {
    pub(super) fn new(log: AttemptLog) -> Self {
        Self { log, rest: Vec::new(), tail: Vec::new() }
    }

    /// Takes a piece.
    pub(super) fn take(&mut self, piece: &[u8]) {
        let kept = (TAIL_BYTES.saturating_sub(piece.len())).min(self.tail.len());
        self.tail.drain(..self.tail.len() - kept);
        self.tail.extend_from_slice(&piece[piece.len().saturating_sub(TAIL_BYTES)..]);
        if self.log.is_full() {
            self.log.leave_out((self.rest.len() + piece.len()) as u64);
            self.rest.clear();
            return;
        }
        self.rest.extend_from_slice(piece);
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |n| n + 1);
        let mut lines = String::new();
        for line in self.rest[..whole].split_inclusive(|byte| *byte == b'\n') {
            add_line(&mut lines, line.strip_suffix(b"\n").unwrap_or(line));
        }
        self.rest.drain(..whole);
        while self.rest.len() > LINE_BYTES_MAX {
            add_line(&mut lines, &self.rest[..LINE_BYTES_MAX]);
            self.rest.drain(..LINE_BYTES_MAX);
        }
        if !lines.is_empty() {
            self.log.line(lines);
        }
    }

    /// Nothing more comes.
    pub(super) fn end(&mut self) {
        if !self.rest.is_empty() {
            let mut line = String::new();
            add_line(&mut line, &std::mem::take(&mut self.rest));
            self.log.line(line);
        }
        if self.log.is_full() && !self.tail.is_empty() {
            self.log.last_words(format!("--- the end of the output ---\n{}", self.last_lines().join("\n")));
        }
    }

    /// The last lines, for people: without what would move a terminal's cursor.
    pub(super) fn last_lines(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.tail);
        let text: String = text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
        let lines: Vec<String> = text.lines().map(str::trim_end).filter(|l| !l.is_empty()).map(str::to_owned).collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].to_vec()
    }
}

fn add_line(lines: &mut String, line: &[u8]) {
    let mut pieces = line.chunks(LINE_BYTES_MAX);
    // An empty line is one too.
    lines.push_str(&String::from_utf8_lossy(pieces.next().unwrap_or_default()));
    lines.push('\n');
    for piece in pieces {
        lines.push_str(&String::from_utf8_lossy(piece));
        lines.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use headworks_domain::SystemClock;

    use super::*;

    /// What stands in a log of `bytes_max` after these pieces, without times, and the last lines.
    fn logged(bytes_max: u64, pieces: &[&[u8]]) -> (Vec<String>, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let log = AttemptLog::new(folder.path(), "x.log".to_owned(), 1, bytes_max, Arc::new(SystemClock));
        let path = log.file_path();
        let mut output = Output::new(log.clone());
        for piece in pieces {
            output.take(piece);
        }
        output.end();
        let last = output.last_lines();
        drop((log, output));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines = text.lines().map(|l| l.split_once("Z ").map_or(&l[2..], |(_, line)| line).to_owned()).collect();
        (lines, last)
    }

    #[test]
    fn pieces_become_lines() {
        let (lines, last) = logged(1 << 20, &[b"a", b"b\n\nc\r\n", b"d\xff", b"e"]);
        assert_eq!(lines, ["ab", "", "c", "d\u{fffd}e"]);
        assert_eq!(last, ["ab", "c", "d\u{fffd}e"]);
        assert_eq!(logged(1 << 20, &[]), (vec![], vec![]));
    }

    #[test]
    fn long_lines_are_cut() {
        let (lines, _) = logged(1 << 20, &[&[b'x'; 40_000], b"\n", &[b'y'; 20_000]]);
        assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [16_384, 16_384, 7_232, 16_384, 3_616]);
    }

    #[test]
    fn a_full_log_keeps_the_end() {
        let many = b"line\n".repeat(1000);
        let (lines, last) = logged(200, &[&many, &many, b"the end"]);
        assert_eq!(lines.iter().take_while(|l| *l == "line").count(), 6);
        assert!(lines[6].starts_with("--- cut: "), "{lines:?}");
        assert_eq!((lines[7].as_str(), lines[17].as_str()), ("--- the end of the output ---", "the end"));
        assert!(lines[18].ends_with(" bytes were left out ---"), "{lines:?}");
        assert_eq!(last.len(), 10);
    }
}
