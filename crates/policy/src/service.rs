//! One service: from what is seen to moves.

use crate::core::{Freshness, Inputs, Move, Node, Replica, ReplicaPhase, Service, Verdict};
use crate::memory::ServiceMemory;
use crate::migrate::migrate;
use crate::place::{place, removals};
use crate::reason::{Reason, WaitReason};
use crate::rng::PlanRng;
use crate::scale::{Earliest, Machines, scale};
use skein_model::{NodeState, Timestamp};

/// Plans one service: appends its moves to `out`, reserves on `nodes` what it places, and remembers in `memory`.
///
/// The entry point of the simulator, and of [`crate::plan`] for each service. `nodes` shall be in the order
/// of their names, and every index in `service.replicas` one of them. Moves name machines and nodes by index.
pub fn plan_service(
    service: &Service<'_>,
    nodes: &mut [Node],
    memory: &mut ServiceMemory,
    now: Timestamp,
    rng: &mut PlanRng,
    out: &mut Vec<Move>,
) -> Verdict {
    let begun = out.len();
    let mut intent = decide(service, nodes, memory, now);
    intent.remove(service, nodes, rng, out);
    while intent.boots > 0 && intent.boot_one(service, nodes, memory, rng, (begun, out)) {}
    intent.migrate(service, nodes, (memory, now), rng, (begun, out));
    intent.conclude(service, nodes, (memory, now), rng, (begun, out))
}

/// Drains and stops all machines of a service that was removed.
pub fn plan_removed(replicas: &[Replica], nodes: &[Node], out: &mut Vec<Move>) {
    let reason = Reason::Removed;
    for (replica, seen) in replicas.iter().enumerate() {
        if nodes[seen.node].state == NodeState::Lost {
            continue;
        }
        match seen.phase {
            ReplicaPhase::Starting => out.push(Move::Stop { replica, reason }),
            ReplicaPhase::Ready | ReplicaPhase::Moving => {
                out.push(Move::Drain { replica, reason });
            }
            ReplicaPhase::Draining if seen.in_service == 0 => {
                out.push(Move::Stop { replica, reason });
            }
            ReplicaPhase::DrainAsked | ReplicaPhase::Draining | ReplicaPhase::Ending => {}
        }
    }
}

/// What is to be done for a service, before anything is placed.
#[derive(Debug)]
pub(crate) struct Intent {
    verdict: Verdict,
    next: Earliest,
    /// Machines still to be started.
    pub(crate) boots: u32,
    /// Machines to be removed, of which revisions.
    remove: [(u32, Freshness); 2],
    /// Machines that are to be replaced.
    outdated: u32,
    /// Whether some of them serve, so that they go one by one.
    rolls: bool,
    hold: Option<WaitReason>,
    /// Why a machine cannot leave its node.
    stuck: Option<WaitReason>,
}

/// Decides how many machines are to be started and removed.
pub(crate) fn decide(
    service: &Service<'_>,
    nodes: &[Node],
    memory: &mut ServiceMemory,
    now: Timestamp,
) -> Intent {
    let mut inputs = Inputs::count(service.load, service.replicas, nodes);
    let on_lost = |replica: &Replica| nodes[replica.node].state == NodeState::Lost;
    let stale = service
        .replicas
        .iter()
        .filter(|r| r.freshness == Freshness::Outdated && r.phase == ReplicaPhase::Starting)
        .filter(|r| !on_lost(r))
        .count() as u32;
    let (old_ready, fresh_ready) = (inputs.outdated, inputs.ready - inputs.outdated);
    let fresh = fresh_ready + inputs.starting - stale;
    let rolls = old_ready > 0;
    let machines = scaled_machines(&inputs, stale, rolls, memory);
    let scale = scale(service.policy, service.capacity, service.load, machines, memory, now);
    inputs.average = memory.average();

    let wanted = scale.wanted;
    let mut next = Earliest(scale.next_at);
    let (mut boots, remove_old, remove_fresh);
    if rolls {
        // One in four, at least one, beyond what is wanted while outdated ones are replaced.
        let surge = (wanted / 4).max(1);
        let room = (wanted + surge).saturating_sub(fresh + old_ready);
        boots = wanted.saturating_sub(fresh).min(room);
        remove_old = (fresh_ready + old_ready).saturating_sub(wanted).min(old_ready);
        remove_fresh = fresh.saturating_sub(wanted);
    } else {
        boots = wanted.saturating_sub(fresh);
        remove_old = 0;
        remove_fresh = fresh.saturating_sub(wanted);
    }
    let hold = back_off(service, memory, now, (fresh - fresh_ready, &mut boots));
    if let Some(WaitReason::StartsFail { retry_at: Some(at), .. }) = hold {
        next.add(at, now);
    }
    let current = fresh + old_ready;
    let outdated = old_ready + stale;
    let missing = memory.had.saturating_sub(current);
    let reason = if outdated > 0 && boots > 0 && wanted <= current + stale {
        Reason::Roll { outdated }
    } else if boots > 0 && missing > 0 && wanted <= memory.had {
        Reason::Replace { missing }
    } else {
        scale.reason
    };
    let remove = [(stale + remove_old, Freshness::Outdated), (remove_fresh, Freshness::Current)];
    let verdict = Verdict { wanted, current, reason, inputs, next_at: None };
    Intent { verdict, next, boots, remove, outdated, rolls, hold, stuck: None }
}

