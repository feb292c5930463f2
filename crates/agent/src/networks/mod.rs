//! The networks of the node: they come with their first machine and go with the last one.
//!
//! ```text
//!   records (mirror) ──▶ desired (pure) ──▶ kernel          one task, which alone makes and removes networks
//!                            │
//!                        applied ──▶ keepers of machines: plug, unplug, sockets inside
//! ```
//! Nobody is told what changed: whatever wakes the task, it decides everything again, and what is as it was costs a
//! comparison. A machine's keeper waits until its network is there and knows its port, and then plugs it in.

mod desired;

pub(crate) use desired::{Own, desired, vni};

use crate::node::Node;
use skein_model::{EventKind, EventSubject, MachineId, PortRecord};
use skein_net::{
    Connector, Desired, NetError, NetworkName, NetworkSpec, NodeNetwork, Port, PortInfo, PortSpec,
    Underlay, Vni,
};
use skein_registry::network_with;
use skein_shell::report;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tracing::warn;

/// However quiet it is, everything is decided again after this long.
const APPLY_EVERY: Duration = Duration::from_secs(5);
/// After a failure of the kernel.
const RETRY: Duration = Duration::from_millis(200);
/// How long a machine waits for its network.
const NETWORK_DEADLINE: Duration = Duration::from_secs(15);

/// Where a machine is plugged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plug {
    pub(crate) vni: Vni,
    pub(crate) address: Ipv4Addr,
}

impl Plug {
    /// That of a port's record.
    pub(crate) fn of(port: &PortRecord) -> Option<Self> {
        Some(Self { vni: vni(port.vni)?, address: port.ipv4 })
    }
}

/// Why a machine is not plugged in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlugError {
    /// Its network is not there in time.
    #[error("network {vni} is not ready after {} s", NETWORK_DEADLINE.as_secs())]
    Late { vni: Vni },
    /// The kernel refused.
    #[error("plugging into network {vni}")]
    Refused { vni: Vni, source: NetError },
}

impl PlugError {
    /// Stable code.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Late { .. } => "NETWORK_NOT_READY",
            Self::Refused { source, .. } => source.code(),
        }
    }
}

/// What came and went when the networks were brought in line.
#[derive(Debug, Default)]
struct Changed {
    opened: Vec<Vni>,
    closed: Vec<Vni>,
}

/// The networks of the node.
#[derive(Debug)]
pub(crate) struct Networks {
    /// What the names of all of them begin with.
    group: NetworkName,
    open: Mutex<BTreeMap<Vni, Arc<NodeNetwork>>>,
    /// What the kernel was last brought in line with.
    applied: watch::Sender<Desired>,
}

