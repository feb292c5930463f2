//! The chain of a migrating service: working nodes, replicas and requests.
//!
//! A state is `(i, k, s, j)`: `i` working nodes, `k` ready replicas, `s` starting ones, `j` requests in the system.
//! - Variant A: a replica on every working node, `k = i`.
//! - Variant B: one more only when the queues of all are full, `k = min(i, max(1, ceil(j / places)))`.
//! - Variant C: as the policy's thresholds say, with exponential start-up times, each replica on a node of its own, or spread evenly
//!   over nodes that have room for several; a state then says which nodes have how many.
//!
//! Events: arrival and service, failure and repair, and in C the end of a start. A policy's answer follows at once.

use super::graph::{Chain, ChainError};
use super::shared::{Occupied, Stand, shares};
use super::steady::{Certificate, Method, steady_state};
use super::transient::averaged;
use crate::progress::Progress;
use crate::scenario::{FailureLoses, QueueCounts, Repair};
use crate::sim::Measure;
use serde::Serialize;
use skein_policy::{Load, Thresholds};
use std::cell::Cell;

/// Parameters of the chain; rates in events per second.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    /// Nodes, 1 to 65,535.
    pub nodes: u32,
    /// Requests that may wait at a replica, or for all (see `bound`).
    pub queue: u32,
    /// What `queue` bounds.
    pub bound: Bound,
    /// Whether `queue` counts requests in service.
    pub counts: QueueCounts,
    /// Requests that one replica serves at a time.
    pub capacity: u32,
    /// Arrivals.
    pub arrival: f64,
    /// Service of one request.
    pub service: f64,
    /// Failures of one node; 0: none.
    pub failure: f64,
    /// Repairs of one node, or of the crew.
    pub repair: f64,
    /// Who repairs.
    pub crew: Repair,
    /// What a failure loses.
    pub loses: FailureLoses,
    /// How many replicas there are.
    pub replicas: Replicas,
}

/// What a queue bound holds for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Each replica (A), each working node (B), each ready replica (C).
    Each,
    /// The service.
    All,
}

/// How many replicas there are.
#[derive(Debug, Clone, PartialEq)]
pub enum Replicas {
    /// Variant A.
    EveryNode,
    /// Variant B.
    WhenFull,
    /// Variant C.
    Policy {
        /// When replicas come and go.
        rule: Rule,
        /// Fewest.
        min: u32,
        /// Most.
        max: u32,
        /// Ends of a start per second and starting replica; none: they start at once.
        start: Option<f64>,
        /// Replicas that a node has room for. With one each has a node of its own, and any number of nodes will do; with more there
        /// may be up to 10 nodes, or replicas, and up to 15 on a node.
        each: u32,
    },
}

/// When replicas come and go.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// The policy's own thresholds.
    Thresholds(Thresholds),
    /// One more when there are more than `up[k-1]` requests in the system, one less when there are at most `down[k-2]`
    /// (the form of the published closed solutions).
    Lists {
        /// For 1, 2, ... replicas.
        up: Vec<u32>,
        /// For 2, 3, ... replicas.
        down: Vec<u32>,
    },
}

/// A state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State {
    /// Working nodes.
    pub i: u16,
    /// Ready replicas.
    pub k: u16,
    /// Starting replicas.
    pub s: u16,
    /// Requests in the system.
    pub j: u32,
    /// The nodes with replicas, where replicas share nodes.
    pub on: Occupied,
}

impl State {
    fn replicas(&mut self, stand: Stand) -> &mut u16 {
        match stand {
            Stand::Starting => &mut self.s,
            Stand::Ready => &mut self.k,
        }
    }
}

/// A solved chain.
#[derive(Debug, Clone, Serialize)]
pub struct Solution {
    /// States.
    pub states: usize,
    /// Transitions.
    pub transitions: usize,
    /// Why the figures may be trusted.
    pub certificate: Certificate,
    /// The figures.
    pub measures: Vec<(Measure, f64)>,
}

impl Solution {
    /// One figure; not a number when the chain has none of it.
    pub fn get(&self, measure: Measure) -> f64 {
        self.measures.iter().find(|(of, _)| *of == measure).map_or(f64::NAN, |it| it.1)
    }
}

