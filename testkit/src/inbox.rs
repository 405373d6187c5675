//! Servers that take messages and keep them: an HTTP one for webhooks, an SMTP one for mail.

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::server::wait_until;

/// A request that a [`HookInbox`] took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Method and path, as `POST /hook`.
    pub line: String,
    /// Names in small letters, and values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Hook {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// An HTTP server on a free loopback port that keeps every request, and answers 200 or what was scripted.
#[derive(Debug)]
pub struct HookInbox(Inbox<Hook>);

impl HookInbox {
    /// Starts a server.
    pub fn start() -> Result<Self> {
        Ok(Self(Inbox::start(hook)?))
    }

    /// An address of it.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.0.port)
    }

    /// Scripts one answer, after those scripted before: what follows `HTTP/1.1 `, as `503 Away\r\nRetry-After: 7`.
    pub fn answer(&self, status_and_headers: &str) {
        self.0.state().answers.push_back(status_and_headers.to_owned());
    }

    /// Every request so far.
    pub fn hooks(&self) -> Vec<Hook> {
        self.0.state().taken.clone()
    }

    /// Waits until there are so many requests. Fails after a minute.
    pub fn wait_for(&self, count: usize) -> Result<Vec<Hook>> {
        let came = wait_until(|| self.0.state().taken.len() >= count);
        anyhow::ensure!(came, "only {} of {count} requests came", self.hooks().len());
        Ok(self.hooks())
    }
}

/// A mail that a [`MailInbox`] took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Every command of the session, without the text.
    pub commands: Vec<String>,
    /// Headers and body as they came, with `\n` for line ends.
    pub text: String,
}

/// A mail server without TLS on a free loopback port that takes every mail, or answers its end as scripted.
#[derive(Debug)]
pub struct MailInbox(Inbox<Letter>);

impl MailInbox {
    /// Starts a server.
    pub fn start() -> Result<Self> {
        Ok(Self(Inbox::start(letter)?))
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.0.port
    }

    /// Scripts the answer to one mail's text, after those scripted before, as `451 try later`.
    pub fn answer(&self, reply: &str) {
        self.0.state().answers.push_back(reply.to_owned());
    }

    /// Every mail so far, refused ones too.
    pub fn letters(&self) -> Vec<Letter> {
        self.0.state().taken.clone()
    }
}

#[derive(Debug)]
struct Inbox<T> {
    port: u16,
    state: Arc<Mutex<State<T>>>,
}

#[derive(Debug)]
struct State<T> {
    taken: Vec<T>,
    answers: VecDeque<String>,
    is_over: bool,
}

type Talk<T> = fn(TcpStream, &Mutex<State<T>>) -> Result<()>;

impl<T: Send + 'static> Inbox<T> {
    fn start(talk: Talk<T>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("bind the inbox")?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(Mutex::new(State { taken: Vec::new(), answers: VecDeque::new(), is_over: false }));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if locked(&shared).is_over {
                    return;
                }
                let shared = Arc::clone(&shared);
                // A client that goes away in the middle left nothing.
                thread::spawn(move || talk(client, &shared).ok());
            }
        });
        Ok(Self { port, state })
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        locked(&self.state)
    }
}

impl<T> Drop for Inbox<T> {
    fn drop(&mut self) {
        locked(&self.state).is_over = true;
        // Wakes the thread that accepts, so that it sees the end.
        TcpStream::connect(("127.0.0.1", self.port)).ok();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock can panic")
}

fn hook(client: TcpStream, state: &Mutex<State<Hook>>) -> Result<()> {
    client.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut reader = BufReader::new(client);
    let first = line(&mut reader)?;
    let mut headers = Vec::new();
    loop {
        let header = line(&mut reader)?;
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(':').context("a header has a colon")?;
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length").map_or("0", |(_, value)| value);
    let mut body = vec![0; length.parse()?];
    reader.read_exact(&mut body)?;
    let line = first.trim_end_matches(" HTTP/1.1").to_owned();
    let mut state = locked(state);
    state.taken.push(Hook { line, headers, body: String::from_utf8(body)? });
    let answer = state.answers.pop_front().unwrap_or_else(|| "200 OK".to_owned());
    drop(state);
    let said = "said by the inbox";
    let head = format!("HTTP/1.1 {answer}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{said}", said.len());
    Ok(reader.get_mut().write_all(head.as_bytes())?)
}

fn letter(client: TcpStream, state: &Mutex<State<Letter>>) -> Result<()> {
    client.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut reader = BufReader::new(client);
    let say =
        |reader: &mut BufReader<TcpStream>, reply: &str| reader.get_mut().write_all(format!("{reply}\r\n").as_bytes());
    say(&mut reader, "220 inbox")?;
    let mut commands = Vec::new();
    loop {
        let command = line(&mut reader)?;
        let verb = command.split(' ').next().unwrap_or_default().to_uppercase();
        commands.push(command);
        match verb.as_str() {
            "EHLO" => say(&mut reader, "250-inbox\r\n250-8BITMIME\r\n250 AUTH PLAIN LOGIN")?,
            "AUTH" => say(&mut reader, "235 welcome")?,
            "QUIT" => return Ok(say(&mut reader, "221 bye")?),
            "DATA" => {
                say(&mut reader, "354 go on")?;
                let mut text = String::new();
                loop {
                    let line = line(&mut reader)?;
                    if line == "." {
                        break;
                    }
                    text += line.strip_prefix('.').unwrap_or(&line);
                    text.push('\n');
                }
                let mut state = locked(state);
                state.taken.push(Letter { commands: commands.clone(), text });
                let reply = state.answers.pop_front().unwrap_or_else(|| "250 taken".to_owned());
                drop(state);
                say(&mut reader, &reply)?;
            }
            _ => say(&mut reader, "250 fine")?,
        }
    }
}

/// The next line, without its end.
fn line(reader: &mut BufReader<TcpStream>) -> Result<String> {
    let mut line = String::new();
    anyhow::ensure!(reader.read_line(&mut line)? > 0, "the client went away");
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
