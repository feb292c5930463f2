//! Wire types of projects, networks, ports, firewall groups and publications.

use crate::types::time_text;
use serde::{Deserialize, Serialize};
use skein_model::{
    Exit, GroupRecord, Limits, NetworkRecord, NetworkSpec, ProjectRecord, Protocol,
    PublicationRecord, PublicationSpec, Route, Rule as StoredRule, RuleSpec, TokenRecord,
};
use std::net::Ipv4Addr;

/// A project: a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Project {
    /// Name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Where its networks of kind nat leave, and under which address, unless they have an exit of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Services.
    pub services: u32,
    /// Machines that have not ended.
    pub machines: u32,
    /// Networks.
    pub networks: u32,
    /// When it was created, RFC 3339.
    pub created_at: String,
}

impl Project {
    /// From what is stored and counted: (services, machines, networks).
    pub fn new(record: &ProjectRecord, counts: (u32, u32, u32)) -> Self {
        Self {
            name: record.name.to_string(),
            description: record.description.clone(),
            exit: record.exit.clone(),
            services: counts.0,
            machines: counts.1,
            networks: counts.2,
            created_at: time_text(record.created_at),
        }
    }
}

/// A project to be created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProjectNew {
    /// Name: a DNS label.
    pub name: String,
    /// What it is for, at most 256 bytes.
    #[serde(default)]
    pub description: String,
}

/// A change of a project. Absent fields stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProjectPatch {
    /// What it is for, at most 256 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Where its networks of kind nat leave, and under which address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// What it shall not have any more; a value that is given too counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clear: Vec<ProjectField>,
}

/// A part of a project that it need not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProjectField {
    /// Where its networks leave.
    Exit,
}

/// A token that opens one project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProjectToken {
    /// What it is called when it is withdrawn.
    pub id: String,
    /// What it opens.
    pub project: String,
    /// What it is for.
    pub description: String,
    /// The secret itself: only in the answer that makes the token, and never again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// When it was made, RFC 3339.
    pub created_at: String,
}

impl ProjectToken {
    /// From what is stored; with the secret when it was just made.
    pub fn new(record: &TokenRecord, secret: Option<String>) -> Self {
        Self {
            id: record.id.to_string(),
            project: record.project.to_string(),
            description: record.description.clone(),
            secret,
            created_at: time_text(record.created_at),
        }
    }
}

/// A token to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TokenNew {
    /// What it is for, at most 256 bytes.
    pub description: String,
}

/// A network: what it is, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Network {
    /// Owner.
    pub project: String,
    /// What it is.
    #[serde(flatten)]
    pub spec: NetworkSpec,
    /// Address of its gateway, on every node alike.
    pub gateway: String,
    /// Number in the overlay.
    pub vni: u32,
    /// Ports in it.
    pub ports: u32,
    /// Addresses that a machine can have at once.
    pub addresses: u32,
    /// Nodes that have a machine in it, by name.
    pub nodes: Vec<String>,
    /// When it was created, RFC 3339.
    pub created_at: String,
}

impl Network {
    /// From what is stored and seen.
    pub fn new(record: &NetworkRecord, ports: u32, nodes: Vec<String>) -> Self {
        Self {
            project: record.project.to_string(),
            spec: record.spec.clone(),
            gateway: record.spec.cidr.gateway().to_string(),
            vni: record.vni.get(),
            ports,
            addresses: record.spec.cidr.machine_count(),
            nodes,
            created_at: time_text(record.created_at),
        }
    }
}

/// A change of a network. Absent fields stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkPatch {
    /// Resolvers that machines are told, at most 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub resolvers: Option<Vec<Ipv4Addr>>,
    /// The one node by which a network of kind nat meets the world outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Ways besides the one by the gateway, at most 16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routes: Option<Vec<Route>>,
    /// Largest packet, octets, 1,280 to 8,950. Less than it was only while no machine is in the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// What it shall not have any more; a value that is given too counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clear: Vec<NetworkField>,
}

/// A part of a network that it need not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkField {
    /// The one node by which it leaves.
    Exit,
    /// Resolvers instead of the gateway.
    Resolvers,
    /// Ways besides the one by the gateway.
    Routes,
}

