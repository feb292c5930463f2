//! The encrypted way between nodes: WireGuard.
//!
//! ```text
//!   namespace of a network │ skein-GROUP-wire              │ the node's namespace
//!   bridge ─ tunnel device ─┼─ UDP ─ skw… (100.126.N.N) ────┼─ UDP, encrypted ─ wire
//! ```
//! The tunnels of all networks send and receive in a namespace that has one interface: WireGuard's, whose own packets
//! leave in the node's namespace. So there is no way on which a packet between nodes could leave as it is, whatever fails.
//!
//! The kernel does it where it can (driver `wireguard`); `wireguard-go` elsewhere. Each node has an address of its own there
//! ([`crate::NodeNumber::wire_address`]), from which alone it may send.

mod config;
mod daemon;
mod generic;
mod key;
mod uapi;

pub(crate) use config::WireConfig;
pub(crate) use key::SecretKey;
pub use key::{open_wire_key, renew_wire_key};

use crate::error::NetError;
use crate::events::Events;
use crate::host::HostError;
use crate::monitor::{Ears, Monitor};
use crate::names::{InterfaceName, NetworkName};
use crate::namespace;
use crate::netlink::{Netlink, Route, TABLE_MAIN};
use crate::network::{NodeNetwork, blocking};
use crate::setup::{self, Ownership};
use crate::thread::NamespaceThread;
use config::{Shown, WireChange};
use generic::KernelWire;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{info, warn};

/// The addresses of nodes there.
const RANGE: (Ipv4Addr, u8) = (Ipv4Addr::new(100, 126, 0, 0), 16);
/// How long a program may take to make its interface, and to end.
const PROGRAM_DEADLINE: Duration = Duration::from_secs(5);
/// It takes some ten milliseconds.
const PROGRAM_POLL: Duration = Duration::from_millis(5);

/// Who encrypts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Kernel,
    Program,
}

/// What the encrypted way of a node shall be.
#[derive(Debug, Clone)]
pub(crate) struct WireWanted {
    pub(crate) config: WireConfig,
    pub(crate) address: Ipv4Addr,
    /// Bytes of the largest packet of a tunnel.
    pub(crate) mtu: u32,
}

/// The encrypted way of a node, owned by this process. Dropping it leaves it as it is, for the next one.
#[derive(Debug)]
pub(crate) struct Wire {
    name: NetworkName,
    interface: InterfaceName,
    namespace: OwnedFd,
    thread: NamespaceThread,
    engine: Option<Engine>,
    /// A program of ours that has not ended.
    child: Option<Child>,
    told: Option<WireConfig>,
    _ownership: Ownership,
    _monitor: Monitor,
}

/// The name of the namespace of a node's encrypted way.
fn name(group: &NetworkName) -> NetworkName {
    NetworkName::of_group(group, "wire")
}

/// The node whose encrypted way is in the namespace of this name.
pub(crate) fn node_of(name: &NetworkName) -> Option<NetworkName> {
    name.as_str().strip_suffix("-wire")?.parse().ok()
}

fn failed(action: &'static str) -> impl Fn(io::Error) -> NetError {
    move |source| NetError::Encryption { action, source }
}

impl Wire {
    /// Makes the namespace of a node's encrypted way, or takes over the one that is there.
    pub(crate) async fn open(
        group: &NetworkName,
        woken: Arc<Notify>,
        events: Events,
    ) -> Result<Self, NetError> {
        let name = name(group);
        let wanted = name.clone();
        let (namespace, _) = blocking(move || namespace::open_or_create(&wanted)).await?;
        let copy = namespace.try_clone();
        let copy = copy.map_err(|_| NetError::Descriptors { action: "entering a namespace" })?;
        let thread = NamespaceThread::start(copy).await?;
        let owned = name.clone();
        let entered = thread.run(move |_| {
            Box::pin(async move {
                let ownership = setup::claim(&owned)?;
                setup::silence_ipv6().map_err(failed("switching off IPv6"))?;
                Ok((ownership, Ears::open(false).map_err(failed("listening"))?))
            })
        });
        let (ownership, ears) = entered.await?;
        let monitor = Monitor::start(ears, woken, None, events).map_err(failed("listening"))?;
        Ok(Self {
            interface: InterfaceName::wire(group),
            name,
            namespace,
            thread,
            engine: None,
            child: None,
            told: None,
            _ownership: ownership,
            _monitor: monitor,
        })
    }

    /// The thread that lives in its namespace.
    pub(crate) fn thread(&self) -> &NamespaceThread {
        &self.thread
    }

    /// Brings it to what it shall be; `host`: the thread in the node's namespace. Returns whether anything was to be done.
    pub(crate) async fn tend(
        &mut self,
        host: &NamespaceThread,
        wanted: WireWanted,
    ) -> Result<bool, NetError> {
        let mut changed = self.restore_name().await?;
        self.reap();
        let shown = match self.shown().await {
            Some(shown) => shown,
            None => {
                changed = true;
                self.make(host).await?;
                self.shown()
                    .await
                    .ok_or_else(|| failed("making")(io::ErrorKind::NotFound.into()))?
            }
        };
        changed |= self.settle(wanted.address, wanted.mtu).await?;
        let change = wanted.config.since(&shown, self.told.as_ref());
        if !change.is_empty() {
            changed = true;
            self.set(change).await?;
        }
        self.told = Some(wanted.config);
        Ok(changed)
    }

