//! Brings the write-ahead log to the disk, beside the owner.
//!
//! The owner commits without waiting for the disk: what is committed is seen by all, and outlives this process. A
//! thread of its own runs `fdatasync` on the log and then answers those who asked for more: that what they wrote
//! outlives a loss of power. While one `fdatasync` runs, those who ask gather and share the next; the owner goes on.
//!
//! SQLite with `synchronous=NORMAL` brings the log to the disk before it moves it into the database, and the database
//! before it overwrites the log (<https://www.sqlite.org/pragma.html#pragma_synchronous>): whatever was committed
//! before an `fdatasync` of the log is durable after it, wherever it is by then.

use crate::state::{Revision, StateError};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use tokio::sync::oneshot;

/// Who waits for the disk, and for what.
pub(super) struct Waiter {
    revision: Revision,
    answer: Box<dyn FnOnce(Result<(), StateError>) + Send>,
}

/// How far the disk is.
#[derive(Debug, Default)]
struct Progress {
    synced: AtomicU64,
    /// Why nothing can be made durable any more in this process, once that is so: after a failed `fdatasync` the kernel
    /// takes for written what is not.
    broken: OnceLock<String>,
}

/// A handle on the thread, which ends with the last.
#[derive(Clone)]
pub(super) struct Log {
    waiters: Sender<Waiter>,
    progress: Arc<Progress>,
}

/// The thread's own end.
pub(super) struct Syncing {
    file: File,
    waiters: Receiver<Waiter>,
    progress: Arc<Progress>,
}

impl Log {
    /// For the database at `path`, whose log has been begun. All that is in it is on the disk when this returns.
    pub(super) fn open(path: &Path, revision: Revision) -> io::Result<(Self, Syncing)> {
        let mut name = path.as_os_str().to_owned();
        name.push("-wal");
        // Locks of SQLite are on its other two files: closing this one gives none of them back.
        let file = File::open(name)?;
        file.sync_data()?;
        if let Some(directory) = path.parent() {
            File::open(directory)?.sync_all()?;
        }
        let (sender, waiters) = channel();
        let progress = Arc::new(Progress::default());
        progress.synced.store(revision.get(), Ordering::Release);
        let syncing = Syncing { file, waiters, progress: progress.clone() };
        Ok((Self { waiters: sender, progress }, syncing))
    }

    /// Why nothing can be made durable any more.
    pub(super) fn broken(&self) -> Option<&str> {
        self.progress.broken.get().map(String::as_str)
    }

    /// Has `answer` called once `revision`, which has been committed, is durable, or is known not to be.
    pub(super) fn when_synced(
        &self,
        revision: Revision,
        answer: impl FnOnce(Result<(), StateError>) + Send + 'static,
    ) {
        if self.progress.synced.load(Ordering::Acquire) >= revision.get() {
            return answer(Ok(()));
        }
        if let Err(refused) = self.waiters.send(Waiter { revision, answer: Box::new(answer) }) {
            (refused.0.answer)(Err(StateError::Closed));
        }
    }

    /// Waits until `revision`, which has been committed, is durable.
    pub(super) async fn synced(&self, revision: Revision) -> Result<(), StateError> {
        if self.progress.synced.load(Ordering::Acquire) >= revision.get() {
            return Ok(());
        }
        let (answer, synced) = oneshot::channel();
        self.when_synced(revision, |outcome| drop(answer.send(outcome)));
        synced.await.unwrap_or(Err(StateError::Closed))
    }
}

impl Syncing {
    /// Serves until all handles are gone.
    pub(super) fn run(self) {
        while let Ok(first) = self.waiters.recv() {
            let mut waiters = vec![first];
            waiters.extend(self.waiters.try_iter());
            let outcome = self.sync();
            if outcome.is_ok() {
                let last = waiters.iter().map(|waiter| waiter.revision.get()).max();
                self.progress.synced.fetch_max(last.unwrap_or_default(), Ordering::AcqRel);
            }
            for waiter in waiters {
                (waiter.answer)(outcome.clone());
            }
        }
    }

    fn sync(&self) -> Result<(), StateError> {
        let unknown = |why: &str| StateError::Unknown { why: why.to_owned() };
        if let Some(why) = self.progress.broken.get() {
            return Err(unknown(why));
        }
        self.file.sync_data().map_err(|error| {
            let why = format!("the log could not be brought to the disk: {error}");
            tracing::error!(%why, "the state stays closed to writing");
            unknown(self.progress.broken.get_or_init(|| why))
        })
    }
}
