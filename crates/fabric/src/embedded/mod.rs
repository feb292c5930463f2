//! The store inside the process: SQLite, one owner thread, group commit.
//!
//! ```text
//! handles -> bounded inbox -> owner thread -> one transaction per batch -> watchers
//!                                              -> log thread -> fdatasync -> answers
//!         -> reader threads (snapshots of what is committed; one key is read where it is asked for)
//! ```
//! A directory holds `state.db`, its write-ahead log and `state.lock`. A write is seen by all once it is committed, and
//! answered after `fdatasync`, unless it is content with less ([`Durability::Soon`](crate::Durability::Soon)); a read
//! sees everything answered before it began. The history for watches is in memory: after a restart it begins at
//! the stored revision, and older watches are answered [`StateError::Compacted`]. The leases of the process before
//! are ended at opening, in one revision that watches from there see, because their holders lived in it.
//!
//! This module starts no tasks and needs no runtime for its threads.

mod database;
mod history;
mod leases;
mod log;
mod owner;

use crate::lock::{LockError, lock};
use crate::state::{
    KeySpan, LeaseId, LeaseStatus, Query, RangeReply, Revision, State, StateError, Txn, TxnReply,
    Watch, WatchFrom,
};
use async_trait::async_trait;
use database::Database;
use history::History;
use log::Log;
use owner::{Answer, Envelope, Owner, Request, refusal};
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Requests that wait for the owner: four full batches, so that it never idles, and a writer waits some 20 ms at
/// most before it is slowed down.
const INBOX: usize = 1024;

/// Reads that wait for the readers.
const READS: usize = 1024;

/// Reader threads: one may be busy with a long list while the other answers.
const READERS: usize = 2;

/// Longest lease.
const TTL_MAX: Duration = Duration::from_secs(24 * 3600);

/// Bounds of an embedded store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbeddedOptions {
    /// Largest database file, bytes; beyond it writes are refused with [`StateError::DiskFull`].
    pub size_bytes_max: u64,
    /// Revisions kept for watches.
    pub history_revisions_max: usize,
    /// Bytes of changes kept for watches.
    pub history_bytes_max: usize,
}

impl Default for EmbeddedOptions {
    /// 8 GiB (etcd's own recommended bound), 10,000 revisions (some seconds of the fastest writing, so that a
    /// watcher that comes back need not list again), 32 MiB.
    fn default() -> Self {
        Self {
            size_bytes_max: 8 * 1024 * 1024 * 1024,
            history_revisions_max: 10_000,
            history_bytes_max: 32 * 1024 * 1024,
        }
    }
}

/// An open embedded store. Clones share it; it closes when the last is gone, or with [`EmbeddedState::close`].
#[derive(Clone)]
pub struct EmbeddedState {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    inbox: Sender<Envelope>,
    log: Log,
    inbox_places: Arc<Semaphore>,
    readers: Vec<Sender<Read>>,
    read_places: Arc<Semaphore>,
    next_reader: AtomicUsize,
    /// For reads of one key, made where they are asked for: they take less time than waking a reader thread. None
    /// once the store is closed.
    quick: Mutex<Option<Database>>,
}

/// What a reader thread is asked for.
struct Read {
    what: What,
    /// Its place among the reads that wait; the closing needs none.
    _place: Option<OwnedSemaphorePermit>,
}

enum What {
    Range { query: Query, answer: Answer<RangeReply> },
    Txn { txn: Txn, answer: Answer<TxnReply> },
    Close { answer: Answer<()> },
}

