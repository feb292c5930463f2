//! The history of a replication, in the events that the live system writes too.

use super::events::Nanos;
use super::service::Request;
use super::world::Transfer;
use crate::scenario::Scenario;
use skein_model::{
    Event, EventKind, EventSubject, JobId, MachineId, NodeName, ProjectName, ServiceName, Timestamp,
};
use skein_policy::Reason;
use std::time::Duration;

/// Writes events, or nothing at all.
#[derive(Debug)]
pub(super) struct History(Option<Box<Writer>>);

#[derive(Debug)]
struct Writer {
    project: ProjectName,
    nodes: Vec<NodeName>,
    services: Vec<ServiceName>,
    events: Vec<Event>,
}

fn at(now: Nanos) -> Timestamp {
    Timestamp::from_micros(now / 1000)
}

impl History {
    pub(super) fn new(of: Option<(&Scenario, Vec<(String, usize)>)>) -> Self {
        Self(of.map(|(scenario, names)| {
            // A name with a number may be too long for a name: then the node goes by its number.
            let name = |(number, (name, _)): (usize, &(String, usize))| {
                name.parse().or_else(|_| format!("n{number}").parse()).ok()
            };
            Box::new(Writer {
                project: ProjectName::default(),
                nodes: names.iter().enumerate().filter_map(name).collect(),
                services: scenario.services.iter().map(|it| it.name.clone()).collect(),
                events: vec![],
            })
        }))
    }

    pub(super) fn take(&mut self) -> Vec<Event> {
        self.0.take().map(|writer| writer.events).unwrap_or_default()
    }

    fn node(&mut self, now: Nanos, node: usize, kind: EventKind) {
        if let Some(writer) = &mut self.0 {
            let node = writer.nodes.get(node).cloned();
            let subject = EventSubject { node, ..EventSubject::default() };
            writer.events.push(Event { at: at(now), subject, kind });
        }
    }

    pub(super) fn node_joined(&mut self, now: Nanos, node: usize) {
        self.node(now, node, EventKind::NodeJoined);
    }

    pub(super) fn node_lost(&mut self, now: Nanos, node: usize) {
        self.node(now, node, EventKind::NodeLost);
    }

    #[inline]
    fn job(
        &mut self,
        now: Nanos,
        service: usize,
        request: &Request,
        kind: impl FnOnce() -> EventKind,
    ) {
        if self.0.is_some() {
            self.write_job(now, service, request, kind());
        }
    }

    #[cold]
    fn write_job(&mut self, now: Nanos, service: usize, request: &Request, kind: EventKind) {
        if let Some(writer) = &mut self.0 {
            let subject = EventSubject {
                project: Some(writer.project.clone()),
                service: Some(writer.services[service].clone()),
                job: Some(JobId::new(at(request.sent), request.number.into())),
                ..EventSubject::default()
            };
            writer.events.push(Event { at: at(now), subject, kind });
        }
    }

    #[inline]
    pub(super) fn accepted(&mut self, now: Nanos, service: usize, request: &Request) {
        self.job(now, service, request, || EventKind::JobAccepted);
    }

    pub(super) fn refused(&mut self, now: Nanos, service: usize, request: &Request, depth: u32) {
        self.job(now, service, request, || EventKind::JobRefused { depth });
    }

    pub(super) fn returned(&mut self, now: Nanos, service: usize, request: &Request) {
        let (attempt, reason) = (request.attempts, "its machine went");
        let kind = || EventKind::JobReturned { attempt, reason: reason.to_owned() };
        self.job(now, service, request, kind);
    }

    pub(super) fn dead(&mut self, now: Nanos, service: usize, request: &Request) {
        let (code, message) = ("MACHINE_LOST", "lost with its node");
        let kind = || EventKind::JobDeadLettered { code: code.into(), message: message.into() };
        self.job(now, service, request, kind);
    }

    /// Adds the machine to the latest event.
    #[inline]
    fn at_machine(&mut self, service: usize, machine: (u64, usize)) {
        if self.0.is_some() {
            self.write_machine(service, machine);
        }
    }

    #[cold]
    fn write_machine(&mut self, service: usize, (number, node): (u64, usize)) {
        if let Some(writer) = &mut self.0 {
            let machine = MachineId::new(&writer.services[service], number);
            let node = writer.nodes.get(node).cloned();
            if let Some(event) = writer.events.last_mut() {
                event.subject.machine = Some(machine);
                event.subject.node = node;
            }
        }
    }

    #[inline]
    pub(super) fn begun(
        &mut self,
        now: Nanos,
        service: usize,
        machine: (u64, usize),
        request: &Request,
    ) {
        self.job(now, service, request, || EventKind::JobStarted { attempt: request.attempts });
        self.at_machine(service, machine);
    }

