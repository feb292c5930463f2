//! Model-predictive scaling: a queueing model says how many machines keep the wait under its objective.
//!
//! ```text
//!   arrivals of the window, of its last quarter ─▶ rate to be expected once a machine that starts now is ready ─┐
//!   work and ends of the window ─▶ service time ────────────────────────────────────────────────────────────────┼─▶ Erlang C
//!   waiting jobs that the ready machines do not get through in time ─▶ machines to get through them ─────────────┘    │
//!                                          the most that was asked for within the window ◀── fewest machines ◀────────┘
//! ```

use crate::core::Load;
use crate::reason::Reason;
use crate::rules::erlang::{Promise, fewest_machines};
use crate::rules::flow::Flow;
use crate::rules::peaks::Peaks;
use crate::scale::{Earliest, Machines};
use serde::{Deserialize, Serialize};
use skein_model::{PredictiveRule, Timestamp};
use std::time::Duration;

/// A rate of the last quarter that differs by so many standard deviations of a Poisson count from that of the window is a
/// trend, and no chance: 1 in 700 by chance.
const TREND: f64 = 3.0;

/// What the rule remembers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PredictiveMemory {
    flow: Flow,
    high: Peaks,
}

impl PredictiveMemory {
    /// Takes note of the load, in a memory that fits the rule.
    pub(crate) fn observe(
        memory: &mut Option<Box<Self>>,
        rule: &PredictiveRule,
        load: Load,
        now: Timestamp,
    ) {
        match memory {
            Some(it) if it.flow.has_window(rule.window) => it.flow.observe(load, now),
            _ => {
                let flow = Flow::new(rule.window, load, now);
                *memory = Some(Box::new(Self { flow, high: Peaks::default() }));
            }
        }
    }

    /// Machines that the rule asks for, of `capacity` places each, at most `most`.
    pub(crate) fn need(
        &mut self,
        rule: &PredictiveRule,
        (capacity, load): (u32, Load),
        (machines, most): (Machines, u32),
        (now, next): (Timestamp, &mut Earliest),
    ) -> (u32, Reason) {
        let capacity = capacity.max(1);
        let Some(service) = self.flow.service_secs() else {
            return unknown(capacity, load, machines);
        };
        let arrivals = self.expected(rule);
        let offered = arrivals * service;
        let promise = Promise {
            wait: rule.wait.as_secs_f64(),
            late: 1.0 - rule.share,
            variability: rule.variability,
        };
        let by_model =
            match arrivals > 0.0 {
                true => fewest_machines(offered, service, capacity, most, promise).unwrap_or_else(
                    || whole(offered / f64::from(capacity)).max(most.saturating_add(1)),
                ),
                false => 0,
            };
        let backlog = backlog(rule, (capacity, load), machines, (offered, service));
        let asked = by_model.max(backlog).max(u32::from(load.total() > 0));
        let kept = self.high.observe(asked, rule.window, now);
        if arrivals > 0.0 {
            next.add(now + (rule.window / 16).max(Duration::from_millis(10)), now);
        }
        if let Some(at) = self.high.falls_at(rule.window) {
            next.add(at, now);
        }
        let reason = match machines.total() {
            0 if kept == 0 => Reason::AtZero,
            0 => Reason::FromZero { jobs: load.total() },
            total if kept == total => Reason::Enough,
            _ if kept > asked => Reason::Steadied { asked, window: rule.window },
            _ => Reason::Model { arrivals, service, wait: rule.wait },
        };
        (kept, reason)
    }

    /// Arrivals per second to be expected once a machine that is started now is ready: the trend goes on until then.
    fn expected(&self, rule: &PredictiveRule) -> f64 {
        let (window, quarter) = (self.flow.window(), self.flow.quarter());
        let usual = window.rate() * quarter.secs;
        let chance = TREND * usual.max(1.0).sqrt();
        if quarter.arrived <= usual + chance {
            return window.rate();
        }
        // The means of both stretches stand for their middles.
        let apart = (window.secs - quarter.secs) / 2.0;
        let ahead = quarter.secs / 2.0 + rule.start.as_secs_f64();
        let growth = if apart > 0.0 { (quarter.rate() - window.rate()) / apart } else { 0.0 };
        // At most twice what is seen: no trend goes on for ever.
        (quarter.rate() + growth * ahead).min(2.0 * quarter.rate())
    }
}

/// As long as no job has ended: a place for each.
fn unknown(capacity: u32, load: Load, machines: Machines) -> (u32, Reason) {
    let need = load.total().div_ceil(capacity);
    match (load.total(), machines.total()) {
        (0, _) => (0, Reason::AtZero),
        (jobs, 0) => (need, Reason::FromZero { jobs }),
        (_, total) if need <= total => (total, Reason::Enough),
        (jobs, _) => (need, Reason::FromZero { jobs }),
    }
}

