//! The kernel's interface table, in our own words: all of `rtnetlink` that this crate uses is
//! behind here.
//!
//! A [`Netlink`] speaks to the namespace of the thread that opened it. Errors are the kernel's own
//! numbers.

mod overlay;
mod rules;

pub(crate) use overlay::{Route, Trunk, Tunnel};
pub(crate) use rules::{Back, TABLE_BACK, TABLE_MAIN};

use crate::names::InterfaceName;
use futures_util::{Stream, StreamExt};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoBridge, InfoData, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec};
use rustix::net::netdevice::name_to_index;
use rustix::net::{SocketFlags, SocketType, socket_with};
use skein_model::MacAddr;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::time::Duration;
use tokio::task::JoinSet;

/// The group of our taps (`ip link show group 7531`), so that all are removed in one request.
const TAP_GROUP: u32 = 7531;

/// The kernel takes a millisecond at most unless many interfaces change at once.
const CARRIER_WAIT_MAX: Duration = Duration::from_secs(5);
/// A question costs the kernel some 20 microseconds.
const CARRIER_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Frames for the addresses of IEEE 802.1D's reserved block (01:80:c2:00:00:03 to 0f) are bridged like all others. Unbridged, the
/// kernel hands them to the port's own IP stack past every rule of the bridge. The first three addresses cannot be in it.
const RESERVED_BRIDGED: u16 = 0xfff8;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) is_bridge: bool,
    /// A bridge that hands no frame past the rules.
    pub(crate) is_guarded: bool,
    pub(crate) is_up: bool,
    /// Index of the bridge it is a port of.
    pub(crate) controller: Option<u32>,
    /// Free text kept with the interface.
    pub(crate) alias: String,
    /// Bytes of the largest packet.
    pub(crate) mtu: u32,
    pub(crate) mac: [u8; 6],
    /// What kind of tunnel it is, if it is one.
    pub(crate) tunnel: Option<Tunnel>,
}

/// A permanent neighbour: who has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Neighbour {
    pub(crate) address: Ipv4Addr,
    pub(crate) mac: [u8; 6],
}

/// A static forwarding entry: behind which port of a bridge a MAC address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forwarding {
    pub(crate) port: u32,
    pub(crate) mac: [u8; 6],
}

/// How a tap is made a port.
#[derive(Debug, Clone)]
pub(crate) struct Attachment {
    pub(crate) index: u32,
    pub(crate) bridge: u32,
    pub(crate) alias: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) mac: MacAddr,
    pub(crate) isolated: bool,
    /// Bytes; `None`: as the kernel makes it.
    pub(crate) mtu: Option<u32>,
}

/// A netlink socket with the task that drives it.
#[derive(Debug)]
pub(crate) struct Netlink {
    handle: Handle,
    /// Any socket of the namespace, to ask for an index by name.
    lookup: OwnedFd,
    /// Ends with this value.
    _driver: JoinSet<()>,
}

impl Netlink {
    /// Opens a socket in the namespace of the calling thread, whose runtime drives it.
    pub(crate) fn open() -> io::Result<Self> {
        // No multicast group is joined, so the queue of unsolicited messages stays empty.
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let flags = SocketFlags::CLOEXEC;
        let lookup = socket_with(rustix::net::AddressFamily::INET, SocketType::DGRAM, flags, None)?;
        Ok(Self { handle, lookup, _driver: driver })
    }

