//! Takes the events that components send, counts them, and writes them down; and tells of each job how it ended.
//!
//! Ends are read from the truth, not told by whoever brought them about: an agent that dies after it recorded a result, a
//! deadline that passes, a caller who leaves are all told, and told once.

use crate::history::History;
use crate::metrics::Metrics;
use skein_fabric::{Bus, BusError, Pattern, Queue, QueueEnds, Subscribe};
use skein_model::{Event, EventKind, EventSubject, JobRecord, JobState};
use skein_registry::{EVENT_SUBJECT, EventSink};
use skein_shell::{Tasks, report};
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;

/// After a failure of the store.
const RETRY: Duration = Duration::from_millis(300);

/// Messages that may wait to be recorded, of up to 256 events each: what is dropped here is missing in the figures for
/// good, so that there is room for the bursts of a hundred nodes while the disk is slow.
const BUFFER: usize = 4096;

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
                biased;
                message = messages.next() => message,     // cancel-safe: as documented
                // cancel-safe: token. Only when nothing waits: what was sent before the stop is written down.
                () = stop.cancelled() => return,
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

/// Tells how jobs end, in a task of `tasks`.
pub(crate) async fn tell_ends(
    queue: Queue,
    events: EventSink,
    tasks: &Tasks,
) -> Result<(), skein_fabric::StateError> {
    let ends = queue.ends().await?;
    let stop = tasks.stop_token().clone();
    tasks.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}                      // cancel-safe: token
            () = follow_ends(queue, ends, events) => {}      // dropped only with the server
        }
    });
    Ok(())
}

async fn follow_ends(queue: Queue, mut ends: QueueEnds, events: EventSink) {
    loop {
        match ends.next().await {
            Ok(jobs) => events.record(jobs.iter().filter_map(end_of).collect()).await,
            Err(error) => {
                warn!(error = %report::chain(&error), "ends of jobs were not told");
                tokio::time::sleep(RETRY).await;
                match queue.ends().await {
                    Ok(again) => ends = again,
                    Err(skein_fabric::StateError::Closed) => return,
                    Err(_) => {}
                }
            }
        }
    }
}

/// How a job ended; none if it has not.
fn end_of(job: &JobRecord) -> Option<(EventSubject, EventKind)> {
    let us = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    let mut subject = EventSubject {
        project: Some(job.project.clone()),
        service: Some(job.service.clone()),
        job: Some(job.id),
        ..EventSubject::default()
    };
    let kind = match &job.state {
        JobState::Waiting { .. } | JobState::Running { .. } => return None,
        JobState::Done { at, claim, .. } => {
            subject.node = Some(claim.node.clone());
            subject.machine = Some(claim.machine.clone());
            EventKind::JobDone {
                queue_us: us(claim.at.since(job.submitted_at)),
                service_us: us(at.since(claim.at)),
            }
        }
        JobState::DeadLetter { reason, .. } => EventKind::JobDeadLettered {
            code: reason.code().to_owned(),
            message: reason.to_string(),
        },
        JobState::Cancelled { .. } => EventKind::JobCancelled,
    };
    Some((subject, kind))
}
