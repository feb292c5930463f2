//! The plan for all services: names in, names out.

use crate::core::{
    Ended, Freshness, Inputs, Load, Move, Node, Replica, ReplicaPhase, Room, Service,
};
use crate::handover::follow;
use crate::memory::{Moving, ServiceMemory};
use crate::reason::{Reason, WaitReason};
use crate::rng::PlanRng;
use crate::scale::Earliest;
use crate::service::{Intent, decide, plan_removed};
use serde::{Deserialize, Serialize};
use skein_model::{
    Addressing, Generation, ImageManifest, MachineGoal, MachineId, MemoryMib, NetworkName,
    NodeName, NodeState, PhaseName, ProjectName, ServiceName, ServiceRecord, Timestamp,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

/// A service of a project: the key of everything that is kept for each service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceKey {
    /// Owner.
    pub project: ProjectName,
    /// Its name there.
    pub service: ServiceName,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.project, self.service)
    }
}

impl From<ServiceKey> for String {
    fn from(key: ServiceKey) -> String {
        key.to_string()
    }
}

/// A text is not `PROJECT/SERVICE`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not PROJECT/SERVICE")]
pub struct ServiceKeyError {
    /// What was given.
    text: String,
}

impl FromStr for ServiceKey {
    type Err = ServiceKeyError;
    fn from_str(text: &str) -> Result<Self, ServiceKeyError> {
        let parse = || {
            let (project, service) = text.split_once('/')?;
            Some(Self { project: project.parse().ok()?, service: service.parse().ok()? })
        };
        parse().ok_or_else(|| ServiceKeyError { text: text.chars().take(140).collect() })
    }
}

impl TryFrom<String> for ServiceKey {
    type Error = ServiceKeyError;
    fn try_from(text: String) -> Result<Self, ServiceKeyError> {
        text.parse()
    }
}

impl From<&ServiceRecord> for ServiceKey {
    fn from(record: &ServiceRecord) -> Self {
        Self { project: record.project.clone(), service: record.spec.name.clone() }
    }
}

/// What is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Desired<'a> {
    /// All services, in any order, each key once.
    pub services: &'a [ServiceRecord],
}

/// What is seen.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// All nodes, in any order, each name once.
    pub nodes: Vec<NodeView>,
    /// Services with machines or work, and services that are wanted and whose image is known. One that is seen
    /// but not wanted was removed.
    pub services: BTreeMap<ServiceKey, ServiceView>,
}

/// A node as it is seen.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeView {
    /// Its name.
    pub name: NodeName,
    /// Whether machines may be placed on it.
    pub state: NodeState,
    /// What it offers to machines.
    pub capacity: Room,
    /// What the machines on it have reserved: all that are not gone, whatever they use.
    pub reserved: Room,
    /// Relative speed of one core; 1.0 is the reference.
    pub performance: f64,
    /// Share of its processors that is used, as its agent measured last, 0 to 1; 0 while nothing was measured.
    pub used: f64,
}

/// A service as it is seen.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServiceView {
    /// What it has to do.
    pub load: Load,
    /// Age of the oldest waiting job.
    pub oldest_wait: std::time::Duration,
    /// Jobs one machine serves at a time: the service's own, else the image's. At least 1.
    pub capacity: u32,
    /// What one machine reserves: memory with the VMM's overhead if the caller counts it, processor, and 1 machine.
    pub room: Room,
    /// What its machines shall run.
    pub revision: Revision,
    /// Its machines that are not gone.
    pub replicas: Vec<ReplicaView>,
    /// Its machines that ended unasked, other than with their node, as long as their records are kept.
    pub ended: Vec<Ended>,
}

/// A machine as it is seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaView {
    /// Its id.
    pub machine: MachineId,
    /// Where it is. A node that is not among the seen ones counts as lost.
    pub node: NodeName,
    /// What is wanted of it.
    pub goal: MachineGoal,
    /// What it is.
    pub phase: PhaseName,
    /// Jobs it serves now.
    pub in_service: u32,
    /// Version of its record.
    pub generation: Generation,
    /// When it became ready; when it was made, until then.
    pub since: Timestamp,
    /// What it runs.
    pub revision: Revision,
}

