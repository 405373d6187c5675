//! Taking turns: so many at once; who waits stands in the line of its user, and the lines take turns.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::{Error, Result};

/// Who may go in. Somebody with a thousand queries delays nobody else by more than one.
pub(crate) struct Turns {
    at_once: usize,
    gate: Mutex<Gate>,
}

#[derive(Default)]
struct Gate {
    free: usize,
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
        let at_once = at_once.max(1);
        Arc::new(Self { at_once, gate: Mutex::new(Gate { free: at_once, ..Gate::default() }) })
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
        if gate.free > 0 {
            gate.free -= 1;
            gate.entered += 1;
            return Ok(Asked::Got(Turn { turns: Arc::clone(self) }));
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
        TurnsState {
            at_once: self.at_once,
            inside: self.at_once - gate.free,
            waiting: gate.waiting,
            entered: gate.entered,
        }
    }

    /// Lets nobody in any more.
    pub(crate) fn close(&self) {
        let mut gate = self.gate();
        gate.closed = true;
        gate.waiting = 0;
        gate.lines.clear();
    }

    fn give_back(self: &Arc<Self>) {
        let waiter = {
            let mut gate = self.gate();
            let Some((user, mut line)) = gate.lines.pop_front() else {
                gate.free += 1;
                return;
            };
            let waiter = line.pop_front();
            if !line.is_empty() {
                gate.lines.push_back((user, line));
            }
            gate.waiting -= 1;
            gate.entered += 1;
            waiter
        };
        // One that has gone meanwhile drops the turn, which comes here again.
        let turn = Turn { turns: Arc::clone(self) };
        if let Some(waiter) = waiter {
            let _ = waiter.wake.send(turn);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.give_back();
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
