//! What all routes and the controller share.

use crate::auth::Token;
use crate::decisions::Decisions;
use crate::demands::Demands;
use crate::error::Answer;
use crate::history::History;
use crate::metrics::Metrics;
use crate::observe::QueueView;
use crate::readiness::Readiness;
use crate::recorder;
use crate::reports::Reports;
use crate::server::{ServerError, ServerParts};
use skein_api::Hold;
use skein_fabric::{Bus, Queue, QueueError, QueueName, State};
use skein_model::Timestamp;
use skein_policy::ServiceKey;
use skein_registry::{EventSink, Mirror};
use skein_shell::{Tasks, now};
use skein_vmm::ImageStore;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What all routes and the controller share. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct App {
    pub(crate) cloud: Arc<str>,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    pub(crate) token: Token,
    pub(crate) state: Arc<dyn State>,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) queue: Queue,
    pub(crate) images: ImageStore,
    pub(crate) mirror: Mirror,
    pub(crate) events: EventSink,
    pub(crate) history: History,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) reports: Reports,
    pub(crate) decisions: Decisions,
    pub(crate) demands: Demands,
    pub(crate) holds: Holds,
    pub(crate) readiness: Readiness,
    pub(crate) tasks: Tasks,
}

/// What an [`App`] is made of.
pub(crate) struct AppParts {
    pub(crate) cloud: String,
    pub(crate) address: SocketAddr,
    pub(crate) token: Token,
    pub(crate) parts: ServerParts,
    pub(crate) history: History,
    pub(crate) tasks: Tasks,
    /// What sends the events of all others, and so ends after them.
    pub(crate) sending: Tasks,
    /// What writes events down: the last to end.
    pub(crate) recording: Tasks,
}

impl App {
    pub(crate) async fn start(from: AppParts) -> Result<Self, ServerError> {
        let AppParts { cloud, address, token, parts, history, tasks, sending, recording } = from;
        let metrics = Arc::new(Metrics::new());
        recorder::start(&parts.bus, history.clone(), metrics.clone(), &recording).await?;
        let mirror = Mirror::start(parts.state.clone(), &tasks).await?;
        let events = EventSink::start(parts.bus.clone(), &sending);
        let ends = recorder::tell_ends(parts.queue.clone(), events.clone(), &tasks).await;
        ends.map_err(skein_registry::RegistryError::from)?;
        Ok(Self {
            cloud: cloud.into(),
            address,
            token,
            demands: Demands::start(&parts.bus, &tasks).await?,
            reports: Reports::start(&parts.bus, &tasks).await?,
            events,
            state: parts.state,
            bus: parts.bus,
            queue: parts.queue,
            images: parts.images,
            mirror,
            history,
            metrics,
            decisions: Decisions::default(),
            holds: Holds::default(),
            readiness: Readiness::default(),
            tasks,
        })
    }

    /// How full a service's queue is.
    pub(crate) async fn depth(&self, service: &ServiceKey) -> Result<QueueView, QueueError> {
        let depth = self.queue.depth(&queue_name(service)).await?;
        let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Ok(QueueView {
            waiting: count(depth.waiting),
            in_service: count(depth.running),
            accepted: depth.accepted,
            oldest_wait: depth.oldest.map(|at| now().since(at)).unwrap_or_default(),
        })
    }

    /// Gives up the jobs of a service that was there no more at `removed_at`.
    pub(crate) async fn abandon(&self, service: &ServiceKey, removed_at: Timestamp) -> Answer<()> {
        self.queue.remove_service(&queue_name(service), removed_at).await?;
        Ok(())
    }
}

/// The queue of a service.
pub(crate) fn queue_name(service: &ServiceKey) -> QueueName {
    QueueName { project: service.project.clone(), service: service.service.clone() }
}

/// The machines that are wanted and cannot be had, as of the last plan.
#[derive(Debug, Clone, Default)]
pub(crate) struct Holds(Arc<Mutex<BTreeMap<ServiceKey, Hold>>>);

impl Holds {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServiceKey, Hold>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces them; those that were not there before, or for another reason.
    pub(crate) fn put(&self, holds: BTreeMap<ServiceKey, Hold>) -> Vec<(ServiceKey, String)> {
        let before = std::mem::replace(&mut *self.lock(), holds.clone());
        let known = |key: &ServiceKey, hold: &Hold| {
            before.get(key).is_some_and(|old| old.code == hold.code && old.missing == hold.missing)
        };
        let new = holds.into_iter().filter(|(key, hold)| !known(key, hold));
        new.map(|(key, hold)| (key, hold.reason)).collect()
    }

    /// What a service waits for.
    pub(crate) fn of(&self, key: &ServiceKey) -> Option<Hold> {
        self.lock().get(key).cloned()
    }
}