/// What a machine runs: equal for equal image, memory, capacity, parameters and network.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision of a machine with this image, memory, capacity and parameters in this network: FNV-1a, which is
    /// stable. Names of images and times do not count.
    pub fn of(
        image: &ImageManifest,
        memory: MemoryMib,
        capacity: u32,
        parameters: &BTreeMap<String, String>,
        (network, addressing): (&NetworkName, Addressing),
    ) -> Self {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        // Each field ends with its length, so that no two lists of fields give the same bytes.
        let mut add = |bytes: &[u8]| {
            for byte in bytes.iter().chain(&(bytes.len() as u64).to_le_bytes()) {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        };
        add(image.kernel.digest());
        for module in &image.modules {
            add(module.path.as_bytes());
            add(module.blob.digest());
        }
        add(&image.port.to_le_bytes());
        add(&memory.get().to_le_bytes());
        add(&capacity.to_le_bytes());
        for (key, value) in parameters {
            add(key.as_bytes());
            add(value.as_bytes());
        }
        add(network.as_str().as_bytes());
        add(&[u8::from(addressing == Addressing::Dhcp)]);
        Self(hash)
    }
}

/// What the policy remembers between two plans. Losing it costs a window's worth of averages, no more.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// By service; a service that is neither wanted nor seen is forgotten.
    pub services: BTreeMap<ServiceKey, ServiceMemory>,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// In this order, though none needs another.
    pub steps: Vec<Step>,
    /// One for each service that is wanted, in the order of their keys.
    pub decisions: Vec<Decision>,
    /// For the next plan.
    pub memory: Memory,
    /// When to plan again though nothing happens; always later than now.
    pub next_at: Option<Timestamp>,
}

/// One action. Carrying it out twice is harmless.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// Make the record of a machine, with goal `run`.
    Boot {
        /// Its new id.
        machine: MachineId,
        /// Whose replica.
        service: ServiceKey,
        /// Where.
        node: NodeName,
        /// Version of its record: the first.
        generation: Generation,
        /// The machine whose place it takes once it is ready, which then drains: a migration.
        replaces: Option<Replaced>,
        /// Why, in words.
        reason: String,
    },
    /// Set the goal of a machine to `drain`.
    Drain {
        /// Which.
        machine: MachineId,
        /// Whose replica.
        service: ServiceKey,
        /// Next version of its record.
        generation: Generation,
        /// The copy that took its place: a migration.
        copy: Option<MachineId>,
        /// Why, in words.
        reason: String,
    },
    /// Set the goal of a machine to `stop`. It serves nothing.
    Stop {
        /// Which.
        machine: MachineId,
        /// Whose replica.
        service: ServiceKey,
        /// Next version of its record.
        generation: Generation,
        /// Why, in words.
        reason: String,
    },
    /// Machines are wanted that cannot be had now: nothing to do but to tell.
    Hold {
        /// Whose.
        service: ServiceKey,
        /// How many.
        missing: u32,
        /// Stable code: `CAPACITY_EXHAUSTED`, `STARTS_FAIL` or `IMAGE_UNKNOWN`.
        code: &'static str,
        /// Why, in words.
        reason: String,
    },
}

/// A machine that leaves its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Replaced {
    /// Which.
    pub machine: MachineId,
    /// Its node.
    pub node: NodeName,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boot { machine, node, replaces: Some(left), reason, .. } => {
                write!(f, "move {} to {node} as {machine}: {reason}", left.machine)
            }
            Self::Boot { machine, node, reason, .. } => {
                write!(f, "boot {machine} on {node}: {reason}")
            }
            Self::Drain { machine, reason, .. } => write!(f, "drain {machine}: {reason}"),
            Self::Stop { machine, reason, .. } => write!(f, "stop {machine}: {reason}"),
            Self::Hold { service, missing, reason, .. } => {
                write!(f, "hold {missing} of {service}: {reason}")
            }
        }
    }
}

