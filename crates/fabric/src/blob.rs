//! Large bodies: files named by the SHA-256 of their content.
//!
//! ```text
//! writer ─ write ─▶ tmp/N ─ finish: fsync, rename, fsync of the directory ─▶ ab/abcd...  (durable, pinned)
//!                   then the owner's record and `blob/ID/OWNER` in one transaction, then unpin
//! sweep: files that are neither pinned nor referenced go
//! ```
//! **Invariant:** a blob is durable before anything names it, and named before it is unpinned. So a sweep, which takes
//! what is neither, cannot race a writer: a blob that was pinned at any moment of the sweep is left for the next.
//!
//! A reference is a key of the state, `blob/ID/OWNER`, written and deleted in the transaction that writes and
//! deletes what refers to the blob ([`blob_reference`]). Equal contents are one file. This module never reads
//! the state; the sweep is given what is referenced.

use crate::lock::{LockError, lock};
use crate::state::{Key, KeySpan, StateError};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use skein_model::BlobId;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};

/// Bytes read at a time from a source: large enough that hashing, not calling, is what takes time.
const CHUNK_BYTES: usize = 128 * 1024;

/// The key that says that `owner` needs the blob. `owner` is a path of names; at most 400 bytes.
///
/// # Errors
/// [`StateError::Invalid`] when the owner is longer.
pub fn blob_reference(blob: BlobId, owner: &str) -> Result<Key, StateError> {
    Key::new(format!("{REFERENCES}{blob}/{owner}"))
}

const REFERENCES: &str = "blob/";

/// All references.
pub(crate) fn blob_references() -> Result<KeySpan, StateError> {
    KeySpan::prefix(REFERENCES)
}

/// The blob that a reference is about.
pub(crate) fn referenced_blob(reference: &Key) -> Option<BlobId> {
    reference.as_str().strip_prefix(REFERENCES)?.split('/').next()?.parse().ok()
}

/// Why a blob could not be kept or found.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// No space.
    #[error("no space is left for blobs")]
    DiskFull,
    /// The source is longer than it may be.
    #[error("longer than {bytes_max} bytes")]
    TooLarge {
        /// How long it may be.
        bytes_max: u64,
    },
    /// There is no such blob.
    #[error("blob {id} does not exist")]
    NotFound {
        /// Which.
        id: BlobId,
    },
    /// Another process has the store open.
    #[error("{path} is in use by another process")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The source could not be read.
    #[error("reading the body")]
    Source {
        /// Why.
        source: io::Error,
    },
    /// A file operation of the store failed.
    #[error("{what} {path}")]
    File {
        /// Which operation.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The references could not be read; nothing was removed.
    #[error("reading the references to blobs")]
    References {
        /// Why.
        source: StateError,
    },
}

impl BlobError {
    /// The stable code of this failure.
    pub fn code(&self) -> &'static str {
        match self {
            Self::DiskFull => "DISK_FULL",
            Self::TooLarge { .. } => "PAYLOAD_TOO_LARGE",
            Self::NotFound { .. } => "BLOB_NOT_FOUND",
            Self::Locked { .. } => "BLOBS_LOCKED",
            Self::Source { .. } => "BODY_UNREADABLE",
            Self::File { .. } => "BLOB_IO",
            Self::References { source } => source.code(),
        }
    }

    fn file(what: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull,
            _ => Self::File { what, path: path.to_path_buf(), source },
        }
    }
}

/// The blobs below one directory. Clones share it.
#[derive(Debug, Clone)]
pub struct BlobStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    next: AtomicU64,
    pins: Mutex<Pins>,
    /// One sweep at a time.
    sweeping: tokio::sync::Mutex<()>,
    _lock: File,
}

#[derive(Debug, Default)]
struct Pins {
    held: HashMap<BlobId, usize>,
    /// While a sweep runs: what was pinned at any moment of it.
    touched: Option<HashSet<BlobId>>,
}

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlobSweep {
    /// Blobs that stay.
    pub kept: u64,
    /// Blobs removed.
    pub removed: u64,
    /// Bytes that this freed.
    pub freed_bytes: u64,
}

