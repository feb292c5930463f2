//! What each request makes of a queue: pure functions of what is known of it, the request and the time.
//!
//! ```text
//!  (new) ─▶ due ◀─────────────── promote ─── late
//!            │ claim                           ▲
//!            ▼                                 │ fail: retry left (after a loss: due at once)
//!         running ─────────────────────────────┘
//!            │ complete, fail, cancel, expire, remove
//!            ▼
//!          ended ─▶ purge ─▶ (gone)
//! ```
//! `due` and `late` are the two places of a waiting job. Each place has an index key of its own and a number in the
//! count; [`leave`] and [`enter`] are the only functions that touch them.

use super::keys::{self, QueueName, Side};
use super::lane::{Draft, Lane, WINDOW_MAX};
use super::stored::{Run, StoredJob, TokenUse, encode};
use super::{Cancelled, Completed, Failed, Failure, QueueError, Submitted};
use crate::blob::blob_reference;
use crate::state::LeaseId;
use bytes::Bytes;
use skein_model::{
    BodyRef, Claim, DeadLetterReason, JobId, JobRecord, JobState, NewJob, RetryPolicy, Timestamp,
};
use std::time::Duration;

/// Longest text of a failure that is kept, bytes: enough for the beginning of an answer.
const FAILURE_BYTES_MAX: usize = 1024;

/// Operations and compares that any change of one job fits in.
const CHANGE_OPS: usize = 12;

/// Bytes that any change of one job fits in, without its body: the record with its longest path and texts, twice,
/// and a dozen keys.
const CHANGE_BYTES: usize = 16 * 1024;

/// A job to accept.
#[derive(Debug)]
pub(super) struct Submit {
    pub(super) job: NewJob,
    pub(super) payload: BodyRef,
    /// The payload, when it is kept beside the record.
    pub(super) inline: Option<Bytes>,
    /// SHA-256 of what the token stands for, when there is one.
    pub(super) content: Option<String>,
    pub(super) bound: u32,
}

/// A claim of up to `max` jobs.
#[derive(Debug)]
pub(super) struct Claiming {
    pub(super) claim: Claim,
    pub(super) lease: LeaseId,
    pub(super) max: usize,
    /// What an earlier try claimed, if it happened: job and attempt.
    pub(super) tried: Vec<(JobId, u32)>,
}

/// The end of an attempt with a result.
#[derive(Debug)]
pub(super) struct Completing {
    pub(super) id: JobId,
    pub(super) attempt: u32,
    pub(super) status: u16,
    pub(super) result: BodyRef,
    /// The result, when it is kept beside the record.
    pub(super) inline: Option<Bytes>,
}

/// What is to be done with a queue.
#[derive(Debug)]
pub(super) enum Action {
    Submit(Box<Submit>),
    Claim(Claiming),
    Complete(Completing),
    Fail {
        id: JobId,
        attempt: u32,
        failure: Failure,
        random: u64,
    },
    Cancel {
        id: JobId,
    },
    /// The deadline has passed.
    Expire {
        id: JobId,
    },
    /// The back-off has passed.
    Promote {
        id: JobId,
    },
    /// The retention has passed.
    Purge {
        id: JobId,
    },
    /// The service is gone.
    Remove {
        id: JobId,
    },
}

/// What was done.
#[derive(Debug)]
pub(super) enum Reply {
    Submitted(Submitted),
    Claimed(Vec<JobRecord>),
    Completed(Completed),
    Failed(Failed),
    Cancelled(Cancelled),
    /// Whether there was anything to do.
    Swept(bool),
}

/// Outcome of planning one request.
#[derive(Debug)]
pub(super) enum Step {
    /// To be answered with this once the transaction has happened.
    Answer(Result<Reply, QueueError>),
    /// The transaction is full, or more must be read: in the next one.
    Later,
}

/// What must be read before an action can be planned.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Need {
    Job(JobId),
    Token(String),
    /// The first waiting jobs.
    Window,
}

