//! What all tasks of one agent share.

use crate::config::AgentConfig;
use crate::dispatch::Dispatchers;
use crate::link::Link;
use crate::machine::Live;
use crate::networks::{Networks, Plug};
use crate::slots::Slots;
use bytes::Bytes;
use camino::Utf8PathBuf;
use skein_fabric::{Bus, Compare, LeaseId, Queue, State, Txn};
use skein_model::{EventKind, EventSubject, MachineId, MachineRecord, MachineStatus};
use skein_net::Underlay;
use skein_registry::{EventSink, Mirror, RecordKey, RegistryError};
use skein_shell::{Tasks, report};
use skein_vmm::{Driver, ImageStore};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Semaphore, watch};
use tracing::warn;

/// What all tasks of one agent share. Locks are held for a look or a change of a map, never while something waits.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: AgentConfig,
    pub(crate) state: Arc<dyn State>,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) queue: Queue,
    pub(crate) images: ImageStore,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) networks: Networks,
    /// Where other nodes reach it, with its public key: another one when it is given one.
    pub(crate) underlay: watch::Sender<Underlay>,
    /// The link of the host's programs, if the node has it.
    pub(crate) link: Option<Link>,
    /// User ids of machines.
    pub(crate) slots: Slots,
    pub(crate) mirror: Mirror,
    pub(crate) events: EventSink,
    pub(crate) tasks: Tasks,
    /// Permits for machines being started.
    pub(crate) launches: Semaphore,
    /// The permit of the machine that rehearses.
    pub(crate) rehearsals: Semaphore,
    /// The agent's lease; none while it has none, and then no job is claimed.
    pub(crate) lease: watch::Receiver<Option<LeaseId>>,
    pub(crate) dispatchers: Dispatchers,
    /// Ports of machines that an earlier agent started.
    adopted: BTreeMap<MachineId, Plug>,
    live: Mutex<BTreeMap<MachineId, Arc<Live>>>,
}

/// What a [`Node`] is made of.
pub(crate) struct NodeParts {
    pub(crate) config: AgentConfig,
    pub(crate) state: Arc<dyn State>,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) queue: Queue,
    pub(crate) images: ImageStore,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) networks: Networks,
    pub(crate) underlay: Underlay,
    pub(crate) link: Option<Link>,
    pub(crate) slots: Slots,
    pub(crate) mirror: Mirror,
    pub(crate) events: EventSink,
    pub(crate) tasks: Tasks,
    pub(crate) lease: watch::Receiver<Option<LeaseId>>,
    /// Ports of machines that an earlier agent started.
    pub(crate) adopted: BTreeMap<MachineId, Plug>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    pub(crate) fn new(parts: NodeParts) -> Arc<Self> {
        Arc::new(Self {
            launches: Semaphore::new(parts.config.launches_max),
            rehearsals: Semaphore::new(1),
            adopted: parts.adopted,
            live: Mutex::default(),
            dispatchers: Dispatchers::default(),
            config: parts.config,
            state: parts.state,
            bus: parts.bus,
            queue: parts.queue,
            images: parts.images,
            driver: parts.driver,
            networks: parts.networks,
            underlay: watch::Sender::new(parts.underlay),
            link: parts.link,
            slots: parts.slots,
            mirror: parts.mirror,
            events: parts.events,
            tasks: parts.tasks,
            lease: parts.lease,
        })
    }

    /// Whether machines are being started.
    pub(crate) fn is_launching(&self) -> bool {
        self.launches.available_permits() < self.config.launches_max
    }

    /// Folder of a machine.
    pub(crate) fn machine_dir(&self, id: &MachineId) -> Utf8PathBuf {
        self.config.dir.join(id.as_str())
    }

    /// The port of a machine that an earlier agent started.
    pub(crate) fn adopted_plug(&self, id: &MachineId) -> Option<Plug> {
        self.adopted.get(id).copied()
    }

    /// Takes away what a machine that ended had of the node: its port and its user id.
    pub(crate) async fn unplug(&self, id: &MachineId, plug: Option<Plug>) {
        if let Some(plug) = plug
            && let Err(error) = self.networks.unplug(plug).await
        {
            warn!(machine.id = %id, error = %report::chain(&error), "a port could not be removed");
        }
        self.slots.give(id);
    }

    /// Makes a machine known to reports and requests.
    pub(crate) fn insert_live(&self, live: Arc<Live>) {
        lock(&self.live).insert(live.record().id.clone(), live);
    }

    /// A machine whose process runs.
    pub(crate) fn live(&self, id: &MachineId) -> Option<Arc<Live>> {
        lock(&self.live).get(id).cloned()
    }

    /// All machines whose process runs.
    pub(crate) fn all_live(&self) -> Vec<Arc<Live>> {
        lock(&self.live).values().cloned().collect()
    }

    /// Forgets a machine that ended.
    pub(crate) fn remove_live(&self, id: &MachineId) {
        lock(&self.live).remove(id);
    }

    /// Records what happened to a machine.
    pub(crate) fn emit(&self, record: &MachineRecord, kind: EventKind) {
        let subject = EventSubject {
            project: Some(record.project.clone()),
            service: Some(record.service.clone()),
            node: Some(self.config.name.clone()),
            machine: Some(record.id.clone()),
            job: None,
        };
        self.events.emit(subject, kind);
    }

    /// Writes what a machine is, unless its record is gone: then nobody cares, and the status must not outlive it.
    pub(crate) async fn write_status(&self, status: &MachineStatus) -> Result<(), RegistryError> {
        let machine = RecordKey::Machine(status.id.clone()).key();
        let put = RecordKey::Status(status.id.clone()).put(status)?;
        // A loss of power ends the machine too, and its folder says so to the next agent.
        self.state.txn(Txn::new().when(Compare::exists(machine)).then(put).soon()).await?;
        Ok(())
    }

    /// Sends a message that nobody need receive.
    pub(crate) async fn notify(&self, subject: skein_fabric::Subject, payload: Bytes) {
        // Nobody listening costs time, never truth.
        let _ = self.bus.publish(skein_fabric::Message::new(subject, payload)).await;
    }
}
