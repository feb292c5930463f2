//! The node's own namespace: what of networks stands in it.

use crate::connector::Connector;
use crate::desired::{Desired, HostInterface, VXLAN_OVERHEAD_BYTES, Vni, WIRE_OVERHEAD_BYTES};
use crate::error::NetError;
use crate::events::{Events, NetworkEvent};
use crate::firewall::{HostRules, Way, host_rules};
use crate::kernel;
use crate::monitor::{Ears, Monitor};
use crate::names::{InterfaceName, NetworkName};
use crate::netfilter::{Netfilter, Ruleset, diff, replace};
use crate::netlink::{Netlink, Route, TABLE_MAIN, Tunnel};
use crate::network::blocking;
use crate::node::NodeNetworksConfig;
use crate::node::reserved::Reserved;
use crate::node::shortcut::Shortcut;
use crate::plan::{HOST_TRANSIT, transit_address};
use crate::service::Resolvers;
use crate::setup::failed;
use crate::thread::NamespaceThread;
use crate::wire::{self, SecretKey, Wire, WireConfig, WireWanted};
use skein_model::WireKey;
use skein_shell::report;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};

/// What the name of a node's table begins with.
pub const TABLE_PREFIX: &str = "skein-";
/// After a change of the node's namespace: others come in bursts.
const SETTLE: Duration = Duration::from_millis(500);
/// Bytes of the largest packet of Ethernet.
const ETHERNET_BYTES: u16 = 1500;
/// However quiet it is, the table is looked at after this long.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Nothing tells when a program of the node gives back a published port: while one has it, it is tried after this long.
const TRY_EVERY: Duration = Duration::from_secs(2);

/// The node's namespace.
#[derive(Debug)]
pub(super) struct Outside {
    group: NetworkName,
    thread: NamespaceThread,
    connector: Connector,
    resolvers: Resolvers,
    parts: Mutex<Parts>,
    /// One writer of the table at a time, who opens no port but those that are bound here.
    reserved: tokio::sync::Mutex<Reserved>,
    /// Told when a published port is in use.
    in_use: Arc<Notify>,
    /// Whether the kernel can do what the short way between machines needs, once a network has tried.
    shortcut: Shortcut,
    /// The file of the node's secret, if it has one.
    wire_key: Option<PathBuf>,
    wire: tokio::sync::Mutex<WirePlace>,
    events: Events,
    woken: Arc<Notify>,
    /// Counts changes of the namespace, for every keeper that has a way through here.
    changed: watch::Sender<u64>,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Parts {
    ways: BTreeMap<Vni, Way>,
    tunnel: Option<(u16, BTreeSet<Ipv4Addr>)>,
    /// What was programmed, and the generation it left.
    programmed: Option<(Ruleset, u32)>,
    netfilter: Option<Netfilter>,
    /// A task that looks after the table, once there is one.
    guard: Option<JoinSet<()>>,
    /// What the node was last told to have.
    desired: Option<Arc<Desired>>,
}

/// The encrypted way to other nodes.
#[derive(Debug, Default)]
struct WirePlace {
    wire: Option<Wire>,
    /// What it was last brought in line with; `None`: nothing, or nothing wholly.
    tended: Option<Arc<Desired>>,
}

impl Outside {
    pub(super) async fn enter(
        config: NodeNetworksConfig,
        resolvers: Resolvers,
        events: Events,
    ) -> Result<Self, NetError> {
        let NodeNetworksConfig { group, underlay, wire_key, .. } = config;
        let path = underlay.unwrap_or_else(|| PathBuf::from("/proc/self/ns/net"));
        let opened = path.clone();
        let file = blocking(move || {
            let failed = |source| NetError::Namespace { action: "opening", path: opened, source };
            std::fs::File::open(&path).map_err(failed)
        });
        let namespace: OwnedFd = file.await?.into();
        let copy = namespace.try_clone();
        let copy = copy.map_err(|_| NetError::Descriptors { action: "entering a namespace" })?;
        let thread = NamespaceThread::start(copy).await?;
        let name = group.clone();
        let ears = thread.run(move |_| {
            Box::pin(async move { Ears::open(false).map_err(failed("listening for", &name)) })
        });
        let (woken, changed) = (Arc::new(Notify::new()), watch::Sender::new(0));
        let heard = Monitor::start(ears.await?, woken.clone(), None, events.clone());
        let heard = heard.map_err(failed("listening for", &group))?;
        let mut tasks = JoinSet::new();
        tasks.spawn(pass_on(heard, woken.clone(), changed.clone()));
        Ok(Self {
            connector: Connector::start(namespace)?,
            group,
            thread,
            resolvers,
            parts: Mutex::new(Parts::default()),
            reserved: tokio::sync::Mutex::default(),
            in_use: Arc::default(),
            shortcut: Shortcut::default(),
            wire_key,
            wire: tokio::sync::Mutex::default(),
            events,
            woken,
            changed,
            _tasks: tasks,
        })
    }

