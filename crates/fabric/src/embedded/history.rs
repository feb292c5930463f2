//! What has changed lately, and who wants to know.

use crate::state::{Batch, Event, KeySpan, Revision, StateError, Watch, WatchFrom};
use futures_util::stream;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::mpsc;

/// Batches that wait for one watcher: some 100 ms of the fastest writing, after which a watcher is stuck rather than
/// slow.
const WATCHER_BATCHES_MAX: usize = 1024;

/// Bytes that wait for one watcher.
const WATCHER_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The last changes of the whole store, bounded in number and bytes, and the watchers.
pub(super) struct History {
    /// Everything up to and including this revision is forgotten.
    forgotten: Revision,
    batches: VecDeque<Arc<Batch>>,
    bytes: usize,
    batches_max: usize,
    bytes_max: usize,
    watchers: Vec<Watcher>,
}

struct Watcher {
    span: KeySpan,
    /// Nothing before this is delivered.
    from: Revision,
    sender: mpsc::Sender<Batch>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Bytes sent and not yet taken.
    waiting_bytes: AtomicUsize,
    /// Set before the channel is closed on a watcher that did not keep up.
    lagged: OnceLock<Revision>,
}

impl History {
    pub(super) fn new(forgotten: Revision, batches_max: usize, bytes_max: usize) -> Self {
        let batches = VecDeque::new();
        Self { forgotten, batches, bytes: 0, batches_max, bytes_max, watchers: Vec::new() }
    }

    /// Remembers a committed revision and tells the watchers.
    pub(super) fn publish(&mut self, batch: Batch) {
        self.watchers.retain(|watcher| watcher.offer(&batch));
        self.bytes += size(&batch);
        self.batches.push_back(Arc::new(batch));
        while self.batches.len() > self.batches_max || self.bytes > self.bytes_max {
            let Some(oldest) = self.batches.pop_front() else { break };
            self.forget(&oldest);
        }
    }

    fn forget(&mut self, oldest: &Batch) {
        self.bytes -= size(oldest);
        self.forgotten = oldest.revision;
    }

    /// Forgets up to and including `revision`.
    pub(super) fn compact(
        &mut self,
        revision: Revision,
        current: Revision,
    ) -> Result<(), StateError> {
        if revision > current {
            let text = format!("revision {revision} to compact is after the current {current}");
            return Err(StateError::invalid(text));
        }
        if revision <= self.forgotten {
            return Err(StateError::Compacted { at: self.forgotten });
        }
        while self.batches.front().is_some_and(|batch| batch.revision <= revision) {
            if let Some(oldest) = self.batches.pop_front() {
                self.forget(&oldest);
            }
        }
        self.forgotten = revision;
        Ok(())
    }

    /// Adds a watcher.
    pub(super) fn watch(
        &mut self,
        span: KeySpan,
        from: WatchFrom,
        current: Revision,
    ) -> Result<Watch, StateError> {
        let from = match from {
            WatchFrom::Now => current.next(),
            WatchFrom::Revision(revision) => revision,
        };
        if from <= self.forgotten {
            return Err(StateError::Compacted { at: self.forgotten });
        }
        let skip = self.batches.partition_point(|batch| batch.revision < from);
        let past: VecDeque<Arc<Batch>> = self.batches.range(skip..).cloned().collect();
        let (sender, receiver) = mpsc::channel(WATCHER_BATCHES_MAX);
        let shared = Arc::new(Shared::default());
        self.watchers.retain(|watcher| !watcher.sender.is_closed());
        self.watchers.push(Watcher { span: span.clone(), from, sender, shared: shared.clone() });
        let reader = Reader { span, past, receiver, shared, ended: false };
        Ok(Watch::new(stream::unfold(reader, Reader::step)))
    }
}

impl Watcher {
    /// Hands the batch over if it concerns this watcher; false when the watcher is gone or too slow.
    fn offer(&self, batch: &Batch) -> bool {
        if batch.revision < self.from {
            return true;
        }
        let Some(own) = batch.within(&self.span) else { return true };
        let bytes = size(&own);
        let waiting = self.shared.waiting_bytes.fetch_add(bytes, Ordering::AcqRel);
        let fits = waiting == 0 || waiting + bytes <= WATCHER_BYTES_MAX;
        if fits && self.sender.try_send(own).is_ok() {
            return true;
        }
        // Set before the sender is dropped, so that the reader finds it when the channel has run dry.
        let _ = self.shared.lagged.set(batch.revision);
        false
    }
}

/// The watcher's end.
struct Reader {
    span: KeySpan,
    /// What had happened already when the watch began.
    past: VecDeque<Arc<Batch>>,
    receiver: mpsc::Receiver<Batch>,
    shared: Arc<Shared>,
    ended: bool,
}

impl Reader {
    async fn step(mut self) -> Option<(Result<Batch, StateError>, Self)> {
        if self.ended {
            return None;
        }
        while let Some(batch) = self.past.pop_front() {
            if let Some(own) = batch.within(&self.span) {
                return Some((Ok(own), self));
            }
        }
        if let Some(batch) = self.receiver.recv().await {
            self.shared.waiting_bytes.fetch_sub(size(&batch), Ordering::AcqRel);
            return Some((Ok(batch), self));
        }
        self.ended = true;
        let error = match self.shared.lagged.get() {
            Some(next) => StateError::Lagged { next: *next },
            None => StateError::Closed,
        };
        Some((Err(error), self))
    }
}

/// Bytes of keys and values, and a little for each event.
fn size(batch: &Batch) -> usize {
    let event = |event: &Event| {
        let value = match event {
            Event::Put(entry) => entry.value.len(),
            Event::Deleted(_) => 0,
        };
        size_of::<Event>() + event.key().as_bytes().len() + value
    };
    batch.events.iter().map(event).sum()
}
