//! Telling those who look at all queues: a controller that scales by their lengths, a recorder of ends.

use super::{Queue, QueueError, keys};
use crate::state::{Batch, Event, State, StateError, TXN_OPS_MAX, Watch, WatchFrom};
use futures_util::FutureExt as _;
use skein_model::{JobId, JobRecord};
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

/// Tells which jobs have ended, in the order of their ends.
#[derive(Debug)]
pub struct QueueEnds {
    queue: Queue,
    watch: Watch,
}

impl Queue {
    /// Watches the ends of all jobs from now on.
    ///
    /// # Errors
    /// The state's failure.
    pub async fn ends(&self) -> Result<QueueEnds, StateError> {
        let watch = self.state.watch(keys::below(keys::ENDED), WatchFrom::Now).await?;
        Ok(QueueEnds { queue: self.clone(), watch })
    }
}

impl QueueEnds {
    /// The jobs that have ended since the last call, at least one. One that has been forgotten since is passed over.
    ///
    /// # Errors
    /// The state's failure; then make a new one. After [`StateError::Lagged`] some ends were not told.
    ///
    /// # Cancel safety
    /// Not safe: what was taken from the watch is lost.
    pub async fn next(&mut self) -> Result<Vec<JobRecord>, QueueError> {
        loop {
            let mut ended = Vec::new();
            let first = self.watch.next().await?;
            ended.extend(jobs_of(&first));
            while ended.len() < TXN_OPS_MAX
                && let Some(Ok(more)) = self.watch.next().now_or_never()
            {
                ended.extend(jobs_of(&more));
            }
            let mut jobs = Vec::with_capacity(ended.len());
            for ids in ended.chunks(TXN_OPS_MAX) {
                jobs.extend(self.queue.jobs_of(ids).await?.into_iter().flatten());
            }
            if !jobs.is_empty() {
                return Ok(jobs);
            }
        }
    }
}

/// Jobs that a batch of changes has put among the ended ones.
fn jobs_of(batch: &Batch) -> impl Iterator<Item = JobId> {
    batch.events.iter().filter_map(|event| match event {
        Event::Put(entry) => keys::queue_and_job(&entry.key).map(|(_, id)| id),
        Event::Deleted(_) => None,
    })
}
