//! The framing of binary COPY: <https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.4>
//!
//! A signature, then rows of counted fields, then a trailer of -1. Chunks may be cut anywhere.

use std::ops::Range;

const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";

/// The most bytes of one row: PostgreSQL itself cannot build a bigger one.
const ROW_BYTES_MAX: usize = 1 << 30;

/// Says that the bytes are not binary COPY.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Broken(pub(super) String);

/// A row: the bytes of each field, none for a null.
pub(super) struct Row<'a> {
    bytes: &'a [u8],
    fields: &'a [Option<Range<usize>>],
}

impl<'a> Row<'a> {
    #[cfg(test)]
    fn fields(&self) -> impl Iterator<Item = Option<&'a [u8]>> + '_ {
        (0..self.fields.len()).map(|n| self.field(n))
    }

    pub(super) fn field(&self, n: usize) -> Option<&'a [u8]> {
        self.fields.get(n)?.clone().and_then(|range| self.bytes.get(range))
    }
}

enum State {
    Header,
    Rows,
    Ended,
}

/// Takes chunks and gives rows.
pub(super) struct CopyReader {
    state: State,
    /// The beginning of what the next chunk goes on with.
    pending: Vec<u8>,
    fields: Vec<Option<Range<usize>>>,
    width: usize,
}

impl CopyReader {
    /// Starts to read rows of so many fields.
    pub(super) fn new(width: usize) -> Self {
        Self { state: State::Header, pending: Vec::new(), fields: Vec::with_capacity(width), width }
    }