impl Networks {
    /// The node's networks as `desired` wants them, with the ports that an earlier agent left in them.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) async fn open(
        group: NetworkName,
        underlay: Underlay,
        wanted: Desired,
    ) -> Result<(Self, Vec<(Vni, PortInfo)>), NetError> {
        let (applied, _) = watch::channel(Desired::new(underlay));
        let networks = Self { group, open: Mutex::default(), applied };
        networks.apply(wanted).await?;
        let mut found = Vec::new();
        for (vni, network) in networks.all() {
            found.extend(network.ports().await?.into_iter().map(|port| (vni, port)));
        }
        Ok((networks, found))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Vni, Arc<NodeNetwork>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> Vec<(Vni, Arc<NodeNetwork>)> {
        self.lock().iter().map(|(vni, network)| (*vni, network.clone())).collect()
    }

    fn get(&self, vni: Vni) -> Option<Arc<NodeNetwork>> {
        self.lock().get(&vni).cloned()
    }

    /// Brings the kernel in line; what came and went.
    async fn apply(&self, wanted: Desired) -> Result<Changed, NetError> {
        let mut changed = Changed::default();
        for network in &wanted.networks {
            if self.get(network.vni).is_none() {
                let name = format!("{}-v{}", self.group, network.vni);
                let Ok(name) = name.parse() else { continue };
                let opened = NodeNetwork::open(NetworkSpec::new(name, network.cidr)).await?;
                self.lock().insert(network.vni, Arc::new(opened));
                changed.opened.push(network.vni);
            }
        }
        self.applied.send_replace(wanted.clone());
        for (vni, _) in self.all() {
            if wanted.networks.iter().any(|network| network.vni == vni) {
                continue;
            }
            let Some(network) = self.lock().remove(&vni) else { continue };
            match Arc::try_unwrap(network) {
                Ok(network) => {
                    network.close().await?;
                    changed.closed.push(vni);
                }
                // Somebody is plugging or unplugging: the next round removes it.
                Err(network) => drop(self.lock().insert(vni, network)),
            }
        }
        Ok(changed)
    }

    /// Plugs a machine in, as soon as its network knows its port.
    ///
    /// # Errors
    /// [`PlugError`].
    pub(crate) async fn plug(&self, port: &PortRecord) -> Result<Port, PlugError> {
        let late = || PlugError::Late { vni: self.named(port) };
        let plug = Plug::of(port).ok_or_else(late)?;
        let mut applied = self.applied.subscribe();
        let known = applied.wait_for(|desired| knows(desired, plug));
        match tokio::time::timeout(NETWORK_DEADLINE, known).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return Err(late()),
        }
        let network = self.get(plug.vni).ok_or_else(late)?;
        let refused = |source| PlugError::Refused { vni: plug.vni, source };
        let spec = PortSpec {
            address: port.ipv4,
            mac: skein_net::Mac::new(port.mac.octets()).map_err(|_| late())?,
            label: port.machine.as_str().parse().map_err(|_| late())?,
            peers: skein_net::Peers::Reachable,
        };
        network.plug(spec).await.map_err(refused)
    }

    fn named(&self, port: &PortRecord) -> Vni {
        vni(port.vni).unwrap_or_else(|| Vni::new(1).expect("1 is a VNI"))
    }

    /// Removes a port; one that is gone with its network is no error.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) async fn unplug(&self, plug: Plug) -> Result<(), NetError> {
        match self.get(plug.vni) {
            Some(network) => network.unplug(plug.address).await.map(drop),
            None => Ok(()),
        }
    }

    /// Sockets inside a network; none while it is not there.
    pub(crate) fn connector(&self, vni: Vni) -> Option<Connector> {
        self.get(vni).map(|network| network.connector())
    }

    /// Removes all networks with what is in them.
    pub(crate) async fn close(self) {
        let open = std::mem::take(&mut *self.lock());
        for (vni, network) in open {
            let Ok(network) = Arc::try_unwrap(network) else {
                warn!(network.vni = %vni, "a network is still in use and stays");
                continue;
            };
            if let Err(error) = network.close().await {
                warn!(network.vni = %vni, error = %report::chain(&error), "a network could not be removed");
            }
        }
    }
}

/// Whether a port is part of what the kernel was brought in line with.
fn knows(desired: &Desired, plug: Plug) -> bool {
    let network = desired.networks.iter().find(|network| network.vni == plug.vni);
    network.is_some_and(|network| network.ports.iter().any(|port| port.address == plug.address))
}

/// Keeps the node's networks in line with the records, until the agent stops.
pub(crate) async fn run(node: Arc<Node>) {
    let stop = node.tasks.stop_token().clone();
    let mut changes = node.mirror.changes();
    loop {
        changes.borrow_and_update();
        let before = node.networks.applied.borrow().clone();
        let own = Own { name: &node.config.name, underlay: node.config.underlay };
        let wanted = node.mirror.read(|view| desired(view, own, &before));
        let mut wait = APPLY_EVERY;
        if wanted != before {
            match node.networks.apply(wanted).await {
                Ok(changed) => tell(&node, &changed),
                Err(error) => {
                    warn!(code = error.code(), error = %report::chain(&error), "the networks could not be brought in line");
                    wait = RETRY;
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,                                // cancel-safe: token
            changed = changes.changed() => if changed.is_err() { return },  // cancel-safe: watch; all is re-read
            () = tokio::time::sleep(wait) => {}                             // cancel-safe: timer
        }
    }
}

/// Records that networks came and went.
fn tell(node: &Node, changed: &Changed) {
    let named = |vni: &Vni| {
        let record = skein_model::Vni::new(vni.get());
        node.mirror.read(|view| {
            let network = network_with(view, record?)?;
            Some((network.project.clone(), network.spec.name.to_string()))
        })
    };
    let emit = |vni: &Vni, kind: fn(String) -> EventKind| {
        // One whose record is gone has nobody left to tell.
        let Some((project, network)) = named(vni) else { return };
        let subject = EventSubject {
            project: Some(project),
            node: Some(node.config.name.clone()),
            ..EventSubject::default()
        };
        node.events.emit(subject, kind(network));
    };
    changed.opened.iter().for_each(|vni| emit(vni, |network| EventKind::NetworkOpened { network }));
    changed.closed.iter().for_each(|vni| emit(vni, |network| EventKind::NetworkClosed { network }));
}

/// The machines whose ports an earlier agent left, by what the taps say.
pub(crate) fn adopted(found: &[(Vni, PortInfo)]) -> BTreeMap<MachineId, Plug> {
    let machine = |port: &PortInfo| port.label.as_str().parse().ok();
    let plugs = found.iter().filter_map(|(vni, port)| {
        Some((machine(port)?, Plug { vni: *vni, address: port.address }))
    });
    plugs.collect()
}