impl BlobStore {
    /// Opens the store below `root`, creates it if it is missing, and removes what unfinished writers left. Blocks on
    /// files for some milliseconds.
    ///
    /// # Errors
    /// [`BlobError::Locked`] while another process has it, and the file system's refusals.
    pub fn open(root: &Path) -> Result<Self, BlobError> {
        let failed = |what, path: &Path| {
            let path = path.to_path_buf();
            move |error| BlobError::file(what, &path, error)
        };
        let lock = lock(root, "blobs.lock").map_err(|error| match error {
            LockError::Held { path } => BlobError::Locked { path },
            LockError::Io { path, source } => BlobError::file("locking", &path, source),
        })?;
        let unfinished = root.join("tmp");
        match std::fs::remove_dir_all(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(BlobError::file("clearing", &unfinished, error));
            }
            Ok(()) | Err(_) => {}
        }
        std::fs::create_dir(&unfinished).map_err(failed("creating", &unfinished))?;
        File::open(root).and_then(|file| file.sync_all()).map_err(failed("syncing", root))?;
        let shared = Shared {
            root: root.to_path_buf(),
            next: AtomicU64::new(0),
            pins: Mutex::default(),
            sweeping: tokio::sync::Mutex::default(),
            _lock: lock,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Starts a blob of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// [`BlobError::DiskFull`] and the file system's other refusals.
    pub async fn writer(&self, bytes_max: u64) -> Result<BlobWriter, BlobError> {
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let path = self.shared.root.join("tmp").join(number.to_string());
        let unfinished = Unfinished(path);
        let file = tokio::fs::File::create_new(&unfinished.0)
            .await
            .map_err(|error| BlobError::file("creating", &unfinished.0, error))?;
        let store = self.clone();
        Ok(BlobWriter { store, file, unfinished, digest: Sha256::new(), bytes: 0, bytes_max })
    }

    /// Keeps all that `source` gives, at most `bytes_max` bytes.
    ///
    /// # Errors
    /// [`BlobError::TooLarge`] for a longer source, [`BlobError::Source`] for one that fails,
    /// [`BlobError::DiskFull`]. Nothing is left behind then.
    pub async fn keep(
        &self,
        source: impl AsyncRead + Send,
        bytes_max: u64,
    ) -> Result<PinnedBlob, BlobError> {
        let mut source = pin!(source);
        let mut writer = self.writer(bytes_max).await?;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let count =
                source.read(&mut chunk).await.map_err(|source| BlobError::Source { source })?;
            if count == 0 {
                return writer.finish().await;
            }
            writer.write(&chunk[..count]).await?;
        }
    }

