//! CPU use per second, from two readings.

use std::time::{Duration, Instant};

/// Readings closer than this give no new rate: the kernel's counters move in ticks.
const SHORTEST: Duration = Duration::from_millis(100);

/// The rate of a counter between the readings of successive requests.
#[derive(Debug, Default)]
pub(super) struct Rate {
    base: Option<(Instant, u64)>,
    per_second: Option<u64>,
}

impl Rate {
    /// Takes the counter's value at `now`; returns its growth per second since the reading before, none at first. A
    /// reading soon after the last repeats that one's rate.
    pub(super) fn observe(&mut self, now: Instant, value: u64) -> Option<u64> {
        let Some((then, before)) = self.base else {
            self.base = Some((now, value));
            return None;
        };
        let elapsed = now.saturating_duration_since(then);
        if value < before {
            *self = Self {
                base: Some((now, value)),
                per_second: None,
            };
        } else if elapsed >= SHORTEST {
            let grown = u128::from(value - before) * 1_000_000_000 / elapsed.as_nanos();
            *self = Self {
                base: Some((now, value)),
                per_second: u64::try_from(grown).ok(),
            };
        }
        self.per_second
    }
}

#[cfg(test)]
mod tests {
    use super::Rate;
    use std::time::{Duration, Instant};

    #[test]
    fn a_rate_needs_two_readings_some_time_apart() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(rate.observe(at(0), 1_000), None);
        assert_eq!(rate.observe(at(50), 9_000), None);
        assert_eq!(rate.observe(at(500), 501_000), Some(1_000_000));
        assert_eq!(rate.observe(at(550), 900_000), Some(1_000_000));
        assert_eq!(rate.observe(at(1500), 1_501_000), Some(1_000_000));
        // A counter that starts anew is no rate.
        assert_eq!(rate.observe(at(2500), 5), None);
        assert_eq!(rate.observe(at(3500), 5), Some(0));
    }
}
