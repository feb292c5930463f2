//! The last report of each node: measured figures, for people to look at. Nothing is decided by them but which of
//! two machines is the idler.

use skein_fabric::{Bus, BusError, Subscribe};
use skein_model::{MachineId, NodeName};
use skein_registry::{LinkFigures, MachineFigures, NodeReport, report_pattern};
use skein_shell::Tasks;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use tracing::warn;

/// The last report of each node. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reports(Arc<RwLock<BTreeMap<NodeName, NodeReport>>>);

impl Reports {
    /// Subscribes, and keeps the last report of each node in a task of `tasks`.
    pub(crate) async fn start(bus: &Arc<dyn Bus>, tasks: &Tasks) -> Result<Self, BusError> {
        let mut messages = bus.subscribe(Subscribe::to(report_pattern())).await?;
        let reports = Self::default();
        let (copy, stop) = (reports.clone(), tasks.stop_token().clone());
        tasks.spawn(async move {
            loop {
                let message = tokio::select! {
                    () = stop.cancelled() => return,          // cancel-safe: token
                    message = messages.next() => message,     // cancel-safe: as documented
                };
                let Some(message) = message else { return };
                match serde_json::from_slice::<NodeReport>(&message.payload) {
                    Ok(report) => copy.put(report),
                    Err(error) => warn!(%error, "a node's report cannot be read"),
                }
            }
        });
        Ok(reports)
    }

    fn put(&self, report: NodeReport) {
        let mut reports = self.0.write().unwrap_or_else(PoisonError::into_inner);
        reports.insert(report.node.name.clone(), report);
    }

    /// What a node said last of itself.
    pub(crate) fn node(&self, name: &NodeName) -> Option<skein_model::NodeStatus> {
        let reports = self.0.read().unwrap_or_else(PoisonError::into_inner);
        reports.get(name).map(|report| report.node.clone())
    }

    /// What a node said last of its link.
    pub(crate) fn link(&self, name: &NodeName) -> Option<LinkFigures> {
        let reports = self.0.read().unwrap_or_else(PoisonError::into_inner);
        reports.get(name).and_then(|report| report.link.clone())
    }

    /// What the nodes said last of their machines.
    pub(crate) fn machines(&self) -> BTreeMap<MachineId, MachineFigures> {
        let reports = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let figures = reports.values().flat_map(|report| &report.machines);
        figures.map(|figure| (figure.id.clone(), figure.clone())).collect()
    }
}
