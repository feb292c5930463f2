//! A scenario on a live cloud: who sends what and when, which nodes fail and when, and from the history of the run the same
//! measures as of a simulation.
//!
//! ```text
//!   scenario ─┬─▶ UserScript     the very requests of a simulated replication ──▶ the cloud ──▶ history ─▶ measure_history()
//!             └─▶ node_changes() its failures and repairs ──────────────────────────▲
//! ```
//! Pure as the rest: whoever runs the cloud has clock and sockets.

use crate::jobs::{Jobs, Stand};
use crate::output::{Estimate, rule_of_three};
use crate::random::{Distribution, Purpose, Stream};
use crate::scenario::{FailureLoses, FailuresHit, QueueKind, Repair, Scenario};
use crate::sim::{Measure, User, nanos, secs};
use skein_model::{Event, EventKind};
use std::collections::{BTreeMap, VecDeque};

/// Parts of a run whose means give the interval of a measure (batch means): enough for Student's t, and each long enough to
/// forget the one before.
const BATCHES: usize = 10;

/// A request that shall be sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlannedRequest {
    /// When, seconds after the beginning.
    pub at_secs: f64,
    /// Seconds of work at performance 1.
    pub work_secs: f64,
    /// Input, KiB.
    pub input_kib: f64,
    /// Output, KiB.
    pub output_kib: f64,
}

/// What one user does.
#[derive(Debug)]
pub struct UserScript<'a>(User<'a>);

impl UserScript<'_> {
    /// All users of a scenario: what they do in a simulated replication of that number.
    pub fn all(scenario: &Scenario, replication: u32) -> Vec<UserScript<'_>> {
        let users = User::all(scenario, &scenario.node_names(), replication);
        users.into_iter().map(UserScript).collect()
    }

    /// Index of the service that it asks.
    pub fn service(&self) -> usize {
        self.0.service as usize
    }

    /// Whether it waits for an answer before its next request.
    pub fn waits_for_answer(&self) -> bool {
        self.0.spec.waits_for_answer
    }

    /// Its next request: `now_secs` is when it sent the latest one, or had its answer if it waits for answers; 0 at first.
    pub fn next(&mut self, now_secs: f64) -> Option<PlannedRequest> {
        let at = self.0.next_at(nanos(now_secs))?;
        let size = self.0.size();
        Some(PlannedRequest {
            at_secs: secs(at),
            work_secs: size.work,
            input_kib: size.input_kib,
            output_kib: size.output_kib,
        })
    }
}

/// What becomes of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeTurn {
    /// It is known to fail soon: nothing more is put on it, and what is there may leave.
    Warned,
    /// It fails.
    Fails,
    /// It works again.
    Returns,
}

/// A node fails, is known to, or comes back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NodeChange {
    /// When, seconds after the beginning.
    pub at_secs: f64,
    /// Index of the node.
    pub node: usize,
    /// What becomes of it.
    pub turn: NodeTurn,
}

