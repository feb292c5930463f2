//! What every plan keeps. Property tests, the live controller in debug builds and the simulator ask this
//! module about each plan.

use crate::core::Room;
use crate::plan::{Desired, Observed, Plan, ReplicaView, ServiceKey, ServiceView, Step};
use skein_model::{
    MachineGoal, MachineId, NodeName, NodeState, PhaseName, ScalingPolicy, Timestamp,
};
use std::collections::{BTreeMap, BTreeSet};

/// A rule that a plan breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// An id is given to two machines.
    #[error("machine {0} is named twice")]
    IdTwice(MachineId),
    /// A step concerns a machine that is not there, or not of that service.
    #[error("step for machine {0}, which {1} does not have")]
    UnknownMachine(MachineId, ServiceKey),
    /// Two steps concern one machine.
    #[error("two steps for machine {0}")]
    TwoSteps(MachineId),
    /// A step does not carry a newer generation than the machine has.
    #[error("step for machine {0} does not have a newer generation")]
    OldGeneration(MachineId),
    /// A step concerns a lost node.
    #[error("step for machine {0} on node {1}, which is lost")]
    LostNode(MachineId, NodeName),
    /// A machine is placed on a node that is not ready.
    #[error("machine {0} is placed on node {1}, which is not ready")]
    NotReady(MachineId, NodeName),
    /// A node is given more than it has.
    #[error("node {0} is given more than it has")]
    OverCapacity(NodeName),
    /// A machine that listens is stopped without having drained.
    #[error("machine {0} is stopped before it drained")]
    NotDrained(MachineId),
    /// A busy machine goes although an idle one stays.
    #[error("machine {0} is busy and goes, machine {1} is idle and stays")]
    BusyBeforeIdle(MachineId, MachineId),
    /// A service has more machines than allowed.
    #[error("{0} gets {1} machines, at most {2} are allowed")]
    AboveMaximum(ServiceKey, u32, u32),
    /// A service has fewer machines than it must, and nothing says why.
    #[error("{0} gets {1} machines, at least {2} are wanted")]
    BelowMinimum(ServiceKey, u32, u32),
    /// A service goes to zero while it has something to do or before its grace is over.
    #[error("{0} goes to zero before its grace is over")]
    ZeroTooSoon(ServiceKey),
    /// A job waits, nothing serves it, and nothing says why.
    #[error("a job of {0} waits and nothing starts for it")]
    Starved(ServiceKey),
    /// A wanted service has no decision, or one that does not match its steps.
    #[error("the decision for {0} does not match its steps")]
    Undecided(ServiceKey),
    /// The next plan is asked for in the past.
    #[error("the next plan is not later than this one")]
    NextNotLater,
}

impl Violation {
    /// Stable code of every violation.
    pub const fn code(&self) -> &'static str {
        "PLAN_INVARIANT"
    }
}

/// Everything that a plan made at `now` violates; empty for every plan that [`crate::plan`] makes.
pub fn all(plan: &Plan, desired: &Desired<'_>, seen: &Observed, now: Timestamp) -> Vec<Violation> {
    let mut found = vec![];
    let lost = |name: &NodeName| {
        seen.nodes.iter().find(|node| node.name == *name).is_none_or(|n| n.state == NodeState::Lost)
    };
    steps(plan, seen, &lost, &mut found);
    placements(plan, seen, &mut found);
    for record in desired.services {
        let key = ServiceKey::from(record);
        if let Some(view) = seen.services.get(&key) {
            let after = After::new(plan, &key, view, &lost);
            service(&record.spec.scaling, &key, view, &after, (plan, now), &mut found);
        }
    }
    if plan.next_at.is_some_and(|at| at <= now) {
        found.push(Violation::NextNotLater);
    }
    found
}

fn steps(
    plan: &Plan,
    seen: &Observed,
    lost: &impl Fn(&NodeName) -> bool,
    found: &mut Vec<Violation>,
) {
    let mut ids: BTreeSet<&MachineId> =
        seen.services.values().flat_map(|view| &view.replicas).map(|r| &r.machine).collect();
    let mut touched = BTreeSet::new();
    for step in &plan.steps {
        match step {
            Step::Boot { machine, .. } => {
                if !ids.insert(machine) {
                    found.push(Violation::IdTwice(machine.clone()));
                }
            }
            Step::Drain { machine, service, generation, .. }
            | Step::Stop { machine, service, generation, .. } => {
                let replicas = seen.services.get(service).map(|view| &view.replicas);
                let replica = replicas.and_then(|all| all.iter().find(|r| r.machine == *machine));
                let Some(replica) = replica else {
                    found.push(Violation::UnknownMachine(machine.clone(), service.clone()));
                    continue;
                };
                if !touched.insert(machine) {
                    found.push(Violation::TwoSteps(machine.clone()));
                }
                if *generation <= replica.generation {
                    found.push(Violation::OldGeneration(machine.clone()));
                }
                if lost(&replica.node) {
                    found.push(Violation::LostNode(machine.clone(), replica.node.clone()));
                }
                if matches!(step, Step::Stop { .. }) && !may_stop(replica) {
                    found.push(Violation::NotDrained(machine.clone()));
                }
            }
            Step::Hold { .. } => {}
        }
    }
}

fn may_stop(replica: &ReplicaView) -> bool {
    match replica.phase {
        PhaseName::Scheduled | PhaseName::Booting => true,
        PhaseName::Draining => replica.in_service == 0,
        PhaseName::Ready | PhaseName::Stopping | PhaseName::Gone => false,
    }
}