impl Family {
    /// Requests that one replica and its queue hold.
    fn places(&self) -> u32 {
        match self.counts {
            QueueCounts::Waiting => self.queue + self.capacity,
            QueueCounts::InSystem => self.queue.max(1),
        }
    }

    /// The replicas at `i` nodes and `j` requests, where they depend on nothing else.
    fn replicas_at(&self, i: u16, j: u32) -> u16 {
        match &self.replicas {
            Replicas::EveryNode => i,
            Replicas::WhenFull => i.min(j.div_ceil(self.places()).max(1) as u16),
            Replicas::Policy { .. } => 0,
        }
    }

    fn busy(&self, state: State) -> u32 {
        state.j.min(u32::from(state.k) * self.capacity)
    }

    /// Requests that the system holds at most.
    fn room(&self, state: State) -> u32 {
        let own = |replicas: u32| match self.counts {
            QueueCounts::Waiting => self.queue * replicas + self.busy_most(state),
            QueueCounts::InSystem => self.queue * replicas,
        };
        match (&self.bound, &self.replicas) {
            (Bound::All, _) => own(1),
            (Bound::Each, Replicas::Policy { .. }) => own(u32::from(state.k).max(1)),
            (Bound::Each, _) => u32::from(state.i) * self.places(),
        }
    }

    fn busy_most(&self, state: State) -> u32 {
        u32::from(state.k) * self.capacity
    }

    pub(super) fn accepts(&self, state: State) -> bool {
        state.j < self.room(state)
    }

    /// The state with the replicas that its rule asks for at once.
    fn settled(&self, mut state: State) -> State {
        let Replicas::Policy { rule, min, max, start, each } = &self.replicas else {
            state.k = self.replicas_at(state.i, state.j);
            return state;
        };
        // Each step adds or removes, never both: a rule that lets go what it asks for is refused by its check.
        for _ in 0..=2 * *max {
            let have = u32::from(state.k + state.s);
            let in_service = self.busy(state);
            // Thresholds look at no rates.
            let load = Load { waiting: state.j - in_service, in_service, accepted: 0 };
            let asked = match rule {
                Rule::Thresholds(thresholds) => {
                    thresholds.need(self.capacity, load, have, state.k.into()).0
                }
                Rule::Lists { up, down } => lists(up, down, have, state.j),
            };
            let wanted = asked.clamp(*min, *max).min(u32::from(state.i) * each);
            let stand = if start.is_some() { Stand::Starting } else { Stand::Ready };
            if wanted > have {
                (have..wanted).for_each(|_| self.add(&mut state, stand));
            } else if wanted < have {
                let starting = state.s > 0;
                self.remove(&mut state, if starting { Stand::Starting } else { Stand::Ready });
            } else {
                break;
            }
        }
        state
    }

