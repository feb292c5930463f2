//! The work queue: what is accepted is durable, is worked on by one at a time, and ends once.
//!
//! Nobody assigns jobs: whoever has room *claims*. A claim stands under the lease of the claimant's agent; when the
//! lease ends, the next sweep puts the job back. A job's attempts are numbered, and only the attempt in progress can
//! end it, so a result is recorded once, whoever else still works on it.
//!
//! Every transition is one transaction of [`State`], planned by pure functions ([`plan`]), many of them together
//! ([`engine`]). A process that dies at any point leaves a consistent queue. Nothing here reads a clock or throws
//! dice: time and random numbers are arguments.
//!
//! **Invariant:** an accepted job is in exactly one place (due, late, running, ended) until it is purged, and the
//! count of its queue says how many are where. [`Queue::audit`] checks it.

mod changes;
mod engine;
mod error;
mod keys;
mod lane;
mod list;
mod plan;
mod stored;
mod sweep;
mod wake;

pub use changes::{QueueChanges, QueueEnds};
pub use error::QueueError;
pub use keys::QueueName;
pub use list::{Cursor, Depth, JobFilter, JobPage, StoredBody};
pub use sweep::{Audit, Swept};

use crate::blob::{BlobStore, PinnedBlob};
use crate::state::{LeaseId, State};
use bytes::Bytes;
use engine::{Command, Engine, Settled, Tries};
use plan::{Action, Claiming, Completing, Reply, Submit};
use sha2::{Digest as _, Sha256};
use skein_model::{
    BodyRef, Claim, DEADLINE_MAX, DeadLetterReason, INLINE_BODY_MAX, JobId, JobRecord,
    JobStateName, MachineId, NewJob, NodeName, PAYLOAD_MAX, Timestamp,
};
use std::fmt::Write as _;
use std::sync::Arc;
use tokio::io::AsyncRead;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use wake::Wakeups;

/// Requests that wait for the engine: a few batches of the largest size. With inline bodies they hold at most 64 MiB.
const INBOX: usize = 4096;

/// Most jobs of one claim: what it changes fits one transaction with room for others.
pub const CLAIM_MAX: usize = 32;

/// Longest path of a job, bytes.
const PATH_BYTES_MAX: usize = 1024;

/// Longest content type, bytes.
const CONTENT_TYPE_BYTES_MAX: usize = 128;

/// A payload or result on its way into the queue. Dropping it forgets it.
#[derive(Debug)]
pub enum Body {
    /// At most [`INLINE_BODY_MAX`] bytes.
    Inline(Bytes),
    /// A blob, at most [`PAYLOAD_MAX`] bytes.
    Blob(PinnedBlob),
}

impl Body {
    /// Without content.
    pub fn empty() -> Self {
        Self::Inline(Bytes::new())
    }

    /// Its length, bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Blob(blob) => blob.bytes(),
        }
    }
}

/// A job to submit.
#[derive(Debug)]
pub struct Submission {
    /// What it is.
    pub job: NewJob,
    /// What is to be worked on.
    pub payload: Body,
    /// The payload's media type, at most 128 bytes of visible ASCII.
    pub content_type: Option<String>,
    /// Jobs that may wait in the queue (due and late together); one more is refused.
    pub bound: u32,
}

/// A job is accepted, and durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Submitted {
    /// Its id: the one given, or that of the job accepted before under the same token.
    pub id: JobId,
    /// Whether it had been accepted before.
    pub repeated: bool,
}

/// Who claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimant {
    /// The machine that will serve the jobs.
    pub machine: MachineId,
    /// Its node.
    pub node: NodeName,
    /// The lease of the node's agent.
    pub lease: LeaseId,
}

/// One attempt at a job: what a claimant answers for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// The job.
    pub job: JobId,
    /// Its queue.
    pub queue: QueueName,
    /// Which attempt, from 1.
    pub number: u32,
}

impl Attempt {
    /// The attempt in progress of a claimed job.
    pub fn of(job: &JobRecord) -> Self {
        Self { job: job.id, queue: stored::queue_of(job), number: job.attempts }
    }
}

/// The result of an attempt.
#[derive(Debug)]
pub struct JobResult {
    /// HTTP status of the answer, 2xx.
    pub status: u16,
    /// The answer.
    pub body: Body,
    /// Its media type, at most 128 bytes of visible ASCII; a longer one is dropped.
    pub content_type: Option<String>,
}

