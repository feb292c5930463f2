//! What server and agents say to each other on the bus. A lost message costs time, never truth.

use serde::{Deserialize, Serialize};
use skein_fabric::{Pattern, Subject};
use skein_model::{
    GroupName, MachineId, NodeName, NodeStatus, ProjectName, Protocol, RuleId, ServiceName, WireKey,
};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A subject of ours.
pub(crate) fn subject(text: &str) -> Subject {
    text.parse().expect("subjects are made of names, which are tokens")
}

/// Subjects of all nodes' reports.
#[expect(clippy::missing_panics_doc, reason = "the pattern is constant")]
pub fn report_pattern() -> Pattern {
    "skein.report.*".parse().expect("a constant pattern")
}

/// Where a node reports its context.
pub fn report_subject(node: &NodeName) -> Subject {
    subject(&format!("skein.report.{node}"))
}

/// Where a node's agent answers requests.
pub fn agent_subject(node: &NodeName) -> Subject {
    subject(&format!("skein.agent.{node}"))
}

/// Where the output of one console session appears, as bytes. An empty message says that it ended.
pub fn console_output_subject(session: &str) -> Subject {
    subject(&format!("skein.console.{session}.out"))
}

/// Where the input of one console session is sent. An empty message keeps the session alive.
pub fn console_input_subject(session: &str) -> Subject {
    subject(&format!("skein.console.{session}.in"))
}

/// Where the bytes of one capture appear, as a file of libpcap. An empty message says that it ended.
pub fn capture_subject(session: &str) -> Subject {
    subject(&format!("skein.capture.{session}"))
}

/// Where the server says that somebody still reads a capture.
pub fn capture_input_subject(session: &str) -> Subject {
    subject(&format!("skein.capture.{session}.alive"))
}

/// Where agents tell of connections that wait for a machine.
pub fn demand_subject(node: &NodeName) -> Subject {
    subject(&format!("skein.demand.{node}"))
}

/// Subjects of all nodes' demands.
#[expect(clippy::missing_panics_doc, reason = "the pattern is constant")]
pub fn demand_pattern() -> Pattern {
    "skein.demand.*".parse().expect("a constant pattern")
}

/// How many connections a node has for each service through publications: those that wait for a machine count like
/// waiting jobs, those that are open like jobs in service. Sent when something changes, and each second while there are
/// any; what is not repeated is forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demand {
    /// Services with connections.
    pub services: Vec<ServiceDemand>,
}

/// The connections of one service on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceDemand {
    /// Owner.
    pub project: ProjectName,
    /// Service.
    pub service: ServiceName,
    /// Connections that wait for a machine.
    pub waiting: u32,
    /// Connections that are open.
    pub open: u32,
}

/// What would happen to a packet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceAnswer {
    /// Whether it would arrive.
    pub arrives: bool,
    /// What happens to it, in order.
    pub hops: Vec<TraceStep>,
}

/// One thing that happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceStep {
    /// Where.
    pub place: String,
    /// What, in words.
    pub what: String,
    /// The rule that decides.
    pub rule: Option<(GroupName, RuleId)>,
}

/// What a rule let through on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleFigures {
    /// Which.
    pub rule: RuleId,
    /// Packets that opened a connection.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What a node reports every two seconds: its own figures and those of its machines. Measured, never used to place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The node.
    pub node: NodeStatus,
    /// Its machines.
    pub machines: Vec<MachineFigures>,
    /// The link of its host's programs; none if it has none, or an older release says so.
    #[serde(default)]
    pub link: Option<LinkFigures>,
}

/// What is counted of the link of a node, since its agent began. The programs write part of it: for looking at, not for billing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkFigures {
    /// Connections: that went over shared memory, over the light protocol, and that have ended without.
    pub connections: [u64; 3],
    /// Bytes over shared memory, over the light protocol, and over TCP where both ends had asked for the link.
    pub bytes: [u64; 3],
    /// How often a program slept for bytes and was woken.
    pub wakeups: u64,
    /// Ends that went back to TCP for good, or were cut, by the reason's word.
    pub steps_back: BTreeMap<String, u64>,
    /// Other nodes that it knows, and those of them that answer.
    pub peers: u32,
    /// See `peers`.
    pub peers_up: u32,
}

