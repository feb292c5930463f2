//! Where components put the events they see: a bounded buffer that a task sends on over the bus.

use crate::messages::subject;
use bytes::Bytes;
use skein_fabric::{Bus, Message};
use skein_model::{Event, EventKind, EventSubject};
use skein_shell::Tasks;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc::{self, error::TrySendError};
use tracing::warn;

/// Where events are published: each message is an array of them.
pub const EVENT_SUBJECT: &str = "skein.events";

/// Events that wait to be sent: half a second at 10,000 a second. Of more, those of [`EventSink::emit`]
/// are dropped and counted: history may have a gap, work must not wait for it.
const BUFFER: usize = 8192;
/// Events of one message: about 60 KiB, far below the bus's bound of 1 MiB even with long reasons.
const MESSAGE_EVENTS: usize = 256;

/// Takes events. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EventSink {
    buffer: mpsc::Sender<Event>,
    dropped: Arc<AtomicU64>,
}

impl EventSink {
    /// Starts the task that sends what is put in. When `tasks` stops, what is in the buffer is sent before it ends.
    pub fn start(bus: Arc<dyn Bus>, tasks: &Tasks) -> Self {
        let (buffer, mut waiting) = mpsc::channel(BUFFER);
        let stop = tasks.stop_token().clone();
        tasks.spawn(async move {
            let mut events = Vec::with_capacity(MESSAGE_EVENTS);
            loop {
                tokio::select! {
                    // cancel-safe: recv_many takes nothing when it is dropped
                    count = waiting.recv_many(&mut events, MESSAGE_EVENTS) => {
                        if count == 0 {
                            return;
                        }
                    }
                    () = stop.cancelled() => {                     // cancel-safe: token
                        waiting.close();
                        while waiting.recv_many(&mut events, MESSAGE_EVENTS).await > 0 {
                            send(&*bus, &mut events).await;
                        }
                        return;
                    }
                }
                send(&*bus, &mut events).await;
            }
        });
        Self { buffer, dropped: Arc::default() }
    }

    /// Records what happened now, and waits while there is no room. For what is counted and comes by the thousand.
    ///
    /// # Cancel safety
    /// Dropped while it waits, it loses what it has not put in yet.
    pub async fn record(&self, events: Vec<(EventSubject, EventKind)>) {
        let at = skein_shell::now();
        for (subject, kind) in events {
            // Fails only when the task has ended, and nobody records any more.
            if self.buffer.send(Event { at, subject, kind }).await.is_err() {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// How many events can be put in now without waiting.
    pub fn room(&self) -> usize {
        self.buffer.capacity()
    }

    /// Records that something happened now. Never waits: without room, or after the end of the task that sends, it is
    /// dropped.
    pub fn emit(&self, subject: EventSubject, kind: EventKind) {
        let event = Event { at: skein_shell::now(), subject, kind };
        let Err(refused) = self.buffer.try_send(event) else { return };
        let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
        if matches!(refused, TrySendError::Full(_)) && dropped.is_power_of_two() {
            warn!(dropped, "events are dropped: the bus does not keep up");
        }
    }

    /// How many events were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

async fn send(bus: &dyn Bus, events: &mut Vec<Event>) {
    match serde_json::to_vec(events) {
        Ok(json) => {
            if let Err(error) =
                bus.publish(Message::new(subject(EVENT_SUBJECT), Bytes::from(json))).await
            {
                warn!(%error, "events could not be sent");
            }
        }
        Err(error) => warn!(%error, "events could not be encoded"),
    }
    events.clear();
}
