//! From what a network should be and what the kernel shows to the steps between. Pure.
//!
//! A plan is made for what is seen now. Where a step makes an interface that other steps need, they
//! come in the next plan; who carries plans out looks again until one is empty.

use crate::desired::{Desired, DesiredNetwork, Exit, NetworkKind};
use crate::firewall::ANSWER;
use crate::names::{BRIDGE, InterfaceName, NetworkName, UPLINK, VXLAN, address_of_tap};
use crate::netlink::{
    Attachment, Back, Forwarding, Link, Route, TABLE_BACK, TABLE_MAIN, Trunk, Tunnel,
};
use crate::port::{Peers, alias};
use skein_model::MacAddr;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};

/// The host's address on every way into a network.
pub(crate) const HOST_TRANSIT: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
/// The gateway's link-local address, the same in every network and on every node.
pub(crate) const GATEWAY_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Who answers DHCP where the gateway is the operator's.
pub(crate) const BRIDGED_SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 1);
/// Bits of an interface's index that are part of its transit address: 100.64.0.0 to 100.95.255.255.
const TRANSIT_INDEX_MASK: u32 = 0x1f_ffff;

/// The address of a network on its way to the host, whose end has this index. An index is not used
/// twice in a namespace while its interface lives, so neither is the address.
pub(crate) fn transit_address(host_index: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(HOST_TRANSIT) | (host_index & TRANSIT_INDEX_MASK))
}

/// The way out of a network's namespace that is not a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Uplink {
    None,
    /// Routed to the host; its address on it is known once the host's end is there.
    Host(Option<Ipv4Addr>),
    /// A port of the bridge.
    Segment,
}

/// What the kernel should show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) mtu: u32,
    pub(crate) bridge_mac: [u8; 6],
    pub(crate) tunnel: Option<Tunnel>,
    pub(crate) uplink: Uplink,
    /// Of the bridge.
    pub(crate) addresses: BTreeMap<IpAddr, u8>,
    pub(crate) behind: BTreeMap<[u8; 6], SocketAddrV4>,
    pub(crate) neighbours: BTreeMap<IpAddr, [u8; 6]>,
    /// Next hops by destination, over the bridge.
    pub(crate) routes: BTreeMap<(Ipv4Addr, u8), Option<Ipv4Addr>>,
    /// Whether answers to the outside go back the way the question came, and not the way that all else goes.
    pub(crate) answers_back: bool,
    /// By tap, what is attached and how.
    pub(crate) taps: BTreeMap<InterfaceName, TapWanted>,
}

/// A tap that may be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TapWanted {
    pub(crate) address: Ipv4Addr,
    pub(crate) mac: MacAddr,
    pub(crate) isolated: bool,
    pub(crate) alias: String,
}

/// What the kernel shows in a network's namespace.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) links: Vec<Link>,
    /// Of the bridge.
    pub(crate) addresses: Vec<(IpAddr, u8)>,
    /// Of the way to the host.
    pub(crate) uplink_addresses: Vec<(IpAddr, u8)>,
    pub(crate) behind: Vec<([u8; 6], SocketAddrV4)>,
    pub(crate) neighbours: Vec<(IpAddr, [u8; 6])>,
    pub(crate) routes: Vec<Route>,
    pub(crate) backs: Vec<Back>,
    pub(crate) forwarding: Vec<Forwarding>,
}

impl Seen {
    pub(crate) fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }
}

