//! One node: its machines, their networks and ports, and the slots in which jobs are served.
//!
//! ```text
//!   records (mirror) ──▶ networks ──▶ namespaces, bridges, rules, names
//!   records (mirror) ──▶ reconcile ──▶ one task for each machine ──▶ driver (QEMU), port (tap)
//!                                          │ ready, draining, gone
//!                                          ▼
//!   records (mirror) ──▶ link ──▶ broker, peers: the fast path of the host's programs
//!   queue ──claim──▶ one dispatcher for each service ──HTTP──▶ machine ──▶ queue (result)
//! ```
//! The agent converges to the machines that the leader assigned to its node, and writes what they are. Nobody sends
//! it jobs: a dispatcher with a free slot pulls them. It decides nothing about how many machines there are.
//!
//! **Killed at any point, it loses nothing**: machines go on without it and are adopted by the next agent; jobs it
//! had claimed fall back with its lease; what it had begun to build is found in run directories and ports, and
//! finished or removed.

mod agent;
mod config;
mod delivery;
mod dispatch;
mod link;
mod machine;
mod networks;
mod node;
mod report;
mod requests;
mod slots;

pub use agent::{Agent, AgentError, Parts};
pub use config::{AgentConfig, ConfigError, LinkConfig};