    async fn restore_name(&self) -> Result<bool, NetError> {
        let (name, held) = (self.name.clone(), self.namespace.try_clone());
        let held = held.map_err(|_| NetError::Descriptors { action: "looking at a namespace" })?;
        blocking(move || {
            let current = namespace::is_current(&name, &held)?;
            if !current {
                namespace::restore(&name, &held)?;
            }
            Ok(!current)
        })
        .await
    }

    /// Takes note of a program that ended.
    fn reap(&mut self) {
        if let Some(child) = &mut self.child
            && !matches!(child.try_wait(), Ok(None))
        {
            warn!(network.name = %self.name, "the program that encrypts has ended");
            self.child = None;
        }
    }

    /// What the interface is; `None` if it is not there, or nobody answers for it.
    async fn shown(&mut self) -> Option<Shown> {
        let interface = self.interface.clone();
        let index = self.on_thread(move |netlink| netlink.index_of(&interface)).await;
        if !matches!(index, Ok(Some(_))) {
            return None;
        }
        let engines = match self.engine {
            Some(engine) => vec![engine],
            None => vec![Engine::Program, Engine::Kernel],
        };
        for engine in engines {
            let interface = self.interface.clone();
            let shown = match engine {
                Engine::Program => blocking(move || Ok(daemon::get(&interface).ok())).await.ok()?,
                Engine::Kernel => {
                    let get = move |_: &Netlink| KernelWire::open()?.get(interface.as_str());
                    self.on_thread(get).await.ok()
                }
            };
            if shown.is_some() {
                self.engine = Some(engine);
                return shown;
            }
        }
        None
    }

    async fn set(&self, change: WireChange) -> Result<(), NetError> {
        let interface = self.interface.clone();
        match self.engine {
            Some(Engine::Kernel) => {
                let set = move |_: &Netlink| KernelWire::open()?.set(interface.as_str(), &change);
                self.on_thread(set).await
            }
            Some(Engine::Program) | None => {
                let set = move || daemon::set(&interface, &change).map_err(failed("setting up"));
                blocking(set).await
            }
        }
    }

    async fn on_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Netlink) -> io::Result<T> + Send + 'static,
    ) -> Result<T, NetError> {
        let job = move |netlink: &Netlink| work(netlink).map_err(failed("setting up"));
        self.thread.run(move |netlink| Box::pin(async move { job(netlink) })).await
    }

    /// Makes the interface: by the kernel, or else by the program.
    async fn make(&mut self, host: &NamespaceThread) -> Result<(), NetError> {
        let interface = self.interface.clone();
        let remove = self.thread.run(move |netlink| {
            Box::pin(async move {
                let index = netlink.index_of(&interface).map_err(failed("making"))?;
                let Some(index) = index else { return Ok(()) };
                netlink.remove_link(index).await.map_err(failed("making"))
            })
        });
        remove.await?;
        self.end_program().await?;
        (self.told, self.engine) = (None, None);
        let (interface, inside) = (self.interface.clone(), self.namespace.try_clone());
        let inside = inside.map_err(|_| NetError::Descriptors { action: "making an interface" })?;
        let made = host
            .run(move |netlink| Box::pin(async move { make(netlink, &interface, &inside).await }));
        (self.engine, self.child) = match made.await? {
            None => (Some(Engine::Kernel), None),
            Some(child) => (Some(Engine::Program), Some(child)),
        };
        info!(network.name = %self.name, engine = ?self.engine, "traffic between nodes is encrypted");
        Ok(())
    }

    /// Address, size and way of the interface. Returns whether anything was to be done.
    async fn settle(&self, address: Ipv4Addr, mtu: u32) -> Result<bool, NetError> {
        let interface = self.interface.clone();
        let job = self.thread.run(move |netlink| {
            Box::pin(async move {
                let settled = settle(netlink, &interface, address, mtu).await;
                settled.map_err(failed("setting up"))
            })
        });
        job.await
    }

    /// Ends the program that has the interface, if one has, and waits for it.
    async fn end_program(&mut self) -> Result<(), NetError> {
        let interface = self.interface.clone();
        blocking(move || {
            daemon::end(&interface);
            Ok(())
        })
        .await?;
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let deadline = Instant::now() + PROGRAM_DEADLINE;
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = blocking(move || Ok(child.wait())).await;
                return Ok(());
            }
            tokio::time::sleep(PROGRAM_POLL).await;
        }
        Ok(())
    }

    /// Removes it, with the program if there is one.
    pub(crate) async fn remove(mut self) -> Result<(), NetError> {
        self.end_program().await?;
        let (thread, name) = (self.thread.clone(), self.name.clone());
        drop(self);
        let cleared = name.clone();
        let clear = thread
            .run(move |netlink| Box::pin(async move { setup::clear(netlink, &cleared).await }));
        clear.await?;
        blocking(move || namespace::remove(&name)).await.map(drop)
    }
}

