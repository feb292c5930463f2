//! A service while it is simulated: its queue, its replicas and what the policy knows of it.

use super::events::Nanos;
use super::stats::Meter;
use crate::random::{Purpose, Stream};
use crate::scenario::{QueueCounts, QueueKind, Scenario, Service as Spec};
use skein_model::Timestamp;
use skein_policy::{
    Freshness, Load, Move, Node, PlanRng, Replica, ReplicaPhase, Room, Service as Asked,
    ServiceMemory, Verdict, plan_service,
};
use std::collections::VecDeque;

/// A request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    pub(super) number: u64,
    pub(super) user: u32,
    /// When it was sent.
    pub(super) sent: Nanos,
    /// When it came to the queue last.
    pub(super) queued: Nanos,
    /// Time in the queue so far.
    pub(super) waited: Nanos,
    /// Work left, seconds at performance 1.
    pub(super) work: f64,
    pub(super) input_mib: f64,
    pub(super) output_mib: f64,
    /// Attempts begun.
    pub(super) attempts: u32,
}

/// Where a request goes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Spot {
    /// To a machine, at once.
    Machine(usize),
    /// To the queue of a machine.
    QueueOf(usize),
    /// To the queue of the service.
    Queue,
}

/// A request at a replica.
#[derive(Debug, Clone, Copy)]
pub(super) struct Running {
    pub(super) request: Request,
    pub(super) token: u32,
    /// When it came to the machine.
    pub(super) begun: Nanos,
    /// When its work began; none while its input is on the way.
    pub(super) working: Option<Nanos>,
    /// Seconds for one second of work.
    pub(super) slowness: f64,
}

/// What is simulated of a replica beside what the policy sees.
#[derive(Debug)]
pub(super) struct Body {
    /// Where events find it.
    pub(super) slot: u32,
    /// Number over all services.
    pub(super) number: u64,
    /// The start that it waits for.
    pub(super) token: u32,
    pub(super) running: Vec<Running>,
    /// Its own queue, where replicas have one.
    pub(super) queue: VecDeque<Request>,
    /// Whether it is among the idle ones.
    pub(super) listed: bool,
    /// Its way to another node.
    pub(super) way: Option<Way>,
}

impl Body {
    /// Takes out the request of a token, if the replica still has it; with when it came.
    #[inline]
    pub(super) fn take(&mut self, token: u32) -> Option<(Request, Nanos)> {
        let which = self.running.iter().position(|running| running.token == token)?;
        let (request, begun) = (self.running[which].request, self.running[which].begun);
        let last = self.running.len() - 1;
        if which != last {
            self.running[which] = self.running[last];
        }
        self.running.truncate(last);
        Some((request, begun))
    }
}

/// A replica on its way to another node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    pub(super) to: usize,
    /// Number that its copy has over all services.
    pub(super) number: u64,
    /// The start of the copy that it waits for.
    pub(super) token: u32,
    pub(super) stage: Stage,
}

/// How far a replica is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its copy starts; it serves.
    Copying,
    /// Its copy is there; it finishes what it serves and takes no more.
    Finishing,
    /// Its state is sent, since a moment; it serves nothing.
    HandingOver { since: Nanos },
}

/// A service while it is simulated.
#[derive(Debug)]
pub(super) struct Service<'a> {
    pub(super) spec: &'a Spec,
    pub(super) room: Room,
    pub(super) initial_node: usize,
    /// What waits for any replica.
    pub(super) queue: VecDeque<Request>,
    /// Replicas as the policy sees them, in the order of their making.
    pub(super) seen: Vec<Replica>,
    /// The same replicas.
    pub(super) bodies: Vec<Body>,
    /// Index of the replica in a slot.
    pub(super) slots: Vec<Option<u32>>,
    pub(super) free_slots: Vec<u32>,
    /// Slots of replicas that may have room, the latest last. Some may have none any more.
    pub(super) idle: Vec<u32>,
    pub(super) memory: ServiceMemory,
    pub(super) policy_rng: PlanRng,
    pub(super) start_stream: Stream,
    pub(super) dispatch: Stream,
    pub(super) turn: usize,
    pub(super) meter: Meter,
    /// The plan that was asked for, and when.
    pub(super) plan_token: u32,
    pub(super) plan_at: Option<Timestamp>,
    /// Whether the number of machines does not depend on the load.
    pub(super) fixed: bool,
    /// Whether the last change added machines.
    pub(super) last_added: Option<bool>,
    /// Requests accepted so far.
    pub(super) accepted: u64,
}

