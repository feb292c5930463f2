//! Tunnels between nodes, ways to the host, neighbours of both families and routes.

use super::rules::{TABLE_BACK, TABLE_MAIN};
use super::{Link, Netlink, absent_is_fine, cause, collect, mac_of};
use crate::names::InterfaceName;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkInfo, MacVlanMode,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope,
};
use rtnetlink::{
    LinkBridgePort, LinkMacVlan, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan,
    LinkWireguard, RouteMessageBuilder,
};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// `NUD_NOARP | NUD_REACHABLE`: a bridge takes the first for a static entry, a tunnel needs the second.
const STATE_STATIC: u16 = 0x42;
/// The UDP port of a tunnel that is only made to see what the kernel says of it.
const TRIAL_PORT: u16 = 4789;

/// What makes a tunnel the one that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tunnel {
    pub(crate) vni: u32,
    pub(crate) local: Ipv4Addr,
    pub(crate) port: u16,
    /// Whether a frame for another node of this host goes straight into its tunnel, instead of into a packet for it. It
    /// must not: it would keep the connection that this node's network has noted for it, and the other would follow none.
    /// Kernels before 6.5 know nothing else.
    pub(crate) bypasses: bool,
}

impl Tunnel {
    /// With the rest as it shall be.
    pub(crate) fn new(vni: u32, local: Ipv4Addr, port: u16) -> Self {
        Self { vni, local, port, bypasses: false }
    }

    pub(super) fn of(data: &InfoData) -> Option<Self> {
        let InfoData::Vxlan(infos) = data else { return None };
        let mut tunnel = Self::new(0, Ipv4Addr::UNSPECIFIED, 0);
        for info in infos {
            match info {
                InfoVxlan::Id(vni) => tunnel.vni = *vni,
                InfoVxlan::Local(local) => tunnel.local = *local,
                InfoVxlan::Port(port) => tunnel.port = *port,
                InfoVxlan::Localbypass(bypasses) => tunnel.bypasses = *bypasses,
                _ => {}
            }
        }
        Some(tunnel)
    }
}

/// How frames for nobody in particular are treated by a port that leads away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trunk {
    /// To other nodes: only what is addressed to somebody there.
    Tunnel,
    /// To the operator's segment: everything that is not for a machine here.
    Segment,
}

/// A route of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) to: (Ipv4Addr, u8),
    pub(crate) via: Option<Ipv4Addr>,
    pub(crate) device: u32,
    /// [`TABLE_MAIN`] or [`TABLE_BACK`].
    pub(crate) table: u8,
}

impl Netlink {
    /// Makes a VXLAN device that sends and receives in this namespace and stands in another. It
    /// learns nothing.
    pub(crate) async fn create_tunnel(
        &self,
        name: &InterfaceName,
        namespace: impl AsFd,
        tunnel: Tunnel,
        mtu: u32,
    ) -> io::Result<()> {
        let message = LinkVxlan::new(name.as_str(), tunnel.vni)
            .local(tunnel.local)
            .port(tunnel.port)
            .learning(false)
            .append_info_data(InfoVxlan::Localbypass(tunnel.bypasses))
            .mtu(mtu)
            .setns_by_fd(namespace.as_fd().as_raw_fd())
            .build();
        self.handle.link().add(message).execute().await.map_err(cause)
    }

    /// Whether tunnels can be told to leave frames for other tunnels of the host in packets ([`Tunnel::bypasses`]): found out by
    /// making one, in a namespace that goes.
    pub(crate) async fn spares_local(&self) -> io::Result<bool> {
        let tunnel = Tunnel::new(1, Ipv4Addr::LOCALHOST, TRIAL_PORT);
        let message = LinkVxlan::new("skvx0", tunnel.vni)
            .local(tunnel.local)
            .port(tunnel.port)
            .append_info_data(InfoVxlan::Localbypass(false))
            .build();
        self.handle.link().add(message).execute().await.map_err(cause)?;
        let links = collect(self.handle.link().get().execute()).await?;
        let infos = links.iter().flat_map(|link| &link.attributes);
        // A kernel that does not know it does not show it.
        Ok(infos.into_iter().any(|attribute| {
            let LinkAttribute::LinkInfo(infos) = attribute else { return false };
            infos.iter().any(|info| {
                matches!(info, LinkInfo::Data(InfoData::Vxlan(data))
                    if data.contains(&InfoVxlan::Localbypass(false)))
            })
        }))
    }

    /// Makes an interface of WireGuard's whose packets leave in this namespace, and which stands in another if one is given.
    pub(crate) async fn create_wire(
        &self,
        name: &InterfaceName,
        namespace: Option<&OwnedFd>,
    ) -> io::Result<()> {
        let message = LinkWireguard::new(name.as_str());
        let message = match namespace {
            Some(namespace) => message.setns_by_fd(namespace.as_raw_fd()),
            None => message,
        };
        self.handle.link().add(message.build()).execute().await.map_err(cause)
    }

