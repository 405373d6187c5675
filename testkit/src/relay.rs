use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

use anyhow::{Context as _, Result};

/// Stands before a server on loopback and breaks its connections on order: for lost replies, cut connections, a server that is
/// away.
///
/// ```no_run
/// # fn main() -> anyhow::Result<()> {
/// # let postgres = headworks_testkit::TempPostgres::start()?;
/// let relay = headworks_testkit::Relay::start(postgres.port())?;
/// // A client goes to 127.0.0.1:{relay.port()}. Its next COMMIT is carried out, but it never hears of it.
/// relay.lose_reply_to("commit");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Relay {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Both ends of every connection.
    open: Vec<TcpStream>,
    /// The words of the request whose reply is to be lost, in lower case.
    lose: Option<Vec<u8>>,
    lost: usize,
    is_away: bool,
    is_over: bool,
}

impl Relay {
    /// Starts a relay to a port on 127.0.0.1.
    pub fn start(target: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("bind the relay")?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if locked(&shared).is_over {
                    return;
                }
                if !locked(&shared).is_away
                    && let Ok(server) = TcpStream::connect(("127.0.0.1", target))
                {
                    join(&shared, client, server).ok();
                }
            }
        });
        Ok(Self { port, state })
    }

    /// The port on 127.0.0.1 that clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Closes all connections.
    pub fn cut(&self) {
        locked(&self.state).cut();
    }

    /// Closes all connections and every new one at once, until [`come_back`](Self::come_back).
    pub fn go_away(&self) {
        let mut state = locked(&self.state);
        state.is_away = true;
        state.cut();
    }

    /// Lets new connections through again.
    pub fn come_back(&self) {
        locked(&self.state).is_away = false;
    }

    /// Lets the next request that has these words in its bytes (in any case) reach the server, and closes the connection when
    /// the server answers: it was carried out, and the client can't know.
    pub fn lose_reply_to(&self, words: &str) {
        locked(&self.state).lose = Some(words.to_lowercase().into_bytes());
    }

    /// How many replies were lost so far.
    pub fn replies_lost(&self) -> usize {
        locked(&self.state).lost
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let mut state = locked(&self.state);
        state.is_over = true;
        state.cut();
        drop(state);
        // Wakes the thread that accepts, so that it sees the end.
        TcpStream::connect(("127.0.0.1", self.port)).ok();
    }
}

impl State {
    fn cut(&mut self) {
        for stream in self.open.drain(..) {
            stream.shutdown(Shutdown::Both).ok();
        }
    }

    /// Says whether the reply to this request is to be lost, and forgets the order if so.
    fn takes(&mut self, request: &[u8]) -> bool {
        let Some(words) = &self.lose else { return false };
        let found = request.to_ascii_lowercase().windows(words.len()).any(|window| window == words);
        if found {
            self.lose = None;
        }
        found
    }
}

/// Carries bytes both ways until either side closes.
fn join(state: &Arc<Mutex<State>>, client: TcpStream, server: TcpStream) -> Result<()> {
    let doomed = Arc::new(Mutex::new(false));
    let mut open = locked(state);
    open.open.push(client.try_clone()?);
    open.open.push(server.try_clone()?);
    drop(open);
    let (orders, doom) = (Arc::clone(state), Arc::clone(&doomed));
    let (from, to) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        carry(from, to, |request| {
            if locked(&orders).takes(request) {
                *locked(&doom) = true;
            }
            true
        });
    });
    let losses = Arc::clone(state);
    thread::spawn(move || {
        carry(server, client, |_| {
            let is_lost = *locked(&doomed);
            if is_lost {
                locked(&losses).lost += 1;
            }
            !is_lost
        });
    });
    Ok(())
}

/// Copies bytes while `passes` lets them through, then closes both ends.
fn carry(mut from: TcpStream, mut to: TcpStream, mut passes: impl FnMut(&[u8]) -> bool) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 || !passes(&buffer[..count]) || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    from.shutdown(Shutdown::Both).ok();
    to.shutdown(Shutdown::Both).ok();
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock can panic")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Moto, http::request};

    #[test]
    fn a_lost_reply_is_to_a_request_that_was_carried_out() {
        let moto = Moto::start().unwrap();
        let relay = Relay::start(moto.port()).unwrap();
        request(relay.port(), "PUT", "/lake", b"").unwrap();

        relay.lose_reply_to("PUT /lake/a");
        request(relay.port(), "PUT", "/lake/b", b"b").unwrap();
        assert!(request(relay.port(), "PUT", "/lake/a", b"a").is_err());
        assert_eq!(relay.replies_lost(), 1);
        assert_eq!(moto.get("lake", "a").unwrap(), b"a");

        relay.go_away();
        assert!(request(relay.port(), "GET", "/lake/a", b"").is_err());
        relay.come_back();
        assert_eq!(request(relay.port(), "GET", "/lake/a", b"").unwrap().body, b"a");
    }
}
