//! Takes the events that components send, counts them, and writes them down.

use crate::history::History;
use crate::metrics::Metrics;
use skein_fabric::{Bus, BusError, Pattern, Subscribe};
use skein_model::Event;
use skein_registry::EVENT_SUBJECT;
use skein_shell::Tasks;
use std::sync::Arc;
use tracing::warn;

/// Messages that may wait to be recorded, of up to 256 events each.
const BUFFER: usize = 512;

/// Subscribes, and records in a task of `tasks`.
pub(crate) async fn start(
    bus: &Arc<dyn Bus>,
    history: History,
    metrics: Arc<Metrics>,
    tasks: &Tasks,
) -> Result<(), BusError> {
    let pattern: Pattern = EVENT_SUBJECT.parse().map_err(|_| BusError::Closed)?;
    let mut messages = bus.subscribe(Subscribe::to(pattern).buffer(BUFFER)).await?;
    let stop = tasks.stop_token().clone();
    tasks.spawn(async move {
        let mut dropped = 0;
        loop {
            let message = tokio::select! {
                () = stop.cancelled() => return,          // cancel-safe: token
                message = messages.next() => message,     // cancel-safe: as documented
            };
            let Some(message) = message else { return };
            if messages.dropped() > dropped {
                dropped = messages.dropped();
                warn!(dropped, "messages with events were lost: the history has gaps");
            }
            match serde_json::from_slice::<Vec<Event>>(&message.payload) {
                Ok(events) => {
                    events.iter().for_each(|event| metrics.count(event));
                    history.append(events).await;
                }
                Err(error) => warn!(%error, "events cannot be read"),
            }
        }
    });
    Ok(())
}
