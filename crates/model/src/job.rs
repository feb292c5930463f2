//! A job: one unit of work for a service, from acceptance to its one end.
//!
//! ```text
//!              claim                complete
//!  Waiting ────────────▶ Running ────────────▶ Done          (terminal)
//!     ▲  ◀──────────────    │
//!     │   lost, failed,     ├────────────────▶ DeadLetter    (terminal)
//!     │   retry left        │  permanent, attempts used up, deadline passed
//!     └─ cancel, deadline ──┴────────────────▶ Cancelled     (terminal)
//! ```
//! The queue of `skein-fabric` is the only writer of these transitions; each is one transaction.

use crate::image::BlobId;
use crate::machine::MachineId;
use crate::name::{NodeName, ProjectName, ServiceName};
use crate::time::{Timestamp, millis};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Largest payload or result of a job, bytes: 64 MiB.
pub const PAYLOAD_MAX: u64 = 64 * 1024 * 1024;

/// Bodies up to this length are kept in the state store, longer ones as blobs, bytes: 16 KiB is well under
/// etcd's request limit of 1.5 MiB even for a batch of 64 jobs in one transaction.
pub const INLINE_BODY_MAX: usize = 16 * 1024;

/// Longest time from submission that a deadline may lie ahead: 7 days.
pub const DEADLINE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// 128 bits: 48 of milliseconds since the epoch, 80 random. Written as 26 lower-case digits of Crockford's base 32 (a ULID),
/// so that ids sort by the time of submission.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(u128);

const BASE32: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

impl JobId {
    /// An id for a job submitted `at`, with 80 bits of `random`.
    pub const fn new(at: Timestamp, random: u128) -> Self {
        let millis = (at.as_micros() / 1000) as u128 & ((1 << 48) - 1);
        Self(millis << 80 | random & ((1 << 80) - 1))
    }

    /// The id whose bits are the others: sorts the other way round. Its own complement is the id again.
    #[must_use]
    pub const fn complement(self) -> Self {
        Self(!self.0)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digit = |i: u32| BASE32[(self.0 >> (5 * i)) as usize & 31];
        let text: [u8; 26] = std::array::from_fn(|i| digit(25 - i as u32));
        f.write_str(str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is not a job id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a job id: 26 digits of 0-9 and a-z without i, l, o, u")]
pub struct JobIdError;

impl FromStr for JobId {
    type Err = JobIdError;
    fn from_str(text: &str) -> Result<Self, JobIdError> {
        // 26 digits hold 130 bits: the first may use only 3 of its 5.
        if text.len() != 26 || text.as_bytes()[0] > b'7' {
            return Err(JobIdError);
        }
        text.bytes()
            .try_fold(0u128, |value, byte| {
                let digit = BASE32.iter().position(|b| *b == byte).ok_or(JobIdError)?;
                Ok(value << 5 | digit as u128)
            })
            .map(Self)
    }
}

impl TryFrom<String> for JobId {
    type Error = JobIdError;
    fn try_from(text: String) -> Result<Self, JobIdError> {
        text.parse()
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> String {
        id.to_string()
    }
}

/// Where a payload or result is kept, and what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BodyRef {
    /// Length, bytes; at most [`PAYLOAD_MAX`].
    pub bytes: u64,
    /// Media type as the sender gave it, at most 128 bytes of visible ASCII.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// The blob that holds it; none when it is kept inline, beside the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<BlobId>,
}

/// How often and how patiently a job is tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct RetryPolicy {
    /// Attempts in all, 1 to 100. The loss of a machine or node uses one up.
    pub attempts_max: u32,
    /// Wait before the second attempt after a failure; doubles each time. A lost machine is not waited for.
    #[serde(rename = "backoff_initial_ms", with = "millis")]
    #[cfg_attr(feature = "schema", schema(value_type = u64))]
    pub backoff_initial: Duration,
    /// Longest wait between two attempts.
    #[serde(rename = "backoff_max_ms", with = "millis")]
    #[cfg_attr(feature = "schema", schema(value_type = u64))]
    pub backoff_max: Duration,
    /// Longest time of one attempt; a machine that exceeds it is hung, and is killed.
    #[serde(rename = "attempt_timeout_ms", with = "millis")]
    #[cfg_attr(feature = "schema", schema(value_type = u64))]
    pub attempt_timeout: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts_max: 3,
            backoff_initial: Duration::from_millis(200),
            backoff_max: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(30),
        }
    }
}

