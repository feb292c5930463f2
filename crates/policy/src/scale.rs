//! How many machines a service shall have.

use crate::core::Load;
use crate::memory::{ServiceMemory, Windows};
use crate::reason::Reason;
use skein_model::{ScalingPolicy, ScalingRule, ThresholdScope, Timestamp};
use std::cmp::Ordering;
use std::time::Duration;

/// Shortest wait until a window is read again. 10 ms: a fifth of a machine's start, so that no decision comes
/// later for it, and rare enough to cost nothing.
const TICK_MIN: Duration = Duration::from_millis(10);

/// Machines of a service that work or will.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Machines {
    /// Listening.
    pub ready: u32,
    /// Starting.
    pub starting: u32,
}

impl Machines {
    /// Both.
    pub const fn total(self) -> u32 {
        self.ready + self.starting
    }
}

/// The answer: how many, and why.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// Machines it shall have.
    pub wanted: u32,
    /// Why.
    pub reason: Reason,
    /// When the answer may change though nothing happens.
    pub next_at: Option<Timestamp>,
}

/// The earliest of several times.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Earliest(pub(crate) Option<Timestamp>);

impl Earliest {
    /// Takes note of a time, unless it has passed.
    pub(crate) fn add(&mut self, at: Timestamp, now: Timestamp) {
        if at > now && self.0.is_none_or(|earliest| at < earliest) {
            self.0 = Some(at);
        }
    }
}

/// Decides how many machines a service shall have, and remembers what the next decision needs.
///
/// `capacity` is the number of jobs one machine serves at a time, at least 1. The answer lies between
/// `replicas_min` and `replicas_max`; it says nothing of whether the machines can be had.
pub fn scale(
    policy: &ScalingPolicy,
    capacity: u32,
    load: Load,
    machines: Machines,
    memory: &mut ServiceMemory,
    now: Timestamp,
) -> Scale {
    memory.observe(&policy.rule, load, now);
    let mut next = Earliest::default();
    let active = machines.total();
    let (need, mut reason) = need(policy, capacity, load, machines, memory, (now, &mut next));
    let idle_for = memory.idle_since.map(|since| now.since(since));
    let mut wanted = need;
    // An average may ask for a last machine long after the last job; thresholds go one by one.
    let last = u32::from(!matches!(policy.rule, ScalingRule::Thresholds { .. }));
    if let Some(idle) = idle_for.filter(|idle| need <= last && *idle >= policy.zero_grace) {
        (wanted, reason) = (0, Reason::Idle { idle, grace: policy.zero_grace });
    }
    let warm = with_warm(policy, capacity, load, wanted);
    if warm > wanted {
        wanted = warm;
        match warm.cmp(&active) {
            Ordering::Greater => reason = Reason::Warm { warm: policy.warm },
            Ordering::Equal => reason = Reason::Enough,
            Ordering::Less => {}
        }
    }
    // Where a minimum holds, nothing goes to zero.
    let last = active > 0 && wanted <= 1 && policy.replicas_min == 0;
    if let Some(since) = memory.idle_since.filter(|_| last) {
        let until = since + policy.zero_grace;
        next.add(until, now);
        if wanted == 0 && until > now {
            (wanted, reason) = (1, Reason::Grace { until });
        }
    }
    if wanted < policy.replicas_min {
        (wanted, reason) = (policy.replicas_min, Reason::Minimum { min: policy.replicas_min });
    }
    if wanted > policy.replicas_max {
        reason = Reason::Maximum { max: policy.replicas_max, asked: wanted };
        wanted = policy.replicas_max;
    }
    let held = active.min(memory.goal.unwrap_or(active)).min(policy.replicas_max);
    if wanted < held
        && let Some(changed) = memory.changed_at
        && changed + policy.cooldown > now
    {
        let until = changed + policy.cooldown;
        next.add(until, now);
        (wanted, reason) = (held, Reason::Cooldown { until });
    }
    if wanted < active {
        next.add(now + policy.cooldown.max(TICK_MIN), now);
    }
    if active == 0 && wanted == 0 {
        reason = Reason::AtZero;
    }
    memory.goal = Some(wanted);
    Scale { wanted, reason, next_at: next.0 }
}

