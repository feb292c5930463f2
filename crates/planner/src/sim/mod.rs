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
mod network;
mod service;
mod stats;
mod user;
mod world;

pub(crate) use events::{nanos, secs};
pub use measure::{Measure, ServiceReport, SimReport};
pub(crate) use stats::Raw;
pub use stats::{Measured, Sums};
pub(crate) use user::User;

use crate::scenario::Scenario;
use rayon::prelude::*;
use skein_model::Event;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

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
    let services = world.run();
    let measured = |it: &Raw| it.measured(Raw::cut(&[it], scenario.run.warm_up));
    Replication {
        services: services.iter().map(measured).collect(),
        events: world.handled,
        history: world.history.take(),
    }
}

/// Runs one replication without a history: what was counted of each service, and the events handled.
pub(crate) fn count(scenario: &Scenario, replication: u32) -> (Vec<Raw>, u64) {
    let mut world = world::World::new(scenario, replication, false);
    (world.run(), world.handled)
}

/// Progress of a simulation, and the wish to end it early. Shared with whoever shows the one and wishes the other.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU32,
    stopped: AtomicBool,
}

impl Progress {
    /// Replications done.
    pub fn done(&self) -> u32 {
        self.done.load(Ordering::Relaxed)
    }

    /// Counts replications that were done.
    pub(crate) fn add(&self, replications: u32) {
        self.done.fetch_add(replications, Ordering::Relaxed);
    }

    /// Whether somebody wishes the end.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// No further replication begins.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

/// Runs all replications of a scenario, in parallel, and sums them up. When it is stopped early, what is known so far:
/// those replications that were done, at least the first.
pub fn simulate(scenario: &Scenario, progress: &Progress) -> SimReport {
    let all: Vec<Option<(Vec<Raw>, u64)>> = (0..scenario.run.replications)
        .into_par_iter()
        .map(|number| {
            if number > 0 && progress.is_stopped() {
                return None;
            }
            let replication = count(scenario, number);
            progress.add(1);
            Some(replication)
        })
        .collect();
    let done: Vec<(Vec<Raw>, u64)> = all.into_iter().flatten().collect();
    let services: Vec<Vec<Measured>> = (0..scenario.services.len())
        .map(|at| {
            let raw: Vec<&Raw> = done.iter().map(|(services, _)| &services[at]).collect();
            Raw::all_measured(&raw, scenario.run.warm_up)
        })
        .collect();
    SimReport::of(scenario, &services, done.iter().map(|it| it.1).sum())
}
