//! A service: an image, a scaling policy and a queue.

use crate::job::RetryPolicy;
use crate::machine::Generation;
use crate::name::{ImageName, ProjectName, ServiceName};
use crate::network::Attachment;
use crate::scaling_rules::{HpaRule, KpaRule, PredictiveRule};
use crate::time::{Timestamp, millis};
use crate::units::MemoryMib;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// What a service is. Absent fields take the image's or the stated default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ServiceSpec {
    /// Its name, unique in its project.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub name: ServiceName,
    /// What its machines boot.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub image: ImageName,
    /// Memory of a machine; the image's unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<u32>))]
    pub memory: Option<MemoryMib>,
    /// Requests one machine serves at a time, 1 to 1,024; the image's unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u32>,
    /// Processor reserved for a machine, thousandths of a core.
    #[serde(default = "default_cpu")]
    pub cpu_milli: u32,
    /// Parameters the service reads: at most 32, keys of letters, digits and `_`.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// How its machines are plugged in.
    #[serde(default)]
    pub network: Attachment,
    /// When machines come and go, and where.
    #[serde(default)]
    pub scaling: ScalingPolicy,
    /// Its queue.
    #[serde(default)]
    pub queue: QueuePolicy,
}

/// 100: ten machines that wait for work most of their time share a core.
const fn default_cpu() -> u32 {
    100
}

/// When machines of a service come and go, and where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ScalingPolicy {
    /// Never fewer machines than this; 0 lets the service go to zero.
    pub replicas_min: u32,
    /// Never more machines than this, 1 to 1,000.
    pub replicas_max: u32,
    /// Idle machines kept ready beyond what the load asks for (warm pool).
    pub warm: u32,
    /// How many machines a load asks for.
    pub rule: ScalingRule,
    /// With nothing to do for this long the last machine goes too.
    #[serde(rename = "zero_grace_ms", with = "millis")]
    #[cfg_attr(feature = "schema", schema(value_type = u64))]
    pub zero_grace: Duration,
    /// After a machine was added or removed, none is removed for this long.
    #[serde(rename = "cooldown_ms", with = "millis")]
    #[cfg_attr(feature = "schema", schema(value_type = u64))]
    pub cooldown: Duration,
    /// Which node a new machine is put on.
    pub placement: Placement,
    /// Which machine goes first.
    pub removal: Removal,
    /// When machines move to other nodes; without it they stay where they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migration: Option<Migration>,
}

impl Default for ScalingPolicy {
    fn default() -> Self {
        Self {
            replicas_min: 0,
            replicas_max: 10,
            warm: 0,
            rule: ScalingRule::default(),
            zero_grace: Duration::from_secs(30),
            cooldown: Duration::from_secs(5),
            placement: Placement::default(),
            removal: Removal::default(),
            migration: None,
        }
    }
}

/// When machines move to other nodes: a copy starts on the new node, and the old one goes once the copy serves.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Migration {
    /// Leave nodes that are cordoned: that are to be maintained, or are expected to fail.
    pub leave_cordoned: bool,
    /// Leave nodes whose processors are used above this share, 0.05 to 1; without it no load moves anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leave_above: Option<f64>,
    /// Because of load, go only to nodes that are used at most to this share; less than `leave_above`.
    pub go_below: f64,
    /// Machines on their way at a time, 1 to 100.
    pub at_once: u32,
    /// Because of load, a machine moves only after so long where it is, at most an hour.
    #[serde(rename = "stay_ms", with = "millis")]
    #[cfg_attr(feature = "schema", schema(value_type = u64))]
    pub stay: Duration,
}

impl Default for Migration {
    fn default() -> Self {
        Self {
            leave_cordoned: true,
            leave_above: None,
            go_below: 0.5,
            at_once: 1,
            stay: Duration::from_secs(30),
        }
    }
}

