//! The simulated cloud: events change it, and after each one the policy of each service that is concerned is asked.

use super::events::{Due, Events, Nanos, nanos, secs};
use super::history::History;
use super::network::Network;
use super::service::{Request, Running, Service, Spot};
use super::stats::{Raw, cells_for};
use super::user::User;
use crate::progress::Progress;
use crate::random::{Distribution, Purpose, Stream};
use crate::scenario::{BackgroundChanges, LastReplica, Mobility, NodeGroup, Scenario};
use skein_model::{NodeState, Timestamp};
use skein_policy::{Move, Node, Reason, ReplicaPhase, Room};
use std::collections::VecDeque;

/// What is simulated of a node beside what the policy sees.
#[derive(Debug)]
pub(super) struct Host<'a> {
    pub(super) spec: &'a NodeGroup,
    pub(super) failures: Stream,
    pub(super) repairs: Stream,
    pub(super) background: Stream,
    /// How long background loads last.
    pub(super) lasting: Stream,
    /// Share that others use; the mean where each request draws its own.
    used: f64,
    /// Seconds that one second of work takes, where requests do not draw it.
    pub(super) slowness: Option<f64>,
    /// Service and slot of the replicas on it, and of those on their way to it.
    pub(super) replicas: Vec<(u32, u32)>,
}

impl Host<'_> {
    /// Seconds that one second of work takes on it now.
    #[inline]
    pub(super) fn slowness(&mut self) -> f64 {
        match self.slowness {
            Some(fixed) => fixed,
            None => slowness(self.spec, self.spec.background.sample(&mut self.background)),
        }
    }
}

/// What a transfer is for.
#[derive(Debug)]
pub(super) enum Transfer {
    /// Code and state of a replica.
    Code { service: u32, slot: u32, token: u32 },
    /// Input of a request at a replica.
    Input { service: u32, slot: u32, token: u32 },
    /// Output of a request, with the time it spent at the machine.
    Output { service: u32, request: Request, served: Nanos },
    /// State of a replica that moves.
    State { service: u32, slot: u32, token: u32 },
}

/// A replication in progress.
#[derive(Debug)]
pub(super) struct World<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) now: Nanos,
    pub(super) events: Events,
    pub(super) nodes: Vec<Node>,
    pub(super) hosts: Vec<Host<'a>>,
    users: Vec<User<'a>>,
    pub(super) services: Vec<Service<'a>>,
    network: Option<Network<(u64, Transfer)>>,
    /// Transfers so far.
    transfers: u64,
    /// Failed nodes that wait for the single crew.
    pub(super) to_repair: VecDeque<u32>,
    tokens: u32,
    requests: u64,
    pub(super) replicas: u64,
    moves: Vec<Move>,
    cell: (Nanos, u32),
    pub(super) history: History,
    pub(super) handled: u64,
}

impl<'a> World<'a> {
    pub(super) fn new(scenario: &'a Scenario, replication: u32, history: bool) -> Self {
        let seed = scenario.run.seed;
        let stream =
            |entity: usize, purpose| Stream::new(seed, replication, entity as u32, purpose);
        let names = scenario.node_names();
        let hosts: Vec<Host<'a>> = names
            .iter()
            .enumerate()
            .map(|(at, (_, group))| {
                let spec = &scenario.nodes[*group];
                let mut background = stream(at, Purpose::Background);
                let first = spec.background.sample(&mut background);
                let fixed = matches!(spec.background, Distribution::Constant(_))
                    || scenario.assumptions.background_changes == BackgroundChanges::Never;
                let lasts = spec.background_lasts_secs.is_some();
                Host {
                    spec,
                    failures: stream(at, Purpose::Failure),
                    repairs: stream(at, Purpose::Repair),
                    slowness: (fixed || lasts).then(|| slowness(spec, first)),
                    used: if fixed || lasts { first } else { spec.background.mean() },
                    background,
                    lasting: stream(at, Purpose::BackgroundLasts),
                    replicas: vec![],
                }
            })
            .collect();
        let nodes = hosts.iter().map(|host| node_of(host.spec, host.used)).collect();
        let cells = cells_for(scenario.services.len());
        let services = (0..scenario.services.len())
            .map(|at| Service::new(scenario, (at, replication, cells), &names))
            .collect();
        let network = scenario.network.as_ref().map(|network| {
            Network::new(network, &names, scenario.assumptions, stream(0, Purpose::Link))
        });
        let end = nanos(scenario.run.duration_secs);
        Self {
            scenario,
            now: 0,
            events: Events::default(),
            nodes,
            hosts,
            users: User::all(scenario, &names, replication),
            services,
            network,
            transfers: 0,
            to_repair: VecDeque::new(),
            tokens: 0,
            requests: 0,
            replicas: 0,
            moves: vec![],
            cell: ((end / cells as u64).max(1), cells as u32),
            history: History::new(history.then_some((scenario, names))),
            handled: 0,
        }
    }

