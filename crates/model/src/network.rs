//! A network: an isolated segment of a project, and the ports of machines in it.

use crate::address::{AddressRange, MacAddr, Prefix6, Subnet};
use crate::machine::{Generation, MachineId};
use crate::name::{GroupName, NetworkName, NodeName, ProjectName, ServiceName};
use crate::service::SpecError;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Octets that the seal of WireGuard adds to each packet between nodes, as its own tools count: header and tag, up to 15 of
/// padding, UDP and IP headers.
pub const WIRE_OVERHEAD: u16 = 80;
/// Octets that VXLAN over IPv4 adds to each frame (RFC 7348, section 5, less the outer Ethernet header and checksum).
pub const VXLAN_OVERHEAD: u16 = 50;
/// Smallest MTU of a network: what IPv6 asks for (RFC 8200, section 5).
pub const MTU_MIN: u16 = 1280;
/// Largest MTU of a network: a jumbo frame of 9,000 octets less the overlay's overhead.
pub const MTU_MAX: u16 = 9000 - VXLAN_OVERHEAD;
/// MTU of a network unless it says otherwise: Ethernet's 1,500 less the overlay's overhead.
pub const MTU_DEFAULT: u16 = 1500 - VXLAN_OVERHEAD;
/// How long an address rests before another machine has it: neighbours have forgotten the old one by then (Linux keeps a
/// stale entry for up to a minute).
pub const ADDRESS_QUARANTINE: Duration = Duration::from_secs(60);

/// Number of a network in the overlay (VXLAN network identifier), 1 to 16,777,215: its identity on every node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl Vni {
    /// The lowest that is given out: smaller ones are left to what an operator sets up himself.
    pub const FIRST: Self = Self(4096);
    /// The highest (24 bits).
    pub const LAST: Self = Self(0xff_ffff);

    /// Checked constructor; none for 0 and beyond 24 bits.
    pub const fn new(number: u32) -> Option<Self> {
        if number == 0 || number > Self::LAST.0 { None } else { Some(Self(number)) }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The one after it among those given out; the first after the last.
    #[must_use]
    pub const fn next(self) -> Self {
        if self.0 < Self::FIRST.0 || self.0 >= Self::LAST.0 {
            Self::FIRST
        } else {
            Self(self.0 + 1)
        }
    }
}

/// A number is no VNI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a VNI: 1 to 16,777,215")]
pub struct VniError;

impl TryFrom<u32> for Vni {
    type Error = VniError;
    fn try_from(number: u32) -> Result<Self, VniError> {
        Self::new(number).ok_or(VniError)
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> u32 {
        vni.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// How a network meets the world outside.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum NetworkKind {
    /// Outwards through its node, with its node's address; inwards by publications.
    #[default]
    Nat,
    /// Not at all.
    Isolated,
    /// By an interface of the node: machines are neighbours of what is there.
    Bridged,
}

impl NetworkKind {
    /// As written in the API and the CLI.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Isolated => "isolated",
            Self::Bridged => "bridged",
        }
    }
}

/// The one node by which a network of kind nat meets the world outside. Without one each node is the way out for its own
/// machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Exit {
    /// Which node. While it is lost, each node is the way out for its own machines.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub node: NodeName,
    /// The address that packets have outside; it must be routed to that node. The node's own unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub address: Option<Ipv4Addr>,
}

/// A way that machines are told besides the one by the gateway (RFC 3442).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Route {
    /// Where to: a range of IPv4 addresses.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub to: AddressRange,
    /// By which address of the network.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub via: Ipv4Addr,
}

/// Routes of one network: with more, an answer of DHCP would not fit one packet.
pub const ROUTES_MAX: usize = 16;

/// What a network is. Absent fields take the stated default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct NetworkSpec {
    /// Its name, unique in its project.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub name: NetworkName,
    /// Its addresses, such as 10.20.0.0/24. The first host address is the gateway's.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub cidr: Subnet,
    /// How it meets the world outside.
    #[serde(default)]
    pub kind: NetworkKind,
    /// Its IPv6 addresses, a prefix of 64 bits; none unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub ipv6: Option<Prefix6>,
    /// Largest packet, octets, 1,280 to 8,950.
    #[serde(default = "default_mtu")]
    pub mtu: u16,
    /// Resolvers that machines are told, at most 3. Unless given, the gateway, which answers for the names of the cloud and
    /// asks its node's resolvers for others (in a network of kind nat).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schema(value_type = Vec<String>))]
    pub resolvers: Vec<Ipv4Addr>,
    /// Ways besides the one by the gateway, at most 16, told to machines that ask by DHCP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// The interface of each node that a bridged network is attached to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The one node by which a network of kind nat meets the world outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
}