/// What became of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completed {
    /// It is recorded, and the job done.
    Recorded,
    /// This attempt had been recorded before.
    AlreadyRecorded,
    /// The attempt is not in progress (any more); the result was dropped.
    Stale {
        /// Where the job stands.
        state: JobStateName,
        /// Attempts begun.
        attempts: u32,
    },
}

/// How an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Another attempt may succeed: after a back-off, if one is left.
    Retryable {
        /// What went wrong.
        message: String,
    },
    /// The service will never serve it.
    Rejected {
        /// HTTP status of the answer.
        status: u16,
        /// Beginning of the answer.
        message: String,
    },
    /// The machine died: again at once, if an attempt is left.
    Lost {
        /// What happened to it.
        message: String,
    },
}

impl Failure {
    fn message(&self) -> &str {
        match self {
            Self::Retryable { message }
            | Self::Rejected { message, .. }
            | Self::Lost { message } => message,
        }
    }
}

/// What became of a job whose attempt failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failed {
    /// It waits again.
    Requeued {
        /// Not served before; [`Timestamp::ZERO`] when it is due at once.
        not_before: Timestamp,
    },
    /// It is given up.
    DeadLetter {
        /// Why.
        reason: DeadLetterReason,
    },
    /// The attempt is not in progress (any more).
    Stale {
        /// Where the job stands.
        state: JobStateName,
        /// Attempts begun.
        attempts: u32,
    },
}

/// What became of a job that was withdrawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// It has ended now.
    Cancelled {
        /// Where it stood. A running one may still be worked on; its result will be stale.
        was: JobStateName,
    },
    /// It had ended before.
    AlreadyEnded {
        /// How.
        state: JobStateName,
    },
}

/// The queues of all services. Clones share one engine, which stops with the last.
#[derive(Debug, Clone)]
pub struct Queue {
    state: Arc<dyn State>,
    blobs: BlobStore,
    commands: mpsc::Sender<Command>,
    wakeups: Arc<Wakeups>,
    put_off: Arc<Notify>,
    /// The engine and the two watchers; aborted when the last handle is dropped. An engine that is aborted within a
    /// transaction leaves it to the store, which does it whole or not at all.
    _tasks: Arc<JoinSet<()>>,
}

impl Queue {
    /// Opens the queues in `state`, with their large bodies in `blobs`, and makes good the counts, should one be
    /// wrong. Needs a Tokio runtime.
    ///
    /// # Errors
    /// Whatever stops the state from answering.
    pub async fn open(state: Arc<dyn State>, blobs: BlobStore) -> Result<Self, QueueError> {
        let mut tasks = JoinSet::new();
        let wakeups = Arc::new(Wakeups::default());
        wakeups.clone().follow(&state, &mut tasks).await?;
        let (commands, inbox) = mpsc::channel(INBOX);
        let put_off = Arc::new(Notify::new());
        tasks.spawn(Engine::new(state.clone(), inbox, put_off.clone()).run());
        let tasks = Arc::new(tasks);
        let queue = Self { state, blobs, commands, wakeups, put_off, _tasks: tasks };
        queue.recount().await?;
        Ok(queue)
    }

    /// Where large bodies are kept.
    pub fn blobs(&self) -> &BlobStore {
        &self.blobs
    }

    /// Keeps a body for a submission or a result: beside the record if it is short, else as a blob.
    ///
    /// # Errors
    /// [`QueueError::Blob`] when there is no space for it; [`QueueError::TooLarge`] above [`PAYLOAD_MAX`].
    pub async fn body(&self, content: Bytes) -> Result<Body, QueueError> {
        if content.len() <= INLINE_BODY_MAX {
            return Ok(Body::Inline(content));
        }
        check_length(content.len() as u64)?;
        let mut writer = self.blobs.writer(PAYLOAD_MAX).await?;
        writer.write(&content).await?;
        Ok(Body::Blob(writer.finish().await?))
    }

    /// Keeps a body that arrives piece by piece, without holding it in memory.
    ///
    /// # Errors
    /// As [`Queue::body`], and [`QueueError::Blob`] when the source fails.
    pub async fn body_from(&self, source: impl AsyncRead + Send) -> Result<Body, QueueError> {
        let blob = self.blobs.keep(source, PAYLOAD_MAX).await?;
        if blob.bytes() > INLINE_BODY_MAX as u64 {
            return Ok(Body::Blob(blob));
        }
        let content = self.blobs.read(blob.id(), INLINE_BODY_MAX as u64).await?;
        Ok(Body::Inline(content))
    }