impl<'a> Service<'a> {
    /// The service at a place of the scenario, in a replication, with so many cells of statistics; `names` are those of the nodes.
    pub(super) fn new(
        scenario: &'a Scenario,
        (at, replication, cells): (usize, u32, usize),
        names: &[(String, usize)],
    ) -> Self {
        let spec = &scenario.services[at];
        let (seed, entity) = (scenario.run.seed, at as u32);
        let stream = |purpose| Stream::new(seed, replication, entity, purpose);
        let initial = spec
            .initial_node
            .as_ref()
            .map_or(Some(0), |node| names.iter().position(|(name, _)| name == node.as_str()));
        let scaling = &spec.scaling;
        Self {
            spec,
            room: Room { memory_mib: spec.memory_mib, cpu_milli: spec.cpu_milli, machines: 1 },
            initial_node: initial.unwrap_or(0),
            queue: VecDeque::new(),
            seen: vec![],
            bodies: vec![],
            slots: vec![],
            free_slots: vec![],
            idle: vec![],
            memory: ServiceMemory::default(),
            policy_rng: PlanRng::from_seed(crate::random::seed_of(
                seed,
                replication,
                entity,
                Purpose::Policy,
            )),
            start_stream: stream(Purpose::Start),
            dispatch: stream(Purpose::Dispatch),
            turn: 0,
            meter: Meter::new(cells),
            plan_token: 0,
            plan_at: None,
            fixed: scaling.replicas_min == scaling.replicas_max,
            last_added: None,
            accepted: 0,
        }
    }

    /// Asks the policy, in place: what it remembers is larger than all that changes.
    pub(super) fn plan(
        &mut self,
        nodes: &mut [Node],
        now: Timestamp,
        moves: &mut Vec<Move>,
    ) -> Verdict {
        let load = Load {
            waiting: self.meter.waiting,
            in_service: self.meter.busy,
            accepted: self.accepted,
        };
        let asked = Asked {
            policy: &self.spec.scaling,
            capacity: self.spec.capacity,
            room: self.room,
            load,
            replicas: &self.seen,
            ended: &[],
            revision: 0,
        };
        plan_service(&asked, nodes, &mut self.memory, now, &mut self.policy_rng, moves)
    }

    /// Index of the replica in a slot.
    #[inline]
    pub(super) fn index(&self, slot: u32) -> Option<usize> {
        self.slots.get(slot as usize).copied().flatten().map(|index| index as usize)
    }

    /// Adds a replica that starts.
    pub(super) fn add(&mut self, node: usize, number: u64, token: u32, now: Timestamp) -> u32 {
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        self.slots[slot as usize] = Some(self.seen.len() as u32);
        self.seen.push(Replica {
            node,
            phase: ReplicaPhase::Starting,
            in_service: 0,
            since: now,
            freshness: Freshness::Current,
        });
        let body = Body {
            slot,
            number,
            token,
            running: Vec::with_capacity(self.spec.capacity.min(16) as usize),
            queue: VecDeque::new(),
            listed: false,
            way: None,
        };
        self.bodies.push(body);
        slot
    }

    /// Takes a replica out. Those behind it move up.
    pub(super) fn remove(&mut self, index: usize) -> (Replica, Body) {
        let (seen, body) = (self.seen.remove(index), self.bodies.remove(index));
        self.slots[body.slot as usize] = None;
        self.free_slots.push(body.slot);
        for (at, body) in self.bodies.iter().enumerate().skip(index) {
            self.slots[body.slot as usize] = Some(at as u32);
        }
        (seen, body)
    }

    /// Whether a replica takes one more request.
    #[inline]
    pub(super) fn has_room(&self, index: usize) -> bool {
        let seen = &self.seen[index];
        seen.in_service < self.spec.capacity
            && (seen.phase == ReplicaPhase::Ready || self.serves_on_its_way(index))
    }

    /// Whether a replica is on its way and serves still.
    fn serves_on_its_way(&self, index: usize) -> bool {
        self.bodies[index].way.is_some_and(|way| way.stage == Stage::Copying)
    }

