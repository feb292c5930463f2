//! The messages: request and reply, notifications, publish and subscribe, in NATS's model.
//!
//! A message goes to a [`Subject`], a path of tokens from the general to the particular:
//! `skein.ZONE.NODE.SERVICE.VERB`. Whoever subscribed to a [`Pattern`] that matches gets it: `*` stands for one token,
//! `>` for all that follow. That one mechanism is the routing (each level of the path is a level of routing), the
//! broadcast (`skein.ZONE.*.agent.drain` reaches the agent of each node) and the anycast (of the subscribers in one
//! queue *group*, one gets it).
//!
//! **A lost message may cost time, never truth.** Messages are delivered at most once, to who listens now; a
//! subscriber that does not keep up loses some and is told how many; there is no order between senders. What must
//! not be lost is written to [`State`](crate::State), and messages only say "look there". So every receiver also
//! looks by itself from time to time.

mod local;
mod message;
mod subject;

pub use local::LocalBus;
pub use message::{BusError, Headers, Message, PAYLOAD_BYTES_MAX};
pub use subject::{Pattern, SUBJECT_BYTES_MAX, Subject, SubjectError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{BoxStream, Stream, StreamExt as _};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How a subscription is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// Which subjects.
    pub pattern: Pattern,
    /// Of the subscribers with the same group, one gets each message. None: this one gets every message.
    pub group: Option<String>,
    /// Messages that may wait for this subscriber; further ones are dropped and counted. At least 1.
    pub buffer: usize,
}

impl Subscribe {
    /// Messages that may wait, unless asked otherwise: a burst of a thousand replicas.
    pub const BUFFER_DEFAULT: usize = 1024;

    /// Every message of the pattern.
    pub fn to(pattern: Pattern) -> Self {
        Self { pattern, group: None, buffer: Self::BUFFER_DEFAULT }
    }

    /// Shares the messages with the others of the group.
    #[must_use]
    pub fn in_group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// With room for `buffer` messages.
    #[must_use]
    pub fn buffer(mut self, buffer: usize) -> Self {
        self.buffer = buffer;
        self
    }
}

/// What a bus has done in this process since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BusStats {
    /// Messages sent.
    pub published: u64,
    /// Messages put into the buffer of a subscriber (or of a waiting request).
    pub delivered: u64,
    /// Messages not delivered because a subscriber's buffer was full.
    pub dropped: u64,
}

/// Sends and receives messages. Handles are shared as `Arc<dyn Bus>`.
#[async_trait]
pub trait Bus: Send + Sync + fmt::Debug + 'static {
    /// Sends and does not wait: a notification, or a reply. That nobody listens is no error.
    ///
    /// # Errors
    /// [`BusError::TooLarge`], [`BusError::Closed`].
    async fn publish(&self, message: Message) -> Result<(), BusError>;

    /// Sends and waits for the first reply, at most `deadline`.
    ///
    /// # Errors
    /// [`BusError::NoResponders`] at once when nobody subscribed, [`BusError::Timeout`] when no reply came (the
    /// request may have been served), [`BusError::Remote`] when the replier answered with an error,
    /// [`BusError::TooLarge`], [`BusError::Closed`].
    async fn request(&self, message: Message, deadline: Duration) -> Result<Message, BusError>;

    /// Subscribes. When this returns, later messages arrive. Dropping the subscription ends it.
    ///
    /// # Errors
    /// [`BusError::Closed`].
    async fn subscribe(&self, subscribe: Subscribe) -> Result<Subscription, BusError>;

    /// Counters.
    fn stats(&self) -> BusStats;

    /// Answers a request; does nothing for a message that asks for no reply.
    ///
    /// # Errors
    /// As [`Bus::publish`].
    async fn reply(&self, to: &Message, payload: Bytes) -> Result<(), BusError> {
        match &to.reply {
            Some(subject) => self.publish(Message::new(subject.clone(), payload)).await,
            None => Ok(()),
        }
    }

    /// Answers a request with an error, which the asker gets as [`BusError::Remote`].
    ///
    /// # Errors
    /// As [`Bus::publish`].
    async fn reply_error(&self, to: &Message, code: &str, text: &str) -> Result<(), BusError> {
        match &to.reply {
            Some(subject) => {
                let payload = Bytes::copy_from_slice(text.as_bytes());
                let message = Message::new(subject.clone(), payload);
                self.publish(message.with_header(message::ERROR_HEADER, code)?).await
            }
            None => Ok(()),
        }
    }
}

/// The messages of one subscription. Ends when the bus closes.
pub struct Subscription {
    messages: BoxStream<'static, Message>,
    dropped: Arc<AtomicU64>,
}

impl Subscription {
    /// From an implementation's stream and its counter of dropped messages.
    pub fn new(
        messages: impl Stream<Item = Message> + Send + 'static,
        dropped: Arc<AtomicU64>,
    ) -> Self {
        Self { messages: messages.boxed(), dropped }
    }

    /// The next message; `None` when the bus is closed.
    ///
    /// # Cancel safety
    /// No message is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Message> {
        self.messages.next().await
    }

    /// How many messages this subscriber has lost because it did not keep up.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("dropped", &self.dropped()).finish_non_exhaustive()
    }
}
