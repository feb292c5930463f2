//! A scenario: nodes, network, services and users, and how a run of them goes.
//!
//! [`Scenario`] is what the file says, key by key, with its defaults; [`Scenario::parse`] checks everything that can be
//! wrong and points at the line. The choices that the literature leaves open (A1 to A11 in the planner's documentation)
//! are keys of `[assumptions]` and of the services, each with a stated default.

mod check;
mod error;
mod load;

pub use error::ScenarioError;
pub(crate) use load::Rate;
pub use load::{RatePoint, TracedRequest, parse_trace};

use crate::random::Distribution;
pub(crate) use error::{Key, Problem};
use serde::{Deserialize, Serialize};
use skein_model::{NodeName, ScalingPolicy, ServiceName};

/// Everything a scenario file may say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it is about, one line.
    pub name: String,
    /// How a run goes.
    #[serde(default)]
    pub run: Run,
    /// What the model takes for granted.
    #[serde(default)]
    pub assumptions: Assumptions,
    /// Nodes, at least one.
    pub nodes: Vec<NodeGroup>,
    /// The network between them; without one, transfers take no time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Services, at least one.
    pub services: Vec<Service>,
    /// Users, at least one.
    pub users: Vec<User>,
}

/// How a run goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Run {
    /// Seed of all random streams.
    pub seed: u64,
    /// Independent replications, 1 to 10,000. Confidence intervals need at least 2.
    pub replications: u32,
    /// Simulated time of each replication, seconds.
    pub duration_secs: f64,
    /// What is cut off at the beginning.
    pub warm_up: WarmUp,
    /// Confidence level of the intervals, 0.5 to 0.999.
    pub confidence: f64,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            seed: 1,
            replications: 10,
            duration_secs: 3600.0,
            warm_up: WarmUp::Mser5,
            confidence: 0.95,
        }
    }
}

/// What is cut off at the beginning of a replication, so that the empty start does not count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum WarmUp {
    /// As much as makes the standard error of the rest least (MSER-5), at least a tenth and at most half.
    #[default]
    Mser5,
    /// A fixed time.
    Fixed {
        /// Seconds.
        secs: f64,
    },
    /// Nothing.
    None,
}

/// What the model takes for granted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Assumptions {
    /// A1: how many replicas the chain gives a service. The simulator always asks the policy.
    pub chain_replicas: ChainReplicas,
    /// A2: which requests the failure of a node loses.
    pub failure_loses: FailureLoses,
    /// A3: who repairs.
    pub repair: Repair,
    /// A4: whether `queue_bound` counts the requests in service.
    pub queue_counts: QueueCounts,
    /// A7: where a service can start again when its last replica is gone.
    pub last_replica: LastReplica,
    /// A8: which nodes fail.
    pub failures_hit: FailuresHit,
    /// A9: when background loads and throughputs change.
    pub background_changes: BackgroundChanges,
    /// A10: whether links have throughputs of their own.
    pub throughput_is: ThroughputIs,
}

/// A1: how many replicas the chain gives a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChainReplicas {
    /// Variant C: as many as the policy's thresholds say, with start-up time.
    #[default]
    Policy,
    /// Variant A: one on every working node.
    EveryNode,
    /// Variant B: one more only when the queues of all are full.
    WhenFull,
}

/// A2: which requests the failure of a node loses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureLoses {
    /// None: what was in service goes back to the head of the queue (the live system).
    #[default]
    Nothing,
    /// L1: those that the smaller queue no longer holds.
    Overflow,
    /// L2: those, and the requests in service on the node.
    InService,
    /// L3: the requests in service on the node, and its share of the queue.
    Held,
}

/// A3: who repairs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Repair {
    /// Each node by itself.
    #[default]
    PerNode,
    /// One crew, one node after another.
    SingleCrew,
}

/// A4: what a queue bound counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueCounts {
    /// Requests that wait.
    #[default]
    Waiting,
    /// Requests that wait or are served.
    InSystem,
}

/// A7: where a service can start again when its last replica is gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LastReplica {
    /// Anywhere: its code is kept apart from its replicas (the live system).
    #[default]
    Anywhere,
    /// Only on its initial node.
    InitialNode,
}

/// A8: which nodes fail.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailuresHit {
    /// All.
    #[default]
    AllNodes,
    /// Those with machines on them.
    NodesWithMachines,
}

/// A9: when background loads and throughputs change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackgroundChanges {
    /// Drawn anew for each request (nodes) and each transfer (links).
    #[default]
    EachUse,
    /// Drawn once.
    Never,
}

/// A10: whether links have throughputs of their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThroughputIs {
    /// Each link draws its own.
    #[default]
    PerLink,
    /// One draw holds for all links.
    NetworkWide,
}