/// While outdated machines are replaced there are more than wanted for a while: the rule shall not see them.
fn scaled_machines(inputs: &Inputs, stale: u32, rolls: bool, memory: &ServiceMemory) -> Machines {
    let (ready, starting) = (inputs.ready, inputs.starting - stale);
    match memory.goal.filter(|goal| rolls && *goal > 0) {
        None => Machines { ready, starting },
        Some(goal) => {
            let ready = ready.min(goal);
            Machines { ready, starting: starting.min(goal - ready) }
        }
    }
}

/// Limits `boots` while starts fail: none before the next try, then one at a time until one proves itself.
fn back_off(
    service: &Service<'_>,
    memory: &mut ServiceMemory,
    now: Timestamp,
    (starting, boots): (u32, &mut u32),
) -> Option<WaitReason> {
    memory.failures.observe(service.revision, service.ended, service.replicas, now);
    let retry_at = memory.failures.retry_at()?;
    let allowed = if now < retry_at { 0 } else { 1u32.saturating_sub(starting) };
    if *boots <= allowed {
        return None;
    }
    *boots = allowed;
    let latest = service.ended.iter().max_by_key(|ended| ended.ended_at);
    Some(WaitReason::StartsFail {
        failures: memory.failures.count,
        code: latest.map_or("UNKNOWN", |ended| ended.code),
        retry_at: Some(retry_at).filter(|at| *at > now),
    })
}

impl Intent {
    /// Appends what is to be drained and stopped.
    pub(crate) fn remove(
        &self,
        service: &Service<'_>,
        nodes: &[Node],
        rng: &mut PlanRng,
        out: &mut Vec<Move>,
    ) {
        if self.verdict.inputs.draining > 0 {
            for (replica, seen) in service.replicas.iter().enumerate() {
                let drained = seen.phase == ReplicaPhase::Draining && seen.in_service == 0;
                if drained && nodes[seen.node].state != NodeState::Lost {
                    out.push(Move::Stop { replica, reason: Reason::Drained });
                }
            }
        }
        for (count, revision) in self.remove {
            let reason = match revision {
                Freshness::Outdated => Reason::Roll { outdated: self.outdated },
                Freshness::Current => self.verdict.reason,
            };
            self.remove_some(service, nodes, (count, revision, reason), rng, out);
        }
    }

    fn remove_some(
        &self,
        service: &Service<'_>,
        nodes: &[Node],
        (count, revision, reason): (u32, Freshness, Reason),
        rng: &mut PlanRng,
        out: &mut Vec<Move>,
    ) {
        if count == 0 {
            return;
        }
        let mut chosen = vec![];
        let how = (count, service.policy.removal);
        removals(service.replicas, nodes, &[revision], how, rng, &mut chosen);
        out.extend(chosen.into_iter().map(|replica| match service.replicas[replica].phase {
            ReplicaPhase::Starting => Move::Stop { replica, reason },
            _ => Move::Drain { replica, reason },
        }));
    }

