//! The agent itself: joins, converges, leaves.

use crate::config::{AgentConfig, ConfigError};
use crate::link::{self, Link};
use crate::machine::Keeper;
use crate::networks::{self, Networks, Opened, Own};
use crate::node::{Node, NodeParts};
use crate::slots::Slots;
use crate::{report as figures, requests};
use skein_fabric::{Bus, HeldLease, LeaseId, Op, Queue, State, StateError, Txn};
use skein_model::{
    EventKind, EventSubject, MachineGoal, MachineId, MachineRecord, MachineStatus, NodeRecord,
    PhaseName,
};
use skein_net::{Desired, NetError, Underlay, open_wire_key};
use skein_registry::{Alive, EventSink, Mirror, RecordKey, RegistryError};
use skein_shell::{Tasks, now, report};
use skein_vmm::{AdoptError, Adopted, Driver, ImageStore};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// However quiet it is, everything is read again after this long.
const RECONCILE_EVERY: Duration = Duration::from_secs(5);
/// Between two attempts to join again.
const JOIN_RETRY: Duration = Duration::from_millis(500);
/// How long the tasks of an agent may take to end.
const SHUTDOWN_BUDGET: Duration = Duration::from_secs(10);

/// What an agent stands on.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Truth.
    pub state: Arc<dyn State>,
    /// Messages.
    pub bus: Arc<dyn Bus>,
    /// Work.
    pub queue: Queue,
    /// What machines boot.
    pub images: ImageStore,
    /// What runs machines.
    pub driver: Arc<dyn Driver>,
}

/// Why an agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its configuration cannot be.
    #[error("the agent's configuration: {source}")]
    Config {
        /// Which value.
        #[from]
        source: ConfigError,
    },
    /// Its folder cannot be used.
    #[error("using the folder {path}")]
    Folder {
        /// Which.
        path: camino::Utf8PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Its networks cannot be opened.
    #[error("opening the node's networks")]
    Network {
        /// Why.
        #[from]
        source: NetError,
    },
    /// It cannot read or write its records.
    #[error("joining the cloud")]
    Join {
        /// Why.
        #[from]
        source: RegistryError,
    },
}

impl From<StateError> for AgentError {
    fn from(source: StateError) -> Self {
        Self::Join { source: source.into() }
    }
}

/// A running agent. Dropping it ends its tasks where they stand; its machines go on.
#[derive(Debug)]
pub struct Agent {
    node: Arc<Node>,
    /// The tasks that end last: the lease's, and the one that sends events.
    last_tasks: Tasks,
}

