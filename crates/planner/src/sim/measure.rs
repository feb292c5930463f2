//! From sums to measures with their confidence intervals.

use super::stats::{Measured, Sums};
use crate::output::{Estimate, rule_of_three};
use crate::scenario::{FailureLoses, Scenario, Service};
use serde::Serialize;

/// What is reported of a service. The same words as in the chain and in live statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Share of the requests that were refused because the queue was full.
    Refusal,
    /// Share of the requests that were lost with a node.
    Loss,
    /// Share of the requests that were served; 1 - refusal - loss.
    Service,
    /// Requests served, per second.
    Throughput,
    /// Requests lost, per second.
    LostRate,
    /// Ready replicas.
    Replicas,
    /// Requests that wait.
    QueueLength,
    /// Requests that wait or are served.
    InSystem,
    /// Seconds from sending to answer.
    TimeInSystem,
    /// Seconds in the queue.
    TimeInQueue,
    /// Seconds at a machine.
    TimeInService,
    /// Median of the seconds from sending to answer.
    P50,
    /// 90 % quantile.
    P90,
    /// 99 % quantile.
    P99,
    /// Nodes that work.
    WorkingNodes,
    /// Replicas added, per hour.
    ReplicationRate,
    /// Replicas removed, per hour.
    DereplicationRate,
    /// Changes from adding to removing and back, per hour.
    Oscillation,
    /// Replicas that moved to other nodes, per hour.
    MigrationRate,
    /// Mean seconds in which a replica that moves serves nothing; 0 when none moved.
    MigrationPause,
    /// Code and state sent to new replicas and to those that move, MiB per hour.
    TransferRate,
    /// Replicas that start.
    Starting,
}

impl Measure {
    /// All, in the order of a report.
    pub const ALL: [Self; 22] = [
        Self::Refusal,
        Self::Loss,
        Self::Service,
        Self::Throughput,
        Self::LostRate,
        Self::Replicas,
        Self::Starting,
        Self::QueueLength,
        Self::InSystem,
        Self::TimeInSystem,
        Self::TimeInQueue,
        Self::TimeInService,
        Self::P50,
        Self::P90,
        Self::P99,
        Self::WorkingNodes,
        Self::ReplicationRate,
        Self::DereplicationRate,
        Self::Oscillation,
        Self::MigrationRate,
        Self::MigrationPause,
        Self::TransferRate,
    ];

    /// As written in reports, files and goals.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refusal => "refusal",
            Self::Loss => "loss",
            Self::Service => "service",
            Self::Throughput => "throughput",
            Self::LostRate => "lost_rate",
            Self::Replicas => "replicas",
            Self::QueueLength => "queue_length",
            Self::InSystem => "in_system",
            Self::TimeInSystem => "time_in_system",
            Self::TimeInQueue => "time_in_queue",
            Self::TimeInService => "time_in_service",
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P99 => "p99",
            Self::WorkingNodes => "working_nodes",
            Self::ReplicationRate => "replication_rate",
            Self::DereplicationRate => "dereplication_rate",
            Self::Oscillation => "oscillation",
            Self::MigrationRate => "migration_rate",
            Self::MigrationPause => "migration_pause",
            Self::TransferRate => "transfer_rate",
            Self::Starting => "starting",
        }
    }

    /// Its unit; empty for numbers and shares.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Throughput | Self::LostRate => "/s",
            Self::TimeInSystem
            | Self::TimeInQueue
            | Self::TimeInService
            | Self::P50
            | Self::P90
            | Self::P99
            | Self::MigrationPause => "s",
            Self::ReplicationRate
            | Self::DereplicationRate
            | Self::Oscillation
            | Self::MigrationRate => "/h",
            Self::TransferRate => "MiB/h",
            Self::Refusal
            | Self::Loss
            | Self::Service
            | Self::Replicas
            | Self::QueueLength
            | Self::InSystem
            | Self::WorkingNodes
            | Self::Starting => "",
        }
    }

    /// The value that a replication measured; not a number when nothing was there to measure.
    pub fn of(self, measured: &Measured) -> f64 {
        let sums = &measured.sums;
        let share = |part: f64| if sums.generated > 0.0 { part / sums.generated } else { 0.0 };
        let each = |part: f64| part / sums.served;
        let hourly = |count: f64| count * 3600.0 / sums.secs;
        match self {
            Self::Refusal => share(sums.refused),
            Self::Loss => share(sums.lost),
            Self::Service => 1.0 - share(sums.refused) - share(sums.lost),
            Self::Throughput => sums.served / sums.secs,
            Self::LostRate => sums.lost / sums.secs,
            Self::Replicas => sums.area_ready / sums.secs,
            Self::QueueLength => sums.area_waiting / sums.secs,
            Self::InSystem => (sums.area_waiting + sums.area_busy) / sums.secs,
            Self::TimeInSystem => each(sums.in_system),
            Self::TimeInQueue => each(sums.in_queue),
            Self::TimeInService => each(sums.in_service),
            Self::P50 => measured.time_quantile(0.5).unwrap_or(f64::NAN),
            Self::P90 => measured.time_quantile(0.9).unwrap_or(f64::NAN),
            Self::P99 => measured.time_quantile(0.99).unwrap_or(f64::NAN),
            Self::WorkingNodes => sums.area_nodes / sums.secs,
            Self::ReplicationRate => hourly(sums.replications),
            Self::DereplicationRate => hourly(sums.dereplications),
            Self::Oscillation => hourly(sums.turns),
            Self::MigrationRate => hourly(sums.migrations),
            Self::MigrationPause => sums.paused / sums.migrations.max(1.0),
            Self::TransferRate => hourly(sums.transferred_mib),
            Self::Starting => sums.area_starting / sums.secs,
        }
    }

    /// How much of it there may be though no replication saw any, where it may happen at all; none where some did. Requests count as
    /// independent of each other, of which so many were sent together, and so do seconds.
    fn unseen(
        self,
        all: &Sums,
        (scenario, service): (&Scenario, &Service),
        confidence: f64,
    ) -> Option<f64> {
        let fails = scenario.nodes.iter().any(|group| group.time_to_failure_secs.is_some());
        let loses = fails && scenario.assumptions.failure_loses != FailureLoses::Nothing;
        let scaling = &service.scaling;
        let scales = scaling.replicas_min != scaling.replicas_max;
        let requests = || rule_of_three(all.generated, confidence);
        let seconds = || rule_of_three(all.secs, confidence);
        let hours = || rule_of_three(all.secs / 3600.0, confidence);
        // One that waits where hardly any does, waits for about one that is served.
        let served = all.in_service / all.served.max(1.0);
        match self {
            Self::Refusal if all.refused == 0.0 => requests(),
            Self::Service if all.refused + all.lost == 0.0 => requests(),
            Self::Loss if loses && all.lost == 0.0 => requests(),
            Self::LostRate if loses && all.lost == 0.0 => seconds(),
            Self::TimeInQueue if all.in_queue == 0.0 => Some(requests()? * served),
            Self::QueueLength if all.area_waiting == 0.0 => Some(seconds()? * served),
            Self::ReplicationRate if (scales || fails) && all.replications == 0.0 => hours(),
            Self::DereplicationRate if scales && all.dereplications == 0.0 => hours(),
            Self::Oscillation if scales && all.turns == 0.0 => hours(),
            Self::MigrationRate if scaling.migration.is_some() && all.migrations == 0.0 => hours(),
            _ => None,
        }
    }
}

