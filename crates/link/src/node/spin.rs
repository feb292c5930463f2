//! How long to look for work before sleeping.

use std::time::Duration;

/// Looking once takes about so long; a shorter budget is none.
const STEP: Duration = Duration::from_micros(1);

/// A budget that doubles when looking found something and halves when it did not: a thread that shares its processor
/// with busy others finds less, and soon looks no more. After sleep, the first thing that comes restores a little of it.
#[derive(Debug)]
pub(super) struct Spin {
    budget: Duration,
    max: Duration,
}

impl Spin {
    pub(super) fn new(max: Duration) -> Self {
        Self { budget: max, max }
    }

    pub(super) fn budget(&self) -> Duration {
        if self.budget < STEP { Duration::ZERO } else { self.budget }
    }

    /// Something came while looking.
    pub(super) fn on_hit(&mut self) {
        self.budget = (self.budget * 2).max(STEP * 2).min(self.max);
    }

    /// The budget was used up for nothing.
    pub(super) fn on_miss(&mut self) {
        self.budget /= 2;
    }

    /// Something came very soon after going to sleep: looking longer would have found it.
    pub(super) fn on_short_sleep(&mut self) {
        self.on_hit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_up_and_comes_back() {
        let max = Duration::from_micros(20);
        let mut spin = Spin::new(max);
        (0..6).for_each(|_| spin.on_miss());
        assert_eq!(spin.budget(), Duration::ZERO);
        (0..5).for_each(|_| spin.on_short_sleep());
        assert_eq!(spin.budget(), max);
        let mut never = Spin::new(Duration::ZERO);
        never.on_hit();
        assert_eq!(never.budget(), Duration::ZERO);
    }
}
