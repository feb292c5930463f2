//! Benches: every promise of speed, measured beside what a user would pick instead, in the same run.
//!
//! ```text
//!  run ── Rig: a cloud in a folder of its own ──┬── start     ours, floor, ours, floor, ...
//!          └─ Floor: bare QEMU in a namespace   ├── density   ours, floor, ours, floor, ...
//!                                               └── dispatch  by the API, directly, by the API, ...
//!                                                       │
//!                                                       └──> Report: JSON, table, Markdown, SVG
//! ```
//!
//! `plan` and `net` need none of that: the one measures the planner, beside simulators and a solver from PyPI, the other the
//! networks of two nodes, beside bridges and tunnels without any of ours.
//!
//! The crate owns how things are measured and how figures are told. It changes nothing in the product: it
//! talks to it as any client does, over HTTP, and reads of the host what any monitor could. It needs root, as the
//! product does, and leaves no process, namespace or file behind, even when it is interrupted.

mod density;
mod dispatch;
mod error;
mod floor;
mod host;
mod http1;
mod link;
mod net;
mod options;
mod plan;
mod plot;
mod process;
mod render;
mod report;
mod rig;
mod start;
mod stats;

pub use error::BenchError;
pub use link::{LinkOptions, LinkPart, Traffic, peer, run_link};
pub use net::run_net;
pub use options::{Bench, BenchImage, ImageModule, Options, Progress};
pub use plan::{PlanOptions, run_plan};
pub use render::{markdown, table};
pub use report::{Baseline, Check, Curve, Goal, Host, Plot, Report};
pub use rig::run;
pub use stats::Sample;

pub use plot::write_folder;
