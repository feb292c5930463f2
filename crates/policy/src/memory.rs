//! What the policy remembers between two plans: constant size for each service.

use crate::core::{Ended, Freshness, Load, Replica, ReplicaPhase};
use crate::rules::hpa::HpaMemory;
use crate::rules::kpa::KpaMemory;
use crate::rules::predictive::PredictiveMemory;
use crate::window::Window;
use serde::{Deserialize, Serialize};
use skein_model::{MachineId, ScalingRule, Timestamp};
use std::time::Duration;

/// Wait after the first failed start; doubles with each further one. Longer than a boot of a unikernel, so that a
/// broken image does not keep a core busy.
pub const BACKOFF_INITIAL: Duration = Duration::from_millis(100);

/// Longest wait between two tries of an image that does not start.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// A machine that ends this soon after it became ready counts as one that never started.
pub const READY_TOO_SHORT: Duration = Duration::from_secs(1);

/// A machine that is ready for this long proves that its image starts.
pub const READY_PROOF: Duration = Duration::from_secs(10);

/// What is remembered of one service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceMemory {
    /// Machines wanted by the latest plan.
    pub(crate) goal: Option<u32>,
    /// Machines it had once the latest plan was carried out.
    pub(crate) had: u32,
    /// The two windows of the concurrency rule.
    pub(crate) windows: Option<Windows>,
    /// Of Kubernetes' rule.
    pub(crate) hpa: Option<Box<HpaMemory>>,
    /// Of Knative's rule.
    pub(crate) kpa: Option<Box<KpaMemory>>,
    /// Of the predictive rule.
    pub(crate) predictive: Option<Box<PredictiveMemory>>,
    /// Since when there is nothing to do.
    pub(crate) idle_since: Option<Timestamp>,
    /// When the latest machine was added or removed.
    pub(crate) changed_at: Option<Timestamp>,
    /// Until then a burst removes no machine.
    pub(crate) burst_until: Option<Timestamp>,
    /// Starts that failed since the last proof that the image starts.
    pub(crate) failures: Failures,
    /// Whose turn it is (round robin).
    pub(crate) turn: u32,
    /// Machines on their way to other nodes, each with its copy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) moving: Vec<Moving>,
}

/// A machine on its way to another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moving {
    /// The machine.
    pub machine: MachineId,
    /// Its copy.
    pub copy: MachineId,
}

/// Averages of the jobs waiting and in service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Windows {
    pub(crate) stable: Window,
    pub(crate) panic: Window,
}

impl Windows {
    /// Empty windows of these widths, the stable one first.
    pub(crate) fn new((stable, panic): (Duration, Duration), now: Timestamp) -> Self {
        Self { stable: Window::new(stable, now), panic: Window::new(panic, now) }
    }

    /// Whether they have these widths.
    pub(crate) fn have(&self, (stable, panic): (Duration, Duration)) -> bool {
        self.stable.has_width(stable) && self.panic.has_width(panic)
    }

    /// Whether both averages are the load.
    pub(crate) fn have_settled(&self) -> bool {
        self.stable.has_settled() && self.panic.has_settled()
    }

    /// Takes note of the load.
    pub(crate) fn observe(&mut self, load: Load, now: Timestamp) {
        self.stable.observe(load.total(), now);
        self.panic.observe(load.total(), now);
    }
}

impl ServiceMemory {
    /// Since when there is nothing to do; none while there is.
    pub const fn idle_since(&self) -> Option<Timestamp> {
        self.idle_since
    }

    /// When the latest machine was added or removed.
    pub const fn changed_at(&self) -> Option<Timestamp> {
        self.changed_at
    }

    /// Failed starts since the last proof that the image starts.
    pub const fn failures(&self) -> u32 {
        self.failures.count
    }

    /// Machines on their way to other nodes.
    pub fn moving(&self) -> &[Moving] {
        &self.moving
    }

    /// Takes note of the load.
    pub(crate) fn observe(&mut self, rule: &ScalingRule, load: Load, now: Timestamp) {
        if load.total() == 0 {
            self.idle_since.get_or_insert(now);
        } else {
            self.idle_since = None;
        }
        match rule {
            ScalingRule::Thresholds { .. } => {}
            ScalingRule::Concurrency { stable_window, panic_window, .. } => {
                let widths = (*stable_window, *panic_window);
                if !self.windows.as_ref().is_some_and(|windows| windows.have(widths)) {
                    self.windows = Some(Windows::new(widths, now));
                }
                if let Some(windows) = &mut self.windows {
                    windows.observe(load, now);
                }
            }
            ScalingRule::Hpa(rule) => HpaMemory::observe(&mut self.hpa, rule, load, now),
            ScalingRule::Kpa(rule) => KpaMemory::observe(&mut self.kpa, rule, load, now),
            ScalingRule::Predictive(rule) => {
                PredictiveMemory::observe(&mut self.predictive, rule, load, now);
            }
        }
        self.forget_other_rules(rule);
    }

