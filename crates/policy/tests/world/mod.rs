//! A cloud small enough to hold in the hand: machines that start after a while, jobs that take a while, nodes that
//! are lost. It carries plans out and checks every one of them.

#![allow(dead_code, reason = "each test file uses a part of it")]

use skein_model::{
    Generation, MachineGoal, MachineId, NodeName, NodeState, PhaseName, ScalingPolicy,
    ServiceRecord, Timestamp,
};
use skein_policy::{
    Desired, Ended, Load, Memory, NodeView, Observed, Plan, PlanRng, ReplicaView, Revision, Room,
    ServiceKey, ServiceView, Step, check, plan,
};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

pub(crate) struct Machine {
    pub(crate) key: ServiceKey,
    pub(crate) view: ReplicaView,
    pub(crate) created_at: Timestamp,
    pub(crate) jobs: Vec<Timestamp>,
}

pub(crate) struct Service {
    pub(crate) record: ServiceRecord,
    pub(crate) waiting: u32,
    pub(crate) accepted: u64,
    pub(crate) revision: u64,
    pub(crate) capacity: u32,
    pub(crate) memory_mib: u64,
    pub(crate) starts: Duration,
    pub(crate) job: Duration,
    pub(crate) broken: bool,
    pub(crate) ended: Vec<Ended>,
}

pub(crate) struct World {
    pub(crate) now: Timestamp,
    pub(crate) nodes: Vec<NodeView>,
    pub(crate) machines: Vec<Machine>,
    pub(crate) services: BTreeMap<ServiceKey, Service>,
    pub(crate) memory: Memory,
    pub(crate) rng: PlanRng,
    pub(crate) next_at: Option<Timestamp>,
    pub(crate) log: String,
    pub(crate) plans: u32,
    last_plan: Plan,
}

pub(crate) fn node(name: &str, memory_mib: u64) -> NodeView {
    NodeView {
        name: name.parse().unwrap(),
        state: NodeState::Ready,
        capacity: Room { memory_mib, cpu_milli: 4000, machines: 100 },
        reserved: Room::default(),
        performance: 1.0,
        used: 0.0,
    }
}

pub(crate) fn record(name: &str, scaling: &str) -> ServiceRecord {
    let scaling: ScalingPolicy = serde_json::from_str(scaling).expect("scaling policy");
    let spec = serde_json::json!({"name": name, "image": "i", "scaling": scaling});
    let spec: skein_model::ServiceSpec = serde_json::from_value(spec).unwrap();
    spec.check().expect("a valid policy");
    ServiceRecord {
        project: Default::default(),
        spec,
        generation: Generation(1),
        created_at: Timestamp::ZERO,
    }
}

impl World {
    pub(crate) fn new(nodes: Vec<NodeView>) -> Self {
        Self {
            now: Timestamp::from_micros(1_000_000),
            nodes,
            machines: vec![],
            services: BTreeMap::new(),
            memory: Memory::default(),
            rng: PlanRng::from_seed(1),
            next_at: None,
            log: String::new(),
            plans: 0,
            last_plan: Plan::default(),
        }
    }

    /// Machines of 16 MiB for 4 jobs, that start in 40 ms and serve a job in 100 ms.
    pub(crate) fn service(&mut self, name: &str, scaling: &str) -> ServiceKey {
        let record = record(name, scaling);
        let key = ServiceKey::from(&record);
        let service = Service {
            record,
            waiting: 0,
            accepted: 0,
            revision: 1,
            capacity: 4,
            memory_mib: 16,
            starts: Duration::from_millis(40),
            job: Duration::from_millis(100),
            broken: false,
            ended: vec![],
        };
        self.services.insert(key.clone(), service);
        key
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.now.as_micros() as f64 / 1e6 - 1.0
    }

    pub(crate) fn say(&mut self, text: &str) {
        let at = self.seconds();
        writeln!(self.log, "{at:7.3} {text}").unwrap();
    }

    pub(crate) fn submit(&mut self, key: &ServiceKey, jobs: u32) {
        let service = self.services.get_mut(key).unwrap();
        (service.waiting, service.accepted) =
            (service.waiting + jobs, service.accepted + u64::from(jobs));
        self.claim();
        self.plan();
    }