impl std::str::FromStr for Measure {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|measure| measure.as_str() == text).ok_or_else(|| {
            let all: Vec<&str> = Self::ALL.iter().map(|measure| measure.as_str()).collect();
            format!("{text:?} is not a measure: there are {}", all.join(", "))
        })
    }
}

/// What was measured of a service over all replications.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServiceReport {
    /// Its name.
    pub service: String,
    /// Each measure with its interval, in the order of [`Measure::ALL`].
    pub measures: Vec<(Measure, Estimate)>,
}

impl ServiceReport {
    /// One measure.
    pub fn get(&self, measure: Measure) -> Estimate {
        let found = self.measures.iter().find(|(of, _)| *of == measure);
        found.map_or(Estimate { mean: f64::NAN, half_width: f64::INFINITY, n: 0 }, |it| it.1)
    }
}

/// What a simulation measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SimReport {
    /// Name of the scenario.
    pub scenario: String,
    /// Replications that were done.
    pub replications: usize,
    /// Confidence level of the intervals.
    pub confidence: f64,
    /// Events handled in all.
    pub events: u64,
    /// Mean of what was cut off at the beginning, seconds.
    pub cut_secs: f64,
    /// Mean of the simulated time of a replication with its beginning, seconds: less than the scenario says when it was stopped.
    pub simulated_secs: f64,
    /// Each service.
    pub services: Vec<ServiceReport>,
}

impl SimReport {
    /// Sums the replications of each service up, which handled so many events together.
    pub(crate) fn of(scenario: &Scenario, done: &[Vec<Measured>], events: u64) -> Self {
        let confidence = scenario.run.confidence;
        let services = scenario.services.iter().zip(done).map(|(service, replications)| {
            let mut all = Sums::default();
            replications.iter().for_each(|it| all.add(it.sums));
            let estimate = |measure: Measure| {
                let values = replications.iter().map(|it| measure.of(it));
                let mut estimate = Estimate::of(values, confidence);
                let unseen = measure.unseen(&all, (scenario, service), confidence);
                if let Some(bound) = unseen.filter(|_| estimate.mean.is_finite()) {
                    estimate.half_width = bound;
                }
                (measure, estimate)
            };
            ServiceReport {
                service: service.name.to_string(),
                measures: Measure::ALL.into_iter().map(estimate).collect(),
            }
        });
        let cuts = done.iter().flatten().map(|of| of.cut_secs);
        let whole = done.iter().flatten().map(|of| of.cut_secs + of.sums.secs);
        Self {
            scenario: scenario.name.clone(),
            replications: done.first().map_or(0, Vec::len),
            confidence,
            events,
            cut_secs: Estimate::of(cuts, confidence).mean,
            simulated_secs: Estimate::of(whole, confidence).mean,
            services: services.collect(),
        }
    }
}
