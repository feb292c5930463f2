//! Why the queue did not do what it was asked.

use super::QueueName;
use crate::blob::BlobError;
use crate::state::StateError;
use skein_model::JobId;
use std::sync::Arc;

/// Why a call of the queue failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueueError {
    /// The queue is full; the job was not accepted.
    #[error("the queue of {queue} is full: {length} of {bound} jobs wait")]
    Full {
        /// Which queue.
        queue: QueueName,
        /// Jobs that wait.
        length: u64,
        /// Jobs that may wait.
        bound: u32,
    },
    /// The idempotency token was used for a job with other content.
    #[error("the idempotency token was used for job {job} with other content")]
    TokenConflict {
        /// That job.
        job: JobId,
    },
    /// The id was used for another job.
    #[error("job {job} exists already and is another")]
    IdConflict {
        /// The id.
        job: JobId,
    },
    /// There is no such job, or it has been forgotten.
    #[error("job {job} does not exist")]
    NotFound {
        /// Which.
        job: JobId,
    },
    /// A body is longer than it may be.
    #[error("a body of {bytes} bytes; at most {bytes_max}")]
    TooLarge {
        /// Its length.
        bytes: u64,
        /// How long it may be.
        bytes_max: u64,
    },
    /// The request breaks a bound.
    #[error("the request is not valid: {what}")]
    Invalid {
        /// Which.
        what: String,
    },
    /// The claimant's lease has ended: it must stop its work and take a new lease.
    #[error("the lease of the claimant has ended")]
    ClaimantGone,
    /// A stored record cannot be read.
    #[error("the stored record {key} is damaged: {what}")]
    Damaged {
        /// Its key.
        key: String,
        /// What is wrong with it.
        what: String,
    },
    /// The state store failed.
    #[error("the queue's state")]
    State {
        /// How.
        source: StateError,
    },
    /// The blob store failed.
    #[error("the queue's blobs")]
    Blob {
        /// How.
        source: Arc<BlobError>,
    },
    /// The queue has been closed in this process. The change may or may not have happened.
    #[error("the queue is closed")]
    Closed,
}

impl QueueError {
    /// The stable code of this failure.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Full { .. } => "QUEUE_FULL",
            Self::TokenConflict { .. } => "TOKEN_CONFLICT",
            Self::IdConflict { .. } => "JOB_ID_CONFLICT",
            Self::NotFound { .. } => "JOB_NOT_FOUND",
            Self::TooLarge { .. } => "PAYLOAD_TOO_LARGE",
            Self::Invalid { .. } => "JOB_INVALID",
            Self::ClaimantGone => "CLAIMANT_GONE",
            Self::Damaged { .. } => "STATE_CORRUPT",
            Self::State { source } => source.code(),
            Self::Blob { source } => source.code(),
            Self::Closed => "QUEUE_CLOSED",
        }
    }
}

impl From<StateError> for QueueError {
    /// The store says itself what failed, with its subject.
    fn from(source: StateError) -> Self {
        match source {
            StateError::Invalid { what } => Self::Invalid { what },
            source => Self::State { source },
        }
    }
}

impl From<BlobError> for QueueError {
    /// The store says itself what failed, with its subject.
    fn from(source: BlobError) -> Self {
        Self::Blob { source: Arc::new(source) }
    }
}