    /// Runs to the end, or to the end of a cell once somebody wishes so; what was counted of each service.
    pub(super) fn run(&mut self, progress: &Progress) -> Vec<Raw> {
        self.begin();
        while let Some((at, due)) = self.events.next() {
            self.now = at;
            self.handled += 1;
            match due {
                Due::Arrival { user } => self.arrival(user as usize),
                Due::Served { service, slot, token } => self.served(service, slot, token),
                Due::Started { service, slot, token } => self.started(service, slot, token),
                Due::Failure { node } => self.failure(node as usize),
                Due::Warning { node } => self.warning(node as usize),
                Due::Background { node } => self.background(node as usize),
                Due::Repaired { node } => self.repaired(node as usize),
                Due::Transferred { flow, token } => self.transferred(flow, token),
                Due::Delivered { flow } => self.delivered(flow),
                Due::Plan { service, token } => {
                    if self.services[service as usize].plan_token == token {
                        self.services[service as usize].plan_at = None;
                        self.plan(service as usize);
                    }
                }
                Due::Cell => {
                    progress.advance(1);
                    if self.end_cell() || progress.is_stopped() {
                        break;
                    }
                }
            }
        }
        self.services.drain(..).map(|service| service.meter.raw()).collect()
    }

    fn begin(&mut self) {
        for node in 0..self.hosts.len() {
            self.history.node_joined(self.now, node);
            self.schedule_failure(node);
            self.schedule_background(node);
        }
        for service in 0..self.services.len() {
            self.services[service].meter.machines_at(self.now).nodes = self.nodes.len() as u32;
            self.plan(service);
        }
        for user in 0..self.users.len() {
            self.schedule_arrival(user);
        }
        self.events.add(self.cell.0, Due::Cell);
    }

    /// Ends a cell of the statistics; true when it was the last.
    fn end_cell(&mut self) -> bool {
        for service in &mut self.services {
            service.meter.cell(self.now, secs(self.cell.0));
        }
        self.cell.1 -= 1;
        if self.cell.1 > 0 {
            self.events.add(self.now + self.cell.0, Due::Cell);
        }
        self.cell.1 == 0
    }

    pub(super) fn token(&mut self) -> u32 {
        self.tokens = self.tokens.wrapping_add(1);
        self.tokens
    }

    pub(super) fn timestamp(&self) -> Timestamp {
        Timestamp::from_micros(self.now / 1000)
    }

    // ---- users and requests

    #[inline(always)]
    fn schedule_arrival(&mut self, user: usize) {
        let Some(at) = self.users[user].next_at(self.now) else { return };
        self.events.add(at, Due::Arrival { user: user as u32 });
    }

    fn arrival(&mut self, user: usize) {
        let it = &mut self.users[user];
        let size = it.size();
        let request = Request {
            number: self.requests,
            user: user as u32,
            sent: self.now,
            queued: self.now,
            waited: 0,
            work: size.work,
            input_mib: size.input_kib / 1024.0,
            output_mib: size.output_kib / 1024.0,
            attempts: 0,
        };
        self.requests += 1;
        let (service, waits) = (it.service as usize, it.spec.waits_for_answer);
        if !waits {
            self.schedule_arrival(user);
        }
        let counts = self.scenario.assumptions.queue_counts;
        let it = &mut self.services[service];
        it.meter.touch(self.now);
        it.meter.sums.generated += 1.0;
        if let Some(spot) = it.room_for_request(counts) {
            it.accepted += 1;
            self.history.accepted(self.now, service, &request);
            self.put(service, request, spot);
        } else {
            it.meter.sums.refused += 1.0;
            self.history.refused(self.now, service, &request, it.meter.waiting);
            self.answered_user(user);
        }
        self.plan_for_load(service);
    }

