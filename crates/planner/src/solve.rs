//! From a scenario to the chain that comes nearest, saying what it leaves out.

use crate::chain::{
    Bound, ChainError, EACH_MAX, Family, NODES_MAX, Replicas, Rule, STATES_MAX, Solution, layouts,
};
use crate::progress::Progress;
use crate::random::Distribution;
use crate::scenario::{
    ChainReplicas, FailureLoses, Key, Mobility, NodeGroup, Problem, QueueKind, Scenario,
    ScenarioError, Service,
};
use serde::Serialize;
use skein_model::{Placement, ScalingRule};
use skein_policy::Thresholds;

/// Why a scenario has no chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SolveError {
    /// Something that a chain cannot have.
    #[error("service {service} has no chain: {why}; simulate instead")]
    NoChain {
        /// Which service.
        service: String,
        /// What stands in the way.
        why: String,
    },
    /// The chain is there and has no answer.
    #[error("service {service}")]
    Chain {
        /// Which service.
        service: String,
        /// Why.
        source: ChainError,
    },
}

impl SolveError {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoChain { .. } => "CHAIN_NONE",
            Self::Chain { source, .. } => source.code(),
        }
    }

    /// Where in the text of its scenario the reason is: the service, and of a chain that is too large its queue's bound.
    pub fn in_text(&self, scenario: &Scenario, text: &str) -> ScenarioError {
        let (name, key) = match self {
            Self::Chain { service, source: ChainError::TooLarge { .. } } => {
                (service, "queue_bound")
            }
            Self::Chain { service, .. } | Self::NoChain { service, .. } => (service, "name"),
        };
        let mut path = vec![Key::Name("services")];
        let is = |service: &Service| service.name.as_str() == name;
        if let Some(at) = scenario.services.iter().position(is) {
            path.extend([Key::At(at), Key::Name(key)]);
        }
        let message = match self {
            Self::NoChain { .. } => self.to_string(),
            Self::Chain { source, .. } => format!("{self}: {source}"),
        };
        ScenarioError::at_key(text, Problem { path, message })
    }
}

/// What was computed of a service.
#[derive(Debug, Clone, Serialize)]
pub struct SolvedService {
    /// Its name.
    pub service: String,
    /// The figures.
    pub solution: Solution,
    /// What the chain leaves out, in words.
    pub left_out: Vec<String>,
}

/// What was computed of a scenario.
#[derive(Debug, Clone, Serialize)]
pub struct SolveReport {
    /// Name of the scenario.
    pub scenario: String,
    /// The first seconds that the figures are means of; none: those of the long run.
    pub over_secs: Option<f64>,
    /// Each service.
    pub services: Vec<SolvedService>,
}

/// Solves the chain of each service of a scenario.
///
/// # Errors
/// A service has no chain, its chain has no certified answer, or it was stopped before.
pub fn solve(scenario: &Scenario, progress: &Progress) -> Result<SolveReport, SolveError> {
    solve_each(scenario, None, &|family| family.solve_unless_stopped(progress))
}

/// The mean measures of each service over the first `secs` seconds of a scenario that begins empty, from the chain's transient
/// states.
///
/// # Errors
/// A service has no chain, its chain would take too many steps, or it was stopped.
pub fn solve_over(
    scenario: &Scenario,
    secs: f64,
    progress: &Progress,
) -> Result<SolveReport, SolveError> {
    solve_each(scenario, Some(secs), &|family| family.solve_over(secs, progress))
}

fn solve_each(
    scenario: &Scenario,
    over_secs: Option<f64>,
    solve: &dyn Fn(&Family) -> Result<Solution, ChainError>,
) -> Result<SolveReport, SolveError> {
    let services = scenario.services.iter().map(|service| {
        let name = service.name.to_string();
        let (family, left_out) = family_of(scenario, service)?;
        match solve(&family) {
            Ok(solution) => Ok(SolvedService { service: name, solution, left_out }),
            Err(source) => Err(SolveError::Chain { service: name, source }),
        }
    });
    Ok(SolveReport {
        scenario: scenario.name.clone(),
        over_secs,
        services: services.collect::<Result<_, _>>()?,
    })
}

/// The chain of a service, and what it leaves out.
///
/// # Errors
/// [`SolveError::NoChain`].
pub fn family_of(
    scenario: &Scenario,
    service: &Service,
) -> Result<(Family, Vec<String>), SolveError> {
    Mapping { scenario, service, left_out: vec![] }.family()
}

struct Mapping<'a> {
    scenario: &'a Scenario,
    service: &'a Service,
    left_out: Vec<String>,
}