/// What a sender hands over; the queue turns it into a [`JobRecord`] or refuses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// Picked by the caller, so that a repeated submission is the same job.
    pub id: JobId,
    /// Owner.
    pub project: ProjectName,
    /// Who shall serve it.
    pub service: ServiceName,
    /// Sender's idempotency token, 1 to 128 bytes of visible ASCII; unique per service while the job is kept.
    pub token: Option<String>,
    /// Path and query of the request to the machine; begins with `/`, at most 1,024 bytes.
    pub path: String,
    /// Not served after this time.
    pub deadline: Option<Timestamp>,
    /// How often it is tried.
    pub retry: RetryPolicy,
    /// How long the record and its bodies are kept after the end.
    pub retention: Duration,
}

/// Who works on a running job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The machine that serves it.
    pub machine: MachineId,
    /// The machine's node.
    pub node: NodeName,
    /// Lease of the node's agent; when it ends the job falls back.
    pub lease: u64,
    /// Since when.
    pub at: Timestamp,
}

/// Why a job ended without a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum DeadLetterReason {
    /// Each attempt failed; the last one for this reason.
    AttemptsUsedUp {
        /// What went wrong the last time.
        last: String,
    },
    /// Its machine died with it, each time, and no attempt is left: a *loss* in the queueing model's sense.
    Lost {
        /// What happened to the last machine.
        last: String,
    },
    /// The service answered that it will never serve this (a 4xx status).
    Rejected {
        /// HTTP status.
        status: u16,
        /// Beginning of the answer.
        message: String,
    },
    /// The deadline passed first.
    DeadlineExceeded,
    /// The service was removed.
    ServiceRemoved,
}

impl DeadLetterReason {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::AttemptsUsedUp { .. } => "ATTEMPTS_USED_UP",
            Self::Lost { .. } => "MACHINE_LOST",
            Self::Rejected { .. } => "REJECTED_BY_SERVICE",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::ServiceRemoved => "SERVICE_REMOVED",
        }
    }
}

impl fmt::Display for DeadLetterReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AttemptsUsedUp { last } => write!(f, "all attempts failed, the last one: {last}"),
            Self::Lost { last } => write!(f, "its machine was lost each time, at last: {last}"),
            Self::Rejected { status, message } => {
                write!(f, "the service answered {status}: {message}")
            }
            Self::DeadlineExceeded => f.write_str("its deadline passed before it was served"),
            Self::ServiceRemoved => f.write_str("its service was removed"),
        }
    }
}

/// Where a job stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum JobState {
    /// In the queue.
    Waiting {
        /// Not served before this time (back-off); [`Timestamp::ZERO`] when due at once.
        not_before: Timestamp,
    },
    /// Being served.
    Running {
        /// By whom.
        claim: Claim,
    },
    /// Served: the result is recorded.
    Done {
        /// When.
        at: Timestamp,
        /// HTTP status of the service's answer, 2xx.
        status: u16,
        /// The result.
        result: BodyRef,
        /// Who served it, and since when.
        claim: Claim,
    },
    /// Given up, with the reason.
    DeadLetter {
        /// When.
        at: Timestamp,
        /// Why.
        reason: DeadLetterReason,
    },
    /// Withdrawn by its sender.
    Cancelled {
        /// When.
        at: Timestamp,
    },
}