    pub(crate) fn observed(&self) -> Observed {
        let mut nodes = self.nodes.clone();
        for machine in &self.machines {
            let room = self.room(&machine.key);
            if let Some(node) = nodes.iter_mut().find(|node| node.name == machine.view.node) {
                node.reserved = node.reserved.plus(room);
            }
        }
        let mut services: BTreeMap<ServiceKey, ServiceView> = BTreeMap::new();
        for (key, service) in &self.services {
            services.insert(
                key.clone(),
                ServiceView {
                    load: Load {
                        waiting: service.waiting,
                        in_service: 0,
                        accepted: service.accepted,
                    },
                    capacity: service.capacity,
                    room: self.room(key),
                    revision: Revision(service.revision),
                    ended: service.ended.clone(),
                    ..ServiceView::default()
                },
            );
        }
        for machine in &self.machines {
            let view = services.entry(machine.key.clone()).or_default();
            let mut replica = machine.view.clone();
            replica.in_service = machine.jobs.len() as u32;
            view.load.in_service += replica.in_service;
            view.replicas.push(replica);
        }
        Observed { nodes, services }
    }

    fn room(&self, key: &ServiceKey) -> Room {
        let memory_mib = self.services.get(key).map_or(16, |service| service.memory_mib);
        Room { memory_mib, cpu_milli: 100, machines: 1 }
    }

    /// Plans, checks the plan, carries it out; says what was done.
    pub(crate) fn plan(&mut self) -> usize {
        let seen = self.observed();
        let records: Vec<ServiceRecord> =
            self.services.values().map(|service| service.record.clone()).collect();
        let desired = Desired { services: &records };
        let (memory, rng) = (self.memory.clone(), &mut self.rng.clone());
        let answer = plan(&desired, &seen, memory, self.now, rng);
        let again = plan(&desired, &seen, self.memory.clone(), self.now, &mut self.rng.clone());
        assert_eq!(answer, again, "same inputs, same plan");
        self.rng = rng.clone();
        let wrong = check::all(&answer, &desired, &seen, self.now);
        assert_eq!(
            wrong,
            vec![],
            "at {} s: {answer:#?}\nof {seen:#?}\n{}",
            self.seconds(),
            self.log
        );
        let json = serde_json::to_string(&answer.memory).unwrap();
        self.memory = serde_json::from_str(&json).unwrap();
        assert_eq!(self.memory, answer.memory, "memory survives being stored");
        self.next_at = answer.next_at;
        self.plans += 1;
        let steps = answer.steps.clone();
        self.last_plan = answer;
        let mut acted = 0;
        for step in steps {
            let hold = matches!(step, Step::Hold { .. });
            acted += usize::from(!hold);
            let line = step.to_string();
            // What holds is said once, not at every plan.
            if !hold || !self.log.lines().rev().take(3).any(|said| said.ends_with(&line)) {
                self.say(&line);
            }
            self.carry_out(step);
        }
        if acted > 0 {
            // The agents answer, and the controller looks again.
            let soon = self.now + Duration::from_millis(1);
            self.next_at = Some(self.next_at.map_or(soon, |at| at.min(soon)));
        }
        acted
    }

    /// The decision for a service at the latest plan, in words.
    pub(crate) fn why(&self, key: &ServiceKey) -> String {
        let decision = self.last_plan.decisions.iter().find(|d| d.service == *key).unwrap();
        format!("{} -> {}: {}", decision.current, decision.wanted, decision.reason.text(self.now))
    }

    fn carry_out(&mut self, step: Step) {
        match step {
            Step::Boot { machine, service, node, generation, .. } => {
                let revision = Revision(self.services[&service].revision);
                self.machines.push(Machine {
                    view: ReplicaView {
                        machine,
                        node,
                        goal: MachineGoal::Run,
                        phase: PhaseName::Booting,
                        in_service: 0,
                        generation,
                        since: self.now,
                        revision,
                    },
                    key: service,
                    created_at: self.now,
                    jobs: vec![],
                });
            }
            Step::Drain { machine, generation, .. } => {
                let machine = self.machine(&machine);
                machine.view.goal = MachineGoal::Drain;
                machine.view.phase = PhaseName::Draining;
                machine.view.generation = generation;
            }
            Step::Stop { machine, .. } => {
                self.machines.retain(|m| m.view.machine != machine);
            }
            Step::Hold { .. } => {}
        }
    }

