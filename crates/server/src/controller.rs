//! The leader's loop: looks, asks the policy, carries out the plan.
//!
//! It takes no hint of what changed: whatever wakes it, it reads everything again. Each step is one transaction that
//! holds only while this process leads, and that repeats harmlessly; what does not hold any more is left to the next
//! plan. It plans again only when its mirror has seen its own steps.

use crate::addresses::{Addresses, Choice, Tidy, to_tidy};
use crate::app::App;
use crate::observe::{QueueView, observe};
use crate::reserved::{Pools, amounts, pool};
use crate::usage::Used;
use skein_api::{Code, Hold};
use skein_fabric::{
    self as fabric, Compare, Key, Leadership, Op, QueueError, Reservations, Revision, Txn,
};
use skein_model::{
    EventKind, EventSubject, Generation, MachineGoal, MachineId, MachinePhase, MachineRecord,
    NodeName, NodeState, PhaseName, ProjectName, ServiceName, ServiceRecord, Timestamp,
};
use skein_policy::{Desired, Memory, Observed, Plan, PlanRng, Replaced, ServiceKey, Step};
use skein_registry::{RecordKey, RegistryError, Stored, View};
use skein_shell::{now, report};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;
use tracing::{debug, info, warn};

/// Between two plans, however much happens: jobs come by the thousand, and each changes what is seen.
const PLAN_EVERY: Duration = Duration::from_millis(20);
/// However quiet it is, everything is read again after this long.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long the record of a machine that ended is kept, for `vm ls --all` and its log.
const GONE_KEPT: Duration = Duration::from_secs(600);
/// How many records of ended machines are kept at most for each service.
const GONE_KEPT_MAX: usize = 100;
/// A node that has been silent for this long is not waited for: its machines' records go.
const LOST_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Changes of ports and addresses in one transaction: with the leader's own condition within the bound of 128.
const TIDY_AT_ONCE: usize = 100;
/// Before another look at whether the mirror has caught up, which waits for it.
const CATCH_UP: Duration = Duration::from_millis(100);

/// Why a round ended early.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error("the records")]
    Records {
        #[from]
        source: RegistryError,
    },
    #[error("the length of the queue of {service}")]
    Queue { service: ServiceKey, source: QueueError },
}

/// Leads until the leadership is lost or the server stops.
pub(crate) async fn lead(app: &App, leadership: &Leadership) {
    let mut controller = Controller {
        app: app.clone(),
        epoch: leadership.guard(),
        pools: Pools::new(Reservations::new(app.state.clone())),
        memory: Memory::default(),
        rng: PlanRng::from_seed(skein_shell::random_u64()),
        lost: BTreeMap::new(),
        addresses: Addresses::default(),
        short: BTreeMap::new(),
        newest: Revision::ZERO,
        unsure: None,
    };
    info!("leading");
    let stop = app.tasks.stop_token().clone();
    let mut changes = app.mirror.changes();
    let mut demands = app.demands.changes();
    let mut queues = match app.queue.changes().await {
        Ok(queues) => queues,
        Err(error) => return warn!(error = %report::chain(&error), "the queues cannot be watched"),
    };
    tokio::select! {
        () = stop.cancelled() => return,                                            // cancel-safe: token
        () = muster(app, leadership.lease()) => {}                                  // cancel-safe: it only watches
    }
    loop {
        changes.borrow_and_update();
        let begun = tokio::time::Instant::now();
        let next_at = match controller.round().await {
            Ok(next_at) => next_at,
            Err(error) => {
                warn!(error = %report::chain(&error), "a round of the controller failed");
                None
            }
        };
        let wait = next_at.map_or(LOOK_EVERY, |at| at.since(now()).min(LOOK_EVERY));
        tokio::select! {
            () = stop.cancelled() => return,                                        // cancel-safe: token
            () = leadership.lost() => { warn!("the leadership is lost"); return }   // cancel-safe: it only watches
            changed = changes.changed() => if changed.is_err() { return },          // cancel-safe: watch; all is re-read
            changed = queues.next() => if changed.is_err() { return },              // cancel-safe: as documented
            changed = demands.changed() => if changed.is_err() { return },          // cancel-safe: watch; all is re-read
            () = tokio::time::sleep(wait) => {}                                     // cancel-safe: timer
        }
        tokio::time::sleep_until(begun + PLAN_EVERY).await;
    }
}

