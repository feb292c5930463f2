//! Discrete-event simulation of a scenario, with the policy of the live system deciding.
//!
//! ```text
//!   arrival ──▶ queue ──▶ replica: input ▸ work ▸ output ──▶ answer
//!                 ▲                     │ node fails
//!                 └── retried, or lost ─┘
//!   after each change: skein_policy::plan_service ──▶ boots (code and state over the links, start-up) and removals
//! ```
//! A replication is one thread's work and draws from streams of its own; replications run in parallel. The same scenario
//! and seed give the same history, byte for byte, on any number of threads.

mod events;
mod history;
mod measure;
mod migrate;
mod network;
mod nodes;
mod service;
mod stats;
mod user;
mod world;

pub(crate) use events::{nanos, secs};
pub use measure::{Measure, ServiceReport, SimReport};
pub(crate) use stats::Raw;
pub use stats::{Measured, Sums};
pub(crate) use user::User;

use crate::progress::Progress;
use crate::scenario::Scenario;
use rayon::prelude::*;
use skein_model::Event;

/// One replication.
#[derive(Debug, Clone)]
pub struct Replication {
    /// What was measured of each service, in the order of the scenario.
    pub services: Vec<Measured>,
    /// Events handled.
    pub events: u64,
    /// What happened, when it was asked for.
    pub history: Vec<Event>,
}

/// Whether a replication writes its history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recording {
    /// It does not.
    Off,
    /// It does: memory grows with the length of the run.
    On,
}

/// Runs one replication, its beginning cut off by what it alone shows.
pub fn replicate(scenario: &Scenario, replication: u32, recording: Recording) -> Replication {
    let mut world = world::World::new(scenario, replication, recording == Recording::On);
    let services = world.run(&Progress::default());
    let measured = |it: &Raw| it.measured(Raw::cut(&[it], scenario.run.warm_up));
    Replication {
        services: services.iter().map(measured).collect(),
        events: world.handled,
        history: world.history.take(),
    }
}

/// What a replication counted, without a history.
pub(crate) struct Counted {
    /// Of each service.
    pub(crate) services: Vec<Raw>,
    /// Events handled.
    pub(crate) events: u64,
}

impl Counted {
    /// Whether it came to its end.
    pub(crate) fn is_whole(&self) -> bool {
        self.services.iter().all(Raw::is_whole)
    }
}

/// Runs one replication without a history; when it is stopped early, to where it got.
pub(crate) fn count(scenario: &Scenario, replication: u32, progress: &Progress) -> Counted {
    let mut world = world::World::new(scenario, replication, false);
    let services = world.run(progress);
    let counted = Counted { services, events: world.handled };
    if counted.is_whole() {
        progress.end_replication();
    }
    counted
}

/// Work of so many replications, in the units of [`Progress`].
pub(crate) fn work_of(scenario: &Scenario, replications: u32) -> u64 {
    u64::from(replications) * stats::cells_for(scenario.services.len()) as u64
}

/// Runs all replications of a scenario, in parallel, and sums them up. When it is stopped early, what is known so far: the
/// replications that came to their end, or where none did, what those under way had simulated by then.
pub fn simulate(scenario: &Scenario, progress: &Progress) -> SimReport {
    progress.expect(work_of(scenario, scenario.run.replications));
    let all: Vec<Option<Counted>> = (0..scenario.run.replications)
        .into_par_iter()
        // One at a time, or a thread that is done waits for another's last two.
        .with_max_len(1)
        .map(|number| {
            let begins = number == 0 || !progress.is_stopped();
            begins.then(|| count(scenario, number, progress))
        })
        .collect();
    let all: Vec<Counted> = all.into_iter().flatten().collect();
    let any_whole = all.iter().any(Counted::is_whole);
    let events = all.iter().map(|it| it.events).sum();
    let done: Vec<Counted> = all.into_iter().filter(|it| it.is_whole() || !any_whole).collect();
    let services: Vec<Vec<Measured>> = (0..scenario.services.len())
        .map(|at| {
            let raw: Vec<&Raw> = done.iter().map(|it| &it.services[at]).collect();
            Raw::all_measured(&raw, scenario.run.warm_up)
        })
        .collect();
    SimReport::of(scenario, &services, events)
}