const fn default_mtu() -> u16 {
    MTU_DEFAULT
}

/// Whether nodes encrypt what they send each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Encryption {
    /// It leaves as it is.
    #[default]
    Off,
    /// WireGuard seals it.
    WireGuard,
}

impl NetworkSpec {
    /// Of the name and addresses given, and the default for the rest.
    pub const fn new(name: NetworkName, cidr: Subnet) -> Self {
        Self {
            name,
            cidr,
            kind: NetworkKind::Nat,
            ipv6: None,
            mtu: MTU_DEFAULT,
            resolvers: Vec::new(),
            routes: Vec::new(),
            interface: None,
            exit: None,
        }
    }

    /// The network that every project has from its beginning: `default`, 10.64.0.0/16, kind nat. Projects do not see each
    /// other, so that all may have the same addresses.
    #[expect(clippy::missing_panics_doc, reason = "the constants are a network")]
    pub fn first() -> Self {
        let cidr = Subnet::new(Ipv4Addr::new(10, 64, 0, 0), 16).expect("a constant network");
        Self::new(NetworkName::default(), cidr)
    }

    /// Largest packet of its machines, octets. Where what nodes send each other is encrypted, the seal takes its part of each
    /// packet that may cross nodes: [`WIRE_OVERHEAD`], but never below [`MTU_MIN`].
    pub fn packet_max(&self, between_nodes: Encryption) -> u16 {
        match (between_nodes, self.kind) {
            (Encryption::Off, _) | (Encryption::WireGuard, NetworkKind::Bridged) => self.mtu,
            (Encryption::WireGuard, NetworkKind::Nat | NetworkKind::Isolated) => {
                self.mtu.saturating_sub(WIRE_OVERHEAD).max(MTU_MIN)
            }
        }
    }

    /// Checks every range that the types do not.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn check(&self) -> Result<(), SpecError> {
        let wrong = |field, problem: &str| Err(SpecError { field, problem: problem.to_owned() });
        if !(MTU_MIN..=MTU_MAX).contains(&self.mtu) {
            let problem = format!("is {}: must be {MTU_MIN} to {MTU_MAX}", self.mtu);
            return Err(SpecError { field: "mtu", problem });
        }
        // Shared address space (RFC 6598).
        let differing = self.cidr.network().to_bits() ^ Ipv4Addr::new(100, 64, 0, 0).to_bits();
        if differing >> (32 - u32::from(self.cidr.prefix_len().min(10))) == 0 {
            return wrong(
                "cidr",
                "must not be of 100.64.0.0/10, of which nodes take their own addresses",
            );
        }
        if self.resolvers.len() > 3 {
            return wrong("resolvers", "must be at most 3");
        }
        if self.resolvers.iter().any(|at| at.is_unspecified() || at.is_multicast()) {
            return wrong("resolvers", "must be addresses of hosts");
        }
        if self.kind == NetworkKind::Isolated && !self.resolvers.is_empty() {
            return wrong("resolvers", "cannot be reached from an isolated network");
        }
        if self.routes.len() > ROUTES_MAX {
            return wrong("routes", "must be at most 16");
        }
        let odd = |route: &Route| route.to.network().is_ipv6() || !self.cidr.is_host(route.via);
        if self.routes.iter().any(odd) {
            return wrong("routes", "must lead to IPv4 addresses by an address of the network");
        }
        if self.exit.is_some() && self.kind != NetworkKind::Nat {
            return wrong("exit", "is only for a network of kind nat");
        }
        match (self.kind, &self.interface) {
            (NetworkKind::Bridged, None) => {
                wrong("interface", "must name the nodes' interface of a bridged network")
            }
            (NetworkKind::Bridged, Some(name)) if !is_interface(name) => {
                wrong("interface", "must be 1 to 15 characters without '/', ':' or blanks")
            }
            (NetworkKind::Nat | NetworkKind::Isolated, Some(_)) => {
                wrong("interface", "is only for a bridged network")
            }
            _ => Ok(()),
        }
    }
}

/// Whether Linux could have an interface of that name (`dev_valid_name`).
fn is_interface(name: &str) -> bool {
    let bytes = name.as_bytes();
    (1..=15).contains(&bytes.len())
        && name != "."
        && name != ".."
        && bytes.iter().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':'))
}

/// A network as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// Owner.
    pub project: ProjectName,
    /// What it is.
    pub spec: NetworkSpec,
    /// Its number in the overlay; not given to another network until all others have been.
    pub vni: Vni,
    /// When it was created.
    pub created_at: Timestamp,
}

