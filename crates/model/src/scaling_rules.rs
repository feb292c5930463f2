//! Scaling rules beside the thresholds and the concurrency target of [`crate::ScalingRule`]: those of Kubernetes and Knative as
//! they are documented, and our own, which asks a queueing model.

use crate::service::SpecError;
use crate::time::millis;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// An hour: no rule looks further back, and its memory is bounded by it.
const WINDOW_MAX: Duration = Duration::from_secs(3600);

/// 100 ms: five times as long as the live controller waits between two plans.
const PERIOD_MIN: Duration = Duration::from_millis(100);

fn wrong<T>(problem: &str) -> Result<T, SpecError> {
    Err(SpecError { field: "scaling.rule", problem: problem.into() })
}

fn share(value: f64) -> bool {
    (0.01..=1.0).contains(&value)
}

fn window(value: Duration) -> bool {
    (Duration::from_millis(1)..=WINDOW_MAX).contains(&value)
}

fn period(value: Duration) -> bool {
    (PERIOD_MIN..=WINDOW_MAX).contains(&value)
}

/// The rule of Kubernetes' HorizontalPodAutoscaler (`autoscaling/v2`): every `sync_period` the machines are multiplied by
/// the ratio of what is measured to the target. The defaults are Kubernetes' own.
///
/// Source: kubernetes.io, "Horizontal Pod Autoscaling", and the controller's replica calculator. A machine that starts is a
/// pod that is not yet ready: it counts as unused when the ratio asks for more, and a ratio that would turn thereby
/// changes nothing. The one difference: from zero, which the HPA does not know, a job starts a machine at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct HpaRule {
    /// What is measured.
    pub metric: HpaMetric,
    /// What it shall be, as a share of a machine's capacity, 0.01 to 1.
    pub target: f64,
    /// A ratio this near to 1 changes nothing, 0 to 1.
    pub tolerance: f64,
    /// Time between two decisions, 100 ms to an hour.
    #[serde(rename = "sync_period_ms", with = "millis")]
    #[cfg_attr(feature = "schema", schema(value_type = u64))]
    pub sync_period: Duration,
    /// What is measured is an average over this (the resolution of the metrics server), 1 ms to an hour.
    #[serde(rename = "metric_window_ms", with = "millis")]
    #[cfg_attr(feature = "schema", schema(value_type = u64))]
    pub metric_window: Duration,
    /// How machines are added.
    pub scale_up: HpaBehaviour,
    /// How machines are removed.
    pub scale_down: HpaBehaviour,
}

impl Default for HpaRule {
    fn default() -> Self {
        let limit = |by, value| HpaLimit { by, value, period: Duration::from_secs(15) };
        Self {
            metric: HpaMetric::default(),
            target: 0.7,
            tolerance: 0.1,
            sync_period: Duration::from_secs(15),
            metric_window: Duration::from_secs(15),
            scale_up: HpaBehaviour {
                stabilisation_window: Duration::ZERO,
                select: HpaSelect::Max,
                limits: vec![limit(HpaBy::Percent, 100), limit(HpaBy::Machines, 4)],
            },
            scale_down: HpaBehaviour {
                stabilisation_window: Duration::from_secs(300),
                select: HpaSelect::Max,
                limits: vec![limit(HpaBy::Percent, 100)],
            },
        }
    }
}

/// What the HPA measures of a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum HpaMetric {
    /// Jobs in service: like the processor's use, it cannot exceed the capacity, however long the queue is.
    #[default]
    Busy,
    /// Jobs waiting and in service, divided by the machines (a metric of the kind `External`).
    Jobs,
}

/// How fast machines are added, or removed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct HpaBehaviour {
    /// The most cautious of all answers of this long holds, 0 to an hour.
    #[serde(rename = "stabilisation_window_ms", with = "millis", default)]
    #[cfg_attr(feature = "schema", schema(value_type = u64))]
    pub stabilisation_window: Duration,
    /// Which of the limits counts.
    #[serde(default)]
    pub select: HpaSelect,
    /// At most four; none: no limit.
    #[serde(default)]
    pub limits: Vec<HpaLimit>,
}

