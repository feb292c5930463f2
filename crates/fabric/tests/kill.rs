//! kill -9 in the middle of work: what was acknowledged is there, and everything fits together.
//!
//! Each test starts this very test binary again as a child that works until it is killed, and prints what was
//! acknowledged to it. The child ends with its parent, because its standard input ends then.

mod world;

use skein_fabric::{
    Attempt, Body, Completed, EmbeddedOptions, EmbeddedState, Failure, JobResult, Key, KeySpan, Op,
    Query, State, Txn,
};
use skein_model::{JobId, JobStateName, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use world::{World, echo, open, seconds};

const DIRECTORY: &str = "SKEIN_TEST_KILL_DIRECTORY";
const ROUND: &str = "SKEIN_TEST_KILL_ROUND";

/// A child that is killed, and waited for, however the test ends.
struct Victim(Child);

impl Victim {
    fn start(test: &str, directory: &Path, round: u32) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(DIRECTORY, directory)
            .env(ROUND, round.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// What it reports until it is killed after `count` reports.
    fn reports_until_killed(mut self, count: usize) -> Vec<String> {
        let mut lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
        let mut reports = Vec::new();
        let mut next = || {
            loop {
                // What was cut off in the middle of a line was not reported.
                let line = lines.next()?.ok()?;
                if let Some(report) = line.strip_prefix("ack ").and_then(|l| l.strip_suffix(" .")) {
                    return Some(report.to_owned());
                }
            }
        };
        while reports.len() < count {
            reports.push(next().expect("the child works until it is killed"));
        }
        self.0.kill().unwrap();
        reports.extend(std::iter::from_fn(next));
        reports
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In a child: where it works and in which round. Ends the process when the parent is gone.
fn child_work() -> Option<(std::path::PathBuf, u64)> {
    let directory = std::env::var_os(DIRECTORY)?;
    let round = std::env::var(ROUND).ok()?.parse().ok()?;
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(1);
    });
    Some((directory.into(), round))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn writes_for_ever() {
    let Some((directory, round)) = child_work() else { return };
    runtime().block_on(async {
        let state = EmbeddedState::open(&directory, EmbeddedOptions::default()).unwrap();
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..4 {
            let state = state.clone();
            writers.spawn(async move {
                for n in 0.. {
                    let name = format!("{round}/{writer}/{n:06}");
                    let large = if n % 50 == 0 { 100_000 } else { 20 };
                    let txn = Txn::new()
                        .then(Op::put(Key::new(format!("a/{name}")).unwrap(), vec![b'a'; large]))
                        .then(Op::put(Key::new(format!("b/{name}")).unwrap(), "b"));
                    let reply = state.txn(txn).await.unwrap();
                    println!("ack {name} {} .", reply.revision);
                }
            });
        }
        writers.join_all().await;
    });
}

#[test]
fn acknowledged_writes_survive_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged: BTreeMap<String, u64> = BTreeMap::new();
    for round in 0..5 {
        let victim = Victim::start("writes_for_ever", directory.path(), round);
        for report in victim.reports_until_killed(100 + 77 * round as usize) {
            let (name, revision) = report.split_once(' ').unwrap();
            acknowledged.insert(name.to_owned(), revision.parse().unwrap());
        }
        runtime().block_on(async {
            let state = EmbeddedState::open(directory.path(), EmbeddedOptions::default()).unwrap();
            for (name, revision) in &acknowledged {
                for half in ["a", "b"] {
                    let key = Key::new(format!("{half}/{name}")).unwrap();
                    let entry = state.get(&key).await.unwrap();
                    let entry = entry.unwrap_or_else(|| panic!("{key} was acknowledged"));
                    assert_eq!(entry.mod_revision.get(), *revision);
                }
            }
            // What was not acknowledged is there whole or not at all.
            let all = |root: &'static str| {
                let state = state.clone();
                async move {
                    let span = KeySpan::prefix(root).unwrap();
                    let query = Query::span(span).keys_only().limit(1_000_000);
                    let found = state.range(query).await.unwrap();
                    assert!(!found.more);
                    let names = found.entries.iter().map(|e| e.key.as_str()[2..].to_owned());
                    names.collect::<BTreeSet<String>>()
                }
            };
            assert_eq!(all("a/").await, all("b/").await);
            state.close().await;
        });
    }
}

#[test]
fn works_for_ever() {
    let Some((directory, round)) = child_work() else { return };
    runtime().block_on(async {
        let (store, queue) = open(&directory).await;
        let now = Timestamp::from_micros((1_000_000_000 + round * 100) * 1_000_000);
        let lease = store.grant(seconds(3600)).await.unwrap();
        queue.sweep(now).await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for submitter in 0..2u64 {
            let queue = queue.clone();
            tasks.spawn(async move {
                for n in 0u64.. {
                    let mut batch = Vec::new();
                    for m in 0..1 + n % 5 {
                        let mut job = world::submission(&echo(), "payload");
                        let random = u128::from(round * 1000 + submitter);
                        job.job.id = JobId::new(now + seconds(n), random << 16 | u128::from(m));
                        job.job.retry.attempts_max = 100;
                        job.job.retention = seconds(24 * 3600);
                        job.bound = 1_000_000;
                        if m == 1 {
                            job.job.token = Some(format!("{round}-{submitter}-{n}"));
                        }
                        if m == 2 {
                            job.payload = queue.body(vec![n as u8; 20_000].into()).await.unwrap();
                        }
                        batch.push(job);
                    }
                    for outcome in queue.submit(batch, now).await {
                        println!("ack accepted {} .", outcome.unwrap().id);
                    }
                }
            });
        }
        for worker in 0..3u64 {
            let queue = queue.clone();
            let machine = format!("w{worker}");
            tasks.spawn(async move {
                let node = "n1".parse().unwrap();
                let machine = machine.parse().unwrap();
                let claimant = skein_fabric::Claimant { machine, node, lease };
                for n in worker.. {
                    for job in queue.claim(&echo(), &claimant, 3, now).await.unwrap() {
                        let attempt = Attempt::of(&job);
                        if n % 7 == 0 {
                            let failure = Failure::Retryable { message: "again".to_owned() };
                            queue.fail(&attempt, failure, now, n).await.unwrap();
                            continue;
                        }
                        let body = Body::Inline("result".into());
                        let result = JobResult { status: 200, body, content_type: None };
                        let outcome = queue.complete(&attempt, result, now).await.unwrap();
                        assert_eq!(outcome, Completed::Recorded);
                        println!("ack completed {} .", job.id);
                    }
                    if n % 11 == 0 {
                        queue.sweep(now + seconds(60)).await.unwrap();
                    }
                }
            });
        }
        tasks.join_all().await;
    });
}

#[test]
fn accepted_jobs_survive_kill_9_and_end_once() {
    let directory = tempfile::tempdir().unwrap();
    let mut accepted: BTreeSet<JobId> = BTreeSet::new();
    let mut completed: BTreeSet<JobId> = BTreeSet::new();
    for round in 0..6 {
        let victim = Victim::start("works_for_ever", directory.path(), round);
        for report in victim.reports_until_killed(150 + 61 * round as usize) {
            let (what, id) = report.split_once(' ').unwrap();
            let id = id.parse().unwrap();
            match what {
                "accepted" => assert!(accepted.insert(id), "{id} is accepted once"),
                _ => assert!(completed.insert(id), "{id} is completed once"),
            }
        }
        runtime().block_on(async {
            let (store, queue) = open(directory.path()).await;
            assert_eq!(queue.audit().await.unwrap().faults, Vec::<String>::new());
            for id in &accepted {
                let job = queue.get(*id).await.expect("an accepted job is there");
                if completed.contains(id) {
                    assert_eq!(job.state.name(), JobStateName::Done, "{id}");
                }
            }
            drop(queue);
            store.close().await;
        });
    }
    runtime().block_on(finish(directory, &accepted));
}

/// Serves all that is left: each job that was ever accepted ends as done.
async fn finish(directory: tempfile::TempDir, accepted: &BTreeSet<JobId>) {
    let mut world = World::in_directory(directory).await;
    world.now = world.now + seconds(3600);
    loop {
        let swept = world.queue.sweep(world.now).await.unwrap();
        let jobs = world.claim(32).await;
        for job in &jobs {
            assert_eq!(world.complete(job, "late").await, Completed::Recorded);
        }
        if jobs.is_empty() && swept.promoted + swept.requeued == 0 {
            break;
        }
    }
    let depth = world.queue.depth(&echo()).await.unwrap();
    assert_eq!((depth.waiting, depth.delayed, depth.running), (0, 0, 0));
    for id in accepted {
        assert_eq!(world.get(*id).await.state.name(), JobStateName::Done);
    }
    world.sound().await;
}