/// What was decided for a service, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Which.
    pub service: ServiceKey,
    /// Machines it shall have.
    pub wanted: u32,
    /// Machines it has: starting and ready, without those that go.
    pub current: u32,
    /// Why so many; [`Reason::code`] is stable, [`Reason::text`] for people.
    pub reason: Reason,
    /// What it was decided from.
    pub inputs: Inputs,
}

/// Steps that close the gap between what is wanted and what is seen. Same inputs, same plan.
///
/// Services that have nothing running and a job waiting are placed first, then all services one machine at a time
/// in turn, so that none takes all the room that is left.
pub fn plan(
    desired: &Desired<'_>,
    seen: &Observed,
    mut memory: Memory,
    now: Timestamp,
    rng: &mut PlanRng,
) -> Plan {
    let mut cloud = Cloud::new(seen);
    let mut names = Names { seen, taken: BTreeSet::new() };
    let mut plan = Plan::default();
    let mut next = Earliest::default();
    let records: BTreeMap<ServiceKey, &ServiceRecord> =
        desired.services.iter().map(|record| (record.into(), record)).collect();

    for (key, view) in seen.services.iter().filter(|(key, _)| !records.contains_key(key)) {
        let mut moves = vec![];
        plan_removed(&cloud.replicas(view), &cloud.nodes, &mut moves);
        let of = (key, view, &mut vec![]);
        names.write(of, &moves, (&cloud, now), rng, &mut plan.steps);
    }

    let mut works = Vec::with_capacity(records.len());
    for (key, record) in &records {
        let mut remembered = memory.services.remove(key).unwrap_or_default();
        let Some(view) = seen.services.get(key) else {
            plan.steps.push(image_unknown(key, record, now));
            plan.memory.services.insert(key.clone(), remembered);
            continue;
        };
        let mut replicas = cloud.replicas(view);
        let moved = follow(view, &mut replicas, &cloud.nodes, &mut remembered.moving);
        names.hand_over((key, view), &moved, (&remembered.moving, now), &mut plan.steps);
        let service = service_of(record, view, &replicas);
        let intent = decide(&service, &cloud.nodes, &mut remembered, now);
        let mut moves = vec![];
        intent.remove(&service, &cloud.nodes, rng, &mut moves);
        works.push(Work { key, record, view, replicas, intent, moves, memory: remembered });
    }
    place_in_turn(&mut works, &mut cloud.nodes, rng);
    for mut work in works {
        let service = service_of(work.record, work.view, &work.replicas);
        let remember = (&mut work.memory, now);
        let moves = (0, &mut work.moves);
        work.intent.migrate(&service, &mut cloud.nodes, remember, rng, moves);
        let (remember, moves) = ((&mut work.memory, now), (0, &mut work.moves));
        let verdict = work.intent.conclude(&service, &cloud.nodes, remember, rng, moves);
        let of = (work.key, work.view, &mut work.memory.moving);
        names.write(of, &work.moves, (&cloud, now), rng, &mut plan.steps);
        if let Some(at) = verdict.next_at {
            next.add(at, now);
        }
        plan.decisions.push(Decision {
            service: work.key.clone(),
            wanted: verdict.wanted,
            current: verdict.current,
            reason: verdict.reason,
            inputs: verdict.inputs,
        });
        plan.memory.services.insert(work.key.clone(), work.memory);
    }
    plan.next_at = next.0;
    plan
}

/// A service while it is planned.
struct Work<'a> {
    key: &'a ServiceKey,
    record: &'a ServiceRecord,
    view: &'a ServiceView,
    replicas: Vec<Replica>,
    intent: Intent,
    moves: Vec<Move>,
    memory: ServiceMemory,
}

