//! Nodes that fail and are repaired, what is lost with them, and what others use of them.

use super::events::{Due, nanos};
use super::service::Request;
use super::world::{World, slowness};
use crate::scenario::{FailureLoses, FailuresHit, Repair};
use skein_model::NodeState;
use skein_policy::{ReplicaPhase, Room};

impl World<'_> {
    pub(super) fn schedule_failure(&mut self, node: usize) {
        let host = &mut self.hosts[node];
        if let Some(time) = &host.spec.time_to_failure_secs {
            let at = self.now + nanos(time.sample(&mut host.failures)).max(1);
            let warning = nanos(host.spec.failure_warning_secs);
            if warning > 0 {
                let from = at.saturating_sub(warning).max(self.now);
                self.events.add(from, Due::Warning { node: node as u32 });
            }
            self.events.add(at, Due::Failure { node: node as u32 });
        }
    }

    fn schedule_repair(&mut self, node: usize) {
        let host = &mut self.hosts[node];
        let at = self.now + nanos(host.spec.time_to_repair_secs.sample(&mut host.repairs)).max(1);
        self.events.add(at, Due::Repaired { node: node as u32 });
    }

    pub(super) fn failure(&mut self, node: usize) {
        let spared = self.scenario.assumptions.failures_hit == FailuresHit::NodesWithMachines
            && self.hosts[node].replicas.is_empty();
        if spared {
            self.nodes[node].state = NodeState::Ready;
            self.schedule_failure(node);
            return;
        }
        self.nodes[node].state = NodeState::Lost;
        self.nodes[node].reserved = Room::default();
        self.history.node_lost(self.now, node);
        match self.scenario.assumptions.repair {
            Repair::PerNode => self.schedule_repair(node),
            Repair::SingleCrew => {
                self.to_repair.push_back(node as u32);
                if self.to_repair.len() == 1 {
                    self.schedule_repair(node);
                }
            }
        }
        for service in &mut self.services {
            service.meter.touch(self.now);
            service.meter.machines_at(self.now).nodes -= 1;
        }
        let mut replicas = std::mem::take(&mut self.hosts[node].replicas);
        replicas.sort_unstable();
        for (at, slot) in &replicas {
            let at = *at as usize;
            let Some(index) = self.services[at].index(*slot) else { continue };
            if self.services[at].seen[index].node == node {
                self.lose(at, index);
            } else {
                self.copy_lost(at, index);
            }
        }
        replicas.dedup_by_key(|(at, _)| *at);
        for (at, _) in replicas {
            self.plan(at as usize);
        }
    }

    /// A replica is lost with its node.
    fn lose(&mut self, at: usize, index: usize) {
        let loses = self.scenario.assumptions.failure_loses;
        let service = &mut self.services[at];
        let held = service.meter.waiting + service.meter.busy;
        let sharing = service.meter.machines().ready.max(1);
        // What starts or drains takes nothing of the queue.
        let mut has_share = false;
        match service.seen[index].phase {
            ReplicaPhase::Ready | ReplicaPhase::Moving => {
                service.meter.machines_at(self.now).ready -= 1;
                has_share = true;
            }
            ReplicaPhase::Starting => service.meter.machines_at(self.now).starting -= 1,
            ReplicaPhase::DrainAsked | ReplicaPhase::Draining | ReplicaPhase::Ending => {}
        }
        let in_service = service.seen[index].in_service;
        match loses {
            FailureLoses::Nothing | FailureLoses::Overflow => self.interrupt(at, index),
            FailureLoses::InService | FailureLoses::Held => self.drop_running(at, index),
        }
        let (queue, number, node) = self.take_lost(at, index);
        self.history.lost(self.now, at, (number, node));
        let own = queue.len() as u32;
        if loses == FailureLoses::Held {
            for request in &queue {
                self.drop_request(at, request);
            }
            self.services[at].meter.waiting -= own;
            if has_share && !self.services[at].spec.queue.is_distributed() {
                self.drop_share(at, (held, sharing), in_service);
            }
        } else {
            self.services[at].queue.extend(queue);
        }
        if loses != FailureLoses::Nothing {
            self.drop_overflow(at);
        }
        if self.services[at].spec.queue.is_distributed() {
            self.redistribute(at);
        } else {
            self.fill(at);
        }
    }

    /// Replicas with room take what waits.
    pub(super) fn fill(&mut self, at: usize) {
        while !self.services[at].queue.is_empty() {
            let Some(index) = self.services[at].replica_with_room() else { break };
            let Some(request) = self.services[at].queue.pop_front() else { break };
            self.services[at].meter.waiting -= 1;
            self.begin_service(at, index, request);
        }
    }

    fn drop_running(&mut self, at: usize, index: usize) {
        let running = std::mem::take(&mut self.services[at].bodies[index].running);
        self.services[at].meter.busy -= running.len() as u32;
        self.services[at].seen[index].in_service = 0;
        for running in &running {
            self.drop_request(at, &running.request);
        }
    }

    fn drop_request(&mut self, at: usize, request: &Request) {
        self.services[at].meter.sums.lost += 1.0;
        self.history.dead(self.now, at, request);
        self.answered_user(request.user as usize);
    }

    /// L3: the replica's share of all that the service held, less what it served, goes from the tail of the queue.
    fn drop_share(&mut self, at: usize, (held, sharing): (u32, u32), in_service: u32) {
        let service = &mut self.services[at];
        let extra = service.dispatch.below(sharing as usize) < (held % sharing) as usize;
        let share = held / sharing + u32::from(extra);
        for _ in 0..share.saturating_sub(in_service) {
            self.drop_last(at);
        }
    }

    /// L1: what the smaller queue no longer holds goes from its tail.
    fn drop_overflow(&mut self, at: usize) {
        let counts = self.scenario.assumptions.queue_counts;
        // Replicas with room take theirs first.
        if !self.services[at].spec.queue.is_distributed() {
            self.fill(at);
        }
        let bound = self.services[at].bound(counts);
        while self.services[at].meter.waiting > bound {
            if !self.drop_last(at) {
                break;
            }
        }
    }

    fn drop_last(&mut self, at: usize) -> bool {
        let service = &mut self.services[at];
        let Some(request) = service.queue.pop_back() else { return false };
        service.meter.waiting -= 1;
        self.drop_request(at, &request);
        true
    }

    pub(super) fn repaired(&mut self, node: usize) {
        self.nodes[node].state = NodeState::Ready;
        self.history.node_joined(self.now, node);
        if self.scenario.assumptions.repair == Repair::SingleCrew {
            self.to_repair.pop_front();
            if let Some(next) = self.to_repair.front() {
                self.schedule_repair(*next as usize);
            }
        }
        self.schedule_failure(node);
        for at in 0..self.services.len() {
            let service = &mut self.services[at];
            service.meter.touch(self.now);
            service.meter.machines_at(self.now).nodes += 1;
            // Room came: only who lacks some is concerned.
            let machines = service.meter.machines();
            let live = machines.ready + machines.starting;
            let moves = service.spec.scaling.migration.is_some();
            if live < service.spec.scaling.replicas_min.max(1) || service.meter.waiting > 0 || moves
            {
                self.plan(at);
            }
        }
    }

    /// A node is known to fail soon: nothing new is placed on it, and machines may leave it.
    pub(super) fn warning(&mut self, node: usize) {
        if self.nodes[node].state == NodeState::Ready {
            self.nodes[node].state = NodeState::Cordoned;
            self.plan_moves();
        }
    }

    pub(super) fn schedule_background(&mut self, node: usize) {
        let host = &mut self.hosts[node];
        if let Some(lasts) = &host.spec.background_lasts_secs {
            let at = self.now + nanos(lasts.sample(&mut host.lasting)).max(1);
            self.events.add(at, Due::Background { node: node as u32 });
        }
    }

    /// Others use more or less of a node. Requests that are served go on as they began.
    pub(super) fn background(&mut self, node: usize) {
        let host = &mut self.hosts[node];
        let used = host.spec.background.sample(&mut host.background);
        host.slowness = Some(slowness(host.spec, used));
        self.nodes[node].used = used;
        self.schedule_background(node);
        self.plan_moves();
    }

    /// Asks the policy of each service whose replicas move.
    fn plan_moves(&mut self) {
        for at in 0..self.services.len() {
            if self.services[at].spec.scaling.migration.is_some() {
                self.plan(at);
            }
        }
    }
}
