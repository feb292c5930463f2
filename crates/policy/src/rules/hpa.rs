//! Kubernetes' HorizontalPodAutoscaler, decision by decision as its documentation and replica calculator say.

use crate::core::Load;
use crate::reason::Reason;
use crate::rules::peaks::Peaks;
use crate::scale::{Earliest, Machines};
use crate::window::Window;
use serde::{Deserialize, Serialize};
use skein_model::{HpaBehaviour, HpaBy, HpaLimit, HpaMetric, HpaRule, HpaSelect, Timestamp};
use std::collections::VecDeque;
use std::time::Duration;

/// What the rule remembers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct HpaMemory {
    /// What is measured, of all machines together.
    pub(crate) metric: Window,
    /// When it decides next.
    due: Timestamp,
    /// Answers of the window for removals.
    high: Peaks,
    /// Answers of the window for additions, counted from the top: the greatest is the least answer.
    low: Peaks,
    /// Machines added (above 0) and removed, and when; as far back as the longest period of a limit, since the last decision.
    changes: VecDeque<(Timestamp, i64)>,
    /// Machines that were asked for when it was last asked, and when: a change since then is its answer, as far as bounds
    /// and graces let it pass.
    seen: Option<(Timestamp, u32)>,
    /// Ready and starting machines of the latest decision, when the next one would be the same as long as nothing changes.
    still: Option<(u32, u32)>,
}

impl HpaMemory {
    /// Takes note of the load, in a memory that fits the rule.
    pub(crate) fn observe(
        memory: &mut Option<Box<Self>>,
        rule: &HpaRule,
        load: Load,
        now: Timestamp,
    ) {
        if !memory.as_ref().is_some_and(|it| it.metric.has_width(rule.metric_window)) {
            *memory = Some(Box::new(Self {
                metric: Window::new(rule.metric_window, now),
                due: now,
                high: Peaks::default(),
                low: Peaks::default(),
                changes: VecDeque::new(),
                seen: None,
                still: None,
            }));
        }
        if let Some(it) = memory {
            let value = match rule.metric {
                HpaMetric::Busy => load.in_service,
                HpaMetric::Jobs => load.total(),
            };
            it.metric.observe(value, now);
        }
    }

    /// Machines of `capacity` that the rule asks for when `goal` were asked for before, at most `most`.
    pub(crate) fn need(
        &mut self,
        rule: &HpaRule,
        (capacity, load): (u32, Load),
        (goal, machines, most): (u32, Machines, u32),
        (now, next): (Timestamp, &mut Earliest),
    ) -> (u32, Reason) {
        if let Some((at, before)) = self.seen.replace((now, goal)).filter(|it| it.1 != goal) {
            self.changes.push_back((at, i64::from(goal) - i64::from(before)));
        }
        if goal == 0 {
            self.due = now;
            let jobs = load.total();
            return match jobs {
                0 => (0, Reason::AtZero),
                _ => (1, Reason::FromZero { jobs }),
            };
        }
        let settled = self.metric.has_settled();
        let at = (machines.ready, machines.starting);
        if now < self.due {
            if !settled || self.still != Some(at) {
                next.add(self.due, now);
            }
            return (goal, Reason::between(goal, machines, self.due));
        }
        self.due = now + rule.sync_period;
        let (asked, why) = self.ratio(rule, capacity, goal, machines);
        let (steady, held) = self.steadied(rule, goal, asked, now);
        let limited = self.limited(rule, goal, steady.min(most), now);
        let reason = if limited == goal && asked == goal {
            Reason::Enough
        } else if limited != steady.min(most) {
            Reason::Limited { asked: steady }
        } else if let Some(window) = held {
            Reason::Steadied { asked, window }
        } else {
            why
        };
        // Of what is remembered nothing changes by itself any more.
        let still = settled
            && self.changes.is_empty()
            && self.high.falls_at(rule.scale_down.stabilisation_window).is_none()
            && self.low.falls_at(rule.scale_up.stabilisation_window).is_none();
        self.still = still.then_some(at);
        if self.still.is_none() {
            next.add(self.due, now);
        }
        (limited, reason)
    }

