//! The light protocol: reliable byte streams between two hosts of a cluster, straight on Ethernet or in UDP.
//!
//! ```text
//!  write ──▶ ┌─────────┐ transmit ──▶ carrier ~~~ carrier ──▶ receive ┌─────────┐ ──▶ readable
//!            │ Session │                                              │ Session │
//!  event ◀── └─────────┘ ◀── receive, next_deadline        transmit ◀ └─────────┘
//! ```
//!
//! A [`Session`] joins two agents and carries *channels*, each a stream of bytes in both directions. It touches no
//! clock and no socket: datagrams and the time go in, datagrams, events and the next deadline come out.
//!
//! What it takes from where: window and acknowledgement after RFC 813 (acknowledge rarely, move the window in large
//! steps, send no crumbs), selective repeat with a quick negative acknowledgement (the first hole is told at once),
//! loss by order of transmission as in RFC 8985 and RFC 9002, probes instead of a long timeout, credit from the
//! receiver's buffer. What it never does: fragment, reorder, retransmit what has arrived.
//!
//! The set-up proves that both ends know the cluster's key, and with full-sized datagrams that the path carries
//! them. Datagrams of a session carry its tag, but no proof: who sees the segment's frames can forge and read them, as
//! with TCP. See `docs/link.md`.

mod buffer;
mod channel;
mod check;
mod config;
mod congestion;
mod control;
mod disorder;
mod header;
mod inbound;
mod limits;
mod outbound;
mod proof;
mod ranges;
mod session;
mod setup;
#[cfg(test)]
mod tests;
mod time;

pub use config::{Check, Config, DatagramSize, OPENING_BYTES_MAX};
pub use congestion::WINDOW_START;
pub use control::{AgentId, ResetReason};
pub use header::{
    ChannelId, Credit, Flags, HEADER_BYTES_MAX, HEADER_BYTES_MIN, Header, Kind, SessionTag,
};
pub use limits::{Encapsulation, goodput_share};
pub use proof::Key;
pub use session::{ChannelError, Counters, Event, Loss, Planned, Session};
pub use time::Moment;
