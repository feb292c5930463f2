//! Continuous-time Markov chains: what the simulator estimates, computed.

mod family;
mod graph;
mod steady;

pub use family::{Bound, Family, Replicas, Rule, Solution, State};
pub use graph::{Chain, ChainError, STATES_MAX};
pub use steady::{Certificate, Method, Steady, steady_state};
