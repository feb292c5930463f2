//! What all tasks of one agent share.

use crate::config::AgentConfig;
use crate::dispatch::Dispatchers;
use crate::machine::Live;
use bytes::Bytes;
use camino::Utf8PathBuf;
use skein_fabric::{Bus, Compare, LeaseId, Queue, State, Txn};
use skein_model::{EventKind, EventSubject, MachineId, MachineRecord, MachineStatus};
use skein_net::{AddressPool, NodeNetwork, PoolError, PortInfo};
use skein_registry::{EventSink, Mirror, RecordKey, RegistryError};
use skein_shell::Tasks;
use skein_vmm::{Driver, ImageStore};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};

/// What all tasks of one agent share. Locks are held for a look or a change of a map, never while something waits.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: AgentConfig,
    pub(crate) state: Arc<dyn State>,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) queue: Queue,
    pub(crate) images: ImageStore,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) network: NodeNetwork,
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
    addresses: Mutex<AddressPool>,
    /// Addresses of machines that an earlier agent started.
    adopted: BTreeMap<MachineId, Ipv4Addr>,
    live: Mutex<BTreeMap<MachineId, Arc<Live>>>,
    born: Instant,
}

/// What a [`Node`] is made of.
pub(crate) struct NodeParts {
    pub(crate) config: AgentConfig,
    pub(crate) state: Arc<dyn State>,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) queue: Queue,
    pub(crate) images: ImageStore,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) network: NodeNetwork,
    pub(crate) mirror: Mirror,
    pub(crate) events: EventSink,
    pub(crate) tasks: Tasks,
    pub(crate) lease: watch::Receiver<Option<LeaseId>>,
    /// Ports that were there when the network was opened: machines that an earlier agent started.
    pub(crate) ports: Vec<PortInfo>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    pub(crate) fn new(parts: NodeParts) -> Result<Arc<Self>, PoolError> {
        let spec = parts.network.spec();
        let quarantine = skein_net::QUARANTINE_DEFAULT;
        let mut pool = AddressPool::new(spec.cidr(), spec.gateway(), quarantine)?;
        let mut adopted = BTreeMap::new();
        for port in &parts.ports {
            pool.claim(port.address)?;
            if let Ok(machine) = port.label.as_str().parse() {
                adopted.insert(machine, port.address);
            }
        }
        Ok(Arc::new(Self {
            launches: Semaphore::new(parts.config.launches_max),
            rehearsals: Semaphore::new(1),
            addresses: Mutex::new(pool),
            adopted,
            live: Mutex::default(),
            dispatchers: Dispatchers::default(),
            born: Instant::now(),
            config: parts.config,
            state: parts.state,
            bus: parts.bus,
            queue: parts.queue,
            images: parts.images,
            driver: parts.driver,
            network: parts.network,
            mirror: parts.mirror,
            events: parts.events,
            tasks: parts.tasks,
            lease: parts.lease,
        }))
    }

    /// Whether machines are being started.
    pub(crate) fn is_launching(&self) -> bool {
        self.launches.available_permits() < self.config.launches_max
    }

    /// Folder of a machine.
    pub(crate) fn machine_dir(&self, id: &MachineId) -> Utf8PathBuf {
        self.config.dir.join(id.as_str())
    }

    fn uptime(&self) -> Duration {
        self.born.elapsed()
    }

    /// An address that no machine of the node has.
    pub(crate) fn allocate(&self) -> Result<Ipv4Addr, PoolError> {
        lock(&self.addresses).allocate(self.uptime())
    }

    /// The address of a machine that an earlier agent started; it is taken already.
    pub(crate) fn adopted_address(&self, id: &MachineId) -> Option<Ipv4Addr> {
        self.adopted.get(id).copied()
    }

    /// Gives an address back; it rests before it is used again.
    pub(crate) fn release(&self, address: Ipv4Addr) {
        lock(&self.addresses).release(address, self.uptime());
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
