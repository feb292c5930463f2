//! Measures the work queue over the embedded state: one job at a time, and many clients at once.
//!
//! `cargo run --release -p skein-fabric --example measure_queue [DIRECTORY]`

use rand::RngExt as _;
use skein_fabric::{
    Attempt, BlobStore, Body, Claimant, EmbeddedOptions, EmbeddedState, JobResult, Queue,
    QueueError, QueueName, State, Submission,
};
use skein_model::{JobId, NewJob, RetryPolicy, Timestamp};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

const ROUNDS: usize = 2000;
const JOBS: usize = 20_000;
const CLIENTS: usize = 32;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let root = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    let directory = tempfile::tempdir_in(root)?;
    let store = EmbeddedState::open(&directory.path().join("state"), EmbeddedOptions::default())?;
    let state: Arc<dyn State> = Arc::new(store.clone());
    let blobs = BlobStore::open(&directory.path().join("blobs"))?;
    let queue = Queue::open(state.clone(), blobs).await?;
    let lease = state.grant(Duration::from_secs(3600)).await?;
    let claimant = Claimant { machine: "echo-1".parse()?, node: "node-1".parse()?, lease };
    sequential(&queue, &claimant).await?;
    parallel(&queue, &claimant, 1).await?;
    parallel(&queue, &claimant, 8).await?;
    store.close().await;
    Ok(())
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::ZERO + since
}

fn name() -> Result<QueueName, Failure> {
    Ok(QueueName { project: "default".parse()?, service: "echo".parse()? })
}

fn submission() -> Result<Submission, Failure> {
    let QueueName { project, service } = name()?;
    let job = NewJob {
        id: JobId::new(now(), rand::rng().random()),
        project,
        service,
        token: None,
        path: "/".to_owned(),
        deadline: None,
        retry: RetryPolicy::default(),
        retention: Duration::from_secs(3600),
    };
    let payload = Body::Inline(vec![b'x'; 256].into());
    Ok(Submission { job, payload, content_type: None, bound: 1_000_000 })
}

async fn complete(queue: &Queue, attempt: Attempt) -> Result<(), QueueError> {
    let body = Body::Inline(vec![b'y'; 256].into());
    queue.complete(&attempt, JobResult { status: 200, body, content_type: None }, now()).await?;
    Ok(())
}

async fn sequential(queue: &Queue, claimant: &Claimant) -> Result<(), Failure> {
    let mut times = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        for outcome in queue.submit(vec![submission()?], now()).await {
            outcome?;
        }
        let submitted = begin.elapsed();
        let jobs = queue.claim(&name()?, claimant, 1, now()).await?;
        let claimed = begin.elapsed();
        for job in &jobs {
            complete(queue, Attempt::of(job)).await?;
        }
        let all = begin.elapsed();
        for (times, time) in
            times.iter_mut().zip([submitted, claimed - submitted, all - claimed, all])
        {
            times.push(time);
        }
    }
    for (what, times) in ["submit", "claim", "complete", "all three"].iter().zip(&mut times) {
        times.sort_unstable();
        let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e6;
        println!("{what}: median {:.0} us, p90 {:.0} us, p99 {:.0} us", at(50), at(90), at(99));
    }
    Ok(())
}

/// Clients submit one job at a time and workers claim up to `slots`, until all are done.
async fn parallel(queue: &Queue, claimant: &Claimant, slots: usize) -> Result<(), Failure> {
    let begin = Instant::now();
    let done = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let queue = queue.clone();
        tasks.spawn(async move {
            for _ in 0..JOBS / CLIENTS {
                for outcome in queue.submit(vec![submission()?], now()).await {
                    outcome?;
                }
            }
            Ok::<(), Failure>(())
        });
    }
    for _ in 0..CLIENTS / slots {
        let (queue, claimant, done) = (queue.clone(), claimant.clone(), done.clone());
        tasks.spawn(async move {
            while done.load(Ordering::Relaxed) < JOBS {
                let jobs = queue.claim(&name()?, &claimant, slots, now()).await?;
                if jobs.is_empty() {
                    let wait = Duration::from_millis(100);
                    let _ = tokio::time::timeout(wait, queue.wait_work(&name()?)).await;
                }
                let each = jobs.iter().map(|job| complete(&queue, Attempt::of(job)));
                for outcome in futures_util::future::join_all(each).await {
                    outcome?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(())
        });
    }
    while let Some(outcome) = tasks.join_next().await {
        outcome??;
    }
    let rate = JOBS as f64 / begin.elapsed().as_secs_f64();
    println!("{CLIENTS} clients, {} workers of {slots} slots: {rate:.0} jobs/s", CLIENTS / slots);
    Ok(())
}
