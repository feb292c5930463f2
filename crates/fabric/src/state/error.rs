//! Why the store did not do what it was asked.

use super::{LeaseId, Revision};
use std::path::PathBuf;

/// Why a call of the store failed. [`StateError::Unknown`] alone leaves open whether a change has happened; after
/// every other error it has not.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StateError {
    /// The request breaks a bound or contradicts itself; repeating it is useless.
    #[error("the request is not valid: {what}")]
    Invalid {
        /// Which bound.
        what: String,
    },
    /// The lease ran out, was revoked, or never was.
    #[error("lease {lease} does not exist (any more)")]
    LeaseNotFound {
        /// Which.
        lease: LeaseId,
    },
    /// The history has been forgotten up to and including `at`: list again, and watch from there.
    #[error("the history is forgotten up to revision {at}")]
    Compacted {
        /// The last forgotten revision.
        at: Revision,
    },
    /// The watcher did not keep up and was cut off. Watch again from `next`, and list again if that is compacted.
    #[error("the watcher did not keep up; the first change it missed is revision {next}")]
    Lagged {
        /// The first revision that was not delivered.
        next: Revision,
    },
    /// There is no space. Nothing acknowledged is lost, and the store goes on when there is space again.
    #[error("no space is left for the state")]
    DiskFull,
    /// It may or may not have happened: read before you repeat it.
    #[error("it is not known whether the change has happened: {why}")]
    Unknown {
        /// What went wrong.
        why: String,
    },
    /// Refused for now; it has not happened.
    #[error("the store cannot answer now: {why}")]
    Unavailable {
        /// What went wrong.
        why: String,
    },
    /// The store has been closed in this process.
    #[error("the store is closed")]
    Closed,
    /// Another process has the store open.
    #[error("{path} is in use by another process")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The stored data are damaged. Restore a backup; nothing is guessed.
    #[error("the stored state in {path} is damaged: {what}")]
    Corrupt {
        /// The database file.
        path: PathBuf,
        /// What the check found.
        what: String,
    },
    /// The store was written by a newer release.
    #[error("the state in {path} has format {found}; this release knows up to {known}")]
    Newer {
        /// The database file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format this release reads.
        known: u32,
    },
    /// A file operation while opening the store failed.
    #[error("opening the state in {path}: {why}")]
    Open {
        /// Which file or directory.
        path: PathBuf,
        /// The operating system's or the database's words.
        why: String,
    },
    /// An implementation broke the contract of this interface. A bug.
    #[error("the store broke its contract: {what}")]
    Protocol {
        /// In what.
        what: &'static str,
    },
}

impl StateError {
    /// The stable code of this failure.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "STATE_INVALID",
            Self::LeaseNotFound { .. } => "LEASE_NOT_FOUND",
            Self::Compacted { .. } => "STATE_COMPACTED",
            Self::Lagged { .. } => "WATCH_LAGGED",
            Self::DiskFull => "DISK_FULL",
            Self::Unknown { .. } => "STATE_UNKNOWN",
            Self::Unavailable { .. } => "STATE_UNAVAILABLE",
            Self::Closed => "STATE_CLOSED",
            Self::Locked { .. } => "STATE_LOCKED",
            Self::Corrupt { .. } => "STATE_CORRUPT",
            Self::Newer { .. } => "STATE_NEWER",
            Self::Open { .. } => "STATE_OPEN",
            Self::Protocol { .. } => "STATE_PROTOCOL",
        }
    }

    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid { what: what.into() }
    }
}