    /// Takes an interface to another namespace, where it is down.
    pub(crate) async fn take_to(&self, index: u32, namespace: impl AsFd) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index);
        let message = message.setns_by_fd(namespace.as_fd().as_raw_fd()).build();
        self.handle.link().change(message).execute().await.map_err(cause)
    }

    /// Makes a pair of interfaces: `here` in this namespace, `there` in another.
    pub(crate) async fn create_pair(
        &self,
        here: &InterfaceName,
        there: &InterfaceName,
        namespace: impl AsFd,
        mtu: u32,
    ) -> io::Result<()> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(there.as_str().to_owned())
            .mtu(mtu)
            .setns_by_fd(namespace.as_fd().as_raw_fd())
            .build();
        let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(here.as_str().to_owned())
            .mtu(mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.handle.link().add(message).execute().await.map_err(cause)
    }

    /// Makes an interface in another namespace that has interface `base` of this one for itself.
    pub(crate) async fn create_passthru(
        &self,
        base: u32,
        name: &InterfaceName,
        namespace: impl AsFd,
    ) -> io::Result<()> {
        let message = LinkMacVlan::new(name.as_str(), base, MacVlanMode::Passthrough)
            .setns_by_fd(namespace.as_fd().as_raw_fd())
            .build();
        self.handle.link().add(message).execute().await.map_err(cause)
    }

    pub(crate) async fn set_mtu(&self, index: u32, mtu: u32) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
        self.handle.link().change(message).execute().await.map_err(cause)
    }

    /// Makes an interface a port of a bridge of this namespace, up, without more.
    pub(crate) async fn enslave(&self, index: u32, bridge: u32) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index).controller(bridge).up().build();
        self.handle.link().change(message).execute().await.map_err(cause)
    }

    /// Makes a port that leads away from this node. Like a tap it neither learns nor is asked: the
    /// bridge answers ARP for who is behind it.
    pub(crate) async fn attach_trunk(
        &self,
        index: u32,
        bridge: u32,
        trunk: Trunk,
    ) -> io::Result<()> {
        self.enslave(index, bridge).await?;
        let floods = trunk == Trunk::Segment;
        let flags = LinkBridgePort::new(index)
            .learning(false)
            .flood(floods)
            .mcast_flood(false)
            .bcast_flood(floods)
            .proxy_arp_wifi(!floods);
        self.handle.link().change(flags.build()).execute().await.map_err(cause)
    }

    /// Static entries of a tunnel: behind which node a MAC address is. `port`: the tunnel's own, of
    /// nodes that have no other.
    pub(crate) async fn tunnel_entries(
        &self,
        index: u32,
        port: u16,
    ) -> io::Result<Vec<([u8; 6], SocketAddrV4)>> {
        let all = self.neighbour_messages(AddressFamily::Bridge).await?;
        let of_tunnel = all.iter().filter(|message| message.header.ifindex == index);
        Ok(of_tunnel.filter_map(|message| tunnel_entry(message, port)).collect())
    }

    /// Puts a MAC address behind a node, at once if it was behind another.
    pub(crate) async fn set_tunnel_entry(
        &self,
        index: u32,
        mac: [u8; 6],
        node: SocketAddrV4,
    ) -> io::Result<()> {
        let mut request = self
            .handle
            .neighbours()
            .add_bridge(index, &mac)
            .state(NeighbourState::Other(STATE_STATIC))
            .flags(NeighbourFlags::Own | NeighbourFlags::Controller)
            .destination(IpAddr::V4(*node.ip()))
            .replace();
        request.message_mut().attributes.push(NeighbourAttribute::Port(node.port()));
        request.execute().await.map_err(cause)
    }

    /// Removes a MAC address from a tunnel and from the bridge; one that is in neither is as good as
    /// removed.
    pub(crate) async fn remove_tunnel_entry(&self, index: u32, mac: [u8; 6]) -> io::Result<()> {
        for part in [NeighbourFlags::Own, NeighbourFlags::Controller] {
            let mut message = NeighbourMessage::default();
            message.header.family = AddressFamily::Bridge;
            message.header.ifindex = index;
            message.header.flags = part;
            message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
            absent_is_fine(self.handle.neighbours().del(message).execute().await)?;
        }
        Ok(())
    }

    /// Permanent neighbours of an interface, of both families.
    pub(crate) async fn known_neighbours(&self, index: u32) -> io::Result<Vec<(IpAddr, [u8; 6])>> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for message in self.neighbour_messages(family).await? {
                let permanent = message.header.state == NeighbourState::Permanent;
                if message.header.ifindex == index && permanent {
                    found.extend(address_of(&message).zip(mac_of(&message)));
                }
            }
        }
        Ok(found)
    }

    pub(crate) async fn set_neighbour(
        &self,
        index: u32,
        address: IpAddr,
        mac: [u8; 6],
    ) -> io::Result<()> {
        let request = self.handle.neighbours().add(index, address);
        request.link_layer_address(&mac).replace().execute().await.map_err(cause)
    }

    /// Tells who has an address, until the kernel finds a reason to ask.
    pub(crate) async fn introduce(
        &self,
        index: u32,
        address: IpAddr,
        mac: [u8; 6],
    ) -> io::Result<()> {
        let request = self.handle.neighbours().add(index, address);
        let request = request.state(NeighbourState::Reachable).link_layer_address(&mac);
        request.replace().execute().await.map_err(cause)
    }

    /// Removes a neighbour of either family; one that is not there is as good as removed.
    pub(crate) async fn forget_neighbour(&self, index: u32, address: IpAddr) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        let (family, address) = match address {
            IpAddr::V4(v4) => (AddressFamily::Inet, NeighbourAddress::Inet(v4)),
            IpAddr::V6(v6) => (AddressFamily::Inet6, NeighbourAddress::Inet6(v6)),
        };
        message.header.family = family;
        message.header.ifindex = index;
        message.attributes.push(NeighbourAttribute::Destination(address));
        absent_is_fine(self.handle.neighbours().del(message).execute().await)
    }

    /// Addresses of an interface, of both families, with their prefix lengths.
    pub(crate) async fn all_addresses(&self, index: u32) -> io::Result<Vec<(IpAddr, u8)>> {
        let messages = self.address_messages(index).await?;
        let local = |attributes: &[AddressAttribute]| {
            let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| {
                attributes.iter().find_map(wanted)
            };
            find(|attribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            })
            .or_else(|| {
                find(|attribute| match attribute {
                    AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                })
            })
        };
        let pair = |message: &rtnetlink::packet_route::address::AddressMessage| {
            Some((local(&message.attributes)?, message.header.prefix_len))
        };
        Ok(messages.iter().filter_map(pair).collect())
    }

    /// Adds an address without asking the neighbours whether it is free.
    pub(crate) async fn set_address(
        &self,
        index: u32,
        address: IpAddr,
        length: u8,
    ) -> io::Result<()> {
        let mut request = self.handle.address().add(index, address, length).replace();
        if address.is_ipv6() {
            let flags = AddressAttribute::Flags(AddressFlags::Nodad);
            request.message_mut().attributes.push(flags);
        }
        request.execute().await.map_err(cause)
    }

    pub(crate) async fn unset_address(&self, index: u32, address: IpAddr) -> io::Result<()> {
        for message in self.address_messages(index).await? {
            let is_it = |attribute: &AddressAttribute| {
                matches!(attribute,
                    AddressAttribute::Local(found) | AddressAttribute::Address(found)
                        if *found == address)
            };
            if message.attributes.iter().any(is_it) {
                absent_is_fine(self.handle.address().del(message).execute().await)?;
            }
        }
        Ok(())
    }

    /// Static IPv4 routes of both tables.
    pub(crate) async fn routes(&self) -> io::Result<Vec<Route>> {
        let filter = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let all = collect(self.handle.route().get(filter).execute()).await?;
        Ok(all.iter().filter_map(route_of).collect())
    }

    pub(crate) async fn set_route(&self, route: Route) -> io::Result<()> {
        let request = self.handle.route().add(route_message(route)).replace();
        request.execute().await.map_err(cause)
    }

    pub(crate) async fn unset_route(&self, route: Route) -> io::Result<()> {
        absent_is_fine(self.handle.route().del(route_message(route)).execute().await)
    }

    /// The interface with this name, with all that is known of it.
    pub(crate) async fn find(&self, name: &str) -> io::Result<Option<Link>> {
        Ok(self.links().await?.into_iter().find(|link| link.name == name))
    }
}