/// Bounds on what a port sends and receives; absent ones do not bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Limits {
    /// What the machine sends, bits per second, 8,000 to 10^12.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_bits: Option<u64>,
    /// What the machine sends, packets per second, 1 to 10^9.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_packets: Option<u64>,
    /// What the machine receives, bits per second, 8,000 to 10^12.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress_bits: Option<u64>,
    /// What the machine receives, packets per second, 1 to 10^9.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress_packets: Option<u64>,
}

impl Limits {
    /// Checks the ranges stated at the fields.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn check(&self) -> Result<(), SpecError> {
        let bits = 8_000..=1_000_000_000_000;
        let packets = 1..=1_000_000_000;
        let within = |field, value: Option<u64>, range: &std::ops::RangeInclusive<u64>| match value
        {
            Some(value) if !range.contains(&value) => {
                let problem = format!("is {value}: must be {} to {}", range.start(), range.end());
                Err(SpecError { field, problem })
            }
            _ => Ok(()),
        };
        within("limits.egress_bits", self.egress_bits, &bits)?;
        within("limits.egress_packets", self.egress_packets, &packets)?;
        within("limits.ingress_bits", self.ingress_bits, &bits)?;
        within("limits.ingress_packets", self.ingress_packets, &packets)
    }

    /// Whether nothing is bounded.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// How the machines of a service are plugged in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Attachment {
    /// The network of its project; `default` unless given.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub name: NetworkName,
    /// The groups whose rules hold for them, at most 16. Without any: closed inwards, open outwards.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schema(value_type = Vec<String>))]
    pub groups: Vec<GroupName>,
    /// Bounds on what each of them sends and receives.
    #[serde(skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    /// The addresses that they have, at most 256 of the network's, and that no other service's machines get. Any free one
    /// unless given; without a free one of these a machine waits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schema(value_type = Vec<String>))]
    pub addresses: Vec<Ipv4Addr>,
    /// How they learn their address.
    pub addressing: Addressing,
}

/// How a machine learns its address. The network decides which one it is either way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Addressing {
    /// As a start parameter: nothing is asked, and nothing is waited for.
    #[default]
    Static,
    /// By DHCP.
    Dhcp,
}

/// Addresses that a service may choose.
pub const ADDRESSES_MAX: usize = 256;
/// Groups that a port may be in.
pub const PORT_GROUPS_MAX: usize = 16;

impl Attachment {
    /// Checks every range that the types do not.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn check(&self) -> Result<(), SpecError> {
        check_groups("network.groups", &self.groups)?;
        let addresses = &self.addresses;
        let twice = addresses.iter().enumerate().any(|(at, ip)| addresses[..at].contains(ip));
        if twice || addresses.len() > ADDRESSES_MAX {
            let problem = format!("must be at most {ADDRESSES_MAX} different addresses");
            return Err(SpecError { field: "network.addresses", problem });
        }
        self.limits.check()
    }
}

/// Checks the groups of a port: not too many, none twice.
///
/// # Errors
/// What is wrong, under the name of `field`.
pub fn check_groups(field: &'static str, groups: &[GroupName]) -> Result<(), SpecError> {
    let twice = groups.iter().enumerate().any(|(at, name)| groups[..at].contains(name));
    if twice || groups.len() > PORT_GROUPS_MAX {
        let problem = format!("must be at most {PORT_GROUPS_MAX} different groups");
        return Err(SpecError { field, problem });
    }
    Ok(())
}

/// A port as it is stored: a machine's plug in a network. Made with the machine by the leader, changed by the server, gone
/// with the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRecord {
    /// Whose it is; also its name.
    pub machine: MachineId,
    /// Owner.
    pub project: ProjectName,
    /// The machine's service.
    pub service: ServiceName,
    /// Where the machine runs.
    pub node: NodeName,
    /// The network.
    pub network: NetworkName,
    /// The network's number.
    pub vni: Vni,
    /// MAC address.
    pub mac: MacAddr,
    /// IPv4 address.
    pub ipv4: Ipv4Addr,
    /// IPv6 address, where the network has a prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Addr>,
    /// Groups of this port instead of those of its service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<GroupName>>,
    /// Bounds of this port instead of those of its service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Version of the record.
    pub generation: Generation,
    /// When it was made.
    pub created_at: Timestamp,
}

/// An address of a network that is not free, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRecord {
    /// Who has it or had it last.
    pub machine: MachineId,
    /// When the machine ended; the address rests from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_at: Option<Timestamp>,
}