    /// Opens a blob for reading. It can be read to its end even if it is removed meanwhile.
    ///
    /// # Errors
    /// [`BlobError::NotFound`], and the file system's refusals.
    pub async fn open_blob(&self, id: BlobId) -> Result<BlobReader, BlobError> {
        let path = self.path(id);
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => BlobError::NotFound { id },
            _ => BlobError::file("opening", &path, error),
        };
        let file = tokio::fs::File::open(&path).await.map_err(failed)?;
        let bytes = file.metadata().await.map_err(failed)?.len();
        Ok(BlobReader { file, bytes })
    }

    /// The whole of a blob.
    ///
    /// # Errors
    /// As [`BlobStore::open_blob`]; [`BlobError::TooLarge`] when it is longer than `bytes_max`.
    pub async fn read(&self, id: BlobId, bytes_max: u64) -> Result<Bytes, BlobError> {
        let mut reader = self.open_blob(id).await?;
        if reader.bytes > bytes_max {
            return Err(BlobError::TooLarge { bytes_max });
        }
        let mut content = Vec::with_capacity(usize::try_from(reader.bytes).unwrap_or(0));
        let failed = |error| BlobError::file("reading", &self.path(id), error);
        reader.read_to_end(&mut content).await.map_err(failed)?;
        Ok(content.into())
    }

    /// Where a blob's file is, for a program that takes a path. It exists while the blob is pinned or referenced.
    pub fn path(&self, id: BlobId) -> PathBuf {
        let name = id.to_string();
        self.shared.root.join(&name[..2]).join(&name)
    }

    /// Holds a blob that exists already, so that a new reference to it can be written.
    ///
    /// # Errors
    /// [`BlobError::NotFound`], and the file system's refusals.
    pub fn pin(&self, id: BlobId) -> Result<PinnedBlob, BlobError> {
        // The pin first: from then on no sweep removes it, so that finding it means keeping it.
        let pin = self.hold(id);
        let path = self.path(id);
        match std::fs::metadata(&path) {
            Ok(found) => Ok(PinnedBlob { bytes: found.len(), pin }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(BlobError::NotFound { id })
            }
            Err(error) => Err(BlobError::file("looking at", &path, error)),
        }
    }

    /// Removes the blobs that are neither pinned nor referenced. `referenced` is polled after the sweep has begun and
    /// must read all references from the state then.
    ///
    /// # Errors
    /// [`BlobError::References`] when they cannot be read, and the file system's refusals; what was removed before
    /// was rightly removed.
    pub async fn sweep(
        &self,
        referenced: impl Future<Output = Result<HashSet<BlobId>, StateError>>,
    ) -> Result<BlobSweep, BlobError> {
        let _one = self.shared.sweeping.lock().await;
        {
            // What is pinned now may be referenced and let go before its turn comes.
            let mut pins = self.shared.lock();
            pins.touched = Some(pins.held.keys().copied().collect());
        }
        let _end = EndOfSweep(&self.shared);
        let referenced = referenced.await.map_err(|source| BlobError::References { source })?;
        let store = self.clone();
        let work = move || store.remove_unless(&referenced);
        let interrupted =
            |error| BlobError::file("sweeping", &self.shared.root, io::Error::other(error));
        tokio::task::spawn_blocking(work).await.map_err(interrupted)?
    }

    fn remove_unless(&self, referenced: &HashSet<BlobId>) -> Result<BlobSweep, BlobError> {
        let mut swept = BlobSweep::default();
        for first in 0..=u8::MAX {
            let directory = self.shared.root.join(format!("{first:02x}"));
            let failed = |error| BlobError::file("listing", &directory, error);
            let files = match std::fs::read_dir(&directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                files => files.map_err(failed)?,
            };
            for file in files {
                let file = file.map_err(failed)?;
                let name = file.file_name();
                let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
                let bytes = file.metadata().map_err(failed)?.len();
                if referenced.contains(&id) || !self.remove_unpinned(id)? {
                    swept.kept += 1;
                } else {
                    swept.removed += 1;
                    swept.freed_bytes += bytes;
                }
            }
        }
        Ok(swept)
    }

    /// Removes a file unless it is, or was during this sweep, pinned. The lock is held over the removal: a writer
    /// pins before it puts its file in place.
    fn remove_unpinned(&self, id: BlobId) -> Result<bool, BlobError> {
        let pins = self.shared.lock();
        let touched = pins.touched.as_ref().is_none_or(|touched| touched.contains(&id));
        if touched || pins.held.contains_key(&id) {
            return Ok(false);
        }
        let path = self.path(id);
        std::fs::remove_file(&path).map_err(|error| BlobError::file("removing", &path, error))?;
        Ok(true)
    }

    fn hold(&self, id: BlobId) -> BlobPin {
        let mut pins = self.shared.lock();
        *pins.held.entry(id).or_default() += 1;
        if let Some(touched) = &mut pins.touched {
            touched.insert(id);
        }
        BlobPin { shared: self.shared.clone(), id }
    }
}

