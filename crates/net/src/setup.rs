//! Brings what is in a namespace to what a network should be, whatever it finds: nothing, the half
//! of an open that crashed, or a network with running machines. Runs on the namespace's thread.

use crate::error::NetError;
use crate::names::{
    BRIDGE, InterfaceName, NetworkName, PortLabel, UPLINK, VXLAN, WIRE_PREFIX, address_of_tap,
};
use crate::namespace;
use crate::netlink::{Attachment, Link, Netlink};
use crate::network::NetworkSpec;
use crate::port::{Peers, parse_alias};
use skein_model::MacAddr;
use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Abstract address that the owner of a network binds. Such addresses belong to the namespace, so
/// each network has its own, and the kernel frees it when the owner dies.
const OWNER_ADDRESS: &[u8] = b"skein-owner";

/// Switches off IPv6 on what is made from now on: no router solicitations, no multicast reports,
/// and no address by which a machine could reach the host past the rules for IPv4.
const IPV6_SWITCHES: [&str; 2] =
    ["/proc/sys/net/ipv6/conf/all/disable_ipv6", "/proc/sys/net/ipv6/conf/default/disable_ipv6"];

/// Held while this process owns a network.
#[derive(Debug)]
pub(crate) struct Ownership(#[expect(dead_code, reason = "held for its lifetime")] UnixDatagram);

/// A tap of ours with what its alias says.
#[derive(Debug, Clone)]
pub(crate) struct Tap {
    pub(crate) link: Link,
    pub(crate) address: Ipv4Addr,
    pub(crate) mac: MacAddr,
    pub(crate) peers: Peers,
    pub(crate) label: PortLabel,
}

/// Takes the network of the calling thread's namespace for this process.
pub(crate) fn claim(name: &NetworkName) -> Result<Ownership, NetError> {
    let address = SocketAddr::from_abstract_name(OWNER_ADDRESS);
    match address.and_then(|address| UnixDatagram::bind_addr(&address)) {
        Ok(socket) => Ok(Ownership(socket)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Err(NetError::Busy { name: name.clone() })
        }
        Err(source) => Err(failed("claiming", name)(source)),
    }
}

/// Makes the network, or takes over the one that is there with its ports. Returns the index of its
/// bridge.
pub(crate) async fn configure(netlink: &Netlink, spec: &NetworkSpec) -> Result<u32, NetError> {
    silence_ipv6().map_err(failed("switching off IPv6 in", spec.name()))?;
    let links = netlink.links().await.map_err(failed("listing interfaces of", spec.name()))?;
    check_foreign(spec.name(), &links)?;
    let (taps, broken) = sort_taps(spec.name(), &links);
    if spec.managed().is_none() {
        check_range(spec, &taps)?;
    }
    if let Some(loopback) = links.iter().find(|link| link.name == "lo" && !link.is_up) {
        netlink
            .set_up(loopback.index, None)
            .await
            .map_err(failed("starting lo of", spec.name()))?;
    }
    let bridge = configure_bridge(netlink, spec, &links).await?;
    for index in broken {
        netlink.remove_link(index).await.map_err(failed("removing a tap of", spec.name()))?;
    }
    if spec.managed().is_none() {
        repair_ports(netlink, spec, bridge, &taps).await?;
    }
    Ok(bridge)
}

/// The taps of a network; those whose alias was not written yet belong to nobody and are given by
/// index.
pub(crate) fn sort_taps(name: &NetworkName, links: &[Link]) -> (Vec<Tap>, Vec<u32>) {
    let (mut taps, mut broken) = (Vec::new(), Vec::new());
    for link in links {
        let Some(address) = address_of_tap(name, &link.name) else { continue };
        match parse_alias(&link.alias) {
            Some((mac, peers, label)) => {
                taps.push(Tap { link: link.clone(), address, mac, peers, label });
            }
            None => broken.push(link.index),
        }
    }
    (taps, broken)
}

/// Removes everything of ours in the namespace.
pub(crate) async fn clear(netlink: &Netlink, name: &NetworkName) -> Result<(), NetError> {
    let failed = failed("removing interfaces of", name);
    netlink.remove_taps().await.map_err(&failed)?;
    let links = netlink.links().await.map_err(&failed)?;
    let ours = |link: &&Link| {
        [BRIDGE, VXLAN, UPLINK].contains(&link.name.as_str())
            || link.name.starts_with(WIRE_PREFIX)
            || address_of_tap(name, &link.name).is_some()
    };
    for link in links.iter().filter(ours) {
        netlink.remove_link(link.index).await.map_err(&failed)?;
    }
    Ok(())
}

/// An error of the kernel about a whole network.
pub(crate) fn failed(
    action: &'static str,
    name: &NetworkName,
) -> impl Fn(io::Error) -> NetError + use<> {
    let subject = format!("network {name}");
    move |source| match source.kind() {
        io::ErrorKind::PermissionDenied => crate::host::HostError::NotRoot.into(),
        _ => NetError::Netlink { action, subject: subject.clone(), source },
    }
}

/// In the namespace of the calling thread.
pub(crate) fn silence_ipv6() -> io::Result<()> {
    for switch in IPV6_SWITCHES {
        match std::fs::write(switch, "1") {
            // A kernel without IPv6 is silent already.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// Refuses a namespace that somebody else uses. Interfaces that are down do not count: kernels with
/// tunnel drivers put some into every new namespace.
fn check_foreign(name: &NetworkName, links: &[Link]) -> Result<(), NetError> {
    let bridge = InterfaceName::bridge();
    let has_bridge = links.iter().any(|link| link.name == bridge.as_str() && link.is_bridge);
    let foreign = links.iter().find(|link| {
        let known = ["lo", VXLAN, UPLINK].contains(&link.name.as_str())
            || address_of_tap(name, &link.name).is_some();
        let false_bridge = link.name == bridge.as_str() && !link.is_bridge;
        false_bridge || (!has_bridge && link.is_up && !known)
    });
    match foreign {
        None => Ok(()),
        Some(link) => Err(NetError::ExistsForeign {
            path: namespace::path(name),
            interface: link.name.clone(),
        }),
    }
}

fn check_range(spec: &NetworkSpec, taps: &[Tap]) -> Result<(), NetError> {
    match taps.iter().find(|tap| spec.check(tap.address).is_err()) {
        None => Ok(()),
        Some(tap) => Err(NetError::InUse {
            name: spec.name().clone(),
            cidr: spec.cidr(),
            address: tap.address,
        }),
    }
}

async fn configure_bridge(
    netlink: &Netlink,
    spec: &NetworkSpec,
    links: &[Link],
) -> Result<u32, NetError> {
    let failed = failed("making the bridge of", spec.name());
    let name = InterfaceName::bridge();
    let mac = spec.bridge_mac();
    let index = match links.iter().find(|link| link.name == name.as_str()) {
        Some(link) => {
            netlink.set_up(link.index, Some(mac)).await.map_err(&failed)?;
            link.index
        }
        None => {
            netlink.create_bridge(&name, mac).await.map_err(&failed)?;
            let index = netlink.index_of(&name).map_err(&failed)?;
            index.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?
        }
    };
    if let Some(managed) = spec.managed() {
        netlink.set_mtu(index, managed.mtu).await.map_err(&failed)?;
        return Ok(index);
    }
    let wanted = (spec.gateway(), spec.cidr().prefix_len());
    let found = netlink.addresses(index).await.map_err(&failed)?;
    for (address, _) in found.iter().filter(|found| **found != wanted) {
        netlink.remove_address(index, *address).await.map_err(&failed)?;
    }
    if !found.contains(&wanted) {
        netlink.add_address(index, wanted.0, wanted.1).await.map_err(&failed)?;
    }
    Ok(index)
}

/// Puts taps back on the bridge with all that belongs to them, and forgets neighbours without a
/// tap.
async fn repair_ports(
    netlink: &Netlink,
    spec: &NetworkSpec,
    bridge: u32,
    taps: &[Tap],
) -> Result<(), NetError> {
    let failed = failed("taking over ports of", spec.name());
    let forwarding = netlink.forwarding().await.map_err(&failed)?;
    let neighbours = netlink.neighbours(bridge).await.map_err(&failed)?;
    for tap in taps {
        let mac = tap.mac.octets();
        let whole = tap.link.controller == Some(bridge)
            && tap.link.is_up
            && forwarding.iter().any(|entry| entry.port == tap.link.index && entry.mac == mac)
            && neighbours.iter().any(|entry| entry.address == tap.address && entry.mac == mac);
        if !whole {
            netlink.attach(&attachment(tap, bridge)).await.map_err(&failed)?;
        }
    }
    let known: BTreeSet<_> = taps.iter().map(|tap| tap.address).collect();
    for stale in neighbours.iter().filter(|entry| !known.contains(&entry.address)) {
        netlink.remove_neighbour(bridge, stale.address).await.map_err(&failed)?;
    }
    Ok(())
}

fn attachment(tap: &Tap, bridge: u32) -> Attachment {
    Attachment {
        index: tap.link.index,
        bridge,
        alias: tap.link.alias.clone(),
        address: tap.address,
        mac: tap.mac,
        isolated: tap.peers == Peers::Isolated,
        mtu: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, is_up: bool, is_bridge: bool) -> Link {
        let (name, alias) = (name.to_owned(), String::new());
        let (controller, mtu, mac, tunnel) = (None, 1500, [0; 6], None);
        Link {
            index: 1,
            name,
            is_bridge,
            is_guarded: is_bridge,
            is_up,
            controller,
            alias,
            mtu,
            mac,
            tunnel,
        }
    }

    fn check(links: &[Link], foreign: Option<&str>) {
        let name = "demo".parse().unwrap();
        let got = check_foreign(&name, links).map_err(|error| match error {
            NetError::ExistsForeign { interface, .. } => interface,
            other => panic!("{other}"),
        });
        assert_eq!(got.err().as_deref(), foreign, "{links:?}");
    }

    #[test]
    fn tells_a_foreign_namespace_from_a_half_made_one() {
        let (lo, bridge) = (link("lo", true, false), link("skbr0", true, true));
        let tap = InterfaceName::tap(&"demo".parse().unwrap(), Ipv4Addr::new(10, 0, 0, 2));
        let tap = link(tap.as_str(), true, false);
        check(&[], None);
        check(std::slice::from_ref(&lo), None);
        check(&[lo.clone(), link("tunl0", false, false)], None);
        check(&[lo.clone(), tap.clone()], None);
        check(&[lo.clone(), bridge.clone(), tap], None);
        check(&[lo.clone(), bridge, link("debug0", true, false)], None);
        check(&[lo.clone(), link("eth0", true, false)], Some("eth0"));
        check(&[lo.clone(), link("br0", true, true)], Some("br0"));
        check(&[lo, link("skbr0", false, false)], Some("skbr0"));
    }
}
