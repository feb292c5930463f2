//! Scaling rules that need more than a look at the load: each is a pure function of what is seen and what it remembers.

pub(crate) mod erlang;
pub(crate) mod flow;
pub(crate) mod hpa;
pub(crate) mod kpa;
pub(crate) mod peaks;
pub(crate) mod predictive;