/// What the rule alone asks for.
fn need(
    policy: &ScalingPolicy,
    capacity: u32,
    load: Load,
    machines: Machines,
    memory: &mut ServiceMemory,
    (now, next): (Timestamp, &mut Earliest),
) -> (u32, Reason) {
    let active = machines.total();
    let goal = memory.goal.unwrap_or(active);
    // What ended while there is nothing to do is not made again.
    let goal = if load.total() == 0 { goal.min(active) } else { goal };
    // The memory of a rule is made before it is asked.
    let nothing = (goal, Reason::Enough);
    match &policy.rule {
        ScalingRule::Thresholds { replicate_above, dereplicate_at, scope } => {
            let rule = Thresholds {
                replicate_above: *replicate_above,
                dereplicate_at: *dereplicate_at,
                scope: *scope,
            };
            rule.need(capacity, load, goal, machines.ready)
        }
        ScalingRule::Concurrency { target, panic_threshold, stable_window, panic_window } => {
            let rule = Concurrency {
                per_machine: f64::from(capacity) * target,
                panic_threshold: *panic_threshold,
                stable_window: *stable_window,
                panic_window: *panic_window,
            };
            rule.need(load, machines, memory, now, next)
        }
        ScalingRule::Hpa(rule) => memory.hpa.as_mut().map_or(nothing, |it| {
            let bounds = (goal, machines, policy.replicas_max);
            it.need(rule, (capacity, load), bounds, (now, next))
        }),
        ScalingRule::Kpa(rule) => memory
            .kpa
            .as_mut()
            .map_or(nothing, |it| it.need(rule, (capacity, load), machines, (now, next))),
        ScalingRule::Predictive(rule) => memory.predictive.as_mut().map_or(nothing, |it| {
            it.need(rule, (capacity, load), (machines, policy.replicas_max), (now, next))
        }),
    }
}

/// Machines for so many jobs at `target` jobs each; a hair less, so that rounding in an average never asks for one more.
pub(crate) fn machines_for(jobs: f64, target: f64) -> u32 {
    (jobs / target - 1e-9).ceil().max(0.0) as u32
}

/// Nothing serves: what waits now says more than any average.
pub(crate) fn from_zero(target: f64, load: Load, machines: Machines) -> (u32, Reason) {
    let jobs = load.total();
    let need = machines_for(jobs.into(), target).max(u32::from(jobs > 0));
    let reason = match (jobs, need.cmp(&machines.starting)) {
        (0, _) => Reason::AtZero,
        (_, Ordering::Greater) => Reason::FromZero { jobs },
        _ => Reason::Enough,
    };
    (need, reason)
}

/// Adds the warm pool to what the load asks for.
fn with_warm(policy: &ScalingPolicy, capacity: u32, load: Load, need: u32) -> u32 {
    match policy.rule {
        // These count from the machines there are, warm ones among them: adding to that would never end.
        ScalingRule::Thresholds { .. } | ScalingRule::Hpa(_) | ScalingRule::Kpa(_) => {
            need.max(load.in_service.div_ceil(capacity).saturating_add(policy.warm))
        }
        ScalingRule::Concurrency { .. } | ScalingRule::Predictive(_) => {
            need.saturating_add(policy.warm)
        }
    }
}

/// The replication and dereplication thresholds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Waiting jobs above which a machine is added.
    pub replicate_above: u32,
    /// Waiting jobs at or below which a machine is removed.
    pub dereplicate_at: u32,
    /// What they count.
    pub scope: ThresholdScope,
}