/// The failures, warnings of them and repairs of a simulated replication of that number, in order, up to the end of the run.
pub fn node_changes(scenario: &Scenario, replication: u32) -> Vec<NodeChange> {
    let end = scenario.run.duration_secs;
    let mut changes = vec![];
    let mut next: Vec<(f64, usize, NodeTurn)> = vec![];
    let names = scenario.node_names();
    let streams = |purpose| -> Vec<Stream> {
        let stream = |node| Stream::new(scenario.run.seed, replication, node as u32, purpose);
        (0..names.len()).map(stream).collect()
    };
    let (mut failures, mut repairs) = (streams(Purpose::Failure), streams(Purpose::Repair));
    let spec = |node: usize| &scenario.nodes[names[node].1];
    // A node that works at a time fails some time later, and is known to a while before that.
    let mut fails = |next: &mut Vec<(f64, usize, NodeTurn)>, now: f64, node: usize| {
        let Some(time) = &spec(node).time_to_failure_secs else { return };
        let at = now + time.sample(&mut failures[node]);
        if spec(node).failure_warning_secs > 0.0 {
            let warned = (at - spec(node).failure_warning_secs).max(now);
            next.push((warned, node, NodeTurn::Warned));
        }
        next.push((at, node, NodeTurn::Fails));
    };
    (0..names.len()).for_each(|node| fails(&mut next, 0.0, node));
    let single = scenario.assumptions.repair == Repair::SingleCrew;
    let mut waiting: VecDeque<usize> = VecDeque::new();
    while let Some(first) = (0..next.len()).min_by(|a, b| next[*a].0.total_cmp(&next[*b].0)) {
        let (at_secs, node, turn) = next.swap_remove(first);
        if at_secs > end {
            break;
        }
        changes.push(NodeChange { at_secs, node, turn });
        let mut repair = |node: usize| {
            let at = at_secs + spec(node).time_to_repair_secs.sample(&mut repairs[node]);
            (at, node, NodeTurn::Returns)
        };
        match turn {
            NodeTurn::Warned => {}
            NodeTurn::Returns => {
                if single {
                    waiting.pop_front();
                    next.extend(waiting.front().map(|node| repair(*node)));
                }
                fails(&mut next, at_secs, node);
            }
            NodeTurn::Fails if single => {
                waiting.push_back(node);
                if waiting.len() == 1 {
                    next.push(repair(node));
                }
            }
            NodeTurn::Fails => next.push(repair(node)),
        }
    }
    changes
}

/// What a live run of a scenario cannot do as the scenario says, in words.
pub fn left_out(scenario: &Scenario) -> Vec<String> {
    let mut out: Vec<&str> = vec![];
    let mut add = |holds: bool, what| {
        if holds {
            out.push(what)
        }
    };
    add(scenario.network.is_some(), "links: the nodes of one process share this host's memory");
    let groups = &scenario.nodes;
    add(
        groups.iter().any(|it| it.performance != 1.0),
        "the performance of nodes: all are this host",
    );
    add(
        groups.iter().any(|it| it.background != Distribution::Constant(0.0)),
        "background loads of nodes",
    );
    add(groups.iter().any(|it| it.machines_max < 1000), "how many machines a node may hold");
    add(
        groups.iter().any(|it| it.time_to_failure_secs.is_some()),
        "that a failure is seen at once: it is when the lease of the node ends",
    );
    let services = &scenario.services;
    add(
        services.iter().any(|it| it.scaling.migration.is_some() && it.state_mib > 0.0),
        "state that moves along: a copy begins without any",
    );
    add(
        services.iter().any(|it| it.queue != QueueKind::Shared),
        "queues other than one for each service",
    );
    add(services.iter().any(|it| it.interruptible), "interrupted requests: machines drain");
    let assumptions = &scenario.assumptions;
    add(
        assumptions.failure_loses != FailureLoses::Nothing,
        "what a failure loses: the live queue gives it out again",
    );
    add(assumptions.failures_hit != FailuresHit::AllNodes, "that only nodes with machines fail");
    out.into_iter().map(str::to_owned).collect()
}

/// What was counted in a stretch of time.
#[derive(Debug, Clone, Default)]
struct Sums {
    generated: f64,
    served: f64,
    refused: f64,
    lost: f64,
    waiting: f64,
    busy: f64,
    ready: f64,
    starting: f64,
    nodes: f64,
    queue_secs: f64,
    service_secs: f64,
    added: f64,
    removed: f64,
    turns: f64,
    moved: f64,
    times: Vec<f64>,
}

/// Where a machine stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Starting,
    /// It starts to take the place of another, which counts in its stead as long as that is there.
    Copying,
    Ready,
    Going,
}

/// What there is at a moment.
#[derive(Debug, Default)]
struct Now {
    waiting: u32,
    busy: u32,
    jobs: Jobs,
    nodes: BTreeMap<String, bool>,
    /// Machines with the names of their nodes; empty where the history does not say.
    machines: BTreeMap<String, (Stage, String)>,
    /// Copies of machines that move, with those machines.
    copy_of: BTreeMap<String, String>,
    last_added: Option<bool>,
}

