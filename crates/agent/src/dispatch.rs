//! One dispatcher for each service with machines here: while a machine has a free slot it pulls jobs from the queue,
//! sends them, and records what comes of them.

use crate::delivery::{DeliveryError, Reply};
use crate::machine::Live;
use crate::node::Node;
use bytes::Bytes;
use futures_util::future::Either;
use skein_fabric::{
    Attempt, Body, CLAIM_MAX, Claimant, Completed, Failed, Failure, JobResult, LeaseId, PinnedBlob,
    QueueError, QueueName, StateError,
};
use skein_model::{EventKind, EventSubject, JobRecord, Timestamp};
use skein_shell::{fault, now, random_u64, report};
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Without a wake-up, the queue is looked at again after this long: a wake-up may be lost.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After a failure of the store.
const RETRY: Duration = Duration::from_millis(200);
/// How long a broken exchange waits to learn whether its machine died.
const DEATH_SEEN: Duration = Duration::from_millis(300);
/// A machine that has died may have answered before: what is on its way is on this host, and arrives at once.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// How long jobs in service may take to end when the agent stops.
const STOP_PATIENCE: Duration = Duration::from_secs(4);

/// All dispatchers of an agent.
#[derive(Debug, Default)]
pub(crate) struct Dispatchers(Mutex<BTreeMap<QueueName, Arc<Pool>>>);

/// The machines of one service that take work.
#[derive(Debug)]
struct Pool {
    queue: QueueName,
    machines: Mutex<Vec<Arc<Live>>>,
    /// Woken when a slot is free or a machine was added.
    changed: Notify,
    /// Cancelled when the last machine has gone.
    ended: CancellationToken,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn queue_of(live: &Live) -> QueueName {
    let record = live.record();
    QueueName { project: record.project.clone(), service: record.service.clone() }
}

impl Dispatchers {
    /// The machine takes work from now on.
    pub(crate) fn add(&self, node: &Arc<Node>, live: Arc<Live>) {
        let queue = queue_of(&live);
        let mut pools = lock(&self.0);
        let pool = pools.entry(queue.clone()).or_insert_with(|| {
            let pool = Arc::new(Pool {
                queue,
                machines: Mutex::default(),
                changed: Notify::new(),
                ended: CancellationToken::new(),
            });
            node.tasks.spawn(run(node.clone(), pool.clone()));
            pool
        });
        lock(&pool.machines).push(live);
        pool.changed.notify_one();
    }

    /// The machine takes no more work. What it serves goes on.
    pub(crate) fn remove(&self, live: &Arc<Live>) {
        let queue = queue_of(live);
        let mut pools = lock(&self.0);
        let Some(pool) = pools.get(&queue) else { return };
        let mut machines = lock(&pool.machines);
        machines.retain(|other| !Arc::ptr_eq(other, live));
        if machines.is_empty() {
            pool.ended.cancel();
            drop(machines);
            pools.remove(&queue);
        }
    }
}

impl Pool {
    /// Takes the free slots of the machine that has the most, up to the size of a claim. A machine whose slots are
    /// taken does not end, even if it is told to drain before the claim is answered.
    fn take(&self) -> Option<(Arc<Live>, u32)> {
        let machines = lock(&self.machines);
        let free = |live: &Arc<Live>| live.record().capacity.saturating_sub(live.taken());
        let live = machines.iter().max_by_key(|live| free(live))?;
        let slots = free(live).min(CLAIM_MAX as u32);
        (0..slots).for_each(|_| live.take());
        (slots > 0).then(|| (live.clone(), slots))
    }

    /// Waits, but not beyond the end of the pool.
    async fn unless_ended<T>(&self, wait: impl Future<Output = T>) {
        tokio::select! {
            () = self.ended.cancelled() => {}       // cancel-safe: token
            _ = wait => {}                          // callers pass only what may be dropped
        }
    }

