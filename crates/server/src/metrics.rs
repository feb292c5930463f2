//! Figures for Prometheus, with the statistics of migrating systems: generated, served, refused and lost requests,
//! times in system, queue and service, queue length, replicas, replications and dereplications.
//!
//! Counters are fed by the recorded events, gauges are read when somebody asks.

use crate::link_metrics::LinkMetrics;
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use skein_model::{DeadLetterReason, Event, EventKind};
use std::collections::HashMap;
use std::sync::atomic::AtomicU64;

/// Whose figures. Services are few and chosen by their owner; ids never are labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Of {
    pub(crate) project: String,
    pub(crate) service: String,
}

/// Which node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OnNode {
    pub(crate) node: String,
}

type Counters = Family<Of, Counter>;
type Gauges = Family<Of, Gauge<f64, AtomicU64>>;
type Histograms = Family<Of, Histogram, fn() -> Histogram>;

/// 100 us to 27 min by factors of 4: a cold start and a warm one fall into different buckets.
fn times() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 4.0, 12))
}

/// All figures.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) generated: Counters,
    pub(crate) accepted: Counters,
    pub(crate) refused: Counters,
    pub(crate) served: Counters,
    pub(crate) lost: Counters,
    pub(crate) dead: Counters,
    pub(crate) cancelled: Counters,
    pub(crate) returned: Counters,
    pub(crate) replications: Counters,
    pub(crate) dereplications: Counters,
    pub(crate) migrations: Counters,
    pub(crate) unplaceable: Counters,
    pub(crate) machines_failed: Counters,
    queue_time: Histograms,
    service_time: Histograms,
    system_time: Histograms,
    start_time: Histograms,
    boot_time: Histograms,
    pub(crate) queue_length: Gauges,
    pub(crate) in_service: Gauges,
    pub(crate) replicas_ready: Gauges,
    pub(crate) replicas_booting: Gauges,
    pub(crate) node_machines: Family<OnNode, Gauge>,
    pub(crate) node_memory_reserved: Family<OnNode, Gauge>,
    pub(crate) node_up: Family<OnNode, Gauge>,
    pub(crate) link: LinkMetrics,
    sums: std::sync::Mutex<HashMap<Of, Sums>>,
    /// Held while gauges are set and shown.
    reading: std::sync::Mutex<()>,
}

