//! Sockets of this process that live inside a network.

use crate::error::NetError;
use crate::names::NetworkName;
use crate::namespace;
use crate::thread::{enter, spawn};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::{mpsc, oneshot};

/// How long [`Connector::connect`] waits unless told otherwise: a machine on the same node answers
/// within a millisecond, a first lost segment is repeated after one second and the next after
/// three.
pub const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// 64: making a socket takes microseconds; who asks while that many wait, waits too.
const REQUESTS_WAITING_MAX: usize = 64;

/// Connections accepted by the kernel and not yet by us.
const LISTEN_BACKLOG: u32 = 1024;

type Reply = oneshot::Sender<io::Result<OwnedFd>>;

/// Opens sockets inside a network; a cheap handle. Sockets and connector outlive the
/// [`crate::NodeNetwork`] they came from, but nothing reaches a machine once the network is closed.
#[derive(Debug, Clone)]
pub struct Connector {
    requests: mpsc::Sender<(SocketType, Reply)>,
    timeout: Duration,
}

impl Connector {
    /// Starts the thread that makes sockets in `namespace`. It does nothing else, so that a socket
    /// never waits for a change of interfaces.
    pub(crate) fn start(namespace: OwnedFd) -> Result<Self, NetError> {
        let (requests, mut inbox) = mpsc::channel::<(SocketType, Reply)>(REQUESTS_WAITING_MAX);
        spawn("skein-sockets", move || {
            let entered = enter(&namespace);
            while let Some((kind, reply)) = inbox.blocking_recv() {
                let made = match &entered {
                    Ok(()) => open(kind),
                    // A socket made outside would reach the host's network: never.
                    Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
                };
                // A caller that left needs no socket; dropping it closes it.
                let _ = reply.send(made);
            }
        })?;
        Ok(Self { requests, timeout: CONNECT_TIMEOUT_DEFAULT })
    }

    /// Opens sockets inside the network of this name, whoever owns it; `None` if there is none. For
    /// whoever looks at machines from beside their node: monitors, benches.
    ///
    /// # Errors
    /// What the system says.
    pub fn beside(name: &NetworkName) -> Result<Option<Self>, NetError> {
        namespace::open_existing(name)?.map(Self::start).transpose()
    }

    /// The same connector with another limit on [`Connector::connect`].
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Opens a TCP connection to a machine; small writes are sent at once (`TCP_NODELAY`).
    ///
    /// # Errors
    /// `TimedOut` after the connector's limit, else what the system says: `ConnectionRefused`,
    /// `HostUnreachable` for an address where no machine is, `NetworkUnreachable` outside the
    /// network.
    ///
    /// # Cancel safety
    /// Dropping the future closes the socket.
    pub async fn connect(&self, to: SocketAddrV4) -> io::Result<TcpStream> {
        let attempt = async {
            let socket = tcp(self.socket(SocketType::STREAM).await?);
            socket.set_nodelay(true)?;
            socket.connect(to.into()).await
        };
        match tokio::time::timeout(self.timeout, attempt).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer from {to} within {:?}", self.timeout),
            )),
        }
    }

    /// Listens for TCP connections from machines, for example at the gateway's address. Port 0 lets
    /// the system choose.
    ///
    /// # Errors
    /// What the system says: `AddrInUse`, `AddrNotAvailable` for an address that is not the
    /// gateway's.
    pub async fn listen_tcp(&self, at: SocketAddrV4) -> io::Result<TcpListener> {
        let socket = tcp(self.socket(SocketType::STREAM).await?);
        socket.set_reuseaddr(true)?;
        socket.bind(at.into())?;
        socket.listen(LISTEN_BACKLOG)
    }

    /// Opens a UDP socket inside the network.
    ///
    /// # Errors
    /// As [`Connector::listen_tcp`].
    pub async fn bind_udp(&self, at: SocketAddrV4) -> io::Result<UdpSocket> {
        let socket = self.socket(SocketType::DGRAM).await?;
        rustix::net::bind(&socket, &at)?;
        UdpSocket::from_std(socket.into())
    }

    async fn socket(&self, kind: SocketType) -> io::Result<OwnedFd> {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the network's thread has ended");
        let (reply, made) = oneshot::channel();
        self.requests.send((kind, reply)).await.map_err(|_| gone())?;
        made.await.map_err(|_| gone())?
    }
}

fn open(kind: SocketType) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(socket_with(AddressFamily::INET, kind, flags, None)?)
}

/// Registers a socket with the runtime of the caller, not of the thread that made it.
fn tcp(socket: OwnedFd) -> TcpSocket {
    TcpSocket::from_std_stream(socket.into())
}