impl Agent {
    /// Joins the cloud, takes up what an earlier agent of this node left, and converges from then on.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn start(config: AgentConfig, parts: Parts) -> Result<Self, AgentError> {
        config.check()?;
        let folder = |source| AgentError::Folder { path: config.dir.clone(), source };
        std::fs::create_dir_all(&config.dir).map_err(folder)?;
        let slots = Slots::open(&config.dir, config.machines_max).map_err(folder)?;
        let tasks = Tasks::new();
        let last_tasks = Tasks::new();
        let mirror = Mirror::start(parts.state.clone(), &tasks).await?;
        let underlay = own_underlay(&config)?;
        let own = Own { name: &config.name, underlay };
        let none = Desired::new(underlay);
        let wanted = mirror.read(|view| networks::desired(view, own, &none));
        let Opened { networks, adopted, events: happens } = Networks::open(&config, wanted).await?;
        let events = EventSink::start(parts.bus.clone(), &last_tasks);
        // Before the node is known: its record tells the others where its light protocol is.
        let link = Link::start(&config, &parts.state, &mirror).await;
        let light_port = link.as_ref().map_or(0, Link::light_port);
        let lease = join(&config, underlay, light_port, &parts).await?;
        let (tell, lease_in) = watch::channel(Some(lease.id()));
        let copy = parts.clone();
        let node = Node::new(NodeParts {
            config,
            state: parts.state,
            bus: parts.bus,
            queue: parts.queue,
            images: parts.images,
            driver: parts.driver,
            networks,
            underlay,
            link,
            slots,
            mirror,
            events,
            tasks: tasks.clone(),
            lease: lease_in,
            adopted,
        });
        node.events.emit(subject(&node), EventKind::NodeJoined);
        requests::start(node.clone()).await;
        let stop = last_tasks.stop_token().clone();
        last_tasks.spawn(keep_lease(node.clone(), copy, lease, tell, stop));
        networks::start(&node, happens);
        tasks.spawn(converge(node.clone()));
        tasks.spawn(figures::run(node.clone()));
        tasks.spawn(link::follow(node.clone()));
        Ok(Self { node, last_tasks })
    }

    /// Leaves: takes no more work, lets its tasks end, gives the lease back. Machines go on running, for the next agent
    /// of this node.
    pub async fn shutdown(self) {
        self.node.events.emit(subject(&self.node), EventKind::NodeLeft);
        self.node.all_live().iter().for_each(|live| live.delivery.close());
        self.node.tasks.shutdown(SHUTDOWN_BUDGET).await;
        self.last_tasks.shutdown(SHUTDOWN_BUDGET).await;
    }

    /// Ends all machines of the node, hard if need be, and removes its networks and folders. For a cloud that shall leave
    /// nothing behind; [`Agent::shutdown`] leaves machines alone.
    pub async fn remove(self) {
        let node = self.node.clone();
        self.shutdown().await;
        let machines = node.all_live();
        let grace = skein_vmm::Grace { orderly: Duration::from_millis(500), ..Default::default() };
        let ends = machines.iter().map(|live| live.machine.stop(grace));
        for ended in futures_util::future::join_all(ends).await {
            if let Err(error) = ended {
                warn!(error = %report::chain(&error), "a machine could not be ended");
            }
        }
        // Machines that were being started when the tasks ended are only known by their folders.
        end_strays(&node, &BTreeMap::new()).await;
        for live in &machines {
            let _ = std::fs::remove_dir_all(node.machine_dir(&live.record().id));
        }
        let name = node.config.network.clone();
        drop(machines);
        match Arc::try_unwrap(node) {
            Ok(node) => node.networks.close().await,
            Err(_) => warn!(network.name = %name, "the networks are still in use and stay"),
        }
    }

    /// Ends all its tasks where they stand, as a crash would; machines, ports and claims stay as they are. For tests of
    /// faults.
    pub async fn crash(self) {
        self.node.tasks.crash().await;
        self.node.link.iter().for_each(Link::stop);
        self.last_tasks.crash().await;
    }
}

fn subject(node: &Node) -> EventSubject {
    EventSubject { node: Some(node.config.name.clone()), ..EventSubject::default() }
}

/// Where other nodes reach this one, with its public key if it encrypts.
fn own_underlay(config: &AgentConfig) -> Result<Underlay, NetError> {
    let key = config.wire_key().map(|path| open_wire_key(&path)).transpose()?;
    Ok(Underlay { wire: key, ..config.underlay })
}

/// Grants a lease and writes the node's records under it.
async fn join(
    config: &AgentConfig,
    underlay: Underlay,
    light_port: u16,
    parts: &Parts,
) -> Result<HeldLease, AgentError> {
    let lease = HeldLease::take(parts.state.clone(), config.lease).await?;
    let record = NodeRecord {
        name: config.name.clone(),
        memory_mib: config.memory_mib,
        cpu: config.cpu,
        machines_max: config.machines_max,
        performance: config.performance,
        accel: parts.driver.accel().to_string(),
        vmm: config.vmm.clone(),
        number: underlay.number.get(),
        underlay: underlay.address,
        vxlan_port: underlay.vxlan_port,
        wire_key: underlay.wire,
        light_port,
        joined_at: now(),
    };
    let alive = Alive { lease: lease.id(), since: now() };
    let ops: [Op; 2] = [
        RecordKey::Node(config.name.clone()).put(&record)?,
        RecordKey::Alive(config.name.clone()).put_leased(&alive, lease.id())?,
    ];
    let txn = ops.into_iter().fold(Txn::new(), Txn::then);
    parts.state.txn(txn).await?;
    Ok(lease)
}

/// Watches over the lease. When it is lost, no job is claimed until there is a new one; when the agent leaves, it is given
/// back.
async fn keep_lease(
    node: Arc<Node>,
    parts: Parts,
    mut held: HeldLease,
    tell: watch::Sender<Option<LeaseId>>,
    stop: CancellationToken,
) {
    loop {
        let lost = held.lost();
        tokio::select! {
            () = stop.cancelled() => {                    // cancel-safe: token
                if let Err(error) = held.release().await {
                    warn!(error = %report::chain(&error), "the agent's lease was not given back; it will run out");
                }
                return;
            }
            () = lost.wait() => {}                        // cancel-safe: it only watches
        }
        warn!(node.id = %node.config.name, "the agent's lease ended; its jobs fall back");
        tell.send_replace(None);
        held = loop {
            if stop.is_cancelled() {
                return;
            }
            let underlay = *node.underlay.borrow();
            let light_port = node.link.as_ref().map_or(0, Link::light_port);
            match join(&node.config, underlay, light_port, &parts).await {
                Ok(lease) => break lease,
                Err(error) => warn!(error = %report::chain(&error), "joining failed"),
            }
            tokio::time::sleep(JOIN_RETRY).await;
        };
        info!(node.id = %node.config.name, "joined again");
        node.events.emit(subject(&node), EventKind::NodeJoined);
        tell.send_replace(Some(held.id()));
    }
}