    /// A user that waits for answers has one, or will get none.
    pub(super) fn answered_user(&mut self, user: usize) {
        if self.users[user].spec.waits_for_answer {
            self.schedule_arrival(user);
        }
    }

    #[inline(always)]
    fn put(&mut self, at: usize, request: Request, spot: Spot) {
        let service = &mut self.services[at];
        match spot {
            Spot::Machine(index) => return self.begin_service(at, index, request),
            Spot::QueueOf(index) => service.bodies[index].queue.push_back(request),
            Spot::Queue => service.queue.push_back(request),
        }
        service.meter.waiting += 1;
    }

    /// A request comes to a machine. The meter is up to date.
    #[inline(always)]
    pub(super) fn begin_service(&mut self, at: usize, index: usize, mut request: Request) {
        let now = self.now;
        let token = self.token();
        request.waited += now - request.queued;
        request.attempts += 1;
        let service = &mut self.services[at];
        let (seen, body) = (&mut service.seen[index], &mut service.bodies[index]);
        service.meter.busy += 1;
        seen.in_service += 1;
        let (node, slot) = (seen.node, body.slot);
        let slowness = self.hosts[node].slowness();
        self.history.begun(now, at, (body.number, node), &request);
        let from = match self.network {
            Some(_) => self.users[request.user as usize].node,
            None => node,
        };
        let mib = request.input_mib;
        let comes = from != node && mib > 0.0;
        let working = (!comes).then_some(now);
        let end = now + nanos(request.work * slowness);
        body.running.push(Running { request, token, begun: now, working, slowness });
        let service = at as u32;
        if comes {
            self.transfer((from, node), mib, Transfer::Input { service, slot, token });
        } else {
            self.events.add(end, Due::Served { service, slot, token });
        }
    }

    /// The latest request of a replica has its input.
    fn begin_work(&mut self, at: usize, index: usize) {
        let now = self.now;
        let body = &mut self.services[at].bodies[index];
        let slot = body.slot;
        let Some(running) = body.running.last_mut() else { return };
        running.working = Some(now);
        let end = now + nanos(running.request.work * running.slowness);
        let token = running.token;
        self.events.add(end, Due::Served { service: at as u32, slot, token });
    }

    fn served(&mut self, at: u32, slot: u32, token: u32) {
        let at = at as usize;
        let service = &mut self.services[at];
        let Some(index) = service.index(slot) else { return };
        let (seen, body) = (&mut service.seen[index], &mut service.bodies[index]);
        let Some((request, begun)) = body.take(token) else { return };
        service.meter.touch(self.now);
        service.meter.busy -= 1;
        seen.in_service -= 1;
        let (node, number) = (seen.node, body.number);
        let spent = self.now - begun;
        let to = match self.network {
            Some(_) => self.users[request.user as usize].node,
            None => node,
        };
        if to != node && request.output_mib > 0.0 {
            let what = Transfer::Output { service: at as u32, request, served: spent };
            self.transfer((node, to), request.output_mib, what);
        } else {
            self.answered(at, &request, spent);
        }
        self.history.served(self.now, at, (number, node), &request, spent);
        self.next_request(at, index);
        self.plan_for_load(at);
    }

    #[inline(always)]
    fn answered(&mut self, at: usize, request: &Request, served: Nanos) {
        let system = self.now - request.sent;
        self.services[at].meter.answered(system, request.waited, served);
        self.answered_user(request.user as usize);
    }

    /// A replica has room: it takes what waits, or goes if it drains and has nothing left.
    #[inline(always)]
    pub(super) fn next_request(&mut self, at: usize, index: usize) {
        loop {
            let service = &mut self.services[at];
            if !service.has_room(index) {
                break;
            }
            let Some(request) = service.next_waiting(index) else {
                service.list(index);
                return;
            };
            service.meter.waiting -= 1;
            self.begin_service(at, index, request);
        }
        self.go_if_done(at, index);
    }

    /// A replica that takes no more requests goes once it has none left.
    fn go_if_done(&mut self, at: usize, index: usize) {
        let seen = &self.services[at].seen[index];
        if seen.in_service == 0 {
            match seen.phase {
                ReplicaPhase::Draining => self.gone(at, index),
                ReplicaPhase::Moving => self.finished(at, index),
                ReplicaPhase::Starting
                | ReplicaPhase::Ready
                | ReplicaPhase::DrainAsked
                | ReplicaPhase::Ending => {}
            }
        }
    }

