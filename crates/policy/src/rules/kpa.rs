//! Knative's pod autoscaler, tick by tick as its documentation and source say.

use crate::core::Load;
use crate::memory::Windows;
use crate::reason::Reason;
use crate::rules::peaks::Peaks;
use crate::scale::{Earliest, Machines, from_zero, machines_for};
use serde::{Deserialize, Serialize};
use skein_model::{KpaRule, Timestamp};

/// What the rule remembers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct KpaMemory {
    pub(crate) windows: Windows,
    /// When it decides next.
    due: Timestamp,
    /// What it decided last.
    asked: u32,
    /// Until then it panics, and the most machines that it asked for since it does.
    panic: Option<(Timestamp, u32)>,
    /// Answers of the delay.
    high: Peaks,
    /// Ready machines of the latest decision, when the next one would be the same as long as nothing changes.
    still: Option<u32>,
}

impl KpaMemory {
    /// Takes note of the load, in a memory that fits the rule.
    pub(crate) fn observe(
        memory: &mut Option<Box<Self>>,
        rule: &KpaRule,
        load: Load,
        now: Timestamp,
    ) {
        let widths = (rule.stable_window, rule.panic_window());
        if !memory.as_ref().is_some_and(|it| it.windows.have(widths)) {
            *memory = Some(Box::new(Self {
                windows: Windows::new(widths, now),
                due: now,
                asked: 0,
                panic: None,
                high: Peaks::default(),
                still: None,
            }));
        }
        if let Some(it) = memory {
            it.windows.observe(load, now);
        }
    }

    /// Machines that the rule asks for, of `capacity` places each.
    pub(crate) fn need(
        &mut self,
        rule: &KpaRule,
        (capacity, load): (u32, Load),
        machines: Machines,
        (now, next): (Timestamp, &mut Earliest),
    ) -> (u32, Reason) {
        let target = f64::from(capacity) * rule.target;
        if machines.ready == 0 {
            self.due = now;
            return from_zero(target, load, machines);
        }
        let settled = self.windows.have_settled();
        if now < self.due {
            if !settled || self.still != Some(machines.ready) {
                next.add(self.due, now);
            }
            return (self.asked, Reason::between(self.asked, machines, self.due));
        }
        self.due = now + rule.tick;
        let (asked, why) = self.decide(rule, target, machines, now);
        let kept = self.high.observe(asked, rule.down_delay, now);
        self.asked = kept;
        let still = settled && self.panic.is_none() && kept == asked;
        self.still = still.then_some(machines.ready);
        if !still {
            next.add(self.due, now);
        }
        let reason = if kept == machines.total() {
            Reason::Enough
        } else if kept > asked {
            Reason::Steadied { asked, window: rule.down_delay }
        } else {
            why
        };
        (kept, reason)
    }

    fn decide(
        &mut self,
        rule: &KpaRule,
        target: f64,
        machines: Machines,
        now: Timestamp,
    ) -> (u32, Reason) {
        let ready = f64::from(machines.ready);
        let most = (rule.up_rate_max * ready).ceil() as u32;
        let least = (ready / rule.down_rate_max).floor() as u32;
        let (stable, panic) = (self.windows.stable.average(), self.windows.panic.average());
        let by = |average: f64| machines_for(average, target);
        let (by_stable, by_panic) = (by(stable).clamp(least, most), by(panic).clamp(least, most));
        let over = f64::from(by(panic)) >= rule.panic_threshold * ready;
        let until = now + rule.stable_window;
        self.panic = match self.panic {
            Some((_, peak)) if over => Some((until, peak)),
            None if over => Some((until, 0)),
            other => other.filter(|(until, _)| *until > now),
        };
        if let Some((until, peak)) = &mut self.panic {
            *peak = (*peak).max(by_stable).max(by_panic);
            let (average, window, until) = (panic, rule.panic_window(), *until);
            return (*peak, Reason::Burst { average, target, window, until });
        }
        if by_stable != by(stable) {
            return (by_stable, Reason::Limited { asked: by(stable) });
        }
        (by_stable, Reason::Load { average: stable, target, window: rule.stable_window })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A script of (second, jobs in service, ready): what is asked for, machines of ten places, five of them the target.
    fn check(rule: &KpaRule, script: &[(f64, u32, u32)], expect: &[(u32, &str)]) {
        let (mut memory, mut said) = (None, vec![]);
        for (second, in_service, ready) in script {
            let now = Timestamp::from_micros(100_000_000 + (second * 1e6) as u64);
            let load = Load { in_service: *in_service, ..Load::default() };
            KpaMemory::observe(&mut memory, rule, load, now);
            let (machines, mut next) =
                (Machines { ready: *ready, starting: 0 }, Earliest::default());
            let it = memory.as_mut().unwrap();
            let (need, reason) = it.need(rule, (10, load), machines, (now, &mut next));
            assert!(next.0.is_none_or(|at| at > now));
            said.push((need, reason.code()));
        }
        assert_eq!(said, expect, "{script:?}");
    }

    fn half() -> KpaRule {
        KpaRule { target: 0.5, ..KpaRule::default() }
    }

    #[test]
    fn it_decides_by_ticks_and_halves_at_most() {
        let script = [(0.0, 20, 4), (1.0, 20, 4), (2.0, 20, 4), (62.0, 5, 4), (130.0, 5, 4)];
        let expect = [(4, "ENOUGH"), (4, "ENOUGH"), (4, "ENOUGH"), (4, "ENOUGH"), (2, "LIMITED")];
        check(&half(), &script, &expect);
        check(&half(), &[(0.0, 0, 0), (0.1, 12, 0)], &[(0, "AT_ZERO"), (3, "FROM_ZERO")]);
    }

    #[test]
    fn it_panics_without_removing() {
        // Six seconds of twice as much are a burst; for a minute after it none is removed.
        let script = [(0.0, 10, 2), (60.0, 20, 2), (66.0, 20, 2), (68.0, 0, 4), (70.0, 0, 4)];
        let expect = [(2, "ENOUGH"), (2, "ENOUGH"), (4, "BURST"), (4, "ENOUGH"), (4, "ENOUGH")];
        check(&half(), &script, &expect);
    }

    #[test]
    fn a_delay_keeps_what_was_asked_for() {
        let rule = KpaRule { down_delay: Duration::from_secs(30), ..half() };
        let script = [(0.0, 20, 4), (2.0, 0, 4), (62.0, 0, 4), (94.0, 0, 4)];
        let steps = [(4, "ENOUGH"), (4, "ENOUGH"), (2, "LIMITED"), (2, "LIMITED")];
        check(&rule, &script, &steps);
        let script = [(0.0, 20, 4), (2.0, 10, 4), (20.0, 0, 4)];
        check(&rule, &script, &[(4, "ENOUGH"), (4, "ENOUGH"), (4, "ENOUGH")]);
    }
}
