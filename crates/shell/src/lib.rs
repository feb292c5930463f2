//! The thin shell around the pure core: tasks that a parent holds, the clock, and error chains.
//!
//! Whatever waits or reads the time does it through here, so that one place shows who may.

mod clock;
pub mod fault;
pub mod report;
mod tasks;

pub use clock::{now, random_u64, random_u128};
pub use tasks::Tasks;