    /// Tells of changes of the namespace.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(super) fn connector(&self) -> Connector {
        self.connector.clone()
    }

    pub(super) fn resolvers(&self) -> Resolvers {
        self.resolvers.clone()
    }

    /// Whether the kernel can do what the short way between machines needs.
    pub(super) fn shortcut(&self) -> &Shortcut {
        &self.shortcut
    }

    /// Takes note of who may send to the tunnel, and brings the encrypted way to other nodes in line.
    pub(super) async fn prepare(&self, desired: &Arc<Desired>) -> Result<(), NetError> {
        let peers = desired.peers.iter().map(|peer| peer.address);
        let tunnel = (!desired.peers.is_empty()).then(|| {
            (desired.underlay.vxlan_port, peers.chain([desired.underlay.address]).collect())
        });
        {
            let mut parts = self.parts();
            (parts.tunnel, parts.desired) = (tunnel, Some(desired.clone()));
        }
        self.tend_wire(Look::AsTold).await.map(drop)
    }

    /// Brings the encrypted way to other nodes to what was last told. Returns whether anything was to be done.
    async fn tend_wire(&self, look: Look) -> Result<bool, NetError> {
        let Some(desired) = self.parts().desired.clone() else { return Ok(false) };
        let mut place = self.wire.lock().await;
        let same = |before: &Arc<Desired>| same_wire(before, &desired);
        if look == Look::AsTold && place.tended.as_ref().is_some_and(same) {
            return Ok(false);
        }
        let known = place.tended.take();
        let changed = match desired.underlay.wire {
            Some(public) => self.make_wire(&mut place, &desired, public).await?,
            None => {
                if let Some(wire) = place.wire.take() {
                    wire.remove().await?;
                } else if known.is_none() {
                    wire::discard(&self.group, &self.thread).await?;
                }
                false
            }
        };
        place.tended = Some(desired);
        Ok(changed && known.is_some())
    }

    async fn make_wire(
        &self,
        place: &mut WirePlace,
        desired: &Desired,
        public: WireKey,
    ) -> Result<bool, NetError> {
        let Some(path) = self.wire_key.clone() else {
            let source = io::Error::other("the node was started without a key");
            return Err(NetError::Encryption { action: "setting up", source });
        };
        let key = blocking(move || {
            let failed = |source| NetError::WireKey { path: path.clone(), source };
            let key = SecretKey::read(&path).map_err(failed)?;
            let other = "it does not go with the public key that other nodes know";
            (key.public() == public).then_some(key).ok_or_else(|| failed(io::Error::other(other)))
        });
        let config = WireConfig::of(desired, key.await?);
        let wire = match &mut place.wire {
            Some(wire) => wire,
            none => {
                let opened = Wire::open(&self.group, self.woken.clone(), self.events.clone());
                none.insert(opened.await?)
            }
        };
        let address = desired.underlay.number.wire_address();
        let wanted = WireWanted { config, address, mtu: wire_mtu(desired) };
        wire.tend(&self.thread, wanted).await
    }

