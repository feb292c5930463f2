//! Connections that come through published ports: those that wait for a machine are waiting work, those that are open are
//! work in service. They wake a service that went to zero just as a call does.

use crate::observe::QueueView;
use skein_fabric::{Bus, BusError, Subscribe};
use skein_policy::ServiceKey;
use skein_registry::{Demand, demand_pattern};
use skein_shell::Tasks;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

/// What is not repeated is forgotten after this long: agents repeat it each second.
const KEPT: Duration = Duration::from_secs(4);

/// What each node said last, and when.
type Said = HashMap<String, (Instant, Demand)>;

/// The connections of all nodes. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Demands {
    said: Arc<Mutex<Said>>,
    changed: watch::Receiver<u64>,
}

impl Demands {
    /// Subscribes, and keeps what nodes say in a task of `tasks`.
    pub(crate) async fn start(bus: &Arc<dyn Bus>, tasks: &Tasks) -> Result<Self, BusError> {
        let mut messages = bus.subscribe(Subscribe::to(demand_pattern())).await?;
        let (announce, changed) = watch::channel(0);
        let demands = Self { said: Arc::default(), changed };
        let (copy, stop) = (demands.clone(), tasks.stop_token().clone());
        tasks.spawn(async move {
            loop {
                let message = tokio::select! {
                    () = stop.cancelled() => return,          // cancel-safe: token
                    message = messages.next() => message,     // cancel-safe: as documented
                };
                let Some(message) = message else { return };
                match serde_json::from_slice::<Demand>(&message.payload) {
                    Ok(demand) => {
                        if copy.put(message.subject.as_str().to_owned(), demand) {
                            announce.send_modify(|count| *count = count.wrapping_add(1));
                        }
                    }
                    Err(error) => warn!(%error, "a node's demand cannot be read"),
                }
            }
        });
        Ok(demands)
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a node says; whether that is something else than before.
    fn put(&self, node: String, demand: Demand) -> bool {
        let mut said = self.lock();
        let news = said.get(&node).is_none_or(|(_, before)| *before != demand);
        said.insert(node, (Instant::now(), demand));
        news
    }

    /// Changes when a node says something else than before.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    /// Adds the connections of a service to what its queue holds.
    pub(crate) fn add_to(&self, service: &ServiceKey, queue: QueueView) -> QueueView {
        let said = self.lock();
        let fresh = said.values().filter(|(at, _)| at.elapsed() < KEPT);
        let all = fresh.flat_map(|(_, demand)| &demand.services);
        let own = all.filter(|of| of.project == service.project && of.service == service.service);
        own.fold(queue, |queue, of| QueueView {
            waiting: queue.waiting.saturating_add(of.waiting),
            in_service: queue.in_service.saturating_add(of.open),
            ..queue
        })
    }
}
