//! The contract between the broker and the light protocol.
//!
//! ```text
//!  program A ══ ring ══▶ Local (A) ── node A ~~light~~ node B ── Local (B) ══ ring ══▶ program B
//!      └───────────────────────── their TCP connection ─────────────────────────────────┘
//! ```
//!
//! The broker gives a program on this host the same rings as for a peer on the same host; their other end is a
//! [`Local`], which the node pumps. What the two [`Local`]s of a connection have to tell each other are *notes*; the node
//! carries them with the bytes, in order, and does not look at them. See [`skein_link_core::ring::far`] for the rules that they
//! follow.

use skein_link_core::ring::{Phase, Record, Refusal};
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

/// A connection as two nodes know it: programs of different projects never meet, whatever their addresses.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Meeting {
    /// The project's name. At most [`PROJECT_BYTES_MAX`] bytes.
    pub project: String,
    /// The connection.
    pub key: ConnectionKey,
}

/// Names of projects are at most as long: they travel in the opening of a channel.
pub const PROJECT_BYTES_MAX: usize = 200;

/// What one end of a connection tells the other, in order with the bytes that it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// Its program counts its TCP bytes from now on.
    Counts,
    /// Its program changes path here.
    Switch {
        /// The phase that begins.
        phase: Phase,
        /// Where it begins.
        record: Record,
    },
    /// The beginning of this phase of the opposite direction lies in the segment.
    Placed(Phase),
    /// Its program has read the opposite direction up to here.
    Took {
        /// Ring position behind the last byte read.
        tail: u64,
        /// The phase that it is in.
        seen: Phase,
    },
    /// Its program waits: a bell is wanted on the opposite direction's TCP, in this phase.
    Bell(Phase),
    /// The answer: the bell was sent, and this is the TCP position behind it; `None`: it was not.
    Rung {
        /// The phase that was asked for.
        phase: Phase,
        /// The position.
        end: Option<u64>,
    },
    /// Its program wants no more on the ring, or all that it has not read again on TCP.
    Refused(Refusal),
    /// The refusal was heard: nothing more comes on the ring.
    Calm,
    /// Its program has seen the end of TCP: does more come on the ring?
    Doubts,
    /// The direction has ended.
    End,
    /// Its program has closed the connection, or is no more. Before [`Note::End`], unless it had shut the direction down.
    Gone,
    /// Its program's end resets the connection (`SO_LINGER` of zero seconds).
    Resets,
}

/// What comes out of a program, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outgoing {
    /// That many bytes were copied into the caller's buffer.
    Bytes(usize),
    /// A word to the other end.
    Note(Note),
    /// Nothing now; [`Local::wake`] becomes readable when there is.
    Empty,
}

/// The node's end of a program's rings. One thread owns it. Everything read from the shared memory is checked: a program may
/// write there what it likes and gets a broken connection of its own, no more.
pub trait Local: Send {
    /// The other end is there as well: from now on the programs may agree to switch.
    ///
    /// # Errors
    /// The program is gone or broke the ring's rules.
    fn join(&mut self) -> io::Result<()>;
    /// What the program has sent, bytes copied into `into`, and what there is to tell.
    ///
    /// # Errors
    /// The program broke the ring's rules; the connection must be aborted.
    fn read(&mut self, into: &mut [u8]) -> io::Result<Outgoing>;
    /// Gives bytes to the program; how many it had room for.
    ///
    /// # Errors
    /// As [`Local::read`].
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Takes a word of the other end, after the bytes written so far.
    ///
    /// # Errors
    /// As [`Local::read`]; `WouldBlock`: not now, try again soon.
    fn tell(&mut self, note: Note) -> io::Result<()>;
    /// Whether both directions have ended: nothing more will be said, and nothing needs to be heard.
    fn is_over(&self) -> bool;
    /// Readable when the program did something while the node slept, or is gone. Call [`Local::woken`] then.
    fn wake(&self) -> BorrowedFd<'_>;
    /// [`Local::wake`] was readable.
    fn woken(&mut self);
    /// Asks for `wake` when there is something to read; `false` when there is already.
    fn arm(&mut self) -> bool;
    /// Whether [`Local::read`] has something to say that it cannot say now, and nobody will tell when it can: it is asked again
    /// soon.
    fn stalls(&self) -> bool {
        false
    }
    /// Tells the program that the node lives: called some times a second.
    fn beat(&mut self) {}
    /// The connection cannot go on over the light protocol and bytes may be missing: the program gets a connection error.
    fn abort(&mut self, reason: &'static str);
}

/// Why a host is not reached by the light protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreached {
    /// No node that is known has its address.
    NoNode,
    /// Its node does not answer.
    Away,
    /// Nodes seal what they send each other, and the light protocol does not.
    Encrypted,
}

/// Where streams of programs to other hosts go: the node. Called by the broker.
pub trait Remote: Send + Sync {
    /// Whether the host of this address is reached by the light protocol now. Asked once for each connection, after its
    /// first bytes.
    fn reaches(&self, peer: SocketAddr) -> bool;
    /// Why not, where it is not.
    fn why_not(&self, peer: SocketAddr) -> Unreached {
        let _ = peer;
        Unreached::NoNode
    }
    /// The network namespace whose connections it carries, `SO_NETNS_COOKIE` of its sockets. `None`: those of any.
    fn namespace(&self) -> Option<u64> {
        None
    }
    /// A program here has its end of the connection on a ring; `peer` is its address on the other host. The node looks for
    /// the same connection at the peer's node. When both are there, it calls [`Local`]'s methods; before, and if that
    /// never happens, nothing is switched and the connection stays on TCP.
    fn open(&self, meeting: Meeting, peer: SocketAddr, local: Box<dyn Local>);
}