/// One change of the kernel's tables. Doing it twice is harmless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    MakeBridge,
    MakeTunnel(Tunnel),
    MakeUplink,
    Remove(u32),
    /// Of a bridge: no frame goes past the rules.
    Guard(u32),
    SetMtu {
        index: u32,
        mtu: u32,
    },
    /// Up, under this address if one is given.
    SetUp {
        index: u32,
        mac: Option<[u8; 6]>,
    },
    AttachTrunk {
        index: u32,
        trunk: Trunk,
    },
    AttachTap(InterfaceName, Attach),
    /// One that may be gone already.
    RemoveTap(InterfaceName),
    SetAddress {
        index: u32,
        address: IpAddr,
        length: u8,
    },
    UnsetAddress {
        index: u32,
        address: IpAddr,
    },
    SetBehind {
        index: u32,
        mac: [u8; 6],
        node: SocketAddrV4,
    },
    UnsetBehind {
        index: u32,
        mac: [u8; 6],
    },
    SetNeighbour {
        address: IpAddr,
        mac: [u8; 6],
    },
    UnsetNeighbour(IpAddr),
    SetRoute(Route),
    UnsetRoute(Route),
    SetBack(Back),
    UnsetBack(Back),
}

impl Step {
    /// Whether no other step can follow from it. After steps of this kind alone there is nothing to look at again, and
    /// they are what happens each time that a machine comes or goes: a look costs as much as there are machines.
    pub(crate) fn is_last(&self) -> bool {
        match self {
            Self::SetBehind { .. }
            | Self::UnsetBehind { .. }
            | Self::SetNeighbour { .. }
            | Self::UnsetNeighbour(_) => true,
            Self::MakeBridge
            | Self::MakeTunnel(_)
            | Self::MakeUplink
            | Self::Remove(_)
            | Self::Guard(_)
            | Self::SetMtu { .. }
            | Self::SetUp { .. }
            | Self::AttachTrunk { .. }
            | Self::AttachTap(..)
            | Self::RemoveTap(_)
            | Self::SetAddress { .. }
            | Self::UnsetAddress { .. }
            | Self::SetRoute(_)
            | Self::UnsetRoute(_)
            | Self::SetBack(_)
            | Self::UnsetBack(_) => false,
        }
    }
}

/// [`Attachment`] as a value that can be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attach {
    pub(crate) index: u32,
    pub(crate) tap: TapWanted,
}

impl Attach {
    pub(crate) fn to_bridge(&self, bridge: u32, mtu: u32) -> Attachment {
        Attachment {
            index: self.index,
            bridge,
            alias: self.tap.alias.clone(),
            address: self.tap.address,
            mac: self.tap.mac,
            isolated: self.tap.isolated,
            mtu: Some(mtu),
        }
    }
}

impl Wanted {
    /// What `network` needs on this node.
    pub(crate) fn of(
        desired: &Desired,
        network: &DesiredNetwork,
        name: &NetworkName,
        transit: Option<Ipv4Addr>,
    ) -> Self {
        let bridged = matches!(network.kind, NetworkKind::Bridged { .. });
        let own = &desired.underlay;
        let spans = !bridged && !desired.peers.is_empty();
        let here = matches!(network.kind, NetworkKind::Nat(Exit::Here { .. }));
        let uplink = match bridged {
            true => Uplink::Segment,
            false if here || !network.publications.is_empty() => Uplink::Host(transit),
            false => Uplink::None,
        };
        let end = own.tunnel_end();
        let tunnel = Tunnel::new(network.vni.get(), *end.ip(), end.port());
        let mut wanted = Self {
            mtu: u32::from(network.mtu),
            bridge_mac: network.vni.gateway_mac(),
            tunnel: spans.then_some(tunnel),
            uplink,
            addresses: BTreeMap::new(),
            behind: BTreeMap::new(),
            neighbours: BTreeMap::new(),
            routes: BTreeMap::new(),
            answers_back: network.answers_back(),
            taps: BTreeMap::new(),
        };
        wanted.add_addresses(desired, network, bridged);
        wanted.add_ports(desired, network, name);
        if spans {
            wanted.add_routers(desired, network);
        }
        wanted
    }

