//! The broker: hands both ends of a TCP connection on this host the memory that they share.
//!
//! ```text
//!  library ──ask, with its socket──▶ thread ──▶ table: the same two addresses, network namespace and project?
//!          ◀──── memory file ───────   │              first: a new segment; second: the same one
//!                                      └──▶ peer on another host: `Remote`, if it reaches there (`far`); else never
//! ```
//!
//! It is not on the way of any byte between programs of one host: when it ends, connections go on, and new ones stay on
//! TCP. It reads a socket's addresses from the socket itself, so that nobody gets a segment of a connection of which
//! he does not hold an end. Each project asks on a socket of its own, whose file permissions say who belongs to it, and
//! projects never meet.
//!
//! **The firewall has the last word.** A connection exists only if the firewall let it through, and it has carried bytes. When the rules
//! of its namespace change, it goes back to TCP for good, where the kernel judges every packet by the new ones; a connection that asks
//! after such a change must have heard of its peer since. What else a cloud forbids is said by a [`Guard`], asked for each
//! connection and again by [`Broker::enforce`].
//!
//! It keeps no copy of a program's socket: TCP ends when the programs' last descriptor does.

mod asker;
mod error;
mod far;
mod firewall;
mod holders;
mod list;
mod listen;
mod refused;
mod serve;
mod table;

pub use error::BrokerError;
pub use list::{Connection, Path, Totals, connections};
pub use table::{End, Place};

use crate::remote::Remote;
use rustix::event::EventfdFlags;
use serve::Server;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

/// Who may ask, and where.
#[derive(Debug, Clone)]
pub struct Project {
    /// Its name, for display.
    pub name: String,
    /// The socket's path. It is made with access for its owner and group.
    pub socket: PathBuf,
}

/// Says which connections may leave TCP, beside what the broker sees by itself. Called on the broker's thread: it looks
/// something up, no more.
pub trait Guard: Send + Sync {
    /// Whether the two ends may share memory, or take the light protocol.
    fn allows(&self, place: &Place) -> bool;
}

/// What a broker is told.
#[derive(Clone)]
pub struct BrokerConfig {
    /// The projects, to begin with.
    pub projects: Vec<Project>,
    /// Ring capacity of a direction, bytes: a power of two.
    pub capacity: usize,
    /// Connections of each project that are known at a time; one more stays on TCP.
    pub connections_max: usize,
    /// The way to other hosts.
    pub remote: Option<Arc<dyn Remote>>,
    /// What else is forbidden.
    pub guard: Option<Arc<dyn Guard>>,
    /// Leaves its sockets to another broker that wants them; connections that it knows stay. For one that is started for want
    /// of another.
    pub yields: bool,
    /// Tables of nftables whose names begin so do not concern programs of the host: their changes are left alone.
    pub tables_ignored: Option<String>,
}

/// 4,096 connections of a project: two gigabytes of rings if all of them are full at once.
pub const CONNECTIONS_MAX_DEFAULT: usize = 4096;

impl BrokerConfig {
    /// One project on one socket.
    pub fn new(socket: PathBuf) -> Self {
        Self {
            projects: vec![Project { name: "default".to_owned(), socket }],
            capacity: skein_link_core::ring::CAPACITY_DEFAULT,
            connections_max: CONNECTIONS_MAX_DEFAULT,
            remote: None,
            guard: None,
            yields: false,
            tables_ignored: None,
        }
    }
}

/// What the thread is asked from within the process. 16: a caller waits for its answer before it asks again.
const ORDERS: usize = 16;

pub(crate) enum Order {
    List(mpsc::SyncSender<Vec<Connection>>),
    Refused(mpsc::SyncSender<Vec<Connection>>),
    Totals(mpsc::SyncSender<Totals>),
    Revoke(Box<dyn Fn(&Place) -> bool + Send>, mpsc::SyncSender<usize>),
    Enforce(mpsc::SyncSender<usize>),
    Projects(Vec<Project>, mpsc::SyncSender<Result<(), BrokerError>>),
}

/// A running broker. It stops when the value is dropped; its sockets' files go with it.
pub struct Broker {
    stop: Arc<AtomicBool>,
    /// Wakes the thread.
    wake: Arc<OwnedFd>,
    orders: mpsc::SyncSender<Order>,
    thread: Option<JoinHandle<()>>,
}

impl Broker {
    /// Starts one, on a thread of its own, in the network namespace of the caller's thread.
    ///
    /// # Errors
    /// [`BrokerError`]; a socket left behind by a broker that is no more is replaced.
    pub fn start(config: BrokerConfig) -> Result<Self, BrokerError> {
        let stop = Arc::new(AtomicBool::new(false));
        let (orders, inbox) = mpsc::sync_channel(ORDERS);
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|source| BrokerError::Thread { source: source.into() })?;
        let wake = Arc::new(wake);
        let server = Server::bind(config, Arc::clone(&stop), inbox, Arc::clone(&wake))?;
        let thread = std::thread::Builder::new().name("link-broker".to_owned());
        let thread = thread.spawn(move || server.run());
        let thread = thread.map_err(|source| BrokerError::Thread { source })?;
        Ok(Self { stop, wake, orders, thread: Some(thread) })
    }

    /// The connections that it has given a segment for.
    pub fn connections(&self) -> Vec<Connection> {
        self.order(Order::List).unwrap_or_default()
    }

    /// Connections that asked and were refused: they stay on TCP while programs hold them. At most 1,024 of a project.
    pub fn refused(&self) -> Vec<Connection> {
        self.order(Order::Refused).unwrap_or_default()
    }

    /// What it has counted since it began.
    pub fn totals(&self) -> Totals {
        self.order(Order::Totals).unwrap_or_default()
    }

    /// Takes the ring from all connections that `forbidden` says: both ends go back to TCP with their next byte, and there
    /// the firewall has them. How many there were.
    pub fn revoke(&self, forbidden: impl Fn(&Place) -> bool + Send + 'static) -> usize {
        self.order(|answer| Order::Revoke(Box::new(forbidden), answer)).unwrap_or_default()
    }

    /// Asks the guard again about all connections, and takes the ring from those that it does not allow any more. How many
    /// there were.
    pub fn enforce(&self) -> usize {
        self.order(Order::Enforce).unwrap_or_default()
    }

    /// Serves these projects from now on. Connections of one that is none any more go back to TCP.
    ///
    /// # Errors
    /// A socket that could not be made; the other projects are served then.
    pub fn set_projects(&self, projects: Vec<Project>) -> Result<(), BrokerError> {
        // A broker whose thread has ended serves nobody, and has said so.
        self.order(|answer| Order::Projects(projects, answer)).unwrap_or(Ok(()))
    }

    fn order<T>(&self, order: impl FnOnce(mpsc::SyncSender<T>) -> Order) -> Option<T> {
        let (answer, inbox) = mpsc::sync_channel(1);
        self.orders.send(order(answer)).ok()?;
        // Full means that it is awake.
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        inbox.recv().ok()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
