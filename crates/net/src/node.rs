//! All networks of a node: brings the kernel to what is desired, and keeps it there.
//!
//! ```text
//!   apply ──▶ NodeNetworks ──▶ Keeper (one task a network) ──▶ namespace, bridge, taps, rules, services
//!                │                   ▲   │
//!                │                   │   └ looks again when the kernel tells of a change, and every 10 s
//!                └──▶ Outside (the node's own namespace): tunnels, ways in and out, one table
//! ```
//! What is desired is only ever given whole, so there is nothing to remember between two calls.

mod complaints;
mod keeper;
mod leftover;
mod outside;
mod reserved;
mod shortcut;

pub use leftover::sweep_tables;
pub use outside::TABLE_PREFIX;

use crate::connector::Connector;
use crate::desired::{Desired, DesiredNetwork, InvalidDesired, Vni};
use crate::error::NetError;
use crate::events::{Events, NetworkEvent};
use crate::names::NetworkName;
use crate::namespace;
use crate::network::{NodeNetwork, blocking};
use crate::port::{Port, PortInfo, Unplugged};
use crate::service::Resolvers;
use crate::trace::Counter;
use crate::transfer::Connection;
use complaints::Complaints;
use keeper::{Ask, Keeper};
use outside::Outside;
use skein_shell::report;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::{info, warn};

/// Requests that wait for one network: its keeper works on one at a time.
const REQUESTS_WAITING_MAX: usize = 64;
/// Networks that are worked on at a time: the kernel takes one change of interfaces at a time
/// anyway.
const APPLYING_MAX: usize = 8;

/// Where a node's networks are, and who hears of them.
#[derive(Debug, Clone)]
pub struct NodeNetworksConfig {
    /// What the names of all networks of this node begin with: unique among all agents on a host.
    pub group: NetworkName,
    /// The file of the namespace in which the node talks to others; `None`: this process's own.
    pub underlay: Option<PathBuf>,
    /// Who is asked for names that are not ours; empty: whom `/etc/resolv.conf` names when a machine asks.
    pub resolvers: Vec<SocketAddrV4>,
    /// The file of the node's secret, made by [`crate::open_wire_key`], if it encrypts what it sends to other nodes.
    pub wire_key: Option<PathBuf>,
    /// Who is told what happens; make it of [`crate::EVENTS_WAITING_MAX`].
    pub events: Option<mpsc::Sender<NetworkEvent>>,
}

/// What [`NodeNetworks::apply`] could not do. Everything else was done.
#[derive(Debug, Default)]
pub struct Applied {
    /// Networks that cannot be.
    pub invalid: Vec<InvalidDesired>,
    /// Networks that could not be made what they should be; the next attempt is made by itself.
    pub failed: Vec<(Vni, NetError)>,
}

impl Applied {
    /// Whether everything was done.
    pub fn is_whole(&self) -> bool {
        self.invalid.is_empty() && self.failed.is_empty()
    }
}

/// The networks of a node. Dropping it leaves them as they are, for the next one.
#[derive(Debug)]
pub struct NodeNetworks {
    group: NetworkName,
    outside: Arc<Outside>,
    events: Events,
    keepers: Mutex<Keepers>,
    complaints: Mutex<Complaints>,
    /// One caller of `apply` at a time.
    turn: Semaphore,
}

#[derive(Debug, Default)]
struct Keepers {
    asks: BTreeMap<Vni, mpsc::Sender<Ask>>,
    tasks: JoinSet<Vni>,
    /// Whether nothing is left that no keeper has: of a former process, or what could not be removed.
    swept: bool,
}

impl NodeNetworks {
    /// Enters the node's namespace. Nothing is changed before the first [`NodeNetworks::apply`].
    ///
    /// # Errors
    /// [`NetError::Namespace`] if `underlay` is none, [`NetError::Descriptors`].
    pub async fn start(config: NodeNetworksConfig) -> Result<Self, NetError> {
        let events = Events::new(config.events.clone());
        let resolvers = Resolvers::new(config.resolvers.clone());
        let group = config.group.clone();
        let outside = Outside::enter(config, resolvers, events.clone()).await?;
        Ok(Self {
            group,
            outside: Arc::new(outside),
            events,
            keepers: Mutex::new(Keepers::default()),
            complaints: Mutex::default(),
            turn: Semaphore::new(1),
        })
    }

    /// The name on this host of the network `vni`: its namespace is `skein-NAME`.
    pub fn name(&self, vni: Vni) -> NetworkName {
        network_name(&self.group, vni)
    }

