//! Looks after one network of a node: a task that owns its namespace, rules and services.
//!
//! ```text
//!   opened ── apply ──▶ kept ── close ──▶ removed
//!                       │  ▲
//!                       └──┘ look again: a change in the kernel, a timer
//! ```
//! Rules come first, so that nothing passes which should not, then what packets need to pass.

use super::outside::Outside;
use crate::answer::Directory;
use crate::connector::Connector;
use crate::desired::{Desired, DesiredNetwork, Exit, NetworkKind, Transport, Vni};
use crate::error::NetError;
use crate::events::{Events, NetworkEvent};
use crate::firewall::{KNOWN, Packet, Policy, Surroundings, TABLE, Way, rules, shortcut_alone};
use crate::kernel;
use crate::monitor::{Ears, Monitor};
use crate::names::{InterfaceName, NetworkName, VXLAN};
use crate::netfilter::{Change, Family, Netfilter, Ruleset, diff as diff_rules, replace};
use crate::network::{Managed, NetworkSpec, NodeNetwork, blocking};
use crate::plan::{Seen, Step, Uplink, Wanted, diff, follow};
use crate::port::{Port, PortInfo, PortSpec, Unplugged};
use crate::service::{PacketSocket, Place, Services, Waiting, WaitingRoom, interface_filter};
use crate::setup::failed;
use crate::trace::{Counter, counters};
use crate::transfer::{Connection, may_forbid, stale};
use crate::{Capture, CaptureOptions};
use skein_model::Subnet;
use skein_shell::report;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// However quiet it is, everything is looked at after this long.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// After a change in the kernel: others come with it.
const SETTLE: Duration = Duration::from_millis(100);
/// Between two looks that changes ask for, so that who changes things all the time costs little.
const LOOK_PAUSE: Duration = Duration::from_millis(500);
/// A look takes at most one part of so many of the time: it costs as much as there are machines.
const LOOK_SHARE: u32 = 20;
/// Plans until one is empty: interfaces, what leads through them, and one to see that it is so.
const ROUNDS_MAX: usize = 6;

/// The answer to a request.
type Reply<T> = oneshot::Sender<Result<T, NetError>>;

/// What can be asked of a keeper.
#[derive(Debug)]
pub(super) enum Ask {
    Apply { desired: Arc<Desired>, network: Arc<DesiredNetwork>, reply: Reply<()> },
    Plug { address: Ipv4Addr, reply: Reply<Port> },
    Unplug { address: Ipv4Addr, reply: Reply<Unplugged> },
    Ports { reply: Reply<Vec<PortInfo>> },
    Connector { reply: Reply<Connector> },
    Counters { reply: Reply<Vec<Counter>> },
    Connections { address: Ipv4Addr, reply: Reply<Vec<Connection>> },
    Adopt { connections: Vec<Connection>, reply: Reply<()> },
    Capture { address: Ipv4Addr, options: CaptureOptions, reply: Reply<Capture> },
    Close { reply: Reply<()> },
}

/// What a network was last told to be.
#[derive(Debug, Clone)]
struct Target {
    desired: Arc<Desired>,
    network: Arc<DesiredNetwork>,
}

/// What the kernel was given.
#[derive(Debug)]
struct Programmed {
    network: Arc<DesiredNetwork>,
    rules: Arc<Ruleset>,
    /// The generation that it left.
    generation: u32,
}

/// What the kernel was brought in line with, and showed.
#[derive(Debug)]
struct InLine {
    target: Target,
    wanted: Wanted,
    transit: Option<Ipv4Addr>,
    /// Index of the tunnel.
    tunnel: Option<u32>,
}

