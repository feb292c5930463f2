//! Where the queue keeps what. Times and sequence numbers are 16 hexadecimal digits, so that keys sort by them.
//!
//! | key | value |
//! | --- | --- |
//! | `q/count/P/S` | [`Count`](super::stored::Count): the one key every change of a queue writes |
//! | `q/job/ID` | [`StoredJob`](super::stored::StoredJob) |
//! | `q/body/ID/in`, `q/body/ID/out` | payload and result, when they are short |
//! | `q/all/P/S/~ID` | nothing; for lists, by the complement of the id: the newest first |
//! | `q/wait/P/S/SEQ` | id of a job that is due |
//! | `q/late/TIME/P/S/ID` | nothing; a job that waits out its back-off |
//! | `q/run/P/S/ID` | [`Run`](super::stored::Run): who works on it |
//! | `q/end/TIME/P/S/ID` | nothing; an ended job and when it is to be forgotten |
//! | `q/due/TIME/P/S/ID` | nothing; the deadline of a job that has not ended |
//! | `q/token/P/S/TOKEN` | [`TokenUse`](super::stored::TokenUse) |
//! | `q/claimant/LEASE` | the claimant's node; lives and dies with the lease |
//! | `blob/BLOB/q/ID/in`, `.../out` | nothing; the job needs the blob |

use crate::state::{Key, KeySpan, LeaseId, StateError};
use skein_model::{JobId, ProjectName, ServiceName, Timestamp};
use std::fmt;

/// Names a queue: the service whose jobs wait in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueName {
    /// The service's project.
    pub project: ProjectName,
    /// The service.
    pub service: ServiceName,
}

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.project, self.service)
    }
}

/// Which of a job's two bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    In,
    Out,
}

impl Side {
    fn as_str(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

/// Every key here is far below the longest allowed: names are at most 63 bytes and tokens 128.
fn key(text: String) -> Key {
    Key::new(text).expect("the queue's keys are short and without NUL")
}

fn span(text: &str) -> KeySpan {
    KeySpan::prefix(text).expect("the queue's prefixes are short and without NUL")
}

pub(super) fn count(queue: &QueueName) -> Key {
    key(format!("{COUNTS}{queue}"))
}

pub(super) const COUNTS: &str = "q/count/";
pub(super) const JOBS: &str = "q/job/";
pub(super) const WAITING: &str = "q/wait/";
pub(super) const LATE: &str = "q/late/";
pub(super) const RUNNING: &str = "q/run/";
pub(super) const ENDED: &str = "q/end/";
pub(super) const DUE: &str = "q/due/";
pub(super) const ALL: &str = "q/all/";
pub(super) const CLAIMANTS: &str = "q/claimant/";

pub(super) fn job(id: JobId) -> Key {
    key(format!("{JOBS}{id}"))
}

pub(super) fn body(id: JobId, side: Side) -> Key {
    key(format!("q/body/{id}/{}", side.as_str()))
}

/// Owner part of the reference to a blob.
pub(super) fn blob_owner(id: JobId, side: Side) -> String {
    format!("{JOBS}{id}/{}", side.as_str())
}

pub(super) fn all(queue: &QueueName, id: JobId) -> Key {
    // By the complement of the id, so that a list begins with the newest.
    key(format!("{ALL}{queue}/{}", id.complement()))
}

pub(super) fn waiting(queue: &QueueName, sequence: u64) -> Key {
    key(format!("{WAITING}{queue}/{sequence:016x}"))
}

pub(super) fn waiting_of(queue: &QueueName) -> KeySpan {
    span(&format!("{WAITING}{queue}/"))
}

pub(super) fn late(at: Timestamp, queue: &QueueName, id: JobId) -> Key {
    timed(LATE, at, queue, id)
}

pub(super) fn ended(at: Timestamp, queue: &QueueName, id: JobId) -> Key {
    timed(ENDED, at, queue, id)
}

pub(super) fn due(at: Timestamp, queue: &QueueName, id: JobId) -> Key {
    timed(DUE, at, queue, id)
}

fn timed(root: &str, at: Timestamp, queue: &QueueName, id: JobId) -> Key {
    key(format!("{root}{:016x}/{queue}/{id}", at.as_micros()))
}

pub(super) fn running(queue: &QueueName, id: JobId) -> Key {
    key(format!("{RUNNING}{queue}/{id}"))
}

pub(super) fn token(queue: &QueueName, token: &str) -> Key {
    key(format!("q/token/{queue}/{token}"))
}

pub(super) fn claimant(lease: LeaseId) -> Key {
    key(format!("{CLAIMANTS}{lease}"))
}

/// Everything below one of the roots above.
pub(super) fn below(root: &str) -> KeySpan {
    span(root)
}

/// The entries of a time index up to and including `now`.
pub(super) fn up_to(root: &str, now: Timestamp) -> KeySpan {
    let next = now.as_micros().saturating_add(1);
    KeySpan::between(&key(root.to_owned()), &key(format!("{root}{next:016x}")))
}

/// Queue and job of a key that ends in `P/S/ID`.
pub(super) fn queue_and_job(key: &Key) -> Option<(QueueName, JobId)> {
    let (queue, id) = queue_and_last(key)?;
    Some((queue, id.parse().ok()?))
}

/// Queue and job of a key of the list.
pub(super) fn listed(key: &Key) -> Option<(QueueName, JobId)> {
    let (queue, complement) = queue_and_job(key)?;
    Some((queue, complement.complement()))
}

/// Queue and last part of a key that ends in `P/S/LAST`.
pub(super) fn queue_and_last(key: &Key) -> Option<(QueueName, &str)> {
    let mut parts = key.as_str().rsplit('/');
    let (last, service, project) = (parts.next()?, parts.next()?, parts.next()?);
    Some((QueueName { project: project.parse().ok()?, service: service.parse().ok()? }, last))
}

/// The queue of a count.
pub(super) fn queue_of_count(key: &Key) -> Option<QueueName> {
    let (project, service) = key.as_str().strip_prefix(COUNTS)?.split_once('/')?;
    Some(QueueName { project: project.parse().ok()?, service: service.parse().ok()? })
}

/// The time of a key of a time index.
pub(super) fn time_of(root: &str, key: &Key) -> Option<Timestamp> {
    let digits = key.as_str().strip_prefix(root)?.split('/').next()?;
    u64::from_str_radix(digits, 16).ok().map(Timestamp::from_micros)
}

/// A lease as it stands in a claimant's key.
pub(super) fn lease_of(key: &Key) -> Option<LeaseId> {
    LeaseId::new(u64::from_str_radix(key.as_str().strip_prefix(CLAIMANTS)?, 16).ok()?)
}

/// Checks what becomes part of a key.
pub(super) fn check_token(token: &str) -> Result<(), StateError> {
    let good = (1..=128).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_graphic());
    let what = "an idempotency token has 1 to 128 bytes of visible ASCII";
    if good { Ok(()) } else { Err(StateError::invalid(what)) }
}
