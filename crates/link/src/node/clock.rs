//! The one place of the node that reads a clock.

use skein_link_core::light::Moment;
use std::time::Instant;

/// The monotonic clock, from its own beginning.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that begins now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Now. The first nanosecond is left out, so that no moment is the origin itself.
    pub fn now(&self) -> Moment {
        let nanos = u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Moment::from_nanos(nanos.saturating_add(1))
    }
}