    /// What a rule that was replaced remembered says nothing to another, nor to itself when it comes back.
    fn forget_other_rules(&mut self, rule: &ScalingRule) {
        if !matches!(rule, ScalingRule::Concurrency { .. }) {
            (self.windows, self.burst_until) = (None, None);
        }
        if !matches!(rule, ScalingRule::Hpa(_)) {
            self.hpa = None;
        }
        if !matches!(rule, ScalingRule::Kpa(_)) {
            self.kpa = None;
        }
        if !matches!(rule, ScalingRule::Predictive(_)) {
            self.predictive = None;
        }
    }

    /// Average of the jobs over the window of a rule that has one.
    pub(crate) fn average(&self) -> Option<f64> {
        let kpa = self.kpa.as_ref().map(|kpa| &kpa.windows);
        let stable = self.windows.as_ref().or(kpa).map(|windows| windows.stable.average());
        stable.or_else(|| self.hpa.as_ref().map(|hpa| hpa.metric.average()))
    }
}

/// Failed starts in a row.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Failures {
    /// How many.
    pub(crate) count: u32,
    /// When the latest machine that counts ended. Machines made before it do not count: they were started
    /// together with it, and say nothing new.
    pub(crate) at: Option<Timestamp>,
    /// The revision they belong to.
    revision: u64,
}

impl Failures {
    /// Takes note of machines that ended and of machines that live.
    pub(crate) fn observe(
        &mut self,
        revision: u64,
        ended: &[Ended],
        replicas: &[Replica],
        now: Timestamp,
    ) {
        if self.revision != revision {
            // Another image or shape: what the old one did says nothing of it.
            *self = Self { count: 0, at: self.at.map(|_| now), revision };
        }
        for end in ended {
            let lived = end.ready_at.map_or(Duration::ZERO, |ready| end.ended_at.since(ready));
            if lived < READY_TOO_SHORT && self.at.is_none_or(|at| end.created_at > at) {
                self.count = self.count.saturating_add(1);
                self.at = Some(end.ended_at);
            }
        }
        if self.count > 0 {
            let proves = |replica: &Replica| {
                replica.freshness == Freshness::Current
                    && replica.phase == ReplicaPhase::Ready
                    && self.at.is_some_and(|at| replica.since > at)
                    && now.since(replica.since) >= READY_PROOF
            };
            if replicas.iter().any(proves) {
                self.count = 0;
            }
        }
    }

    /// When the next start may be tried; none when nothing failed.
    pub(crate) fn retry_at(&self) -> Option<Timestamp> {
        let doublings = self.count.checked_sub(1)?.min(16);
        Some(self.at? + (BACKOFF_INITIAL * (1 << doublings)).min(BACKOFF_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_micros(ms * 1000)
    }

    fn ended(created: u64, ready: Option<u64>, ended: u64) -> Ended {
        let ready_at = ready.map(at);
        Ended { created_at: at(created), ready_at, ended_at: at(ended), code: "GUEST_PANIC" }
    }

    fn check(failures: &mut Failures, ends: &[Ended], now: u64, count: u32, retry: Option<u64>) {
        failures.observe(1, ends, &[], at(now));
        assert_eq!((failures.count, failures.retry_at()), (count, retry.map(at)), "{ends:?}");
    }

    #[test]
    fn machines_started_together_fail_once_and_back_off_doubles() {
        let mut failures = Failures::default();
        check(&mut failures, &[], 0, 0, None);
        let burst = [ended(10, None, 20), ended(10, None, 21), ended(12, Some(13), 22)];
        check(&mut failures, &burst, 30, 1, Some(120));
        check(&mut failures, &burst, 40, 1, Some(120));
        check(&mut failures, &[burst[0], ended(120, None, 130)], 140, 2, Some(330));
        check(&mut failures, &[ended(330, Some(340), 900)], 950, 3, Some(1300));
        check(&mut failures, &[ended(1300, Some(1310), 9000)], 9000, 3, Some(1300));
        failures.count = 40;
        assert_eq!(failures.retry_at(), Some(at(900 + 60_000)));
    }

    #[test]
    fn a_machine_that_stays_ready_and_a_new_revision_forgive() {
        let mut failures = Failures::default();
        failures.observe(1, &[ended(0, None, 5)], &[], at(5));
        let lives = |phase, since| Replica {
            node: 0,
            phase,
            in_service: 0,
            since: at(since),
            freshness: Freshness::Current,
        };
        failures.observe(1, &[], &[lives(ReplicaPhase::Ready, 4)], at(60_000));
        assert_eq!(failures.count, 1, "it was ready before");
        failures.observe(1, &[], &[lives(ReplicaPhase::Starting, 10)], at(60_000));
        assert_eq!(failures.count, 1, "it is not ready");
        failures.observe(1, &[ended(0, None, 5)], &[lives(ReplicaPhase::Ready, 10)], at(10_010));
        assert_eq!(failures.count, 0);
        failures.observe(1, &[ended(0, None, 5)], &[], at(10_020));
        assert_eq!(failures.count, 0, "an old failure does not count again");
        failures.observe(1, &[ended(11_000, None, 12_000)], &[], at(12_000));
        assert_eq!(failures.count, 1);
        failures.observe(2, &[ended(11_000, None, 12_000)], &[], at(13_000));
        assert_eq!(failures.count, 0);
    }
}