    /// The calculator: the machines times the ratio of what is measured to the target.
    fn ratio(&self, rule: &HpaRule, capacity: u32, goal: u32, machines: Machines) -> (u32, Reason) {
        if machines.ready == 0 {
            // Nothing is measured: nothing is changed.
            return (goal, Reason::Enough);
        }
        let (ready, capacity) = (f64::from(machines.ready), f64::from(capacity));
        let usage = self.metric.average() / (ready * capacity);
        let ratio = usage / rule.target;
        let reason = Reason::Ratio { usage, target: rule.target, window: rule.metric_window };
        let near = |ratio: f64| (ratio - 1.0).abs() <= rule.tolerance + 1e-9;
        if ratio <= 1.0 || machines.starting == 0 {
            let asked = if near(ratio) { goal } else { machines_of(ratio * ready) };
            return (asked, reason);
        }
        // Those that start count as unused; if that turns the answer, there is none.
        let all = f64::from(machines.total());
        let damped = ratio * ready / all;
        let asked = machines_of(damped * all);
        let turned = near(damped) || damped < 1.0 || asked < goal;
        (if turned { goal } else { asked }, reason)
    }

    /// The most cautious of the answers of the window, in either direction.
    fn steadied(
        &mut self,
        rule: &HpaRule,
        goal: u32,
        asked: u32,
        now: Timestamp,
    ) -> (u32, Option<Duration>) {
        let (up, down) = (&rule.scale_up, &rule.scale_down);
        let least = u32::MAX - self.low.observe(u32::MAX - asked, up.stabilisation_window, now);
        let most = self.high.observe(asked, down.stabilisation_window, now);
        if goal < least {
            (least, (least < asked).then_some(up.stabilisation_window))
        } else if goal > most {
            (most, (most > asked).then_some(down.stabilisation_window))
        } else {
            let window = if asked < goal { down } else { up }.stabilisation_window;
            (goal, (asked != goal).then_some(window))
        }
    }

    /// What the limits let happen.
    fn limited(&mut self, rule: &HpaRule, goal: u32, asked: u32, now: Timestamp) -> u32 {
        let longest = |of: &HpaBehaviour| of.limits.iter().map(|limit| limit.period).max();
        let kept = longest(&rule.scale_up).max(longest(&rule.scale_down)).unwrap_or_default();
        while self.changes.front().is_some_and(|(at, _)| *at + kept <= now) {
            self.changes.pop_front();
        }
        let before = |limit: &HpaLimit| {
            let recent = self.changes.iter().filter(|(at, _)| *at + limit.period > now);
            i64::from(goal) - recent.map(|(_, change)| change).sum::<i64>()
        };
        if asked > goal {
            let up = |limit: &HpaLimit| match limit.by {
                HpaBy::Machines => before(limit) + i64::from(limit.value),
                HpaBy::Percent => {
                    let share = f64::from(limit.value) / 100.0;
                    (before(limit) as f64 * (1.0 + share) - 1e-9).ceil() as i64
                }
            };
            let reach = bound(&rule.scale_up, goal, up, i64::max, i64::min);
            asked.min(reach.map_or(asked, |most| clamp(most).max(goal)))
        } else if asked < goal {
            let down = |limit: &HpaLimit| match limit.by {
                HpaBy::Machines => before(limit) - i64::from(limit.value),
                HpaBy::Percent => {
                    let share = f64::from(limit.value) / 100.0;
                    (before(limit) as f64 * (1.0 - share) + 1e-9).floor() as i64
                }
            };
            let reach = bound(&rule.scale_down, goal, down, i64::min, i64::max);
            asked.max(reach.map_or(asked, |least| clamp(least).min(goal)))
        } else {
            goal
        }
    }
}

/// How far the limits of a direction reach: the farthest or nearest of them, `goal` when the direction is disabled, none
/// without limits.
fn bound(
    of: &HpaBehaviour,
    goal: u32,
    reach: impl Fn(&HpaLimit) -> i64,
    farther: fn(i64, i64) -> i64,
    nearer: fn(i64, i64) -> i64,
) -> Option<i64> {
    match of.select {
        HpaSelect::Disabled => Some(goal.into()),
        HpaSelect::Max => of.limits.iter().map(reach).reduce(farther),
        HpaSelect::Min => of.limits.iter().map(reach).reduce(nearer),
    }
}

fn clamp(machines: i64) -> u32 {
    u32::try_from(machines.max(0)).unwrap_or(u32::MAX)
}