/// Which of several limits counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum HpaSelect {
    /// The one that lets most happen.
    #[default]
    Max,
    /// The one that lets least happen.
    Min,
    /// Nothing may happen in this direction.
    Disabled,
}

/// How much may happen in a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct HpaLimit {
    /// What `value` counts.
    pub by: HpaBy,
    /// So many machines, or per cent of those at the beginning of the period; at least 1.
    pub value: u32,
    /// The period, 100 ms to half an hour.
    #[serde(rename = "period_ms", with = "millis")]
    #[cfg_attr(feature = "schema", schema(value_type = u64))]
    pub period: Duration,
}

/// What a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum HpaBy {
    /// Machines.
    Machines,
    /// Per cent of the machines.
    Percent,
}

impl HpaRule {
    pub(crate) fn check(&self) -> Result<(), SpecError> {
        if !share(self.target) {
            return wrong("needs a target of 0.01 to 1");
        }
        if !(0.0..=1.0).contains(&self.tolerance) {
            return wrong("needs a tolerance of 0 to 1");
        }
        if !period(self.sync_period) {
            return wrong("needs a sync_period_ms of 100 ms to an hour");
        }
        if !window(self.metric_window) {
            return wrong("needs a metric_window_ms of 1 ms to an hour");
        }
        for behaviour in [&self.scale_up, &self.scale_down] {
            if behaviour.stabilisation_window > WINDOW_MAX {
                return wrong("needs stabilisation windows of at most an hour");
            }
            if behaviour.limits.len() > 4 {
                return wrong("takes at most four limits in each direction");
            }
            for limit in &behaviour.limits {
                if limit.value == 0 {
                    return wrong(
                        "needs limits of at least 1; `select = \"disabled\"` stops a direction",
                    );
                }
                if limit.period < PERIOD_MIN || limit.period > WINDOW_MAX / 2 {
                    return wrong("needs limits with a period_ms of 100 ms to half an hour");
                }
            }
        }
        Ok(())
    }
}

/// The rule of Knative's pod autoscaler (KPA): every `tick` as many machines as keep the jobs per machine at a target, by an
/// average over a stable window, and over a part of it while load bursts. The defaults are Knative's own.
///
/// Source: knative.dev, "Configuring autoscaling", and the autoscaler's `Scale`. [`crate::ScalingRule::Concurrency`] is the
/// same idea asked at every change of load, without ticks and rates. From zero a job starts machines at once here too:
/// Knative's activator does that beside the rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct KpaRule {
    /// Jobs per machine to aim at, as a share of its capacity, 0.01 to 1.
    pub target: f64,
    /// Time between two decisions, 100 ms to an hour.
    #[serde(rename = "tick_ms", with = "millis")]
    #[cfg_attr(feature = "schema", schema(value_type = u64))]
    pub tick: Duration,
    /// Averaging window.
    #[serde(rename = "stable_window_ms", with = "millis")]
    #[cfg_attr(feature = "schema", schema(value_type = u64))]
    pub stable_window: Duration,
    /// The averaging window in a burst, as a share of the stable one, 0.01 to 1.
    pub panic_share: f64,
    /// A burst is when the short window asks for this many times the ready machines; above 1.
    pub panic_threshold: f64,
    /// Most times the ready machines that one decision may ask for; above 1.
    pub up_rate_max: f64,
    /// Most times by which one decision may divide the ready machines; above 1.
    pub down_rate_max: f64,
    /// The most machines that were asked for within this time are kept, 0 to an hour.
    #[serde(rename = "down_delay_ms", with = "millis")]
    #[cfg_attr(feature = "schema", schema(value_type = u64))]
    pub down_delay: Duration,
}

