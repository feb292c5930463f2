//! Capacity planning: simulate and solve a scenario with the decision code of the live system.

mod chain;
mod compare;
pub mod experiments;
mod output;
mod random;
pub mod report;
mod scenario;
pub mod search;
mod sim;
mod solve;
pub mod svg;
pub mod verify;

pub use chain::{
    Bound, Certificate, Chain, ChainError, Explicit, Family, Method, Replicas, Rule, STATES_MAX,
    Solution, State, Steady, TooLong, steady_state, transient,
};
pub use compare::{Comparison, LiveService, Row, SpeedUp, compare, speed_up};
pub use output::{Estimate, mser5, student_t};
pub use random::{Distribution, Purpose, RandomKind, Stream};
pub use scenario::{
    Assumptions, BackgroundChanges, ChainReplicas, FailureLoses, FailuresHit, LastReplica,
    Mobility, Network, NodeGroup, QueueCounts, QueueKind, Repair, Run, Scenario, ScenarioError,
    Service, ThroughputIs, Topology, User, WarmUp,
};
pub use sim::{
    Measure, Measured, Progress, Recording, Replication, ServiceReport, SimReport, Sums, replicate,
    simulate,
};
pub use solve::{SolveError, SolveReport, SolvedService, family_of, solve};