    /// Makes a network's tunnel, in its namespace.
    pub(super) async fn make_tunnel(
        &self,
        network: &NetworkName,
        namespace: OwnedFd,
        tunnel: Tunnel,
        mtu: u32,
    ) -> Result<(), NetError> {
        let name = network.clone();
        let place = self.wire.lock().await;
        let is_encrypted = self.parts().desired.as_ref().is_some_and(|d| d.underlay.wire.is_some());
        let thread = match &place.wire {
            Some(wire) => wire.thread(),
            None if is_encrypted => {
                let source = io::ErrorKind::NotConnected.into();
                return Err(NetError::Encryption { action: "making", source });
            }
            None => &self.thread,
        };
        let job = thread.run(move |netlink| {
            Box::pin(async move {
                let made =
                    netlink.create_tunnel(&InterfaceName::vxlan(), &namespace, tunnel, mtu).await;
                made.map_err(|source| match source.kind() {
                    io::ErrorKind::AlreadyExists => {
                        NetError::TunnelTaken { vni: tunnel.vni, port: tunnel.port }
                    }
                    _ => failed("making the tunnel of", &name)(source),
                })
            })
        });
        job.await
    }

    /// Makes the pair of interfaces that leads from a network's namespace here.
    pub(super) async fn make_way(
        &self,
        network: &NetworkName,
        namespace: OwnedFd,
        mtu: u32,
    ) -> Result<(), NetError> {
        let name = network.clone();
        let job = self.thread.run(move |netlink| {
            Box::pin(async move {
                let here = InterfaceName::host_end(&name);
                let made = make_pair(netlink, &here, &namespace, mtu).await;
                made.map_err(failed("making the way out of", &name))
            })
        });
        job.await
    }

    /// Makes a network's uplink a port of the host's bridge, or the owner of another interface.
    pub(super) async fn make_segment(
        &self,
        network: &NetworkName,
        namespace: OwnedFd,
        attach: HostInterface,
        mtu: u32,
    ) -> Result<(), NetError> {
        let name = network.clone();
        let job = self.thread.run(move |netlink| {
            Box::pin(async move {
                let failed = failed("attaching to the host's segment", &name);
                let base = netlink.find(attach.as_str()).await.map_err(&failed)?;
                let Some(base) = base else {
                    return Err(NetError::AttachMissing { interface: attach });
                };
                if !base.is_bridge {
                    let inside = InterfaceName::uplink();
                    let made = netlink.create_passthru(base.index, &inside, &namespace).await;
                    return made.map_err(failed);
                }
                let here = InterfaceName::host_end(&name);
                make_pair(netlink, &here, &namespace, mtu).await.map_err(&failed)?;
                let index = netlink.index_of(&here).map_err(&failed)?;
                match index {
                    Some(index) => netlink.enslave(index, base.index).await.map_err(failed),
                    None => Err(failed(io::ErrorKind::NotFound.into())),
                }
            })
        });
        job.await
    }

    /// Brings the host's end of a way in order; its network's address on it, or `None` if it is
    /// not there.
    pub(super) async fn tend_way(
        &self,
        network: &NetworkName,
        source: Option<Ipv4Addr>,
    ) -> Result<Option<Ipv4Addr>, NetError> {
        let name = network.clone();
        let job = self.thread.run(move |netlink| {
            Box::pin(async move {
                let here = InterfaceName::host_end(&name);
                tend(netlink, &here, source).await.map_err(failed("tending the way out of", &name))
            })
        });
        job.await
    }

    /// Notes the way into a network, or that there is none. The table follows with
    /// [`Outside::refresh`].
    pub(super) fn set_way(&self, vni: Vni, way: Option<Way>) -> bool {
        let ways = &mut self.parts().ways;
        match way {
            Some(way) => ways.insert(vni, way.clone()) != Some(way),
            None => ways.remove(&vni).is_some(),
        }
    }