/// Removes what an earlier process left of a node's encrypted way, unless somebody has it; `host`: the thread in the node's
/// namespace. Repeating it is harmless.
pub(crate) async fn discard(group: &NetworkName, host: &NamespaceThread) -> Result<(), NetError> {
    let interface = InterfaceName::wire(group);
    let left = interface.clone();
    host.run(move |netlink| {
        Box::pin(async move {
            // One that was not taken to its namespace yet.
            match netlink.index_of(&left).map_err(failed("removing"))? {
                Some(index) => netlink.remove_link(index).await.map_err(failed("removing")),
                None => Ok(()),
            }
        })
    })
    .await?;
    if NodeNetwork::destroy(&name(group)).await? {
        info!(network.name = %group, "the encrypted way of an earlier process was removed");
    }
    end_left(interface).await
}

/// Ends the program of an encrypted way whose namespace is gone.
pub(crate) async fn end_program_of(group: &NetworkName) -> Result<(), NetError> {
    end_left(InterfaceName::wire(group)).await
}

async fn end_left(interface: InterfaceName) -> Result<(), NetError> {
    blocking(move || {
        daemon::end(&interface);
        Ok(())
    })
    .await
}

/// Makes an interface of the kernel's in another namespace, whose packets leave in this one; or else starts the program, and
/// takes its interface there.
async fn make(
    netlink: &Netlink,
    interface: &InterfaceName,
    inside: &OwnedFd,
) -> Result<Option<Child>, NetError> {
    // One that was not taken to its namespace before a crash.
    if let Some(index) = netlink.index_of(interface).map_err(failed("making"))? {
        netlink.remove_link(index).await.map_err(failed("making"))?;
    }
    match netlink.create_wire(interface, Some(inside)).await {
        Ok(()) => return Ok(None),
        Err(error) if generic::is_missing(&error) => {}
        Err(error) => return Err(failed("making")(error)),
    }
    let program = daemon::find().ok_or(HostError::WireguardMissing)?;
    let mut child = daemon::start(&program, interface).map_err(failed("starting wireguard-go"))?;
    let moved = take_inside(netlink, interface, inside, &mut child).await;
    if let Err(error) = moved {
        let _ = child.kill();
        let _ = child.wait();
        return Err(failed("starting wireguard-go")(error));
    }
    Ok(Some(child))
}

async fn take_inside(
    netlink: &Netlink,
    interface: &InterfaceName,
    inside: &OwnedFd,
    child: &mut Child,
) -> io::Result<()> {
    let deadline = Instant::now() + PROGRAM_DEADLINE;
    // Its socket comes after its interface.
    while daemon::get(interface).is_err() {
        if let Some(status) = child.try_wait()? {
            return Err(io::Error::other(format!("it ended with {status}")));
        }
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        tokio::time::sleep(PROGRAM_POLL).await;
    }
    let index = netlink.index_of(interface)?.ok_or(io::ErrorKind::NotFound)?;
    netlink.take_to(index, inside).await
}

async fn settle(
    netlink: &Netlink,
    interface: &InterfaceName,
    address: Ipv4Addr,
    mtu: u32,
) -> io::Result<bool> {
    let link = netlink.find(interface.as_str()).await?.ok_or(io::ErrorKind::NotFound)?;
    let mut changed = false;
    let wanted = (IpAddr::V4(address), 32);
    let found = netlink.all_addresses(link.index).await?;
    for (other, _) in found.iter().filter(|found| **found != wanted) {
        changed = true;
        netlink.unset_address(link.index, *other).await?;
    }
    if !found.contains(&wanted) {
        changed = true;
        netlink.set_address(link.index, address.into(), 32).await?;
    }
    if link.mtu != mtu {
        changed = true;
        netlink.set_mtu(link.index, mtu).await?;
    }
    if !link.is_up {
        changed = true;
        netlink.set_up(link.index, None).await?;
    }
    let route = Route { to: RANGE, via: None, device: link.index, table: TABLE_MAIN };
    if !netlink.routes().await?.contains(&route) {
        changed = true;
        netlink.set_route(route).await?;
    }
    Ok(changed)
}

/// Whether traffic between nodes can be encrypted here: found out by making an interface in a namespace that goes at once.
///
/// # Errors
/// [`HostError::WireguardMissing`] if neither the kernel nor a program can, else those of [`crate::check_host`].
pub fn check_encryption() -> Result<(), HostError> {
    let made = crate::host::in_trial_namespace(|netlink| {
        Box::pin(async move {
            let interface = InterfaceName::wire_trial();
            netlink.create_wire(&interface, None).await
        })
    })?;
    match made {
        Ok(()) => Ok(()),
        Err(error) if generic::is_missing(&error) && daemon::find().is_some() => Ok(()),
        Err(error) if generic::is_missing(&error) => Err(HostError::WireguardMissing),
        Err(source) => {
            let source = NetError::Encryption { action: "making", source };
            Err(HostError::Trial { source: Box::new(source) })
        }
    }
}