impl Thresholds {
    /// Machines that the thresholds ask for when `goal` were asked for before and `ready` listen.
    ///
    /// A machine that starts counts as having taken its `capacity` from the queue, so that a burst starts as many as
    /// it needs at once, and a queue that only waits for them starts no more. One machine at a time is removed, only
    /// when the others can hold what is in service, and only when that does not at once ask for it again.
    pub fn need(self, capacity: u32, load: Load, goal: u32, ready: u32) -> (u32, Reason) {
        if goal == 0 && load.total() == 0 {
            return (0, Reason::AtZero);
        }
        let needed = self.least(capacity, load, ready.min(goal)).max(goal);
        if goal == 0 {
            return (needed.max(1), Reason::FromZero { jobs: load.total() });
        }
        if needed > goal {
            let replicas = match self.scope {
                ThresholdScope::Service => 1,
                ThresholdScope::Replica => goal,
            };
            let reason = Reason::QueueAbove {
                waiting: load.waiting,
                replicas,
                threshold: self.replicate_above,
                scope: self.scope,
            };
            return (needed, reason);
        }
        if ready >= goal && self.lets_go(capacity, load, goal) {
            let reason = Reason::QueueAtMost {
                waiting: load.waiting,
                threshold: self.dereplicate_at,
                scope: self.scope,
            };
            return (goal - 1, reason);
        }
        (goal, Reason::Enough)
    }

    /// The fewest machines, of which `ready` listen, whose queue is not above the threshold.
    fn least(self, capacity: u32, load: Load, ready: u32) -> u32 {
        let (above, capacity) = (u64::from(self.replicate_above), u64::from(capacity.max(1)));
        let (waiting, ready) = (u64::from(load.waiting), u64::from(ready));
        let least = match self.scope {
            ThresholdScope::Service => ready + waiting.saturating_sub(above).div_ceil(capacity),
            ThresholdScope::Replica => (waiting + ready * capacity).div_ceil(above + capacity),
        };
        u32::try_from(least).unwrap_or(u32::MAX)
    }

    fn lets_go(self, capacity: u32, load: Load, goal: u32) -> bool {
        let (waiting, rest) = (u64::from(load.waiting), u64::from(goal) - 1);
        let (at_most, above) = match self.scope {
            ThresholdScope::Service => (1, 1),
            ThresholdScope::Replica => (u64::from(goal), rest),
        };
        waiting <= u64::from(self.dereplicate_at) * at_most
            && waiting <= u64::from(self.replicate_above) * above
            && u64::from(load.in_service) <= rest * u64::from(capacity)
            && (rest > 0 || load.total() == 0)
    }
}

/// The target for jobs per machine over two windows.
struct Concurrency {
    per_machine: f64,
    panic_threshold: f64,
    stable_window: Duration,
    panic_window: Duration,
}

impl Concurrency {
    fn need(
        &self,
        load: Load,
        machines: Machines,
        memory: &mut ServiceMemory,
        now: Timestamp,
        next: &mut Earliest,
    ) -> (u32, Reason) {
        let Some(windows) = &memory.windows else { return (0, Reason::AtZero) };
        let total = load.total();
        if machines.ready == 0 {
            return from_zero(self.per_machine, load, machines);
        }
        let (stable, panic) = (windows.stable.average(), windows.panic.average());
        self.watch(windows, now, next);
        let by_stable = machines_for(stable, self.per_machine);
        let by_panic = machines_for(panic, self.per_machine);
        if f64::from(by_panic) >= self.panic_threshold * f64::from(machines.ready) {
            memory.burst_until = Some(now + self.stable_window);
        }
        let least = u32::from(total > 0);
        if let Some(until) = memory.burst_until.filter(|until| *until > now) {
            next.add(until, now);
            let need = by_stable.max(by_panic).max(machines.total()).max(least);
            let (window, target) = (self.panic_window, self.per_machine);
            return (need, Reason::Burst { average: panic, target, window, until });
        }
        let need = by_stable.max(least);
        if need == machines.total() {
            return (need, Reason::Enough);
        }
        let (window, target) = (self.stable_window, self.per_machine);
        (need, Reason::Load { average: stable, target, window })
    }

