//! The firewall: groups of rules. A port may be in several groups; what any of them allows is allowed.
//!
//! Inwards a port is closed but for what a rule allows. Outwards it is open until one of its groups has a rule for that
//! direction, and from then on closed but for what a rule allows. Rules are stateful: what answers is let through.

use crate::address::AddressRange;
use crate::machine::Generation;
use crate::name::{GroupName, ProjectName};
use crate::project::{DESCRIPTION_MAX, HexIdError, hex32};
use crate::service::SpecError;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Rules of one group.
pub const GROUP_RULES_MAX: usize = 256;

/// Name of a rule: 8 hexadecimal digits, unique in its group and never used again. Counters hang on it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RuleId(u32);

impl RuleId {
    /// From random bits.
    pub const fn new(random: u32) -> Self {
        Self(random)
    }

    /// The bits.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl FromStr for RuleId {
    type Err = HexIdError;
    fn from_str(text: &str) -> Result<Self, HexIdError> {
        hex32(text).map(Self)
    }
}

impl TryFrom<String> for RuleId {
    type Error = HexIdError;
    fn try_from(text: String) -> Result<Self, HexIdError> {
        text.parse()
    }
}

impl From<RuleId> for String {
    fn from(id: RuleId) -> String {
        id.to_string()
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which way a connection is opened, seen from the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Direction {
    /// To the machine.
    Ingress,
    /// By the machine.
    Egress,
}

impl Direction {
    /// As written in the API and the CLI.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// What a rule is about.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Protocol {
    /// Every protocol.
    #[default]
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, and ICMPv6 for IPv6.
    Icmp,
}

impl Protocol {
    /// As written in the API and the CLI.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }

    /// Whether it has ports.
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp)
    }
}

/// Ports of TCP or UDP: one (`80`) or a range (`8000-8099`), both ends included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// A text is not a range of ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is neither a port nor a range of ports such as 80 or 8000-8099 (1 to 65535)")]
pub struct PortRangeError {
    text: String,
}

impl PortRange {
    /// Checked constructor; none when empty or with port 0.
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first == 0 || last < first { None } else { Some(Self { first, last }) }
    }

    /// Lowest port.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// Highest port.
    pub const fn last(self) -> u16 {
        self.last
    }

    /// Whether `port` is in it.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl FromStr for PortRange {
    type Err = PortRangeError;
    fn from_str(text: &str) -> Result<Self, PortRangeError> {
        let port = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| text.parse::<u16>().ok()).flatten()
        };
        let range = match text.split_once('-') {
            Some((first, last)) => port(first).zip(port(last)),
            None => port(text).map(|port| (port, port)),
        };
        let range = range.and_then(|(first, last)| Self::new(first, last));
        range.ok_or_else(|| PortRangeError { text: text.chars().take(32).collect() })
    }
}

impl TryFrom<String> for PortRange {
    type Error = PortRangeError;
    fn try_from(text: String) -> Result<Self, PortRangeError> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> String {
        range.to_string()
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl fmt::Debug for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whom a rule lets through: sources inwards, destinations outwards.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Peer {
    /// Everybody.
    #[default]
    Any,
    /// Addresses.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    Cidr(AddressRange),
    /// The ports that are in a group of the same project, wherever they are.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    Group(GroupName),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Cidr(range) => range.fmt(f),
            Self::Group(name) => write!(f, "group {name}"),
        }
    }
}

/// Whether what a rule lets through is written to the log.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum RuleLog {
    /// It is not.
    #[default]
    Off,
    /// Each connection that the rule lets through, by the kernel of the machine's node, a few a second at most.
    Connections,
}

/// What a rule lets through.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct RuleSpec {
    /// Which way.
    pub direction: Direction,
    /// Which protocol; every one unless given.
    #[serde(default)]
    pub protocol: Protocol,
    /// Destination ports, such as 80 or 8000-8099; every one unless given. Only with tcp and udp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub ports: Option<PortRange>,
    /// From whom (ingress) or to whom (egress); everybody unless given.
    #[serde(default)]
    pub peer: Peer,
    /// Whether what it lets through is written to the log.
    #[serde(default)]
    pub log: RuleLog,
}