impl Action {
    /// What is still unknown to `lane` and needed, if requests before this one claim `claimed` jobs.
    pub(super) fn needs(&self, lane: &Lane, claimed: usize, careful: bool) -> Vec<Need> {
        let unknown = |id: &JobId| !lane.jobs.contains_key(id);
        match self {
            Self::Submit(submit) => {
                let mut needs = Vec::new();
                // Usually a new job is new, and a comparison says so as well as a reading.
                if careful {
                    needs.extend(unknown(&submit.job.id).then_some(Need::Job(submit.job.id)));
                    let token = submit.job.token.iter();
                    let unknown = token.filter(|token| !lane.tokens.contains_key(*token));
                    needs.extend(unknown.cloned().map(Need::Token));
                }
                needs
            }
            Self::Claim(claiming) => {
                let tried = claiming.tried.iter().map(|(id, _)| id);
                let first = lane.window.values().skip(claimed).take(claiming.max);
                let mut needs: Vec<Need> =
                    tried.chain(first).filter(|id| unknown(id)).copied().map(Need::Job).collect();
                if lane.window.len() < (claimed + claiming.max).min(WINDOW_MAX) && !lane.whole {
                    needs.push(Need::Window);
                }
                needs
            }
            Self::Complete(Completing { id, .. })
            | Self::Fail { id, .. }
            | Self::Cancel { id }
            | Self::Expire { id }
            | Self::Promote { id }
            | Self::Purge { id }
            | Self::Remove { id } => {
                if unknown(id) {
                    vec![Need::Job(*id)]
                } else {
                    Vec::new()
                }
            }
        }
    }

    /// How many jobs it may claim.
    pub(super) fn claims(&self) -> usize {
        match self {
            Self::Claim(claiming) => claiming.max,
            _ => 0,
        }
    }

    fn body_bytes(&self) -> usize {
        match self {
            Self::Submit(submit) => submit.inline.as_ref().map_or(0, Bytes::len),
            Self::Complete(completing) => completing.inline.as_ref().map_or(0, Bytes::len),
            Self::Claim(_)
            | Self::Fail { .. }
            | Self::Cancel { .. }
            | Self::Expire { .. }
            | Self::Promote { .. }
            | Self::Purge { .. }
            | Self::Remove { .. } => 0,
        }
    }

    /// Plans it: changes `lane` and `draft` as if it had happened.
    pub(super) fn step(
        &mut self,
        lane: &mut Lane,
        draft: &mut Draft,
        queue: &QueueName,
        now: Timestamp,
    ) -> Step {
        if draft.room() < CHANGE_OPS || draft.room_bytes() < CHANGE_BYTES + self.body_bytes() {
            return Step::Later;
        }
        draft.looks_at(queue);
        let mut work = Work { lane, draft, queue, now };
        match self {
            Self::Submit(submit) => work.submit(submit),
            Self::Claim(claiming) => work.claim(claiming),
            Self::Complete(completing) => work.complete(completing),
            Self::Fail { id, attempt, failure, random } => {
                work.fail(*id, *attempt, failure, *random)
            }
            Self::Cancel { id } => work.cancel(*id),
            Self::Expire { id } => work.expire(*id),
            Self::Promote { id } => work.promote(*id),
            Self::Purge { id } => work.purge(*id),
            Self::Remove { id } => work.remove(*id),
        }
    }
}

/// One request at work on one queue.
struct Work<'a> {
    lane: &'a mut Lane,
    draft: &'a mut Draft,
    queue: &'a QueueName,
    now: Timestamp,
}

fn answer(reply: Reply) -> Step {
    Step::Answer(Ok(reply))
}

