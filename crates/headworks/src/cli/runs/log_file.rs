//! A log file, in which the lines of several attempts are mixed.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use headworks_flow::exec::whose;

/// A log file and whose lines are where in it: it may be larger than what memory should hold, and a run may have thousands of
/// attempts.
pub(super) struct LogFile {
    file: File,
    /// Pieces of the file, each of lines of one attempt only: where it begins, and its bytes. `None` is everybody's.
    pieces: BTreeMap<Option<u32>, Vec<(u64, u64)>>,
}

impl LogFile {
    /// Opens a file and reads it once.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut reader = BufReader::new(File::open(path)?);
        let mut pieces: BTreeMap<Option<u32>, Vec<(u64, u64)>> = BTreeMap::new();
        let (mut line, mut at) = (Vec::new(), 0);
        while reader.read_until(b'\n', &mut line)? > 0 {
            let bytes = line.len() as u64;
            let of = pieces.entry(whose(&line).0).or_default();
            match of.last_mut() {
                Some((start, length)) if *start + *length == at => *length += bytes,
                _ => of.push((at, bytes)),
            }
            at += bytes;
            line.clear();
        }
        Ok(Self { file: reader.into_inner(), pieces })
    }

    /// The lines of an attempt, each beginning with its time.
    pub(super) fn of(&mut self, attempt: u32) -> io::Result<Vec<u8>> {
        let pieces = [None, Some(attempt)].into_iter().filter_map(|key| self.pieces.get(&key)).flatten();
        let mut text = Vec::new();
        for &(start, length) in pieces {
            self.file.seek(SeekFrom::Start(start))?;
            for line in BufReader::new((&self.file).take(length)).split(b'\n') {
                text.extend_from_slice(whose(&line?).1);
                text.push(b'\n');
            }
        }
        Ok(text)
    }
}

/// Reads what has come since; the beginning of a line waits for its end, unless nothing more comes.
pub(super) fn read_from(path: &Path, from: u64, is_over: bool) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    if !is_over {
        text.truncate(text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attempt_has_its_own_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        let check = |text: &str, attempt: u32, expected: &str| {
            std::fs::write(&path, text).unwrap();
            let found = LogFile::open(&path).unwrap().of(attempt).unwrap();
            assert_eq!(String::from_utf8(found).unwrap(), expected, "{attempt}: {text}");
        };
        let mixed = "1 T a\n1 T b\n2 T c\n1 T d\n12 T e\n2 T f\n";
        check(mixed, 1, "T a\nT b\nT d\n");
        check(mixed, 2, "T c\nT f\n");
        check(mixed, 12, "T e\n");
        check(mixed, 3, "");
        // A version before had a file for each attempt.
        check("T a\n\nT b", 7, "T a\n\nT b\n");
    }

    #[test]
    fn the_beginning_of_a_line_waits_for_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        std::fs::write(&path, "1 T a\n1 T b").unwrap();
        assert_eq!(read_from(&path, 0, false).unwrap(), b"1 T a\n");
        assert_eq!(read_from(&path, 6, false).unwrap(), b"");
        assert_eq!(read_from(&path, 6, true).unwrap(), b"1 T b");
    }
}