/// The keeper of one network.
#[derive(Debug)]
pub(super) struct Keeper {
    vni: Vni,
    name: NetworkName,
    network: NodeNetwork,
    outside: Arc<Outside>,
    events: Events,
    target: Option<Target>,
    netfilter: Option<Netfilter>,
    programmed: Option<Programmed>,
    in_line: Option<InLine>,
    room: WaitingRoom,
    waiting: Option<Waiting>,
    services: Option<(Services, ServicesOf)>,
    told: Option<watch::Sender<Arc<Directory>>>,
    published: watch::Sender<Arc<DesiredNetwork>>,
    changed: Arc<Notify>,
    /// What the last look complained of: what stays wrong is told once.
    complaint: Option<String>,
    _monitor: Monitor,
}

/// What services must be started anew for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ServicesOf {
    bridge: u32,
    cidr: Subnet,
    gateway: Ipv4Addr,
    ipv6: Option<crate::desired::Ipv6Range>,
    bridged: bool,
}

impl ServicesOf {
    fn new(bridge: u32, network: &DesiredNetwork) -> Self {
        let bridged = matches!(network.kind, NetworkKind::Bridged { .. });
        let (cidr, gateway, ipv6) = (network.cidr, network.gateway, network.ipv6);
        Self { bridge, cidr, gateway, ipv6, bridged }
    }
}

fn spec(name: &NetworkName, network: &DesiredNetwork) -> Result<NetworkSpec, NetError> {
    let managed = Managed { mac: network.vni.gateway_mac(), mtu: u32::from(network.mtu) };
    let spec = NetworkSpec::new(name.clone(), network.cidr).with_gateway(network.gateway)?;
    Ok(spec.managed_as(managed))
}

impl Keeper {
    /// Makes the namespace, or takes over the one that is there.
    pub(super) async fn open(
        name: NetworkName,
        desired: &DesiredNetwork,
        outside: Arc<Outside>,
        events: Events,
    ) -> Result<Self, NetError> {
        let network = NodeNetwork::open(spec(&name, desired)?).await?;
        let heard = name.clone();
        let ears = network.thread().run(move |_| {
            Box::pin(async move { Ears::open(true).map_err(failed("listening in", &heard)) })
        });
        let changed = Arc::new(Notify::new());
        let monitor =
            Monitor::start(ears.await?, changed.clone(), Some(desired.vni), events.clone());
        outside.guard(events.clone());
        Ok(Self {
            vni: desired.vni,
            network,
            outside,
            events,
            target: None,
            netfilter: None,
            programmed: None,
            in_line: None,
            room: WaitingRoom::new(),
            waiting: None,
            services: None,
            told: None,
            published: watch::Sender::new(Arc::new(desired.clone())),
            changed,
            complaint: None,
            _monitor: monitor.map_err(failed("listening in", &name))?,
            name,
        })
    }

