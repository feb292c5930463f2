//! Tasks that a parent holds: it sees their panics, stops them within a budget, and none outlives it unseen.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

/// A group of tasks with one stop token. Cheap to clone; the tasks are aborted when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Tasks {
    set: Arc<Mutex<JoinSet<()>>>,
    stop: CancellationToken,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    /// A group of its own.
    pub fn new() -> Self {
        Self { set: Arc::default(), stop: CancellationToken::new() }
    }

    /// Starts a task in this group. It should end when [`Tasks::stop_token`] is cancelled. What has ended before is
    /// reaped, and a panic is logged.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(ended) = set.try_join_next() {
            report(ended);
        }
        set.spawn(task);
    }

    /// Cancelled when the group is to stop.
    pub fn stop_token(&self) -> &CancellationToken {
        &self.stop
    }

    /// Asks all tasks to stop, waits for them, and aborts those that are not done within `budget`.
    pub async fn shutdown(&self, budget: Duration) {
        self.stop.cancel();
        let mut set = std::mem::take(&mut *self.set.lock().unwrap_or_else(PoisonError::into_inner));
        let all = async {
            while let Some(ended) = set.join_next().await {
                report(ended);
            }
        };
        if tokio::time::timeout(budget, all).await.is_err() {
            warn!(tasks = set.len(), "tasks did not stop in time and are aborted");
            set.shutdown().await;
        }
    }

    /// Ends all tasks where they stand, without their clean-up: what a crash does. For tests of faults.
    pub async fn crash(&self) {
        // A task that is ended may just have started another.
        loop {
            let mut set =
                std::mem::take(&mut *self.set.lock().unwrap_or_else(PoisonError::into_inner));
            if set.is_empty() {
                return;
            }
            set.shutdown().await;
        }
    }
}

fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        error!(%error, "a task panicked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn shutdown_waits_for_the_willing_and_ends_the_others() {
        let tasks = Tasks::new();
        let done = Arc::new(AtomicU32::new(0));
        let (stop, count) = (tasks.stop_token().clone(), done.clone());
        tasks.spawn(async move {
            stop.cancelled().await;
            count.fetch_add(1, Ordering::Relaxed);
        });
        tasks.spawn(std::future::pending());
        tasks.shutdown(Duration::from_millis(50)).await;
        assert_eq!(done.load(Ordering::Relaxed), 1);
    }
}