    // ---- transfers

    pub(super) fn needs_transfer(&self, from: usize, to: usize, mib: f64) -> bool {
        self.network.is_some() && from != to && mib > 0.0
    }

    pub(super) fn transfer(&mut self, route: (usize, usize), mib: f64, what: Transfer) {
        self.transfers += 1;
        if let Some(network) = &mut self.network {
            let nodes = || network.nodes_on(route.0, route.1);
            self.history.transfer_began(self.now, self.transfers, (&what, mib), nodes);
            network.start(self.now, route, mib, (self.transfers, what));
        }
        self.schedule_transfers();
    }

    fn schedule_transfers(&mut self) {
        if let Some(network) = &mut self.network {
            for (flow, token, end) in network.moved.drain(..) {
                self.events.add(end, Due::Transferred { flow, token });
            }
        }
    }

    fn transferred(&mut self, flow: u32, token: u32) {
        let Some(network) = &mut self.network else { return };
        let Some(latency) = network.finish(self.now, flow, token) else { return };
        self.schedule_transfers();
        match latency {
            0 => self.delivered(flow),
            _ => self.events.add(self.now + latency, Due::Delivered { flow }),
        }
    }

    fn delivered(&mut self, flow: u32) {
        let Some((number, what)) = self.network.as_mut().and_then(|network| network.take(flow))
        else {
            return;
        };
        self.history.transfer_ended(self.now, number);
        match what {
            Transfer::Code { service, slot, token } => self.start_up(service, slot, token),
            Transfer::State { service, slot, token } => self.state_came(service, slot, token),
            Transfer::Input { service, slot, token } => {
                let at = service as usize;
                let Some(index) = self.services[at].index(slot) else { return };
                let running = &mut self.services[at].bodies[index].running;
                if let Some(which) = running.iter().position(|running| running.token == token) {
                    // Work begins on the latest.
                    let last = running.len() - 1;
                    running.swap(which, last);
                    self.begin_work(at, index);
                }
            }
            Transfer::Output { service, request, served } => {
                self.services[service as usize].meter.touch(self.now);
                self.answered(service as usize, &request, served);
            }
        }
    }

    // ---- replicas

    /// Asks the policy after a change of load, unless the answer cannot depend on it.
    #[inline]
    fn plan_for_load(&mut self, at: usize) {
        let service = &self.services[at];
        if service.fixed && service.seen.len() as u32 == service.spec.scaling.replicas_max {
            return;
        }
        self.plan(at);
    }

    pub(super) fn plan(&mut self, at: usize) {
        let now = self.timestamp();
        let barred = self.bar_nodes(at);
        let mut moves = std::mem::take(&mut self.moves);
        let service = &mut self.services[at];
        let verdict = service.plan(&mut self.nodes, now, &mut moves);
        for node in barred {
            self.nodes[node].state = NodeState::Ready;
        }
        // An earlier question is as good: it is asked again then.
        let later = |at: &Timestamp| service.plan_at.is_some_and(|pending| pending <= *at);
        let may_change = !service.fixed || service.spec.scaling.migration.is_some();
        if let Some(next) = verdict.next_at.filter(|at| may_change && !later(at)) {
            service.plan_at = Some(next);
            service.plan_token = service.plan_token.wrapping_add(1);
            let due = Due::Plan { service: at as u32, token: service.plan_token };
            self.events.add(next.as_micros().saturating_mul(1000).max(self.now), due);
        }
        if !moves.is_empty() {
            service.meter.touch(self.now);
            service.count_change(&moves);
            self.carry_out(at, &moves);
            moves.clear();
        }
        self.moves = moves;
    }

    /// A service whose last replica is gone may be bound to its initial node: the others are barred meanwhile.
    fn bar_nodes(&mut self, at: usize) -> Vec<usize> {
        let service = &self.services[at];
        let bound = self.scenario.assumptions.last_replica == LastReplica::InitialNode
            && service.meter.machines().ready == 0;
        if !bound {
            return vec![];
        }
        let others = self
            .nodes
            .iter_mut()
            .enumerate()
            .filter(|(node, it)| *node != service.initial_node && it.state == NodeState::Ready);
        others
            .map(|(node, it)| {
                it.state = NodeState::Cordoned;
                node
            })
            .collect()
    }