impl Now {
    fn count(&self, stage: Stage) -> f64 {
        let stands = |(id, (at, _)): &(&String, &(Stage, String))| match at {
            Stage::Copying => {
                let left = self.copy_of.get(*id);
                stage == Stage::Starting && left.is_none_or(|id| !self.machines.contains_key(id))
            }
            Stage::Starting | Stage::Ready | Stage::Going => *at == stage,
        };
        self.machines.iter().filter(stands).count() as f64
    }

    /// Lets an event happen to the requests; whether any stands elsewhere for it.
    fn requests(&mut self, event: &Event) -> bool {
        let Self { waiting, busy, jobs, .. } = self;
        let turned = jobs.apply(event, |_, before, now| {
            match before {
                Stand::Waits => *waiting -= 1,
                Stand::Runs(_) => *busy -= 1,
                Stand::Unknown | Stand::Over => {}
            }
            match now {
                Stand::Waits => *waiting += 1,
                Stand::Runs(_) => *busy += 1,
                Stand::Unknown | Stand::Over => {}
            }
        });
        turned > 0
    }

    fn machine(&mut self, event: &Event, stage: Option<Stage>) {
        let Some(id) = &event.subject.machine else { return };
        if let Some(stage) = stage {
            let node = event.subject.node.as_ref().map(ToString::to_string).unwrap_or_default();
            self.machines.insert(id.to_string(), (stage, node));
        } else {
            self.machines.remove(id.as_str());
            self.copy_of.remove(id.as_str());
        }
    }

    fn node(&mut self, event: &Event, works: bool) {
        if let Some(node) = &event.subject.node {
            self.nodes.insert(node.to_string(), works);
            if !works {
                // Nobody there says that they have gone.
                self.machines.retain(|_, (_, at)| at != node.as_str());
            }
        }
    }
}

/// The measures of a service over a history, simulated or live, from `begin` for so many seconds, with intervals from the
/// means of ten parts. What lies before `begin` sets the scene. Measures that a history does not tell are left out.
pub fn measure_history(
    history: &[Event],
    service: &str,
    (begin_us, duration_secs): (u64, f64),
    confidence: f64,
) -> Vec<(Measure, Estimate)> {
    let length = duration_secs / BATCHES as f64;
    let mut parts = vec![Sums::default(); BATCHES];
    let mut now = Now::default();
    let mut at = 0.0;
    for event in history {
        let when = (event.at.as_micros() as f64 - begin_us as f64) * 1e-6;
        pass(&mut parts, length, &now, (at, when));
        at = when.max(at);
        let mine = event.subject.service.as_ref().is_none_or(|of| of.as_str() == service);
        if mine {
            let part = (when >= 0.0).then(|| parts.get_mut((when / length) as usize)).flatten();
            happen(&mut now, event, part);
        }
    }
    pass(&mut parts, length, &now, (at, duration_secs));
    estimates(&parts, length, confidence)
}

/// Time passes from one moment to another; both may lie in different parts, or outside of all.
fn pass(parts: &mut [Sums], length: f64, now: &Now, (from, to): (f64, f64)) {
    let mut from = from.max(0.0);
    while from < to {
        let at = (from / length) as usize;
        let Some(part) = parts.get_mut(at) else { return };
        let end = ((at + 1) as f64 * length).min(to);
        // Rounding may leave a hair that belongs to the next part.
        let dt = (end - from).max(length * 1e-12);
        part.waiting += dt * f64::from(now.waiting);
        part.busy += dt * f64::from(now.busy);
        part.ready += dt * now.count(Stage::Ready);
        part.starting += dt * now.count(Stage::Starting);
        part.nodes += dt * now.nodes.values().filter(|works| **works).count() as f64;
        from += dt;
    }
}