/// For the means that `service show` prints.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sums {
    pub(crate) served: u64,
    pub(crate) queue_seconds: f64,
    pub(crate) service_seconds: f64,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("skein");
        let mut counters = |name: &str, help: &str| {
            let family = Counters::default();
            registry.register(name, help, family.clone());
            family
        };
        let generated = counters("jobs_generated", "Jobs that arrived, accepted and refused");
        let accepted = counters("jobs_accepted", "Jobs accepted");
        let refused = counters("jobs_refused", "Jobs refused because the queue was full");
        let served = counters("jobs_served", "Jobs whose result was recorded");
        let lost = counters("jobs_lost", "Jobs given up because each machine died with them");
        let dead = counters("jobs_dead_lettered", "Jobs given up, lost ones included");
        let cancelled = counters("jobs_cancelled", "Jobs withdrawn by their sender");
        let returned = counters("job_attempts_returned", "Attempts that went back to the queue");
        let replications = counters("replications", "Replicas added");
        let dereplications = counters("dereplications", "Replicas removed");
        let migrations = counters("migrations", "Replicas moved to other nodes");
        let unplaceable = counters("unplaceable", "Times a wanted replica could not be had");
        let machines_failed = counters("machines_failed", "Machines that ended unasked");
        let mut histograms = |name: &str, help: &str| {
            let family = Histograms::new_with_constructor(times);
            registry.register_with_unit(name, help, Unit::Seconds, family.clone());
            family
        };
        let queue_time = histograms("job_queue_time", "Time in the queue of served jobs");
        let service_time = histograms("job_service_time", "Time in service of served jobs");
        let system_time = histograms("job_system_time", "Time from acceptance to result");
        let start_time = histograms("machine_start_time", "Time from launch to ready");
        let boot_time = histograms("machine_boot_time", "Time from kernel entry to listening");
        let mut gauges = |name: &str, help: &str| {
            let family = Gauges::default();
            registry.register(name, help, family.clone());
            family
        };
        let queue_length = gauges("queue_length", "Jobs waiting");
        let in_service = gauges("jobs_in_service", "Jobs being served");
        let replicas_ready = gauges("replicas_ready", "Machines that serve");
        let replicas_booting = gauges("replicas_booting", "Machines that start");
        let node_machines = Family::<OnNode, Gauge>::default();
        registry.register("node_machines", "Machines on the node", node_machines.clone());
        let node_memory_reserved = Family::<OnNode, Gauge>::default();
        registry.register_with_unit(
            "node_memory_reserved",
            "Memory that machines have reserved",
            Unit::Bytes,
            node_memory_reserved.clone(),
        );
        let node_up = Family::<OnNode, Gauge>::default();
        registry.register("node_up", "1 while the node's agent lives", node_up.clone());
        let link = LinkMetrics::new(&mut registry);
        Self {
            registry,
            generated,
            accepted,
            refused,
            served,
            lost,
            dead,
            cancelled,
            returned,
            replications,
            dereplications,
            migrations,
            unplaceable,
            machines_failed,
            queue_time,
            service_time,
            system_time,
            start_time,
            boot_time,
            queue_length,
            in_service,
            replicas_ready,
            replicas_booting,
            node_machines,
            node_memory_reserved,
            node_up,
            link,
            sums: std::sync::Mutex::default(),
            reading: std::sync::Mutex::default(),
        }
    }

    /// Counts an event.
    pub(crate) fn count(&self, event: &Event) {
        let (Some(project), Some(service)) = (&event.subject.project, &event.subject.service)
        else {
            return;
        };
        let of = Of { project: project.to_string(), service: service.to_string() };
        let one = |family: &Counters| {
            family.get_or_create(&of).inc();
        };
        let seconds = |micros: u64| micros as f64 / 1e6;
        match &event.kind {
            EventKind::JobAccepted => {
                one(&self.generated);
                one(&self.accepted);
            }
            EventKind::JobRefused { .. } => {
                one(&self.generated);
                one(&self.refused);
            }
            EventKind::JobDone { queue_us, service_us } => {
                one(&self.served);
                self.count_times(of, seconds(*queue_us), seconds(*service_us));
            }
            EventKind::JobDeadLettered { code, .. } => {
                one(&self.dead);
                let lost = DeadLetterReason::Lost { last: String::new() };
                if code == lost.code() {
                    one(&self.lost);
                }
            }
            EventKind::JobReturned { .. } => one(&self.returned),
            EventKind::JobCancelled => one(&self.cancelled),
            EventKind::Replicated { .. } => one(&self.replications),
            EventKind::Dereplicated { .. } => one(&self.dereplications),
            EventKind::Unplaceable { .. } => one(&self.unplaceable),
            EventKind::MachineReady { start_us, boot_us } => {
                self.start_time.get_or_create(&of).observe(seconds(*start_us));
                self.boot_time.get_or_create(&of).observe(seconds(*boot_us));
            }
            EventKind::MachineGone { code, .. } => {
                if code != skein_model::ExitCause::Stopped.code() {
                    one(&self.machines_failed);
                }
            }
            EventKind::Migrated { .. } => one(&self.migrations),
            EventKind::JobStarted { .. }
            | EventKind::Migrating { .. }
            | EventKind::TransferBegan { .. }
            | EventKind::TransferEnded { .. }
            | EventKind::MachineLaunched
            | EventKind::MachineAdopted
            | EventKind::MachineDraining
            | EventKind::NodeJoined
            | EventKind::NodeLeft
            | EventKind::NodeLost => {}
            other => debug_assert!(!other.changes_what_runs(), "{other:?} is counted nowhere"),
        }
    }

    /// Counts the times of a job that was served, seconds.
    fn count_times(&self, of: Of, queue: f64, service: f64) {
        self.queue_time.get_or_create(&of).observe(queue);
        self.service_time.get_or_create(&of).observe(service);
        self.system_time.get_or_create(&of).observe(queue + service);
        let mut sums = self.sums.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let sums = sums.entry(of).or_default();
        sums.served += 1;
        sums.queue_seconds += queue;
        sums.service_seconds += service;
    }

    /// What a service's served jobs took.
    pub(crate) fn sums(&self, of: &Of) -> Sums {
        let sums = self.sums.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        sums.get(of).copied().unwrap_or_default()
    }

    /// Forgets all gauges, so that those of what was removed do not stay. No one else sets them until the guard is dropped.
    pub(crate) fn begin_reading(&self) -> std::sync::MutexGuard<'_, ()> {
        let guard = self.reading.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.queue_length.clear();
        self.in_service.clear();
        self.replicas_ready.clear();
        self.replicas_booting.clear();
        self.node_machines.clear();
        self.node_memory_reserved.clear();
        self.node_up.clear();
        self.link.clear();
        guard
    }

    /// All figures in Prometheus' text format.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