/// A [`JobState`] without its data, for filters and counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum JobStateName {
    /// In the queue.
    Waiting,
    /// Being served.
    Running,
    /// Served.
    Done,
    /// Given up.
    DeadLetter,
    /// Withdrawn.
    Cancelled,
}

impl JobStateName {
    /// All of them, in the order of a job's life.
    pub const ALL: [Self; 5] =
        [Self::Waiting, Self::Running, Self::Done, Self::DeadLetter, Self::Cancelled];

    /// As written in the API, the CLI and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Done => "done",
            Self::DeadLetter => "dead_letter",
            Self::Cancelled => "cancelled",
        }
    }
}

impl FromStr for JobStateName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|name| name.as_str() == text).ok_or_else(|| {
            "not a job state: waiting, running, done, dead_letter or cancelled".to_owned()
        })
    }
}

impl JobState {
    /// Its name.
    pub const fn name(&self) -> JobStateName {
        match self {
            Self::Waiting { .. } => JobStateName::Waiting,
            Self::Running { .. } => JobStateName::Running,
            Self::Done { .. } => JobStateName::Done,
            Self::DeadLetter { .. } => JobStateName::DeadLetter,
            Self::Cancelled { .. } => JobStateName::Cancelled,
        }
    }

    /// When it ended; none while it has not.
    pub const fn ended_at(&self) -> Option<Timestamp> {
        match self {
            Self::Waiting { .. } | Self::Running { .. } => None,
            Self::Done { at, .. } | Self::DeadLetter { at, .. } | Self::Cancelled { at } => {
                Some(*at)
            }
        }
    }
}

/// A job as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Its id.
    pub id: JobId,
    /// Owner.
    pub project: ProjectName,
    /// Who serves it.
    pub service: ServiceName,
    /// Sender's idempotency token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Path and query of the request to the machine.
    pub path: String,
    /// What is to be worked on.
    pub payload: BodyRef,
    /// When it was accepted.
    pub submitted_at: Timestamp,
    /// Not served after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// How often it is tried.
    pub retry: RetryPolicy,
    /// How long it is kept after its end.
    #[serde(rename = "retention_ms", with = "millis")]
    pub retention: Duration,
    /// Attempts begun so far. The attempt in progress has this number.
    pub attempts: u32,
    /// What went wrong the last time, if anything did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
    /// Where it stands.
    #[serde(flatten)]
    pub state: JobState,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ids_survive_text_and_sort_by_time(ms in 0u64..1 << 48, random: u128, later in 1u64..1000) {
            let id = JobId::new(Timestamp::from_micros(ms * 1000), random);
            prop_assert_eq!(id.to_string().parse::<JobId>(), Ok(id));
            let next = JobId::new(Timestamp::from_micros((ms + later) * 1000), random);
            prop_assert!(ms + later >= 1 << 48 || id.to_string() < next.to_string());
        }

        #[test]
        fn any_text_is_an_id_or_an_error(text in "\\PC{0,40}") {
            if let Ok(id) = text.parse::<JobId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }

    #[test]
    fn a_record_is_flat_json() {
        let record = JobRecord {
            id: JobId::new(Timestamp::ZERO, 1),
            project: ProjectName::default(),
            service: "echo".parse().unwrap(),
            token: None,
            path: "/".into(),
            payload: BodyRef { bytes: 2, content_type: None, blob: None },
            submitted_at: Timestamp::from_micros(5),
            deadline: None,
            retry: RetryPolicy::default(),
            retention: Duration::from_secs(60),
            attempts: 0,
            last_failure: None,
            state: JobState::Waiting { not_before: Timestamp::ZERO },
        };
        let json = serde_json::to_value(&record).unwrap();
        assert_eq!(json["state"], "waiting");
        assert_eq!(json["retention_ms"], 60_000);
        assert_eq!(serde_json::from_value::<JobRecord>(json).unwrap(), record);
    }
}
