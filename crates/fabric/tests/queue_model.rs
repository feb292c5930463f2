//! The queue against a naive one in memory: the same random story, the same outcomes; and the audit finds nothing wrong.

mod world;

use proptest::prelude::*;
use skein_fabric::{
    Attempt, Body, Cancelled, Claimant, Completed, Failed, Failure, JobResult, LeaseId,
};
use skein_model::{JobId, JobStateName, Timestamp};
use std::time::Duration;
use world::{HOUR, World, echo, seconds, submission};

const WORKERS: usize = 3;
const ATTEMPTS_MAX: u32 = 3;
const RETENTION: Duration = Duration::from_secs(100);

#[derive(Debug, Clone)]
enum Step {
    /// So many jobs, with a deadline so far ahead.
    Submit {
        count: usize,
        deadline: Option<u64>,
    },
    Claim {
        worker: usize,
        max: usize,
    },
    /// The attempt is picked among all that ever were.
    Complete {
        pick: usize,
    },
    Fail {
        pick: usize,
        kind: u8,
        random: u64,
    },
    Cancel {
        pick: usize,
    },
    Sweep {
        later: u64,
    },
    /// The worker's lease ends.
    Die {
        worker: usize,
    },
    /// The worker's machine is reported lost.
    Lose {
        worker: usize,
    },
    Restart,
}

fn any_step() -> impl Strategy<Value = Step> {
    let (worker, pick) = (0..WORKERS, any::<usize>());
    prop_oneof![
        4 => (1..4usize, prop::option::of(0..80u64))
            .prop_map(|(count, deadline)| Step::Submit { count, deadline }),
        6 => (worker.clone(), 0..4usize).prop_map(|(worker, max)| Step::Claim { worker, max }),
        5 => pick.prop_map(|pick| Step::Complete { pick }),
        4 => (pick, 0..3u8, any::<u64>())
            .prop_map(|(pick, kind, random)| Step::Fail { pick, kind, random }),
        1 => pick.prop_map(|pick| Step::Cancel { pick }),
        4 => (0..60u64).prop_map(|later| Step::Sweep { later }),
        1 => worker.clone().prop_map(|worker| Step::Die { worker }),
        1 => worker.prop_map(|worker| Step::Lose { worker }),
        1 => Just(Step::Restart),
    ]
}

/// Where a job should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Due,
    Late(Timestamp),
    Running { worker: usize, lease: LeaseId },
    Ended { name: JobStateName, at: Timestamp },
    Forgotten,
}

#[derive(Debug)]
struct Job {
    id: JobId,
    place: Place,
    attempts: u32,
    deadline: Option<Timestamp>,
}

impl Job {
    fn name(&self) -> Option<JobStateName> {
        match self.place {
            Place::Due | Place::Late(_) => Some(JobStateName::Waiting),
            Place::Running { .. } => Some(JobStateName::Running),
            Place::Ended { name, .. } => Some(name),
            Place::Forgotten => None,
        }
    }

    fn end(&mut self, name: JobStateName, at: Timestamp) {
        self.place = Place::Ended { name, at };
    }

    fn lose(&mut self, now: Timestamp) {
        match self.attempts < ATTEMPTS_MAX {
            true => self.place = Place::Due,
            false => self.end(JobStateName::DeadLetter, now),
        }
    }
}

/// The real queue, and what should be true of it.
struct Story {
    world: World,
    leases: Vec<LeaseId>,
    /// In the order of acceptance.
    jobs: Vec<Job>,
    /// Each attempt ever made: job and number.
    attempts: Vec<(usize, u32)>,
}

impl Story {
    async fn begin() -> Self {
        let mut story =
            Self { world: World::new().await, leases: vec![], jobs: vec![], attempts: vec![] };
        story.new_leases().await;
        story
    }

    async fn new_leases(&mut self) {
        self.leases.clear();
        for _ in 0..WORKERS {
            self.leases.push(self.world.state.grant(HOUR).await.unwrap());
        }
    }

    fn machine(worker: usize) -> String {
        format!("w{worker}")
    }