/// Machines that get through the waiting jobs within the objective and a start, beside what arrives; 0 when those that are
/// ready do so anyway. Never more than a place for each job.
fn backlog(
    rule: &PredictiveRule,
    (capacity, load): (u32, Load),
    machines: Machines,
    (offered, service): (f64, f64),
) -> u32 {
    let work = f64::from(load.waiting) * service;
    let places = f64::from(machines.ready) * f64::from(capacity);
    let wait = rule.wait.as_secs_f64();
    if work <= wait * places {
        return 0;
    }
    let within = (wait + rule.start.as_secs_f64()).max(service).max(1e-6);
    let need = whole((offered + work / within) / f64::from(capacity));
    need.min(load.total().div_ceil(capacity))
}

/// Whole machines; a hair less, so that rounding never asks for one more.
fn whole(machines: f64) -> u32 {
    (machines - 1e-9).ceil().max(0.0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Script {
        memory: Option<Box<PredictiveMemory>>,
        rule: PredictiveRule,
        accepted: u64,
        now_ms: u64,
    }

    impl Script {
        fn new(rule: PredictiveRule) -> Self {
            Self { memory: None, rule, accepted: 0, now_ms: 1_000_000 }
        }

        fn ask(&mut self, waiting: u32, in_service: u32, ready: u32) -> (u32, &'static str) {
            let now = Timestamp::from_micros(self.now_ms * 1000);
            let load = Load { waiting, in_service, accepted: self.accepted };
            PredictiveMemory::observe(&mut self.memory, &self.rule, load, now);
            let machines = Machines { ready, starting: 0 };
            let mut next = Earliest::default();
            let it = self.memory.as_mut().unwrap();
            let (need, reason) = it.need(&self.rule, (1, load), (machines, 100), (now, &mut next));
            assert!(next.0.is_none_or(|at| at > now));
            (need, reason.code())
        }

        /// A job every `every_ms`, each takes `takes_ms`, for so many seconds; the last answer.
        fn regular(&mut self, secs: u64, every_ms: u64, takes_ms: u64) -> (u32, &'static str) {
            let end = self.now_ms + secs * 1000;
            let mut ends = std::collections::VecDeque::new();
            let mut last = (0, "");
            let (mut next, first) = (self.now_ms, self.now_ms);
            while next < end {
                self.now_ms = next.min(ends.front().copied().unwrap_or(u64::MAX)).max(first);
                if self.now_ms == next {
                    self.accepted += 1;
                    ends.push_back(next + takes_ms);
                    next += every_ms;
                } else {
                    ends.pop_front();
                }
                let busy = ends.len() as u32;
                last = self.ask(0, busy, busy.max(1));
            }
            last
        }
    }

    fn rule(wait_ms: u64, share: f64) -> PredictiveRule {
        PredictiveRule {
            wait: Duration::from_millis(wait_ms),
            share,
            window: Duration::from_secs(16),
            ..PredictiveRule::default()
        }
    }

    #[test]
    fn the_model_says_how_many() {
        // Eight jobs a second of one second each: C(10, 8) = 0.409, C(11, 8) = 0.246.
        let mut script = Script::new(rule(0, 0.55));
        assert_eq!(script.regular(80, 125, 1000).0, 10);
        let mut script = Script::new(rule(0, 0.70));
        assert_eq!(script.regular(80, 125, 1000).0, 11);
    }

    #[test]
    fn it_keeps_what_it_asked_for_over_the_window_and_then_lets_go() {
        let mut script = Script::new(rule(100, 0.95));
        script.regular(40, 125, 1000);
        script.ask(0, 0, 12);
        script.now_ms += 5_000;
        let (need, why) = script.ask(0, 0, 12);
        assert!(need >= 10 && why == "STEADIED", "{need} {why}");
        script.now_ms += 40_000;
        script.ask(0, 0, 12);
        script.now_ms += 17_000;
        assert_eq!(script.ask(0, 0, 12).0, 0);
    }

    #[test]
    fn growth_is_met_before_it_has_arrived() {
        let mut script =
            Script::new(PredictiveRule { start: Duration::from_secs(8), ..rule(100, 0.95) });
        let (before, _) = script.regular(60, 250, 1000);
        let (after, _) = script.regular(4, 60, 1000);
        let mut steady = Script::new(rule(100, 0.95));
        steady.regular(40, 60, 1000);
        let (usual, _) = steady.regular(40, 60, 1000);
        assert!(after > before + 5, "{before} {after}");
        assert!(after > usual, "{after} {usual}");
    }

    #[test]
    fn a_queue_that_takes_too_long_gets_machines() {
        let mut script = Script::new(rule(1000, 0.95));
        script.regular(40, 1000, 500);
        script.accepted += 40;
        script.now_ms += 10;
        let (need, _) = script.ask(40, 0, 1);
        assert!((18..=40).contains(&need), "{need}");
    }

    #[test]
    fn before_anything_is_known_each_job_has_a_place() {
        let mut script = Script::new(rule(100, 0.95));
        assert_eq!(script.ask(0, 0, 0), (0, "AT_ZERO"));
        script.accepted = 7;
        assert_eq!(script.ask(7, 0, 0), (7, "FROM_ZERO"));
        assert_eq!(script.ask(6, 1, 7), (7, "ENOUGH"));
    }
}