    /// Whether nodes have room for several replicas.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self.replicas, Replicas::Policy { each, .. } if each > 1)
    }

    fn add(&self, state: &mut State, stand: Stand) {
        *state.replicas(stand) += 1;
        if self.is_shared() {
            state.on = state.on.with(state.i, stand);
        }
    }

    fn remove(&self, state: &mut State, stand: Stand) {
        *state.replicas(stand) -= 1;
        if self.is_shared() {
            state.on = state.on.without(stand);
        }
    }

    fn first(&self) -> State {
        let min = match &self.replicas {
            Replicas::Policy { min, each, .. } => (*min).min(self.nodes * each),
            _ => 0,
        };
        let mut first = State { i: self.nodes as u16, k: 0, s: 0, j: 0, on: Occupied::default() };
        (0..min).for_each(|_| self.add(&mut first, Stand::Ready));
        self.settled(first)
    }

    /// Calls `to` with each transition, and `lost` with the rate at which it loses requests.
    fn transitions(&self, state: State, to: &mut dyn FnMut(State, f64), lost: &Cell<f64>) {
        if self.accepts(state) {
            to(self.settled(State { j: state.j + 1, ..state }), self.arrival);
        }
        let busy = self.busy(state);
        if busy > 0 {
            let after = State { j: state.j - 1, ..state };
            to(self.settled(after), f64::from(busy) * self.service);
        }
        if let Replicas::Policy { start: Some(rate), .. } = &self.replicas
            && state.s > 0
        {
            let started = State { k: state.k + 1, s: state.s - 1, ..state };
            if !self.is_shared() {
                to(self.settled(started), f64::from(state.s) * rate);
            }
            for kind in state.on.kinds().filter(|kind| kind.starting > 0) {
                let after = State { on: state.on.started(kind.at), ..started };
                to(self.settled(after), f64::from(kind.nodes * kind.starting) * rate);
            }
        }
        let down = self.nodes - u32::from(state.i);
        if down > 0 && self.failure > 0.0 {
            let crews = match self.crew {
                Repair::PerNode => f64::from(down),
                Repair::SingleCrew => 1.0,
            };
            to(self.settled(State { i: state.i + 1, ..state }), crews * self.repair);
        }
        if state.i > 0 && self.failure > 0.0 {
            self.failures(state, to, lost);
        }
    }

    fn failures(&self, state: State, to: &mut dyn FnMut(State, f64), lost: &Cell<f64>) {
        let mut fail = |nodes: f64, left: State, loses: u32| {
            if nodes <= 0.0 {
                return;
            }
            let rate = nodes * self.failure;
            let mut after = State { j: state.j - loses, ..left };
            if self.loses != FailureLoses::Nothing {
                let smaller = self.settled(after);
                after.j = after.j.min(self.room(State { j: after.j, ..smaller }));
            }
            lost.set(lost.get() + rate * f64::from(state.j - after.j));
            to(self.settled(after), rate);
        };
        let left = State { i: state.i - 1, ..state };
        if !self.is_shared() {
            fail(f64::from(state.i - state.k - state.s), left, 0);
            if state.s > 0 {
                fail(state.s.into(), self.replaced(State { s: state.s - 1, ..left }, 1), 0);
            }
            if state.k > 0 {
                let after = self.replaced(State { k: state.k - 1, ..left }, 1);
                self.losses(state, (state.k, 1), |loses, nodes| fail(nodes, after, loses));
            }
            return;
        }
        fail(f64::from(state.i - state.on.count()), left, 0);
        for kind in state.on.kinds() {
            let (k, s) = (left.k - kind.ready, left.s - kind.starting);
            let after = State { k, s, on: state.on.failed(kind.at), ..left };
            let after = self.replaced(after, kind.ready + kind.starting);
            let of = (kind.nodes, kind.ready);
            self.losses(state, of, |loses, nodes| fail(nodes, after, loses));
        }
    }

    /// With so many replicas that were lost started elsewhere, as far as there is room: the policy remembers what it asked for.
    fn replaced(&self, mut left: State, lost: u16) -> State {
        if let Replicas::Policy { max, start, each, .. } = &self.replicas {
            let most = (*max).min(u32::from(left.i) * each);
            let stand = if start.is_some() { Stand::Starting } else { Stand::Ready };
            let missing = most.saturating_sub(u32::from(left.k + left.s)).min(lost.into());
            (0..missing).for_each(|_| self.add(&mut left, stand));
        }
        left
    }

    /// What is lost when one of so many nodes with so many ready replicas each fails: calls `each` with the number of requests, and
    /// of how many of the nodes.
    fn losses(&self, state: State, (nodes, ready): (u16, u16), mut each: impl FnMut(u32, f64)) {
        let all = match self.loses {
            FailureLoses::Nothing | FailureLoses::Overflow => 0,
            FailureLoses::InService => self.busy(state),
            FailureLoses::Held => state.j,
        };
        let (k, ready) = (u32::from(state.k), u32::from(ready));
        if all == 0 || ready == 0 {
            return each(0, nodes.into());
        }
        // Shared as evenly as whole requests can be: some replicas have one more.
        shares((k, all % k), ready, nodes.into(), |more, nodes| {
            each(ready * (all / k) + more, nodes)
        });
    }

    /// States of variants A and B, without building them; none for C.
    pub fn states_expected(&self) -> Option<u64> {
        let (n, places) = (u64::from(self.nodes), u64::from(self.places()));
        match (&self.replicas, self.bound) {
            (Replicas::Policy { .. }, _) => None,
            (_, Bound::Each) if self.loses != FailureLoses::Nothing => {
                Some(if self.failure > 0.0 {
                    places * n * (n + 1) / 2 + n + 1
                } else {
                    places * n + 1
                })
            }
            (_, bound) => {
                let most = match bound {
                    Bound::Each => n * places,
                    Bound::All => u64::from(self.queue) + n * u64::from(self.capacity),
                };
                Some(if self.failure > 0.0 { (n + 1) * (most + 1) } else { most + 1 })
            }
        }
    }

    /// States that there are for sure, without building them.
    fn states_at_least(&self) -> u64 {
        self.states_expected().unwrap_or_else(|| {
            // However many replicas there are, a queue of every length with every number of nodes at work.
            let lines = if self.failure > 0.0 { u64::from(self.nodes) } else { 1 };
            lines * (u64::from(self.queue) + 1)
        })
    }

    /// The chain with its states sorted into lines of `j`, and where the lines begin.
    ///
    /// # Errors
    /// [`ChainError::TooLarge`], said before anything is built where the number of states is known beforehand.
    pub fn chain(&self) -> Result<(Chain, Vec<State>, Vec<u32>), ChainError> {
        let at_least = self.states_at_least();
        if at_least > super::graph::STATES_MAX as u64 {
            return Err(ChainError::TooLarge { at_least });
        }
        let ignored = Cell::new(0.0);
        let (chain, states) =
            Chain::explore(self.first(), |state, to| self.transitions(state, to, &ignored))?;
        // In A and B the replicas follow from the rest, so that a line may go on across their changes.
        let by_policy = matches!(self.replicas, Replicas::Policy { .. });
        let line = |state: &State| match by_policy {
            true => (state.i, state.k, state.s, state.on),
            false => (state.i, 0, 0, Occupied::default()),
        };
        let mut order: Vec<u32> = (0..states.len() as u32).collect();
        order.sort_unstable_by_key(|at| {
            let state = &states[*at as usize];
            (line(state), state.j)
        });
        let sorted: Vec<State> = order.iter().map(|at| states[*at as usize]).collect();
        let mut lines = vec![];
        for (at, state) in sorted.iter().enumerate() {
            if at == 0 || line(&sorted[at - 1]) != line(state) {
                lines.push(at as u32);
            }
        }
        Ok((chain.sorted(&order), sorted, lines))
    }

    /// Solves the chain.
    ///
    /// # Errors
    /// It is too large, falls apart, or could not be certified.
    pub fn solve(&self) -> Result<Solution, ChainError> {
        self.solve_unless_stopped(&Progress::default())
    }

    /// Solves the chain, unless somebody wishes the end before.
    ///
    /// # Errors
    /// As [`Family::solve`], or [`ChainError::Stopped`].
    pub fn solve_unless_stopped(&self, progress: &Progress) -> Result<Solution, ChainError> {
        let (chain, states, lines) = self.chain()?;
        let weights = Weights::new(self, &states);
        let steady = steady_state(&chain, &lines, |x| weights.sums(x).to_vec(), progress)?;
        Ok(Solution {
            states: chain.len(),
            transitions: chain.transitions(),
            certificate: steady.certificate,
            measures: self.measures(weights.sums(&steady.x)),
        })
    }

    /// The mean measures of the first `secs` seconds, from the start of an empty system with all nodes at work.
    ///
    /// # Errors
    /// It is too large, takes too many steps, or was stopped.
    pub fn solve_over(&self, secs: f64, progress: &Progress) -> Result<Solution, ChainError> {
        let (chain, states, _) = self.chain()?;
        let weights = Weights::new(self, &states);
        let mut begin = self.first();
        if let Replicas::Policy { start: Some(_), .. } = &self.replicas {
            (begin.k, begin.s, begin.on) = (0, begin.k, begin.on.not_yet());
        }
        let find = |state: State| states.iter().position(|it| *it == state);
        let begin = find(begin).or_else(|| find(self.first())).unwrap_or(0);
        let mut first = vec![0.0; states.len()];
        first[begin] = 1.0;
        let (shares, steps) = averaged(&chain, &first, secs, progress)?;
        let certificate = Certificate {
            method: Method::Uniformisation,
            sweeps: u32::try_from(steps).unwrap_or(u32::MAX),
            residual: (1.0 - shares.iter().sum::<f64>()).abs(),
            change: 0.0,
            correction: 0.0,
        };
        let mut measures = self.measures(weights.sums(&shares));
        // Little's law holds in the long run.
        measures.retain(|(of, _)| !matches!(of, Measure::TimeInSystem | Measure::TimeInQueue));
        let (states, transitions) = (chain.len(), chain.transitions());
        Ok(Solution { states, transitions, certificate, measures })
    }

    fn measures(&self, sums: [f64; SUMS]) -> Vec<(Measure, f64)> {
        let [refused, lost, busy, in_system, replicas, starting, nodes, replications] = sums;
        let loss = lost / self.arrival;
        let throughput = busy * self.service;
        let accepted = self.arrival * (1.0 - refused);
        let mut all = vec![
            (Measure::Refusal, refused),
            (Measure::Loss, loss),
            (Measure::Service, 1.0 - refused - loss),
            (Measure::Throughput, throughput),
            (Measure::LostRate, lost),
            (Measure::Replicas, replicas),
            (Measure::Starting, starting),
            (Measure::QueueLength, in_system - busy),
            (Measure::InSystem, in_system),
            (Measure::WorkingNodes, nodes),
        ];
        // Little's law counts the time of the lost ones too, which nobody waited to the end.
        if self.failure == 0.0 || self.loses == FailureLoses::Nothing {
            all.push((Measure::TimeInSystem, in_system / accepted));
            all.push((Measure::TimeInQueue, (in_system - busy) / accepted));
        }
        // In variants A and B nobody decides: replicas are where they are.
        if matches!(self.replicas, Replicas::Policy { .. }) {
            all.push((Measure::ReplicationRate, replications * 3600.0));
        }
        all
    }
}