fn service_of<'a>(
    record: &'a ServiceRecord,
    view: &'a ServiceView,
    replicas: &'a [Replica],
) -> Service<'a> {
    Service {
        policy: &record.spec.scaling,
        capacity: view.capacity.max(1),
        room: view.room,
        load: view.load,
        replicas,
        ended: &view.ended,
        revision: view.revision.0,
    }
}

fn place_in_turn(works: &mut [Work<'_>], nodes: &mut [Node], rng: &mut PlanRng) {
    let mut open: Vec<usize> = (0..works.len()).filter(|at| works[*at].intent.boots > 0).collect();
    let starved = |work: &Work<'_>| {
        work.view.load.total() > 0
            && !work.replicas.iter().any(|replica| replica.phase == ReplicaPhase::Ready)
    };
    open.sort_by_key(|at| !starved(&works[*at]));
    while !open.is_empty() {
        open.retain(|at| {
            let Work { record, view, replicas, intent, moves, memory, .. } = &mut works[*at];
            let service = service_of(record, view, replicas);
            intent.boot_one(&service, nodes, memory, rng, (0, moves)) && intent.boots > 0
        });
    }
}

fn image_unknown(key: &ServiceKey, record: &ServiceRecord, now: Timestamp) -> Step {
    let why = WaitReason::ImageUnknown;
    Step::Hold {
        service: key.clone(),
        missing: record.spec.scaling.replicas_min.max(1),
        code: why.code(),
        reason: why.text(now, |_| ""),
    }
}

/// The nodes in the order of their names, and after them one that is lost: that of machines on unknown nodes.
struct Cloud<'a> {
    nodes: Vec<Node>,
    names: Vec<&'a NodeName>,
}

impl<'a> Cloud<'a> {
    fn new(seen: &'a Observed) -> Self {
        let mut views: Vec<&NodeView> = seen.nodes.iter().collect();
        views.sort_by(|a, b| a.name.cmp(&b.name));
        let known = views.iter().map(|view| Node {
            state: view.state,
            capacity: view.capacity,
            reserved: view.reserved,
            performance: view.performance,
            used: view.used,
        });
        let unknown = Node {
            state: NodeState::Lost,
            capacity: Room::default(),
            reserved: Room::default(),
            performance: 0.0,
            used: 0.0,
        };
        let nodes = known.chain([unknown]).collect();
        Self { nodes, names: views.iter().map(|view| &view.name).collect() }
    }

    fn replicas(&self, view: &ServiceView) -> Vec<Replica> {
        let index = |name: &NodeName| self.names.binary_search(&name).unwrap_or(self.names.len());
        view.replicas
            .iter()
            .map(|replica| Replica {
                node: index(&replica.node),
                phase: phase_of(replica.goal, replica.phase),
                in_service: replica.in_service,
                since: replica.since,
                freshness: if replica.revision == view.revision {
                    Freshness::Current
                } else {
                    Freshness::Outdated
                },
            })
            .collect()
    }

    fn name(&self, node: usize) -> &'a str {
        self.names.get(node).map_or("an unknown node", |name| name.as_str())
    }
}

/// Stops the copy of a machine that goes while it was on its way.
fn no_copy(
    view: &ServiceView,
    (machine, service): (&MachineId, &ServiceKey),
    moving: &mut Vec<Moving>,
) -> Option<Step> {
    let at = moving.iter().position(|pair| pair.machine == *machine)?;
    let copy = moving.swap_remove(at).copy;
    let generation = view.replicas.iter().find(|it| it.machine == copy)?.generation.next();
    let reason = "its machine goes".to_owned();
    Some(Step::Stop { machine: copy, service: service.clone(), generation, reason })
}