    fn attempt(&self, pick: usize) -> Option<(usize, Attempt)> {
        let (index, number) = *self.attempts.get(pick % self.attempts.len().max(1))?;
        Some((index, Attempt { job: self.jobs[index].id, queue: echo(), number }))
    }

    async fn step(mut self, step: Step) -> Self {
        let now = self.world.now;
        match step {
            Step::Submit { count, deadline } => self.submit(count, deadline).await,
            Step::Claim { worker, max } => self.claim(worker, max).await,
            Step::Complete { pick } => self.complete(pick).await,
            Step::Fail { pick, kind, random } => self.fail(pick, kind, random).await,
            Step::Cancel { pick } => self.cancel(pick).await,
            Step::Sweep { later } => self.sweep(later).await,
            Step::Die { worker } => {
                self.world.state.revoke(self.leases[worker]).await.unwrap();
                self.leases[worker] = self.world.state.grant(HOUR).await.unwrap();
            }
            Step::Lose { worker } => {
                let machine = Self::machine(worker).parse().unwrap();
                self.world.queue.requeue_lost(&machine, "lost", now).await.unwrap();
                for job in &mut self.jobs {
                    if matches!(job.place, Place::Running { worker: own, .. } if own == worker) {
                        job.lose(now);
                    }
                }
            }
            Step::Restart => {
                self.world = self.world.restart().await;
                self.new_leases().await;
            }
        }
        self
    }

    async fn submit(&mut self, count: usize, deadline: Option<u64>) {
        let deadline = deadline.map(|ahead| self.world.now + seconds(ahead));
        let batch: Vec<_> = (0..count)
            .map(|_| {
                let mut new = submission(&echo(), "payload");
                new.job.retry.attempts_max = ATTEMPTS_MAX;
                new.job.retention = RETENTION;
                new.job.deadline = deadline;
                new
            })
            .collect();
        for submitted in self.world.queue.submit(batch, self.world.now).await {
            let id = submitted.unwrap().id;
            self.jobs.push(Job { id, place: Place::Due, attempts: 0, deadline });
        }
    }

    async fn claim(&mut self, worker: usize, max: usize) {
        let lease = self.leases[worker];
        let claimant = Claimant { lease, ..self.world.claimant(&Self::machine(worker)) };
        let now = self.world.now;
        let claimed = self.world.queue.claim(&echo(), &claimant, max, now).await.unwrap();
        let mut expect = Vec::new();
        for (index, job) in self.jobs.iter_mut().enumerate() {
            if expect.len() == max {
                break;
            }
            if job.place != Place::Due {
                continue;
            }
            if job.deadline.is_some_and(|deadline| deadline <= now) {
                job.end(JobStateName::DeadLetter, now);
                continue;
            }
            job.attempts += 1;
            job.place = Place::Running { worker, lease };
            self.attempts.push((index, job.attempts));
            expect.push((job.id, job.attempts));
        }
        let claimed: Vec<_> = claimed.iter().map(|job| (job.id, job.attempts)).collect();
        assert_eq!(claimed, expect);
    }

    async fn complete(&mut self, pick: usize) {
        let Some((index, attempt)) = self.attempt(pick) else { return };
        let body = Body::Inline("result".into());
        let result = JobResult { status: 200, body, content_type: None };
        let outcome = self.world.queue.complete(&attempt, result, self.world.now).await;
        let job = &mut self.jobs[index];
        let (current, attempts) = (job.attempts == attempt.number, job.attempts);
        match job.place {
            Place::Forgotten => assert_eq!(outcome.unwrap_err().code(), "JOB_NOT_FOUND"),
            Place::Running { .. } if current => {
                assert_eq!(outcome.unwrap(), Completed::Recorded);
                job.end(JobStateName::Done, self.world.now);
            }
            Place::Ended { name: JobStateName::Done, .. } if current => {
                assert_eq!(outcome.unwrap(), Completed::AlreadyRecorded);
            }
            _ => {
                let state = job.name().unwrap();
                assert_eq!(outcome.unwrap(), Completed::Stale { state, attempts });
            }
        }
    }

