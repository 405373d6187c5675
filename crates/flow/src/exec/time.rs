//! Time that goes on at its own pace when somebody sets the clock back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use headworks_domain::Clock;
use tokio::time::Instant;

/// The clock's time, which follows it forward and never back: a pause before a retry that was a minute long stays one.
pub(super) struct SteadyTime {
    clock: Arc<dyn Clock>,
    start: Instant,
    /// The largest distance seen between the clock and the time since `start`, in microseconds.
    ahead: AtomicI64,
}

impl SteadyTime {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, start: Instant::now(), ahead: AtomicI64::new(i64::MIN) }
    }

    pub(super) fn now(&self) -> DateTime<Utc> {
        self.at(self.clock.now(), self.start.elapsed())
    }

    /// The time when the clock shows `wall` and so much has passed since the start.
    fn at(&self, wall: DateTime<Utc>, passed: Duration) -> DateTime<Utc> {
        let passed = i64::try_from(passed.as_micros()).unwrap_or(i64::MAX);
        let here = wall.timestamp_micros().saturating_sub(passed);
        let ahead = self.ahead.fetch_max(here, Ordering::Relaxed).max(here);
        DateTime::from_timestamp_micros(ahead.saturating_add(passed)).unwrap_or(wall)
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use headworks_domain::SystemClock;

    use super::*;

    #[test]
    fn a_clock_set_back_stops_no_pause_and_one_set_forward_is_followed() {
        let noon = DateTime::from_timestamp(1_000_000, 0).unwrap();
        let time = SteadyTime::new(Arc::new(SystemClock));
        let after = |seconds| noon + TimeDelta::seconds(seconds);
        for (wall, passed, expected) in [(0, 0, 0), (60 - 7200, 60, 60), (120 - 7200, 120, 120), (9000, 180, 9000)] {
            assert_eq!(time.at(after(wall), Duration::from_secs(passed)), after(expected), "{wall} {passed}");
        }
    }
}
