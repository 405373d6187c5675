//! What a stored backfill asks for next: a function of its pieces, of what is published, and of how many may be live at once.
//!
//! A piece is asked for once nothing stands in its way, so that none holds a place while it waits: the pieces that make what it
//! reads are over, and all that it reads is published. Pieces whose inputs failed are passed over; they go on when those come.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use crate::exec::Partition;

/// The most open pieces that one look considers, from the first on.
pub const WINDOW: usize = 1_000;

/// A piece that is not over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Its number: smaller ones go first.
    pub id: i64,
    /// Whether its run was asked for already.
    pub live: bool,
    /// What it will publish.
    pub makes: Arc<[Partition]>,
    /// What it reads and waits for.
    pub needs: Arc<[Partition]>,
}

/// What holds a piece back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    /// This piece makes what it reads, and is not over.
    Piece(i64),
    /// This partition is not published, and no piece will publish it.
    Missing(Partition),
}

/// What a look at a backfill comes to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Next {
    /// The pieces to ask for now, in order.
    pub ask: Vec<i64>,
    /// The first pieces that lack something that no piece will publish, with what they lack.
    pub blocked: Vec<(i64, Partition)>,
}

/// The partitions that must be looked up in the registry before [`next`] can tell.
pub fn questions(pieces: &[Piece]) -> Vec<Partition> {
    let makers = makers(pieces);
    let mut asked = BTreeSet::new();
    for piece in open(pieces) {
        let needs = piece.needs.iter().filter(|need| !is_made(&makers, piece, need));
        asked.extend(needs.cloned());
    }
    asked.into_iter().collect()
}

/// Which pieces are to be asked for now. `live` ones count against `at_once`; `published` answers [`questions`].
pub fn next(pieces: &[Piece], published: &HashSet<Partition>, at_once: usize) -> Next {
    let makers = makers(pieces);
    let mut next = Next::default();
    let live = pieces.iter().filter(|piece| piece.live).count();
    let room = at_once.max(1).saturating_sub(live);
    for piece in open(pieces) {
        match hold(&makers, piece, published) {
            None if next.ask.len() < room => next.ask.push(piece.id),
            None | Some(Hold::Piece(_)) => {}
            Some(Hold::Missing(partition)) => next.blocked.push((piece.id, partition)),
        }
    }
    next
}

fn open(pieces: &[Piece]) -> impl Iterator<Item = &Piece> {
    pieces.iter().filter(|piece| !piece.live).take(WINDOW)
}

/// The pieces that will publish each partition.
fn makers(pieces: &[Piece]) -> HashMap<&Partition, Vec<i64>> {
    let mut makers: HashMap<&Partition, Vec<i64>> = HashMap::new();
    for piece in pieces {
        for partition in piece.makes.iter() {
            makers.entry(partition).or_default().push(piece.id);
        }
    }
    makers
}

fn is_made(makers: &HashMap<&Partition, Vec<i64>>, piece: &Piece, need: &Partition) -> bool {
    makers.get(need).is_some_and(|ids| ids.iter().any(|id| *id != piece.id))
}

fn hold(makers: &HashMap<&Partition, Vec<i64>>, piece: &Piece, published: &HashSet<Partition>) -> Option<Hold> {
    let mut missing = None;
    for need in piece.needs.iter() {
        if let Some(id) = makers.get(need).and_then(|ids| ids.iter().find(|id| **id != piece.id)) {
            return Some(Hold::Piece(*id));
        }
        if missing.is_none() && !published.contains(need) {
            missing = Some(Hold::Missing(need.clone()));
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `a1`: the first day of table `a`.
    fn partition(text: &str) -> Partition {
        let (table, day) = text.split_at(1);
        Partition::new(table.parse().unwrap(), format!("ds=2026-01-0{day}").parse().unwrap())
    }

    /// As `2* b1 <- a1 a2`: piece 2, live, which makes b1 of a1 and a2.
    fn piece(text: &str) -> Piece {
        let (left, needs) = text.split_once("<-").unwrap_or((text, ""));
        let (id, makes) = left.split_once(' ').unwrap();
        Piece {
            id: id.trim_end_matches('*').parse().unwrap(),
            live: id.ends_with('*'),
            makes: makes.split_whitespace().map(partition).collect(),
            needs: needs.split_whitespace().map(partition).collect(),
        }
    }

    fn check(pieces: &[&str], published: &str, at_once: usize, ask: &[i64], blocked: &[(i64, &str)]) {
        let parsed: Vec<Piece> = pieces.iter().map(|text| piece(text)).collect();
        let published: HashSet<Partition> = published.split_whitespace().map(partition).collect();
        let next = next(&parsed, &published, at_once);
        let blocked: Vec<(i64, Partition)> = blocked.iter().map(|(id, text)| (*id, partition(text))).collect();
        assert_eq!((next.ask, next.blocked), (ask.to_vec(), blocked), "{pieces:?}, at most {at_once}");
    }

    #[test]
    fn so_many_are_live_at_once_in_their_order() {
        let three = ["1 a1", "2 a2", "3 a3"];
        check(&three, "", 2, &[1, 2], &[]);
        check(&three, "", 9, &[1, 2, 3], &[]);
        check(&["1* a1", "2 a2", "3 a3"], "", 2, &[2], &[]);
        check(&["1* a1", "2* a2", "3 a3"], "", 2, &[], &[]);
        check(&["1* a1", "2* a2", "3 a3"], "", 1, &[], &[]);
        check(&[], "", 4, &[], &[]);
    }

    #[test]
    fn a_reader_goes_after_those_who_make_what_it_reads_even_if_older_versions_are_published() {
        check(&["1 b1 <- a1", "2 a1"], "a1", 9, &[2], &[]);
        check(&["1 b1 <- a1", "2* a1"], "a1", 9, &[], &[]);
        check(&["1 b1 <- a1"], "a1", 9, &[1], &[]);
    }

    #[test]
    fn a_job_that_reads_its_own_day_before_goes_day_by_day() {
        check(&["1 a1", "2 a2 <- a1", "3 a3 <- a2"], "", 9, &[1], &[]);
        check(&["2 a2 <- a1", "3 a3 <- a2"], "a1", 9, &[2], &[]);
    }

    #[test]
    fn pieces_whose_inputs_nobody_will_publish_hold_nobody_up() {
        check(&["1 b1 <- a1", "2 b2 <- a2"], "a2", 1, &[2], &[(1, "a1")]);
        check(&["1 b1 <- a1", "2 c1 <- b1"], "", 1, &[], &[(1, "a1")]);
        // It does not wait for itself: what it makes and reads it finds, or not.
        check(&["1 a1 <- a1"], "", 1, &[], &[(1, "a1")]);
        check(&["1 a1 <- a1"], "a1", 1, &[1], &[]);
    }

    #[test]
    fn only_what_no_piece_makes_is_looked_up() {
        let pieces: Vec<Piece> = ["1 b1 <- a1 x1", "2 a1", "3* c1 <- y1"].iter().map(|text| piece(text)).collect();
        assert_eq!(questions(&pieces), [partition("x1")]);
    }
}
