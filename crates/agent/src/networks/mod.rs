//! The networks of the node: they come with their first machine and go with the last one.
//!
//! ```text
//!   records (mirror) ──▶ desired (pure) ──▶ NodeNetworks ──▶ kernel       one task, whatever wakes it
//!                            │                    │
//!                        applied              events ──▶ demand: connections that wait for a machine
//!                            │
//!                            └──▶ keepers of machines: plug, unplug, sockets inside
//! ```
//! Nobody is told what changed: whatever wakes the task, it decides everything again, and what is as it was costs a
//! comparison. A machine's keeper waits until its network is there and knows its port, and then plugs it in.

mod demand;
mod desired;
mod look;

#[cfg(test)]
pub(crate) use desired::tests::{Records, ready};
pub(crate) use desired::{Own, desired, encryption, of_all_nodes, vni};
pub(crate) use look::{capture, counters, trace};

use crate::config::AgentConfig;
use crate::node::Node;
use skein_model::{EventKind, EventSubject, MachineId, PortRecord};
use skein_net::{
    Applied, Connector, Desired, DesiredNetwork, EVENTS_WAITING_MAX, InvalidDesired, NetError,
    NetworkEvent, NodeNetworks, NodeNetworksConfig, Port, Vni,
};
use skein_registry::network_with;
use skein_shell::report;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
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

/// The networks of the node.
#[derive(Debug)]
pub(crate) struct Networks {
    kernel: NodeNetworks,
    /// What the kernel was last brought in line with.
    applied: watch::Sender<Desired>,
}

/// What was found when the networks were opened.
pub(crate) struct Opened {
    pub(crate) networks: Networks,
    /// The ports of machines that an earlier agent started.
    pub(crate) adopted: BTreeMap<MachineId, Plug>,
    /// What happens in the networks.
    pub(crate) events: mpsc::Receiver<NetworkEvent>,
}