impl AddressRecord {
    /// Whether it may be given to another machine.
    pub fn is_rested(&self, now: Timestamp) -> bool {
        self.released_at.is_some_and(|at| now.since(at) >= ADDRESS_QUARANTINE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> NetworkSpec {
        serde_json::from_str(json).expect(json)
    }

    fn check(json: &str, expect: Result<(), &str>) {
        assert_eq!(spec(json).check().map_err(|e| e.field), expect, "{json}");
    }

    #[test]
    fn ranges_are_checked() {
        check(r#"{"name":"web","cidr":"10.20.0.0/24"}"#, Ok(()));
        for (cidr, expect) in [
            ("100.63.0.0/16", Ok(())),
            ("100.128.0.0/24", Ok(())),
            ("100.127.0.0/24", Err("cidr")),
            ("100.64.0.0/24", Err("cidr")),
            ("100.0.0.0/8", Err("cidr")),
        ] {
            check(&format!(r#"{{"name":"web","cidr":"{cidr}"}}"#), expect);
        }
        check(r#"{"name":"web","cidr":"10.20.0.0/24","mtu":1279}"#, Err("mtu"));
        check(r#"{"name":"web","cidr":"10.20.0.0/24","mtu":8951}"#, Err("mtu"));
        check(r#"{"name":"web","cidr":"10.20.0.0/24","kind":"bridged"}"#, Err("interface"));
        check(
            r#"{"name":"web","cidr":"10.20.0.0/24","kind":"bridged","interface":"br/0"}"#,
            Err("interface"),
        );
        check(r#"{"name":"web","cidr":"10.20.0.0/24","kind":"bridged","interface":"br0"}"#, Ok(()));
        check(r#"{"name":"web","cidr":"10.20.0.0/24","interface":"br0"}"#, Err("interface"));
        check(
            r#"{"name":"web","cidr":"10.20.0.0/24","kind":"isolated","resolvers":["9.9.9.9"]}"#,
            Err("resolvers"),
        );
        check(r#"{"name":"web","cidr":"10.20.0.0/24","resolvers":["0.0.0.0"]}"#, Err("resolvers"));
        let route = |to: &str, via: &str| {
            format!(
                r#"{{"name":"web","cidr":"10.20.0.0/24","routes":[{{"to":"{to}","via":"{via}"}}]}}"#
            )
        };
        check(&route("10.0.0.0/8", "10.20.0.9"), Ok(()));
        check(&route("10.0.0.0/8", "10.21.0.9"), Err("routes"));
        check(&route("fd00::/8", "10.20.0.9"), Err("routes"));
    }

    #[test]
    fn what_is_no_network_is_not_read() {
        for bad in [
            r#"{"name":"web","cidr":"10.20.0.1/24"}"#,
            r#"{"name":"Web","cidr":"10.20.0.0/24"}"#,
            r#"{"name":"web"}"#,
            r#"{"name":"web","cidr":"10.20.0.0/24","color":"blue"}"#,
            r#"{"name":"web","cidr":"10.20.0.0/24","ipv6":"fd00::/48"}"#,
        ] {
            assert!(serde_json::from_str::<NetworkSpec>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn vnis_go_round() {
        assert_eq!(Vni::FIRST.next().get(), Vni::FIRST.get() + 1);
        assert_eq!(Vni::LAST.next(), Vni::FIRST);
        assert_eq!(Vni::new(0), None);
        assert_eq!(Vni::new(1 << 24), None);
        assert!(serde_json::from_str::<Vni>("16777216").is_err());
    }

    #[test]
    fn an_address_rests() {
        let machine: MachineId = "web-1".parse().unwrap();
        let at = |s: u64| Timestamp::from_micros(s * 1_000_000);
        let held = AddressRecord { machine, released_at: None };
        assert!(!held.is_rested(at(1_000_000)));
        let resting = AddressRecord { released_at: Some(at(100)), ..held };
        assert!(!resting.is_rested(at(159)));
        assert!(resting.is_rested(at(160)));
    }

    #[test]
    fn the_seal_takes_its_part_of_what_may_cross_nodes() {
        let check = |mtu, kind, expect| {
            let spec = NetworkSpec { mtu, kind, ..NetworkSpec::first() };
            assert_eq!(spec.packet_max(Encryption::Off), mtu);
            assert_eq!(spec.packet_max(Encryption::WireGuard), expect, "{mtu} {kind:?}");
        };
        check(1450, NetworkKind::Nat, 1370);
        check(8950, NetworkKind::Isolated, 8870);
        check(1300, NetworkKind::Nat, 1280);
        check(1500, NetworkKind::Bridged, 1500);
    }
}