impl Migration {
    fn check(&self) -> Result<(), SpecError> {
        let wrong =
            |problem: &str| Err(SpecError { field: "scaling.migration", problem: problem.into() });
        if let Some(above) = self.leave_above {
            if !(0.05..=1.0).contains(&above) {
                return wrong("has leave_above, which must be 0.05 to 1");
            }
            if !(0.0..above).contains(&self.go_below) {
                return wrong(
                    "needs go_below from 0 and below leave_above, or machines would go to and fro",
                );
            }
        }
        if !(1..=100).contains(&self.at_once) {
            return wrong("has at_once, which must be 1 to 100");
        }
        if self.stay > Duration::from_secs(3600) {
            return wrong("has stay_ms, which must be at most an hour");
        }
        Ok(())
    }
}

/// How many machines a load asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum ScalingRule {
    /// Add a machine when the queue is longer than one threshold, remove one when it is at most another
    /// (the replication and dereplication thresholds of migrating systems).
    Thresholds {
        /// Waiting jobs above which a machine is added.
        replicate_above: u32,
        /// Waiting jobs at or below which a machine is removed; less than `replicate_above`.
        dereplicate_at: u32,
        /// Whether the thresholds count the whole queue or the queue divided by the replicas.
        #[serde(default)]
        scope: ThresholdScope,
    },
    /// Keep the jobs per machine (waiting and in service) at a target, averaged over a stable window, and over a
    /// short one when load bursts (the rule of Knative's autoscaler).
    Concurrency {
        /// Jobs per machine to aim at, as a share of its capacity, 0.01 to 1.
        #[serde(default = "concurrency::target")]
        target: f64,
        /// Averaging window.
        #[serde(
            rename = "stable_window_ms",
            with = "millis",
            default = "concurrency::stable_window"
        )]
        #[cfg_attr(feature = "schema", schema(value_type = u64))]
        stable_window: Duration,
        /// Averaging window in a burst.
        #[serde(
            rename = "panic_window_ms",
            with = "millis",
            default = "concurrency::panic_window"
        )]
        #[cfg_attr(feature = "schema", schema(value_type = u64))]
        panic_window: Duration,
        /// A burst is when the short window asks for this many times the ready machines; above 1.
        #[serde(default = "concurrency::panic_threshold")]
        panic_threshold: f64,
    },
    /// Multiply the machines by the ratio of their use to a target (the rule of Kubernetes' HorizontalPodAutoscaler).
    Hpa(HpaRule),
    /// Keep the jobs per machine at a target, tick by tick (the rule of Knative's autoscaler as it is documented).
    Kpa(KpaRule),
    /// The fewest machines with which a queueing model keeps the wait under an objective.
    Predictive(PredictiveRule),
}

impl Default for ScalingRule {
    fn default() -> Self {
        Self::Concurrency {
            target: concurrency::target(),
            stable_window: concurrency::stable_window(),
            panic_window: concurrency::panic_window(),
            panic_threshold: concurrency::panic_threshold(),
        }
    }
}

/// What the keys of the concurrency rule are unless said: Knative's, with a shorter stable window, because machines start in a
/// hundredth of the time of its pods.
mod concurrency {
    use std::time::Duration;

    pub(super) const fn target() -> f64 {
        0.7
    }

    pub(super) const fn stable_window() -> Duration {
        Duration::from_secs(20)
    }

    pub(super) const fn panic_window() -> Duration {
        Duration::from_secs(2)
    }

    pub(super) const fn panic_threshold() -> f64 {
        2.0
    }
}

/// What a threshold counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum ThresholdScope {
    /// The whole queue of the service.
    #[default]
    Service,
    /// The queue divided by the number of replicas.
    Replica,
}

/// Which node a new machine is put on. All count what is reserved, never what is measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Placement {
    /// The smallest share of its memory reserved.
    #[default]
    LeastLoaded,
    /// The most unreserved memory.
    MostFree,
    /// The highest performance.
    Fastest,
    /// The fewest machines of this service, then the least loaded.
    Spread,
    /// Any that has room, drawn from the plan's random stream.
    Random,
    /// In turn, by name.
    RoundRobin,
}

impl Placement {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::LeastLoaded,
        Self::MostFree,
        Self::Fastest,
        Self::Spread,
        Self::Random,
        Self::RoundRobin,
    ];
}