    fn carry_out(&mut self, at: usize, moves: &[Move]) {
        // Removals first, by slot: indices change as replicas go.
        let slot = |replica: usize| self.services[at].bodies[replica].slot;
        let goes: Vec<(u32, &Move)> = moves
            .iter()
            .filter_map(|step| match step {
                Move::Drain { replica, .. } | Move::Stop { replica, .. } => {
                    Some((slot(*replica), step))
                }
                Move::Boot { .. } | Move::Migrate { .. } | Move::Hold { .. } => None,
            })
            .collect();
        let moves_away: Vec<(u32, usize, Reason)> = moves
            .iter()
            .filter_map(|step| match step {
                Move::Migrate { replica, node, reason, .. } => {
                    Some((slot(*replica), *node, *reason))
                }
                Move::Boot { .. } | Move::Drain { .. } | Move::Stop { .. } | Move::Hold { .. } => {
                    None
                }
            })
            .collect();
        for (slot, step) in goes {
            self.let_go(at, slot, step);
        }
        for (slot, node, reason) in moves_away {
            self.migrate(at, slot, node, &reason);
        }
        for step in moves {
            if let Move::Boot { node, reason, .. } = step {
                self.boot(at, *node);
                let number = self.replicas - 1;
                self.history.replicated(self.now, at, (number, *node), reason);
            }
        }
    }

    fn boot(&mut self, at: usize, node: usize) {
        let token = self.token();
        let (number, now) = (self.replicas, self.timestamp());
        self.replicas += 1;
        let source = self.source_for(at, node);
        let service = &mut self.services[at];
        let mib = service.spec.code_mib + service.spec.state_mib;
        service.meter.machines_at(self.now).starting += 1;
        service.meter.sums.transferred_mib += mib;
        let slot = service.add(node, number, token, now);
        self.hosts[node].replicas.push((at as u32, slot));
        match source {
            Some(from) if self.needs_transfer(from, node, mib) => {
                let what = Transfer::Code { service: at as u32, slot, token };
                self.transfer((from, node), mib, what);
            }
            _ => self.start_up(at as u32, slot, token),
        }
    }

    /// Where a replica's code and state come from: the nearest node that has them; none when it has them itself, or when
    /// they come from a store beside the network.
    pub(super) fn source_for(&self, at: usize, node: usize) -> Option<usize> {
        let network = self.network.as_ref()?;
        let service = &self.services[at];
        let ready = service.seen.iter().filter(|replica| replica.phase == ReplicaPhase::Ready);
        let initial = Some(service.initial_node)
            .filter(|initial| self.nodes[*initial].state != NodeState::Lost);
        ready
            .map(|replica| replica.node)
            .chain(initial)
            .min_by_key(|from| (network.hops(*from, node), *from))
    }

    /// Code and state are there: the machine starts.
    pub(super) fn start_up(&mut self, at: u32, slot: u32, token: u32) {
        let service = &mut self.services[at as usize];
        let waits = service.index(slot).is_some_and(|index| {
            let body = &service.bodies[index];
            body.token == token || body.way.is_some_and(|way| way.token == token)
        });
        if waits {
            let start = service.spec.start_secs.sample(&mut service.start_stream);
            self.events.add(self.now + nanos(start), Due::Started { service: at, slot, token });
        }
    }

    fn started(&mut self, at: u32, slot: u32, token: u32) {
        let (at, now) = (at as usize, self.timestamp());
        let service = &mut self.services[at];
        let Some(index) = service.index(slot) else { return };
        if service.bodies[index].way.is_some_and(|way| way.token == token) {
            return self.copied(at, index);
        }
        if service.bodies[index].token != token
            || service.seen[index].phase != ReplicaPhase::Starting
        {
            return;
        }
        service.meter.touch(self.now);
        let machines = service.meter.machines_at(self.now);
        machines.starting -= 1;
        machines.ready += 1;
        service.seen[index].phase = ReplicaPhase::Ready;
        let since = std::mem::replace(&mut service.seen[index].since, now);
        let (number, node) = (service.bodies[index].number, service.seen[index].node);
        self.history.ready(self.now, at, (number, node), now.since(since));
        if self.services[at].spec.queue.is_distributed() {
            self.redistribute(at);
        } else {
            self.next_request(at, index);
        }
        self.plan(at);
    }