/// Whole machines; a hair less, so that rounding in an average never asks for one more.
fn machines_of(count: f64) -> u32 {
    (count - 1e-9).ceil().max(0.0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_micros((100 + secs) * 1_000_000)
    }

    /// A script of (second, jobs in service, ready, starting): what the goals become, machines of ten places.
    fn check(rule: &HpaRule, goal: u32, script: &[(u64, u32, u32, u32)], expect: &[(u32, &str)]) {
        let (mut memory, mut goal) = (None, goal);
        let mut said = vec![];
        for (second, in_service, ready, starting) in script {
            let (now, mut next) = (at(*second), Earliest::default());
            let load = Load { in_service: *in_service, ..Load::default() };
            HpaMemory::observe(&mut memory, rule, load, now);
            let machines = Machines { ready: *ready, starting: *starting };
            let it = memory.as_mut().unwrap();
            let (need, reason) =
                it.need(rule, (10, load), (goal, machines, 1000), (now, &mut next));
            assert!(next.0.is_none_or(|at| at > now));
            goal = need;
            said.push((need, reason.code()));
        }
        assert_eq!(said, expect, "{script:?}");
    }

    fn half() -> HpaRule {
        HpaRule { target: 0.5, ..HpaRule::default() }
    }

    #[test]
    fn machines_are_multiplied_by_the_ratio_outside_of_the_tolerance() {
        // 5 of 10 places are the target: 11 % more is more than the tolerance, 9 % is not.
        check(&half(), 2, &[(0, 11, 2, 0)], &[(2, "ENOUGH")]);
        check(&half(), 2, &[(0, 12, 2, 0)], &[(3, "RATIO")]);
        check(&half(), 4, &[(0, 18, 4, 0)], &[(4, "ENOUGH")]);
        // Between two decisions nothing changes. The average of the 15 s then holds.
        let script = [(0, 20, 2, 0), (5, 40, 4, 0), (15, 40, 4, 0)];
        check(&half(), 2, &script, &[(4, "RATIO"), (4, "ENOUGH"), (7, "RATIO")]);
    }

    #[test]
    fn machines_that_start_count_as_unused_and_turn_nothing() {
        check(&half(), 4, &[(0, 20, 2, 2)], &[(4, "ENOUGH")]);
        check(&half(), 4, &[(0, 20, 2, 6)], &[(4, "ENOUGH")]);
        check(&half(), 3, &[(0, 20, 2, 1)], &[(4, "RATIO")]);
        check(&half(), 3, &[(0, 0, 0, 3)], &[(3, "ENOUGH")]);
    }

    #[test]
    fn additions_are_limited_and_removals_wait_for_the_window() {
        // From 1: at most 4 more in 15 s; from 5: at most 5 more, as many as there are.
        let busy = |second, ready| (second, ready * 10, ready, 0);
        let rule = HpaRule { target: 0.05, ..HpaRule::default() };
        let script = [busy(0, 1), busy(15, 5), busy(30, 10)];
        check(&rule, 1, &script, &[(5, "LIMITED"), (10, "LIMITED"), (20, "LIMITED")]);
        let fall = [(0, 20, 4, 0), (15, 0, 4, 0), (30, 0, 4, 0), (300, 0, 4, 0), (350, 0, 4, 0)];
        let expect = [(4, "ENOUGH"), (4, "ENOUGH"), (4, "STEADIED"), (4, "STEADIED"), (0, "RATIO")];
        check(&half(), 4, &fall, &expect);
        let mut disabled = half();
        disabled.scale_down.select = HpaSelect::Disabled;
        disabled.scale_down.stabilisation_window = Duration::ZERO;
        check(&disabled, 4, &[(0, 0, 4, 0)], &[(4, "LIMITED")]);
        let mut slow = disabled;
        slow.scale_down.select = HpaSelect::Min;
        slow.scale_down.limits = vec![
            HpaLimit { by: HpaBy::Machines, value: 1, period: Duration::from_secs(60) },
            HpaLimit { by: HpaBy::Percent, value: 50, period: Duration::from_secs(60) },
        ];
        let expect = [(3, "LIMITED"), (3, "LIMITED"), (3, "LIMITED"), (2, "LIMITED")];
        check(&slow, 4, &[(0, 0, 4, 0), (15, 0, 3, 0), (45, 0, 3, 0), (60, 0, 3, 0)], &expect);
    }
}
