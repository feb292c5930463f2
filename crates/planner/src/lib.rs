//! Capacity planning: what a system would do, simulated and computed with the decision code of the live system.
//!
//! ```text
//!   scenario.toml ─▶ Scenario ─┬─▶ simulate()   discrete events, skein_policy::plan_service decides ─▶ SimReport
//!                              ├─▶ solve()      Markov chain, its digits certified                   ─▶ SolveReport
//!                              ├─▶ compare()    both, beside what was measured live                  ─▶ Comparison
//!                              └─▶ search()     the parameters that reach a goal                     ─▶ Found
//!   history.jsonl ─▶ replay     scenes for a terminal, one page for a browser
//! ```
//! Everything here is pure: no clock, no file, no output. One function for each subcommand of `skein plan`, with typed
//! inputs and outputs; the binary reads files, shows progress and prints. Choices that the literature leaves open are keys of
//! the scenario (`docs/planner.md`).

pub mod bench;
mod chain;
mod compare;
pub mod experiments;
mod jobs;
mod live;
mod models;
mod output;
pub mod plot;
mod png;
pub mod policies;
mod progress;
mod random;
pub mod replay;
pub mod report;
mod scenario;
pub mod search;
mod sim;
mod solve;
mod svg;
pub mod verify;

pub use chain::{
    Bound, Certificate, Chain, ChainError, Explicit, Family, Method, Occupied, Replicas, Rule,
    STATES_MAX, Solution, State, Steady, steady_state, transient,
};
pub use compare::{
    BatchTime, Comparison, LiveService, Row, SpeedUp, batch_scenario, batch_times, compare,
    speed_up,
};
pub use live::{
    NodeChange, NodeTurn, PlannedRequest, UserScript, left_out, measure_history, node_changes,
};
pub use output::{Estimate, mser5, rule_of_three, student_t};
pub use png::PngError;
pub use progress::Progress;
pub use random::{Distribution, Purpose, RandomKind, Stream};
pub use scenario::{
    Assumptions, BackgroundChanges, ChainReplicas, FailureLoses, FailuresHit, LastReplica,
    Mobility, Network, NodeGroup, QueueCounts, QueueKind, RatePoint, Repair, Run, Scenario,
    ScenarioError, Service, ThroughputIs, Topology, TracedRequest, User, WarmUp, parse_trace,
};
pub use sim::{
    Measure, Measured, Recording, Replication, ServiceReport, SimReport, Sums, replicate, simulate,
};
pub use solve::{SolveError, SolveReport, SolvedService, family_of, solve, solve_over};