    /// Answers requests and looks after the network until it is closed or nobody asks any more.
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Ask>) {
        let mut outside = self.outside.changes();
        let changed = self.changed.clone();
        let mut next_look = Instant::now() + LOOK_EVERY;
        let (mut last_look, mut pause) = (Instant::now(), LOOK_PAUSE);
        loop {
            tokio::select! {
                ask = inbox.recv() => match ask {                            // cancel-safe: mpsc
                    None => return,
                    Some(Ask::Close { reply }) => {
                        let result = self.close().await;
                        let _ = reply.send(result);
                        return;
                    }
                    Some(ask) => self.on(ask).await,
                },
                () = changed.notified() => {                                 // cancel-safe: a permit stays
                    next_look = next_look.min((last_look + pause).max(Instant::now() + SETTLE));
                }
                Ok(()) = outside.changed() => {                              // cancel-safe: watch
                    next_look = next_look.min((last_look + pause).max(Instant::now() + SETTLE));
                }
                () = tokio::time::sleep_until(next_look) => {                // cancel-safe: timer
                    let began = Instant::now();
                    self.look().await;
                    last_look = Instant::now();
                    pause = LOOK_PAUSE.max((last_look - began) * LOOK_SHARE);
                    next_look = last_look + LOOK_EVERY;
                }
            }
        }
    }

    async fn on(&mut self, ask: Ask) {
        // Who asked may have left; what was done stays.
        match ask {
            Ask::Apply { desired, network, reply } => {
                let _ = reply.send(self.apply(Target { desired, network }).await);
            }
            Ask::Plug { address, reply } => {
                let _ = reply.send(self.plug(address).await);
            }
            Ask::Unplug { address, reply } => {
                let unplugged = self.network.unplug(address).await;
                let _ = reply.send(self.forget_shortcuts().await.and(unplugged));
            }
            Ask::Ports { reply } => {
                let _ = reply.send(self.network.ports().await);
            }
            Ask::Connector { reply } => {
                let _ = reply.send(Ok(self.network.connector()));
            }
            Ask::Counters { reply } => {
                let _ = reply.send(self.counters().await);
            }
            Ask::Connections { address, reply } => {
                let _ = reply.send(self.connections(address).await);
            }
            Ask::Adopt { connections, reply } => {
                let _ = reply.send(self.adopt(connections).await);
            }
            Ask::Capture { address, options, reply } => {
                let _ = reply.send(self.capture(address, options).await);
            }
            Ask::Close { reply } => {
                let _ = reply.send(Err(NetError::Closed));
            }
        }
    }

    async fn apply(&mut self, target: Target) -> Result<(), NetError> {
        let unchanged = self.target.as_ref().is_some_and(|before| {
            let network =
                Arc::ptr_eq(&before.network, &target.network) || before.network == target.network;
            network
                && before.desired.underlay == target.desired.underlay
                && before.desired.peers == target.desired.peers
        });
        if unchanged && self.programmed.is_some() && self.services.is_some() {
            return Ok(());
        }
        self.network.respecify(spec(&self.name, &target.network)?);
        self.target = Some(target.clone());
        self.published.send_replace(target.network.clone());
        if self.in_line.is_none() {
            self.settle(&target).await?;
        }
        self.wait_for_machines(&target).await?;
        self.program(&target).await?;
        if !self.follow(&target).await? {
            self.settle(&target).await?;
            self.bring_in_line(&target).await?;
        }
        self.serve(&target).await
    }

    /// Goes from what the kernel is in line with to `target` without asking it, which costs as much as there are machines.
    /// Whether that was enough. What somebody changed meanwhile is found when the network is next looked at.
    async fn follow(&mut self, target: &Target) -> Result<bool, NetError> {
        let Some(before) = self.in_line.take() else { return Ok(false) };
        if ways(&before.target.network) != ways(&target.network) {
            return Ok(false);
        }
        let wanted = Wanted::of(&target.desired, &target.network, &self.name, before.transit);
        let Some(steps) = follow(&before.wanted, &wanted, before.tunnel) else {
            return Ok(false);
        };
        let fresh = wanted.taps.keys().filter(|tap| !before.wanted.taps.contains_key(*tap));
        if self.has_any(fresh.cloned().collect()).await? {
            return Ok(false);
        }
        if !steps.is_empty() {
            self.carry_out(target, &wanted, steps).await?;
            self.forget_shortcuts().await?;
        }
        self.in_line = Some(InLine { target: target.clone(), wanted, ..before });
        Ok(true)
    }

    /// Whether one of these interfaces is there.
    async fn has_any(&self, names: Vec<InterfaceName>) -> Result<bool, NetError> {
        let network = self.name.clone();
        let job = self.network.thread().run(move |netlink| {
            Box::pin(async move {
                for name in &names {
                    let index = netlink.index_of(name).map_err(failed("looking at", &network))?;
                    if index.is_some() {
                        return Ok(true);
                    }
                }
                Ok(false)
            })
        });
        job.await
    }

    /// Has every connection take the long way once more.
    async fn forget_shortcuts(&mut self) -> Result<(), NetError> {
        let place = (Family::Device, TABLE.to_owned());
        let Some(programmed) = &self.programmed else { return Ok(()) };
        if !programmed.rules.contains_key(&place) {
            return Ok(());
        }
        let before = programmed.generation;
        let clear = move |netfilter: &mut Netfilter| {
            // Somebody else's change must not pass for this one.
            let ours = netfilter.generation()? == before;
            let now = netfilter.commit(&[Change::ClearSet((place.0, &place.1), KNOWN)])?;
            Ok(if ours { now } else { before })
        };
        let generation = self.with_netfilter(clear).await?;
        if let Some(programmed) = &mut self.programmed {
            programmed.generation = generation;
        }
        Ok(())
    }

    /// What is wrong is put back, and told.
    async fn look(&mut self) {
        let Some(target) = self.target.clone() else { return };
        let mut steps = 0;
        let result: Result<(), NetError> = async {
            self.settle(&target).await?;
            let before = self.programmed.is_some();
            steps += usize::from(self.program(&target).await? && before);
            steps += self.bring_in_line(&target).await?;
            self.serve(&target).await?;
            steps += usize::from(self.outside.refresh().await?);
            Ok(())
        }
        .await;
        let complaint = result.err().map(|error| report::chain(&error));
        if let Some(error) = complaint.as_ref().filter(|_| complaint != self.complaint) {
            warn!(network.name = %self.name, %error, "a network cannot be put back in order");
        }
        self.complaint = complaint;
        if steps > 0 {
            info!(network.name = %self.name, steps, "a network was put back in order");
            self.events.mention(NetworkEvent::Healed { vni: Some(self.vni), steps });
        }
    }

    async fn settle(&self, target: &Target) -> Result<(), NetError> {
        match self.write_settings(target).await {
            // Without the bridge some are not there.
            Err(NetError::Host(_)) if self.bridge_is_gone().await => {
                self.network.restore().await?;
                self.write_settings(target).await
            }
            other => other,
        }
    }

    async fn write_settings(&self, target: &Target) -> Result<(), NetError> {
        let (name, has_ipv6) = (self.name.clone(), target.network.ipv6.is_some());
        let job = self.network.thread().run(move |_| {
            Box::pin(async move {
                kernel::settle(has_ipv6).map_err(|source| match source.kind() {
                    std::io::ErrorKind::NotFound => {
                        crate::host::HostError::BridgeFilterMissing.into()
                    }
                    _ => failed("writing settings of", &name)(source),
                })
            })
        });
        job.await
    }

    async fn bridge_is_gone(&self) -> bool {
        let found = self.network.thread().run(|netlink| {
            Box::pin(async move {
                let index = netlink.index_of(&InterfaceName::bridge());
                index.map_err(|source| NetError::Rules { source })
            })
        });
        matches!(found.await, Ok(None))
    }

    async fn wait_for_machines(&mut self, target: &Target) -> Result<(), NetError> {
        let waiting = self.waiting.get_or_insert_with(|| {
            let inside = self.network.connector();
            Waiting::new(self.vni, inside, self.published.subscribe(), self.events.clone())
        });
        let room = waiting.follow(&target.network).await;
        self.room = room.map_err(failed("listening for clients of", &self.name))?;
        Ok(())
    }

    /// Writes the rules that differ, or all if somebody else changed any. Returns whether somebody
    /// had.
    async fn program(&mut self, target: &Target) -> Result<bool, NetError> {
        let mut around = Surroundings::of(&target.desired, InterfaceName::tap_prefix(&self.name));
        around.waiting.clone_from(&self.room);
        let netfilter = match self.netfilter.take() {
            Some(netfilter) => netfilter,
            None => self.open_netfilter().await?,
        };
        let (network, name) = (target.network.clone(), self.name.clone());
        let (mut programmed, outside) = (self.programmed.take(), self.outside.clone());
        let work = move || {
            let mut netfilter = netfilter;
            let tap = |address| InterfaceName::tap(&name, address);
            let trial = || try_shortcut(&mut netfilter, &network, &around, programmed.as_mut());
            around.has_shortcut = outside.shortcut().get_or_try(trial);
            let wanted = Arc::new(rules(&network, tap, &around));
            let done = write(&mut netfilter, &wanted, programmed, &network);
            Ok((netfilter, network, wanted, done))
        };
        let (netfilter, network, rules, done) = blocking(work).await?;
        self.netfilter = Some(netfilter);
        let (generation, foreign) = done.map_err(|source| NetError::Rules { source })?;
        self.programmed = Some(Programmed { network, rules, generation });
        Ok(foreign)
    }

    async fn open_netfilter(&self) -> Result<Netfilter, NetError> {
        let open = self.network.thread().run(|_| {
            Box::pin(async { Netfilter::open().map_err(|source| NetError::Rules { source }) })
        });
        open.await
    }

    /// Carries out plans until one is empty. Returns how many steps that took.
    async fn bring_in_line(&mut self, target: &Target) -> Result<usize, NetError> {
        let mut count = 0;
        self.in_line = None;
        for _ in 0..ROUNDS_MAX {
            let transit = self.tend_way(target).await?;
            let wanted = Wanted::of(&target.desired, &target.network, &self.name, transit);
            let seen = self.see(target).await?;
            let steps = diff(&wanted, &seen, &self.name);
            let is_last = steps.iter().all(Step::is_last);
            if !steps.is_empty() {
                debug!(network.name = %self.name, ?steps, "bringing in line");
                count += steps.len();
                self.carry_out(target, &wanted, steps).await?;
            }
            if is_last {
                self.note_name().await?;
                if count > 0 {
                    self.forget_shortcuts().await?;
                }
                let tunnel = seen.link(VXLAN).map(|link| link.index);
                let target = target.clone();
                self.in_line = Some(InLine { target, wanted, transit, tunnel });
                return Ok(count);
            }
        }
        Err(NetError::Unsettled { name: self.name.clone() })
    }

    async fn tend_way(&mut self, target: &Target) -> Result<Option<Ipv4Addr>, NetError> {
        let network = &target.network;
        let source = match network.kind {
            NetworkKind::Nat(Exit::Here { source }) => source,
            NetworkKind::Nat(Exit::Via(_)) => None,
            NetworkKind::Isolated | NetworkKind::Bridged { .. } => {
                self.outside.set_way(self.vni, None);
                return Ok(None);
            }
        };
        let transit = self.outside.tend_way(&self.name, source).await?;
        let way = transit.map(|transit| Way {
            interface: InterfaceName::host_end(&self.name).as_str().to_owned(),
            transit,
            source,
            open: ways(network).1,
        });
        self.outside.set_way(self.vni, way);
        Ok(transit)
    }

    async fn see(&self, target: &Target) -> Result<Seen, NetError> {
        let (name, port) = (self.name.clone(), target.desired.underlay.vxlan_port);
        let job = self.network.thread().run(move |netlink| {
            Box::pin(async move {
                kernel::look(netlink, port).await.map_err(failed("looking at", &name))
            })
        });
        job.await
    }

    async fn carry_out(
        &mut self,
        target: &Target,
        wanted: &Wanted,
        steps: Vec<Step>,
    ) -> Result<(), NetError> {
        let mtu = wanted.mtu;
        let copy = || {
            let copy = self.network.namespace().try_clone();
            copy.map_err(|_| NetError::Descriptors { action: "making an interface" })
        };
        let (making, rest): (Vec<_>, Vec<_>) = steps.into_iter().partition(|step| {
            matches!(step, Step::MakeBridge | Step::MakeTunnel(_) | Step::MakeUplink)
        });
        let bridge = self.network.bridge();
        let carried = self.network.thread().run(move |netlink| {
            Box::pin(async move { kernel::carry_out(netlink, bridge, mtu, rest).await })
        });
        carried.await?;
        for step in making {
            match step {
                Step::MakeBridge => {
                    self.network.restore().await?;
                    self.settle(target).await?;
                }
                Step::MakeTunnel(tunnel) => {
                    self.outside.make_tunnel(&self.name, copy()?, tunnel, mtu).await?;
                }
                Step::MakeUplink => match (&wanted.uplink, &target.network.kind) {
                    (Uplink::Segment, NetworkKind::Bridged { attach }) => {
                        let attach = attach.clone();
                        self.outside.make_segment(&self.name, copy()?, attach, mtu).await?;
                    }
                    _ => self.outside.make_way(&self.name, copy()?, mtu).await?,
                },
                _ => {}
            }
        }
        Ok(())
    }

    /// Gives the namespace its name again if somebody took it.
    async fn note_name(&self) -> Result<(), NetError> {
        if self.network.has_name().await? { Ok(()) } else { self.network.restore().await.map(drop) }
    }

    async fn serve(&mut self, target: &Target) -> Result<(), NetError> {
        let directory = Arc::new(Directory::new(target.network.clone()));
        let of = ServicesOf::new(self.network.bridge(), &target.network);
        match (&self.told, &self.services) {
            (Some(told), Some((_, before))) if *before == of => {
                let same = Arc::ptr_eq(&told.borrow().arc(), &target.network);
                if !same {
                    told.send_replace(directory);
                }
                return Ok(());
            }
            _ => {}
        }
        self.services = None;
        let (told, heard) = watch::channel(directory);
        let place = Place {
            name: self.name.clone(),
            bridge: of.bridge,
            outside: self.outside.connector(),
            resolvers: self.outside.resolvers(),
        };
        let services = Services::start(self.network.thread(), place, heard).await?;
        self.services = Some((services, of));
        self.told = Some(told);
        Ok(())
    }

    async fn plug(&mut self, address: Ipv4Addr) -> Result<Port, NetError> {
        let unknown = NetError::PortUnknown { vni: self.vni, address };
        let Some(target) = &self.target else { return Err(unknown) };
        let port = target.network.ports.iter().find(|port| port.address == address);
        let Some(port) = port else { return Err(unknown) };
        let (mac, label, peers) = (port.mac, port.label.clone(), port.peers);
        self.network.plug(PortSpec { address, mac, label, peers }).await
    }

    async fn counters(&mut self) -> Result<Vec<Counter>, NetError> {
        let read = |netfilter: &mut Netfilter| {
            let mut all = netfilter.counters(Family::Bridge, TABLE)?;
            all.extend(netfilter.counters(Family::Inet, TABLE)?);
            Ok(counters(all))
        };
        self.with_netfilter(read).await
    }

    async fn connections(&mut self, address: Ipv4Addr) -> Result<Vec<Connection>, NetError> {
        let Some(target) = self.target.clone() else { return Ok(Vec::new()) };
        let port = target.network.ports.iter().find(|port| port.address == address);
        let own = [Some(address.into()), port.and_then(|port| port.ipv6).map(Into::into)];
        let flows = self.with_netfilter(Netfilter::flows).await?;
        let of_port = flows.into_iter().filter(|flow| {
            [flow.original.source, flow.reply.source].iter().any(|end| own.contains(&Some(*end)))
        });
        Ok(of_port.map(Connection::from).collect())
    }

    async fn adopt(&mut self, connections: Vec<Connection>) -> Result<(), NetError> {
        let Some(target) = self.target.clone() else { return Ok(()) };
        let work = move |netfilter: &mut Netfilter| {
            let policy = Policy::new(&target.network);
            for connection in &connections {
                if policy.allows(&Packet::opening(&connection.flow())) {
                    netfilter.adopt(&connection.flow())?;
                }
            }
            Ok(())
        };
        self.with_netfilter(work).await
    }

    async fn capture(
        &mut self,
        address: Ipv4Addr,
        options: CaptureOptions,
    ) -> Result<Capture, NetError> {
        let tap = InterfaceName::tap(&self.name, address);
        let (vni, name) = (self.vni, self.name.clone());
        let job = self.network.thread().run(move |netlink| {
            Box::pin(async move {
                let failed = failed("capturing in", &name);
                let index = netlink.index_of(&tap).map_err(&failed)?;
                let index = index.ok_or(NetError::PortUnknown { vni, address })?;
                PacketSocket::open(&interface_filter(index, options.bytes_max)).map_err(failed)
            })
        });
        let socket = job.await?;
        Capture::new(socket).map_err(failed("capturing in", &self.name))
    }

    async fn with_netfilter<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Netfilter) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, NetError> {
        let mut netfilter = match self.netfilter.take() {
            Some(netfilter) => netfilter,
            None => self.open_netfilter().await?,
        };
        let (netfilter, result) = blocking(move || {
            let result = work(&mut netfilter);
            Ok((netfilter, result))
        })
        .await?;
        self.netfilter = Some(netfilter);
        result.map_err(|source| NetError::Rules { source })
    }

    async fn close(mut self) -> Result<(), NetError> {
        self.services = None;
        self.waiting = None;
        self.outside.set_way(self.vni, None);
        let closed = self.network.close().await;
        self.outside.refresh().await?;
        closed
    }
}