impl Networks {
    /// The node's networks as `wanted`, above the host's namespace `underlay` (none: this process's), with the ports that an earlier agent left in them.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) async fn open(config: &AgentConfig, wanted: Desired) -> Result<Opened, NetError> {
        let (tell, events) = mpsc::channel(EVENTS_WAITING_MAX);
        let config = NodeNetworksConfig {
            group: config.network.clone(),
            underlay: config.namespace.clone(),
            resolvers: Vec::new(),
            wire_key: config.wire_key(),
            events: Some(tell),
        };
        let kernel = NodeNetworks::start(config).await?;
        let (applied, _) = watch::channel(Desired::new(wanted.underlay));
        let networks = Self { kernel, applied };
        let shown: Vec<Vni> = wanted.networks.iter().map(|network| network.vni).collect();
        networks.apply(wanted).await;
        let mut adopted = BTreeMap::new();
        for vni in shown {
            // One that could not be opened has no machine that could be reached either.
            let Ok(ports) = networks.kernel.ports(vni).await else { continue };
            for port in ports {
                if let Ok(machine) = port.label.as_str().parse() {
                    adopted.insert(machine, Plug { vni, address: port.address });
                }
            }
        }
        Ok(Opened { networks, adopted, events })
    }

    /// Brings the kernel in line; whether that was done as far as it can be.
    async fn apply(&self, wanted: Desired) -> bool {
        let done = self.kernel.apply(wanted.clone()).await;
        self.applied.send_modify(|applied| *applied = in_line(applied, wanted, &done));
        done.failed.is_empty()
    }

    /// What the kernel was last brought in line with.
    pub(crate) fn applied(&self) -> Desired {
        self.applied.borrow().clone()
    }

    /// Waits until a port's network is there and knows it.
    ///
    /// # Errors
    /// [`PlugError::Late`].
    pub(crate) async fn shows(&self, plug: Plug) -> Result<(), PlugError> {
        let mut applied = self.applied.subscribe();
        let known = applied.wait_for(|desired| knows(desired, plug));
        match tokio::time::timeout(NETWORK_DEADLINE, known).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(PlugError::Late { vni: plug.vni }),
        }
    }

    /// Plugs a machine in, as soon as its network knows its port.
    ///
    /// # Errors
    /// [`PlugError`].
    pub(crate) async fn plug(&self, plug: Plug) -> Result<Port, PlugError> {
        self.shows(plug).await?;
        let refused = |source| PlugError::Refused { vni: plug.vni, source };
        self.kernel.plug(plug.vni, plug.address).await.map_err(refused)
    }

    /// Removes a port; one that is gone with its network is no error.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) async fn unplug(&self, plug: Plug) -> Result<(), NetError> {
        match self.kernel.unplug(plug.vni, plug.address).await {
            Ok(_) | Err(NetError::NetworkUnknown { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Sockets inside a network; none while it is not there.
    pub(crate) async fn connector(&self, vni: Vni) -> Option<Connector> {
        self.kernel.connector(vni).await.ok()
    }

    /// Removes all networks with what is in them.
    pub(crate) async fn close(self) {
        if let Err(error) = self.kernel.remove().await {
            warn!(code = error.code(), error = %report::chain(&error), "the node's networks were not removed wholly");
        }
    }
}

/// What the kernel is in line with when it was, before, with `before`: a network that cannot be, or could not be made, is what
/// it was.
fn in_line(before: &Desired, wanted: Desired, done: &Applied) -> Desired {
    let failed = done.failed.iter().map(|(vni, _)| *vni);
    let spoilt: BTreeSet<Vni> =
        failed.chain(done.invalid.iter().map(InvalidDesired::vni)).collect();
    let stays = |vni: Vni| before.networks.iter().find(|network| network.vni == vni).cloned();
    let networks = wanted.networks.into_iter().filter_map(|network| {
        if spoilt.contains(&network.vni) { stays(network.vni) } else { Some(network) }
    });
    Desired { networks: networks.collect(), ..wanted }
}

/// Whether a port is part of what the kernel was brought in line with.
fn knows(desired: &Desired, plug: Plug) -> bool {
    let network = desired.networks.iter().find(|network| network.vni == plug.vni);
    network.is_some_and(|network| network.ports.iter().any(|port| port.address == plug.address))
}

/// Keeps the node's networks in line with the records, and tells what happens in them, until the agent stops.
pub(crate) fn start(node: &Arc<Node>, events: mpsc::Receiver<NetworkEvent>) {
    node.tasks.spawn(follow(node.clone()));
    node.tasks.spawn(demand::run(node.clone(), events));
}

async fn follow(node: Arc<Node>) {
    let stop = node.tasks.stop_token().clone();
    let mut changes = node.mirror.changes();
    let mut underlay = node.underlay.subscribe();
    let mut whole = true;
    loop {
        changes.borrow_and_update();
        let before = node.networks.applied();
        let own = Own { name: &node.config.name, underlay: *underlay.borrow_and_update() };
        let wanted = node.mirror.read(|view| desired(view, own, &before));
        if !whole || wanted != before {
            // A record may go while the kernel works.
            let names = names(&node, before.networks.iter().chain(&wanted.networks));
            whole = node.networks.apply(wanted).await;
            tell(&node, &names, &Change::between(&before, &node.networks.applied()));
        }
        let wait = if whole { APPLY_EVERY } else { RETRY };
        tokio::select! {
            () = stop.cancelled() => return,                                // cancel-safe: token
            changed = changes.changed() => if changed.is_err() { return },  // cancel-safe: watch; all is re-read
            _ = underlay.changed() => {}                                    // as above
            () = tokio::time::sleep(wait) => {}                             // cancel-safe: timer
        }
    }
}

/// Networks that came to the node and went from it.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    opened: BTreeSet<Vni>,
    closed: BTreeSet<Vni>,
}

impl Change {
    fn between(before: &Desired, after: &Desired) -> Self {
        let all = |desired: &Desired| desired.networks.iter().map(|network| network.vni).collect();
        let (before, after): (BTreeSet<Vni>, BTreeSet<Vni>) = (all(before), all(after));
        Self { opened: &after - &before, closed: &before - &after }
    }
}

/// Whose networks are, and what they are called, as long as the records say so.
fn names<'a>(
    node: &Node,
    networks: impl Iterator<Item = &'a Arc<DesiredNetwork>>,
) -> BTreeMap<Vni, (EventSubject, String)> {
    let named = |vni: Vni| {
        let record = skein_model::Vni::new(vni.get());
        node.mirror.read(|view| {
            let network = network_with(view, record?)?;
            let subject = EventSubject {
                project: Some(network.project.clone()),
                node: Some(node.config.name.clone()),
                ..EventSubject::default()
            };
            Some((vni, (subject, network.spec.name.to_string())))
        })
    };
    networks.filter_map(|network| named(network.vni)).collect()
}