    /// Programs the table if it is not what it should be. Returns whether it was not.
    pub(super) async fn refresh(&self) -> Result<bool, NetError> {
        let mut reserved = self.reserved.lock().await;
        let (mut host, own) = {
            let parts = self.parts();
            let ways: Vec<_> = parts.ways.values().cloned().collect();
            let own = parts.desired.as_ref().map(|desired| desired.underlay.vxlan_port);
            (HostRules { ways, tunnel: parts.tunnel.clone() }, own)
        };
        let wanted = host.ways.iter().flat_map(|way| &way.open).copied().collect();
        let usable = reserved.keep(&self.thread, wanted, own).await?;
        if reserved.lacks_some() {
            self.in_use.notify_one();
        }
        host.ways.iter_mut().for_each(|way| way.open.retain(|open| usable.contains(open)));
        let rules = match host.ways.is_empty() && host.tunnel.is_none() {
            true => Ruleset::new(),
            false => host_rules(&self.table(), &host),
        };
        self.program(rules).await
    }

    /// Removes the table, and the encrypted way to other nodes.
    pub(super) async fn clear(&self) -> Result<(), NetError> {
        self.parts().guard = None;
        let wire = std::mem::take(&mut *self.wire.lock().await).wire;
        let removed = match wire {
            Some(wire) => wire.remove().await,
            None => Ok(()),
        };
        let mut reserved = self.reserved.lock().await;
        let cleared = self.program(Ruleset::new()).await;
        *reserved = Reserved::default();
        cleared.and(removed)
    }

    fn table(&self) -> String {
        format!("{TABLE_PREFIX}{}", self.group)
    }

    /// One at a time.
    async fn program(&self, rules: Ruleset) -> Result<bool, NetError> {
        let (netfilter, programmed) = {
            let mut parts = self.parts();
            (parts.netfilter.take(), parts.programmed.take())
        };
        let netfilter = match netfilter {
            Some(netfilter) => netfilter,
            None => self.open_netfilter().await?,
        };
        let place = (crate::netfilter::Family::Ipv4, self.table());
        let work = move || {
            let mut netfilter = netfilter;
            let done = write(&mut netfilter, &rules, programmed, place);
            Ok((netfilter, rules, done))
        };
        let (netfilter, rules, done) = blocking(work).await?;
        let (generation, changed) = done.map_err(|source| NetError::Rules { source })?;
        let mut parts = self.parts();
        parts.netfilter = Some(netfilter);
        parts.programmed = Some((rules, generation));
        Ok(changed)
    }

    async fn open_netfilter(&self) -> Result<Netfilter, NetError> {
        let open = self.thread.run(|_| {
            Box::pin(async { Netfilter::open().map_err(|source| NetError::Rules { source }) })
        });
        open.await
    }

    /// Looks after the table from now on, once.
    pub(super) fn guard(self: &Arc<Self>, events: Events) {
        let mut parts = self.parts();
        if parts.guard.is_some() {
            return;
        }
        let (weak, mut changed) = (Arc::downgrade(self), self.changes());
        let in_use = self.in_use.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut look_at = Instant::now() + LOOK_EVERY;
            loop {
                let whole = tokio::select! {
                    _ = changed.changed() => true,                    // cancel-safe: watch
                    () = tokio::time::sleep_until(look_at) => true,   // cancel-safe: timer
                    () = after_a_while(&in_use) => false,             // cancel-safe: each look tells again
                };
                let Some(outside) = weak.upgrade() else { return };
                let looked = if whole {
                    look_at = Instant::now() + LOOK_EVERY;
                    outside.look().await
                } else {
                    outside.refresh().await
                };
                match looked {
                    Ok(false) => {}
                    Ok(true) => {
                        info!(group = %outside.group, "what networks have of the node was put back");
                        events.mention(NetworkEvent::Healed { vni: None, steps: 1 });
                    }
                    Err(error) => {
                        let error = report::chain(&error);
                        warn!(%error, "what networks have of the node could not be put back");
                    }
                }
            }
        });
        parts.guard = Some(tasks);
    }

    /// Looks at everything. Returns whether anything was to be put back.
    async fn look(&self) -> Result<bool, NetError> {
        let wire = self.tend_wire(Look::Whole).await;
        let table = self.refresh().await;
        Ok(wire? | table?)
    }

    fn parts(&self) -> std::sync::MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How closely the encrypted way is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Not at all, if nothing else was told than before.
    AsTold,
    Whole,
}