    /// Deals the waiting requests of a distributed queue out anew, in the order in which they came.
    pub(super) fn redistribute(&mut self, at: usize) {
        let service = &mut self.services[at];
        let mut waiting: Vec<Request> = service.queue.drain(..).collect();
        for body in &mut service.bodies {
            waiting.extend(body.queue.drain(..));
        }
        waiting.sort_unstable_by_key(|request| request.number);
        service.meter.waiting -= waiting.len() as u32;
        let counts = self.scenario.assumptions.queue_counts;
        for request in waiting {
            // Where no replica has room for it, it waits for the next one: accepted is accepted.
            let spot = self.services[at].room_for_request(counts).unwrap_or(Spot::Queue);
            self.put(at, request, spot);
        }
    }

    fn let_go(&mut self, at: usize, slot: u32, step: &Move) {
        let service = &mut self.services[at];
        let Some(index) = service.index(slot) else { return };
        let (Move::Drain { reason, .. } | Move::Stop { reason, .. }) = step else { return };
        self.without_copy(at, index);
        let service = &mut self.services[at];
        let (number, node) = (service.bodies[index].number, service.seen[index].node);
        self.history.dereplicated(self.now, at, (number, node), reason);
        let service = &mut self.services[at];
        if service.seen[index].phase == ReplicaPhase::Ready {
            service.meter.machines_at(self.now).ready -= 1;
            service.seen[index].phase = ReplicaPhase::Draining;
        } else if service.seen[index].phase == ReplicaPhase::Starting {
            service.meter.machines_at(self.now).starting -= 1;
            service.seen[index].phase = ReplicaPhase::Ending;
        }
        if service.spec.interruptible {
            self.interrupt(at, index);
        }
        if self.services[at].seen[index].in_service == 0 {
            self.gone(at, index);
        } else if self.services[at].spec.queue.is_distributed() {
            self.redistribute(at);
        }
    }

    /// What a replica serves goes back to the head of the queue.
    pub(super) fn interrupt(&mut self, at: usize, index: usize) {
        let now = self.now;
        let service = &mut self.services[at];
        let mobility = service.spec.mobility;
        let mut back: Vec<Running> = service.bodies[index].running.drain(..).collect();
        back.sort_unstable_by_key(|running| running.request.number);
        service.seen[index].in_service = 0;
        for running in back.into_iter().rev() {
            let mut request = running.request;
            if let (Mobility::Strong, Some(since)) = (mobility, running.working) {
                request.work = (request.work - secs(now - since) / running.slowness).max(0.0);
            }
            request.queued = now;
            service.meter.busy -= 1;
            service.meter.waiting += 1;
            service.meter.sums.returned += 1.0;
            service.queue.push_front(request);
            self.history.returned(now, at, &request);
        }
    }

    /// A replica is gone: its room is free, its queue goes to the others.
    fn gone(&mut self, at: usize, index: usize) {
        let (seen, body) = self.services[at].remove(index);
        let node = &mut self.nodes[seen.node];
        node.reserved = node.reserved.minus(self.services[at].room);
        let there = (at as u32, body.slot);
        self.hosts[seen.node].replicas.retain(|replica| *replica != there);
        self.history.gone(self.now, at, (body.number, seen.node));
        let service = &mut self.services[at];
        service.queue.extend(body.queue);
        if service.spec.queue.is_distributed() {
            self.redistribute(at);
        } else {
            // What an interrupted machine gave back may find room at another.
            self.fill(at);
        }
    }
}

/// Seconds that one second of work takes beside a background load.
pub(super) fn slowness(spec: &NodeGroup, background: f64) -> f64 {
    // A hundredth is left, or a request might never end.
    1.0 / (spec.performance * (1.0 - background).max(0.01))
}

fn node_of(spec: &NodeGroup, used: f64) -> Node {
    Node {
        state: NodeState::Ready,
        capacity: Room {
            memory_mib: spec.memory_mib,
            cpu_milli: spec.cpu_milli,
            machines: spec.machines_max,
        },
        reserved: Room::default(),
        performance: spec.performance,
        used,
    }
}
