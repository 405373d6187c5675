//! Taking turns: so many at once; who waits stands in the line of its user, and the lines take turns.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::{Error, Result};

/// Who may go in. Somebody with a thousand queries delays nobody else by more than one.
pub(crate) struct Turns {
    at_once: usize,
    /// One more may go in while all who are inside are one other user's.
    has_guest: bool,
    gate: Mutex<Gate>,
}

#[derive(Default)]
struct Gate {
    inside: usize,
    /// How many of them are whose.
    users: HashMap<String, usize>,
    waiting: usize,
    /// Never an empty line.
    lines: VecDeque<(String, VecDeque<Waiter>)>,
    tickets: u64,
    entered: u64,
    closed: bool,
}

struct Waiter {
    ticket: u64,
    wake: oneshot::Sender<Turn>,
}

/// A place inside, given back when dropped.
pub(crate) struct Turn {
    turns: Arc<Turns>,
    user: String,
}

/// One who waits; leaves the line when dropped.
pub(crate) struct Waiting {
    turns: Arc<Turns>,
    ticket: u64,
    turn: oneshot::Receiver<Turn>,
}

/// What came of asking for a turn.
pub(crate) enum Asked {
    /// It was free.
    Got(Turn),
    /// It will come.
    Wait(Waiting),
    /// So many wait already.
    Full(usize),
}

/// How they stand.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TurnsState {
    /// How many may be inside.
    pub(crate) at_once: usize,
    /// How many are.
    pub(crate) inside: usize,
    /// How many wait.
    pub(crate) waiting: usize,
    /// How many got in since the start.
    pub(crate) entered: u64,
}

impl Turns {
    /// For so many at once, at least one.
    pub(crate) fn new(at_once: usize) -> Arc<Self> {
        Arc::new(Self { at_once: at_once.max(1), has_guest: false, gate: Mutex::default() })
    }

    /// The same, and one user alone never fills it: one more goes in while all who are inside are one other user's.
    pub(crate) fn with_guest(at_once: usize) -> Arc<Self> {
        Arc::new(Self { at_once: at_once.max(1), has_guest: true, gate: Mutex::default() })
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        // Nothing that holds the lock can leave half a change behind.
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a turn, or a place in the line, of which there are so many. Errors: `Cancelled` once closed.
    pub(crate) fn ask(self: &Arc<Self>, user: &str, waiting_max: usize) -> Result<Asked> {
        let mut gate = self.gate();
        if gate.closed {
            return Err(Error::Cancelled);
        }
        if self.has_room(&gate, user) {
            gate.enter(user);
            return Ok(Asked::Got(Turn { turns: Arc::clone(self), user: user.to_owned() }));
        }
        if gate.waiting >= waiting_max {
            return Ok(Asked::Full(gate.waiting));
        }
        gate.tickets += 1;
        gate.waiting += 1;
        let ticket = gate.tickets;
        let (wake, turn) = oneshot::channel();
        let waiter = Waiter { ticket, wake };
        match gate.lines.iter_mut().find(|(name, _)| name == user) {
            Some((_, line)) => line.push_back(waiter),
            None => gate.lines.push_back((user.to_owned(), VecDeque::from([waiter]))),
        }
        Ok(Asked::Wait(Waiting { turns: Arc::clone(self), ticket, turn }))
    }

    fn has_room(&self, gate: &Gate, user: &str) -> bool {
        let is_guest = || self.has_guest && gate.users.len() == 1 && !gate.users.contains_key(user);
        gate.inside < self.at_once || gate.inside == self.at_once && is_guest()
    }

    /// Waits for a turn as long as it takes. Errors: `Cancelled` once closed.
    pub(crate) async fn turn(self: &Arc<Self>, user: &str) -> Result<Turn> {
        match self.ask(user, usize::MAX)? {
            Asked::Got(turn) => Ok(turn),
            Asked::Wait(waiting) => waiting.turn().await,
            Asked::Full(_) => Err(Error::Internal { message: "a line without end is full".to_owned() }),
        }
    }

    /// How many go in before the one with this ticket, itself counted; `None` when it waits no more.
    pub(crate) fn place(&self, ticket: u64) -> Option<usize> {
        let gate = self.gate();
        let (line, at) = gate
            .lines
            .iter()
            .enumerate()
            .find_map(|(n, (_, line))| Some((n, line.iter().position(|waiter| waiter.ticket == ticket)?)))?;
        // Each round takes one of every line, those before ours once more than those behind it.
        let before = |n: usize, len: usize| len.min(if n < line { at + 1 } else { at });
        let others = gate.lines.iter().enumerate().filter(|(n, _)| *n != line);
        Some(at + 1 + others.map(|(n, (_, line))| before(n, line.len())).sum::<usize>())
    }

    pub(crate) fn state(&self) -> TurnsState {
        let gate = self.gate();
        TurnsState { at_once: self.at_once, inside: gate.inside, waiting: gate.waiting, entered: gate.entered }
    }

    /// Lets nobody in any more.
    pub(crate) fn close(&self) {
        let mut gate = self.gate();
        gate.closed = true;
        gate.waiting = 0;
        gate.lines.clear();
    }

    fn give_back(self: &Arc<Self>, user: &str) {
        let mut woken = Vec::new();
        {
            let mut gate = self.gate();
            gate.leave(user);
            while let Some(n) = gate.lines.iter().position(|(user, _)| self.has_room(&gate, user)) {
                let (user, waiter) = gate.take(n);
                gate.enter(&user);
                woken.push((Turn { turns: Arc::clone(self), user }, waiter));
            }
        }
        // One that has gone meanwhile drops the turn, which comes here again.
        for (turn, waiter) in woken {
            let _ = waiter.map(|waiter| waiter.wake.send(turn));
        }
    }
}

impl Gate {
    fn enter(&mut self, user: &str) {
        self.inside += 1;
        self.entered += 1;
        match self.users.get_mut(user) {
            Some(count) => *count += 1,
            None => drop(self.users.insert(user.to_owned(), 1)),
        }
    }