/// Nodes of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeGroup {
    /// Name; with a count above 1 the nodes are NAME1, NAME2, ...
    pub name: NodeName,
    /// How many, 1 to 100,000.
    #[serde(default = "one")]
    pub count: u32,
    /// Relative speed of one core; work takes this many times less long.
    #[serde(default = "one_f64")]
    pub performance: f64,
    /// Memory that machines may reserve, MiB.
    #[serde(default = "default_memory")]
    pub memory_mib: u64,
    /// Processor that machines may reserve, thousandths of a core.
    #[serde(default = "default_cpu")]
    pub cpu_milli: u64,
    /// Machines it may hold at most.
    #[serde(default = "default_machines")]
    pub machines_max: u32,
    /// Share of its performance that others use, 0 to below 1.
    #[serde(default = "nothing")]
    pub background: Distribution,
    /// Seconds that such a background load lasts until it is drawn anew, whoever uses the node meanwhile; absent: as
    /// `assumptions.background_changes` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background_lasts_secs: Option<Distribution>,
    /// Seconds that it works until it fails; absent: it never does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_to_failure_secs: Option<Distribution>,
    /// Seconds before its failure from which on a node is known to be failing: it is cordoned, and machines may leave it. 0: nobody
    /// knows.
    #[serde(default)]
    pub failure_warning_secs: f64,
    /// Seconds that a repair takes.
    #[serde(default = "minute")]
    pub time_to_repair_secs: Distribution,
}

const fn one() -> u32 {
    1
}
const fn one_f64() -> f64 {
    1.0
}
const fn default_memory() -> u64 {
    4096
}
const fn default_cpu() -> u64 {
    8000
}
const fn default_machines() -> u32 {
    1000
}
const fn nothing() -> Distribution {
    Distribution::Constant(0.0)
}
const fn minute() -> Distribution {
    Distribution::Constant(60.0)
}

/// The network between the nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Which nodes are linked.
    pub topology: Topology,
    /// Throughput of a link, MiB per second; transfers on a link share it evenly.
    pub throughput_mib_per_sec: Distribution,
    /// Throughput that others use, MiB per second; at least a hundredth of the link is left.
    #[serde(default = "nothing")]
    pub background_mib_per_sec: Distribution,
    /// Time over a link, milliseconds, beside the throughput.
    #[serde(default)]
    pub latency_ms: f64,
}

/// Which nodes are linked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Topology {
    /// Each with each.
    Clique,
    /// Each with the next, the last with the first.
    Ring,
    /// Each with the centre.
    Star {
        /// The centre.
        centre: NodeName,
    },
    /// As listed.
    Explicit {
        /// Pairs of nodes.
        links: Vec<(NodeName, NodeName)>,
    },
}

/// A service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Name.
    pub name: ServiceName,
    /// Where its code is at first; the first node unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_node: Option<NodeName>,
    /// Code that a new replica is sent, MiB.
    #[serde(default)]
    pub code_mib: f64,
    /// State that a new replica is sent, MiB.
    #[serde(default)]
    pub state_mib: f64,
    /// A6: seconds from the arrival of code and state to a ready machine.
    #[serde(default = "start_up")]
    pub start_secs: Distribution,
    /// Requests that one machine serves at a time, 1 to 1,024.
    #[serde(default = "one")]
    pub capacity: u32,
    /// Memory that a machine reserves, MiB.
    #[serde(default = "machine_memory")]
    pub memory_mib: u64,
    /// Processor that a machine reserves, thousandths of a core.
    #[serde(default = "machine_cpu")]
    pub cpu_milli: u64,
    /// When machines come and go, and where: the same keys as of a live service.
    #[serde(default)]
    pub scaling: ScalingPolicy,
    /// Requests that its queue holds, or the queue of each replica; one more is refused.
    #[serde(default = "queue_bound")]
    pub queue_bound: u32,
    /// Whether replicas share a queue.
    #[serde(default)]
    pub queue: QueueKind,
    /// Whether a machine that shall go, or move, may leave a request unfinished.
    #[serde(default)]
    pub interruptible: bool,
    /// What becomes of the work done on a request when its machine goes or moves.
    #[serde(default)]
    pub mobility: Mobility,
}

const fn start_up() -> Distribution {
    Distribution::Constant(0.05)
}
const fn machine_memory() -> u64 {
    16
}
const fn machine_cpu() -> u64 {
    100
}
const fn queue_bound() -> u32 {
    10_000
}

/// Whether replicas share a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueKind {
    /// One queue, `queue_bound` long.
    #[default]
    Shared,
    /// One queue for the service that holds `queue_bound` for each ready replica.
    SharedPerReplica,
    /// A queue in each replica, `queue_bound` long; a dispatcher sends a request to the shortest.
    ShortestOfReplicas,
    /// A queue in each replica; a request goes to any of them, drawn.
    RandomOfReplicas,
    /// A queue in each replica; requests go to them in turn.
    TurnOfReplicas,
}

