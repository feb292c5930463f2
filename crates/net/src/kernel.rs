//! Looks at what the kernel shows of a network and carries plans out. Runs on threads that live in
//! the namespaces it is about.

use crate::error::NetError;
use crate::names::{BRIDGE, InterfaceName, UPLINK, VXLAN};
use crate::netlink::Netlink;
use crate::plan::{Seen, Step};
use futures_util::StreamExt;
use nix::errno::Errno;
use std::io;

/// Requests on their way to the kernel at a time: enough that it never waits for us, and that
/// answers fit into the socket's queue.
const REQUESTS_UNDERWAY_MAX: usize = 64;

/// Settings of a network's namespace, below `/proc/sys/net`: the first value that is not there is no
/// failure if the kernel does not have the feature.
const SETTINGS: [(&str, &str); 10] = [
    // Bridged packets are shown to the rules of IP, which follow connections.
    ("bridge/bridge-nf-call-iptables", "1"),
    ("bridge/bridge-nf-call-ip6tables", "1"),
    ("bridge/bridge-nf-call-arptables", "0"),
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    // A machine that is told of a better way would go past the rules.
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    // A connection that was cut must not come back by a segment in its middle.
    ("netfilter/nf_conntrack_tcp_loose", "0"),
    // Segments that took the short way were not seen: those that follow may be far ahead.
    ("netfilter/nf_conntrack_tcp_be_liberal", "1"),
];
/// Settings of the bridge; the last ones are for networks with IPv6.
const BRIDGE_SETTINGS: [(&str, &str); 2] =
    [("ipv4/conf/skbr0/rp_filter", "0"), ("ipv4/conf/skbr0/send_redirects", "0")];
const BRIDGE_SETTINGS_6: [(&str, &str); 5] = [
    ("ipv6/conf/skbr0/accept_ra", "0"),
    ("ipv6/conf/skbr0/accept_dad", "0"),
    ("ipv6/conf/skbr0/addr_gen_mode", "1"),
    ("ipv6/conf/skbr0/disable_ipv6", "0"),
    ("ipv6/conf/all/forwarding", "1"),
];

/// Writes the settings of the calling thread's namespace. Repeating it is harmless.
pub(crate) fn settle(has_ipv6: bool) -> io::Result<()> {
    for (name, value) in SETTINGS.iter().chain(&BRIDGE_SETTINGS) {
        set(name, value)?;
    }
    let six = if has_ipv6 { &BRIDGE_SETTINGS_6[..] } else { &[] };
    six.iter().try_for_each(|(name, value)| set(name, value))
}

/// Lets packets pass the node's own namespace.
pub(crate) fn let_through(interface: &InterfaceName) -> io::Result<()> {
    set("ipv4/ip_forward", "1")?;
    set(&format!("ipv4/conf/{interface}/rp_filter"), "0")?;
    // Connections from the node's loopback to what is published leave by this interface.
    set(&format!("ipv4/conf/{interface}/route_localnet"), "1")
}

/// Writes only what differs, so that nobody is woken by it.
fn set(name: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/net/{name}");
    let now = std::fs::read_to_string(&path)?;
    if now.trim() == value { Ok(()) } else { std::fs::write(&path, value) }
}

/// What is there now.
pub(crate) async fn look(netlink: &Netlink, tunnel_port: u16) -> io::Result<Seen> {
    let mut seen = Seen { links: netlink.links().await?, ..Seen::default() };
    let index = |name: &str| seen.link(name).map(|link| link.index);
    let (bridge, tunnel, uplink) = (index(BRIDGE), index(VXLAN), index(UPLINK));
    if let Some(bridge) = bridge {
        seen.addresses = netlink.all_addresses(bridge).await?;
        seen.neighbours = netlink.known_neighbours(bridge).await?;
    }
    // The kernel gives interfaces link-local addresses by itself; those are nobody's business.
    if let Some(uplink) = uplink {
        let all = netlink.all_addresses(uplink).await?;
        seen.uplink_addresses = all.into_iter().filter(|(a, _)| a.is_ipv4()).collect();
    }
    if let Some(tunnel) = tunnel {
        seen.behind = netlink.tunnel_entries(tunnel, tunnel_port).await?;
    }
    seen.forwarding = netlink.forwarding().await?;
    seen.routes = netlink.routes().await?;
    seen.backs = netlink.backs().await?;
    Ok(seen)
}

/// Carries out the steps that are about one namespace, in their order. All are tried; the first
/// failure is told.
pub(crate) async fn carry_out(
    netlink: &Netlink,
    bridge: u32,
    mtu: u32,
    steps: Vec<Step>,
) -> Result<(), NetError> {
    let carried = futures_util::stream::iter(steps).map(|step| async move {
        let failed = failure(&step);
        match carry(netlink, bridge, mtu, step).await {
            Err(error) if !is_gone(&error) => Err(failed(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    });
    let results: Vec<_> = carried.buffered(REQUESTS_UNDERWAY_MAX).collect().await;
    results.into_iter().collect()
}

async fn carry(netlink: &Netlink, bridge: u32, mtu: u32, step: Step) -> io::Result<()> {
    match step {
        // These are made from outside, by who looks after the network.
        Step::MakeBridge | Step::MakeTunnel(_) | Step::MakeUplink => Ok(()),
        Step::Remove(index) => netlink.remove_link(index).await,
        Step::Guard(index) => netlink.guard_bridge(index).await,
        Step::SetMtu { index, mtu } => netlink.set_mtu(index, mtu).await,
        Step::SetUp { index, mac } => netlink.set_up(index, mac).await,
        Step::AttachTrunk { index, trunk } => netlink.attach_trunk(index, bridge, trunk).await,
        Step::RemoveTap(name) => match netlink.index_of(&name)? {
            Some(index) => netlink.remove_link(index).await,
            None => Ok(()),
        },
        Step::AttachTap(_, attach) => netlink.attach(&attach.to_bridge(bridge, mtu)).await,
        Step::SetAddress { index, address, length } => {
            netlink.set_address(index, address, length).await
        }
        Step::UnsetAddress { index, address } => netlink.unset_address(index, address).await,
        Step::SetBehind { index, mac, node } => netlink.set_tunnel_entry(index, mac, node).await,
        Step::UnsetBehind { index, mac } => netlink.remove_tunnel_entry(index, mac).await,
        Step::SetNeighbour { address, mac } => netlink.set_neighbour(bridge, address, mac).await,
        Step::UnsetNeighbour(address) => netlink.forget_neighbour(bridge, address).await,
        Step::SetRoute(route) => netlink.set_route(route).await,
        Step::UnsetRoute(route) => netlink.unset_route(route).await,
        Step::SetBack(back) => netlink.set_back(back).await,
        Step::UnsetBack(back) => netlink.unset_back(back).await,
    }
}

fn failure(step: &Step) -> impl Fn(io::Error) -> NetError + use<> {
    let subject = format!("{step:?}");
    move |source| NetError::Netlink { action: "carrying out", subject: subject.clone(), source }
}

/// An interface that went meanwhile: the next look sees what follows.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ENODEV | Errno::ENXIO))
}
