//! What the queue writes: stored types, JSON, additive.

use super::QueueName;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use skein_model::{JobId, JobRecord, MachineId};

/// How many jobs of a queue are where. Written by every change of the queue, so that a comparison of its revision
/// guards them all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Count {
    /// Sequence number of the next job.
    pub(super) next: u64,
    /// Due.
    pub(super) waiting: u64,
    /// Waiting out a back-off.
    pub(super) late: u64,
    /// Claimed.
    pub(super) running: u64,
    /// Ended and not yet forgotten.
    pub(super) ended: u64,
}

impl Count {
    /// What the bound of the queue is about.
    pub(super) fn length(&self) -> u64 {
        self.waiting + self.late
    }

    /// Whether two counts say the same of the jobs; the sequence is not counted.
    pub(super) fn agrees(&self, other: &Self) -> bool {
        let parts = |c: &Self| (c.waiting, c.late, c.running, c.ended);
        parts(self) == parts(other)
    }
}

/// A job with its place in the order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredJob {
    /// Order of acceptance in its queue. A job that falls back keeps its place.
    pub(super) sequence: u64,
    pub(super) job: JobRecord,
}

impl StoredJob {
    pub(super) fn queue(&self) -> QueueName {
        queue_of(&self.job)
    }
}

pub(super) fn queue_of(job: &JobRecord) -> QueueName {
    QueueName { project: job.project.clone(), service: job.service.clone() }
}

/// Who works on a running job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) machine: MachineId,
    pub(super) lease: u64,
    pub(super) attempt: u32,
}

/// What an idempotency token was used for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TokenUse {
    pub(super) id: JobId,
    /// SHA-256 of path, content type and payload, hexadecimal.
    pub(super) content: String,
}

/// JSON of a stored type.
pub(super) fn encode(value: &impl Serialize) -> Vec<u8> {
    // The stored types have string keys and no failing serializers.
    serde_json::to_vec(value).expect("stored types are always JSON")
}

/// A stored type of its JSON; the text says what is wrong with it.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}
