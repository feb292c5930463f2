//! Waking those who look at all queues: a controller that scales by their lengths.

use super::{Queue, keys};
use crate::state::{State, StateError, Watch, WatchFrom};
use futures_util::FutureExt as _;
use std::sync::Arc;

/// Tells that some queue has changed; how, the woken look for themselves.
#[derive(Debug)]
pub struct QueueChanges {
    state: Arc<dyn State>,
    watch: Watch,
}

impl Queue {
    /// Watches all queues from now on.
    ///
    /// # Errors
    /// The state's failure.
    pub async fn changes(&self) -> Result<QueueChanges, StateError> {
        let state = self.state.clone();
        let watch = state.watch(keys::below(keys::COUNTS), WatchFrom::Now).await?;
        Ok(QueueChanges { state, watch })
    }
}

impl QueueChanges {
    /// Returns when a queue has changed since the last call. Many changes are one.
    ///
    /// # Errors
    /// The state's failure; then make a new one.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&mut self) -> Result<(), StateError> {
        match self.watch.next().await {
            Ok(_) => {}
            // Too slow to be told each change, which nobody wants here.
            Err(StateError::Lagged { .. } | StateError::Compacted { .. }) => {
                let span = keys::below(keys::COUNTS);
                self.watch = self.state.watch(span, WatchFrom::Now).await?;
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        while let Some(Ok(_)) = self.watch.next().now_or_never() {}
        Ok(())
    }
}