    async fn fail(&mut self, pick: usize, kind: u8, random: u64) {
        let Some((index, attempt)) = self.attempt(pick) else { return };
        let now = self.world.now;
        let message = "failed".to_owned();
        let failure = match kind {
            0 => Failure::Retryable { message },
            1 => Failure::Lost { message },
            _ => Failure::Rejected { status: 400, message },
        };
        let outcome = self.world.queue.fail(&attempt, failure, now, random).await;
        let job = &mut self.jobs[index];
        let current = matches!(job.place, Place::Running { .. }) && job.attempts == attempt.number;
        match (outcome, current) {
            (Err(error), _) => {
                assert_eq!((error.code(), job.place), ("JOB_NOT_FOUND", Place::Forgotten));
            }
            (Ok(Failed::Stale { state, attempts }), false) => {
                assert_eq!((Some(state), attempts), (job.name(), job.attempts));
            }
            (Ok(Failed::Requeued { not_before }), true) => {
                assert!(kind < 2 && job.attempts < ATTEMPTS_MAX);
                if kind == 0 {
                    assert!(not_before > now);
                    job.place = Place::Late(not_before);
                } else {
                    assert_eq!(not_before, Timestamp::ZERO);
                    job.place = Place::Due;
                }
            }
            (Ok(Failed::DeadLetter { .. }), true) => {
                assert!(kind == 2 || job.attempts == ATTEMPTS_MAX);
                job.end(JobStateName::DeadLetter, now);
            }
            (Ok(outcome), _) => panic!("{outcome:?} for {job:?}"),
        }
    }

    async fn cancel(&mut self, pick: usize) {
        if self.jobs.is_empty() {
            return;
        }
        let index = pick % self.jobs.len();
        let job = &mut self.jobs[index];
        let outcome = self.world.queue.cancel(job.id, self.world.now).await;
        match (job.place, job.name()) {
            (Place::Ended { name, .. }, _) => {
                assert_eq!(outcome.unwrap(), Cancelled::AlreadyEnded { state: name });
            }
            (_, Some(was)) => {
                assert_eq!(outcome.unwrap(), Cancelled::Cancelled { was });
                job.end(JobStateName::Cancelled, self.world.now);
            }
            (_, None) => assert_eq!(outcome.unwrap_err().code(), "JOB_NOT_FOUND"),
        }
    }

    async fn sweep(&mut self, later: u64) {
        self.world.now = self.world.now + seconds(later);
        let now = self.world.now;
        self.world.queue.sweep(now).await.unwrap();
        for job in &mut self.jobs {
            if matches!(job.place, Place::Running { lease, .. } if !self.leases.contains(&lease)) {
                job.lose(now);
            }
            let lives = !matches!(job.place, Place::Ended { .. } | Place::Forgotten);
            if lives && job.deadline.is_some_and(|deadline| deadline <= now) {
                job.end(JobStateName::DeadLetter, now);
            }
            match job.place {
                Place::Late(at) if at <= now => job.place = Place::Due,
                Place::Ended { at, .. } if at + RETENTION <= now => job.place = Place::Forgotten,
                _ => {}
            }
        }
    }

    async fn check(&self) {
        let depth = self.world.queue.depth(&echo()).await.unwrap();
        let number =
            |of: fn(&Place) -> bool| self.jobs.iter().filter(|job| of(&job.place)).count() as u64;
        assert_eq!(depth.waiting, number(|place| *place == Place::Due));
        assert_eq!(depth.delayed, number(|place| matches!(place, Place::Late(_))));
        assert_eq!(depth.running, number(|place| matches!(place, Place::Running { .. })));
        assert_eq!(depth.ended, number(|place| matches!(place, Place::Ended { .. })));
    }

    async fn end(self) {
        for job in &self.jobs {
            match self.world.queue.get(job.id).await {
                Ok(found) => {
                    assert_eq!(Some(found.state.name()), job.name());
                    assert_eq!(found.attempts, job.attempts);
                }
                Err(error) => {
                    assert_eq!((error.code(), job.place), ("JOB_NOT_FOUND", Place::Forgotten));
                }
            }
        }
        self.world.sound().await;
        self.world.store.close().await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn the_queue_does_what_the_model_does(steps in prop::collection::vec(any_step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut story = Story::begin().await;
            for step in steps {
                story = story.step(step).await;
                story.check().await;
            }
            story.end().await;
        });
    }
}
