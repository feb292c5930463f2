//! Replicas that move to other nodes.
//!
//! ```text
//!   Ready ──migrate──▶ Copying: its copy starts, it serves ──▶ Finishing (weak): it finishes what it serves ──▶ HandingOver
//!                        │ its node fails: the copy starts         └─ interruptible: that goes back to the queue    │ state is sent,
//!                        │   as a replica of its own                  strong: that is suspended and goes along      │ nothing served
//!                        │ the copy's node fails: it stays            ────────────────────────────────────────────▶│
//!                        └──────────────────────────────────────────────────────────────────▶ Ready, on the other node
//! ```

use super::events::{Due, nanos, secs};
use super::service::{Request, Stage, Way};
use super::world::{Transfer, World};
use crate::scenario::Mobility;
use skein_policy::{Reason, ReplicaPhase};
use std::collections::VecDeque;
use std::mem;

impl World<'_> {
    /// A copy of a replica starts on another node, whose room the policy has reserved.
    pub(super) fn migrate(&mut self, at: usize, slot: u32, to: usize, reason: &Reason) {
        let Some(index) = self.services[at].index(slot) else { return };
        let (token, number) = (self.token(), self.replicas);
        self.replicas += 1;
        let source = self.source_for(at, to);
        let service = &mut self.services[at];
        service.seen[index].phase = ReplicaPhase::Moving;
        service.bodies[index].way = Some(Way { to, number, token, stage: Stage::Copying });
        let left = (service.bodies[index].number, service.seen[index].node);
        let mib = service.spec.code_mib;
        service.meter.sums.transferred_mib += mib;
        // Nodes that fail look here for what they take along.
        self.hosts[to].replicas.push((at as u32, slot));
        self.history.migrating(self.now, at, (left, (number, to)), reason);
        match source {
            Some(from) if self.needs_transfer(from, to, mib) => {
                let what = Transfer::Code { service: at as u32, slot, token };
                self.transfer((from, to), mib, what);
            }
            _ => self.start_up(at as u32, slot, token),
        }
    }

    /// The copy of a replica is there. Replica and state follow as its mobility says.
    pub(super) fn copied(&mut self, at: usize, index: usize) {
        let service = &mut self.services[at];
        if let Some(way) = &mut service.bodies[index].way {
            way.stage = Stage::Finishing;
        }
        service.meter.touch(self.now);
        match service.spec.mobility {
            Mobility::Strong => self.suspend(at, index),
            Mobility::Weak if service.spec.interruptible => self.interrupt(at, index),
            Mobility::Weak if service.seen[index].in_service > 0 => return,
            Mobility::Weak => {}
        }
        self.hand_over(at, index);
    }

    /// A replica on its way has nothing left to serve.
    pub(super) fn finished(&mut self, at: usize, index: usize) {
        let way = self.services[at].bodies[index].way;
        if way.is_some_and(|way| way.stage == Stage::Finishing) {
            self.hand_over(at, index);
        }
    }

    /// What a replica serves stands still: no event of its work holds any more.
    fn suspend(&mut self, at: usize, index: usize) {
        let now = self.now;
        for running in &mut self.services[at].bodies[index].running {
            if let Some(since) = running.working.take() {
                let done = secs(now - since) / running.slowness;
                running.request.work = (running.request.work - done).max(0.0);
            }
        }
        for which in 0..self.services[at].bodies[index].running.len() {
            let token = self.token();
            self.services[at].bodies[index].running[which].token = token;
        }
    }

    /// What stood still goes on, where the replica is now.
    fn resume(&mut self, at: usize, index: usize) {
        let slowness = self.hosts[self.services[at].seen[index].node].slowness();
        let now = self.now;
        let body = &mut self.services[at].bodies[index];
        let slot = body.slot;
        for running in body.running.iter_mut().filter(|running| running.working.is_none()) {
            (running.working, running.slowness) = (Some(now), slowness);
            let end = now + nanos(running.request.work * slowness);
            let due = Due::Served { service: at as u32, slot, token: running.token };
            self.events.add(end, due);
        }
    }

    /// The state of a replica is sent to its copy; until it is there, nothing is served.
    fn hand_over(&mut self, at: usize, index: usize) {
        let service = &mut self.services[at];
        let (from, slot) = (service.seen[index].node, service.bodies[index].slot);
        let Some(way) = &mut service.bodies[index].way else { return };
        way.stage = Stage::HandingOver { since: self.now };
        let (to, token, mib) = (way.to, way.token, service.spec.state_mib);
        service.meter.sums.transferred_mib += mib;
        if self.needs_transfer(from, to, mib) {
            let what = Transfer::State { service: at as u32, slot, token };
            self.transfer((from, to), mib, what);
        } else {
            self.moved(at, index);
        }
    }

    /// The state of a replica is at its copy, if it is still on that way.
    pub(super) fn state_came(&mut self, at: u32, slot: u32, token: u32) {
        let at = at as usize;
        let Some(index) = self.services[at].index(slot) else { return };
        if self.services[at].bodies[index].way.is_some_and(|way| way.token == token) {
            self.moved(at, index);
        }
    }

    /// The copy is the replica from now on.
    fn moved(&mut self, at: usize, index: usize) {
        let now = self.timestamp();
        let service = &mut self.services[at];
        let Some(way) = service.bodies[index].way.take() else { return };
        service.meter.touch(self.now);
        service.meter.sums.migrations += 1.0;
        if let Stage::HandingOver { since } = way.stage {
            service.meter.sums.paused += secs(self.now - since);
        }
        let (room, slot) = (service.room, service.bodies[index].slot);
        let from = mem::replace(&mut service.seen[index].node, way.to);
        let number = mem::replace(&mut service.bodies[index].number, way.number);
        service.seen[index].phase = ReplicaPhase::Ready;
        let since = mem::replace(&mut service.seen[index].since, now);
        let node = &mut self.nodes[from];
        node.reserved = node.reserved.minus(room);
        self.hosts[from].replicas.retain(|it| *it != (at as u32, slot));
        self.history.ready(self.now, at, (way.number, way.to), now.since(since));
        self.history.migrated(self.now, at, ((number, from), way.number));
        self.history.gone(self.now, at, (number, from));
        self.resume(at, index);
        self.serve_again(at, index);
        self.plan(at);
    }

    /// A replica that was on its way takes requests as before.
    fn serve_again(&mut self, at: usize, index: usize) {
        if self.services[at].spec.queue.is_distributed() {
            self.redistribute(at);
        } else {
            self.next_request(at, index);
            self.fill(at);
        }
    }

    /// The node of a copy fails: the replica stays where it is.
    pub(super) fn copy_lost(&mut self, at: usize, index: usize) {
        let Some(way) = self.stay(at, index) else { return };
        self.history.lost(self.now, at, (way.number, way.to));
        self.serve_again(at, index);
    }

    /// A replica that shall go is on its way: its copy goes first.
    pub(super) fn without_copy(&mut self, at: usize, index: usize) {
        let Some(way) = self.stay(at, index) else { return };
        let (room, slot) = (self.services[at].room, self.services[at].bodies[index].slot);
        let node = &mut self.nodes[way.to];
        node.reserved = node.reserved.minus(room);
        self.hosts[way.to].replicas.retain(|it| *it != (at as u32, slot));
        self.history.gone(self.now, at, (way.number, way.to));
    }

    /// A replica on its way stays where it is.
    fn stay(&mut self, at: usize, index: usize) -> Option<Way> {
        let service = &mut self.services[at];
        let way = service.bodies[index].way.take()?;
        service.meter.touch(self.now);
        service.seen[index].phase = ReplicaPhase::Ready;
        if matches!(way.stage, Stage::HandingOver { .. }) {
            self.resume(at, index);
        }
        Some(way)
    }

    /// Takes out a replica whose node failed, with what waits for it alone; its number and node. Where a copy of it starts or is
    /// there, that is a replica of its own from now on.
    pub(super) fn take_lost(&mut self, at: usize, index: usize) -> (VecDeque<Request>, u64, usize) {
        let service = &mut self.services[at];
        let Some(way) = service.bodies[index].way.take() else {
            let (seen, body) = service.remove(index);
            return (body.queue, body.number, seen.node);
        };
        let starts = way.stage == Stage::Copying;
        let machines = service.meter.machines_at(self.now);
        let (phase, count) = match starts {
            true => (ReplicaPhase::Starting, &mut machines.starting),
            false => (ReplicaPhase::Ready, &mut machines.ready),
        };
        *count += 1;
        let node = mem::replace(&mut service.seen[index].node, way.to);
        service.seen[index].phase = phase;
        let body = &mut service.bodies[index];
        let number = mem::replace(&mut body.number, way.number);
        body.token = way.token;
        let queue = mem::take(&mut body.queue);
        if !starts {
            service.list(index);
        }
        (queue, number, node)
    }
}