    /// Lists a replica as one that may have room.
    #[inline]
    pub(super) fn list(&mut self, index: usize) {
        let body = &mut self.bodies[index];
        if !body.listed {
            body.listed = true;
            self.idle.push(body.slot);
        }
    }

    /// A replica with room: the one that had it last, so that the others stay idle and can go.
    #[inline]
    pub(super) fn replica_with_room(&mut self) -> Option<usize> {
        while let Some(slot) = self.idle.last() {
            if let Some(index) = self.index(*slot)
                && self.bodies[index].listed
            {
                if self.has_room(index) {
                    return Some(index);
                }
                self.bodies[index].listed = false;
            }
            self.idle.pop();
        }
        None
    }

    /// Where a request finds room; none when it is refused.
    #[inline(always)]
    pub(super) fn room_for_request(&mut self, counts: QueueCounts) -> Option<Spot> {
        if self.spec.queue.is_distributed() && self.meter.machines().ready > 0 {
            let index = self.dispatch()?;
            let at_once = self.has_room(index) && self.bodies[index].queue.is_empty();
            return Some(if at_once { Spot::Machine(index) } else { Spot::QueueOf(index) });
        }
        if self.meter.waiting == 0
            && let Some(index) = self.replica_with_room()
        {
            return Some(Spot::Machine(index));
        }
        (self.meter.waiting < self.bound(counts)).then_some(Spot::Queue)
    }

    /// Takes out what waits for a replica: its own first, then that of all.
    #[inline]
    pub(super) fn next_waiting(&mut self, index: usize) -> Option<Request> {
        if self.meter.waiting == 0 {
            return None;
        }
        self.bodies[index].queue.pop_front().or_else(|| self.queue.pop_front())
    }

    /// Requests that may wait now.
    #[inline]
    pub(super) fn bound(&self, counts: QueueCounts) -> u32 {
        let each = self.spec.queue_bound;
        let bound = match self.spec.queue {
            QueueKind::Shared => each,
            // With none ready, that of the one to come.
            _ => each.saturating_mul(self.meter.machines().ready.max(1)),
        };
        match counts {
            QueueCounts::Waiting => bound,
            QueueCounts::InSystem => bound.saturating_sub(self.meter.busy),
        }
    }

    /// The replica whose queue a request joins; none when those that may be chosen are full or there is none.
    pub(super) fn dispatch(&mut self) -> Option<usize> {
        let bound = self.spec.queue_bound as usize;
        let ready = self.meter.machines().ready as usize;
        let nth = match self.spec.queue {
            QueueKind::RandomOfReplicas if ready > 0 => self.dispatch.below(ready),
            QueueKind::TurnOfReplicas if ready > 0 => {
                self.turn = (self.turn + 1) % ready;
                self.turn
            }
            _ => 0,
        };
        let load =
            |index: usize| self.seen[index].in_service as usize + self.bodies[index].queue.len();
        let is_ready = |index: &usize| {
            matches!(self.seen[*index].phase, ReplicaPhase::Ready | ReplicaPhase::Moving)
        };
        let fits = |index: &usize| {
            self.has_room(*index) && self.bodies[*index].queue.is_empty()
                || self.bodies[*index].queue.len() < bound
        };
        let all = 0..self.seen.len();
        match self.spec.queue {
            QueueKind::Shared | QueueKind::SharedPerReplica => None,
            QueueKind::ShortestOfReplicas => {
                all.filter(is_ready).filter(fits).min_by_key(|index| (load(*index), *index))
            }
            QueueKind::RandomOfReplicas | QueueKind::TurnOfReplicas => {
                all.filter(is_ready).nth(nth).filter(fits)
            }
        }
    }

    /// Counts an addition or removal, and whether it turns the direction.
    pub(super) fn count_change(&mut self, moves: &[Move]) {
        for step in moves {
            let added = match step {
                Move::Boot { .. } => true,
                Move::Drain { .. } | Move::Stop { .. } => false,
                Move::Migrate { .. } => continue,
                Move::Hold { .. } => {
                    self.meter.sums.unplaceable += 1.0;
                    continue;
                }
            };
            let sums = &mut self.meter.sums;
            *(if added { &mut sums.replications } else { &mut sums.dereplications }) += 1.0;
            if self.last_added.is_some_and(|last| last != added) {
                sums.turns += 1.0;
            }
            self.last_added = Some(added);
        }
    }
}
