//! A network on this node.
//!
//! ```text
//!            open                      open (after a crash)
//!   absent ────────> owned ──────────────┐
//!      ^               │ drop, crash     │
//!      │ close         v                 v
//!      ├───────────── abandoned ──────> owned
//!      └── destroy, sweep ┘
//! ```
//! Dropping a network leaves it to whoever opens it next; closing it removes it.

use crate::connector::Connector;
use crate::error::NetError;
use crate::holder;
use crate::names::{InterfaceName, NetworkName};
use crate::namespace::{self, Found};
use crate::netlink::{Attachment, Netlink};
use crate::port::{Peers, Port, PortInfo, PortSpec, Unplugged, alias};
use crate::setup::{self, Ownership};
use crate::tap;
use crate::thread::NamespaceThread;
use crate::wire;
use nix::errno::Errno;
use skein_model::Subnet;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use tracing::{info, warn};

/// Ports that a Linux bridge can have (`BR_MAX_PORTS` less the number 0).
pub const PORTS_MAX: u32 = 1023;

/// A namespace can be removed between being opened and being claimed; who removes it does so once.
const OPEN_ATTEMPTS_MAX: u32 = 3;

/// What a network should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec {
    name: NetworkName,
    cidr: Subnet,
    gateway: Ipv4Addr,
    managed: Option<Managed>,
}

/// What a network has that is kept up by [`crate::NodeNetworks`]: addresses, neighbours and ports are
/// then its business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Managed {
    pub(crate) mac: [u8; 6],
    /// Bytes.
    pub(crate) mtu: u32,
}

impl NetworkSpec {
    /// A network whose gateway has the first host address.
    pub fn new(name: NetworkName, cidr: Subnet) -> Self {
        let gateway = cidr.gateway();
        Self { name, cidr, gateway, managed: None }
    }

    /// The same network with another gateway.
    ///
    /// # Errors
    /// [`NetError::AddressOutside`] if `gateway` is no host address of the network.
    pub fn with_gateway(self, gateway: Ipv4Addr) -> Result<Self, NetError> {
        let cidr = self.cidr;
        if !cidr.is_host(gateway) {
            return Err(NetError::AddressOutside { address: gateway, cidr, gateway });
        }
        Ok(Self { gateway, ..self })
    }

    pub(crate) fn managed_as(self, managed: Managed) -> Self {
        Self { managed: Some(managed), ..self }
    }

    pub(crate) fn managed(&self) -> Option<Managed> {
        self.managed
    }

    /// The MAC address of its bridge.
    pub(crate) fn bridge_mac(&self) -> [u8; 6] {
        let own = || self.name.port_mac(self.gateway).octets();
        self.managed.map_or_else(own, |managed| managed.mac)
    }

    /// Its name on this host.
    pub fn name(&self) -> &NetworkName {
        &self.name
    }

    /// Its range.
    pub fn cidr(&self) -> Subnet {
        self.cidr
    }

    /// The address of this node in it.
    pub fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }

    /// Whether a machine can have `address`.
    pub(crate) fn check(&self, address: Ipv4Addr) -> Result<(), NetError> {
        let (cidr, gateway) = (self.cidr, self.gateway);
        let good = cidr.is_host(address) && address != gateway;
        if good { Ok(()) } else { Err(NetError::AddressOutside { address, cidr, gateway }) }
    }
}

/// How a network was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// It was made.
    Created,
    /// It was there, and was taken over with its ports.
    Adopted,
}

/// A network of this node, owned by this process. Dropping it leaves namespace, bridge and taps as
/// they are, for the next [`NodeNetwork::open`]; [`NodeNetwork::close`] removes them.
#[derive(Debug)]
pub struct NodeNetwork {
    spec: NetworkSpec,
    opened: Opened,
    /// Index of the bridge; another one after somebody removed it.
    bridge: AtomicU32,
    namespace: OwnedFd,
    thread: NamespaceThread,
    connector: Connector,
    _ownership: Ownership,
}

impl NodeNetwork {
    /// Makes the network, or takes over the one a crashed process left: bridge, address and ports
    /// are brought to what they should be, taps that a running QEMU holds keep working, remains are
    /// removed.
    ///
    /// # Errors
    /// [`NetError::Host`] if this host or user cannot, [`NetError::Busy`] if another process owns
    /// it, [`NetError::ExistsForeign`] if somebody else made a namespace of that name,
    /// [`NetError::InUse`] if machines run at addresses outside the range asked for, else what the
    /// kernel says.
    pub async fn open(spec: NetworkSpec) -> Result<Self, NetError> {
        for _ in 0..OPEN_ATTEMPTS_MAX {
            let name = spec.name.clone();
            let (namespace, found) = blocking(move || namespace::open_or_create(&name)).await?;
            if let Some(network) = Self::open_in(spec.clone(), namespace, found).await? {
                return Ok(network);
            }
        }
        Err(NetError::Busy { name: spec.name })
    }