    /// The index of the interface called `name`; `None` if there is none.
    pub(crate) fn index_of(&self, name: &InterfaceName) -> io::Result<Option<u32>> {
        match name_to_index(&self.lookup, name.as_str()) {
            Ok(index) => Ok(Some(index)),
            Err(rustix::io::Errno::NODEV) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    pub(crate) async fn links(&self) -> io::Result<Vec<Link>> {
        let links = collect(self.handle.link().get().execute()).await?;
        Ok(links.into_iter().map(link).collect())
    }

    /// Makes a bridge that forwards from the first moment, does not take part in spanning trees,
    /// does not track multicast groups and keeps `mac` whatever ports come and go.
    pub(crate) async fn create_bridge(&self, name: &InterfaceName, mac: [u8; 6]) -> io::Result<()> {
        let bridge = LinkBridge::new(name.as_str())
            .address(mac.to_vec())
            .forward_delay(0)
            .mcast_snooping(false)
            .group_fwd_mask(RESERVED_BRIDGED)
            .build();
        self.handle.link().add(bridge).execute().await.map_err(cause)
    }

    /// Makes a bridge hand no frame past the rules.
    pub(crate) async fn guard_bridge(&self, index: u32) -> io::Result<()> {
        let message = LinkMessageBuilder::<LinkBridge>::new_with_info_kind(InfoKind::Bridge)
            .index(index)
            .group_fwd_mask(RESERVED_BRIDGED)
            .build();
        self.handle.link().change(message).execute().await.map_err(cause)
    }

    /// Sets MAC address and state "up" of an existing interface.
    pub(crate) async fn set_up(&self, index: u32, mac: Option<[u8; 6]>) -> io::Result<()> {
        let mut change = LinkUnspec::new_with_index(index).up();
        if let Some(mac) = mac {
            change = change.address(mac.to_vec());
        }
        self.handle.link().change(change.build()).execute().await.map_err(cause)
    }

    /// IPv4 addresses of an interface with their prefix lengths.
    pub(crate) async fn addresses(&self, index: u32) -> io::Result<Vec<(Ipv4Addr, u8)>> {
        let found = self.address_messages(index).await?;
        Ok(found.iter().filter_map(ipv4_of).collect())
    }

    pub(crate) async fn add_address(
        &self,
        index: u32,
        address: Ipv4Addr,
        prefix: u8,
    ) -> io::Result<()> {
        let request = self.handle.address().add(index, IpAddr::V4(address), prefix);
        request.replace().execute().await.map_err(cause)
    }

    pub(crate) async fn remove_address(&self, index: u32, address: Ipv4Addr) -> io::Result<()> {
        for message in self.address_messages(index).await? {
            if ipv4_of(&message).is_some_and(|(found, _)| found == address) {
                self.handle.address().del(message).execute().await.map_err(cause)?;
            }
        }
        Ok(())
    }

    /// Makes a tap a port of a bridge, up, with the forwarding entry and neighbour of its machine.
    /// Repeating it repairs what is missing.
    ///
    /// The port neither learns nor floods: its machine's MAC is known, frames to nobody end here,
    /// and a broadcast wakes no other machine. ARP for a machine is answered by the bridge from its
    /// neighbours (`proxy_arp_wifi`, which unlike `proxy_arp` lets broadcasts of the bridge itself
    /// through). A frame from any other MAC is dropped (`locked`; kernels before 5.18 ignore it).
    pub(crate) async fn attach(&self, port: &Attachment) -> io::Result<()> {
        let link = LinkUnspec::new_with_index(port.index)
            .controller(port.bridge)
            .link_group(TAP_GROUP)
            .alias(port.alias.clone())
            .up();
        let link = match port.mtu {
            Some(mtu) => link.mtu(mtu),
            None => link,
        };
        let flags = LinkBridgePort::new(port.index)
            .learning(false)
            .flood(false)
            .mcast_flood(false)
            .bcast_flood(false)
            .proxy_arp_wifi(true)
            .isolated(port.isolated)
            .locked(true);
        let neighbours = self.handle.neighbours();
        // The kernel takes the requests in this order; sending them together saves the waits in
        // between.
        let done = futures_util::try_join!(
            self.handle.link().change(link.build()).execute(),
            self.handle.link().change(flags.build()).execute(),
            neighbours
                .add_bridge(port.index, &port.mac.octets())
                .state(NeighbourState::Noarp)
                .flags(NeighbourFlags::Controller)
                .replace()
                .execute(),
            neighbours
                .add(port.bridge, IpAddr::V4(port.address))
                .link_layer_address(&port.mac.octets())
                .replace()
                .execute(),
        );
        done.map(|_| ()).map_err(cause)
    }

    /// Waits until an interface carries frames. The kernel notices the first port of a bridge on
    /// a queue of its own, and drops what is sent through the bridge until then: a connection
    /// opened in that moment would wait a second for its first segment to be repeated.
    ///
    /// # Errors
    /// `TimedOut` if that does not happen within [`CARRIER_WAIT_MAX`].
    pub(crate) async fn wait_for_carrier(&self, index: u32) -> io::Result<()> {
        let waiting = async {
            loop {
                let found = collect(self.handle.link().get().match_index(index).execute()).await?;
                let up = LinkAttribute::OperState(State::Up);
                if found.iter().any(|message| message.attributes.contains(&up)) {
                    return Ok(());
                }
                tokio::time::sleep(CARRIER_POLL_INTERVAL).await;
            }
        };
        let answer = tokio::time::timeout(CARRIER_WAIT_MAX, waiting).await;
        answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Permanent IPv4 neighbours of an interface.
    pub(crate) async fn neighbours(&self, index: u32) -> io::Result<Vec<Neighbour>> {
        let all = self.neighbour_messages(AddressFamily::Inet).await?;
        let mut found = Vec::new();
        for message in all {
            let permanent = message.header.state == NeighbourState::Permanent;
            if message.header.ifindex == index && permanent {
                let address = message.attributes.iter().find_map(|attribute| match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(*ip),
                    _ => None,
                });
                found.extend(
                    address.zip(mac_of(&message)).map(|(address, mac)| Neighbour { address, mac }),
                );
            }
        }
        Ok(found)
    }

    /// Removes the neighbour with this address; one that is not there is as good as removed.
    pub(crate) async fn remove_neighbour(&self, index: u32, address: Ipv4Addr) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = index;
        let address = NeighbourAddress::Inet(address);
        message.attributes.push(NeighbourAttribute::Destination(address));
        absent_is_fine(self.handle.neighbours().del(message).execute().await)
    }

    /// Static forwarding entries of all bridges in the namespace.
    pub(crate) async fn forwarding(&self) -> io::Result<Vec<Forwarding>> {
        let all = self.neighbour_messages(AddressFamily::Bridge).await?;
        // Tunnels list entries of their own beside the bridge's.
        let of_bridge = |message: &&NeighbourMessage| {
            let mut attributes = message.attributes.iter();
            attributes.any(|attribute| matches!(attribute, NeighbourAttribute::Controller(_)))
        };
        let fixed = all.iter().filter(of_bridge);
        let fixed = fixed.filter(|message| message.header.state == NeighbourState::Noarp);
        let entry = |message: &NeighbourMessage| {
            mac_of(message).map(|mac| Forwarding { port: message.header.ifindex, mac })
        };
        Ok(fixed.filter_map(entry).collect())
    }

    /// Removes an interface; one that is not there is as good as removed.
    pub(crate) async fn remove_link(&self, index: u32) -> io::Result<()> {
        absent_is_fine(self.handle.link().del(index).execute().await)
    }

    /// Removes all taps that were attached, held or not.
    pub(crate) async fn remove_taps(&self) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Group(TAP_GROUP));
        absent_is_fine(self.handle.link().del_with_message(message).execute().await)
    }

    async fn address_messages(&self, index: u32) -> io::Result<Vec<AddressMessage>> {
        collect(self.handle.address().get().set_link_index_filter(index).execute()).await
    }

    async fn neighbour_messages(&self, family: AddressFamily) -> io::Result<Vec<NeighbourMessage>> {
        collect(self.handle.neighbours().get().set_address_family(family).execute()).await
    }
}

