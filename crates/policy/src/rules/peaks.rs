//! The greatest of the latest answers, in little memory.

use serde::{Deserialize, Serialize};
use skein_model::Timestamp;
use std::collections::VecDeque;
use std::time::Duration;

/// The greatest value of a window that moves with time.
///
/// Only values that may still become the greatest are kept: each is less than the one before it. A window of an hour
/// asked every 100 ms keeps 36,000 at most, and that only while they fall without a break.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Peaks(VecDeque<(Timestamp, u32)>);

impl Peaks {
    /// Adds the value of now, forgets what is older than `window`; the greatest of what is left, that of now among it.
    pub(crate) fn observe(&mut self, value: u32, window: Duration, now: Timestamp) -> u32 {
        while self.0.back().is_some_and(|(_, last)| *last <= value) {
            self.0.pop_back();
        }
        self.0.push_back((now, value));
        while self.0.front().is_some_and(|(at, _)| *at + window < now) {
            self.0.pop_front();
        }
        self.0.front().map_or(value, |(_, greatest)| *greatest)
    }

    /// When the greatest value is forgotten, if a lesser one is there to follow it.
    pub(crate) fn falls_at(&self, window: Duration) -> Option<Timestamp> {
        let (at, _) = self.0.front().filter(|_| self.0.len() > 1)?;
        Some(*at + window + Duration::from_micros(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_of_the_window_is_known() {
        let (mut peaks, window) = (Peaks::default(), Duration::from_secs(10));
        let mut all: Vec<(u64, u32)> = vec![];
        for (second, value) in
            [(0, 3), (1, 9), (2, 4), (3, 4), (9, 2), (11, 1), (12, 1), (13, 7), (40, 0)]
        {
            all.push((second, value));
            let now = Timestamp::from_micros(second * 1_000_000);
            let expect = all.iter().filter(|(at, _)| at + 10 >= second).map(|(_, v)| *v).max();
            assert_eq!(Some(peaks.observe(value, window, now)), expect, "{all:?}");
        }
        assert_eq!(peaks.falls_at(window), None);
        peaks.observe(0, window, Timestamp::from_micros(41_000_000));
        assert_eq!(peaks.0.len(), 1);
    }
}