impl EmbeddedState {
    /// Opens the store in `directory`, which is created if it is missing, and checks it. Blocks on files: some
    /// milliseconds, and about a second per GiB stored.
    ///
    /// # Errors
    /// [`StateError::Locked`] while another process (or another opening in this one) has it,
    /// [`StateError::Corrupt`], [`StateError::Newer`], [`StateError::DiskFull`], and [`StateError::Open`] for the
    /// file system's refusals.
    pub fn open(directory: &Path, options: EmbeddedOptions) -> Result<Self, StateError> {
        let lock = lock_directory(directory)?;
        let path = directory.join("state.db");
        let database = Database::open(&path, options.size_bytes_max)?;
        let history = |forgotten| {
            History::new(forgotten, options.history_revisions_max, options.history_bytes_max)
        };
        let (owner, log, syncing) = Owner::new(database, lock, history)?;
        start("skein-log".to_owned(), &path, move || syncing.run())?;
        let mut readers = Vec::with_capacity(READERS);
        for number in 0..READERS {
            let database = Database::open_reader(&path)?;
            let (sender, reads) = channel();
            start(format!("skein-read-{number}"), &path, move || serve_reads(database, &reads))?;
            readers.push(sender);
        }
        let quick = Mutex::new(Some(Database::open_reader(&path)?));
        let (inbox, requests) = channel();
        start("skein-state".to_owned(), &path, move || owner.run(&requests))?;
        let shared = Shared {
            path,
            inbox,
            log,
            inbox_places: Arc::new(Semaphore::new(INBOX)),
            readers,
            read_places: Arc::new(Semaphore::new(READS)),
            next_reader: AtomicUsize::new(0),
            quick,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Closes the store: what was sent is finished, the log moved into the database, the lock given back. Every
    /// later call of any clone is answered [`StateError::Closed`]. Closing twice is the same as once.
    pub async fn close(&self) {
        let shared = &self.shared;
        let Ok(place) = shared.inbox_places.clone().acquire_owned().await else { return };
        shared.inbox_places.close();
        shared.read_places.close();
        // The readers first: the last connection to go should be the one that may write.
        drop(shared.quick.lock().unwrap_or_else(PoisonError::into_inner).take());
        for reader in &shared.readers {
            let (answer, closed) = oneshot::channel();
            if reader.send(Read { what: What::Close { answer }, _place: None }).is_ok() {
                let _ = closed.await;
            }
        }
        let (answer, closed) = oneshot::channel();
        if shared.inbox.send(Envelope { request: Request::Close { answer }, place }).is_ok() {
            let _ = closed.await;
        }
    }

    /// Sends to the owner and waits for its answer.
    async fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Result<T, StateError> {
        let places = self.shared.inbox_places.clone();
        let place = places.acquire_owned().await.map_err(|_| StateError::Closed)?;
        let (answer, reply) = oneshot::channel();
        let envelope = Envelope { request: request(answer), place };
        self.shared.inbox.send(envelope).map_err(|_| StateError::Closed)?;
        let gone =
            |_| StateError::Unknown { why: "the store stopped before it answered".to_owned() };
        reply.await.map_err(gone)?
    }

    /// Reads one key at once, unless somebody else is doing so; the readers have room for all.
    fn read_here(&self, query: &Query) -> Option<Result<RangeReply, StateError>> {
        query.span.as_one()?;
        let quick = self.shared.quick.try_lock().ok()?;
        let database = quick.as_ref()?;
        let found = database.look(query);
        Some(found.map_err(|failure| refusal(failure, database)))
    }

    /// Sends to a reader and waits for its answer.
    async fn read<T>(&self, what: impl FnOnce(Answer<T>) -> What) -> Result<T, StateError> {
        let places = self.shared.read_places.clone();
        let place = places.acquire_owned().await.map_err(|_| StateError::Closed)?;
        let number = self.shared.next_reader.fetch_add(1, Ordering::Relaxed) % READERS;
        let (answer, reply) = oneshot::channel();
        let read = Read { what: what(answer), _place: Some(place) };
        self.shared.readers[number].send(read).map_err(|_| StateError::Closed)?;
        reply.await.map_err(|_| StateError::Closed)?
    }
}

impl fmt::Debug for EmbeddedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedState").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

#[async_trait]
impl State for EmbeddedState {
    async fn range(&self, query: Query) -> Result<RangeReply, StateError> {
        if let Some(found) = self.read_here(&query) {
            return found;
        }
        self.read(|answer| What::Range { query, answer }).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, StateError> {
        txn.check()?;
        if txn.is_read_only() {
            return self.read(|answer| What::Txn { txn, answer }).await;
        }
        self.ask(|answer| Request::Txn { txn, answer }).await
    }

    async fn sync(&self, revision: Revision) -> Result<(), StateError> {
        self.shared.log.synced(revision).await
    }

    async fn watch(&self, span: KeySpan, from: WatchFrom) -> Result<Watch, StateError> {
        self.ask(|answer| Request::Watch { span, from, answer }).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StateError> {
        self.ask(|answer| Request::Compact { revision, answer }).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StateError> {
        if ttl.is_zero() || ttl > TTL_MAX {
            let text = format!("a time to live of {ttl:?}; at most {TTL_MAX:?} and not 0");
            return Err(StateError::invalid(text));
        }
        self.ask(|answer| Request::Grant { ttl, answer }).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StateError> {
        self.ask(|answer| Request::KeepAlive { lease, answer }).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StateError> {
        self.ask(|answer| Request::Revoke { lease, answer }).await
    }

    async fn time_to_live(&self, lease: LeaseId) -> Result<LeaseStatus, StateError> {
        self.ask(|answer| Request::TimeToLive { lease, answer }).await
    }
}

/// Locks the store's directory.
fn lock_directory(directory: &Path) -> Result<File, StateError> {
    lock(directory, "state.lock").map_err(|error| match error {
        LockError::Held { path } => StateError::Locked { path },
        LockError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            StateError::DiskFull
        }
        LockError::Io { path, source } => StateError::Open { path, why: source.to_string() },
    })
}

fn start(
    name: String,
    path: &Path,
    work: impl FnOnce() + Send + 'static,
) -> Result<(), StateError> {
    let failed = |error: std::io::Error| StateError::Open {
        path: path.to_path_buf(),
        why: error.to_string(),
    };
    thread::Builder::new().name(name).spawn(work).map(drop).map_err(failed)
}

/// A reader thread: each request in a snapshot of its own.
fn serve_reads(database: Database, reads: &Receiver<Read>) {
    while let Ok(Read { what, _place }) = reads.recv() {
        match what {
            What::Range { query, answer } => {
                let found = database.look(&query);
                let _ = answer.send(found.map_err(|failure| refusal(failure, &database)));
            }
            What::Txn { txn, answer } => {
                let reply = database.snapshot(|database, revision| {
                    database.apply(&txn, revision, |_| Ok(()), &mut Vec::new())
                });
                let _ = answer.send(reply.map_err(|failure| refusal(failure, &database)));
            }
            What::Close { answer } => {
                drop(database);
                let _ = answer.send(Ok(()));
                return;
            }
        }
    }
}