    fn leave(&mut self, user: &str) {
        self.inside -= 1;
        if let Some(count) = self.users.get_mut(user) {
            *count -= 1;
            if *count == 0 {
                self.users.remove(user);
            }
        }
    }

    /// The first of a line, which goes behind the others.
    fn take(&mut self, n: usize) -> (String, Option<Waiter>) {
        let (user, mut line) = self.lines.remove(n).unwrap_or_default();
        let waiter = line.pop_front();
        self.waiting -= usize::from(waiter.is_some());
        if !line.is_empty() {
            self.lines.push_back((user.clone(), line));
        }
        (user, waiter)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.give_back(&self.user);
    }
}

impl Waiting {
    pub(crate) fn ticket(&self) -> u64 {
        self.ticket
    }

    /// Waits for the turn. Errors: `Cancelled` once closed.
    pub(crate) async fn turn(mut self) -> Result<Turn> {
        (&mut self.turn).await.map_err(|_| Error::Cancelled)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut gate = self.turns.gate();
        let Gate { lines, waiting, .. } = &mut *gate;
        for (_, line) in lines.iter_mut() {
            let before = line.len();
            line.retain(|waiter| waiter.ticket != self.ticket);
            *waiting -= before - line.len();
        }
        lines.retain(|(_, line)| !line.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(turns: &Arc<Turns>, user: &str) -> Waiting {
        match turns.ask(user, 10).unwrap() {
            Asked::Wait(waiting) => waiting,
            _ => panic!("`{user}` does not have to wait"),
        }
    }

    #[tokio::test]
    async fn lines_of_users_take_turns_and_tell_their_place() {
        let turns = Turns::new(1);
        let inside = turns.turn("a").await.unwrap();
        let waiting: Vec<(&str, Waiting)> =
            ["a", "a", "a", "b", "c", "b"].map(|user| (user, wait(&turns, user))).into();
        let places: Vec<usize> = waiting.iter().map(|(_, w)| turns.place(w.ticket()).unwrap()).collect();
        assert_eq!(places, [1, 4, 6, 2, 3, 5]);
        let (gone, order) = (waiting.len(), Arc::new(Mutex::new(Vec::new())));
        let mut tasks = Vec::new();
        for (n, (user, waiting)) in waiting.into_iter().enumerate() {
            if n == 1 {
                drop(waiting);
                continue;
            }
            let order = Arc::clone(&order);
            tasks.push(tokio::spawn(async move {
                let turn = waiting.turn().await.unwrap();
                order.lock().unwrap().push(user);
                drop(turn);
            }));
        }
        assert_eq!(turns.state().waiting, gone - 1);
        drop(inside);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), ["a", "b", "c", "a", "b"]);
        let state = turns.state();
        assert_eq!((state.inside, state.waiting, state.entered), (0, 0, 6));
    }

    #[tokio::test]
    async fn one_user_alone_never_keeps_others_out() {
        let turns = Turns::with_guest(2);
        let (first, second) = (turns.turn("a").await.unwrap(), turns.turn("a").await.unwrap());
        let third = wait(&turns, "a");
        let guest = turns.turn("b").await.unwrap();
        assert_eq!(turns.state().inside, 3);
        // There is one guest, whoever asks.
        let (own, other) = (wait(&turns, "b"), wait(&turns, "c"));
        // Two of two users are inside: that is all there is room for.
        drop(first);
        assert_eq!((turns.state().inside, turns.state().waiting), (2, 3));
        drop(guest);
        let third = third.turn().await.unwrap();
        // Both are one user's again: another may be the guest.
        let own = own.turn().await.unwrap();
        assert_eq!((turns.state().inside, turns.state().waiting), (3, 1));
        drop((second, third));
        let other = other.turn().await.unwrap();
        drop((own, other));
        assert_eq!((turns.state().inside, turns.state().waiting, turns.state().entered), (0, 0, 6));
        assert!(turns.gate().users.is_empty());
    }

    #[tokio::test]
    async fn closed_ones_let_nobody_in() {
        let turns = Turns::new(1);
        let inside = turns.turn("a").await.unwrap();
        let waiting = wait(&turns, "b");
        turns.close();
        assert!(matches!(waiting.turn().await, Err(Error::Cancelled)));
        drop(inside);
        assert!(matches!(turns.turn("a").await, Err(Error::Cancelled)));
    }
}
