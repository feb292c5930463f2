//! The work queue, story by story. After each, the audit finds nothing wrong.

mod world;

use skein_fabric::{
    Attempt, Body, Cancelled, Claimant, Completed, Failed, Failure, JobFilter, JobResult,
    QueueError,
};
use skein_model::{
    DeadLetterReason, INLINE_BODY_MAX, JobState, JobStateName, RetryPolicy, Timestamp,
};
use std::collections::BTreeSet;
use std::time::Duration;
use world::{HOUR, World, content, echo, id, name, seconds, submission};

/// Longest wait for anything that must happen.
const DEADLINE: Duration = Duration::from_secs(30);

fn retryable() -> Failure {
    Failure::Retryable { message: "502".to_owned() }
}

#[tokio::test]
async fn a_job_is_served_in_order_and_recorded_once() {
    let world = World::new().await;
    let mut ids = Vec::new();
    for payload in ["one", "two", "three"] {
        ids.push(world.accept(submission(&echo(), payload)).await);
    }
    let depth = world.queue.depth(&echo()).await.unwrap();
    assert_eq!((depth.waiting, depth.running, depth.oldest), (3, 0, Some(world.now)));
    let jobs = world.claim(2).await;
    assert_eq!(jobs.iter().map(|job| job.id).collect::<Vec<_>>(), ids[..2]);
    assert_eq!(jobs[0].attempts, 1);
    assert_eq!(content(world.queue.payload(&jobs[0]).await.unwrap()).await, b"one");
    assert!(world.queue.result(&jobs[0]).await.unwrap().is_none());

    assert_eq!(world.complete(&jobs[0], "result").await, Completed::Recorded);
    assert_eq!(world.complete(&jobs[0], "other").await, Completed::AlreadyRecorded);
    let done = world.get(ids[0]).await;
    assert!(matches!(&done.state, JobState::Done { status: 200, .. }));
    let result = world.queue.result(&done).await.unwrap().unwrap();
    assert_eq!(content(result).await, b"result");
    let depth = world.queue.depth(&echo()).await.unwrap();
    assert_eq!((depth.waiting, depth.running, depth.ended), (1, 1, 1));
    assert_eq!(world.sound().await, 3);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_with_its_length() {
    let world = World::new().await;
    let batch = (0..5).map(|_| {
        let mut submission = submission(&echo(), "x");
        submission.bound = 3;
        submission
    });
    let outcomes = world.queue.submit(batch.collect(), world.now).await;
    assert!(outcomes[..3].iter().all(Result::is_ok));
    for outcome in &outcomes[3..] {
        let error = outcome.as_ref().unwrap_err();
        assert_eq!(error.code(), "QUEUE_FULL");
        assert!(matches!(error, QueueError::Full { length: 3, bound: 3, .. }));
    }
    // Another queue has room, and room comes back when one is claimed.
    let mut other = submission(&name("render"), "x");
    other.bound = 1;
    world.accept(other).await;
    world.claim_one().await;
    let mut again = submission(&echo(), "x");
    again.bound = 3;
    world.accept(again).await;
    world.sound().await;
}

#[tokio::test]
async fn a_large_batch_is_reported_job_by_job() {
    let world = World::new().await;
    let mut batch: Vec<_> = (0..1000).map(|n| submission(&echo(), &n.to_string())).collect();
    batch[500].job.path = "no slash".to_owned();
    let ids: Vec<_> = batch.iter().map(|submission| submission.job.id).collect();
    let outcomes = world.queue.submit(batch, world.now).await;
    for (n, (outcome, id)) in outcomes.iter().zip(&ids).enumerate() {
        match outcome {
            Ok(submitted) => assert_eq!((submitted.id, submitted.repeated), (*id, false)),
            Err(error) => assert_eq!((n, error.code()), (500, "JOB_INVALID")),
        }
    }
    let mut served = Vec::new();
    loop {
        let jobs = world.claim(100).await;
        if jobs.is_empty() {
            break;
        }
        served.extend(jobs.iter().map(|job| job.id));
    }
    let accepted: Vec<_> = ids.iter().filter(|id| **id != ids[500]).copied().collect();
    assert_eq!(served, accepted, "first in, first out");
    assert_eq!(world.sound().await, 999);
}

#[tokio::test]
async fn a_token_makes_repetition_harmless() {
    let world = World::new().await;
    let with_token = |payload: &str| {
        let mut submission = submission(&echo(), payload);
        submission.job.token = Some("order-1".to_owned());
        submission
    };
    let first = world.accept(with_token("a")).await;
    let again = world.submit_one(with_token("a")).await.unwrap();
    assert_eq!((again.id, again.repeated), (first, true));
    let error = world.submit_one(with_token("b")).await.unwrap_err();
    assert_eq!(error.code(), "TOKEN_CONFLICT");
    assert!(matches!(error, QueueError::TokenConflict { job } if job == first));
    // Two at once, and in another service, and by id.
    let mut both = [with_token("c"), with_token("c")];
    both.iter_mut().for_each(|s| s.job.token = Some("order-2".to_owned()));
    let both = world.queue.submit(both.into(), world.now).await;
    let both: Vec<_> = both.into_iter().map(Result::unwrap).collect();
    assert_eq!((both[0].id, both[0].repeated, both[1].repeated), (both[1].id, false, true));
    let mut elsewhere = with_token("b");
    elsewhere.job.service = "render".parse().unwrap();
    assert!(!world.submit_one(elsewhere).await.unwrap().repeated);
    let mut same_id = with_token("a");
    same_id.job.id = first;
    assert!(world.submit_one(same_id).await.unwrap().repeated);
    let mut other_job = submission(&name("render"), "z");
    other_job.job.id = first;
    assert_eq!(world.submit_one(other_job).await.unwrap_err().code(), "JOB_ID_CONFLICT");
    for token in ["", "two words", &"x".repeat(129)] {
        let mut bad = submission(&echo(), "x");
        bad.job.token = Some(token.to_owned());
        assert_eq!(world.submit_one(bad).await.unwrap_err().code(), "JOB_INVALID");
    }
    assert_eq!(world.sound().await, 3);
    // Known after a restart, too.
    let world = world.restart().await;
    assert_eq!(world.submit_one(with_token("a")).await.unwrap().id, first);
}

#[tokio::test]
async fn a_failed_attempt_backs_off_and_ends_as_a_dead_letter() {
    let mut world = World::new().await;
    let id = world.accept(submission(&echo(), "x")).await;
    for attempt in 1..=2 {
        let job = world.claim_one().await;
        assert_eq!(job.attempts, attempt);
        let failed = world.queue.fail(&Attempt::of(&job), retryable(), world.now, u64::MAX).await;
        let Failed::Requeued { not_before } = failed.unwrap() else { panic!("a retry is left") };
        let wait = Duration::from_millis(200) * attempt;
        assert_eq!(not_before.since(world.now), wait);
        assert_eq!(world.queue.depth(&echo()).await.unwrap().delayed, 1);
        assert!(world.claim(1).await.is_empty(), "not before its time");
        let swept = world.queue.sweep(world.now).await.unwrap();
        assert_eq!((swept.promoted, swept.next), (0, Some(not_before)));
        world.now = not_before;
        assert_eq!(world.queue.sweep(world.now).await.unwrap().promoted, 1);
        world.sound().await;
    }
    let job = world.claim_one().await;
    let failed = world.queue.fail(&Attempt::of(&job), retryable(), world.now, 0).await.unwrap();
    let reason = DeadLetterReason::AttemptsUsedUp { last: "502".to_owned() };
    assert_eq!(failed, Failed::DeadLetter { reason: reason.clone() });
    let job = world.get(id).await;
    assert!(matches!(job.state, JobState::DeadLetter { reason: found, .. } if found == reason));
    assert_eq!(job.last_failure.as_deref(), Some("502"));

    let id = world.accept(submission(&echo(), "x")).await;
    let job = world.claim_one().await;
    let rejected = Failure::Rejected { status: 422, message: "no".to_owned() };
    let failed = world.queue.fail(&Attempt::of(&job), rejected, world.now, 0).await.unwrap();
    assert!(matches!(failed, Failed::DeadLetter { reason: DeadLetterReason::Rejected { .. } }));
    assert_eq!(world.get(id).await.state.name(), JobStateName::DeadLetter);
    world.sound().await;
}

#[tokio::test]
async fn only_the_attempt_in_progress_counts() {
    let world = World::new().await;
    world.accept(submission(&echo(), "x")).await;
    let first = world.claim_one().await;
    let lost = world.queue.requeue_lost(&"m1".parse().unwrap(), "killed", world.now).await;
    assert_eq!(lost.unwrap(), (1, 0));
    let stale = Completed::Stale { state: JobStateName::Waiting, attempts: 1 };
    assert_eq!(world.complete(&first, "late").await, stale);
    let second = world.claim_one().await;
    assert_eq!((second.id, second.attempts), (first.id, 2));
    let stale = Completed::Stale { state: JobStateName::Running, attempts: 2 };
    assert_eq!(world.complete(&first, "late").await, stale);
    let failed = world.queue.fail(&Attempt::of(&first), retryable(), world.now, 0).await.unwrap();
    assert_eq!(failed, Failed::Stale { state: JobStateName::Running, attempts: 2 });
    assert_eq!(world.complete(&second, "right").await, Completed::Recorded);
    let done = world.get(second.id).await;
    let result = world.queue.result(&done).await.unwrap().unwrap();
    assert_eq!(content(result).await, b"right");
    assert_eq!(done.last_failure.as_deref(), Some("killed"));
    world.sound().await;
}

#[tokio::test]
async fn a_job_that_was_lost_goes_first_and_is_lost_at_last() {
    let world = World::new().await;
    let mut fragile = submission(&echo(), "x");
    fragile.job.retry = RetryPolicy { attempts_max: 2, ..RetryPolicy::default() };
    let id = world.accept(fragile).await;
    let other = world.accept(submission(&echo(), "y")).await;
    let machine = "m1".parse().unwrap();
    assert_eq!(world.claim_one().await.id, id);
    assert_eq!(world.queue.requeue_lost(&machine, "killed", world.now).await.unwrap(), (1, 0));
    assert_eq!(world.claim_one().await.id, id, "it keeps its place");
    assert_eq!(world.queue.requeue_lost(&machine, "killed", world.now).await.unwrap(), (0, 1));
    let job = world.get(id).await;
    let JobState::DeadLetter { reason, .. } = job.state else { panic!("no attempt is left") };
    assert_eq!(reason.code(), "MACHINE_LOST");
    assert_eq!(world.claim_one().await.id, other);
    world.sound().await;
}

#[tokio::test]
async fn claims_fall_back_when_the_lease_ends() {
    let world = World::new().await;
    for _ in 0..3 {
        world.accept(submission(&echo(), "x")).await;
    }
    let lease = world.state.grant(HOUR).await.unwrap();
    let dying = Claimant { lease, ..world.claimant("m2") };
    let held = world.queue.claim(&echo(), &dying, 2, world.now).await.unwrap();
    let kept = world.claim_one().await;
    assert_eq!(held.len(), 2);
    assert_eq!(world.queue.sweep(world.now).await.unwrap().requeued, 0);
    world.state.revoke(lease).await.unwrap();
    let error = world.queue.claim(&echo(), &dying, 1, world.now).await.unwrap_err();
    assert_eq!(error.code(), "CLAIMANT_GONE");
    assert_eq!(world.queue.sweep(world.now).await.unwrap().requeued, 2);
    let again: Vec<_> = world.claim(5).await.iter().map(|job| job.id).collect();
    assert_eq!(again, held.iter().map(|job| job.id).collect::<Vec<_>>());
    assert_eq!(world.get(kept.id).await.attempts, 1);
    world.sound().await;
}

#[tokio::test]
async fn a_restart_loses_nothing_and_frees_the_claims() {
    let world = World::new().await;
    let waiting = world.accept(submission(&echo(), "payload")).await;
    let running = world.accept(submission(&echo(), "second")).await;
    let first = world.claim_one().await;
    assert_eq!(first.id, waiting);
    world.complete(&first, "done").await;
    assert_eq!(world.claim_one().await.id, running);
    let world = world.restart().await;
    assert_eq!(world.get(waiting).await.state.name(), JobStateName::Done);
    assert_eq!(world.get(running).await.state.name(), JobStateName::Running);
    assert_eq!(world.queue.sweep(world.now).await.unwrap().requeued, 1);
    let again = world.claim_one().await;
    assert_eq!((again.id, again.attempts), (running, 2));
    assert_eq!(content(world.queue.payload(&again).await.unwrap()).await, b"second");
    world.sound().await;
}

#[tokio::test]
async fn deadlines_end_jobs_wherever_they_are() {
    let mut world = World::new().await;
    let with_deadline = |payload: &str, at: Timestamp| {
        let mut submission = submission(&echo(), payload);
        submission.job.deadline = Some(at);
        submission
    };
    let soon = world.now + seconds(10);
    let running = world.accept(with_deadline("running", soon)).await;
    let job = world.claim_one().await;
    assert_eq!(job.id, running);
    let waiting = world.accept(with_deadline("waiting", soon)).await;
    let later = world.accept(with_deadline("later", soon + HOUR)).await;
    let served = world.accept(with_deadline("served", soon)).await;
    let swept = world.queue.sweep(world.now).await.unwrap();
    assert_eq!((swept.expired, swept.next), (0, Some(soon)));
    world.now = soon;
    // A claim does not hand out what is over, swept or not.
    let claimed = world.claim(1).await;
    assert_eq!(claimed[0].id, later);
    world.queue.sweep(world.now).await.unwrap();
    for id in [running, waiting, served] {
        let JobState::DeadLetter { reason, .. } = world.get(id).await.state else { panic!("{id}") };
        assert_eq!(reason, DeadLetterReason::DeadlineExceeded);
    }
    let stale = Completed::Stale { state: JobStateName::DeadLetter, attempts: 1 };
    assert_eq!(world.complete(&job, "late").await, stale);
    let far = with_deadline("far", world.now + 200 * 24 * HOUR);
    assert_eq!(world.submit_one(far).await.unwrap_err().code(), "JOB_INVALID");
    world.sound().await;
}

#[tokio::test]
async fn ended_jobs_are_forgotten_with_all_they_had() {
    let mut world = World::new().await;
    let large = vec![b'x'; INLINE_BODY_MAX + 1];
    let mut first = submission(&echo(), "");
    first.payload = world.queue.body(large.clone().into()).await.unwrap();
    first.job.token = Some("t".to_owned());
    let first = world.accept(first).await;
    let job = world.claim_one().await;
    let body = world.queue.body(vec![b'y'; INLINE_BODY_MAX + 1].into()).await.unwrap();
    let result = JobResult { status: 200, body, content_type: Some("image/png".to_owned()) };
    world.queue.complete(&Attempt::of(&job), result, world.now).await.unwrap();
    let mut second = submission(&echo(), "short");
    second.job.retention = 2 * HOUR;
    let second = world.accept(second).await;
    let job = world.claim_one().await;
    world.complete(&job, "short").await;

    let swept = world.queue.sweep_blobs().await.unwrap();
    assert_eq!((swept.kept, swept.removed), (2, 0));
    world.now = world.now + HOUR;
    assert_eq!(world.queue.sweep(world.now).await.unwrap().purged, 1);
    assert_eq!(world.queue.get(first).await.unwrap_err().code(), "JOB_NOT_FOUND");
    let swept = world.queue.sweep_blobs().await.unwrap();
    assert_eq!((swept.kept, swept.removed), (0, 2));
    assert_eq!(world.sound().await, 1);
    // The token is free again.
    let mut reused = submission(&echo(), "new");
    reused.job.token = Some("t".to_owned());
    let reused = world.submit_one(reused).await.unwrap();
    assert!(!reused.repeated);
    world.queue.cancel(reused.id, world.now).await.unwrap();
    world.now = world.now + 2 * HOUR;
    assert_eq!(world.queue.sweep(world.now).await.unwrap().purged, 2);
    assert_eq!(world.queue.get(second).await.unwrap_err().code(), "JOB_NOT_FOUND");
    assert_eq!(world.sound().await, 0);
    let left = world.state.range(skein_fabric::Query::span(skein_fabric::KeySpan::all())).await;
    let left: Vec<_> = left.unwrap().entries.into_iter().map(|e| e.key.to_string()).collect();
    assert_eq!(left.len(), 2, "only a count and a claimant stay: {left:?}");
}

#[tokio::test]
async fn large_bodies_stream_through_blobs() {
    let world = World::new().await;
    let source = tokio::io::AsyncReadExt::take(tokio::io::repeat(7), 3_000_000);
    let payload = world.queue.body_from(source).await.unwrap();
    assert!(matches!(payload, Body::Blob(_)));
    let mut job = submission(&echo(), "");
    job.payload = payload;
    let id = world.accept(job).await;
    assert_eq!(world.queue.sweep_blobs().await.unwrap().removed, 0);
    let job = world.get(id).await;
    assert_eq!(job.payload.bytes, 3_000_000);
    assert_eq!(content(world.queue.payload(&job).await.unwrap()).await, vec![7; 3_000_000]);
    // A short one is kept beside the record, and its blob goes with the next sweep.
    let short = tokio::io::AsyncReadExt::take(tokio::io::repeat(7), 100);
    assert!(matches!(world.queue.body_from(short).await.unwrap(), Body::Inline(_)));
    assert_eq!(world.queue.sweep_blobs().await.unwrap().removed, 1);
    let long = tokio::io::AsyncReadExt::take(tokio::io::repeat(7), skein_model::PAYLOAD_MAX + 1);
    let error = world.queue.body_from(long).await.unwrap_err();
    assert_eq!(error.code(), "PAYLOAD_TOO_LARGE");
    world.sound().await;
}

#[tokio::test]
async fn a_withdrawn_job_stays_withdrawn() {
    let world = World::new().await;
    let waiting = world.accept(submission(&echo(), "x")).await;
    let cancelled = world.queue.cancel(waiting, world.now).await.unwrap();
    assert_eq!(cancelled, Cancelled::Cancelled { was: JobStateName::Waiting });
    assert!(world.claim(1).await.is_empty());
    let running = world.accept(submission(&echo(), "x")).await;
    let job = world.claim_one().await;
    let cancelled = world.queue.cancel(running, world.now).await.unwrap();
    assert_eq!(cancelled, Cancelled::Cancelled { was: JobStateName::Running });
    let stale = Completed::Stale { state: JobStateName::Cancelled, attempts: 1 };
    assert_eq!(world.complete(&job, "late").await, stale);
    let again = world.queue.cancel(running, world.now).await.unwrap();
    assert_eq!(again, Cancelled::AlreadyEnded { state: JobStateName::Cancelled });
    assert_eq!(world.queue.cancel(id(), world.now).await.unwrap_err().code(), "JOB_NOT_FOUND");
    world.sound().await;
}

#[tokio::test]
async fn the_jobs_of_a_removed_service_are_given_up() {
    let mut world = World::new().await;
    let first = world.accept(submission(&echo(), "x")).await;
    world.claim_one().await;
    let second = world.accept(submission(&echo(), "x")).await;
    let other = world.accept(submission(&name("render"), "x")).await;
    let removed_at = world.now;
    world.now = removed_at + seconds(1);
    let newer = world.accept(submission(&echo(), "x")).await;
    assert_eq!(world.queue.remove_service(&echo(), removed_at).await.unwrap(), 2);
    for id in [first, second] {
        let JobState::DeadLetter { reason, .. } = world.get(id).await.state else { panic!("{id}") };
        assert_eq!(reason, DeadLetterReason::ServiceRemoved);
    }
    for id in [other, newer] {
        assert_eq!(world.get(id).await.state.name(), JobStateName::Waiting, "{id}");
    }
    world.sound().await;
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let world = World::new().await;
    let mut ids = Vec::new();
    for n in 0..10 {
        let service = if n % 2 == 0 { echo() } else { name("render") };
        ids.push(world.accept(submission(&service, "x")).await);
    }
    world.claim_one().await;
    let all = JobFilter::default();
    let mut found = Vec::new();
    let mut cursor = None;
    loop {
        let page = world.queue.list(&all, cursor.as_ref(), 3).await.unwrap();
        assert!(page.jobs.len() <= 3);
        found.extend(page.jobs.into_iter().map(|job| job.id));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(found.iter().collect::<BTreeSet<_>>(), ids.iter().collect());
    assert_eq!(found.len(), 10);
    let of_echo = JobFilter {
        project: Some(echo().project),
        service: Some(echo().service),
        state: Some(JobStateName::Waiting),
    };
    let page = world.queue.list(&of_echo, None, 100).await.unwrap();
    let expect: Vec<_> = ids.iter().step_by(2).skip(1).rev().copied().collect();
    assert_eq!(page.jobs.iter().map(|job| job.id).collect::<Vec<_>>(), expect);
    assert_eq!(world.queue.queues().await.unwrap(), [echo(), name("render")]);
    let bad = JobFilter { service: Some(echo().service), ..JobFilter::default() };
    assert_eq!(world.queue.list(&bad, None, 1).await.unwrap_err().code(), "JOB_INVALID");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_wake_when_their_job_ends() {
    const JOBS: usize = 200;
    let world = World::new().await;
    let mut waiters = tokio::task::JoinSet::new();
    for n in 0..JOBS {
        let id = world.accept(submission(&echo(), &n.to_string())).await;
        // Two for each.
        for _ in 0..2 {
            let queue = world.queue.clone();
            waiters.spawn(async move { queue.wait(id, DEADLINE).await.unwrap() });
        }
    }
    loop {
        let jobs = world.claim(32).await;
        if jobs.is_empty() {
            break;
        }
        for job in jobs {
            world.complete(&job, "r").await;
        }
    }
    for job in waiters.join_all().await {
        assert_eq!(job.state.name(), JobStateName::Done);
    }
    // One that does not end is returned as it stands; one that has ended at once.
    let id = world.accept(submission(&echo(), "x")).await;
    let job = world.queue.wait(id, Duration::from_millis(10)).await.unwrap();
    assert_eq!(job.state.name(), JobStateName::Waiting);
    assert_eq!(world.queue.wait(world::id(), HOUR).await.unwrap_err().code(), "JOB_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_wakes_workers_and_all_of_it_is_done() {
    const JOBS: usize = 300;
    let world = World::new().await;
    let (sender, mut served) = tokio::sync::mpsc::channel(JOBS);
    let mut workers = tokio::task::JoinSet::new();
    for n in 0..20 {
        let (queue, claimant) = (world.queue.clone(), world.claimant(&format!("w{n}")));
        let (now, sender) = (world.now, sender.clone());
        workers.spawn(async move {
            loop {
                queue.wait_work(&echo()).await.unwrap();
                for job in queue.claim(&echo(), &claimant, 2, now).await.unwrap() {
                    let body = Body::empty();
                    let result = JobResult { status: 204, body, content_type: None };
                    queue.complete(&Attempt::of(&job), result, now).await.unwrap();
                    sender.send(job.id).await.unwrap();
                }
            }
        });
    }
    let mut ids = BTreeSet::new();
    for n in 0..JOBS {
        ids.insert(world.accept(submission(&echo(), &n.to_string())).await);
    }
    let mut seen = BTreeSet::new();
    for _ in 0..JOBS {
        let id = tokio::time::timeout(DEADLINE, served.recv()).await.expect("all are served");
        assert!(seen.insert(id.unwrap()), "each once");
    }
    assert_eq!(seen, ids);
    workers.shutdown().await;
    world.sound().await;
}

#[tokio::test]
async fn two_engines_share_the_queues() {
    // As two servers over one cluster's state would: each with knowledge that the other makes void.
    let world = World::new().await;
    let blobs = skein_fabric::BlobStore::open(&world.directory.path().join("blobs2")).unwrap();
    let other = skein_fabric::Queue::open(world.state.clone(), blobs).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for (n, queue) in [world.queue.clone(), other].into_iter().cycle().take(8).enumerate() {
        let (now, claimant) = (world.now, world.claimant(&format!("w{n}")));
        tasks.spawn(async move {
            let mut done = Vec::new();
            for round in 0..25 {
                let mut job = submission(&echo(), &round.to_string());
                job.job.token = Some(format!("{n}-{round}"));
                queue.submit(vec![job], now).await.pop().unwrap().unwrap();
                for job in queue.claim(&echo(), &claimant, 2, now).await.unwrap() {
                    let body = Body::empty();
                    let result = JobResult { status: 200, body, content_type: None };
                    let outcome = queue.complete(&Attempt::of(&job), result, now).await.unwrap();
                    assert_eq!(outcome, Completed::Recorded);
                    done.push(job.id);
                }
            }
            done
        });
    }
    let done = tasks.join_all().await.concat();
    assert_eq!(done.iter().collect::<BTreeSet<_>>().len(), done.len(), "no job is served twice");
    let depth = world.queue.depth(&echo()).await.unwrap();
    assert_eq!(depth.waiting + done.len() as u64, 200);
    assert_eq!((depth.running, depth.ended), (0, done.len() as u64));
    assert_eq!(world.sound().await, 200);
}

#[tokio::test]
async fn a_wrong_count_is_made_good_at_opening() {
    let world = World::new().await;
    for _ in 0..3 {
        world.accept(submission(&echo(), "x")).await;
    }
    let key = skein_fabric::Key::new("q/count/p/echo").unwrap();
    world.state.put(key, r#"{"next":0,"waiting":9}"#.into()).await.unwrap();
    assert_eq!(world.queue.audit().await.unwrap().faults.len(), 1);
    let world = world.restart().await;
    assert_eq!(world.queue.depth(&echo()).await.unwrap().waiting, 3);
    world.accept(submission(&echo(), "x")).await;
    assert_eq!(world.sound().await, 4);
}