impl Work<'_> {
    fn submit(&mut self, submit: &Submit) -> Step {
        let id = submit.job.id;
        if let Some(Some(found)) = self.lane.jobs.get(&id) {
            let job = &found.job;
            let same = found.queue() == *self.queue
                && (&job.path, &job.token) == (&submit.job.path, &submit.job.token)
                && job.payload == submit.payload;
            return Step::Answer(match same {
                true => Ok(Reply::Submitted(Submitted { id, repeated: true })),
                false => Err(QueueError::IdConflict { job: id }),
            });
        }
        let used = submit.job.token.as_ref().and_then(|token| self.lane.tokens.get(token));
        if let Some(Some(used)) = used {
            return Step::Answer(match submit.content.as_ref() == Some(&used.content) {
                true => Ok(Reply::Submitted(Submitted { id: used.id, repeated: true })),
                false => Err(QueueError::TokenConflict { job: used.id }),
            });
        }
        let length = self.lane.count.length();
        if length >= u64::from(submit.bound) {
            let queue = self.queue.clone();
            return Step::Answer(Err(QueueError::Full { queue, length, bound: submit.bound }));
        }
        if self.draft.misses(&keys::job(id)) {
            // Another queue takes this id in this very transaction; afterwards it is found to be taken.
            return Step::Later;
        }
        self.accept(submit);
        answer(Reply::Submitted(Submitted { id, repeated: false }))
    }

    fn accept(&mut self, submit: &Submit) {
        let job = &submit.job;
        let id = job.id;
        self.draft.must_miss(keys::job(id));
        self.keep_body(id, Side::In, &submit.payload, submit.inline.as_ref());
        self.draft.put(keys::all(self.queue, id), Bytes::new());
        if let Some(deadline) = job.deadline {
            self.draft.put(keys::due(deadline, self.queue, id), Bytes::new());
        }
        if let (Some(token), Some(content)) = (&job.token, &submit.content) {
            let used = TokenUse { id, content: content.clone() };
            let key = keys::token(self.queue, token);
            self.draft.must_miss(key.clone());
            self.draft.put(key, encode(&used));
            self.lane.tokens.insert(token.clone(), Some(used));
        }
        let sequence = self.lane.count.next;
        self.lane.count.next += 1;
        let job = JobRecord {
            id,
            project: job.project.clone(),
            service: job.service.clone(),
            token: job.token.clone(),
            path: job.path.clone(),
            payload: submit.payload.clone(),
            submitted_at: self.now,
            deadline: job.deadline,
            retry: job.retry.clone(),
            retention: job.retention,
            attempts: 0,
            last_failure: None,
            state: JobState::Waiting { not_before: Timestamp::ZERO },
        };
        self.enter(StoredJob { sequence, job });
    }

    fn keep_body(&mut self, id: JobId, side: Side, body: &BodyRef, inline: Option<&Bytes>) {
        if let Some(blob) = body.blob {
            let reference = blob_reference(blob, &keys::blob_owner(id, side));
            self.draft.put(reference.expect("a job's references are short"), Bytes::new());
        } else if let Some(inline) = inline.filter(|inline| !inline.is_empty()) {
            self.draft.put(keys::body(id, side), inline.clone());
        }
    }

    fn forget_body(&mut self, id: JobId, side: Side, body: &BodyRef) {
        if let Some(blob) = body.blob {
            let reference = blob_reference(blob, &keys::blob_owner(id, side));
            self.draft.delete(reference.expect("a job's references are short"));
        } else if body.bytes > 0 {
            self.draft.delete(keys::body(id, side));
        }
    }

    fn claim(&mut self, claiming: &mut Claiming) -> Step {
        let Claiming { claim, lease, max, tried } = claiming;
        self.draft.must_exist(keys::claimant(*lease));
        let own = JobState::Running { claim: claim.clone() };
        let happened = |(id, attempt): &(JobId, u32)| {
            let found = self.lane.jobs.get(id).and_then(Option::as_ref)?;
            (found.job.attempts == *attempt && found.job.state == own).then(|| found.job.clone())
        };
        let mut taken: Vec<JobRecord> = tried.iter().filter_map(happened).collect();
        let mut all_seen = false;
        while taken.len() < *max {
            if self.draft.room() < CHANGE_OPS || self.draft.room_bytes() < CHANGE_BYTES {
                break;
            }
            let Some((_, id)) = self.lane.window.first_key_value() else {
                all_seen = self.lane.whole;
                break;
            };
            let Some(found) = self.lane.jobs.get(id) else { break };
            let Some(mut stored) = found.clone() else {
                // The index names a job that is gone: nothing to serve, and the audit reports it.
                self.lane.window.pop_first();
                continue;
            };
            if stored.job.deadline.is_some_and(|deadline| deadline <= self.now) {
                self.give_up(stored, DeadLetterReason::DeadlineExceeded);
                continue;
            }
            self.leave(&stored);
            stored.job.attempts += 1;
            stored.job.state = own.clone();
            taken.push(stored.job.clone());
            self.enter(stored);
        }
        if taken.is_empty() && *max > 0 && !all_seen {
            return Step::Later;
        }
        *tried = taken.iter().map(|job| (job.id, job.attempts)).collect();
        answer(Reply::Claimed(taken))
    }

    /// The job, if it is one of this queue.
    fn find(&self, id: JobId) -> Result<StoredJob, QueueError> {
        let found = self.lane.jobs.get(&id).and_then(Option::as_ref);
        let own = found.filter(|stored| stored.queue() == *self.queue);
        own.cloned().ok_or(QueueError::NotFound { job: id })
    }

    fn complete(&mut self, completing: &Completing) -> Step {
        let Completing { id, attempt, status, result, inline } = completing;
        let mut stored = match self.find(*id) {
            Ok(stored) => stored,
            Err(error) => return Step::Answer(Err(error)),
        };
        let (attempts, state) = (stored.job.attempts, stored.job.state.name());
        let claim = match &stored.job.state {
            JobState::Running { claim } if attempts == *attempt => claim.clone(),
            JobState::Done { .. } if attempts == *attempt => {
                return answer(Reply::Completed(Completed::AlreadyRecorded));
            }
            JobState::Running { .. }
            | JobState::Done { .. }
            | JobState::Waiting { .. }
            | JobState::DeadLetter { .. }
            | JobState::Cancelled { .. } => {
                return answer(Reply::Completed(Completed::Stale { state, attempts }));
            }
        };
        self.leave(&stored);
        self.keep_body(*id, Side::Out, result, inline.as_ref());
        stored.job.state =
            JobState::Done { at: self.now, status: *status, result: result.clone(), claim };
        self.enter(stored);
        answer(Reply::Completed(Completed::Recorded))
    }

    fn fail(&mut self, id: JobId, attempt: u32, failure: &Failure, random: u64) -> Step {
        let mut stored = match self.find(id) {
            Ok(stored) => stored,
            Err(error) => return Step::Answer(Err(error)),
        };
        let (attempts, state) = (stored.job.attempts, stored.job.state.name());
        let current = matches!(stored.job.state, JobState::Running { .. }) && attempts == attempt;
        if !current {
            return answer(Reply::Failed(Failed::Stale { state, attempts }));
        }
        let text = cut(failure.message());
        stored.job.last_failure = Some(text.clone());
        let used_up = attempts >= stored.job.retry.attempts_max;
        let reason = match failure {
            Failure::Rejected { status, .. } => {
                DeadLetterReason::Rejected { status: *status, message: text }
            }
            Failure::Retryable { .. } if used_up => DeadLetterReason::AttemptsUsedUp { last: text },
            Failure::Lost { .. } if used_up => DeadLetterReason::Lost { last: text },
            Failure::Retryable { .. } => {
                let wait = back_off(&stored.job.retry, attempts, random);
                return self.requeue(stored, wait);
            }
            Failure::Lost { .. } => return self.requeue(stored, Duration::ZERO),
        };
        self.give_up(stored, reason.clone());
        answer(Reply::Failed(Failed::DeadLetter { reason }))
    }

    fn requeue(&mut self, mut stored: StoredJob, wait: Duration) -> Step {
        let not_before = if wait.is_zero() { Timestamp::ZERO } else { self.now + wait };
        self.leave(&stored);
        stored.job.state = JobState::Waiting { not_before };
        self.enter(stored);
        answer(Reply::Failed(Failed::Requeued { not_before }))
    }

    /// Ends a job without a result.
    fn give_up(&mut self, mut stored: StoredJob, reason: DeadLetterReason) {
        self.leave(&stored);
        stored.job.state = JobState::DeadLetter { at: self.now, reason };
        self.enter(stored);
    }

    fn cancel(&mut self, id: JobId) -> Step {
        let mut stored = match self.find(id) {
            Ok(stored) => stored,
            Err(error) => return Step::Answer(Err(error)),
        };
        let state = stored.job.state.name();
        if stored.job.state.ended_at().is_some() {
            return answer(Reply::Cancelled(Cancelled::AlreadyEnded { state }));
        }
        self.leave(&stored);
        stored.job.state = JobState::Cancelled { at: self.now };
        self.enter(stored);
        answer(Reply::Cancelled(Cancelled::Cancelled { was: state }))
    }

    /// What a sweep acts on may have changed since it was listed; then there is nothing to do.
    fn if_still(
        &mut self,
        id: JobId,
        holds: impl FnOnce(&JobRecord) -> bool,
        change: impl FnOnce(&mut Self, StoredJob),
    ) -> Step {
        match self.find(id) {
            Ok(stored) if holds(&stored.job) => {
                change(self, stored);
                answer(Reply::Swept(true))
            }
            Ok(_) | Err(_) => answer(Reply::Swept(false)),
        }
    }

    fn expire(&mut self, id: JobId) -> Step {
        let now = self.now;
        let holds = |job: &JobRecord| {
            job.state.ended_at().is_none() && job.deadline.is_some_and(|deadline| deadline <= now)
        };
        self.if_still(id, holds, |work, stored| {
            work.give_up(stored, DeadLetterReason::DeadlineExceeded);
        })
    }

    fn promote(&mut self, id: JobId) -> Step {
        let now = self.now;
        let holds = |job: &JobRecord| {
            let late = |at: Timestamp| at > Timestamp::ZERO && at <= now;
            matches!(job.state, JobState::Waiting { not_before } if late(not_before))
        };
        self.if_still(id, holds, |work, mut stored| {
            work.leave(&stored);
            stored.job.state = JobState::Waiting { not_before: Timestamp::ZERO };
            work.enter(stored);
        })
    }

    fn remove(&mut self, id: JobId) -> Step {
        let removed_at = self.now;
        let holds =
            |job: &JobRecord| job.submitted_at <= removed_at && job.state.ended_at().is_none();
        self.if_still(id, holds, |work, stored| {
            work.give_up(stored, DeadLetterReason::ServiceRemoved);
        })
    }

    fn purge(&mut self, id: JobId) -> Step {
        let now = self.now;
        let holds =
            |job: &JobRecord| job.state.ended_at().is_some_and(|at| at + job.retention <= now);
        self.if_still(id, holds, |work, stored| {
            work.leave(&stored);
            work.forget_body(id, Side::In, &stored.job.payload);
            if let JobState::Done { result, .. } = &stored.job.state {
                work.forget_body(id, Side::Out, result);
            }
            if let Some(token) = &stored.job.token {
                work.draft.delete(keys::token(work.queue, token));
                work.lane.tokens.remove(token);
            }
            work.draft.delete(keys::all(work.queue, id));
            work.draft.delete(keys::job(id));
            work.lane.jobs.remove(&id);
        })
    }

    /// Takes a job out of the place where it is.
    fn leave(&mut self, stored: &StoredJob) {
        self.draft.changes(self.queue);
        let job = &stored.job;
        let count = &mut self.lane.count;
        let (key, number) = match &job.state {
            JobState::Waiting { not_before: Timestamp::ZERO } => {
                self.lane.window.remove(&stored.sequence);
                (keys::waiting(self.queue, stored.sequence), &mut count.waiting)
            }
            JobState::Waiting { not_before } => {
                (keys::late(*not_before, self.queue, job.id), &mut count.late)
            }
            JobState::Running { .. } => (keys::running(self.queue, job.id), &mut count.running),
            JobState::Done { at, .. }
            | JobState::DeadLetter { at, .. }
            | JobState::Cancelled { at } => {
                (keys::ended(*at + job.retention, self.queue, job.id), &mut count.ended)
            }
        };
        // Below zero only if the count was damaged; then it is made good at the next opening.
        *number = number.saturating_sub(1);
        self.draft.delete(key);
    }

    /// Puts a job into the place that its state says, and writes it.
    fn enter(&mut self, stored: StoredJob) {
        self.draft.changes(self.queue);
        let job = &stored.job;
        match &job.state {
            JobState::Waiting { not_before: Timestamp::ZERO } => {
                self.lane.begins_to_wait(stored.sequence, job.id);
                self.lane.count.waiting += 1;
                let key = keys::waiting(self.queue, stored.sequence);
                self.draft.put(key, job.id.to_string());
            }
            JobState::Waiting { not_before } => {
                self.lane.count.late += 1;
                self.draft.put(keys::late(*not_before, self.queue, job.id), Bytes::new());
            }
            JobState::Running { claim } => {
                self.lane.count.running += 1;
                let (machine, lease) = (claim.machine.clone(), claim.lease);
                let run = Run { machine, lease, attempt: job.attempts };
                self.draft.put(keys::running(self.queue, job.id), encode(&run));
            }
            JobState::Done { at, .. }
            | JobState::DeadLetter { at, .. }
            | JobState::Cancelled { at } => {
                self.lane.count.ended += 1;
                let until = *at + job.retention;
                self.draft.put(keys::ended(until, self.queue, job.id), Bytes::new());
                if let Some(deadline) = job.deadline {
                    self.draft.delete(keys::due(deadline, self.queue, job.id));
                }
            }
        }
        self.draft.put(keys::job(job.id), encode(&stored));
        self.lane.jobs.insert(stored.job.id, Some(stored));
    }
}