impl Mapping<'_> {
    fn none<T>(&self, why: &str) -> Result<T, SolveError> {
        let service = self.service.name.to_string();
        Err(SolveError::NoChain { service, why: why.to_owned() })
    }

    fn leave_out(&mut self, what: impl Into<String>) {
        self.left_out.push(what.into());
    }

    /// Mean of a distribution that the chain takes as exponential.
    fn mean(&mut self, what: &str, of: &Distribution) -> f64 {
        if of.exponential_mean().is_none() && of.mean() > 0.0 {
            self.leave_out(format!("{what}: exponential with the same mean instead"));
        }
        of.mean()
    }

    fn family(mut self) -> Result<(Family, Vec<String>), SolveError> {
        let (arrival, work) = self.load()?;
        let speed = self.speed();
        let (failure, repair) = self.failures();
        let mut nodes = self.scenario.node_count() as u32;
        let mut replicas = self.replicas()?;
        if let Replicas::Policy { max, start, each, .. } = &mut replicas {
            if failure == 0.0 {
                // Where nothing fails, nodes matter by their room only.
                nodes = nodes.max(*max);
            } else if *max > 1 {
                *each = self.machines_on_a_node(nodes, *max, start.is_some());
            }
        }
        if nodes > 65_535 {
            return self.none("it has more than 65535 nodes");
        }
        self.other_things();
        let bound = match self.service.queue {
            QueueKind::Shared => Bound::All,
            QueueKind::SharedPerReplica => Bound::Each,
            _ => {
                self.leave_out("queues in the replicas: one queue of the same length instead");
                Bound::Each
            }
        };
        if self.service.capacity > 1 && !matches!(replicas, Replicas::Policy { .. }) {
            return self.none("variants A and B have replicas that serve one request at a time");
        }
        let assumptions = &self.scenario.assumptions;
        let family = Family {
            nodes,
            queue: self.service.queue_bound,
            bound,
            counts: assumptions.queue_counts,
            capacity: self.service.capacity,
            arrival,
            service: speed / work,
            failure,
            repair,
            crew: assumptions.repair,
            loses: assumptions.failure_loses,
            replicas,
        };
        Ok((family, self.left_out))
    }

    /// Arrivals per second, and mean seconds of work.
    fn load(&mut self) -> Result<(f64, f64), SolveError> {
        let (mut arrival, mut work) = (0.0, 0.0);
        let users: Vec<_> =
            self.scenario.users.iter().filter(|user| user.service == self.service.name).collect();
        for user in &users {
            if user.waits_for_answer || user.is_traced() || !user.rate.is_empty() {
                return self.none(
                    "a user waits for answers, comes at given times or at a rate that changes",
                );
            }
            let interval = self.mean(&format!("intervals of {}", user.name), &user.interval_secs);
            let rate = f64::from(user.count) / interval;
            arrival += rate;
            work += rate * self.mean(&format!("work of {}", user.name), &user.work_secs);
        }
        if users.iter().any(|user| user.work_secs.mean() != users[0].work_secs.mean()) {
            self.leave_out("different work of different users: their mean instead");
        }
        if arrival <= 0.0 || work <= 0.0 {
            return self.none("nobody asks for anything that takes time");
        }
        Ok((arrival, work / arrival))
    }

    fn speed(&mut self) -> f64 {
        let groups = &self.scenario.nodes;
        let speed = |at: usize| groups[at].performance * (1.0 - groups[at].background.mean());
        let all: f64 = (0..groups.len()).map(|at| speed(at) * f64::from(groups[at].count)).sum();
        if (1..groups.len()).any(|at| speed(at) != speed(0)) {
            self.leave_out("different speeds of nodes: their mean instead");
        }
        if groups.iter().any(|group| !matches!(group.background, Distribution::Constant(_))) {
            self.leave_out("random background loads: their means instead");
        }
        all / self.scenario.node_count() as f64
    }

    /// Rates of failure and repair of one node.
    fn failures(&mut self) -> (f64, f64) {
        let groups = &self.scenario.nodes;
        let (mut failure, mut repair, mut nodes) = (0.0, 0.0, 0.0);
        for group in groups {
            let count = f64::from(group.count);
            nodes += count;
            if let Some(time) = &group.time_to_failure_secs {
                failure += count / self.mean(&format!("failures of {}", group.name), time);
                let repairs = format!("repairs of {}", group.name);
                repair += count / self.mean(&repairs, &group.time_to_repair_secs);
            } else {
                repair += count / group.time_to_repair_secs.mean();
            }
        }
        let alike = |at: usize| {
            let mean = |of: &Option<Distribution>| of.as_ref().map(Distribution::mean);
            mean(&groups[at].time_to_failure_secs) == mean(&groups[0].time_to_failure_secs)
        };
        if !(1..groups.len()).all(alike) {
            self.leave_out("different failures of nodes: their mean rate instead");
        }
        (failure / nodes, repair / nodes)
    }

    fn replicas(&mut self) -> Result<Replicas, SolveError> {
        match self.scenario.assumptions.chain_replicas {
            ChainReplicas::EveryNode => return Ok(Replicas::EveryNode),
            ChainReplicas::WhenFull => return Ok(Replicas::WhenFull),
            ChainReplicas::Policy => {}
        }
        let scaling = &self.service.scaling;
        let max = scaling.replicas_max.min(self.machines_that_fit());
        let min = scaling.replicas_min.min(max);
        let rule = match scaling.rule {
            ScalingRule::Thresholds { replicate_above, dereplicate_at, scope } => {
                Thresholds { replicate_above, dereplicate_at, scope }
            }
            // The number never changes: any rule does.
            _ if min == max => Thresholds {
                replicate_above: 1,
                dereplicate_at: 0,
                scope: skein_model::ThresholdScope::Service,
            },
            ScalingRule::Concurrency { .. }
            | ScalingRule::Hpa(_)
            | ScalingRule::Kpa(_)
            | ScalingRule::Predictive(_) => {
                return self.none("its rule averages over windows; thresholds have a chain");
            }
        };
        if min < max {
            if !scaling.cooldown.is_zero() {
                self.leave_out("the cool-down");
            }
            if min == 0 {
                self.leave_out("the grace before zero: the last replica goes at once");
            }
            if scaling.warm > 0 {
                self.leave_out("the warm pool");
            }
        }
        let start = self.mean("start-up time", &self.service.start_secs);
        let start = (start > 0.0).then(|| 1.0 / start);
        Ok(Replicas::Policy { rule: Rule::Thresholds(rule), min, max, start, each: 1 })
    }

    /// Machines of the service that one node has room for, where nodes fail and the chain can tell them apart; else one.
    fn machines_on_a_node(&mut self, nodes: u32, max: u32, starts: bool) -> u32 {
        let rooms: Vec<u64> = self.scenario.nodes.iter().map(|group| self.room_on(group)).collect();
        let least = rooms.iter().min().copied().unwrap_or(1);
        let each = u32::try_from(least).unwrap_or(u32::MAX).clamp(1, max);
        if self.machines_that_fit() <= nodes {
            return 1;
        }
        let states = layouts(nodes, max, each, starts)
            .saturating_mul(u64::from(self.service.queue_bound) + 1);
        if nodes.min(max) > NODES_MAX || each > EACH_MAX || states > STATES_MAX as u64 {
            self.leave_out(
                "replicas that share nodes, for there are too many ways to share them: each has one of its own, so that there are no more than nodes at work",
            );
            return 1;
        }
        if rooms.iter().any(|room| *room != least) {
            self.leave_out("the greater room of some nodes: each has that of the smallest");
        }
        let placement = self.service.scaling.placement;
        if !matches!(placement, Placement::LeastLoaded | Placement::MostFree | Placement::Spread) {
            self.leave_out("where its placement puts a replica: on the node with the fewest");
        }
        each
    }

    /// Machines of the service that all nodes together have room for.
    fn machines_that_fit(&self) -> u32 {
        let each = |group: &NodeGroup| self.room_on(group) * u64::from(group.count);
        let all: u64 = self.scenario.nodes.iter().map(each).sum();
        u32::try_from(all).unwrap_or(u32::MAX)
    }

    /// Machines of the service that a node has room for.
    fn room_on(&self, group: &NodeGroup) -> u64 {
        let memory = group.memory_mib / self.service.memory_mib;
        let cpu = group.cpu_milli.checked_div(self.service.cpu_milli).unwrap_or(u64::MAX);
        memory.min(cpu).min(group.machines_max.into())
    }

    fn other_things(&mut self) {
        if self.scenario.services.len() > 1 {
            self.leave_out("the other services: it has the nodes to itself");
        }
        if self.scenario.network.is_some() {
            self.leave_out("transfers over links: they take no time");
        }
        if self.service.scaling.migration.is_some() {
            self.leave_out("machines that move to other nodes");
        }
        let loses = self.scenario.assumptions.failure_loses;
        let retried = matches!(loses, FailureLoses::Nothing | FailureLoses::Overflow);
        let fails = self.scenario.nodes.iter().any(|group| group.time_to_failure_secs.is_some());
        if fails && retried && self.service.mobility == Mobility::Weak {
            self.leave_out("work done again after a failure: it goes on where it was");
        }
    }
}
