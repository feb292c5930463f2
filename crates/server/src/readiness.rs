//! Whether the state can be written. Whoever asks needs no token, so it is tried at most once a second.

use skein_fabric::{Key, State};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

/// What was found is told for so long.
const KEPT: Duration = Duration::from_secs(1);
/// A store that takes longer is not ready.
const DEADLINE: Duration = Duration::from_secs(1);
/// The key that is written; its value says nothing.
const KEY: &str = "readyz";

/// The last trial: when it ended, and whether it succeeded. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Readiness(Arc<Mutex<Option<(Instant, bool)>>>);

impl Readiness {
    /// Whether a write succeeds, or did within the last second. Those who ask at once wait for one trial.
    pub(crate) async fn look(&self, state: &dyn State) -> bool {
        let mut last = self.0.lock().await;
        if let Some((at, ready)) = *last
            && at.elapsed() < KEPT
        {
            return ready;
        }
        let Ok(key) = Key::new(KEY) else { return false };
        let ready = matches!(timeout(DEADLINE, state.put(key, "".into())).await, Ok(Ok(_)));
        *last = Some((Instant::now(), ready));
        ready
    }
}