/// Exponential with jitter: between half and all of `initial * 2^(attempts - 1)`, at most `max`. The jitter keeps jobs
/// that failed together from coming back together.
fn back_off(retry: &RetryPolicy, attempts: u32, random: u64) -> Duration {
    let factor = 1u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
    let whole = retry.backoff_initial.saturating_mul(factor).min(retry.backoff_max);
    let half = whole / 2;
    // 2^32 steps are fine enough for any wait.
    let share = (random >> 32) as f64 / f64::from(u32::MAX);
    half + half.mul_f64(share)
}

/// The beginning of a text, cut between characters.
fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(FAILURE_BYTES_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_up_to_its_bound_and_never_vanishes() {
        let retry = RetryPolicy {
            backoff_initial: Duration::from_millis(200),
            backoff_max: Duration::from_secs(30),
            ..RetryPolicy::default()
        };
        let check = |attempts, random, expect_ms| {
            let wait = back_off(&retry, attempts, random);
            assert_eq!(wait.as_millis(), expect_ms, "{attempts} {random}");
        };
        check(1, 0, 100);
        check(1, u64::MAX, 200);
        check(2, u64::MAX, 400);
        check(9, u64::MAX, 30_000);
        check(100, 0, 15_000);
    }

    #[test]
    fn texts_are_cut_between_characters() {
        let text = "\u{e9}".repeat(FAILURE_BYTES_MAX);
        assert_eq!(cut(&text).len(), FAILURE_BYTES_MAX);
        assert_eq!(cut("x\u{e9}".repeat(FAILURE_BYTES_MAX).as_str()).len(), FAILURE_BYTES_MAX);
        assert_eq!(cut("short"), "short");
    }
}