    /// `None` if the namespace was removed by another process before it was ours.
    async fn open_in(
        spec: NetworkSpec,
        namespace: OwnedFd,
        found: Found,
    ) -> Result<Option<Self>, NetError> {
        let copy = |fd: &OwnedFd| {
            fd.try_clone().map_err(|_| NetError::Descriptors { action: "opening a network" })
        };
        let thread = NamespaceThread::start(copy(&namespace)?).await?;
        let ownership = claim(&thread, spec.name.clone()).await?;
        let (name, seen) = (spec.name.clone(), copy(&namespace)?);
        if !blocking(move || namespace::is_current(&name, &seen)).await? {
            return Ok(None);
        }
        let wanted = spec.clone();
        let configured = thread
            .run(move |netlink| Box::pin(async move { setup::configure(netlink, &wanted).await }))
            .await;
        let bridge = match configured {
            Ok(bridge) => bridge,
            Err(error) => {
                if found == Found::Created {
                    discard(spec.name).await;
                }
                return Err(error);
            }
        };
        let opened = match found {
            Found::Created => Opened::Created,
            Found::Existing => Opened::Adopted,
        };
        let connector = Connector::start(copy(&namespace)?)?;
        let bridge = AtomicU32::new(bridge);
        info!(network.name = %spec.name, network.cidr = %spec.cidr, ?opened, "network opened");
        let parts =
            Self { spec, opened, bridge, namespace, thread, connector, _ownership: ownership };
        Ok(Some(parts))
    }

    /// What the network is.
    pub fn spec(&self) -> &NetworkSpec {
        &self.spec
    }

    /// Whether it was made or taken over.
    pub fn opened(&self) -> Opened {
        self.opened
    }

    /// The file of its namespace, for `nsenter --net=FILE` and `ip netns exec`.
    pub fn namespace_path(&self) -> PathBuf {
        namespace::path(&self.spec.name)
    }

    /// Opens sockets inside the network.
    pub fn connector(&self) -> Connector {
        self.connector.clone()
    }

    /// Plugs a machine in: its tap is up, on the bridge, and reachable at its address once somebody
    /// answers.
    ///
    /// # Errors
    /// [`NetError::AddressOutside`] if the network cannot give this address to a machine,
    /// [`NetError::PortExists`] while a tap for it has a holder, [`NetError::PortLimit`] beyond
    /// [`PORTS_MAX`] ports. Nothing is left behind then.
    ///
    /// # Cancel safety
    /// Dropping the future unplugs the port if it was made.
    pub async fn plug(&self, port: PortSpec) -> Result<Port, NetError> {
        self.spec.check(port.address)?;
        let (network, bridge) = (self.spec.name.clone(), self.bridge());
        let mtu = self.spec.managed.map(|managed| managed.mtu);
        self.thread
            .run(move |netlink| {
                Box::pin(async move { plug(netlink, &network, bridge, port, mtu).await })
            })
            .await
    }