fn happen(now: &mut Now, event: &Event, part: Option<&mut Sums>) {
    let mut nobody = Sums::default();
    let part = part.unwrap_or(&mut nobody);
    let turned = now.requests(event);
    match &event.kind {
        EventKind::NodeJoined => now.node(event, true),
        EventKind::NodeLeft | EventKind::NodeLost => now.node(event, false),
        EventKind::Replicated { .. } | EventKind::Dereplicated { .. } => {
            let added = matches!(event.kind, EventKind::Replicated { .. });
            *(if added { &mut part.added } else { &mut part.removed }) += 1.0;
            part.turns += f64::from(u8::from(now.last_added.is_some_and(|last| last != added)));
            now.last_added = Some(added);
            now.machine(event, Some(if added { Stage::Starting } else { Stage::Going }));
        }
        EventKind::MachineLaunched => {}
        EventKind::MachineReady { .. } | EventKind::MachineAdopted => {
            now.machine(event, Some(Stage::Ready));
        }
        EventKind::MachineDraining => now.machine(event, Some(Stage::Going)),
        EventKind::MachineGone { .. } => now.machine(event, None),
        EventKind::JobAccepted => part.generated += 1.0,
        EventKind::JobRefused { .. } => {
            part.generated += 1.0;
            part.refused += 1.0;
        }
        // What ends again had ended before: its node was silent meanwhile.
        EventKind::JobDone { queue_us, service_us } if turned => {
            let (queue, service) = (*queue_us as f64 * 1e-6, *service_us as f64 * 1e-6);
            part.served += 1.0;
            part.queue_secs += queue;
            part.service_secs += service;
            part.times.push(queue + service);
        }
        EventKind::JobDeadLettered { .. } if turned => part.lost += 1.0,
        EventKind::JobStarted { .. }
        | EventKind::JobDone { .. }
        | EventKind::JobReturned { .. }
        | EventKind::JobDeadLettered { .. }
        | EventKind::JobCancelled => {}
        EventKind::Migrating { machine, .. } => {
            if let Some(copy) = &event.subject.machine {
                now.copy_of.insert(copy.to_string(), machine.clone());
            }
            now.machine(event, Some(Stage::Copying));
        }
        EventKind::Migrated { .. } => {
            part.moved += 1.0;
            now.machine(event, Some(Stage::Going));
        }
        EventKind::TransferBegan { .. } | EventKind::TransferEnded { .. } => {}
        other => debug_assert!(!other.changes_what_runs(), "{other:?} is measured nowhere"),
    }
}