    fn add_addresses(&mut self, desired: &Desired, network: &DesiredNetwork, bridged: bool) {
        if bridged {
            self.addresses.insert(BRIDGED_SERVER.into(), 32);
            // Answers of DHCP find their machine.
            self.routes.insert((network.cidr.network(), network.cidr.prefix_len()), None);
            return;
        }
        self.addresses.insert(network.gateway.into(), network.cidr.prefix_len());
        self.addresses.insert(desired.underlay.number.router_address().into(), 32);
        if let Some(range) = network.ipv6 {
            self.addresses.insert(range.gateway.into(), range.prefix.prefix_len());
            self.addresses.insert(GATEWAY_LINK_LOCAL.into(), 64);
        }
    }

    fn add_ports(&mut self, desired: &Desired, network: &DesiredNetwork, name: &NetworkName) {
        let mut neighbour = |address: Ipv4Addr, ipv6: Option<Ipv6Addr>, mac: [u8; 6]| {
            self.neighbours.insert(address.into(), mac);
            if let Some(ipv6) = ipv6 {
                self.neighbours.insert(ipv6.into(), mac);
            }
        };
        for port in &network.ports {
            neighbour(port.address, port.ipv6, port.mac.octets());
            let wanted = TapWanted {
                address: port.address,
                mac: port.mac,
                isolated: port.peers == Peers::Isolated,
                alias: alias(port.mac, port.peers, &port.label),
            };
            self.taps.insert(InterfaceName::tap(name, port.address), wanted);
        }
        for port in &network.remote_ports {
            neighbour(port.address, port.ipv6, port.mac.octets());
            if let Some(node) = desired.node(port.node) {
                self.behind.insert(port.mac.octets(), node.tunnel_end());
            }
        }
    }

    fn add_routers(&mut self, desired: &Desired, network: &DesiredNetwork) {
        for peer in desired.peers() {
            let (address, mac) = (peer.number.router_address(), peer.number.router_mac());
            self.neighbours.insert(address.into(), mac);
            self.behind.insert(mac, peer.tunnel_end());
            self.routes.insert((address, 32), None);
        }
        if let NetworkKind::Nat(Exit::Via(node)) = network.kind
            && node != desired.underlay.number
        {
            self.routes.insert((Ipv4Addr::UNSPECIFIED, 0), Some(node.router_address()));
        }
    }
}

/// The steps from what is seen to what is wanted.
pub(crate) fn diff(wanted: &Wanted, seen: &Seen, name: &NetworkName) -> Vec<Step> {
    let mut steps = Vec::new();
    let Some(bridge) = seen.link(BRIDGE).filter(|link| link.is_bridge) else {
        return vec![Step::MakeBridge];
    };
    if !bridge.is_up || bridge.mac != wanted.bridge_mac {
        steps.push(Step::SetUp { index: bridge.index, mac: Some(wanted.bridge_mac) });
    }
    if !bridge.is_guarded {
        steps.push(Step::Guard(bridge.index));
    }
    if bridge.mtu != wanted.mtu {
        steps.push(Step::SetMtu { index: bridge.index, mtu: wanted.mtu });
    }
    if let Some(lo) = seen.link("lo").filter(|link| !link.is_up) {
        steps.push(Step::SetUp { index: lo.index, mac: None });
    }
    addresses(bridge.index, &wanted.addresses, &seen.addresses, &mut steps);
    tunnel(wanted, seen, bridge, &mut steps);
    uplink(wanted, seen, bridge, &mut steps);
    taps(wanted, seen, bridge, name, &mut steps);
    let known: BTreeMap<_, _> = seen.neighbours.iter().copied().collect();
    neighbours(&wanted.neighbours, &known, &mut steps);
    routes(wanted, seen, bridge.index, &mut steps);
    steps
}