    /// A job ended: its slot is free.
    fn end(&self, live: &Live) {
        live.end();
        self.changed.notify_one();
    }
}

/// Pulls work until the service has no machine here, or the agent stops.
async fn run(node: Arc<Node>, pool: Arc<Pool>) {
    let stop = node.tasks.stop_token().clone();
    tokio::select! {
        () = stop.cancelled() => {}             // cancel-safe: token
        () = pull(&node, &pool) => {}           // a claim that is dropped falls back with the lease
    }
}

/// The end of the pool is looked at between claims, never in the middle of one: what was claimed is served, by a machine
/// that does not end while its slots are taken.
async fn pull(node: &Arc<Node>, pool: &Arc<Pool>) {
    let mut lease = node.lease.clone();
    while !pool.ended.is_cancelled() {
        let held = *lease.borrow_and_update();
        let Some(held) = held else {
            pool.unless_ended(lease.changed()).await;
            continue;
        };
        let Some((live, slots)) = pool.take() else {
            pool.unless_ended(pool.changed.notified()).await;
            continue;
        };
        match claim(node, pool, &live, slots, held).await {
            Ok(jobs) => {
                (jobs.len()..slots as usize).for_each(|_| live.give());
                let idle = jobs.is_empty();
                for job in jobs {
                    node.tasks.spawn(serve(node.clone(), pool.clone(), live.clone(), job));
                }
                if idle {
                    pool.unless_ended(wait_work(node, pool)).await;
                }
            }
            Err(error) => {
                (0..slots).for_each(|_| live.give());
                if !matches!(error, QueueError::ClaimantGone) {
                    warn!(service = %pool.queue, error = %report::chain(&error), "claiming jobs failed");
                }
                pool.unless_ended(tokio::time::sleep(RETRY)).await;
            }
        }
    }
}

async fn claim(
    node: &Node,
    pool: &Pool,
    live: &Live,
    slots: u32,
    lease: LeaseId,
) -> Result<Vec<JobRecord>, QueueError> {
    let record = live.record();
    let claimant = Claimant { machine: record.id.clone(), node: record.node.clone(), lease };
    node.queue.claim(&pool.queue, &claimant, slots as usize, now()).await
}

/// Returns when there may be work, or when there are other machines for it.
async fn wait_work(node: &Node, pool: &Pool) {
    tokio::select! {
        _ = node.queue.wait_work(&pool.queue) => {}      // cancel-safe: a hint; the queue is looked at again
        () = pool.changed.notified() => {}               // cancel-safe: keeps its permit
        () = tokio::time::sleep(LOOK_EVERY) => {}        // cancel-safe: timer
    }
}

fn subject(node: &Node, live: &Live, job: &JobRecord) -> EventSubject {
    EventSubject {
        project: Some(job.project.clone()),
        service: Some(job.service.clone()),
        node: Some(node.config.name.clone()),
        machine: Some(live.record().id.clone()),
        job: Some(job.id),
    }
}

/// One attempt at a job.
async fn serve(node: Arc<Node>, pool: Arc<Pool>, live: Arc<Live>, job: JobRecord) {
    live.begin();
    node.events.emit(subject(&node, &live, &job), EventKind::JobStarted { attempt: job.attempts });
    fault::point("job.claimed", node.config.network.as_str()).await;
    let attempt = attempt(&node, &live, &job);
    let Some(outcome) = until_stopped(&node, attempt).await else {
        // The agent leaves: the job falls back with its lease, and nothing failed.
        return;
    };
    fault::point("job.answered", node.config.network.as_str()).await;
    let at = now();
    // The slot is free as soon as the machine has answered: what follows is ours to do.
    pool.end(&live);
    record(&node, &live, &job, outcome, at).await;
}

/// What a future comes to; none when the agent stops and it does not come to an end soon after.
async fn until_stopped<T>(node: &Node, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    tokio::select! {
        value = &mut future => return Some(value),              // nothing is dropped: it is polled on below
        () = node.tasks.stop_token().cancelled() => {}          // cancel-safe: token
    }
    tokio::time::timeout(STOP_PATIENCE, future).await.ok()
}

/// Sends the job; what came of it. A deadline that passes meanwhile ends the job, not the attempt: the machine still works
/// on it, and its slot is not free.
async fn attempt(node: &Node, live: &Live, job: &JobRecord) -> Result<JobResult, Failure> {
    let retryable = |message: String| Failure::Retryable { message };
    let payload = node.queue.payload(job).await.map_err(|e| retryable(report::chain(&e)))?;
    let limit = job.retry.attempt_timeout;
    let exchange = live.delivery.send(job, payload, node.queue.blobs());
    let exchange = pin!(tokio::time::timeout(limit, exchange));
    // A machine that dies breaks no connection: nobody is left to say that it ended.
    let answered = match futures_util::future::select(exchange, pin!(live.machine.exited())).await {
        Either::Left((answered, _)) => answered,
        Either::Right((cause, exchange)) => {
            match tokio::time::timeout(LAST_WORDS, exchange).await {
                Ok(answered) => answered,
                Err(_) => return Err(Failure::Lost { message: cause.to_string() }),
            }
        }
    };
    match answered {
        Ok(Ok(Reply::Served { status, body, content_type })) => {
            Ok(JobResult { status, body, content_type })
        }
        Ok(Ok(Reply::Refused { status, message })) => Err(refusal(status, message)),
        Ok(Err(DeliveryError::TooLong)) => {
            Err(Failure::Rejected { status: 200, message: DeliveryError::TooLong.to_string() })
        }
        Ok(Err(error)) => Err(broken(live, &error).await),
        Err(_) => {
            live.report_hung();
            Err(retryable(format!("no answer within {} ms", limit.as_millis())))
        }
    }
}

/// A refusal is final when it says that the request is wrong, and worth another attempt when it says that the machine
/// could not (RFC 9110, sections 15.5 and 15.6).
fn refusal(status: u16, message: String) -> Failure {
    match status {
        408 | 425 | 429 | 500..=599 => {
            Failure::Retryable { message: format!("the machine answered {status}: {message}") }
        }
        _ => Failure::Rejected { status, message },
    }
}

/// A broken exchange is a loss when the machine has died, and a failure like others when it lives.
async fn broken(live: &Live, error: &DeliveryError) -> Failure {
    let message = report::chain(error);
    match tokio::time::timeout(DEATH_SEEN, live.machine.exited()).await {
        Ok(cause) => Failure::Lost { message: cause.to_string() },
        Err(_) => Failure::Retryable { message },
    }
}

/// Records the outcome of an attempt. What ends the job is told by whoever records ends; that it goes back is told here.
async fn record(
    node: &Node,
    live: &Live,
    job: &JobRecord,
    outcome: Result<JobResult, Failure>,
    at: Timestamp,
) {
    let attempt = Attempt::of(job);
    match outcome {
        Ok(result) => match complete(node, &attempt, result, at).await {
            Some(Completed::Recorded) | None => {}
            Some(other) => debug!(job = %job.id, ?other, "a result came too late"),
        },
        Err(failure) => match fail(node, &attempt, &failure, at).await {
            Some(Failed::Requeued { .. }) => {
                let returned =
                    EventKind::JobReturned { attempt: attempt.number, reason: words(&failure) };
                node.events.emit(subject(node, live, job), returned);
            }
            Some(Failed::DeadLetter { .. }) | None => {}
            Some(other) => debug!(job = %job.id, ?other, "a failure came too late"),
        },
    }
}

fn words(failure: &Failure) -> String {
    match failure {
        Failure::Retryable { message } | Failure::Lost { message } => message.clone(),
        Failure::Rejected { status, message } => format!("answered {status}: {message}"),
    }
}

/// Whether writing again may help: the store was busy or does not know.
fn passing(error: &QueueError) -> bool {
    matches!(
        error,
        QueueError::State {
            source: StateError::Unknown { .. }
                | StateError::Unavailable { .. }
                | StateError::DiskFull
        }
    )
}

/// A result that is kept until it is recorded. A blob stays pinned by it.
enum Kept {
    Inline(Bytes),
    Blob(PinnedBlob),
}

/// Records a result; tries until the store has answered, because nothing else would end the job while this agent lives.
async fn complete(
    node: &Node,
    attempt: &Attempt,
    result: JobResult,
    at: Timestamp,
) -> Option<Completed> {
    let JobResult { status, body, content_type } = result;
    let kept = match body {
        Body::Inline(bytes) => Kept::Inline(bytes),
        Body::Blob(blob) => Kept::Blob(blob),
    };
    loop {
        let body = match &kept {
            Kept::Inline(bytes) => Body::Inline(bytes.clone()),
            Kept::Blob(blob) => match node.queue.blobs().pin(blob.id()) {
                Ok(again) => Body::Blob(again),
                Err(error) => {
                    let failure = Failure::Retryable { message: report::chain(&error) };
                    fail(node, attempt, &failure, at).await;
                    return None;
                }
            },
        };
        let result = JobResult { status, body, content_type: content_type.clone() };
        match node.queue.complete(attempt, result, at).await {
            Ok(completed) => return Some(completed),
            Err(error) if passing(&error) => {
                warn!(job = %attempt.job, error = %report::chain(&error), "a result is not recorded yet");
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => {
                warn!(job = %attempt.job, error = %report::chain(&error), "a result could not be recorded");
                return None;
            }
        }
    }
}

/// Records a failure; as [`complete`].
async fn fail(node: &Node, attempt: &Attempt, failure: &Failure, at: Timestamp) -> Option<Failed> {
    loop {
        match node.queue.fail(attempt, failure.clone(), at, random_u64()).await {
            Ok(failed) => return Some(failed),
            Err(error) if passing(&error) => tokio::time::sleep(RETRY).await,
            Err(error) => {
                warn!(job = %attempt.job, error = %report::chain(&error), "a failure could not be recorded");
                return None;
            }
        }
    }
}