impl Default for KpaRule {
    fn default() -> Self {
        Self {
            target: 0.7,
            tick: Duration::from_secs(2),
            stable_window: Duration::from_secs(60),
            panic_share: 0.1,
            panic_threshold: 2.0,
            up_rate_max: 1000.0,
            down_rate_max: 2.0,
            down_delay: Duration::ZERO,
        }
    }
}

impl KpaRule {
    /// The averaging window in a burst.
    pub fn panic_window(&self) -> Duration {
        self.stable_window.mul_f64(self.panic_share).max(Duration::from_micros(16))
    }

    pub(crate) fn check(&self) -> Result<(), SpecError> {
        if !share(self.target) || !share(self.panic_share) {
            return wrong("needs a target and a panic_share of 0.01 to 1");
        }
        if !period(self.tick) {
            return wrong("needs a tick_ms of 100 ms to an hour");
        }
        if !window(self.stable_window) || self.down_delay > WINDOW_MAX {
            return wrong(
                "needs a stable window of 1 ms to an hour and a delay of at most an hour",
            );
        }
        if !(1.0..=100.0).contains(&self.panic_threshold) {
            return wrong("needs a panic_threshold of 1 to 100");
        }
        let rate = |value: f64| (1.01..=1e6).contains(&value);
        if !rate(self.up_rate_max) || !rate(self.down_rate_max) {
            return wrong("needs rates of 1.01 to 1000000");
        }
        Ok(())
    }
}

/// Our own: the fewest machines with which a queueing model keeps a promise about the wait, at the arrival rate and
/// service time that are observed, and at the rate that is to be expected once a machine that starts now is ready.
///
/// The promise is: a share of the jobs begins within `wait`. The model is M/M/m with m places (machines times capacity):
/// P(W > t) = C(m, a) exp(-(m - a) t / (v S)), with Erlang's C, the offered load a = arrival rate times service time S, and
/// v = `variability` after Allen and Cunneen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PredictiveRule {
    /// How long jobs may wait for their service to begin, 0 to an hour.
    #[serde(rename = "wait_ms", with = "millis")]
    #[cfg_attr(feature = "schema", schema(value_type = u64))]
    pub wait: Duration,
    /// Share of the jobs that shall not wait longer, 0.01 to 0.9999.
    pub share: f64,
    /// What rates and times are estimated from, and how long what they asked for is kept, 1 ms to an hour.
    #[serde(rename = "window_ms", with = "millis")]
    #[cfg_attr(feature = "schema", schema(value_type = u64))]
    pub window: Duration,
    /// Time from the decision to a ready machine, 0 to an hour; `skein bench start` measures it.
    #[serde(rename = "start_ms", with = "millis")]
    #[cfg_attr(feature = "schema", schema(value_type = u64))]
    pub start: Duration,
    /// Mean of the squared coefficients of variation of intervals and service times, 0.01 to 100: 1 when both are
    /// exponential, 0.5 for exponential intervals and a service that always takes as long.
    pub variability: f64,
}

impl Default for PredictiveRule {
    fn default() -> Self {
        Self {
            wait: Duration::from_millis(100),
            share: 0.95,
            window: Duration::from_secs(20),
            start: Duration::from_millis(100),
            variability: 1.0,
        }
    }
}

impl PredictiveRule {
    pub(crate) fn check(&self) -> Result<(), SpecError> {
        if self.wait > WINDOW_MAX || self.start > WINDOW_MAX {
            return wrong("needs a wait and a start of at most an hour");
        }
        if !(0.01..=0.9999).contains(&self.share) {
            return wrong("needs a share of 0.01 to 0.9999");
        }
        if !window(self.window) {
            return wrong("needs a window of 1 ms to an hour");
        }
        if !(0.01..=100.0).contains(&self.variability) {
            return wrong("needs a variability of 0.01 to 100");
        }
        Ok(())
    }
}
