//! What the node answers machines itself: addresses (DHCPv4, DHCPv6), routers, names. Pure: bytes in,
//! bytes out, from a [`Directory`]; `crate::service` moves the bytes.
//!
//! There is no lease to remember: who has which address stands in the desired state, so every node
//! gives the same answer and a machine that moved never notices.

mod dhcp4;
mod dhcp6;
mod directory;
mod dns;
mod router;

pub use dhcp4::{Answer4, answer4};
pub use dhcp6::answer6;
pub use directory::Directory;
pub(crate) use dns::fail_dns;
pub use dns::{DnsAnswer, Way, answer_dns};
pub use router::advertisement;