/// Whether two states need the same encrypted way.
fn same_wire(before: &Desired, after: &Desired) -> bool {
    before.underlay == after.underlay
        && before.peers == after.peers
        && wire_mtu(before) == wire_mtu(after)
}

/// Bytes of the largest packet of a tunnel: what the largest network needs, or else what fits Ethernet.
fn wire_mtu(desired: &Desired) -> u32 {
    let largest = desired.networks.iter().map(|network| network.mtu).max();
    let fitting = ETHERNET_BYTES - WIRE_OVERHEAD_BYTES;
    u32::from(largest.map_or(fitting, |mtu| fitting.max(mtu + VXLAN_OVERHEAD_BYTES)))
}

/// Changes come in bursts; one of them is enough for all who wait.
async fn pass_on(_heard: Monitor, woken: Arc<Notify>, changed: watch::Sender<u64>) {
    loop {
        woken.notified().await;
        tokio::time::sleep(SETTLE).await;
        changed.send_modify(|count| *count += 1);
    }
}

/// When it is time to try ports again that were in use.
async fn after_a_while(in_use: &Notify) {
    in_use.notified().await;
    tokio::time::sleep(TRY_EVERY).await;
}

/// Writes what differs, or everything if somebody else wrote meanwhile. Returns the generation and
/// whether somebody had.
fn write(
    netfilter: &mut Netfilter,
    rules: &Ruleset,
    programmed: Option<(Ruleset, u32)>,
    place: (crate::netfilter::Family, String),
) -> io::Result<(u32, bool)> {
    let now = netfilter.generation()?;
    match programmed {
        // Other tables of the host change the generation too; ours is only written anew if it is
        // not there any more or was touched.
        Some((before, generation)) if generation == now => {
            Ok((netfilter.commit(&diff(&before, rules))?, false))
        }
        Some((before, _)) if netfilter.shows(&place, before.get(&place))? => {
            let changes = diff(&before, rules);
            match changes.is_empty() {
                true => Ok((now, false)),
                false => Ok((netfilter.commit(&changes)?, false)),
            }
        }
        found => {
            let stale = Ruleset::from([(place, crate::netfilter::Table::default())]);
            let generation = netfilter.commit(&replace(rules, &stale))?;
            Ok((generation, found.is_some()))
        }
    }
}

async fn make_pair(
    netlink: &Netlink,
    here: &InterfaceName,
    namespace: &OwnedFd,
    mtu: u32,
) -> io::Result<()> {
    // One that a crash left leads to a namespace that is gone, or to nothing.
    if let Some(index) = netlink.index_of(here)? {
        netlink.remove_link(index).await?;
    }
    netlink.create_pair(here, &InterfaceName::uplink(), namespace, mtu).await
}

async fn tend(
    netlink: &Netlink,
    here: &InterfaceName,
    source: Option<Ipv4Addr>,
) -> io::Result<Option<Ipv4Addr>> {
    let Some(link) = netlink.find(here.as_str()).await? else { return Ok(None) };
    kernel::let_through(here)?;
    if !link.is_up {
        netlink.set_up(link.index, None).await?;
    }
    let wanted: BTreeSet<_> = [Some(HOST_TRANSIT), source].into_iter().flatten().collect();
    let found = netlink.all_addresses(link.index).await?;
    for (address, _) in &found {
        let IpAddr::V4(address) = address else { continue };
        if !wanted.contains(address) {
            netlink.unset_address(link.index, (*address).into()).await?;
        }
    }
    for address in wanted {
        if !found.contains(&(address.into(), 32)) {
            netlink.set_address(link.index, address.into(), 32).await?;
        }
    }
    let transit = transit_address(link.index);
    let to = (transit, 32);
    let route = Route { to, via: None, device: link.index, table: TABLE_MAIN };
    if !netlink.routes().await?.contains(&route) {
        netlink.set_route(route).await?;
    }
    Ok(Some(transit))
}