async fn collect<T>(stream: impl Stream<Item = Result<T, rtnetlink::Error>>) -> io::Result<Vec<T>> {
    let mut stream = pin!(stream);
    let mut items = Vec::new();
    while let Some(item) = stream.next().await {
        items.push(item.map_err(cause)?);
    }
    Ok(items)
}

fn link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        is_bridge: false,
        is_guarded: false,
        is_up: message.header.flags.contains(LinkFlags::Up),
        controller: None,
        alias: String::new(),
        mtu: 0,
        mac: [0; 6],
        tunnel: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = alias,
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(bytes) => {
                link.mac = bytes.as_slice().try_into().unwrap_or_default();
            }
            LinkAttribute::LinkInfo(infos) => {
                link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                link.is_guarded = infos.iter().any(is_guard);
                link.tunnel = infos.iter().find_map(|info| match info {
                    LinkInfo::Data(data) => Tunnel::of(data),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

fn is_guard(info: &LinkInfo) -> bool {
    let guard = InfoBridge::GroupFwdMask(RESERVED_BRIDGED);
    matches!(info, LinkInfo::Data(InfoData::Bridge(infos)) if infos.contains(&guard))
}

fn ipv4_of(message: &AddressMessage) -> Option<(Ipv4Addr, u8)> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(ip)) => Some((*ip, message.header.prefix_len)),
        _ => None,
    })
}

fn mac_of(message: &NeighbourMessage) -> Option<[u8; 6]> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    })
}

fn absent_is_fine(result: Result<(), rtnetlink::Error>) -> io::Result<()> {
    use nix::errno::Errno;
    match result.map_err(cause) {
        Err(error)
            if matches!(
                error.raw_os_error().map(Errno::from_raw),
                Some(Errno::ENODEV | Errno::ENOENT | Errno::ESRCH)
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn cause(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}
