//! When a user sends requests and what they are like: the same for the simulator and for live runs, so that both see the same
//! load.

use super::events::{Nanos, nanos, secs};
use crate::random::{Distribution, Purpose, Stream};
use crate::scenario::{Rate, Scenario, User as Spec};

/// A user while it sends requests.
#[derive(Debug)]
pub(crate) struct User<'a> {
    pub(crate) spec: &'a Spec,
    /// Index of its service.
    pub(crate) service: u32,
    /// Index of its node.
    pub(crate) node: usize,
    intervals: Stream,
    requests: Stream,
    /// Requests of a trace that were taken so far.
    arrival: usize,
    /// Whether intervals and sizes are drawn as they come: no trace, no rate that changes.
    plain: bool,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Size {
    /// Seconds at performance 1.
    pub(crate) work: f64,
    pub(crate) input_kib: f64,
    pub(crate) output_kib: f64,
}

impl<'a> User<'a> {
    /// All users of a replication, each with streams of its own.
    pub(crate) fn all(
        scenario: &'a Scenario,
        names: &[(String, usize)],
        replication: u32,
    ) -> Vec<Self> {
        let stream = |entity, purpose| Stream::new(scenario.run.seed, replication, entity, purpose);
        let mut users: Vec<Self> = vec![];
        for spec in &scenario.users {
            let service = scenario.services.iter().position(|it| it.name == spec.service);
            let node = spec
                .node
                .as_ref()
                .and_then(|node| names.iter().position(|(name, _)| name == node.as_str()));
            for _ in 0..spec.count {
                let entity = users.len() as u32;
                users.push(Self {
                    spec,
                    service: service.unwrap_or(0) as u32,
                    node: node.unwrap_or(0),
                    intervals: stream(entity, Purpose::Interval),
                    requests: stream(entity, Purpose::Request),
                    arrival: 0,
                    plain: !spec.is_traced() && spec.rate.is_empty(),
                });
            }
        }
        users
    }

    /// When the next request is sent, counted from the latest one, or from its answer; none when no more comes.
    #[inline]
    pub(crate) fn next_at(&mut self, now: Nanos) -> Option<Nanos> {
        if self.plain {
            let interval = self.spec.interval_secs.sample(&mut self.intervals);
            return Some(now + nanos(interval).max(1));
        }
        self.next_given(now)
    }

    /// The same where a trace or a rate says it.
    fn next_given(&mut self, now: Nanos) -> Option<Nanos> {
        if self.spec.is_traced() {
            let given = self.spec.trace.get(self.arrival).map(|request| request.at_secs);
            let at = given.or_else(|| self.spec.arrivals_secs.get(self.arrival).copied())?;
            self.arrival += 1;
            return Some(nanos(at).max(now));
        }
        let interval = self.spec.interval_secs.sample(&mut self.intervals);
        let rate = Rate { points: &self.spec.rate, period_secs: self.spec.rate_period_secs };
        let at = rate.after(secs(now), interval);
        at.is_finite().then(|| nanos(at).max(now + 1))
    }

    /// What the request whose time has come asks for.
    #[inline]
    pub(crate) fn size(&mut self) -> Size {
        if self.plain {
            let Spec { work_secs, input_kib, output_kib, .. } = self.spec;
            let requests = &mut self.requests;
            return Size {
                work: work_secs.sample(requests),
                input_kib: input_kib.sample(requests),
                output_kib: output_kib.sample(requests),
            };
        }
        self.size_given()
    }

    /// The same where a trace may say it.
    fn size_given(&mut self) -> Size {
        // The one whose time has come, where a trace says which.
        let traced = self.arrival.checked_sub(1).and_then(|at| self.spec.trace.get(at));
        let said = traced.copied().unwrap_or_default();
        let mut of = |said: Option<f64>, drawn: &Distribution| {
            said.unwrap_or_else(|| drawn.sample(&mut self.requests))
        };
        Size {
            work: of(said.work_secs, &self.spec.work_secs),
            input_kib: of(said.input_kib, &self.spec.input_kib),
            output_kib: of(said.output_kib, &self.spec.output_kib),
        }
    }
}