fn placements(plan: &Plan, seen: &Observed, found: &mut Vec<Violation>) {
    let mut reserved: BTreeMap<&NodeName, Room> = BTreeMap::new();
    for step in &plan.steps {
        let Step::Boot { machine, service, node, .. } = step else { continue };
        let view = seen.nodes.iter().find(|view| view.name == *node);
        let Some(view) = view.filter(|view| view.state == NodeState::Ready) else {
            found.push(Violation::NotReady(machine.clone(), node.clone()));
            continue;
        };
        let needs = seen.services.get(service).map_or(Room::default(), |view| view.room);
        let room = reserved.entry(node).or_insert(view.reserved);
        *room = room.plus(needs);
        if !view.capacity.holds(*room) {
            found.push(Violation::OverCapacity(node.clone()));
        }
    }
}

/// A service once its steps are carried out.
struct After<'a> {
    boots: u32,
    holds: bool,
    /// Machines that were wanted before, with whether they stay.
    live: Vec<(&'a ReplicaView, bool)>,
    /// Machines that go because their copies serve.
    handed_over: Vec<&'a MachineId>,
    rolls: bool,
}

impl<'a> After<'a> {
    fn new(
        plan: &Plan,
        key: &ServiceKey,
        view: &'a ServiceView,
        lost: &impl Fn(&NodeName) -> bool,
    ) -> Self {
        let (mut boots, mut holds) = (0, false);
        let mut gone = BTreeSet::new();
        for step in &plan.steps {
            match step {
                // A copy takes the place of a machine that is counted.
                Step::Boot { service, replaces, .. } if service == key => {
                    boots += u32::from(replaces.is_none());
                }
                Step::Hold { service, .. } if service == key => holds = true,
                Step::Drain { machine, .. } | Step::Stop { machine, .. } => {
                    gone.insert(machine);
                }
                Step::Boot { .. } | Step::Hold { .. } => {}
            }
        }
        let wanted = |replica: &&ReplicaView| {
            replica.goal == MachineGoal::Run
                && replica.phase <= PhaseName::Ready
                && !lost(&replica.node)
        };
        let live = view.replicas.iter().filter(wanted);
        let moving = plan.memory.services.get(key).map_or(&[][..], |memory| memory.moving());
        let copied = |replica: &&ReplicaView| {
            let of = moving.iter().find(|pair| pair.copy == replica.machine);
            of.is_some_and(|pair| {
                let left = view.replicas.iter().find(|it| it.machine == pair.machine);
                left.is_some_and(|left| wanted(&left) && !gone.contains(&left.machine))
            })
        };
        let live: Vec<_> = live
            .filter(|replica| !copied(replica))
            .map(|r| (r, !gone.contains(&r.machine)))
            .collect();
        let moved = |replica: &ReplicaView| moving.iter().any(|it| it.machine == replica.machine);
        let hands_over = live.iter().filter(|(replica, stays)| !stays && moved(replica));
        let handed_over = hands_over.map(|(replica, _)| &replica.machine).collect();
        let rolls = live.iter().any(|(replica, _)| replica.revision != view.revision);
        Self { boots, holds, live, handed_over, rolls }
    }

    fn count(&self) -> u32 {
        self.boots + self.live.iter().filter(|(_, stays)| *stays).count() as u32
    }
}

fn service(
    policy: &ScalingPolicy,
    key: &ServiceKey,
    view: &ServiceView,
    after: &After<'_>,
    (plan, now): (&Plan, Timestamp),
    found: &mut Vec<Violation>,
) {
    let Some(decision) = plan.decisions.iter().find(|decision| decision.service == *key) else {
        found.push(Violation::Undecided(key.clone()));
        return;
    };
    let count = after.count();
    let exact = after.rolls || after.holds || decision.wanted == count;
    if !exact {
        found.push(Violation::Undecided(key.clone()));
    }
    let surge = if after.rolls { (policy.replicas_max / 4).max(1) } else { 0 };
    let max = policy.replicas_max + surge;
    if count > max {
        found.push(Violation::AboveMaximum(key.clone(), count, max));
    }
    let min = policy.replicas_min;
    if count < min && !after.holds {
        found.push(Violation::BelowMinimum(key.clone(), count, min));
    }
    if count == 0 && view.load.total() > 0 && !after.holds {
        found.push(Violation::Starved(key.clone()));
    }
    let goes = after.live.iter().any(|(_, stays)| !stays);
    let idle_since = plan.memory.services.get(key).and_then(|memory| memory.idle_since());
    let moves = !after.handed_over.is_empty();
    let rested = idle_since.is_some_and(|since| since + policy.zero_grace <= now);
    if count == 0 && goes && !rested && !after.rolls && !moves {
        found.push(Violation::ZeroTooSoon(key.clone()));
    }
    busy_before_idle(view, after, found);
}

fn busy_before_idle(view: &ServiceView, after: &After<'_>, found: &mut Vec<Violation>) {
    let current = |replica: &ReplicaView| replica.revision == view.revision;
    for (busy, stays) in &after.live {
        if *stays || busy.in_service == 0 || after.handed_over.contains(&&busy.machine) {
            continue;
        }
        // An outdated machine may go before a current one, whatever they do.
        let idle = after.live.iter().find(|(other, stays)| {
            *stays && other.in_service == 0 && current(other) == current(busy)
        });
        if let Some((idle, _)) = idle {
            let (busy, idle) = (busy.machine.clone(), idle.machine.clone());
            found.push(Violation::BusyBeforeIdle(busy, idle));
        }
    }
}
