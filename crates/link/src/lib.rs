//! The fast path between two sockets, as one host runs it.
//!
//! - [`broker`]: who is where, who may talk to whom; hands both ends of a connection their shared memory.
//! - [`remote`]: what the broker asks of the light protocol for a peer on another host.
//! - [`place`]: where programs find the broker.
//! - [`run`]: starting programs whose sockets take the link.
//! - [`carrier`], [`node`]: the light protocol on Ethernet and UDP, and the daemon's side of it.

pub mod broker;
pub mod carrier;
pub mod node;
pub mod place;
pub mod remote;
pub mod run;
pub mod testbed;
