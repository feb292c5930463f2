//! How far a computation is, and the wish to end it early: shared with whoever shows the one and wishes the other.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Progress of a computation, and the wish to end it early.
///
/// Work is counted in units that only compare with each other: cells of the statistics of a simulation, sweeps of a solver. How
/// much there is to do may grow while it is done, because a search finds its work on the way.
#[derive(Debug, Default)]
pub struct Progress {
    replications: AtomicU32,
    done: AtomicU64,
    expected: AtomicU64,
    stopped: AtomicBool,
}

impl Progress {
    /// Replications done.
    pub fn replications(&self) -> u32 {
        self.replications.load(Ordering::Relaxed)
    }

    /// The share of the work known so far that is done, 0 to 1; none while nothing is known.
    pub fn share(&self) -> Option<f64> {
        let expected = self.expected.load(Ordering::Relaxed);
        let done = self.done.load(Ordering::Relaxed);
        (expected > 0).then(|| (done as f64 / expected as f64).min(1.0))
    }

    /// Nothing further begins, and what is under way ends where it can.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether somebody wishes the end.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// So many more units are to be done.
    pub(crate) fn expect(&self, units: u64) {
        self.expected.fetch_add(units, Ordering::Relaxed);
    }

    /// So many units were done.
    #[inline]
    pub(crate) fn advance(&self, units: u64) {
        self.done.fetch_add(units, Ordering::Relaxed);
    }

    /// A replication was done.
    pub(crate) fn end_replication(&self) {
        self.replications.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_known_once_work_is() {
        let progress = Progress::default();
        assert_eq!(progress.share(), None);
        progress.expect(4);
        progress.advance(1);
        assert_eq!(progress.share(), Some(0.25));
        progress.expect(4);
        assert_eq!(progress.share(), Some(0.125));
        progress.advance(9);
        assert_eq!(progress.share(), Some(1.0), "never more than all");
        assert!(!progress.is_stopped());
        progress.stop();
        assert!(progress.is_stopped());
    }
}