/// Waits until every known node lives, at most for one lease: a new leader shall not replace the machines of nodes that
/// have not had time to say that they live.
async fn muster(app: &App, lease: Duration) {
    let mut changes = app.mirror.changes();
    let all = async {
        loop {
            changes.borrow_and_update();
            let missing = app.mirror.read(|view| {
                view.nodes.keys().any(|node| view.node_state(node) == NodeState::Lost)
            });
            if !missing || changes.changed().await.is_err() {
                return;
            }
        }
    };
    if tokio::time::timeout(lease, all).await.is_err() {
        warn!("some nodes have not come back");
    }
}

struct Controller {
    app: App,
    /// Holds while this process leads.
    epoch: Compare,
    pools: Pools,
    memory: Memory,
    rng: PlanRng,
    /// Nodes that were lost when last seen, and since when they have been, as far as this leader knows.
    lost: BTreeMap<NodeName, Timestamp>,
    addresses: Addresses,
    /// Services whose network had no address for a machine, in this round.
    short: BTreeMap<ServiceKey, Hold>,
    /// The newest of its own steps: nothing is planned before the mirror shows it.
    newest: Revision,
    /// The record that the last step was to write when it failed: it may have been written all the same.
    unsure: Option<Key>,
}

impl Controller {
    /// Looks, plans, and carries out; when to look again.
    async fn round(&mut self) -> Result<Option<Timestamp>, RoundError> {
        let app = self.app.clone();
        if !self.catch_up().await? {
            warn!("the mirror has not seen the last steps: nothing is planned before");
            return Ok(Some(now() + CATCH_UP));
        }
        self.announce_lost(now());
        self.bury().await?;
        self.keep_pools().await?;
        self.tidy_addresses().await?;
        let (seen, services) = self.look().await?;
        let at = now();
        let desired = Desired { services: &services };
        let memory = std::mem::take(&mut self.memory);
        let mut plan = skein_policy::plan(&desired, &seen, memory, at, &mut self.rng);
        #[cfg(debug_assertions)]
        {
            let violated = skein_policy::check::all(&plan, &desired, &seen, at);
            debug_assert!(violated.is_empty(), "the plan violates {violated:?}");
        }
        app.decisions.put(at, &plan);
        // Kept whether or not the plan can be carried out.
        self.memory = std::mem::take(&mut plan.memory);
        self.carry_out(&plan, &services).await?;
        Ok(plan.next_at)
    }

    /// Waits for the mirror to show the last steps; whether it does. Without them the same machines would be asked for
    /// twice.
    async fn catch_up(&mut self) -> Result<bool, RegistryError> {
        if let Some(key) = &self.unsure {
            let written = self.app.state.get(key).await?.map(|entry| entry.mod_revision);
            self.newest = self.newest.max(written.unwrap_or(Revision::ZERO));
            self.unsure = None;
        }
        Ok(self.app.mirror.reach(self.newest).await)
    }

    async fn look(&self) -> Result<(Observed, Vec<ServiceRecord>), RoundError> {
        let app = &self.app;
        let mut queues: BTreeMap<ServiceKey, QueueView> = BTreeMap::new();
        let keys: Vec<ServiceKey> =
            app.mirror.read(|view| view.services.values().map(|s| (&*s.value).into()).collect());
        for key in keys {
            match app.depth(&key).await {
                Ok(depth) => {
                    let depth = app.demands.add_to(&key, depth);
                    queues.insert(key, depth);
                }
                // Not to be taken for an empty queue.
                Err(source) => return Err(RoundError::Queue { service: key, source }),
            }
        }
        let figures = app.reports.machines();
        let busy = |id: &MachineId| figures.get(id).map_or(0, |f| f.in_service);
        Ok(app.mirror.read(|view| {
            let used = |node: &NodeName| app.reports.node(node).map_or(0.0, |it| it.cpu_used);
            let seen = observe(view, &queues, busy, used);
            let services = view.services.values().map(|s| (*s.value).clone()).collect();
            (seen, services)
        }))
    }

