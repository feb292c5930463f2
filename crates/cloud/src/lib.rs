//! A cloud on one machine: the embedded fabric, one server and any number of nodes, in one process.
//!
//! Owns the layout of the state folder and the order in which parts start and stop. It decides nothing and talks to
//! nobody: the parts do.
//!
//! ```text
//!   STATE/  cloud.id  tunnel.ports  admin.token  events.db  state/  blobs/  images/  vmm/  n1/ n2/ ...   (run directories of machines)
//! ```

mod cloud;
mod host;
mod leftover;
#[cfg(feature = "played")]
mod played;
mod tunnels;

pub use cloud::{Cloud, CloudConfig, CloudError, Drivers, NodePlace};
pub use host::{HostFigures, HostProblem, check_host};
pub use leftover::remove_abandoned;