/// A connection of two programs that has asked for the link, as one node sees it. Each pair is in the order of the addresses: of
/// the low end and the high one, or from low to high and back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkConnection {
    /// The smaller address.
    pub low: String,
    /// The greater one.
    pub high: String,
    /// Processes that hold the ends; 0: not on this node, or it has not asked.
    pub pids: [u32; 2],
    /// `ring`, `light` or `tcp`.
    pub path: String,
    /// Why it is on TCP; `none` if it is not.
    pub reason: String,
    /// Bytes over ring or light protocol.
    pub ring_bytes: [u64; 2],
    /// Bytes over TCP: since the ends agreed, or all of a connection that never may take another path. Missing if not known.
    pub tcp_bytes: Option<[u64; 2]>,
    /// How often the receiver slept and was woken.
    pub wakeups: [u64; 2],
}

/// What is measured of one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineFigures {
    /// Which.
    pub id: MachineId,
    /// Processor time of its process since it started, seconds.
    pub cpu_seconds: f64,
    /// Share of one core it used since the report before, 0 to 1.
    pub cpu_used: f64,
    /// Resident memory of its process, bytes.
    pub memory_resident_bytes: u64,
    /// Memory in use as the guest reports it, bytes.
    pub memory_guest_bytes: Option<u64>,
    /// Requests served as the guest reports.
    pub requests: Option<u64>,
    /// Jobs in service on it.
    pub in_service: u32,
}

/// What a server asks of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum AgentRequest {
    /// What a machine has written to its console, as far as it is kept.
    Log {
        /// Which.
        machine: MachineId,
    },
    /// Open a console session: its output appears on the session's subject, beginning with what is kept.
    OpenConsole {
        /// Which.
        machine: MachineId,
        /// Name of the session, 128 random bits: whoever knows it may read and write the console.
        session: String,
    },
    /// What would happen to the first packet of a connection that a machine opens.
    Trace {
        /// The machine, of this node.
        machine: MachineId,
        /// Where to.
        destination: IpAddr,
        /// Which protocol.
        protocol: Protocol,
        /// Destination port of TCP or UDP.
        port: Option<u16>,
    },
    /// Have another key for what it sends to other nodes.
    RenewKey,
    /// What the rules of a group let through on this node.
    Counters {
        /// Owner.
        project: ProjectName,
        /// Group.
        group: GroupName,
    },
    /// The connections of a project that have asked for the link on this node.
    Link {
        /// Owner.
        project: ProjectName,
    },
    /// Record what a machine's port sends and receives: the file appears on the session's subject.
    OpenCapture {
        /// Which.
        machine: MachineId,
        /// Name of the session, 128 random bits.
        session: String,
        /// Bytes of each packet.
        snap: u32,
        /// For how long, milliseconds.
        time_ms: u64,
    },
}

/// What an agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum AgentReply {
    /// The console's text. At most 512 KiB: what is older is left out.
    Log {
        /// The text; bytes that are not UTF-8 are replaced.
        text: String,
    },
    /// The session is open.
    Opened,
    /// What would happen.
    Trace {
        /// In detail.
        trace: TraceAnswer,
    },
    /// The key that other nodes know it by now.
    Renewed {
        /// The public one.
        key: WireKey,
    },
    /// What rules let through; none of a group that no port of the node needs.
    Counters {
        /// One for each rule that the node has.
        rules: Vec<RuleFigures>,
    },
    /// Connections.
    Link {
        /// In the order of their addresses.
        connections: Vec<LinkConnection>,
    },
    /// It could not be done.
    Failed {
        /// Why.
        error: AgentError,
    },
}

/// Why an agent could not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "error", rename_all = "snake_case")]
pub enum AgentError {
    /// It has no such machine.
    #[error("the node has no such machine")]
    MachineUnknown,
    /// The machine has ended, or not begun.
    #[error("the machine is not running")]
    NotRunning,
    /// The request cannot be read.
    #[error("the request cannot be read")]
    Malformed,
    /// It does not encrypt.
    #[error("the node does not encrypt what it sends to other nodes")]
    NotEncrypted,
    /// Too many sessions of consoles or captures are open on the node.
    #[error("too many sessions are open on the node")]
    TooManySessions,
    /// The node's network does not do it.
    #[error("{message}")]
    Network {
        /// Why.
        message: String,
    },
}
