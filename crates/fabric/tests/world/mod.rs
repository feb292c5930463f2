//! A queue over an embedded store in a temporary directory, and short ways to use it.

#![allow(dead_code, reason = "each test file uses its part")]

use bytes::Bytes;
use skein_fabric::{
    Attempt, BlobStore, Body, Claimant, Completed, EmbeddedOptions, EmbeddedState, JobResult,
    LeaseId, Queue, QueueError, QueueName, State, StoredBody, Submission, Submitted,
};
use skein_model::{JobId, JobRecord, NewJob, RetryPolicy, Timestamp};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::AsyncReadExt as _;

/// Everything a test needs, at a time that the test moves.
pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) store: EmbeddedState,
    pub(crate) state: Arc<dyn State>,
    pub(crate) queue: Queue,
    pub(crate) lease: LeaseId,
    pub(crate) now: Timestamp,
}

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

pub(crate) fn name(service: &str) -> QueueName {
    QueueName { project: "p".parse().unwrap(), service: service.parse().unwrap() }
}

pub(crate) fn echo() -> QueueName {
    name("echo")
}

/// A new id each time, in order.
pub(crate) fn id() -> JobId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    JobId::new(Timestamp::from_micros(number * 1000), u128::from(number))
}

pub(crate) fn submission(queue: &QueueName, payload: &str) -> Submission {
    let job = NewJob {
        id: id(),
        project: queue.project.clone(),
        service: queue.service.clone(),
        token: None,
        path: "/".to_owned(),
        deadline: None,
        retry: RetryPolicy::default(),
        retention: HOUR,
    };
    let payload = Body::Inline(Bytes::copy_from_slice(payload.as_bytes()));
    Submission { job, payload, content_type: None, bound: 1000 }
}

pub(crate) async fn open(directory: &Path) -> (EmbeddedState, Queue) {
    let store = EmbeddedState::open(&directory.join("state"), EmbeddedOptions::default()).unwrap();
    let blobs = BlobStore::open(&directory.join("blobs")).unwrap();
    let queue = Queue::open(Arc::new(store.clone()), blobs).await.unwrap();
    (store, queue)
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::in_directory(tempfile::tempdir().unwrap()).await
    }

    pub(crate) async fn in_directory(directory: tempfile::TempDir) -> Self {
        let (store, queue) = open(directory.path()).await;
        let state: Arc<dyn State> = Arc::new(store.clone());
        let lease = state.grant(HOUR).await.unwrap();
        let now = Timestamp::from_micros(1_000_000_000_000_000);
        Self { directory, store, state, queue, lease, now }
    }

    /// Stops and starts it.
    pub(crate) async fn restart(self) -> Self {
        let Self { directory, store, state, queue, now, .. } = self;
        drop((state, queue));
        store.close().await;
        Self { now, ..Self::in_directory(directory).await }
    }

    pub(crate) fn claimant(&self, machine: &str) -> Claimant {
        let node = "n1".parse().unwrap();
        Claimant { machine: machine.parse().unwrap(), node, lease: self.lease }
    }

    pub(crate) async fn submit_one(&self, submission: Submission) -> Result<Submitted, QueueError> {
        self.queue.submit(vec![submission], self.now).await.pop().unwrap()
    }

    /// Submits a job that must be accepted.
    pub(crate) async fn accept(&self, submission: Submission) -> JobId {
        self.submit_one(submission).await.unwrap().id
    }

    pub(crate) async fn claim(&self, max: usize) -> Vec<JobRecord> {
        self.queue.claim(&echo(), &self.claimant("m1"), max, self.now).await.unwrap()
    }

    /// Claims the one job that must be there.
    pub(crate) async fn claim_one(&self) -> JobRecord {
        let mut jobs = self.claim(1).await;
        assert_eq!(jobs.len(), 1);
        jobs.remove(0)
    }

    pub(crate) async fn complete(&self, job: &JobRecord, result: &str) -> Completed {
        let body = Body::Inline(Bytes::copy_from_slice(result.as_bytes()));
        let result = JobResult { status: 200, body, content_type: None };
        self.queue.complete(&Attempt::of(job), result, self.now).await.unwrap()
    }

    pub(crate) async fn get(&self, id: JobId) -> JobRecord {
        self.queue.get(id).await.unwrap()
    }

    /// The audit finds nothing wrong; how many jobs there are.
    pub(crate) async fn sound(&self) -> u64 {
        let audit = self.queue.audit().await.unwrap();
        assert_eq!(audit.faults, Vec::<String>::new());
        audit.jobs
    }
}

pub(crate) async fn content(body: StoredBody) -> Vec<u8> {
    match body {
        StoredBody::Inline(bytes) => bytes.to_vec(),
        StoredBody::Blob(mut reader) => {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).await.unwrap();
            bytes
        }
    }
}
