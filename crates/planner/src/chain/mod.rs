//! Continuous-time Markov chains: what the simulator estimates, computed.

mod family;
mod graph;
mod gth;
mod joined;
mod lines;
mod multilevel;
mod prism;
mod shared;
mod steady;
mod transient;

pub use family::{Bound, Family, Replicas, Rule, Solution, State};
pub use graph::{Chain, ChainError, STATES_MAX};
pub use prism::Explicit;
pub use shared::Occupied;
pub(crate) use shared::{EACH_MAX, NODES_MAX, layouts};
pub use steady::{Certificate, Method, Steady, steady_state};
pub(crate) use transient::accumulated;
pub use transient::transient;