    /// An average that has not reached the load yet changes though nothing happens.
    fn watch(&self, windows: &Windows, now: Timestamp, next: &mut Earliest) {
        if !windows.panic.has_settled() {
            next.add(now + (self.panic_window / 16).max(TICK_MIN), now);
        } else if !windows.stable.has_settled() {
            next.add(now + (self.stable_window / 16).max(TICK_MIN), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_model::Timestamp;

    const PER_SERVICE: Thresholds =
        Thresholds { replicate_above: 10, dereplicate_at: 2, scope: ThresholdScope::Service };
    const PER_REPLICA: Thresholds =
        Thresholds { replicate_above: 4, dereplicate_at: 3, scope: ThresholdScope::Replica };

    /// Machines of 4 jobs each.
    fn check(rule: Thresholds, load: (u32, u32), (goal, ready): (u32, u32), expect: (u32, &str)) {
        let load = Load { waiting: load.0, in_service: load.1, accepted: 0 };
        let (need, reason) = rule.need(4, load, goal, ready);
        assert_eq!((need, reason.code()), expect, "{load:?} on {ready} of {goal}");
    }

    #[test]
    fn thresholds_count_starting_machines_as_having_taken_their_jobs() {
        check(PER_SERVICE, (0, 0), (0, 0), (0, "AT_ZERO"));
        check(PER_SERVICE, (1, 0), (0, 0), (1, "FROM_ZERO"));
        check(PER_SERVICE, (45, 0), (0, 0), (9, "FROM_ZERO"));
        check(PER_SERVICE, (10, 4), (1, 1), (1, "ENOUGH"));
        check(PER_SERVICE, (11, 4), (1, 1), (2, "QUEUE_ABOVE"));
        check(PER_SERVICE, (11, 4), (2, 1), (2, "ENOUGH"));
        check(PER_SERVICE, (14, 4), (2, 1), (2, "ENOUGH"));
        check(PER_SERVICE, (15, 4), (2, 1), (3, "QUEUE_ABOVE"));
        check(PER_SERVICE, (u32::MAX, u32::MAX), (1, 1), (1_073_741_823, "QUEUE_ABOVE"));
    }

    #[test]
    fn thresholds_let_go_only_what_is_not_wanted_back_at_once() {
        check(PER_SERVICE, (0, 4), (2, 2), (1, "QUEUE_AT_MOST"));
        check(PER_SERVICE, (0, 5), (2, 2), (2, "ENOUGH"));
        check(PER_SERVICE, (2, 4), (2, 2), (1, "QUEUE_AT_MOST"));
        check(PER_SERVICE, (3, 4), (2, 2), (2, "ENOUGH"));
        check(PER_SERVICE, (0, 4), (2, 1), (2, "ENOUGH"));
        check(PER_SERVICE, (0, 1), (1, 1), (1, "ENOUGH"));
        check(PER_SERVICE, (0, 0), (1, 1), (0, "QUEUE_AT_MOST"));
        check(PER_REPLICA, (8, 8), (2, 2), (2, "ENOUGH"));
        check(PER_REPLICA, (9, 8), (2, 2), (3, "QUEUE_ABOVE"));
        check(PER_REPLICA, (6, 4), (2, 2), (2, "ENOUGH"));
        check(PER_REPLICA, (4, 4), (2, 2), (1, "QUEUE_AT_MOST"));
    }

    /// A script of (second, waiting, in service, ready, starting), and what the last line wants.
    fn story(policy: &str, script: &[(f64, u32, u32, u32, u32)], expect: (u32, &str)) {
        let policy: ScalingPolicy = serde_json::from_str(policy).expect(policy);
        let mut memory = ServiceMemory::default();
        let mut last = None;
        for (second, waiting, in_service, ready, starting) in script {
            let now = Timestamp::from_micros((second * 1e6) as u64);
            let load = Load { waiting: *waiting, in_service: *in_service, accepted: 0 };
            let machines = Machines { ready: *ready, starting: *starting };
            let answer = scale(&policy, 4, load, machines, &mut memory, now);
            assert!(answer.next_at.is_none_or(|at| at > now));
            last = Some((answer.wanted, answer.reason.code()));
        }
        assert_eq!(last, Some(expect), "{policy:?} {script:?}");
    }

    #[test]
    fn the_concurrency_rule_averages_panics_and_rests() {
        // Half of 4 jobs for each machine, over 10 s, 1 s in a burst.
        let policy = r#"{"replicas_max": 50, "zero_grace_ms": 5000, "cooldown_ms": 2000, "rule":
            {"kind": "concurrency", "target": 0.5, "stable_window_ms": 10000, "panic_window_ms": 1000,
             "panic_threshold": 2.0}}"#;
        story(policy, &[(0.0, 0, 0, 0, 0)], (0, "AT_ZERO"));
        story(policy, &[(0.0, 17, 0, 0, 0)], (9, "FROM_ZERO"));
        story(policy, &[(0.0, 17, 0, 0, 9)], (9, "ENOUGH"));
        story(policy, &[(0.0, 0, 4, 2, 0), (9.0, 0, 4, 2, 0)], (2, "ENOUGH"));
        story(policy, &[(0.0, 0, 4, 2, 0), (9.0, 4, 8, 2, 0), (9.5, 4, 8, 2, 0)], (4, "BURST"));
        let after = [(0.0, 0, 4, 2, 0), (9.0, 4, 8, 2, 0), (9.5, 4, 8, 2, 0), (12.0, 0, 0, 4, 0)];
        story(policy, &after, (6, "BURST"));
        story(policy, &[&after[..], &[(15.0, 0, 0, 4, 0)]].concat(), (4, "BURST"));
        story(policy, &[&after[..], &[(24.0, 0, 0, 4, 0)]].concat(), (0, "IDLE"));
        story(policy, &[(0.0, 0, 0, 1, 0), (4.0, 0, 0, 1, 0)], (1, "GRACE"));
        story(policy, &[(0.0, 0, 0, 1, 0), (5.0, 0, 0, 1, 0)], (0, "IDLE"));
    }

    #[test]
    fn bounds_and_warm_machines_add_to_the_rule() {
        let with = |more: &str| {
            format!(
                r#"{{"zero_grace_ms": 0, {more}, "rule":
                {{"kind": "concurrency", "target": 0.5, "stable_window_ms": 10000,
                  "panic_window_ms": 1000, "panic_threshold": 2.0}}}}"#
            )
        };
        let idle = [(0.0, 0, 0, 0, 0)];
        story(&with(r#""replicas_min": 2"#), &idle, (2, "MINIMUM"));
        story(&with(r#""warm": 3"#), &idle, (3, "WARM"));
        story(&with(r#""warm": 3"#), &[(0.0, 4, 0, 0, 0)], (5, "WARM"));
        story(&with(r#""replicas_max": 2"#), &[(0.0, 40, 0, 0, 0)], (2, "MAXIMUM"));
        let thresholds = r#"{"warm": 2, "zero_grace_ms": 0, "rule":
            {"kind": "thresholds", "replicate_above": 4, "dereplicate_at": 1, "scope": "service"}}"#;
        story(thresholds, &idle, (2, "WARM"));
        story(thresholds, &[(0.0, 0, 5, 2, 0)], (4, "WARM"));
    }

    #[test]
    fn nothing_is_removed_while_it_cools_down() {
        let policy: ScalingPolicy = serde_json::from_str(r#"{"zero_grace_ms": 0}"#).unwrap();
        let at = Timestamp::from_micros;
        let mut memory = ServiceMemory { changed_at: Some(at(5_000_000)), ..Default::default() };
        let ready = Machines { ready: 3, starting: 0 };
        let answer = scale(&policy, 1, Load::default(), ready, &mut memory, at(9_000_000));
        assert_eq!((answer.wanted, answer.reason.code()), (3, "COOLDOWN"));
        assert_eq!(answer.next_at, Some(at(10_000_000)));
        let answer = scale(&policy, 1, Load::default(), ready, &mut memory, at(10_000_000));
        assert_eq!((answer.wanted, answer.reason.code()), (0, "IDLE"));
    }
}