/// What is wanted of a machine and what it is, as one phase.
const fn phase_of(goal: MachineGoal, phase: PhaseName) -> ReplicaPhase {
    use PhaseName as P;
    match (goal, phase) {
        (MachineGoal::Stop, _) | (_, P::Stopping | P::Gone) => ReplicaPhase::Ending,
        (MachineGoal::Run, P::Scheduled | P::Booting) => ReplicaPhase::Starting,
        (MachineGoal::Run, P::Ready) => ReplicaPhase::Ready,
        (MachineGoal::Drain, P::Scheduled | P::Booting | P::Ready) => ReplicaPhase::DrainAsked,
        (MachineGoal::Run | MachineGoal::Drain, P::Draining) => ReplicaPhase::Draining,
    }
}

/// Turns moves into steps.
struct Names<'a> {
    seen: &'a Observed,
    /// Ids given in this plan.
    taken: BTreeSet<MachineId>,
}

impl Names<'_> {
    fn write(
        &mut self,
        (key, view, moving): (&ServiceKey, &ServiceView, &mut Vec<Moving>),
        moves: &[Move],
        (cloud, now): (&Cloud<'_>, Timestamp),
        rng: &mut PlanRng,
        out: &mut Vec<Step>,
    ) {
        let known = |replica: usize| {
            let replica = &view.replicas[replica];
            (replica.machine.clone(), replica.generation.next())
        };
        for step in moves {
            let service = key.clone();
            let step = match step {
                Move::Boot { node, reason, place } => Step::Boot {
                    machine: self.fresh_id(&key.service, rng),
                    service,
                    node: cloud.names[*node].clone(),
                    generation: Generation(1),
                    replaces: None,
                    reason: format!(
                        "{}: +1 replica on {} ({place})",
                        reason.text(now),
                        cloud.name(*node)
                    ),
                },
                Move::Migrate { replica, node, reason, place } => {
                    let left = &view.replicas[*replica];
                    let copy = self.fresh_id(&key.service, rng);
                    let (to, machine) = (cloud.name(*node), left.machine.clone());
                    moving.push(Moving { machine: machine.clone(), copy: copy.clone() });
                    Step::Boot {
                        machine: copy,
                        service,
                        node: cloud.names[*node].clone(),
                        generation: Generation(1),
                        reason: format!(
                            "{}: from {} to {to} ({place})",
                            reason.text(now),
                            left.node
                        ),
                        replaces: Some(Replaced { machine, node: left.node.clone() }),
                    }
                }
                Move::Drain { replica, reason } => {
                    let (machine, generation) = known(*replica);
                    let reason = format!("{}: -1 replica", reason.text(now));
                    out.extend(no_copy(view, (&machine, &service), moving));
                    Step::Drain { machine, service, generation, copy: None, reason }
                }
                Move::Stop { replica, reason } => {
                    let (machine, generation) = known(*replica);
                    let reason = reason.text(now).to_string();
                    Step::Stop { machine, service, generation, reason }
                }
                Move::Hold { missing, why } => Step::Hold {
                    service,
                    missing: *missing,
                    code: why.code(),
                    reason: why.text(now, |node| cloud.name(node)),
                },
            };
            out.push(step);
        }
    }

    /// Machines drain whose copies serve.
    fn hand_over(
        &self,
        (key, view): (&ServiceKey, &ServiceView),
        moved: &[usize],
        (moving, now): (&[Moving], Timestamp),
        out: &mut Vec<Step>,
    ) {
        for replica in moved {
            let left = &view.replicas[*replica];
            let pair = moving.iter().find(|pair| pair.machine == left.machine);
            out.push(Step::Drain {
                machine: left.machine.clone(),
                service: key.clone(),
                generation: left.generation.next(),
                copy: pair.map(|pair| pair.copy.clone()),
                reason: Reason::Moved.text(now).to_string(),
            });
        }
    }

    fn fresh_id(&mut self, service: &ServiceName, rng: &mut PlanRng) -> MachineId {
        loop {
            let id = MachineId::new(service, rng.next_u64());
            let used = self.seen.services.iter().any(|(key, view)| {
                key.service == *service && view.replicas.iter().any(|r| r.machine == id)
            });
            if !used && self.taken.insert(id.clone()) {
                return id;
            }
        }
    }
}