    async fn carry_out(
        &mut self,
        plan: &Plan,
        services: &[ServiceRecord],
    ) -> Result<(), RegistryError> {
        self.addresses.begin();
        self.short.clear();
        for step in &plan.steps {
            debug!(%step, "step");
            self.unsure = match step {
                Step::Boot { machine, .. }
                | Step::Drain { machine, .. }
                | Step::Stop { machine, .. } => Some(RecordKey::Machine(machine.clone()).key()),
                Step::Hold { .. } => None,
            };
            let revision = match step {
                Step::Boot { machine, service, node, generation, replaces, reason } => {
                    let record =
                        services.iter().find(|record| ServiceKey::from(*record) == *service);
                    match record.and_then(|r| self.machine(r, machine, node, *generation, reason)) {
                        Some(machine) => self.boot(&machine, replaces.as_ref()).await?,
                        None => None,
                    }
                }
                Step::Drain { machine, generation, copy, reason, .. } => {
                    let goal = (MachineGoal::Drain, copy.as_ref());
                    self.set_goal(machine, goal, *generation, reason).await?
                }
                Step::Stop { machine, generation, reason, .. } => {
                    let goal = (MachineGoal::Stop, None);
                    self.set_goal(machine, goal, *generation, reason).await?
                }
                Step::Hold { .. } => None,
            };
            self.unsure = None;
            self.newest = self.newest.max(revision.unwrap_or(Revision::ZERO));
        }
        self.tell_holds(plan);
        Ok(())
    }

    /// The record of a machine that shall be started.
    fn machine(
        &self,
        service: &ServiceRecord,
        id: &MachineId,
        node: &NodeName,
        generation: Generation,
        reason: &str,
    ) -> Option<MachineRecord> {
        let spec = &service.spec;
        let image = (service.project.clone(), spec.image.clone());
        let image = self.app.mirror.read(|view| view.images.get(&image).cloned())?.value;
        Some(MachineRecord {
            id: id.clone(),
            project: service.project.clone(),
            service: spec.name.clone(),
            node: node.clone(),
            generation,
            memory: spec.memory.unwrap_or(image.memory),
            cpu_milli: spec.cpu_milli,
            capacity: spec.capacity.unwrap_or(image.capacity),
            parameters: spec.parameters.clone(),
            network: spec.network.name.clone(),
            addressing: spec.network.addressing,
            image: (*image).clone(),
            goal: MachineGoal::Run,
            reason: reason.to_owned(),
            created_at: now(),
        })
    }

    /// Sets and clears what the nodes' pools say.
    async fn keep_pools(&mut self) -> Result<(), RegistryError> {
        let (nodes, gone) = self.app.mirror.read(|view| {
            let nodes = view.nodes.values().map(|node| node.value.clone()).collect();
            let gone = view.machines.values().filter(|machine| {
                let status = view.statuses.get(&machine.value.id).map(|status| &*status.value);
                crate::observe::phase(status) == PhaseName::Gone
            });
            let gone = gone.map(|m| (m.value.id.clone(), m.value.node.clone())).collect();
            (nodes, gone)
        });
        self.pools.set_capacities(nodes).await?;
        self.pools.release(gone).await?;
        Ok(())
    }

    /// Unplugs what is gone, lets addresses rest, and frees those that have; withdraws what leads to machines that ended.
    async fn tidy_addresses(&self) -> Result<(), RegistryError> {
        let at = now();
        let found = self.app.mirror.read(|view| to_tidy(view, at));
        for changes in found.chunks(TIDY_AT_ONCE) {
            let mut txn = Txn::new().when(self.epoch.clone()).soon();
            for change in changes {
                let (compare, op) = change.step(at)?;
                txn = txn.when(compare).then(op);
            }
            // If something was changed meanwhile, the next round sees it.
            if self.app.state.txn(txn).await?.succeeded {
                self.tell_unpublished(changes);
            }
        }
        Ok(())
    }

    fn tell_unpublished(&self, changes: &[Tidy]) {
        for change in changes {
            if let Tidy::Unpublish { project, transport, port, .. } = change {
                let subject =
                    EventSubject { project: Some(project.clone()), ..EventSubject::default() };
                let port = format!("{}/{port}", transport.as_str());
                self.app.events.emit(subject, EventKind::Unpublished { port });
            }
        }
    }