    /// Removes the port at `address`, held or not. Removing one that is gone is no error.
    ///
    /// Takes the kernel about 15 ms while the tap is held, and well under a millisecond after its
    /// last holder ended: stop the machine first. Other plugs of this network wait meanwhile.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn unplug(&self, address: Ipv4Addr) -> Result<Unplugged, NetError> {
        let (network, bridge) = (self.spec.name.clone(), self.bridge());
        self.thread
            .run(move |netlink| {
                Box::pin(async move { unplug(netlink, &network, bridge, address).await })
            })
            .await
    }

    /// The ports that exist, by address, with the processes that hold their taps.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn ports(&self) -> Result<Vec<PortInfo>, NetError> {
        let network = self.spec.name.clone();
        let taps = self.thread.run(move |netlink| {
            Box::pin(async move {
                let links = netlink.links().await;
                let links = links.map_err(setup::failed("listing ports of", &network))?;
                Ok(setup::sort_taps(&network, &links).0)
            })
        });
        let taps = taps.await?;
        let mut holders = blocking(|| Ok(holder::scan())).await?;
        let mut ports: Vec<_> = taps
            .into_iter()
            .map(|tap| PortInfo {
                name: InterfaceName::tap(&self.spec.name, tap.address),
                address: tap.address,
                mac: tap.mac,
                label: tap.label,
                peers: tap.peers,
                holders: holders.remove(&tap.link.name).unwrap_or_default(),
            })
            .collect();
        ports.sort_by_key(|port| port.address);
        Ok(ports)
    }

    /// The thread that lives inside.
    pub(crate) fn thread(&self) -> &NamespaceThread {
        &self.thread
    }

    /// Its namespace.
    pub(crate) fn namespace(&self) -> &OwnedFd {
        &self.namespace
    }

    /// Index of its bridge.
    pub(crate) fn bridge(&self) -> u32 {
        self.bridge.load(Ordering::Relaxed)
    }

    /// Makes what somebody removed by hand: the name of the namespace, and the bridge. Returns the
    /// bridge's index.
    pub(crate) async fn restore(&self) -> Result<u32, NetError> {
        let (name, seen) = (self.spec.name.clone(), self.namespace.try_clone());
        let seen = seen.map_err(|_| NetError::Descriptors { action: "restoring a network" })?;
        blocking(move || namespace::restore(&name, &seen)).await?;
        let wanted = self.spec.clone();
        let configured = self
            .thread
            .run(move |netlink| Box::pin(async move { setup::configure(netlink, &wanted).await }));
        let bridge = configured.await?;
        self.bridge.store(bridge, Ordering::Relaxed);
        Ok(bridge)
    }

    /// Whether the file of its namespace still leads to it.
    pub(crate) async fn has_name(&self) -> Result<bool, NetError> {
        let (name, seen) = (self.spec.name.clone(), self.namespace.try_clone());
        let seen = seen.map_err(|_| NetError::Descriptors { action: "looking at a network" })?;
        blocking(move || namespace::is_current(&name, &seen)).await
    }

    /// What it is from now on; the kernel hears of it when it is next brought in line.
    pub(crate) fn respecify(&mut self, spec: NetworkSpec) {
        self.spec = spec;
    }

    /// Removes the network with all its ports, also those that a machine still holds.
    ///
    /// # Errors
    /// What the kernel says; [`NodeNetwork::destroy`] tries again.
    pub async fn close(self) -> Result<(), NetError> {
        remove(&self.thread, self.spec.name.clone()).await.map(drop)
    }

    /// Removes the network `name` whatever is in it, unless another process owns it. Returns
    /// whether there was one; repeating it is harmless.
    ///
    /// # Errors
    /// [`NetError::Busy`] if a process owns it (this one included), else what the kernel says.
    pub async fn destroy(name: &NetworkName) -> Result<bool, NetError> {
        match Abandoned::take(name).await? {
            Some(abandoned) => remove(&abandoned.thread, name.clone()).await,
            None => {
                let name = name.clone();
                blocking(move || namespace::remove(&name)).await
            }
        }
    }

    /// Removes the networks of `group` ([`NetworkName::is_within`]) that nobody needs: no process
    /// owns them, and no machine holds a tap in them. Returns their names.
    ///
    /// # Errors
    /// What the kernel says about the first that could not be removed; the others were tried.
    pub async fn sweep(group: &NetworkName) -> Result<Vec<NetworkName>, NetError> {
        let mut removed = Vec::new();
        let mut failure = None;
        let all = blocking(namespace::list).await?;
        // The encrypted way of a node goes after its networks, whose tunnels are in it.
        let mut all: Vec<_> = all.into_iter().filter(|name| name.is_within(group)).collect();
        all.sort_by_key(|name| wire::node_of(name).is_some());
        for name in all {
            if let Some(node) = wire::node_of(&name) {
                let used = blocking(namespace::list).await?;
                if used.iter().any(|other| *other != name && other.is_within(&node)) {
                    continue;
                }
            }
            match Self::sweep_one(&name).await {
                Ok(true) => {
                    if let Some(node) = wire::node_of(&name) {
                        wire::end_program_of(&node).await?;
                    }
                    removed.push(name);
                }
                Ok(false) => {}
                Err(error) => {
                    warn!(network.name = %name, error.code = error.code(), "sweep failed");
                    failure = failure.or(Some(error));
                }
            }
        }
        failure.map_or(Ok(removed), Err)
    }

    async fn sweep_one(name: &NetworkName) -> Result<bool, NetError> {
        let abandoned = match Abandoned::take(name).await {
            Err(NetError::Busy { .. }) => return Ok(false),
            other => other?,
        };
        let Some(Abandoned { thread, _ownership }) = abandoned else {
            let name = name.clone();
            return blocking(move || namespace::remove(&name)).await;
        };
        let network = name.clone();
        let taps = thread.run(move |netlink| {
            Box::pin(async move {
                let links = netlink.links().await;
                let links = links.map_err(setup::failed("listing ports of", &network))?;
                Ok(setup::sort_taps(&network, &links))
            })
        });
        // The kernel removes a tap with its last holder: one that is there is held.
        let (whole, broken) = taps.await?;
        if !whole.is_empty() || !broken.is_empty() {
            return Ok(false);
        }
        remove(&thread, name.clone()).await
    }
}

