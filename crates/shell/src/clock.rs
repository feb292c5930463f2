//! The one place that reads the wall clock and the system's randomness.

use skein_model::Timestamp;
use std::time::SystemTime;

/// The wall clock. Leases and deadlines within a process use the runtime's monotonic clock instead.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// 64 random bits.
pub fn random_u64() -> u64 {
    rand::random()
}

/// 128 random bits, of which a job id takes 80.
pub fn random_u128() -> u128 {
    rand::random()
}