    /// A port for a machine that shall be started; none when its network has no address, or is no more.
    fn plug(&mut self, record: &MachineRecord) -> Option<Choice> {
        let key = (record.project.clone(), record.network.clone());
        let (addresses, app) = (&mut self.addresses, &self.app);
        let (problem, code) = match app.mirror.read(|view| {
            let network = &view.networks.get(&key)?.value;
            Some(addresses.choose(view, network, record, now()))
        }) {
            Some(Ok(choice)) => return Some(choice),
            Some(Err(full)) => {
                let (held, resting) = (full.held, full.resting);
                let network = &record.network;
                let problem = match full.chosen {
                    0 => format!(
                        "no address is free in network {network}: {held} held, {resting} resting"
                    ),
                    count => format!(
                        "none of the service's own addresses is free in network {network} ({count} chosen): give it one \
                         more, or stop a machine that has one"
                    ),
                };
                (problem, Code::AddressExhausted)
            }
            None => (format!("network {} does not exist", record.network), Code::NetworkUnknown),
        };
        let service =
            ServiceKey { project: record.project.clone(), service: record.service.clone() };
        let code = code.as_str().to_owned();
        let hold = self.short.entry(service);
        hold.or_insert(Hold { code, missing: 0, reason: problem }).missing += 1;
        None
    }

    /// Makes a machine's record, its port and its reservation in one transaction. Nothing, if the node's pool has changed
    /// or has no room after all: the next plan sees why.
    async fn boot(
        &mut self,
        record: &MachineRecord,
        replaces: Option<&Replaced>,
    ) -> Result<Option<Revision>, RegistryError> {
        let Some(choice) = self.plug(record) else { return Ok(None) };
        let (pool, holder) = (pool(&record.node), record.id.as_str());
        let reservations = &self.pools.reservations;
        let step = match reservations.plan_reserve(&pool, holder, amounts(record)).await? {
            fabric::Plan::Fits(step) => step,
            fabric::Plan::Exhausted { free, wanted } => {
                warn!(machine.id = %record.id, node.id = %record.node, ?free, ?wanted, "no room after all");
                return Ok(None);
            }
        };
        let key = RecordKey::Machine(record.id.clone());
        let network = RecordKey::Network(record.project.clone(), record.network.clone());
        let mut txn = Txn::new()
            .when(self.epoch.clone())
            .when(Compare::missing(key.key()))
            .then(key.put(record)?)
            // Bars a removal of the network that has not seen this machine.
            .when(Compare::exists(network.key()))
            .then(Used::Network(choice.port.vni).mark())
            // A loss of power that undoes it ends the machine too.
            .soon();
        let (free, taken) = choice.take()?;
        txn.compares.push(free);
        txn.then.extend(taken);
        txn.compares.extend(step.compares);
        txn.then.extend(step.ops);
        let reply = self.app.state.txn(txn).await?;
        if !reply.succeeded {
            return Ok(None);
        }
        let reason = record.reason.clone();
        let kind = match replaces {
            None => EventKind::Replicated { reason },
            Some(left) => EventKind::Migrating {
                machine: left.machine.to_string(),
                from: left.node.to_string(),
                reason,
            },
        };
        self.app.events.emit(subject(record), kind);
        Ok(Some(reply.revision))
    }

    /// Changes what is wanted of a machine; `copy` is what took its place on another node.
    async fn set_goal(
        &self,
        id: &MachineId,
        (goal, copy): (MachineGoal, Option<&MachineId>),
        generation: Generation,
        reason: &str,
    ) -> Result<Option<Revision>, RegistryError> {
        let stored = self.app.mirror.read(|view| view.machines.get(id).cloned());
        let Some(Stored { value, revision }) = stored else { return Ok(None) };
        if value.generation >= generation {
            return Ok(None);
        }
        let first = value.goal == MachineGoal::Run;
        let record =
            MachineRecord { goal, generation, reason: reason.to_owned(), ..(*value).clone() };
        let key = RecordKey::Machine(id.clone());
        let txn = Txn::new()
            .when(self.epoch.clone())
            .when(Compare::unchanged(key.key(), revision))
            .then(key.put(&record)?);
        let reply = self.app.state.txn(txn).await?;
        if reply.succeeded && first {
            let reason = reason.to_owned();
            let kind = match copy {
                None => EventKind::Dereplicated { reason },
                Some(copy) => EventKind::Migrated { machine: copy.to_string(), reason },
            };
            self.app.events.emit(subject(&record), kind);
        }
        Ok(reply.succeeded.then_some(reply.revision))
    }