/// A network that nobody owned and this process took in order to remove it.
struct Abandoned {
    thread: NamespaceThread,
    _ownership: Ownership,
}

impl Abandoned {
    /// `None` if there is no namespace of that name.
    async fn take(name: &NetworkName) -> Result<Option<Self>, NetError> {
        let wanted = name.clone();
        let namespace = blocking(move || namespace::open_existing(&wanted)).await?;
        let Some(namespace) = namespace else { return Ok(None) };
        let thread = NamespaceThread::start(namespace).await?;
        let ownership = claim(&thread, name.clone()).await?;
        Ok(Some(Self { thread, _ownership: ownership }))
    }
}

async fn claim(thread: &NamespaceThread, name: NetworkName) -> Result<Ownership, NetError> {
    thread.run(move |_| Box::pin(async move { setup::claim(&name) })).await
}

async fn plug(
    netlink: &Netlink,
    network: &NetworkName,
    bridge: u32,
    port: PortSpec,
    mtu: Option<u32>,
) -> Result<Port, NetError> {
    let PortSpec { address, mac, label, peers } = port;
    let name = InterfaceName::tap(network, address);
    let tap = tap::create(&name).map_err(|error| {
        let taken = tap::is_taken(&error);
        if taken { NetError::PortExists { address, tap: name.clone() } } else { error }
    })?;
    let failed = |source: io::Error| match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EXFULL) => NetError::PortLimit { name: network.clone() },
        _ => NetError::Netlink { action: "attaching tap", subject: name.to_string(), source },
    };
    let index = netlink.index_of(&name).map_err(failed)?;
    let index = index.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let alias = alias(mac, peers, &label);
    let isolated = peers == Peers::Isolated;
    let attachment = Attachment { index, bridge, alias, address, mac, isolated, mtu };
    let attached = async {
        netlink.attach(&attachment).await?;
        netlink.wait_for_carrier(bridge).await
    };
    if let Err(source) = attached.await {
        // The tap goes with its descriptor; the neighbour may have been made before the failure.
        let _ = netlink.remove_neighbour(bridge, address).await;
        return Err(failed(source));
    }
    Ok(Port { tap, name, address, mac })
}

async fn unplug(
    netlink: &Netlink,
    network: &NetworkName,
    bridge: u32,
    address: Ipv4Addr,
) -> Result<Unplugged, NetError> {
    let name = InterfaceName::tap(network, address);
    let failed =
        |source| NetError::Netlink { action: "removing tap", subject: name.to_string(), source };
    netlink.remove_neighbour(bridge, address).await.map_err(failed)?;
    match netlink.index_of(&name).map_err(failed)? {
        None => Ok(Unplugged::Absent),
        Some(index) => {
            netlink.remove_link(index).await.map_err(failed)?;
            Ok(Unplugged::Removed)
        }
    }
}

/// Removes a network that this process owns.
async fn remove(thread: &NamespaceThread, name: NetworkName) -> Result<bool, NetError> {
    let network = name.clone();
    thread
        .run(move |netlink| Box::pin(async move { setup::clear(netlink, &network).await }))
        .await?;
    info!(network.name = %name, "network removed");
    blocking(move || namespace::remove(&name)).await
}

/// Undoes the making of a namespace after a failure that is reported instead.
async fn discard(name: NetworkName) {
    let result = blocking({
        let name = name.clone();
        move || namespace::remove(&name)
    });
    if let Err(error) = result.await {
        warn!(network.name = %name, error.code = error.code(), "namespace left behind");
    }
}

/// Runs what blocks away from the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetError> + Send + 'static,
) -> Result<T, NetError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| NetError::Closed)?
}