    #[inline]
    pub(super) fn served(
        &mut self,
        now: Nanos,
        service: usize,
        machine: (u64, usize),
        request: &Request,
        spent: Nanos,
    ) {
        let (queue_us, service_us) = (request.waited / 1000, spent / 1000);
        let kind = || EventKind::JobDone { queue_us, service_us };
        self.job(now, service, request, kind);
        self.at_machine(service, machine);
    }

    fn machine(
        &mut self,
        now: Nanos,
        service: usize,
        machine: (u64, usize),
        kind: impl FnOnce() -> EventKind,
    ) {
        if let Some(writer) = &mut self.0 {
            let subject = EventSubject {
                project: Some(writer.project.clone()),
                service: Some(writer.services[service].clone()),
                ..EventSubject::default()
            };
            writer.events.push(Event { at: at(now), subject, kind: kind() });
            self.at_machine(service, machine);
        }
    }

    pub(super) fn replicated(
        &mut self,
        now: Nanos,
        service: usize,
        machine: (u64, usize),
        reason: &Reason,
    ) {
        let kind = || EventKind::Replicated { reason: reason.text(at(now)).to_string() };
        self.machine(now, service, machine, kind);
    }

    pub(super) fn dereplicated(
        &mut self,
        now: Nanos,
        service: usize,
        machine: (u64, usize),
        reason: &Reason,
    ) {
        let kind = || EventKind::Dereplicated { reason: reason.text(at(now)).to_string() };
        self.machine(now, service, machine, kind);
    }

    /// Something is sent over the network.
    #[inline]
    pub(super) fn transfer_began(
        &mut self,
        now: Nanos,
        transfer: u64,
        (what, mib): (&Transfer, f64),
        nodes: impl FnOnce() -> Vec<usize>,
    ) {
        let Some(writer) = &mut self.0 else { return };
        let (word, service, job) = match what {
            Transfer::Code { service, .. } => ("code", service, None),
            Transfer::State { service, .. } => ("state", service, None),
            Transfer::Input { service, .. } => ("input", service, None),
            Transfer::Output { service, request, .. } => ("output", service, Some(request)),
        };
        let name = |node: usize| writer.nodes.get(node).map(ToString::to_string);
        let route = nodes().into_iter().filter_map(name).collect();
        let subject = EventSubject {
            project: Some(writer.project.clone()),
            service: writer.services.get(*service as usize).cloned(),
            job: job.map(|request| JobId::new(at(request.sent), request.number.into())),
            ..EventSubject::default()
        };
        let kib = (mib * 1024.0).round() as u64;
        let kind = EventKind::TransferBegan { transfer, what: word.to_owned(), route, kib };
        writer.events.push(Event { at: at(now), subject, kind });
    }

    /// It is there.
    #[inline]
    pub(super) fn transfer_ended(&mut self, now: Nanos, transfer: u64) {
        if let Some(writer) = &mut self.0 {
            let (subject, kind) = (EventSubject::default(), EventKind::TransferEnded { transfer });
            writer.events.push(Event { at: at(now), subject, kind });
        }
    }

    /// A replica of a number moves from a node; its copy starts.
    pub(super) fn migrating(
        &mut self,
        now: Nanos,
        service: usize,
        (left, copy): ((u64, usize), (u64, usize)),
        reason: &Reason,
    ) {
        let Some(writer) = &self.0 else { return };
        let machine = MachineId::new(&writer.services[service], left.0).to_string();
        let from = writer.nodes.get(left.1).map(ToString::to_string).unwrap_or_default();
        let reason = reason.text(at(now)).to_string();
        self.machine(now, service, copy, || EventKind::Migrating { machine, from, reason });
    }

    /// A replica's copy serves.
    pub(super) fn migrated(
        &mut self,
        now: Nanos,
        service: usize,
        (left, copy): ((u64, usize), u64),
    ) {
        let Some(writer) = &self.0 else { return };
        let machine = MachineId::new(&writer.services[service], copy).to_string();
        let reason = Reason::Moved.text(at(now)).to_string();
        self.machine(now, service, left, || EventKind::Migrated { machine, reason });
    }

    pub(super) fn ready(
        &mut self,
        now: Nanos,
        service: usize,
        machine: (u64, usize),
        start: Duration,
    ) {
        let start_us = u64::try_from(start.as_micros()).unwrap_or(u64::MAX);
        self.machine(now, service, machine, || EventKind::MachineReady {
            start_us,
            boot_us: start_us,
        });
    }

    fn ended(
        &mut self,
        now: Nanos,
        service: usize,
        machine: (u64, usize),
        (code, message): (&str, &str),
    ) {
        self.machine(now, service, machine, || EventKind::MachineGone {
            code: code.to_owned(),
            message: message.to_owned(),
        });
    }

    pub(super) fn gone(&mut self, now: Nanos, service: usize, machine: (u64, usize)) {
        self.ended(now, service, machine, ("STOPPED", "stopped"));
    }

    pub(super) fn lost(&mut self, now: Nanos, service: usize, machine: (u64, usize)) {
        self.ended(now, service, machine, ("MACHINE_LOST", "lost"));
    }
}