/// The steps from one state to another, where the kernel shows the first: what is about machines that come and go.
/// `tunnel`: its index. `None` if anything else differs, and a look at the kernel must tell.
pub(crate) fn follow(before: &Wanted, after: &Wanted, tunnel: Option<u32>) -> Option<Vec<Step>> {
    let Wanted {
        mtu, bridge_mac, tunnel: through, uplink, addresses, routes, answers_back, ..
    } = before;
    let same = *mtu == after.mtu
        && *bridge_mac == after.bridge_mac
        && *through == after.tunnel
        && *uplink == after.uplink
        && *addresses == after.addresses
        && *routes == after.routes
        && *answers_back == after.answers_back;
    let changed = |(name, tap): (&InterfaceName, &TapWanted)| {
        after.taps.get(name).is_some_and(|other| other != tap)
    };
    if !same || before.taps.iter().any(changed) || through.is_some() != tunnel.is_some() {
        return None;
    }
    let mut steps = Vec::new();
    let gone = before.taps.keys().filter(|name| !after.taps.contains_key(*name));
    steps.extend(gone.map(|name| Step::RemoveTap(name.clone())));
    if let Some(index) = tunnel {
        let stale = before.behind.keys().filter(|mac| !after.behind.contains_key(*mac));
        steps.extend(stale.map(|mac| Step::UnsetBehind { index, mac: *mac }));
        let fresh = after.behind.iter().filter(|(mac, node)| before.behind.get(*mac) != Some(node));
        steps.extend(fresh.map(|(mac, node)| Step::SetBehind { index, mac: *mac, node: *node }));
    }
    neighbours(&after.neighbours, &before.neighbours, &mut steps);
    Some(steps)
}

fn addresses(
    index: u32,
    wanted: &BTreeMap<IpAddr, u8>,
    seen: &[(IpAddr, u8)],
    steps: &mut Vec<Step>,
) {
    for (address, length) in seen {
        if wanted.get(address) != Some(length) {
            steps.push(Step::UnsetAddress { index, address: *address });
        }
    }
    for (address, length) in wanted {
        if !seen.contains(&(*address, *length)) {
            steps.push(Step::SetAddress { index, address: *address, length: *length });
        }
    }
}

fn tunnel(wanted: &Wanted, seen: &Seen, bridge: &Link, steps: &mut Vec<Step>) {
    let link = seen.link(VXLAN);
    let link = match (link, wanted.tunnel) {
        (None, None) => return,
        (None, Some(tunnel)) => return steps.push(Step::MakeTunnel(tunnel)),
        (Some(link), None) => return steps.push(Step::Remove(link.index)),
        (Some(link), Some(tunnel)) if link.tunnel != Some(tunnel) => {
            return steps.extend([Step::Remove(link.index), Step::MakeTunnel(tunnel)]);
        }
        (Some(link), Some(_)) => link,
    };
    let index = link.index;
    if link.mtu != wanted.mtu {
        steps.push(Step::SetMtu { index, mtu: wanted.mtu });
    }
    if link.controller != Some(bridge.index) || !link.is_up {
        steps.push(Step::AttachTrunk { index, trunk: Trunk::Tunnel });
    }
    let known: BTreeMap<_, _> = seen.behind.iter().copied().collect();
    let bridged = |mac: &[u8; 6]| {
        seen.forwarding.iter().any(|entry| entry.port == index && entry.mac == *mac)
    };
    let stale = known.keys().filter(|mac| !wanted.behind.contains_key(*mac));
    steps.extend(stale.map(|mac| Step::UnsetBehind { index, mac: *mac }));
    for (mac, node) in &wanted.behind {
        if known.get(mac) != Some(node) || !bridged(mac) {
            steps.push(Step::SetBehind { index, mac: *mac, node: *node });
        }
    }
}

fn uplink(wanted: &Wanted, seen: &Seen, bridge: &Link, steps: &mut Vec<Step>) {
    let link = seen.link(UPLINK);
    match (&wanted.uplink, link) {
        (Uplink::None, None) => {}
        (Uplink::None, Some(link)) => steps.push(Step::Remove(link.index)),
        (Uplink::Host(_) | Uplink::Segment, None) => steps.push(Step::MakeUplink),
        (Uplink::Segment, Some(link)) => {
            if link.controller != Some(bridge.index) || !link.is_up {
                steps.push(Step::AttachTrunk { index: link.index, trunk: Trunk::Segment });
            }
        }
        (Uplink::Host(transit), Some(link)) => {
            if !link.is_up {
                steps.push(Step::SetUp { index: link.index, mac: None });
            }
            let transit = transit.iter().map(|address| (IpAddr::V4(*address), 32)).collect();
            addresses(link.index, &transit, &seen.uplink_addresses, steps);
        }
    }
}

