//! The contract between the broker and the light protocol.
//!
//! ```text
//!  program A ══ ring ══▶ Local (A) ── node A ~~light~~ node B ── Local (B) ══ ring ══▶ program B
//!      └───────────────────────── their TCP connection ─────────────────────────────────┘
//! ```
//!
//! The broker gives a program on this host the same rings as for a peer on the same host; their other end is a
//! [`Local`], which the node pumps. Bytes of a direction travel on TCP below an offset and on the ring from it on, and
//! back: the sender's library writes [`Switch`] records, the node carries them to the other side *in order with the
//! ring's bytes*, and the receiver's library merges the two paths by them. TCP of the two programs stays as it is.
//!
//! A program that sleeps in the kernel is woken by one byte (a *bell*) on its TCP connection, sent from the other host:
//! [`Local::write`] answers [`Written::Bell`] when that is needed, the node then asks the other node for it, and that one
//! calls [`Local::ring_bell`].

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

/// Names one TCP connection on both hosts: its two addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionKey {
    /// The smaller of the two addresses.
    pub low: SocketAddr,
    /// The greater.
    pub high: SocketAddr,
}

impl ConnectionKey {
    /// The key of a connection, the same at both ends.
    pub fn new(one: SocketAddr, other: SocketAddr) -> Self {
        Self { low: one.min(other), high: one.max(other) }
    }
}

/// A change of path in one direction, written by the sender's library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    /// The number of this phase of the direction. Even phases are on TCP, odd ones on the ring; phase 0 begins live.
    pub phase: u32,
    /// Position in the sender's TCP stream of this direction at which the phase begins.
    pub tcp: u64,
    /// Position in the ring of this direction (bytes since the start) at which the phase begins.
    pub ring: u64,
}

/// What comes out of a program, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outgoing {
    /// That many bytes were copied into the caller's buffer.
    Bytes(usize),
    /// The path changes here.
    Switch(Switch),
    /// Nothing now; [`Local::wake`] becomes readable when there is.
    Empty,
    /// The program closed this direction, or died, and all its bytes have been taken.
    End,
}

/// What became of bytes for a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// That many were taken (fewer than given: the ring is full); the program reads them by itself.
    Quiet(usize),
    /// That many were taken, and the program sleeps: ask the other host for one bell.
    Bell(usize),
}

/// The node's end of a program's rings. One thread owns it. Everything read from the shared memory is checked: a program may
/// write there what it likes and gets a broken connection of its own, no more.
pub trait Local: Send {
    /// The other end is there as well: from now on the program may switch to its ring.
    ///
    /// # Errors
    /// The program is gone or broke the ring's rules.
    fn join(&mut self) -> io::Result<()>;
    /// The peer's direction has ended: after the bytes written so far comes whatever TCP says, and no more bytes.
    ///
    /// # Errors
    /// As [`Local::read`].
    fn end(&mut self) -> io::Result<()>;
    /// Copies what the program has sent into `into`.
    ///
    /// # Errors
    /// The program broke the ring's rules; the connection must be aborted.
    fn read(&mut self, into: &mut [u8]) -> io::Result<Outgoing>;
    /// Room in the ring towards the program, bytes: the credit that the light protocol may grant.
    fn room(&self) -> usize;
    /// Gives bytes to the program.
    ///
    /// # Errors
    /// As [`Local::read`].
    fn write(&mut self, bytes: &[u8]) -> io::Result<Written>;
    /// Tells the program that its peer changes path, after the bytes written so far.
    ///
    /// # Errors
    /// As [`Local::read`]; also too many changes that the program has not seen (`WouldBlock`: try again when it has read).
    fn switch(&mut self, switch: Switch) -> io::Result<()>;
    /// Sends one bell on this host's end of the TCP connection.
    ///
    /// # Errors
    /// The TCP connection is broken.
    fn ring_bell(&mut self) -> io::Result<()>;
    /// Readable when the program sent something to an idle node, took bytes from a full ring, or is gone.
    fn wake(&self) -> BorrowedFd<'_>;
    /// Asks for `wake` when the program's ring is no longer empty (`read` said `Empty`) or no longer full; `false` when
    /// that is the case already.
    fn arm(&mut self) -> bool;
    /// The connection cannot go on over the light protocol and bytes may be missing: the program gets a connection error.
    fn abort(&mut self, reason: &'static str);
}

/// Where streams of programs to other hosts go: the node. Called by the broker.
pub trait Remote: Send + Sync {
    /// Whether the host of this address is reached by the light protocol now. Asked once for each connection, after its
    /// first bytes.
    fn reaches(&self, peer: SocketAddr) -> bool;
    /// A program here has its end of `key` on a ring; `peer` is its address on the other host. The node looks for the same
    /// key at the peer's node. When both are there, it calls [`Local`]'s methods; before, and if that never happens, nothing
    /// is switched and the connection stays on TCP.
    fn open(&self, key: ConnectionKey, peer: SocketAddr, local: Box<dyn Local>);
}
