//! The control process: the API, the leader's controller, history and metrics.
//!
//! ```text
//!   clients ──HTTP──▶ routes ──▶ state, queue, blobs          (truth)
//!                        │
//!   bus ── events ──▶ recorder ──▶ history, metrics           (what happened)
//!   bus ── reports ─▶ reports                                 (what is measured)
//!                        │
//!   election ──▶ controller ──▶ policy::plan ──▶ records      (what shall be)
//!   election ──▶ sweeper ──▶ queue                            (deadlines, back-offs, retention)
//! ```
//! It decides nothing itself: `skein-policy` does. It runs no machine and sends no job: agents do.

mod addresses;
mod agents;
mod app;
mod auth;
mod bootstrap;
mod controller;
mod decisions;
mod demands;
mod error;
mod extract;
mod history;
mod link_metrics;
mod metrics;
mod observe;
mod readiness;
mod recorder;
mod reports;
mod reserved;
mod routes;
mod scope;
mod server;
mod sweeper;
mod usage;

pub use auth::{Token, TokenError};
pub use history::{History, HistoryError};
pub use routes::openapi;
pub use server::{Server, ServerConfig, ServerError, ServerParts};