/// A port: a machine's plug in a network. It has the machine's id for its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Port {
    /// Machine, and name of the port.
    pub machine: String,
    /// Owner.
    pub project: String,
    /// The machine's service.
    pub service: String,
    /// Network.
    pub network: String,
    /// Where the machine runs.
    pub node: String,
    /// MAC address.
    pub mac: String,
    /// IPv4 address.
    pub ipv4: String,
    /// IPv6 address.
    pub ipv6: Option<String>,
    /// Name inside the network.
    pub dns_name: String,
    /// Groups whose rules hold for it.
    pub groups: Vec<String>,
    /// Whether the groups are its own, and not its service's.
    pub groups_own: bool,
    /// Bounds on what it sends and receives.
    pub limits: Limits,
    /// Whether the bounds are its own, and not its service's.
    pub limits_own: bool,
    /// Published ports that lead to it, such as `tcp/8080`.
    pub publications: Vec<String>,
    /// Version.
    pub generation: u64,
}

/// A change of a port. Absent fields stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PortPatch {
    /// Groups of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
    /// Bounds of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Back to the service's: `groups`, `limits`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inherit: Vec<PortField>,
}

/// A part of a port that its service decides unless the port has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PortField {
    /// Groups.
    Groups,
    /// Bounds.
    Limits,
}

/// A group of firewall rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Group {
    /// Owner.
    pub project: String,
    /// Name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// What its members may receive and send.
    pub rules: Vec<Rule>,
    /// Machines whose port is in it.
    pub members: Vec<String>,
    /// Version.
    pub generation: u64,
    /// When it was created, RFC 3339.
    pub created_at: String,
}

impl Group {
    /// From what is stored, and its members.
    pub fn new(record: &GroupRecord, members: Vec<String>) -> Self {
        Self {
            project: record.project.to_string(),
            name: record.name.to_string(),
            description: record.description.clone(),
            rules: record.rules.iter().map(Rule::from).collect(),
            members,
            generation: record.generation.0,
            created_at: time_text(record.created_at),
        }
    }
}

/// A rule of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Rule {
    /// Name.
    pub id: String,
    /// What it lets through.
    #[serde(flatten)]
    pub spec: RuleSpec,
}

impl From<&StoredRule> for Rule {
    fn from(rule: &StoredRule) -> Self {
        Self { id: rule.id.to_string(), spec: rule.spec.clone() }
    }
}

/// A group to be created, or what is to be in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupPut {
    /// Name: a DNS label.
    pub name: String,
    /// What it is for, at most 256 bytes.
    #[serde(default)]
    pub description: String,
    /// What its members may receive and send, at most 256. A rule that is there already keeps its name and its counters.
    #[serde(default)]
    pub rules: Vec<RuleSpec>,
}

/// What a rule let through since the node's agent made its group, over all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RuleCount {
    /// Rule.
    pub id: String,
    /// Connections that it let through.
    pub packets: u64,
    /// Bytes of the packets that opened them.
    pub bytes: u64,
}

/// The counters of a group's rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GroupCounters {
    /// Group.
    pub name: String,
    /// One for each rule.
    pub rules: Vec<RuleCount>,
    /// Nodes that were asked and did not answer: what they counted is missing.
    pub silent: Vec<String>,
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Publication {
    /// Owner.
    pub project: String,
    /// What it is.
    #[serde(flatten)]
    pub spec: PublicationSpec,
    /// Machines that take its connections now.
    pub backends: Vec<String>,
    /// When it was made, RFC 3339.
    pub created_at: String,
}

impl Publication {
    /// From what is stored, and the machines behind it now.
    pub fn new(record: &PublicationRecord, backends: Vec<String>) -> Self {
        Self {
            project: record.project.to_string(),
            spec: record.spec.clone(),
            backends,
            created_at: time_text(record.created_at),
        }
    }
}

/// A packet to be traced: the first of a connection that a machine opens, or that comes from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TraceRequest {
    /// The machine that sends it.
    pub source: String,
    /// Where to: a machine's id, or an address.
    pub destination: String,
    /// Protocol; tcp unless given.
    #[serde(default = "tcp")]
    pub protocol: Protocol,
    /// Destination port; needed for tcp and udp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

const fn tcp() -> Protocol {
    Protocol::Tcp
}

/// What would happen to a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Trace {
    /// Whether it would arrive.
    pub arrives: bool,
    /// What happens to it, in order; the last hop decides.
    pub hops: Vec<TraceHop>,
}

/// One thing that happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TraceHop {
    /// Where.
    pub place: String,
    /// What, in words.
    pub what: String,
    /// The group of the rule that decides here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The rule that decides here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}
