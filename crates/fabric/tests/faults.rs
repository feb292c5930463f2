//! A store that loses answers: it refuses, does what it was asked and says that it does not know, or says so and has
//! not. The queue hides what it can and reports the rest truly.

mod world;

use async_trait::async_trait;
use skein_fabric::{
    Attempt, BlobStore, Body, Claimant, Completed, Failure, JobResult, KeySpan, LeaseId,
    LeaseStatus, Query, Queue, QueueError, RangeReply, Revision, State, StateError, Txn, TxnReply,
    Watch, WatchFrom,
};
use skein_model::{JobId, JobStateName};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use world::{World, echo, seconds, submission};

/// What may go wrong with a change, of a hundred.
#[derive(Debug, Clone, Copy)]
struct Odds {
    refused: u64,
    done_but_unknown: u64,
    undone_but_unknown: u64,
}

/// A store in front of another that loses some answers.
#[derive(Debug)]
struct Lossy {
    inner: Arc<dyn State>,
    odds: Odds,
    on: AtomicBool,
    dice: AtomicU64,
    lost: AtomicU64,
}

impl Lossy {
    fn new(inner: Arc<dyn State>, odds: Odds, seed: u64) -> Arc<Self> {
        let (dice, lost) = (AtomicU64::new(seed), AtomicU64::new(0));
        Arc::new(Self { inner, odds, on: AtomicBool::new(false), dice, lost })
    }

    /// 0 to 99; splitmix64.
    fn roll(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.dice.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % 100
    }
}

fn unknown() -> StateError {
    StateError::Unknown { why: "the answer was lost".to_owned() }
}