    /// Places one machine; `begun` is where the moves of this service begin in `out`. False when there is no room,
    /// and then there is no point in asking again.
    pub(crate) fn boot_one(
        &mut self,
        service: &Service<'_>,
        nodes: &mut [Node],
        memory: &mut ServiceMemory,
        rng: &mut PlanRng,
        (begun, out): (usize, &mut Vec<Move>),
    ) -> bool {
        let of_service = |at: usize| {
            let live = service.replicas.iter().filter(|r| {
                r.node == at && matches!(r.phase, ReplicaPhase::Starting | ReplicaPhase::Ready)
            });
            let placed = out[begun..]
                .iter()
                .filter(|step| matches!(step, Move::Boot { node, .. } if *node == at));
            (live.count() + placed.count()) as u32
        };
        let algorithm = service.policy.placement;
        match place(nodes, service.room, algorithm, of_service, &mut memory.turn, rng) {
            Ok((node, place)) => {
                let reason = self.verdict.reason;
                out.push(Move::Boot { node, reason, place });
                self.boots -= 1;
                true
            }
            Err(why) => {
                self.hold = Some(why);
                false
            }
        }
    }

    /// Moves machines away from nodes that they shall leave, when nothing is to be added and nothing replaced.
    pub(crate) fn migrate(
        &mut self,
        service: &Service<'_>,
        nodes: &mut [Node],
        memory: (&mut ServiceMemory, Timestamp),
        rng: &mut PlanRng,
        moves: (usize, &mut Vec<Move>),
    ) {
        if self.boots > 0 || self.outdated > 0 || self.hold.is_some() {
            return;
        }
        if let Some(retry_at) = memory.0.failures.retry_at().filter(|at| *at > memory.1) {
            self.next.add(retry_at, memory.1);
            return;
        }
        self.stuck = migrate(service, nodes, memory, (rng, &mut self.next), moves);
    }

    /// Says what could not be placed, and remembers what was done.
    pub(crate) fn conclude(
        mut self,
        service: &Service<'_>,
        nodes: &[Node],
        (memory, now): (&mut ServiceMemory, Timestamp),
        rng: &mut PlanRng,
        (begun, out): (usize, &mut Vec<Move>),
    ) -> Verdict {
        let (mut booted, mut removed) = (0, 0);
        for step in &out[begun..] {
            match step {
                Move::Boot { .. } => booted += 1,
                Move::Drain { .. } => removed += 1,
                Move::Stop { reason, .. } => removed += u32::from(*reason != Reason::Drained),
                Move::Migrate { .. } | Move::Hold { .. } => {}
            }
        }
        if let Some(why) = self.hold {
            let missing = self.missing(booted, removed);
            out.push(Move::Hold { missing, why });
            if self.makes_room(service, &why, booted + removed) {
                let reason = Reason::Roll { outdated: self.outdated };
                let one = (1, Freshness::Outdated, reason);
                self.remove_some(service, nodes, one, rng, out);
            }
        }
        if let Some(why) = self.stuck {
            out.push(Move::Hold { missing: 1, why });
        }
        if booted + removed > 0 && !self.rolls {
            memory.changed_at = Some(now);
            if self.verdict.wanted <= self.verdict.current {
                self.next.add(now + service.policy.cooldown, now);
            }
        }
        memory.had = (self.verdict.current + booted).saturating_sub(removed);
        self.verdict.next_at = self.next.0;
        self.verdict
    }

    fn missing(&self, booted: u32, removed: u32) -> u32 {
        let after = (self.verdict.current + booted).saturating_sub(removed);
        self.verdict.wanted.saturating_sub(after).max(1)
    }

    /// Whether one outdated machine shall go first, because there is no room for a new one beside it.
    fn makes_room(&self, service: &Service<'_>, why: &WaitReason, moves: u32) -> bool {
        let inputs = &self.verdict.inputs;
        self.rolls
            && matches!(why, WaitReason::NoRoom { .. })
            && moves == 0
            && inputs.draining == 0
            && inputs.starting == 0
            && (inputs.ready >= 2 || service.load.total() == 0)
    }
}