/// Which machine goes first when one is removed. Machines that serve nothing always go before busy ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Removal {
    /// The one that became ready last.
    #[default]
    Newest,
    /// The one that became ready first.
    Oldest,
    /// One on the node with the largest share of its memory reserved.
    MostLoadedNode,
    /// One on the node with the lowest performance.
    SlowestNode,
    /// Any, drawn from the plan's random stream.
    Random,
}

/// How a service's queue is bounded and how its jobs are tried and kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct QueuePolicy {
    /// Jobs that may wait, 1 to 1,000,000; one more is refused.
    pub bound: u32,
    /// How long a job and its result are kept after its end, unless the job says otherwise.
    #[serde(rename = "retention_ms", with = "millis")]
    #[cfg_attr(feature = "schema", schema(value_type = u64))]
    pub retention: Duration,
    /// How often a job is tried, unless the job says otherwise.
    pub retry: RetryPolicy,
}

impl Default for QueuePolicy {
    fn default() -> Self {
        Self { bound: 10_000, retention: Duration::from_secs(3600), retry: RetryPolicy::default() }
    }
}

/// A service as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceRecord {
    /// Owner.
    pub project: ProjectName,
    /// What it is.
    pub spec: ServiceSpec,
    /// Version of `spec`.
    pub generation: Generation,
    /// When it was created.
    pub created_at: Timestamp,
}

/// Why a specification is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct SpecError {
    /// The field, as a path in the JSON document.
    pub field: &'static str,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

impl ServiceSpec {
    /// Checks every range that the types do not.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn check(&self) -> Result<(), SpecError> {
        let range = |field, value: u64, low: u64, high: u64| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(SpecError { field, problem: format!("is {value}: must be {low} to {high}") })
            }
        };
        range("capacity", self.capacity.unwrap_or(1).into(), 1, 1024)?;
        range("cpu_milli", self.cpu_milli.into(), 1, 1_000_000)?;
        range("parameters", self.parameters.len() as u64, 0, 32)?;
        for (key, value) in &self.parameters {
            let named = !key.is_empty()
                && key.len() <= 64
                && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            if !named || value.len() > 512 {
                return Err(SpecError {
                    field: "parameters",
                    problem: "must have keys of letters, digits and '_' up to 64 bytes and values up to 512".into(),
                });
            }
        }
        self.network.check()?;
        let scaling = &self.scaling;
        range("scaling.replicas_max", scaling.replicas_max.into(), 1, 1000)?;
        range("scaling.replicas_min", scaling.replicas_min.into(), 0, scaling.replicas_max.into())?;
        range("scaling.warm", scaling.warm.into(), 0, scaling.replicas_max.into())?;
        scaling.rule.check()?;
        if let Some(migration) = &scaling.migration {
            migration.check()?;
        }
        range("queue.bound", self.queue.bound.into(), 1, 1_000_000)?;
        let day = 24 * 3600 * 1000;
        range("queue.retention_ms", ms(self.queue.retention), 0, 365 * day)?;
        self.queue.retry.check()
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl RetryPolicy {
    /// Checks the ranges stated at the fields.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn check(&self) -> Result<(), SpecError> {
        let wrong = |field, problem: &str| Err(SpecError { field, problem: problem.into() });
        if !(1..=100).contains(&self.attempts_max) {
            return wrong("queue.retry.attempts_max", "must be 1 to 100");
        }
        if self.backoff_max < self.backoff_initial {
            return wrong("queue.retry.backoff_max_ms", "must not be less than backoff_initial_ms");
        }
        if self.backoff_max > Duration::from_secs(24 * 3600) {
            return wrong("queue.retry.backoff_max_ms", "must be at most a day");
        }
        if !(1..=24 * 3600 * 1000).contains(&ms(self.attempt_timeout)) {
            return wrong("queue.retry.attempt_timeout_ms", "must be 1 ms to a day");
        }
        Ok(())
    }
}

