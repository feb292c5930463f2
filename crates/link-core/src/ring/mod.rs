//! Rings in shared memory, and the switch between TCP and ring.
//!
//! A connection has one [`Segment`] with two [`Direction`]s. A direction is a sequence of *phases*: even ones on TCP, odd
//! ones on the ring, starting with 0 on TCP. The sender publishes a [`Record`] for each change: at which position of its
//! TCP stream and of the ring the new phase begins. TCP positions within a ring phase are *bells*: bytes without meaning
//! that make the receiver's kernel socket readable.
//!
//! ```text
//!            phase 0 (TCP)    phase 1 (ring)     phase 2 (TCP)
//!  TCP   ───d d d d d d d────b───────b──b────────d d d d d d───▶     d data, b bell
//!  ring                      ═══════════════════▶
//!                            ▲                   ▲
//!              record 1: tcp 7, ring 0      record 2: tcp 10, ring 19
//! ```
//!
//! **Invariant (kernel truth).** Whenever the receiver's program runs outside the library, its kernel socket is readable
//! if its ring has unread bytes: at least one bell is in the socket's queue or on its way. So `poll`, `select`, every kind
//! of `epoll`, signals and programs that never heard of the library see what they would see on TCP. The converse (no bell
//! without bytes) holds after [`Rx::settle`], which the library calls before it lets a program wait.
//!
//! **Invariant (no over-read).** While the receiver is in its critical section ([`Direction::enter`]), no phase on the ring
//! begins. So of a TCP phase it reads data only, and of the ring no byte that comes after one of TCP. A phase on the ring may end
//! meanwhile, or else a receiver that is stopped while it reads would stop its sender: bells are dropped by their number, and
//! all of them lie before the first byte of data.
//!
//! **Invariant (no false refusal).** A call that may not block answers that there is no room only when TCP has none, so that
//! the kernel tells when there is.
//!
//! **Invariant (hostile peer).** Each index and record is copied once and checked against what this side knows by itself
//! ([`Tx`], [`Rx`] live in memory that the peer cannot write). A peer that breaks the rules breaks its own connection:
//! [`Broken`].

mod atomic;
mod bells;
mod choice;
mod direction;
pub mod far;
#[cfg(feature = "host")]
pub mod host;
mod rest;
mod rx;
mod segment;
mod tx;
mod wakes;

pub use bells::Bells;
pub use choice::{Choice, Path};
pub use direction::{Direction, LOG, Phase, Preference, Record, Refusal};
pub use rest::Rest;
pub use rx::{Next, Rx, Settled};
pub use segment::{
    Behind, CAPACITY_DEFAULT, CAPACITY_MAX, CAPACITY_MIN, Header, Hello, Pipe, Reach, Reason, Role,
    Segment, SegmentError, segment_len,
};
pub use tx::{Busy, Tx};
pub use wakes::Wakes;

/// Why a direction cannot go on. The connection is to be aborted: some byte may have gone missing or come twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// The peer wrote an index or a record that cannot be.
    Index,
    /// More bytes came over TCP than the sender's library sent: something wrote to the socket past it.
    Foreign,
}

impl core::fmt::Display for Broken {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Index => "the peer broke the ring's rules",
            Self::Foreign => "something wrote to the socket past the library",
        })
    }
}

impl core::error::Error for Broken {}

#[cfg(all(test, not(loom)))]
mod far_tests;
#[cfg(all(test, loom))]
#[expect(unsafe_code, reason = "a pipe over memory of the model's own")]
mod model;
#[cfg(all(test, not(loom)))]
mod tests;