fn estimates(parts: &[Sums], length: f64, confidence: f64) -> Vec<(Measure, Estimate)> {
    let of = |value: &dyn Fn(&Sums) -> f64| Estimate::of(parts.iter().map(value), confidence);
    let share = |part: f64, it: &Sums| if it.generated > 0.0 { part / it.generated } else { 0.0 };
    let hourly = |count: f64| count * 3600.0 / length;
    let quantile = |it: &Sums, at: f64| {
        let mut times = it.times.clone();
        times.sort_by(f64::total_cmp);
        let place = ((times.len() as f64 * at).ceil() as usize).max(1) - 1;
        times.get(place).copied().unwrap_or(f64::NAN)
    };
    // As in a simulation: what was not seen may still be.
    let unseen = |mut estimate: Estimate, count: &dyn Fn(&Sums) -> f64| {
        let sum = |of: &dyn Fn(&Sums) -> f64| parts.iter().map(of).sum::<f64>();
        if sum(count) == 0.0
            && let Some(bound) = rule_of_three(sum(&|it| it.generated), confidence)
        {
            estimate.half_width = bound;
        }
        estimate
    };
    let refusal = unseen(of(&|it| share(it.refused, it)), &|it| it.refused);
    let service = of(&|it| 1.0 - share(it.refused, it) - share(it.lost, it));
    vec![
        (Measure::Refusal, refusal),
        (Measure::Loss, of(&|it| share(it.lost, it))),
        (Measure::Service, unseen(service, &|it| it.refused + it.lost)),
        (Measure::Throughput, of(&|it| it.served / length)),
        (Measure::LostRate, of(&|it| it.lost / length)),
        (Measure::Replicas, of(&|it| it.ready / length)),
        (Measure::Starting, of(&|it| it.starting / length)),
        (Measure::QueueLength, of(&|it| it.waiting / length)),
        (Measure::InSystem, of(&|it| (it.waiting + it.busy) / length)),
        (Measure::TimeInSystem, of(&|it| (it.queue_secs + it.service_secs) / it.served)),
        (Measure::TimeInQueue, of(&|it| it.queue_secs / it.served)),
        (Measure::TimeInService, of(&|it| it.service_secs / it.served)),
        (Measure::P50, of(&|it| quantile(it, 0.5))),
        (Measure::P90, of(&|it| quantile(it, 0.9))),
        (Measure::P99, of(&|it| quantile(it, 0.99))),
        (Measure::WorkingNodes, of(&|it| it.nodes / length)),
        (Measure::ReplicationRate, of(&|it| hourly(it.added))),
        (Measure::DereplicationRate, of(&|it| hourly(it.removed))),
        (Measure::Oscillation, of(&|it| hourly(it.turns))),
        (Measure::MigrationRate, of(&|it| hourly(it.moved))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Recording, replicate};

    const SCENARIO: &str = r#"
name = "live"
run = { seed = 5, replications = 1, duration_secs = 2000, warm_up = { kind = "none" } }
[[nodes]]
name = "n"
count = 3
time_to_failure_secs = { kind = "exponential", mean = 300 }
time_to_repair_secs = { kind = "exponential", mean = 60 }
[[services]]
name = "s"
start_secs = 0.5
queue_bound = 12
scaling = { replicas_min = 1, replicas_max = 6, cooldown_ms = 2000, placement = "spread" }
[[users]]
name = "u"
count = 2
service = "s"
interval_secs = { kind = "exponential", mean = 0.7 }
work_secs = { kind = "exponential", mean = 1 }
"#;

    #[test]
    fn a_history_has_the_measures_of_the_run_that_wrote_it() {
        let scenario = Scenario::parse(SCENARIO).unwrap();
        let run = replicate(&scenario, 0, Recording::On);
        let found = measure_history(&run.history, "s", (0, 2000.0), 0.95);
        for (measure, estimate) in found {
            let expect = measure.of(&run.services[0]);
            let off = (estimate.mean - expect).abs();
            // Means of parts weigh parts alike, not requests; quantiles of parts are not those of the whole.
            let slack = match measure {
                Measure::P50 | Measure::P90 | Measure::P99 => 0.35,
                Measure::Refusal
                | Measure::Loss
                | Measure::Service
                | Measure::TimeInSystem
                | Measure::TimeInQueue
                | Measure::TimeInService => 0.15,
                _ => 1e-3,
            };
            assert!(
                off <= slack * expect.abs().max(0.05),
                "{measure:?}: {estimate:?}, not {expect}"
            );
        }
    }

    #[test]
    fn scripts_are_what_the_simulator_does() {
        let mut scenario = Scenario::parse(SCENARIO).unwrap();
        scenario.run.duration_secs = 300.0;
        let history = replicate(&scenario, 0, Recording::On).history;
        let near = |at: f64, event: &Event| (at - event.at.as_micros() as f64 * 1e-6).abs() < 2e-6;
        let sent = |kind: &EventKind| {
            matches!(kind, EventKind::JobAccepted | EventKind::JobRefused { .. })
        };
        let mut requests: Vec<f64> = vec![];
        for mut script in UserScript::all(&scenario, 0) {
            let mut at = 0.0;
            while let Some(next) = script.next(at).filter(|next| next.at_secs < 300.0) {
                assert!(
                    next.work_secs > 0.0 && !script.waits_for_answer() && script.service() == 0
                );
                at = next.at_secs;
                requests.push(at);
            }
        }
        requests.sort_by(f64::total_cmp);
        let simulated: Vec<&Event> = history.iter().filter(|event| sent(&event.kind)).collect();
        assert_eq!(simulated.len(), requests.len());
        assert!(simulated.iter().zip(&requests).all(|(event, at)| near(*at, event)));
        let failures = history.iter().filter(|it| matches!(it.kind, EventKind::NodeLost));
        let planned = node_changes(&scenario, 0);
        let planned = planned.iter().filter(|change| change.turn == NodeTurn::Fails);
        assert!(failures.zip(planned).all(|(event, change)| near(change.at_secs, event)));
    }

    #[test]
    fn what_a_live_run_cannot_do_is_said() {
        let scenario = Scenario::parse(SCENARIO).unwrap();
        let said = left_out(&scenario);
        assert!(said.len() == 1 && said[0].contains("lease"), "{said:?}");
    }
}