/// Holds one task for each machine assigned to this node, until the agent stops.
async fn converge(node: Arc<Node>) {
    let stop = node.tasks.stop_token().clone();
    let mut changes = node.mirror.changes();
    let mut kept: BTreeMap<MachineId, watch::Sender<Arc<MachineRecord>>> = BTreeMap::new();
    let mut first = true;
    loop {
        changes.borrow_and_update();
        reconcile(&node, &mut kept);
        if std::mem::take(&mut first) {
            end_strays(&node, &kept).await;
        }
        tokio::select! {
            () = stop.cancelled() => return,                        // cancel-safe: token
            changed = changes.changed() => if changed.is_err() { return },  // cancel-safe: watch; all is re-read
            () = tokio::time::sleep(RECONCILE_EVERY) => {}          // cancel-safe: timer
        }
    }
}

/// Starts what is missing, tells the others what is wanted, lets go of what is no longer recorded.
fn reconcile(node: &Arc<Node>, kept: &mut BTreeMap<MachineId, watch::Sender<Arc<MachineRecord>>>) {
    type Found = (Arc<MachineRecord>, Option<MachineStatus>);
    let mine: Vec<Found> = node.mirror.read(|view| {
        let records = view.machines.values().filter(|stored| stored.value.node == node.config.name);
        records
            .map(|stored| {
                let status = view.statuses.get(&stored.value.id).map(|s| (*s.value).clone());
                (stored.value.clone(), status)
            })
            .collect()
    });
    kept.retain(|id, sender| {
        let wanted = mine.iter().any(|(record, _)| record.id == *id);
        if !wanted {
            forget(node, id, sender);
        }
        wanted
    });
    for (record, status) in mine {
        match kept.get(&record.id) {
            Some(sender) => {
                // The generation guards against a view that is older than what was seen.
                let newer = sender.borrow().generation < record.generation;
                if newer {
                    sender.send_replace(record);
                }
            }
            None => {
                let (sender, wanted) = watch::channel(record.clone());
                kept.insert(record.id.clone(), sender);
                let gone = status.as_ref().is_some_and(|s| s.phase.name() == PhaseName::Gone);
                if !gone {
                    node.tasks.spawn(Keeper::new(node.clone(), wanted, status).run());
                }
            }
        }
    }
}

/// The record of a machine is deleted: so is what is left of it. One that still runs is told to end, and its keeper
/// removes its folder.
fn forget(node: &Node, id: &MachineId, keeper: &watch::Sender<Arc<MachineRecord>>) {
    if keeper.is_closed() {
        let _ = std::fs::remove_dir_all(node.machine_dir(id));
        return;
    }
    keeper.send_modify(|record| {
        let record = Arc::make_mut(record);
        record.goal = MachineGoal::Stop;
        record.generation = record.generation.next();
    });
}

/// Ends machines whose folder is here and whose record is not: nobody wants them.
async fn end_strays(node: &Node, kept: &BTreeMap<MachineId, watch::Sender<Arc<MachineRecord>>>) {
    let Ok(folders) = node.config.dir.read_dir_utf8() else { return };
    for folder in folders.flatten() {
        let Ok(id) = folder.file_name().parse::<MachineId>() else { continue };
        if kept.contains_key(&id) {
            continue;
        }
        match node.driver.adopt(folder.path()).await {
            Ok(Adopted::Running(machine)) => {
                info!(machine.id = %id, "a machine that nobody wants is ended");
                if let Err(error) = machine.kill().await {
                    warn!(machine.id = %id, error = %report::chain(&error), "it could not be ended");
                    continue;
                }
            }
            Ok(Adopted::Ended { .. }) | Err(AdoptError::NoMachine { .. }) => {}
            Err(error) => {
                // Its process may run: the folder is what finds it the next time.
                warn!(machine.id = %id, error = %report::chain(&error), "a machine that nobody wants was not found");
                continue;
            }
        }
        let _ = std::fs::remove_dir_all(folder.path());
        node.unplug(&id, node.adopted_plug(&id)).await;
    }
}
