//! From records to what the policy sees. Pure.

use skein_model::{
    ExitCause, MachineGoal, MachinePhase, MachineRecord, MachineStatus, NodeState, PhaseName,
    ServiceRecord,
};
use skein_policy::{
    Ended, Load, NodeView, Observed, ReplicaView, Revision, Room, ServiceKey, ServiceView,
};
use skein_registry::View;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

/// What a service's queue holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct QueueView {
    /// Due jobs that wait.
    pub(crate) waiting: u32,
    /// Jobs being served.
    pub(crate) in_service: u32,
    /// Jobs accepted so far.
    pub(crate) accepted: u64,
    /// Age of the oldest waiting job.
    pub(crate) oldest_wait: Duration,
}

/// Where a machine stands, as the policy sees it.
pub(crate) fn phase(status: Option<&MachineStatus>) -> PhaseName {
    status.map_or(PhaseName::Scheduled, |status| status.phase.name())
}

/// All that the policy looks at. `busy` are the jobs that each machine serves, and `used_share` what share of its processors each
/// node uses, as far as is known.
pub(crate) fn observe(
    view: &View,
    queues: &BTreeMap<ServiceKey, QueueView>,
    busy: impl Fn(&skein_model::MachineId) -> u32,
    used_share: impl Fn(&skein_model::NodeName) -> f64,
) -> Observed {
    let used = crate::reserved::reserved(view);
    let nodes = view.nodes.values().map(|stored| {
        let node = &stored.value;
        NodeView {
            name: node.name.clone(),
            state: view.node_state(&node.name),
            capacity: Room {
                memory_mib: node.memory_mib,
                cpu_milli: node.cpu.0.into(),
                machines: node.machines_max,
            },
            reserved: used.get(&node.name).copied().unwrap_or_default(),
            performance: node.performance,
            used: used_share(&node.name),
        }
    });
    let mut services: BTreeMap<ServiceKey, ServiceView> = BTreeMap::new();
    for stored in view.services.values() {
        let record = &stored.value;
        if let Some(seen) = service_view(view, record, queues) {
            services.insert(record.as_ref().into(), seen);
        }
    }
    for stored in view.machines.values() {
        let record = &stored.value;
        let key = ServiceKey { project: record.project.clone(), service: record.service.clone() };
        let status = view.statuses.get(&record.id).map(|status| &*status.value);
        let service = match services.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            // What is wanted and has no view is not to be seen as wanted no more: its machines go on.
            Entry::Vacant(_) if wanted(view, record) => continue,
            Entry::Vacant(removed) => removed.insert(ServiceView::default()),
        };
        match status.map(|status| &status.phase) {
            Some(MachinePhase::Gone { cause, at }) => {
                if failed(record, cause, view) {
                    service.ended.push(Ended {
                        created_at: record.created_at,
                        ready_at: status.and_then(|s| s.ready_at),
                        ended_at: *at,
                        code: cause.code(),
                    });
                }
            }
            Some(_) | None => service.replicas.push(replica(record, status, &busy)),
        }
    }
    Observed { nodes: nodes.collect(), services }
}

/// Whether a machine's service still exists.
fn wanted(view: &View, record: &MachineRecord) -> bool {
    view.services.contains_key(&(record.project.clone(), record.service.clone()))
}

/// Whether a machine ended unasked, other than with its node.
fn failed(record: &MachineRecord, cause: &ExitCause, view: &View) -> bool {
    record.goal == MachineGoal::Run
        && !matches!(cause, ExitCause::Stopped | ExitCause::Lost)
        && view.node_state(&record.node) != NodeState::Lost
}

fn replica(
    record: &MachineRecord,
    status: Option<&MachineStatus>,
    busy: impl Fn(&skein_model::MachineId) -> u32,
) -> ReplicaView {
    let phase = phase(status);
    // The agent ends a drained machine itself, and knows what it serves: reports come late, and a machine that is
    // stopped by an old one takes a job with it.
    let draining = record.goal == MachineGoal::Drain || phase == PhaseName::Draining;
    ReplicaView {
        machine: record.id.clone(),
        node: record.node.clone(),
        goal: record.goal,
        phase,
        in_service: busy(&record.id).max(draining.into()),
        generation: record.generation,
        since: status.and_then(|s| s.ready_at).unwrap_or(record.created_at),
        revision: Revision::of(
            &record.image,
            record.memory,
            record.capacity,
            &record.parameters,
            (&record.network, record.addressing),
        ),
    }
}

/// None while the image is unknown: then nothing can be booted, and the policy says so.
fn service_view(
    view: &View,
    record: &ServiceRecord,
    queues: &BTreeMap<ServiceKey, QueueView>,
) -> Option<ServiceView> {
    let spec = &record.spec;
    let image = &view.images.get(&(record.project.clone(), spec.image.clone()))?.value;
    let memory = spec.memory.unwrap_or(image.memory);
    let capacity = spec.capacity.unwrap_or(image.capacity);
    let queue = queues.get(&record.into()).copied().unwrap_or_default();
    Some(ServiceView {
        load: Load {
            waiting: queue.waiting,
            in_service: queue.in_service,
            accepted: queue.accepted,
        },
        oldest_wait: queue.oldest_wait,
        capacity,
        room: Room {
            memory_mib: memory.get().into(),
            cpu_milli: spec.cpu_milli.into(),
            machines: 1,
        },
        revision: Revision::of(
            image,
            memory,
            capacity,
            &spec.parameters,
            (&spec.network.name, spec.network.addressing),
        ),
        replicas: Vec::new(),
        ended: Vec::new(),
    })
}
