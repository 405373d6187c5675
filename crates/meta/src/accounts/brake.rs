use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};

/// Wrong passwords that anybody may type without waiting.
const FREE: u32 = 3;
/// The longest wait.
const WAIT_MAX: Duration = Duration::from_secs(300);
/// After so long without a failure all is forgotten.
const MEMORY: Duration = Duration::from_secs(3_600);
/// The most pairs of name and address that are remembered; the quietest are forgotten first.
const PAIRS_MAX: usize = 10_000;
/// Longer names are told apart by their beginnings.
const NAME_CHARS_MAX: usize = 64;

/// Makes those wait who sign in wrongly again and again, whether or not there is a user of that name.
#[derive(Default)]
pub(super) struct Brake {
    failed: Mutex<HashMap<(String, IpAddr), Failed>>,
}

#[derive(Clone, Copy)]
struct Failed {
    times: u32,
    last: DateTime<Utc>,
}

impl Failed {
    fn is_over(self, now: DateTime<Utc>) -> bool {
        since(self.last, now) >= MEMORY
    }

    fn wait(self) -> Duration {
        match self.times.checked_sub(FREE + 1) {
            None => Duration::ZERO,
            Some(doubled) => Duration::from_secs(1 << doubled.min(16)).min(WAIT_MAX),
        }
    }
}

/// A clock that was set back makes nobody wait longer than the longest wait.
fn since(last: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
    (now - last).to_std().unwrap_or(Duration::ZERO)
}

impl Brake {
    /// How long to wait before the next try.
    pub(super) fn wait(&self, login: &str, from: IpAddr, now: DateTime<Utc>) -> Option<Duration> {
        let failed = self.pairs().get(&pair(login, from)).copied()?;
        failed.wait().checked_sub(since(failed.last, now)).filter(|wait| !wait.is_zero())
    }

    /// Counts a failure and gives the number of those that are remembered.
    pub(super) fn failed(&self, login: &str, from: IpAddr, now: DateTime<Utc>) -> u32 {
        let mut pairs = self.pairs();
        if pairs.len() >= PAIRS_MAX {
            forget_some(&mut pairs, now);
        }
        let failed = pairs.entry(pair(login, from)).or_insert(Failed { times: 0, last: now });
        let times = if failed.is_over(now) { 1 } else { failed.times.saturating_add(1) };
        *failed = Failed { times, last: now };
        times
    }

    pub(super) fn forget(&self, login: &str, from: IpAddr) {
        self.pairs().remove(&pair(login, from));
    }

    fn pairs(&self) -> MutexGuard<'_, HashMap<(String, IpAddr), Failed>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes room: what is over, and when that is nothing the quietest tenth.
fn forget_some(pairs: &mut HashMap<(String, IpAddr), Failed>, now: DateTime<Utc>) {
    pairs.retain(|_, failed| !failed.is_over(now));
    if pairs.len() < PAIRS_MAX {
        return;
    }
    let mut order: Vec<(u32, DateTime<Utc>)> = pairs.values().map(|failed| (failed.times, failed.last)).collect();
    order.sort_unstable();
    let least = order[PAIRS_MAX / 10];
    pairs.retain(|_, failed| (failed.times, failed.last) > least);
}

/// Whoever has one address of version 6 has the 2^64 beside it.
fn pair(login: &str, from: IpAddr) -> (String, IpAddr) {
    let from = match from.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        v4 => v4,
    };
    (login.chars().take(NAME_CHARS_MAX).collect(), from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + seconds, 0).unwrap()
    }

    #[test]
    fn waits_grow_and_end() {
        let (brake, here) = (Brake::default(), "10.0.0.1".parse().unwrap());
        let mut waits = Vec::new();
        for _ in 0..14 {
            brake.failed("ann", here, at(0));
            waits.push(brake.wait("ann", here, at(0)).map_or(0, |wait| wait.as_secs()));
        }
        assert_eq!(waits, [0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(brake.wait("ann", here, at(299)), Some(Duration::from_secs(1)));
        assert_eq!(brake.wait("ann", here, at(300)), None);
        assert_eq!(brake.wait("ann", here, at(-50)), Some(WAIT_MAX), "a clock that was set back");
        assert_eq!(brake.wait("ann", "10.0.0.2".parse().unwrap(), at(0)), None, "another address");
        assert_eq!(brake.wait("bob", here, at(0)), None, "another name");
        assert_eq!(brake.failed("ann", here, at(3_600)), 1, "forgotten by then");
        brake.forget("ann", here);
        assert_eq!(brake.failed("ann", here, at(3_600)), 1);
    }

    #[test]
    fn neighbours_of_version_6_are_one() {
        let brake = Brake::default();
        for n in 0..5 {
            brake.failed("ann", format!("2001:db8::{n}").parse().unwrap(), at(0));
        }
        assert!(brake.wait("ann", "2001:db8::ffff".parse().unwrap(), at(0)).is_some());
        assert!(brake.wait("ann", "2001:db8:0:1::1".parse().unwrap(), at(0)).is_none());
        brake.failed("bob", "::ffff:10.0.0.1".parse().unwrap(), at(0));
        assert_eq!(brake.failed("bob", "10.0.0.1".parse().unwrap(), at(0)), 2);
    }

    #[test]
    fn a_flood_of_names_forgets_the_quiet_ones() {
        let (brake, here) = (Brake::default(), "10.0.0.1".parse().unwrap());
        for _ in 0..6 {
            brake.failed("ann", here, at(0));
        }
        for n in 0..30_000 {
            brake.failed(&format!("user {n}"), here, at(1));
        }
        assert!(brake.pairs().len() <= PAIRS_MAX);
        assert!(brake.wait("ann", here, at(1)).is_some());
    }
}