    /// Submits jobs. Each is accepted or refused by itself, in order, and reported in its place; those accepted are
    /// durable. A job repeated under its id or its token is accepted once.
    ///
    /// # Errors
    /// For each job: [`QueueError::Full`] at once, [`QueueError::TokenConflict`], [`QueueError::IdConflict`],
    /// [`QueueError::Invalid`], [`QueueError::TooLarge`], or the state's failure. After
    /// [`StateError::Unknown`](crate::StateError::Unknown) submit it again with the same id.
    pub async fn submit(
        &self,
        batch: Vec<Submission>,
        now: Timestamp,
    ) -> Vec<Result<Submitted, QueueError>> {
        let mut answers = Vec::with_capacity(batch.len());
        for submission in batch {
            let sent = match check(submission, now) {
                Ok((queue, submit, pin)) => {
                    self.send(queue, now, Action::Submit(Box::new(submit)), pin).await
                }
                Err(error) => Err(error),
            };
            answers.push(sent);
        }
        let mut outcomes = Vec::with_capacity(answers.len());
        for answer in answers {
            outcomes.push(match answer {
                Ok(answer) => submitted(self.durable(answer).await),
                Err(error) => Err(error),
            });
        }
        outcomes
    }

    /// Claims up to `max` (at most [`CLAIM_MAX`]) due jobs, the longest accepted first. Empty when there is none;
    /// then [`Queue::wait_work`] wakes when there is.
    ///
    /// # Errors
    /// [`QueueError::ClaimantGone`] when the lease has ended, or the state's failure.
    pub async fn claim(
        &self,
        queue: &QueueName,
        claimant: &Claimant,
        max: usize,
        now: Timestamp,
    ) -> Result<Vec<JobRecord>, QueueError> {
        let Claimant { machine, node, lease } = claimant.clone();
        let claim = Claim { machine, node, lease: lease.get(), at: now };
        let max = max.min(CLAIM_MAX);
        let action = Action::Claim(Claiming { claim, lease, max, tried: Vec::new() });
        // A claim need not be durable: one that a loss of power undoes was made for a machine that is gone as well.
        let answer = self.send(queue.clone(), now, action, None).await?;
        match settled(answer).await?.reply {
            Reply::Claimed(jobs) => Ok(jobs),
            _ => Err(QueueError::Closed),
        }
    }

    /// Records the result of an attempt, once.
    ///
    /// # Errors
    /// [`QueueError::NotFound`] when the job has been forgotten, [`QueueError::TooLarge`], or the state's failure;
    /// after [`StateError::Unknown`](crate::StateError::Unknown) repeat it.
    pub async fn complete(
        &self,
        attempt: &Attempt,
        result: JobResult,
        now: Timestamp,
    ) -> Result<Completed, QueueError> {
        check_length(result.body.bytes())?;
        let content_type = result.content_type.filter(|text| is_content_type(text));
        let (reference, inline, pin) = take_apart(result.body, content_type);
        let action = Action::Complete(Completing {
            id: attempt.job,
            attempt: attempt.number,
            status: result.status,
            result: reference,
            inline,
        });
        match self.call(attempt.queue.clone(), now, action, pin).await? {
            Reply::Completed(completed) => Ok(completed),
            _ => Err(QueueError::Closed),
        }
    }

    /// Ends an attempt without a result. `random` is for the jitter of the back-off.
    ///
    /// # Errors
    /// As [`Queue::complete`].
    pub async fn fail(
        &self,
        attempt: &Attempt,
        failure: Failure,
        now: Timestamp,
        random: u64,
    ) -> Result<Failed, QueueError> {
        let action = Action::Fail { id: attempt.job, attempt: attempt.number, failure, random };
        match self.call(attempt.queue.clone(), now, action, None).await? {
            Reply::Failed(failed) => Ok(failed),
            _ => Err(QueueError::Closed),
        }
    }

    /// Withdraws a job, waiting or running.
    ///
    /// # Errors
    /// [`QueueError::NotFound`], or the state's failure.
    pub async fn cancel(&self, id: JobId, now: Timestamp) -> Result<Cancelled, QueueError> {
        let job = self.get(id).await?;
        match self.call(stored::queue_of(&job), now, Action::Cancel { id }, None).await? {
            Reply::Cancelled(cancelled) => Ok(cancelled),
            _ => Err(QueueError::Closed),
        }
    }