    /// Makes the node's networks what they should be, and removes all others of this node, those
    /// that an earlier process left included. Doing it twice changes nothing.
    ///
    /// # Cancel safety
    /// What was begun is finished; call it again to have the rest done.
    pub async fn apply(&self, desired: Desired) -> Applied {
        let Ok(_turn) = self.turn.acquire().await else { return Applied::default() };
        let desired = Arc::new(desired);
        let (good, invalid) = desired.check();
        let good: BTreeMap<_, _> = good.into_iter().map(|n| (n.vni, n.clone())).collect();
        let wrong: Vec<_> = desired.networks.iter().map(|network| network.vni).collect();
        // A network that is wrong stays what it was.
        let mut failed = self.remove_others(&|vni| wrong.contains(&vni)).await;
        let mut prepared = self.outside.prepare(&desired).await;
        let applying = good.into_iter().map(|(vni, network)| {
            let desired = desired.clone();
            async move { (vni, self.apply_one(desired, network).await) }
        });
        use futures_util::StreamExt;
        let results: Vec<_> =
            futures_util::stream::iter(applying).buffer_unordered(APPLYING_MAX).collect().await;
        for (vni, result) in results {
            failed.extend(result.err().map(|error| (vni, error)));
        }
        if prepared.is_err() {
            // Tunnels of a node that did not encrypt until now had its port, and have moved.
            prepared = self.outside.prepare(&desired).await;
        }
        for done in [prepared, self.outside.refresh().await.map(drop)] {
            let vni = desired.networks.first().map(|network| network.vni);
            failed.extend(vni.zip(done.err()));
        }
        let applied = Applied { invalid, failed };
        self.complain(&applied);
        applied
    }

    /// Tells what is wrong, once: who applies tries again several times a second.
    fn complain(&self, applied: &Applied) {
        let invalid = applied.invalid.iter().map(|error| (error.vni(), error.to_string()));
        let failed = applied.failed.iter().map(|(vni, error)| (*vni, report::chain(error)));
        let said = {
            let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
            complaints.update(invalid.chain(failed).collect())
        };
        for (vni, error) in said.wrong {
            warn!(network.vni = %vni, %error, "a network is not what it should be");
        }
        for vni in said.mended {
            info!(network.vni = %vni, "a network is what it should be again");
        }
    }

    async fn apply_one(
        &self,
        desired: Arc<Desired>,
        network: Arc<DesiredNetwork>,
    ) -> Result<(), NetError> {
        let vni = network.vni;
        let known = self.keeper(vni);
        let keeper = match known {
            Some(keeper) => keeper,
            None => self.start_keeper(&network).await?,
        };
        ask(&keeper, |reply| Ask::Apply { desired, network, reply }).await
    }

    async fn start_keeper(&self, network: &DesiredNetwork) -> Result<mpsc::Sender<Ask>, NetError> {
        let (vni, name) = (network.vni, self.name(network.vni));
        let keeper = Keeper::open(name, network, self.outside.clone(), self.events.clone()).await?;
        let (asks, inbox) = mpsc::channel(REQUESTS_WAITING_MAX);
        let mut keepers = self.keepers();
        keepers.asks.insert(vni, asks.clone());
        keepers.tasks.spawn(async move {
            keeper.run(inbox).await;
            vni
        });
        Ok(asks)
    }

    fn keeper(&self, vni: Vni) -> Option<mpsc::Sender<Ask>> {
        let mut keepers = self.keepers();
        while let Some(ended) = keepers.tasks.try_join_next() {
            if let Err(error) = ended {
                warn!(%error, "the keeper of a network ended");
            }
        }
        keepers.asks.get(&vni).filter(|asks| !asks.is_closed()).cloned()
    }

    /// Removes networks that are not to be. What could not be removed is tried again with the next call.
    async fn remove_others(&self, stays: &(dyn Fn(Vni) -> bool + Sync)) -> Vec<(Vni, NetError)> {
        let (others, sweep) = {
            let mut keepers = self.keepers();
            let gone: Vec<_> = keepers.asks.keys().filter(|vni| !stays(**vni)).copied().collect();
            let asks = gone.into_iter().filter_map(|vni| keepers.asks.remove_entry(&vni));
            let asks: Vec<_> = asks.collect();
            let sweep = !keepers.swept;
            // From here to the end of this call there may be some without a keeper.
            keepers.swept &= asks.is_empty();
            (asks, sweep)
        };
        let mut failed = Vec::new();
        for (vni, keeper) in others {
            if let Err(error) = ask(&keeper, |reply| Ask::Close { reply }).await {
                failed.push((vni, error));
            }
        }
        let swept = !sweep || self.sweep(stays, &mut failed).await;
        self.keepers().swept = swept && failed.is_empty();
        failed
    }

    /// Removes networks that nobody wants and no keeper has. Whether they could be listed.
    async fn sweep(
        &self,
        stays: &(dyn Fn(Vni) -> bool + Sync),
        failed: &mut Vec<(Vni, NetError)>,
    ) -> bool {
        let names = match blocking(namespace::list).await {
            Ok(names) => names,
            Err(error) => {
                warn!(error = %report::chain(&error), "networks that nobody wants were not looked for");
                return false;
            }
        };
        let left = names.into_iter().filter_map(|name| {
            let vni = vni_of(&self.group, &name)?;
            (!stays(vni)).then_some((vni, name))
        });
        for (vni, name) in left {
            match NodeNetwork::destroy(&name).await {
                Ok(_) => info!(network.name = %name, "a network that nobody wants was removed"),
                Err(error) => failed.push((vni, error)),
            }
        }
        true
    }