    /// Takes a chunk and hands every row that is now whole to `each`.
    pub(super) fn feed<E: From<Broken>>(
        &mut self,
        chunk: &[u8],
        mut each: impl FnMut(Row<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        // The server sends a row per chunk, so that usually nothing is pending and nothing is copied.
        let mut joined = std::mem::take(&mut self.pending);
        let bytes = if joined.is_empty() {
            chunk
        } else {
            joined.extend_from_slice(chunk);
            &joined
        };
        let mut at = 0;
        while let Some(length) = self.next(&bytes[at..])? {
            if !self.fields.is_empty() || (self.width == 0 && matches!(self.state, State::Rows) && length == 2) {
                each(Row { bytes: &bytes[at..], fields: &self.fields })?;
            }
            at += length;
        }
        let rest = &bytes[at..];
        if rest.len() > ROW_BYTES_MAX {
            return Err(Broken(format!("a row of more than {ROW_BYTES_MAX} bytes")).into());
        }
        self.pending = rest.to_vec();
        Ok(())
    }

    /// Checks that the last chunk was the end.
    pub(super) fn finish(&self) -> Result<(), Broken> {
        match self.state {
            State::Ended => Ok(()),
            _ => Err(Broken("it ends before its trailer".to_owned())),
        }
    }

    /// Finds the length of the next piece and, if it is a row, its fields. None when more bytes are needed.
    fn next(&mut self, bytes: &[u8]) -> Result<Option<usize>, Broken> {
        self.fields.clear();
        match self.state {
            State::Header => {
                let Some((head, rest)) = bytes.split_at_checked(19) else { return Ok(None) };
                if &head[..11] != SIGNATURE {
                    return Err(Broken("it does not begin with the signature of binary COPY".to_owned()));
                }
                let flags = u32::from_be_bytes([head[11], head[12], head[13], head[14]]);
                if flags >> 16 != 0 {
                    return Err(Broken(format!("its header has unknown flags {flags:#x}")));
                }
                let extension = u32::from_be_bytes([head[15], head[16], head[17], head[18]]) as usize;
                if extension > ROW_BYTES_MAX {
                    return Err(Broken("its header is too long".to_owned()));
                }
                if rest.len() < extension {
                    return Ok(None);
                }
                self.state = State::Rows;
                Ok(Some(19 + extension))
            }
            State::Rows => self.next_row(bytes),
            State::Ended if bytes.is_empty() => Ok(None),
            State::Ended => Err(Broken("it goes on after its trailer".to_owned())),
        }
    }

    fn next_row(&mut self, bytes: &[u8]) -> Result<Option<usize>, Broken> {
        let Some(count) = bytes.first_chunk().map(|b| i16::from_be_bytes(*b)) else { return Ok(None) };
        if count == -1 {
            self.state = State::Ended;
            return Ok(Some(2));
        }
        if usize::try_from(count) != Ok(self.width) {
            return Err(Broken(format!("a row of {count} fields where {} were asked for", self.width)));
        }
        let mut at = 2;
        for _ in 0..self.width {
            let Some(length) = bytes.get(at..).and_then(|b| b.first_chunk()).map(|b| i32::from_be_bytes(*b)) else {
                self.fields.clear();
                return Ok(None);
            };
            at += 4;
            if length == -1 {
                self.fields.push(None);
                continue;
            }
            let Some(length) = usize::try_from(length).ok().filter(|l| *l <= ROW_BYTES_MAX) else {
                return Err(Broken(format!("a field of {length} bytes")));
            };
            if bytes.len() - at < length {
                self.fields.clear();
                return Ok(None);
            }
            self.fields.push(Some(at..at + length));
            at += length;
        }
        Ok(Some(at))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Rows = Vec<Vec<Option<Vec<u8>>>>;

    fn stream(rows: &Rows) -> Vec<u8> {
        let mut out = SIGNATURE.to_vec();
        out.extend_from_slice(&[0; 8]);
        for row in rows {
            out.extend_from_slice(&(row.len() as i16).to_be_bytes());
            for field in row {
                match field {
                    None => out.extend_from_slice(&(-1_i32).to_be_bytes()),
                    Some(bytes) => {
                        out.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
                        out.extend_from_slice(bytes);
                    }
                }
            }
        }
        out.extend_from_slice(&(-1_i16).to_be_bytes());
        out
    }

    fn read(width: usize, chunks: &[&[u8]]) -> Result<Rows, Broken> {
        let mut reader = CopyReader::new(width);
        let mut rows = Vec::new();
        for chunk in chunks {
            reader.feed::<Broken>(chunk, |row| {
                rows.push(row.fields().map(|f| f.map(<[u8]>::to_vec)).collect());
                Ok(())
            })?;
        }
        reader.finish()?;
        Ok(rows)
    }

    #[test]
    fn broken_streams_are_errors() {
        let rows = vec![vec![Some(b"ab".to_vec()), None]];
        let good = stream(&rows);
        assert_eq!(read(2, &[&good]), Ok(rows));
        for cut in 0..good.len() {
            assert!(read(2, &[&good[..cut]]).is_err(), "{cut}");
        }
        assert!(read(3, &[&good]).is_err());
        assert!(read(2, &[&good, b"x"]).is_err());
        let mut negative = good.clone();
        negative[21..25].copy_from_slice(&(-2_i32).to_be_bytes());
        assert!(read(2, &[&negative]).is_err());
    }

    #[test]
    fn rows_without_fields_are_rows() {
        assert_eq!(read(0, &[&stream(&vec![vec![], vec![]])]), Ok(vec![vec![], vec![]]));
    }

    proptest! {
        #[test]
        fn chunks_may_be_cut_anywhere(
            width in 1_usize..4, cells in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..6)), 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        ) {
            let rows: Rows = cells.chunks_exact(width).map(<[_]>::to_vec).collect();
            let bytes = stream(&rows);
            let mut at: Vec<usize> = cuts.iter().map(|c| c.index(bytes.len())).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let chunks: Vec<&[u8]> = at.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(read(width, &chunks), Ok(rows));
        }

        #[test]
        fn no_bytes_panic(width in 0_usize..4, mut bytes in prop::collection::vec(any::<u8>(), 0..60), sane: bool) {
            if sane {
                let mut whole = stream(&Vec::new());
                whole.truncate(19);
                whole.append(&mut bytes);
                bytes = whole;
            }
            let _ = read(width, &[&bytes]);
        }
    }
}