    /// Sends a request to the engine.
    async fn send(
        &self,
        queue: QueueName,
        now: Timestamp,
        action: Action,
        pin: Option<PinnedBlob>,
    ) -> Result<oneshot::Receiver<Result<Settled, QueueError>>, QueueError> {
        let (answer, receiver) = oneshot::channel();
        let command = Command { queue, now, action, answer, _pin: pin, tries: Tries::default() };
        self.commands.send(command).await.map_err(|_| QueueError::Closed)?;
        Ok(receiver)
    }

    /// The answer, when it is durable.
    async fn durable(
        &self,
        answer: oneshot::Receiver<Result<Settled, QueueError>>,
    ) -> Result<Reply, QueueError> {
        let Settled { reply, revision } = settled(answer).await?;
        self.state.sync(revision).await?;
        Ok(reply)
    }

    async fn call(
        &self,
        queue: QueueName,
        now: Timestamp,
        action: Action,
        pin: Option<PinnedBlob>,
    ) -> Result<Reply, QueueError> {
        self.durable(self.send(queue, now, action, pin).await?).await
    }
}

async fn settled(
    answer: oneshot::Receiver<Result<Settled, QueueError>>,
) -> Result<Settled, QueueError> {
    answer.await.map_err(|_| QueueError::Closed)?
}

fn submitted(reply: Result<Reply, QueueError>) -> Result<Submitted, QueueError> {
    match reply? {
        Reply::Submitted(submitted) => Ok(submitted),
        _ => Err(QueueError::Closed),
    }
}

/// Checks the bounds of a submission and takes it apart.
fn check(
    submission: Submission,
    now: Timestamp,
) -> Result<(QueueName, Submit, Option<PinnedBlob>), QueueError> {
    let Submission { job, payload, content_type, bound } = submission;
    let invalid = |what: &str| Err(QueueError::Invalid { what: what.to_owned() });
    if !job.path.starts_with('/') || job.path.len() > PATH_BYTES_MAX {
        return invalid("a path begins with '/' and has at most 1,024 bytes");
    }
    if !job.path.bytes().all(|b| b.is_ascii_graphic()) {
        return invalid("a path is visible ASCII; percent-encode what is not");
    }
    if job.retry.attempts_max == 0 {
        return invalid("a job has at least one attempt");
    }
    if job.deadline.is_some_and(|deadline| deadline > now + DEADLINE_MAX) {
        return invalid("a deadline lies at most 7 days ahead");
    }
    if content_type.as_ref().is_some_and(|text| !is_content_type(text)) {
        return invalid("a content type has at most 128 bytes of visible ASCII");
    }
    if let Some(token) = &job.token {
        keys::check_token(token)?;
    }
    check_length(payload.bytes())?;
    let (payload, inline, pin) = take_apart(payload, content_type);
    let content = job.token.as_ref().map(|_| content_digest(&job.path, &payload, inline.as_ref()));
    let queue = QueueName { project: job.project.clone(), service: job.service.clone() };
    Ok((queue, Submit { job, payload, inline, content, bound }, pin))
}

fn check_length(bytes: u64) -> Result<(), QueueError> {
    match bytes {
        0..=PAYLOAD_MAX => Ok(()),
        _ => Err(QueueError::TooLarge { bytes, bytes_max: PAYLOAD_MAX }),
    }
}

fn is_content_type(text: &str) -> bool {
    text.len() <= CONTENT_TYPE_BYTES_MAX && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
}

fn take_apart(
    body: Body,
    content_type: Option<String>,
) -> (BodyRef, Option<Bytes>, Option<PinnedBlob>) {
    let bytes = body.bytes();
    match body {
        Body::Inline(content) => (BodyRef { bytes, content_type, blob: None }, Some(content), None),
        Body::Blob(pin) => (BodyRef { bytes, content_type, blob: Some(pin.id()) }, None, Some(pin)),
    }
}

/// What an idempotency token stands for, as a hexadecimal SHA-256. The parts are told apart by their lengths.
fn content_digest(path: &str, payload: &BodyRef, inline: Option<&Bytes>) -> String {
    let payload_digest: [u8; 32] = match (payload.blob, inline) {
        (Some(blob), _) => *blob.digest(),
        (None, inline) => Sha256::digest(inline.map_or(&[][..], |bytes| bytes)).into(),
    };
    let mut digest = Sha256::new();
    for part in [path, payload.content_type.as_deref().unwrap_or("")] {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.update(payload_digest);
    digest.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