    /// Tells once that machines are wanted that cannot be had.
    fn tell_holds(&self, plan: &Plan) {
        let holds = plan.steps.iter().filter_map(|step| match step {
            Step::Hold { service, missing, code, reason } => {
                let (code, reason) = ((*code).to_owned(), reason.clone());
                Some((service.clone(), Hold { code, missing: *missing, reason }))
            }
            Step::Boot { .. } | Step::Drain { .. } | Step::Stop { .. } => None,
        });
        // What no address is free for is held as what no node has room for.
        let holds = holds.chain(self.short.clone());
        for (service, reason) in self.app.holds.put(holds.collect()) {
            let subject = EventSubject {
                project: Some(service.project),
                service: Some(service.service),
                ..EventSubject::default()
            };
            self.app.events.emit(subject, EventKind::Unplaceable { reason });
        }
    }

    /// Tells when a node's lease has ended, and remembers when that was seen.
    fn announce_lost(&mut self, at: Timestamp) {
        let lost: BTreeMap<NodeName, Timestamp> = self.app.mirror.read(|view| {
            let of_machines = view.machines.values().map(|machine| &machine.value.node);
            let names = view.nodes.keys().chain(of_machines);
            let lost = names.filter(|node| view.node_state(node) == NodeState::Lost);
            lost.map(|node| (node.clone(), *self.lost.get(node).unwrap_or(&at))).collect()
        });
        for node in lost.keys().filter(|node| !self.lost.contains_key(*node)) {
            warn!(node.id = %node, "a node is lost");
            let subject = EventSubject { node: Some(node.clone()), ..EventSubject::default() };
            self.app.events.emit(subject, EventKind::NodeLost);
        }
        self.lost = lost;
    }

    /// Deletes the records of ended machines that nobody needs any more, and what they still hold of their node. Where
    /// the node's pool changes meanwhile, the next round does it.
    async fn bury(&self) -> Result<(), RegistryError> {
        for (id, node) in self.app.mirror.read(|view| to_bury(view, &self.lost, now())) {
            let release = self.pools.reservations.plan_release(&pool(&node), id.as_str()).await?;
            let mut txn = Txn::new()
                .when(self.epoch.clone())
                .then(Op::delete(&RecordKey::Machine(id.clone()).key()))
                .then(Op::delete(&RecordKey::Status(id).key()));
            if let Some(step) = release {
                txn.compares.extend(step.compares);
                txn.then.extend(step.ops);
            }
            self.app.state.txn(txn).await?;
        }
        Ok(())
    }
}

/// Machines whose records are to be deleted: those that ended some time ago, all but the last ones of each service, and
/// those of nodes that have been lost for long.
fn to_bury(
    view: &View,
    lost: &BTreeMap<NodeName, Timestamp>,
    at: Timestamp,
) -> Vec<(MachineId, NodeName)> {
    let mut ended: BTreeMap<(&ProjectName, &ServiceName), Vec<(Timestamp, &MachineRecord)>> =
        BTreeMap::new();
    let mut bury = Vec::new();
    for (id, stored) in &view.machines {
        let record = &stored.value;
        match view.statuses.get(id).map(|status| &status.value.phase) {
            Some(MachinePhase::Gone { at, .. }) => {
                let of_service = ended.entry((&record.project, &record.service)).or_default();
                of_service.push((*at, record));
            }
            Some(_) | None => {
                let still = view.node_state(&record.node) == NodeState::Lost;
                let since = lost.get(&record.node).filter(|_| still);
                if since.is_some_and(|since| at.since(*since) > LOST_KEPT) {
                    bury.push((id.clone(), record.node.clone()));
                }
            }
        }
    }
    for mut machines in ended.into_values() {
        machines.sort_by_key(|(ended, _)| Reverse(*ended));
        let old = machines
            .into_iter()
            .enumerate()
            .filter(|(place, (ended, _))| *place >= GONE_KEPT_MAX || at.since(*ended) > GONE_KEPT);
        bury.extend(old.map(|(_, (_, record))| (record.id.clone(), record.node.clone())));
    }
    bury
}

fn subject(record: &MachineRecord) -> EventSubject {
    EventSubject {
        project: Some(record.project.clone()),
        service: Some(record.service.clone()),
        node: Some(record.node.clone()),
        machine: Some(record.id.clone()),
        job: None,
    }
}