    fn keepers(&self) -> MutexGuard<'_, Keepers> {
        self.keepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plugs in the machine at `address`, which is a port of what was last applied. The rules for
    /// it are there already.
    ///
    /// # Errors
    /// [`NetError::NetworkUnknown`], [`NetError::PortUnknown`], and those of
    /// [`NodeNetwork::plug`].
    ///
    /// # Cancel safety
    /// Dropping the future unplugs the port if it was made.
    pub async fn plug(&self, vni: Vni, address: Ipv4Addr) -> Result<Port, NetError> {
        self.ask(vni, |reply| Ask::Plug { address, reply }).await
    }

    /// Removes the tap of a port, held or not. The port may be plugged in again.
    ///
    /// # Errors
    /// [`NetError::NetworkUnknown`], else what the kernel says.
    pub async fn unplug(&self, vni: Vni, address: Ipv4Addr) -> Result<Unplugged, NetError> {
        self.ask(vni, |reply| Ask::Unplug { address, reply }).await
    }

    /// The taps of a network that exist, with who holds them.
    ///
    /// # Errors
    /// [`NetError::NetworkUnknown`], else what the kernel says.
    pub async fn ports(&self, vni: Vni) -> Result<Vec<PortInfo>, NetError> {
        self.ask(vni, |reply| Ask::Ports { reply }).await
    }

    /// Opens sockets inside a network.
    ///
    /// # Errors
    /// [`NetError::NetworkUnknown`].
    pub async fn connector(&self, vni: Vni) -> Result<Connector, NetError> {
        self.ask(vni, |reply| Ask::Connector { reply }).await
    }

    /// What rules have counted since they were last written: a group that changes begins anew.
    ///
    /// # Errors
    /// [`NetError::NetworkUnknown`], else what the kernel says.
    pub async fn counters(&self, vni: Vni) -> Result<Vec<Counter>, NetError> {
        self.ask(vni, |reply| Ask::Counters { reply }).await
    }

    /// The connections of the machine at `address`, for the node it moves to.
    ///
    /// # Errors
    /// [`NetError::NetworkUnknown`], else what the kernel says.
    pub async fn connections(
        &self,
        vni: Vni,
        address: Ipv4Addr,
    ) -> Result<Vec<Connection>, NetError> {
        self.ask(vni, |reply| Ask::Connections { address, reply }).await
    }

    /// Makes connections known that a machine brings from another node. What the rules forbid here
    /// is left out. Doing it twice is harmless.
    ///
    /// # Errors
    /// [`NetError::NetworkUnknown`], else what the kernel says.
    pub async fn adopt_connections(
        &self,
        vni: Vni,
        connections: Vec<Connection>,
    ) -> Result<(), NetError> {
        self.ask(vni, |reply| Ask::Adopt { connections, reply }).await
    }

    /// Watches the frames of the plugged-in machine at `address`, both ways, from now on.
    ///
    /// # Errors
    /// [`NetError::NetworkUnknown`], [`NetError::PortUnknown`] if it is not plugged in, else what
    /// the kernel says.
    pub async fn capture(
        &self,
        vni: Vni,
        address: Ipv4Addr,
        options: crate::CaptureOptions,
    ) -> Result<crate::Capture, NetError> {
        self.ask(vni, |reply| Ask::Capture { address, options, reply }).await
    }

    /// Removes all networks of this node, and its own table.
    ///
    /// # Errors
    /// What the kernel says about the first that could not be removed; the others were.
    pub async fn remove(self) -> Result<(), NetError> {
        let failed = self.remove_others(&|_| false).await;
        self.outside.clear().await?;
        failed.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
    }

    async fn ask<T>(
        &self,
        vni: Vni,
        make: impl FnOnce(oneshot::Sender<Result<T, NetError>>) -> Ask,
    ) -> Result<T, NetError> {
        let keeper = self.keeper(vni).ok_or(NetError::NetworkUnknown { vni })?;
        ask(&keeper, make).await
    }
}

async fn ask<T>(
    keeper: &mpsc::Sender<Ask>,
    make: impl FnOnce(oneshot::Sender<Result<T, NetError>>) -> Ask,
) -> Result<T, NetError> {
    let (reply, answer) = oneshot::channel();
    keeper.send(make(reply)).await.map_err(|_| NetError::Closed)?;
    answer.await.map_err(|_| NetError::Closed)?
}

fn network_name(group: &NetworkName, vni: Vni) -> NetworkName {
    NetworkName::of_group(group, &format!("v{vni}"))
}

/// The network that a name of this node's is for.
fn vni_of(group: &NetworkName, name: &NetworkName) -> Option<Vni> {
    let rest = name.as_str().strip_prefix(group.as_str())?.strip_prefix("-v")?;
    Vni::new(rest.parse().ok()?).filter(|vni| network_name(group, *vni) == *name)
}
