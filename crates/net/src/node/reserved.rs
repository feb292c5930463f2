//! Published ports in the node's own namespace: each is bound before it is opened.
//!
//! ```text
//!   wanted ── bound? ──▶ held: no program of the node has the port, and none gets it ──▶ open
//!                │
//!                ├ in use ──────▶ closed on this node; tried again
//!                └ not its own ─▶ open: an address that is only routed here has no ports of programs
//! ```
//! A socket here never listens and nobody reads from it: the rules take what would come to it.

use crate::desired::Transport;
use crate::error::NetError;
use crate::thread::NamespaceThread;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use tracing::{info, warn};

/// A port of the node: its address, or `None` for all of them.
pub(super) type Open = (Option<Ipv4Addr>, Transport, u16);

/// What the kernel makes the smallest receive buffer of it: nothing is read from these sockets.
const BUFFER_BYTES: usize = 1;

/// The ports that are bound.
#[derive(Debug, Default)]
pub(super) struct Reserved {
    held: BTreeMap<Open, OwnedFd>,
    /// Those that others have.
    in_use: BTreeSet<Open>,
}

impl Reserved {
    /// Whether a port is to be tried again.
    pub(super) fn lacks_some(&self) -> bool {
        !self.in_use.is_empty()
    }

    /// Binds what is wanted and gives back the rest. Returns what may be open: not what a program has, or a socket of
    /// the kernel, or another network's node in this namespace. `own` is the UDP port at which the node itself is met.
    ///
    /// # Errors
    /// The namespace's thread has ended.
    pub(super) async fn keep(
        &mut self,
        thread: &NamespaceThread,
        wanted: BTreeSet<Open>,
        own: Option<u16>,
    ) -> Result<BTreeSet<Open>, NetError> {
        let needed: BTreeSet<Open> = wanted.iter().map(|open| covering(&wanted, *open)).collect();
        self.held.retain(|open, _| needed.contains(open));
        let missing = needed.iter().filter(|open| !self.held.contains_key(open));
        let (own, missing): (Vec<Open>, Vec<Open>) = missing
            .partition(|(_, protocol, port)| *protocol == Transport::Udp && own == Some(*port));
        let bound = bind(thread, missing).await?;
        let taken = own.into_iter().map(|open| (open, Err(io::ErrorKind::AddrInUse.into())));
        let before = std::mem::take(&mut self.in_use);
        let mut foreign = BTreeSet::new();
        for (open, bound) in bound.into_iter().chain(taken) {
            match bound {
                Ok(socket) => {
                    if before.contains(&open) {
                        tell_free(open);
                    }
                    self.held.insert(open, socket);
                }
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                    foreign.insert(open);
                }
                Err(error) => {
                    if !before.contains(&open) {
                        tell_in_use(open, &error);
                    }
                    self.in_use.insert(open);
                }
            }
        }
        let usable = |open: &Open| {
            let covering = covering(&wanted, *open);
            self.held.contains_key(&covering) || foreign.contains(&covering)
        };
        Ok(wanted.iter().filter(|open| usable(open)).copied().collect())
    }
}

/// What is bound for a port: where it is wanted on all addresses, one socket is for each of them.
fn covering(wanted: &BTreeSet<Open>, (address, protocol, port): Open) -> Open {
    let all = (None, protocol, port);
    if wanted.contains(&all) { all } else { (address, protocol, port) }
}

async fn bind(
    thread: &NamespaceThread,
    missing: Vec<Open>,
) -> Result<Vec<(Open, io::Result<OwnedFd>)>, NetError> {
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let job = thread.run(move |_| {
        Box::pin(async move { Ok(missing.into_iter().map(|open| (open, reserve(open))).collect()) })
    });
    job.await
}

/// Without `SO_REUSEADDR`: with it two who have it both succeed.
fn reserve((address, protocol, port): Open) -> io::Result<OwnedFd> {
    let kind = match protocol {
        Transport::Tcp => SocketType::STREAM,
        Transport::Udp => SocketType::DGRAM,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, kind, flags, None)?;
    sockopt::set_socket_recv_buffer_size(&socket, BUFFER_BYTES)?;
    let at = SocketAddrV4::new(address.unwrap_or(Ipv4Addr::UNSPECIFIED), port);
    rustix::net::bind(&socket, &at)?;
    Ok(socket)
}

fn tell_in_use((address, protocol, port): Open, error: &io::Error) {
    let address = address.unwrap_or(Ipv4Addr::UNSPECIFIED);
    warn!(
        code = "PORT_IN_USE", %address, ?protocol, port, %error,
        "a published port is the node's own: it stays closed here"
    );
}

fn tell_free((address, protocol, port): Open) {
    let address = address.unwrap_or(Ipv4Addr::UNSPECIFIED);
    info!(%address, ?protocol, port, "a published port is the node's own no more: it is opened");
}