fn taps(wanted: &Wanted, seen: &Seen, bridge: &Link, name: &NetworkName, steps: &mut Vec<Step>) {
    for link in &seen.links {
        if address_of_tap(name, &link.name).is_none() {
            continue;
        }
        let found = wanted.taps.iter().find(|(tap, _)| tap.as_str() == link.name);
        let Some((tap, tap_wanted)) = found else {
            steps.push(Step::Remove(link.index));
            continue;
        };
        // A tap without an alias is being plugged in right now.
        let half_made = link.alias.is_empty() && link.controller.is_none();
        let known =
            |entry: &Forwarding| entry.port == link.index && entry.mac == tap_wanted.mac.octets();
        let whole = link.controller == Some(bridge.index)
            && link.is_up
            && link.alias == tap_wanted.alias
            && link.mtu == wanted.mtu
            && seen.forwarding.iter().any(known);
        if !whole && !half_made {
            let attach = Attach { index: link.index, tap: tap_wanted.clone() };
            steps.push(Step::AttachTap(tap.clone(), attach));
        }
    }
}

fn neighbours(
    wanted: &BTreeMap<IpAddr, [u8; 6]>,
    known: &BTreeMap<IpAddr, [u8; 6]>,
    steps: &mut Vec<Step>,
) {
    let stale = known.keys().filter(|address| !wanted.contains_key(*address));
    steps.extend(stale.map(|address| Step::UnsetNeighbour(*address)));
    for (address, mac) in wanted {
        if known.get(address) != Some(mac) {
            steps.push(Step::SetNeighbour { address: *address, mac: *mac });
        }
    }
}

fn routes(wanted: &Wanted, seen: &Seen, bridge: u32, steps: &mut Vec<Step>) {
    let mut routes: Vec<_> = wanted
        .routes
        .iter()
        .map(|(to, via)| Route { to: *to, via: *via, device: bridge, table: TABLE_MAIN })
        .collect();
    let mut backs = Vec::new();
    let host = seen.link(UPLINK).filter(|link| link.is_up);
    if let (Uplink::Host(Some(transit)), Some(link)) = (&wanted.uplink, host) {
        let device = link.index;
        routes.push(Route { to: (HOST_TRANSIT, 32), via: None, device, table: TABLE_MAIN });
        let (default, via) = ((Ipv4Addr::UNSPECIFIED, 0), Some(HOST_TRANSIT));
        if !wanted.routes.contains_key(&default) {
            routes.push(Route { to: default, via, device, table: TABLE_MAIN });
        }
        if wanted.answers_back {
            routes.push(Route { to: default, via, device, table: TABLE_BACK });
            // Of machines, and of the node itself while no machine is there yet.
            backs = vec![Back::Marked(ANSWER), Back::From(*transit)];
        }
    }
    let stale = seen.backs.iter().filter(|back| !backs.contains(back));
    steps.extend(stale.map(|back| Step::UnsetBack(*back)));
    let stale = seen.routes.iter().filter(|route| !routes.contains(route));
    steps.extend(stale.map(|route| Step::UnsetRoute(*route)));
    // Next hops before what goes through them.
    routes.sort_by_key(|route| route.via.is_some());
    let missing = routes.iter().filter(|route| !seen.routes.contains(route));
    steps.extend(missing.map(|route| Step::SetRoute(*route)));
    let missing = backs.iter().filter(|back| !seen.backs.contains(back));
    steps.extend(missing.map(|back| Step::SetBack(*back)));
}