/// The published form of thresholds: one step at a time.
fn lists(up: &[u32], down: &[u32], have: u32, j: u32) -> u32 {
    let at = |list: &[u32], from: u32| {
        have.checked_sub(from).and_then(|at| list.get(at as usize)).copied()
    };
    if have == 0 || at(up, 1).is_some_and(|threshold| j > threshold) {
        have + 1
    } else if at(down, 2).is_some_and(|threshold| j <= threshold) {
        have - 1
    } else {
        have
    }
}

const SUMS: usize = 8;

/// What each state adds to what is measured: refused share, lost, busy, in system, replicas, starting, nodes, replications.
struct Weights(Vec<[f64; SUMS]>);

impl Weights {
    fn new(family: &Family, states: &[State]) -> Self {
        let of = |state: &State| {
            let lost = Cell::new(0.0);
            let have = i32::from(state.k) + i32::from(state.s);
            let by_policy = matches!(family.replicas, Replicas::Policy { .. });
            // Each replica is lost at the rate at which its node fails: what is there after a failure and is not left was added.
            let mut added = if by_policy { f64::from(have) * family.failure } else { 0.0 };
            let mut count = |after: State, rate: f64| {
                let more = i32::from(after.k) + i32::from(after.s) - have;
                if by_policy {
                    added += rate * f64::from(if after.i < state.i { more } else { more.max(0) });
                }
            };
            family.transitions(*state, &mut count, &lost);
            [
                if family.accepts(*state) { 0.0 } else { 1.0 },
                lost.get(),
                family.busy(*state).into(),
                state.j.into(),
                state.k.into(),
                state.s.into(),
                state.i.into(),
                added,
            ]
        };
        Self(states.iter().map(of).collect())
    }

    fn sums(&self, x: &[f64]) -> [f64; SUMS] {
        let mut sums = [0.0; SUMS];
        for (weights, x) in self.0.iter().zip(x) {
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum += weight * x;
            }
        }
        sums
    }
}