impl QueueKind {
    /// Whether each replica has a queue of its own.
    pub const fn is_distributed(self) -> bool {
        match self {
            Self::Shared | Self::SharedPerReplica => false,
            Self::ShortestOfReplicas | Self::RandomOfReplicas | Self::TurnOfReplicas => true,
        }
    }
}

/// What becomes of the work done on a request when its machine goes or moves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mobility {
    /// A machine that moves does so at a safe point: between requests; one that is interrupted is done again.
    #[default]
    Weak,
    /// It is kept: an interrupted request goes on where it was, also after the loss of the node, and a machine that moves takes what it
    /// serves along.
    Strong,
}

/// Users of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// Name.
    pub name: String,
    /// How many, 1 to 1,000,000; each has streams of its own.
    #[serde(default = "one")]
    pub count: u32,
    /// Whom they ask.
    pub service: ServiceName,
    /// Where they are; on the first node unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// Seconds from one request of a user to the next.
    pub interval_secs: Distribution,
    /// Seconds of service that a request takes at performance 1.
    pub work_secs: Distribution,
    /// Input of a request, KiB.
    #[serde(default = "nothing")]
    pub input_kib: Distribution,
    /// Output of a request, KiB.
    #[serde(default = "nothing")]
    pub output_kib: Distribution,
    /// How the rate of the requests changes with time, in ascending order; before the first point the factor is 1, and after
    /// the last it stays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rate: Vec<RatePoint>,
    /// After so many seconds `rate` begins again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_period_secs: Option<f64>,
    /// Times of the requests, seconds, in ascending order, instead of intervals; none come after the last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arrivals_secs: Vec<f64>,
    /// A file with the times of the requests instead, and with their sizes if it has them: see [`parse_trace`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrivals_csv: Option<String>,
    /// What that file says.
    #[serde(skip)]
    pub trace: Vec<TracedRequest>,
    /// Whether the interval begins with the answer rather than with the request.
    #[serde(default)]
    pub waits_for_answer: bool,
}

impl User {
    /// Whether its requests come at given times.
    pub const fn is_traced(&self) -> bool {
        !self.arrivals_secs.is_empty() || !self.trace.is_empty()
    }

    /// Makes its requests come so many times as often, 0 excluded.
    pub fn scale_rate(&mut self, factor: f64) {
        self.interval_secs = self.interval_secs.scaled(1.0 / factor);
        self.arrivals_secs.iter_mut().for_each(|at| *at /= factor);
        self.trace.iter_mut().for_each(|request| request.at_secs /= factor);
    }
}

impl Scenario {
    /// Reads a scenario and checks all of it.
    ///
    /// # Errors
    /// [`ScenarioError`] with the line, what is wrong and what would be right.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        Self::parse_with(text, &|_| Err("only a scenario in a file may name others".to_owned()))
    }

    /// As [`Scenario::parse`], of a scenario that may name other files: `read` gives their text, or says why it cannot.
    ///
    /// # Errors
    /// [`ScenarioError`] with the line, what is wrong and what would be right.
    pub fn parse_with(
        text: &str,
        read: &dyn Fn(&str) -> Result<String, String>,
    ) -> Result<Self, ScenarioError> {
        let mut scenario: Self =
            toml::from_str(text).map_err(|error| ScenarioError::syntax(text, &error))?;
        for (at, user) in scenario.users.iter_mut().enumerate() {
            let Some(file) = &user.arrivals_csv else { continue };
            user.trace = read(file).and_then(|text| parse_trace(&text)).map_err(|why| {
                let path = vec![Key::Name("users"), Key::At(at), Key::Name("arrivals_csv")];
                let message = format!("arrivals_csv {file} {why}");
                ScenarioError::at_key(text, Problem { path, message })
            })?;
        }
        scenario.check().map_err(|problem| ScenarioError::at_key(text, problem))?;
        Ok(scenario)
    }

    /// The scenario as a file that [`Scenario::parse`] reads.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }

    /// Nodes in all.
    pub fn node_count(&self) -> usize {
        self.nodes.iter().map(|group| group.count as usize).sum()
    }

    /// The names of all nodes with the index of their group, in the order of their index in a run.
    pub fn node_names(&self) -> Vec<(String, usize)> {
        let mut names = Vec::with_capacity(self.node_count());
        for (group, nodes) in self.nodes.iter().enumerate() {
            match nodes.count {
                1 => names.push((nodes.name.to_string(), group)),
                count => names.extend((1..=count).map(|at| (format!("{}{at}", nodes.name), group))),
            }
        }
        names
    }
}
