//! Waiting on a condition, with a deadline.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// Far beyond what any step takes, even on a loaded host: reached only if it never happens.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(15);

/// Waits until `condition` gives a value.
///
/// # Errors
/// It never did, or the condition itself failed.
pub async fn until<T>(
    what: &str,
    mut condition: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition().await? {
            return Ok(value);
        }
        if begun.elapsed() > DEADLINE {
            bail!("never happened: {what}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