impl Shared {
    /// Nothing panics between changes that belong together.
    fn lock(&self) -> MutexGuard<'_, Pins> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the time of a sweep, however it ends.
struct EndOfSweep<'a>(&'a Shared);

impl Drop for EndOfSweep<'_> {
    fn drop(&mut self) {
        self.0.lock().touched = None;
    }
}

/// A file that is removed unless it was put in its place.
#[derive(Debug)]
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Once renamed it is not found here; what else fails is cleared at the next opening.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A blob in the making. Dropping it leaves nothing.
#[derive(Debug)]
pub struct BlobWriter {
    store: BlobStore,
    file: tokio::fs::File,
    unfinished: Unfinished,
    digest: Sha256,
    bytes: u64,
    bytes_max: u64,
}

impl BlobWriter {
    /// Adds to it.
    ///
    /// # Errors
    /// [`BlobError::TooLarge`], [`BlobError::DiskFull`] and the file system's other refusals. The blob cannot be
    /// finished then.
    pub async fn write(&mut self, chunk: &[u8]) -> Result<(), BlobError> {
        self.bytes += chunk.len() as u64;
        if self.bytes > self.bytes_max {
            return Err(BlobError::TooLarge { bytes_max: self.bytes_max });
        }
        self.digest.update(chunk);
        let failed = |error| BlobError::file("writing", &self.unfinished.0, error);
        self.file.write_all(chunk).await.map_err(failed)
    }

    /// Makes it durable and puts it in its place.
    ///
    /// # Errors
    /// [`BlobError::TooLarge`] when that was reported before, [`BlobError::DiskFull`] and the file system's other
    /// refusals.
    pub async fn finish(mut self) -> Result<PinnedBlob, BlobError> {
        if self.bytes > self.bytes_max {
            return Err(BlobError::TooLarge { bytes_max: self.bytes_max });
        }
        let failed = |error| BlobError::file("writing", &self.unfinished.0, error);
        // A write error shows at the flush, because the writing is done behind the scenes.
        self.file.flush().await.map_err(failed)?;
        self.file.sync_all().await.map_err(failed)?;
        let id = BlobId::from_digest(self.digest.finalize().into());
        let pin = self.store.hold(id);
        let place = self.store.path(id);
        let failed = |error| BlobError::file("putting in place", &place, error);
        put_in_place(&self.store.shared.root, &self.unfinished.0, &place).await.map_err(failed)?;
        Ok(PinnedBlob { bytes: self.bytes, pin })
    }
}

/// Renames a finished file, and makes that durable. The first blob of a directory makes the directory.
async fn put_in_place(root: &Path, finished: &Path, place: &Path) -> io::Result<()> {
    let sync = async |directory: &Path| tokio::fs::File::open(directory).await?.sync_all().await;
    let parent = place.parent().unwrap_or(root);
    match tokio::fs::rename(finished, place).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            tokio::fs::create_dir_all(parent).await?;
            sync(root).await?;
            tokio::fs::rename(finished, place).await?;
        }
        renamed => renamed?,
    }
    sync(parent).await
}

/// A durable blob that no sweep removes while this lives. Keep it until the reference is written.
#[derive(Debug)]
pub struct PinnedBlob {
    bytes: u64,
    pin: BlobPin,
}

impl PinnedBlob {
    /// Which blob.
    pub fn id(&self) -> BlobId {
        self.pin.id
    }

    /// Its length, bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[derive(Debug)]
struct BlobPin {
    shared: Arc<Shared>,
    id: BlobId,
}

impl Drop for BlobPin {
    fn drop(&mut self) {
        let mut pins = self.shared.lock();
        if let Some(count) = pins.held.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                pins.held.remove(&self.id);
            }
        }
    }
}

/// Reads a blob from its beginning.
#[derive(Debug)]
pub struct BlobReader {
    file: tokio::fs::File,
    bytes: u64,
}

impl BlobReader {
    /// Its whole length, bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl AsyncRead for BlobReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.file).poll_read(cx, into)
    }
}
