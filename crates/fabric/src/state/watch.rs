//! Following changes.

use super::{Entry, Key, KeySpan, Revision, StateError};
use futures_util::stream::{BoxStream, Stream, StreamExt as _};
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Where a watch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchFrom {
    /// With the first change after the call.
    Now,
    /// With this revision: after a list at revision `r`, that is `r.next()`.
    Revision(Revision),
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It was written.
    Put(Entry),
    /// It was deleted, by an operation or with its lease.
    Deleted(Key),
}

impl Event {
    /// The key it is about.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Deleted(key) => key,
        }
    }
}

/// The changes of one revision that concern a watch: never empty, never a part of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Which revision.
    pub revision: Revision,
    /// In the order in which they happened; each key at most once.
    pub events: Vec<Event>,
}

impl Batch {
    /// What of this concerns `span`; `None` if nothing does.
    pub(crate) fn within(&self, span: &KeySpan) -> Option<Self> {
        let inside = |event: &&Event| span.contains(event.key());
        let events: Vec<Event> = self.events.iter().filter(inside).cloned().collect();
        (!events.is_empty()).then_some(Self { revision: self.revision, events })
    }
}

/// The changes of a span, revision by revision. Ends after an error; dropping it ends the watch.
pub struct Watch(BoxStream<'static, Result<Batch, StateError>>);

impl Watch {
    /// From an implementation's stream.
    pub fn new(stream: impl Stream<Item = Result<Batch, StateError>> + Send + 'static) -> Self {
        Self(stream.boxed())
    }

    /// The next revision that touches the span. Waits for it.
    ///
    /// # Errors
    /// [`StateError::Lagged`] when this watcher was too slow, [`StateError::Compacted`] when its place in the
    /// history has been forgotten, [`StateError::Closed`] when the store was closed. Nothing follows an error.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Batch, StateError> {
        self.0.next().await.unwrap_or(Err(StateError::Closed))
    }
}

impl Stream for Watch {
    type Item = Result<Batch, StateError>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}