#[async_trait]
impl State for Lossy {
    async fn range(&self, query: Query) -> Result<RangeReply, StateError> {
        self.inner.range(query).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, StateError> {
        if txn.is_read_only() || !self.on.load(Ordering::Relaxed) {
            return self.inner.txn(txn).await;
        }
        let Odds { refused, done_but_unknown, undone_but_unknown } = self.odds;
        let roll = self.roll();
        if roll < refused {
            return Err(StateError::Unavailable { why: "not now".to_owned() });
        }
        if roll < refused + done_but_unknown {
            self.lost.fetch_add(1, Ordering::Relaxed);
            self.inner.txn(txn).await?;
            return Err(unknown());
        }
        if roll < refused + done_but_unknown + undone_but_unknown {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return Err(unknown());
        }
        self.inner.txn(txn).await
    }

    async fn sync(&self, revision: Revision) -> Result<(), StateError> {
        self.inner.sync(revision).await
    }

    async fn watch(&self, span: KeySpan, from: WatchFrom) -> Result<Watch, StateError> {
        self.inner.watch(span, from).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StateError> {
        self.inner.compact(revision).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StateError> {
        self.inner.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StateError> {
        self.inner.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StateError> {
        self.inner.revoke(lease).await
    }

    async fn time_to_live(&self, lease: LeaseId) -> Result<LeaseStatus, StateError> {
        self.inner.time_to_live(lease).await
    }
}

async fn lossy(world: &World, odds: Odds, seed: u64) -> (Arc<Lossy>, Queue) {
    let state = Lossy::new(world.state.clone(), odds, seed);
    let blobs = BlobStore::open(&world.directory.path().join("more blobs")).unwrap();
    let queue = Queue::open(state.clone(), blobs).await.unwrap();
    state.on.store(true, Ordering::Relaxed);
    (state, queue)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_double_nothing_and_lose_nothing() {
    const SUBMITTERS: u64 = 4;
    const JOBS: u64 = 30;
    let world = World::new().await;
    let odds = Odds { refused: 0, done_but_unknown: 15, undone_but_unknown: 15 };
    let (state, queue) = lossy(&world, odds, 42).await;
    let mut tasks = tokio::task::JoinSet::new();
    for submitter in 0..SUBMITTERS {
        let (queue, now) = (queue.clone(), world.now);
        tasks.spawn(async move {
            for n in 0..JOBS {
                let mut job = submission(&echo(), "x");
                job.job.token = (n % 2 == 0).then(|| format!("{submitter}-{n}"));
                let id = job.job.id;
                let submitted = queue.submit(vec![job], now).await.pop().unwrap().unwrap();
                assert_eq!(submitted.id, id);
            }
            Vec::new()
        });
    }
    for worker in 0..3 {
        let (queue, now, claimant) =
            (queue.clone(), world.now, world.claimant(&format!("w{worker}")));
        tasks.spawn(async move {
            let mut done = Vec::new();
            let mut idle = 0;
            while idle < 50 {
                let jobs = queue.claim(&echo(), &claimant, 3, now).await.unwrap();
                idle = if jobs.is_empty() { idle + 1 } else { 0 };
                for job in jobs {
                    let result = JobResult { status: 200, body: Body::empty(), content_type: None };
                    match queue.complete(&Attempt::of(&job), result, now).await.unwrap() {
                        Completed::Recorded | Completed::AlreadyRecorded => done.push(job.id),
                        stale @ Completed::Stale { .. } => panic!("{stale:?}"),
                    }
                }
                tokio::task::yield_now().await;
            }
            done
        });
    }
    let mut done = tasks.join_all().await.concat();
    assert!(state.lost.load(Ordering::Relaxed) > 20, "answers were lost");
    state.on.store(false, Ordering::Relaxed);
    // What the workers left when they thought that all was done.
    loop {
        let jobs = world.claim(32).await;
        if jobs.is_empty() {
            break;
        }
        for job in jobs {
            assert_eq!(world.complete(&job, "late").await, Completed::Recorded);
            done.push(job.id);
        }
    }
    let depth = world.queue.depth(&echo()).await.unwrap();
    assert_eq!((depth.waiting, depth.running), (0, 0), "no claim is forgotten");
    assert_eq!(depth.ended, SUBMITTERS * JOBS);
    assert_eq!(done.iter().collect::<BTreeSet<_>>().len(), done.len());
    assert_eq!(done.len() as u64, SUBMITTERS * JOBS, "each was claimed and completed by one");
    for id in done {
        assert_eq!(world.get(id).await.attempts, 1, "{id}");
    }
    world.sound().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_reported_and_mean_it() {
    let world = World::new().await;
    let odds = Odds { refused: 40, done_but_unknown: 5, undone_but_unknown: 5 };
    let (_state, queue) = lossy(&world, odds, 7).await;
    let mut accepted = BTreeSet::new();
    let mut refused = BTreeSet::new();
    let mut states: BTreeMap<JobId, JobStateName> = BTreeMap::new();
    let claimant: Claimant = world.claimant("m1");
    for n in 0..150u64 {
        let job = submission(&echo(), "x");
        let id = job.job.id;
        match queue.submit(vec![job], world.now).await.pop().unwrap() {
            Ok(_) => assert!(accepted.insert(id)),
            Err(QueueError::State { source: StateError::Unavailable { .. } }) => {
                refused.insert(id);
            }
            // Both a lost answer and a refusal afterwards: it may have been accepted.
            Err(error) => assert_eq!(error.code(), "STATE_UNKNOWN"),
        }
        let Ok(jobs) = queue.claim(&echo(), &claimant, 1, world.now).await else { continue };
        for job in jobs {
            let attempt = Attempt::of(&job);
            let outcome = match n % 3 {
                0 => queue.cancel(job.id, world.now).await.map(|_| JobStateName::Cancelled),
                1 => {
                    let failure = Failure::Rejected { status: 400, message: "no".to_owned() };
                    let failed = queue.fail(&attempt, failure, world.now, n).await;
                    failed.map(|_| JobStateName::DeadLetter)
                }
                _ => {
                    let body = Body::empty();
                    let result = JobResult { status: 200, body, content_type: None };
                    let completed = queue.complete(&attempt, result, world.now).await;
                    completed.map(|_| JobStateName::Done)
                }
            };
            if let Ok(state) = outcome {
                states.insert(job.id, state);
            }
        }
    }
    assert!(accepted.len() > 20 && refused.len() > 20 && states.len() > 10);
    for id in &accepted {
        world.get(*id).await;
    }
    for id in &refused {
        assert_eq!(world.queue.get(*id).await.unwrap_err().code(), "JOB_NOT_FOUND");
    }
    for (id, state) in &states {
        assert_eq!(world.get(*id).await.state.name(), *state);
    }
    world.sound().await;
    let swept = world.queue.sweep(world.now + seconds(1)).await.unwrap();
    assert_eq!(swept.requeued, 0, "the lease lives");
}
