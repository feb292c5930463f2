//! Scaling, placement and failover as pure functions: what is wanted, what is seen, what is remembered, the time
//! and a random stream in; a plan with its reasons out.
//!
//! This crate owns every decision about which machines there shall be and where. It never carries one out, reads no
//! clock, does no IO and has no state of its own: the live controller, the simulator and the tests call the same code.
//!
//! ```text
//!             Desired, Observed, Memory, now, rng
//!                          │  plan()            names ⇄ indices, all services in turn
//!                          ▼
//!   Service, Node[] ──▶ plan_service() ──▶ Move[], Verdict
//!                          ├─ scale()           how many, and why: rule, warm pool, grace, bounds, cool-down
//!                          ├─ removals()        which go first: never a busy one while an idle one is there
//!                          ├─ place()           where the new ones go: by what is reserved, never by what is measured
//!                          └─ migrate()         which leave their nodes, cordoned or crowded, and for where
//! ```
//! A live controller calls [`plan`] whenever anything changed and at [`Plan::next_at`], carries out the steps, and
//! hands [`Plan::memory`] to the next call. It shall see the effect of its own steps before it plans again, or the same
//! machines are asked for twice. A simulator calls [`plan_service`], which works on indices and allocates nothing
//! unless machines are removed. [`check::all`] lists what a plan violates, and should always be empty.
//!
//! What the rules do beyond their names:
//! - From zero a job starts machines at once, for all the jobs that wait; no window delays it.
//! - Nothing goes to zero before the grace. The cool-down delays removals only.
//! - A machine that ended unasked or with its node is replaced, because the number wanted is remembered.
//! - When machines of a service end before they serve, further starts wait, each failure twice as long
//!   ([`BACKOFF_INITIAL`] to [`BACKOFF_MAX`]), one at a time, until one is ready for [`READY_PROOF`].
//! - A machine that leaves its node keeps serving until its copy does: the copy is not counted, so that no rule sees one more.
//!   One goes only when nothing is to be added and nothing is replaced.
//! - A changed image or shape replaces machines a quarter at a time, new ones ready before old ones drain. Then, and
//!   only then, there may be more than `replicas_max`. Where there is no room for both, an old one goes first.

pub mod check;
mod core;
mod handover;
mod memory;
mod migrate;
mod place;
mod plan;
mod reason;
mod rng;
mod rules;
mod scale;
mod service;
mod window;

pub use core::{
    Ended, Freshness, Inputs, Load, Move, Node, Place, Replica, ReplicaPhase, Room, Service,
    Verdict,
};
pub use memory::{
    BACKOFF_INITIAL, BACKOFF_MAX, Moving, READY_PROOF, READY_TOO_SHORT, ServiceMemory,
};
pub use place::{place, removals};
pub use plan::{
    Decision, Desired, Memory, NodeView, Observed, Plan, Replaced, ReplicaView, Revision,
    ServiceKey, ServiceKeyError, ServiceView, Step, plan,
};
pub use reason::{Reason, WaitReason};
pub use rng::PlanRng;
pub use scale::{Machines, Scale, Thresholds, scale};
pub use service::{plan_removed, plan_service};
pub use window::Window;