    fn machine(&mut self, id: &MachineId) -> &mut Machine {
        self.machines.iter_mut().find(|m| m.view.machine == *id).expect("a machine that is there")
    }

    /// Ready machines take jobs from the queue.
    fn claim(&mut self) {
        for machine in &mut self.machines {
            let Some(service) = self.services.get_mut(&machine.key) else { continue };
            let lost = self
                .nodes
                .iter()
                .any(|node| node.name == machine.view.node && node.state == NodeState::Lost);
            while machine.view.phase == PhaseName::Ready
                && !lost
                && service.waiting > 0
                && (machine.jobs.len() as u32) < service.capacity
            {
                service.waiting -= 1;
                machine.jobs.push(self.now + service.job);
            }
        }
    }

    /// When something happens by itself.
    fn next_event(&self) -> Option<Timestamp> {
        let machines = self.machines.iter().flat_map(|machine| {
            let service = self.services.get(&machine.key);
            let booted = service
                .filter(|_| machine.view.phase == PhaseName::Booting)
                .map(|service| machine.created_at + service.starts);
            booted.into_iter().chain(machine.jobs.iter().copied())
        });
        machines.chain(self.next_at).min()
    }

    fn happen(&mut self) {
        let now = self.now;
        for machine in &mut self.machines {
            machine.jobs.retain(|end| *end > now);
            let Some(service) = self.services.get_mut(&machine.key) else { continue };
            if machine.view.phase == PhaseName::Booting
                && machine.created_at + service.starts <= now
            {
                if service.broken {
                    service.ended.push(Ended {
                        created_at: machine.created_at,
                        ready_at: None,
                        ended_at: now,
                        code: "GUEST_PANIC",
                    });
                    machine.view.phase = PhaseName::Gone;
                } else {
                    machine.view.phase = PhaseName::Ready;
                    machine.view.since = now;
                }
            }
        }
        self.machines.retain(|machine| machine.view.phase != PhaseName::Gone);
        self.claim();
    }

    /// Lets time pass, for so many seconds after the beginning.
    pub(crate) fn until(&mut self, seconds: f64) {
        let end = Timestamp::from_micros(1_000_000 + (seconds * 1e6) as u64);
        while let Some(at) = self.next_event().filter(|at| *at <= end) {
            assert!(at >= self.now);
            self.now = at;
            self.happen();
            self.plan();
        }
        self.now = end;
        self.plan();
    }

    pub(crate) fn set_node(&mut self, name: &str, state: NodeState) {
        let name: NodeName = name.parse().unwrap();
        self.nodes.iter_mut().find(|node| node.name == name).unwrap().state = state;
        if state == NodeState::Lost {
            for machine in self.machines.iter_mut().filter(|m| m.view.node == name) {
                let back = machine.jobs.drain(..).count() as u32;
                self.services.get_mut(&machine.key).unwrap().waiting += back;
            }
        }
        self.say(&format!("-- {name} is {state:?}"));
        self.plan();
    }

    /// The lost machines are known to be gone.
    pub(crate) fn bury(&mut self) {
        let lost: Vec<NodeName> = self
            .nodes
            .iter()
            .filter(|node| node.state == NodeState::Lost)
            .map(|node| node.name.clone())
            .collect();
        self.machines.retain(|machine| !lost.contains(&machine.view.node));
        self.plan();
    }

    pub(crate) fn count(&self, key: &ServiceKey) -> usize {
        self.machines.iter().filter(|m| m.key == *key && m.view.goal == MachineGoal::Run).count()
    }
}

/// Compares with the file of that name; a difference leaves what was said beside it in the build directory.
pub(crate) fn golden(name: &str, expect: &str, is: &str) {
    if expect != is {
        let path = format!("{}/{name}.txt", env!("CARGO_TARGET_TMPDIR"));
        std::fs::write(&path, is).unwrap();
        panic!("{name} differs from tests/golden/{name}.txt; it is now in {path}:\n{is}");
    }
}