impl ScalingRule {
    fn check(&self) -> Result<(), SpecError> {
        let wrong =
            |problem: &str| Err(SpecError { field: "scaling.rule", problem: problem.into() });
        match self {
            Self::Thresholds { replicate_above, dereplicate_at, .. } => {
                if dereplicate_at >= replicate_above {
                    return wrong(
                        "needs dereplicate_at below replicate_above, or replicas would come and go",
                    );
                }
            }
            Self::Concurrency { target, stable_window, panic_window, panic_threshold } => {
                if !(0.01..=1.0).contains(target) {
                    return wrong("needs a target of 0.01 to 1");
                }
                if !(1.0..=100.0).contains(panic_threshold) {
                    return wrong("needs a panic_threshold of 1 to 100");
                }
                let windows = 1..=3_600_000;
                if !windows.contains(&ms(*panic_window)) || !windows.contains(&ms(*stable_window)) {
                    return wrong("needs windows of 1 ms to an hour");
                }
                if panic_window > stable_window {
                    return wrong("needs a panic window no longer than the stable one");
                }
            }
            Self::Hpa(rule) => rule.check()?,
            Self::Kpa(rule) => rule.check()?,
            Self::Predictive(rule) => rule.check()?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, expect: Result<(), &str>) {
        let spec: ServiceSpec = serde_json::from_str(json).expect(json);
        assert_eq!(spec.check().map_err(|e| e.field), expect, "{json}");
    }

    #[test]
    fn ranges_are_checked() {
        check(r#"{"name":"s","image":"i"}"#, Ok(()));
        check(r#"{"name":"s","image":"i","capacity":0}"#, Err("capacity"));
        check(
            r#"{"name":"s","image":"i","scaling":{"replicas_min":3,"replicas_max":2}}"#,
            Err("scaling.replicas_min"),
        );
        check(
            r#"{"name":"s","image":"i","scaling":{"rule":{"kind":"thresholds","replicate_above":2,"dereplicate_at":2,"scope":"service"}}}"#,
            Err("scaling.rule"),
        );
        let rule =
            |rule: &str| format!(r#"{{"name":"s","image":"i","scaling":{{"rule":{rule}}}}}"#);
        for kind in ["concurrency", "hpa", "kpa", "predictive"] {
            check(&rule(&format!(r#"{{"kind":"{kind}"}}"#)), Ok(()));
        }
        let thresholds = r#"{"kind":"thresholds","replicate_above":2,"dereplicate_at":1}"#;
        check(&rule(thresholds), Ok(()));
        let unsaid: ScalingRule = serde_json::from_str(r#"{"kind":"concurrency"}"#).unwrap();
        assert_eq!(unsaid, ScalingRule::default());
        for bad in [
            r#"{"kind":"hpa","target":0}"#,
            r#"{"kind":"hpa","sync_period_ms":10}"#,
            r#"{"kind":"hpa","scale_up":{"limits":[{"by":"machines","value":0,"period_ms":1000}]}}"#,
            r#"{"kind":"kpa","panic_threshold":0.5}"#,
            r#"{"kind":"kpa","down_rate_max":1}"#,
            r#"{"kind":"predictive","share":1}"#,
            r#"{"kind":"predictive","variability":0}"#,
        ] {
            check(&rule(bad), Err("scaling.rule"));
        }
        check(r#"{"name":"s","image":"i","queue":{"bound":0}}"#, Err("queue.bound"));
        check(
            r#"{"name":"s","image":"i","queue":{"retry":{"attempts_max":0}}}"#,
            Err("queue.retry.attempts_max"),
        );
        check(r#"{"name":"s","image":"i","parameters":{"a b":"c"}}"#, Err("parameters"));
    }

    #[test]
    fn unknown_fields_are_refused() {
        for json in [
            r#"{"name":"s","image":"i","replicas":3}"#,
            r#"{"name":"s","image":"i","scaling":{"rule":{"kind":"hpa","goal":0.5}}}"#,
        ] {
            assert!(serde_json::from_str::<ServiceSpec>(json).is_err());
        }
    }
}
