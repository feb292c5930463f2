//! What carries the datagrams of the light protocol: Ethernet frames, or UDP.
//!
//! ```text
//!  Session ── next datagram ──▶ Carrier ── 64 frames, or one train of segments, a system call ──▶ interface
//! ```
//!
//! On Ethernet a full datagram costs 14 bytes and nothing else, so it is best where the wire is the limit, and for short
//! messages; but each frame passes the kernel alone. In UDP it costs 42 bytes, and up to 64 datagrams pass the kernel as
//! one (segmentation offload), so that is best where the processor is the limit. [`crate::node`] tries both.
//!
//! A carrier sends and receives without waiting. It never looks into datagrams.

mod depth;
mod ethernet;
mod neighbour;
mod traffic;
mod udp;

pub use ethernet::{Ethernet, Mac};
pub use neighbour::{Neighbour, datagram_in_udp, neighbour_of};
pub use udp::Udp;

use skein_link_core::light::{DatagramSize, Planned};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

/// Which carrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CarrierKind {
    /// Straight on Ethernet.
    Ethernet,
    /// In UDP.
    Udp,
}

impl fmt::Display for CarrierKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ethernet => "ethernet",
            Self::Udp => "udp",
        })
    }
}

/// Where a datagram goes to or comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Address {
    /// An interface on the same segment.
    Mac(Mac),
    /// A socket.
    Socket(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(mac) => mac.fmt(f),
            Self::Socket(socket) => socket.fmt(f),
        }
    }
}

/// What became of datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// There are no more.
    All,
    /// The kernel takes no more now; wait until the descriptor is writable.
    Full,
    /// The interface's queue overflows although the socket would take more; wait a little, there is nothing to wait on.
    Congested,
}

/// Where a carrier gets datagrams from.
pub trait Source {
    /// Writes the next datagram into `out`; its length.
    fn next(&mut self, out: &mut [u8]) -> Option<usize>;

    /// Plans the next datagram without copying it, if that is possible; otherwise [`Source::next`] may have one.
    fn plan(&mut self) -> Option<Planned> {
        None
    }

    /// The payload of a planned datagram, in two pieces.
    fn pieces(&self, _planned: &Planned) -> (&[u8], &[u8]) {
        (&[], &[])
    }
}

impl<F: FnMut(&mut [u8]) -> Option<usize>> Source for F {
    fn next(&mut self, out: &mut [u8]) -> Option<usize> {
        self(out)
    }
}

/// Something that carries datagrams.
pub trait Carrier: Send {
    /// What it is.
    fn kind(&self) -> CarrierKind;

    /// The largest datagram it takes towards `to`.
    fn datagram_max(&self, to: &Address) -> DatagramSize;

    /// Sends the datagrams of `source` until that has no more. It gives it buffers of the datagram size.
    ///
    /// # Errors
    /// The interface or socket is unusable. A datagram that alone is refused is dropped, as a wire would.
    fn send(&mut self, to: &Address, source: &mut dyn Source) -> io::Result<Sent>;

    /// Gives what has come to `take`; how many datagrams. Does not wait. At most a few hundred at a time.
    ///
    /// # Errors
    /// As [`Carrier::send`].
    fn receive(&mut self, take: &mut dyn FnMut(Address, &[u8])) -> io::Result<usize>;

    /// Readable when something has come.
    fn descriptor(&self) -> BorrowedFd<'_>;
}

/// A carrier could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum CarrierError {
    /// The interface has no Ethernet address, or does not exist.
    #[error("interface {name} is no Ethernet interface of this network namespace")]
    NoInterface {
        /// Its name.
        name: String,
    },
    /// A socket could not be made.
    #[error("{action} {subject}")]
    Socket {
        /// What was tried.
        action: &'static str,
        /// On what.
        subject: String,
        /// Why not.
        source: io::Error,
    },
}

impl CarrierError {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoInterface { .. } => "LINK_NO_INTERFACE",
            Self::Socket { .. } => "LINK_CARRIER_SOCKET",
        }
    }

    fn socket(action: &'static str, subject: impl fmt::Display) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Socket { action, subject: subject.to_string(), source }
    }
}
