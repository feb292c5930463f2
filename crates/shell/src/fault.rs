//! Places where a test may stop a task, to see what a crash exactly there leaves.
//!
//! A test *arms* a point; the task that comes there next stays there for ever, and the test, which waits for that, ends
//! it as a crash would. Only debug builds know points: in a release build [`point`] is empty.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;

/// Armed points: name and scope, and what is cancelled when a task arrives.
static ARMED: Mutex<Option<HashMap<(String, String), CancellationToken>>> = Mutex::new(None);

fn armed() -> MutexGuard<'static, Option<HashMap<(String, String), CancellationToken>>> {
    ARMED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A point that is armed until this is dropped.
#[derive(Debug)]
pub struct ArmedPoint {
    key: (String, String),
    arrived: CancellationToken,
}

impl ArmedPoint {
    /// Returns when a task stands at the point.
    ///
    /// # Cancel safety
    /// Safe: it only watches.
    pub async fn arrived(&self) {
        self.arrived.cancelled().await;
    }
}

impl Drop for ArmedPoint {
    fn drop(&mut self) {
        if let Some(points) = armed().as_mut() {
            points.remove(&self.key);
        }
    }
}

/// Arms a point in debug builds. `scope` tells the parts of one process apart: the name of a node's network.
pub fn arm(name: &str, scope: &str) -> ArmedPoint {
    let (key, arrived) = ((name.to_owned(), scope.to_owned()), CancellationToken::new());
    armed().get_or_insert_default().insert(key.clone(), arrived.clone());
    ArmedPoint { key, arrived }
}

/// A place where a test may stop this task. Without a test, and in release builds, it does nothing.
///
/// # Cancel safety
/// Safe: it changes nothing.
pub async fn point(name: &str, scope: &str) {
    if cfg!(debug_assertions) {
        let key = (name.to_owned(), scope.to_owned());
        let reached = armed().as_ref().and_then(|points| points.get(&key).cloned());
        if let Some(reached) = reached {
            reached.cancel();
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_stays_where_it_is_armed() {
        let armed = arm("somewhere", "here");
        point("somewhere", "there").await;
        point("elsewhere", "here").await;
        tokio::select! {
            () = point("somewhere", "here") => panic!("passed an armed point"),
            () = armed.arrived() => {}
        }
        drop(armed);
        point("somewhere", "here").await;
    }
}