impl RuleSpec {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// Ports of a protocol that has none.
    pub fn check(&self) -> Result<(), SpecError> {
        if self.ports.is_some() && !self.protocol.has_ports() {
            let problem = format!("cannot be given for protocol {}", self.protocol.as_str());
            return Err(SpecError { field: "ports", problem });
        }
        Ok(())
    }
}

impl fmt::Display for RuleSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.direction {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        };
        write!(f, "{} {}", self.direction.as_str(), self.protocol.as_str())?;
        if let Some(ports) = self.ports {
            write!(f, " {ports}")?;
        }
        write!(f, " {way} {}", self.peer)
    }
}

/// A rule of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Its name.
    pub id: RuleId,
    /// What it lets through.
    #[serde(flatten)]
    pub spec: RuleSpec,
}

/// A group of rules as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// Owner.
    pub project: ProjectName,
    /// Its name, unique in its project.
    pub name: GroupName,
    /// What it is for, in its owner's words; at most 256 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Its rules; the order means nothing.
    pub rules: Vec<Rule>,
    /// Version of the record.
    pub generation: Generation,
    /// When it was created.
    pub created_at: Timestamp,
}

impl GroupRecord {
    /// Checks every range that the types do not.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn check(&self) -> Result<(), SpecError> {
        if self.rules.len() > GROUP_RULES_MAX {
            let problem = format!("must be at most {GROUP_RULES_MAX}");
            return Err(SpecError { field: "rules", problem });
        }
        check_description(&self.description)?;
        self.rules.iter().try_for_each(|rule| rule.spec.check())
    }

    /// The other groups that its rules name.
    pub fn peers(&self) -> impl Iterator<Item = &GroupName> {
        self.rules.iter().filter_map(|rule| match &rule.spec.peer {
            Peer::Group(name) => Some(name),
            Peer::Any | Peer::Cidr(_) => None,
        })
    }
}

/// Checks a description: printable, and not too long.
///
/// # Errors
/// What is wrong with it.
pub fn check_description(text: &str) -> Result<(), SpecError> {
    if text.len() > DESCRIPTION_MAX || text.chars().any(char::is_control) {
        let problem = format!("must be at most {DESCRIPTION_MAX} printable bytes");
        return Err(SpecError { field: "description", problem });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_of_ports_are_checked() {
        let check = |text: &str, expect: Option<(u16, u16)>| {
            let range = text.parse::<PortRange>().ok();
            assert_eq!(range.map(|r| (r.first(), r.last())), expect, "{text}");
        };
        check("80", Some((80, 80)));
        check("8000-8099", Some((8000, 8099)));
        check("1-65535", Some((1, 65535)));
        check("0", None);
        check("80-79", None);
        check("65536", None);
        check("+80", None);
        check("80-", None);
        check("", None);
    }

    #[test]
    fn a_rule_is_read_as_people_write_it() {
        let json =
            r#"{"direction":"ingress","protocol":"tcp","ports":"80","peer":{"group":"web"}}"#;
        let rule: RuleSpec = serde_json::from_str(json).unwrap();
        assert_eq!(rule.to_string(), "ingress tcp 80 from group web");
        assert!(rule.check().is_ok());
        let json = r#"{"direction":"egress","peer":{"cidr":"10.0.0.0/8"}}"#;
        let rule: RuleSpec = serde_json::from_str(json).unwrap();
        assert_eq!(rule.to_string(), "egress any to 10.0.0.0/8");
        let json = r#"{"direction":"ingress","protocol":"icmp","ports":"8"}"#;
        assert!(serde_json::from_str::<RuleSpec>(json).unwrap().check().is_err());
    }

    proptest! {
        #[test]
        fn ranges_are_read_back(a in 1u16.., b in 1u16..) {
            let range = PortRange::new(a.min(b), a.max(b)).unwrap();
            prop_assert_eq!(range.to_string().parse::<PortRange>(), Ok(range));
            prop_assert!(range.contains(a) && range.contains(b));
        }

        #[test]
        fn any_text_is_answered(text in ".{0,20}") {
            let _ = text.parse::<PortRange>();
            let _ = text.parse::<RuleId>();
        }
    }
}