/// Writes rules, and cuts connections that they forbid now. Returns the generation, and whether
/// somebody else had changed the rules.
fn write(
    netfilter: &mut Netfilter,
    wanted: &Ruleset,
    programmed: Option<Programmed>,
    network: &DesiredNetwork,
) -> std::io::Result<(u32, bool)> {
    let now = netfilter.generation()?;
    let nothing = Ruleset::new();
    let (changes, foreign, before) = match &programmed {
        Some(before) if before.generation == now => {
            (diff_rules(&before.rules, wanted), false, Some(before))
        }
        Some(before) => (replace(wanted, &before.rules), true, None),
        None => (replace(wanted, &nothing), false, None),
    };
    if changes.is_empty() {
        return Ok((now, false));
    }
    let mut generation = match (netfilter.commit(&changes), before) {
        (Ok(generation), _) => generation,
        (Err(error), None) => return Err(error),
        (Err(error), Some(before)) => {
            warn!(%error, "a change of rules failed; all are written anew");
            netfilter.commit(&replace(wanted, &before.rules))?
        }
    };
    let harmless = before.is_some_and(|before| !may_forbid(&before.network, network));
    if !harmless && (programmed.is_some() || netfilter.flows_count()? > 0) {
        let policy = Policy::new(network);
        for flow in netfilter.flows()? {
            if stale(&flow, network, &policy) {
                netfilter.forget(&flow.original)?;
            }
        }
    }
    // After the last packet that the former rules let through: it may have been learned from.
    let place = (Family::Device, TABLE.to_owned());
    if wanted.contains_key(&place) {
        generation = netfilter.commit(&[Change::ClearSet((place.0, &place.1), KNOWN)])?;
    }
    Ok((generation, foreign))
}

/// What is published, and on which address; `None`: on all.
type Open = BTreeSet<(Option<Ipv4Addr>, Transport, u16)>;

/// What of a network's ways to the host a look must bring in line: where it leaves, and what is open.
fn ways(network: &DesiredNetwork) -> (&NetworkKind, Open) {
    (&network.kind, network.publications.iter().map(|p| (p.address, p.protocol, p.port)).collect())
}

/// Writes the rules of the short way between machines, without any port, and takes them back: all or nothing of them.
fn try_shortcut(
    netfilter: &mut Netfilter,
    network: &DesiredNetwork,
    around: &Surroundings,
    programmed: Option<&mut Programmed>,
) -> std::io::Result<()> {
    let trial = shortcut_alone(network, around);
    let before = netfilter.generation()?;
    netfilter.commit(&replace(&trial, &Ruleset::new()))?;
    let after = netfilter.commit(&replace(&Ruleset::new(), &trial))?;
    // The trial must not pass for somebody else's change.
    if let Some(programmed) = programmed.filter(|programmed| programmed.generation == before) {
        programmed.generation = after;
    }
    Ok(())
}