fn route_message(route: Route) -> RouteMessage {
    let (address, length) = route.to;
    let builder = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(address, length)
        .output_interface(route.device)
        .table_id(route.table.into());
    match route.via {
        Some(via) => builder.gateway(via).onlink().build(),
        None => builder.scope(RouteScope::Link).build(),
    }
}

fn route_of(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let is_table_known = [TABLE_MAIN, TABLE_BACK].contains(&header.table);
    let ours = is_table_known && header.protocol == RouteProtocol::Static;
    if !ours || header.address_family != AddressFamily::Inet {
        return None;
    }
    let v4 = |address: &RouteAddress| match address {
        RouteAddress::Inet(v4) => Some(*v4),
        _ => None,
    };
    let mut route = Route {
        to: (Ipv4Addr::UNSPECIFIED, header.destination_prefix_length),
        via: None,
        device: 0,
        table: header.table,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => route.to.0 = v4(address)?,
            RouteAttribute::Gateway(address) => route.via = v4(address),
            RouteAttribute::Oif(index) => route.device = *index,
            _ => {}
        }
    }
    Some(route)
}

fn address_of(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })
}

/// `None` for an entry of a bridge, which has no destination.
fn tunnel_entry(message: &NeighbourMessage, own_port: u16) -> Option<([u8; 6], SocketAddrV4)> {
    let mut port = own_port;
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Port(found) => port = *found,
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(*v4),
            // The family of these messages is that of bridges, so the address comes as bytes.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                let octets: [u8; 4] = bytes.as_slice().try_into().ok()?;
                address = Some(Ipv4Addr::from(octets));
            }
            _ => {}
        }
    }
    Some((mac_of(message)?, SocketAddrV4::new(address?, port)))
}
