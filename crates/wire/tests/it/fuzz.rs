//! Frames that no client would send, before and after the sign-in.

use std::time::Duration;

use headworks_wire::postgres::Options;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    raw::{Raw, bind, describe, execute, message, parse, query, shown, startup, sync},
    support::Server,
};

/// The most memory that this process has held so far, in bytes.
fn memory_peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Numbers that look random and are the same for the same seed (splitmix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap()
    }
}

fn before_sign_in() -> Vec<Vec<u8>> {
    let first = b"n,,n=,r=abcdefgh";
    let mut sasl = b"SCRAM-SHA-256\0\0\0\0\x10".to_vec();
    sasl.extend_from_slice(first);
    vec![
        vec![0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f],
        vec![0, 0, 0, 8, 4, 0xd2, 0x16, 0x30],
        vec![0, 0, 0, 16, 4, 0xd2, 0x16, 0x2e, 0, 0, 0, 1, 0, 0, 0, 2],
        startup(&[("user", "ann"), ("database", "headworks"), ("options", "-c statement_timeout=5s")]),
        [startup(&[("user", "ann")]), message(b'p', &sasl)].concat(),
        [startup(&[("user", "ann")]), message(b'p', &sasl), message(b'p', b"c=biws,r=abcdefgh,p=AAAA")].concat(),
        query("select 1"),
        message(b'p', b"secret\0"),
    ]
}

fn after_sign_in() -> Vec<Vec<u8>> {
    let extended = |sql: &str, values: &[Option<&str>]| {
        [parse("", sql, &[23]), bind("", "", values, 1), describe('P', ""), execute("", 2), sync()].concat()
    };
    vec![
        query("select 1; show all; select 'x'"),
        query("begin; declare c cursor for select n from numbers; fetch 3 from c; rollback"),
        query("copy (select n from numbers limit 3) to stdout with (format csv, header)"),
        query("set application_name = 'x'; reset all; discard all"),
        query("select relname from pg_catalog.pg_class where oid = 'numbers'::regclass"),
        extended("select n from numbers where n > $1 limit 5", &[Some("7")]),
        extended("select $1", &[None]),
        [parse("a", "select 1", &[]), describe('S', "a"), message(b'C', b"Sa\0"), message(b'H', b""), sync()].concat(),
        message(b'd', b"some data"),
        message(b'f', b"no\0"),
        sync(),
    ]
}

/// Spoils one place or several: bits, bytes, lengths, the end, a piece of another frame.
fn mutate(chance: &mut Chance, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[chance.below(seeds.len())].clone();
    for _ in 0..=chance.below(4) {
        let at = chance.below(bytes.len());
        match chance.below(8) {
            0 => bytes[at] ^= 1 << chance.below(8),
            1 => bytes[at] = chance.next().to_le_bytes()[0],
            2 => bytes.truncate(at.max(1)),
            3 => bytes.insert(at, chance.next().to_le_bytes()[0]),
            4 => drop(bytes.remove(at)),
            5 => {
                // A number that lengths and counts are made of.
                let evil: [[u8; 4]; 6] =
                    [[0xff; 4], [0x7f, 0xff, 0xff, 0xff], [0; 4], [0, 0, 0, 3], [0, 1, 0, 0], [0x40, 0, 0, 0]];
                let evil = evil[chance.below(evil.len())];
                for (slot, byte) in bytes.iter_mut().skip(at).zip(evil) {
                    *slot = byte;
                }
            }
            6 => {
                let other = &seeds[chance.below(seeds.len())];
                let piece = &other[chance.below(other.len())..];
                bytes.splice(at..at, piece.iter().copied());
            }
            _ => bytes.extend_from_within(at..),
        }
        if bytes.is_empty() {
            bytes.push(0);
        }
    }
    bytes
}

/// Sends what there is, says that nothing more comes, and waits for the server to hang up.
async fn end(mut raw: Raw, what: &str) {
    raw.stream.shutdown().await.ok();
    let drain = async {
        let mut sink = [0; 4096];
        while raw.stream.read(&mut sink).await.is_ok_and(|read| read > 0) {}
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), drain).await.is_ok(), "the server hangs: {what}");
}

async fn frames(total: usize, seed: u64) {
    let options = Options { sign_in_timeout: Duration::from_secs(5), ..Options::default() };
    let server = Server::start_with(options).await;
    assert_eq!(shown(&Raw::connect(server.address).await.ask("select 1").await), "1");
    let mut chance = Chance(seed);
    let (before, after) = (before_sign_in(), after_sign_in());
    let peak = memory_peak();
    let mut sent = 0;
    while sent < total {
        let mut raw = Raw::open(server.address).await;
        let bytes = mutate(&mut chance, &before);
        raw.stream.write_all(&bytes).await.ok();
        sent += 1;
        end(raw, &format!("seed {seed}, frame {sent}: {bytes:02x?}")).await;

        // Many frames on one connection, until the server has had enough of it.
        let raw = Raw::connect(server.address).await;
        let mut all = Vec::new();
        for _ in 0..30 {
            all.extend(mutate(&mut chance, &after));
            sent += 1;
        }
        let (mut reader, mut writer) = raw.stream.into_split();
        let write = async {
            writer.write_all(&all).await.ok();
            writer.shutdown().await.ok();
        };
        let read = async {
            let mut sink = [0; 16 << 10];
            while reader.read(&mut sink).await.is_ok_and(|read| read > 0) {}
        };
        let both = async { tokio::join!(write, read) };
        let ended = Box::pin(tokio::time::timeout(Duration::from_secs(30), both)).await;
        assert!(ended.is_ok(), "the server hangs: seed {seed}, frames up to {sent}: {all:02x?}");
    }
    server.is_quiet().await;
    for _ in 0..100 {
        if server.handle.connections() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(server.handle.connections(), 0);
    let mut raw = Raw::connect(server.address).await;
    assert_eq!(shown(&raw.ask("select count(*) from numbers").await), "10000");
    let grown = memory_peak() - peak;
    println!("{sent} frames of seed {seed}; memory grew by {grown} bytes");
    // Queries of small tables on a few connections take some; an announced length of a gigabyte does not fit in.
    assert!(grown < 256 << 20, "memory grew by {grown} bytes");
}

/// The seed of a run: another one each day would find more, the same one finds it again.
const SEED: u64 = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutated_frames_neither_end_nor_fill_the_server() {
    frames(20_000, SEED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: a million frames"]
async fn a_million_mutated_frames_neither_end_nor_fill_the_server() {
    frames(1_000_000, SEED + 1).await;
}