fn tell(node: &Node, names: &BTreeMap<Vni, (EventSubject, String)>, change: &Change) {
    for (subject, network) in change.opened.iter().filter_map(|vni| names.get(vni)) {
        let network = network.clone();
        node.events.emit(subject.clone(), EventKind::NetworkOpened { network });
    }
    for (subject, network) in change.closed.iter().filter_map(|vni| names.get(vni)) {
        let network = network.clone();
        node.events.emit(subject.clone(), EventKind::NetworkClosed { network });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A network that was there and is to have another machine, and one that is to come.
    fn states() -> (Desired, Desired) {
        let records = Records::default()
            .node(1, 1)
            .network("blue", 5000, |_| {})
            .service("blue", "app", &[])
            .machine("blue", "app-1", "n1", 2, ready());
        let before = records.on("n1");
        let records = records
            .machine("blue", "app-2", "n1", 3, ready())
            .network("red", 5001, |_| {})
            .service("red", "app", &[])
            .machine("red", "app-3", "n1", 2, ready());
        (before, records.on("n1"))
    }

    #[test]
    fn what_cannot_be_made_is_not_taken_for_there() {
        let (before, wanted) = states();
        let [blue, red] = [5000, 5001].map(|number| Vni::new(number).unwrap());
        let plug = |vni: Vni, last: u8| Plug { vni, address: Ipv4Addr::new(10, 20, 0, last) };
        let check = |done: Applied, known: &[Plug], opened: &[Vni]| {
            let after = in_line(&before, wanted.clone(), &done);
            let all = [plug(blue, 2), plug(blue, 3), plug(red, 2)];
            let found: Vec<Plug> = all.into_iter().filter(|plug| knows(&after, *plug)).collect();
            assert_eq!(found, known, "{done:?}");
            let change = Change::between(&before, &after);
            assert_eq!(change.opened, opened.iter().copied().collect(), "{done:?}");
            assert!(change.closed.is_empty(), "{change:?}");
        };
        let invalid = |vni| Applied { invalid: vec![InvalidDesired::Dhcp { vni }], failed: vec![] };
        let failed = |vni| Applied { failed: vec![(vni, NetError::Closed)], invalid: vec![] };
        let all = [plug(blue, 2), plug(blue, 3), plug(red, 2)];
        check(Applied::default(), &all, &[red]);
        check(invalid(blue), &[plug(blue, 2), plug(red, 2)], &[red]);
        check(failed(blue), &[plug(blue, 2), plug(red, 2)], &[red]);
        check(invalid(red), &[plug(blue, 2), plug(blue, 3)], &[]);
        check(failed(red), &[plug(blue, 2), plug(blue, 3)], &[]);
        // Once it can be it is, and what goes is gone, whatever is wrong with the rest.
        let gone = in_line(&wanted, before.clone(), &failed(red));
        assert_eq!(gone, before);
    }
}
