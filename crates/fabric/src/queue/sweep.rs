//! What time does to a queue, and what death does: deadlines, back-offs, retention, lost claimants; and the check that
//! everything is where it should be.
//!
//! A sweep lists what seems due and asks the engine for each job; the engine looks again, so that a sweep that runs
//! twice, late, or in two processes at once does nothing wrong.

use super::engine::parse;
use super::keys::{self, QueueName, Side};
use super::plan::{Action, Reply};
use super::stored::{Count, Run, StoredJob, encode};
use super::{Attempt, Failed, Failure, Queue, QueueError};
use crate::blob::{BlobSweep, blob_references, referenced_blob};
use crate::state::{Compare, Key, KeySpan, LeaseId, Op, Query, Revision, Txn};
use skein_model::{JobId, JobState, MachineId, Timestamp};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Jobs that one sweep handles of each kind, so that it ends: the next goes on at once.
const SWEEP_MAX: usize = 2000;

/// Requests of a sweep that are under way at a time: they share transactions, and leave room in the inbox for others.
const AT_A_TIME: usize = 256;

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Jobs whose back-off had passed: due again.
    pub promoted: u64,
    /// Jobs whose deadline had passed: given up.
    pub expired: u64,
    /// Jobs whose claimant's lease had ended: back in the queue.
    pub requeued: u64,
    /// The same, but with no attempt left: given up.
    pub lost: u64,
    /// Ended jobs that were forgotten.
    pub purged: u64,
    /// When the next back-off, deadline or retention passes; none if there is none, `now` if this sweep stopped at its
    /// bound.
    pub next: Option<Timestamp>,
}

/// What a check of the whole queue found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audit {
    /// Jobs looked at.
    pub jobs: u64,
    /// Everything that is not as it should be, at most 1,000 lines.
    pub faults: Vec<String>,
}

impl Audit {
    fn fault(&mut self, text: String) {
        // More says no more.
        if self.faults.len() < 1000 {
            self.faults.push(text);
        }
    }
}

impl Queue {
    /// Does what is due at `now`: back-offs and deadlines that have passed, claims whose lease has ended, ended jobs
    /// past their retention. Call it at `next`, after [`Queue::wait_put_off`], and at least each second, because the
    /// end of a lease is not foreseen. Blobs are swept by [`Queue::sweep_blobs`].
    ///
    /// # Errors
    /// The state's failure; what was done before stays done.
    pub async fn sweep(&self, now: Timestamp) -> Result<Swept, QueueError> {
        let mut swept = Swept::default();
        self.sweep_orphans(now, &mut swept).await?;
        swept.expired = self.sweep_index(keys::DUE, now, |id| Action::Expire { id }).await?;
        swept.promoted = self.sweep_index(keys::LATE, now, |id| Action::Promote { id }).await?;
        swept.purged = self.sweep_index(keys::ENDED, now, |id| Action::Purge { id }).await?;
        for root in [keys::DUE, keys::LATE, keys::ENDED] {
            let first = Query::span(keys::below(root)).keys_only().limit(1);
            let found = self.state.range(first).await?;
            let at = found.entries.first().and_then(|entry| keys::time_of(root, &entry.key));
            swept.next = at.map(|at| at.max(now)).into_iter().chain(swept.next).min();
        }
        // A waker or a woken may have died; those who wait are reminded.
        for (queue, count) in self.counts().await? {
            if count.waiting > 0 {
                self.wakeups.wake_one(&queue);
            }
        }
        Ok(swept)
    }

    /// The jobs of a time index up to `now`, each with the action; how many had anything to be done.
    async fn sweep_index(
        &self,
        root: &str,
        now: Timestamp,
        action: impl Fn(JobId) -> Action,
    ) -> Result<u64, QueueError> {
        let query = Query::span(keys::up_to(root, now)).keys_only().limit(SWEEP_MAX);
        let found = self.state.range(query).await?;
        let jobs = found.entries.iter().filter_map(|entry| keys::queue_and_job(&entry.key));
        let replies = self.each(jobs.map(|(queue, id)| (queue, action(id))).collect(), now).await?;
        Ok(replies.iter().filter(|reply| matches!(reply, Reply::Swept(true))).count() as u64)
    }

    /// Sends all to the engine and waits for all; the first failure is returned after the others are answered.
    async fn each(
        &self,
        actions: Vec<(QueueName, Action)>,
        now: Timestamp,
    ) -> Result<Vec<Reply>, QueueError> {
        let mut replies = Vec::with_capacity(actions.len());
        let mut actions = actions.into_iter().peekable();
        while actions.peek().is_some() {
            let mut answers = Vec::with_capacity(AT_A_TIME);
            for (queue, action) in actions.by_ref().take(AT_A_TIME) {
                answers.push(self.send(queue, now, action, None).await?);
            }
            let mut failure = None;
            for answer in answers {
                match self.durable(answer).await {
                    Ok(reply) => replies.push(reply),
                    // Forgotten since it was listed.
                    Err(QueueError::NotFound { .. }) => {}
                    Err(error) => failure = Some(error),
                }
            }
            if let Some(error) = failure {
                return Err(error);
            }
        }
        Ok(replies)
    }

    async fn sweep_orphans(&self, now: Timestamp, swept: &mut Swept) -> Result<(), QueueError> {
        // First the claims, then the claimants: a claim is made only while its claimant's key exists, and the key of a
        // lease never comes back. So a claimant that is missing now is gone for good.
        let runs = self.runs().await?;
        let living = self.all_keys(keys::below(keys::CLAIMANTS)).await?;
        let living: HashSet<u64> =
            living.iter().filter_map(keys::lease_of).map(LeaseId::get).collect();
        let orphans = runs.into_iter().filter(|(_, run)| !living.contains(&run.lease));
        let message = "the agent of its node was lost";
        let (requeued, lost) = self.requeue(orphans.collect(), message, now).await?;
        (swept.requeued, swept.lost) = (requeued, lost);
        Ok(())
    }

    /// Running jobs, with who works on them.
    async fn runs(&self) -> Result<Vec<(Attempt, Run)>, QueueError> {
        let mut rest = keys::below(keys::RUNNING);
        let mut runs = Vec::new();
        loop {
            let found = self.state.range(Query::span(rest.clone())).await?;
            for entry in &found.entries {
                let run: Run = parse(entry)?;
                if let Some((queue, job)) = keys::queue_and_job(&entry.key) {
                    runs.push((Attempt { job, queue, number: run.attempt }, run));
                }
            }
            match found.entries.last() {
                Some(last) if found.more => rest = rest.after(&last.key),
                _ => return Ok(runs),
            }
        }
    }

    /// Fails attempts as lost: how many jobs are back in the queue, and how many are given up.
    async fn requeue(
        &self,
        attempts: Vec<(Attempt, Run)>,
        message: &str,
        now: Timestamp,
    ) -> Result<(u64, u64), QueueError> {
        let fail = |(attempt, _): (Attempt, Run)| {
            let failure = Failure::Lost { message: message.to_owned() };
            let (id, attempt_number) = (attempt.job, attempt.number);
            let action = Action::Fail { id, attempt: attempt_number, failure, random: 0 };
            (attempt.queue, action)
        };
        let replies = self.each(attempts.into_iter().map(fail).collect(), now).await?;
        let back = |reply: &&Reply| matches!(reply, Reply::Failed(Failed::Requeued { .. }));
        let lost = |reply: &&Reply| matches!(reply, Reply::Failed(Failed::DeadLetter { .. }));
        let requeued = replies.iter().filter(back).count() as u64;
        Ok((requeued, replies.iter().filter(lost).count() as u64))
    }

    /// Puts back what a machine was working on when it died; `message` says what happened to it. How many jobs are
    /// back in their queue, and how many are given up because no attempt is left.
    ///
    /// # Errors
    /// The state's failure; call it again then.
    pub async fn requeue_lost(
        &self,
        machine: &MachineId,
        message: &str,
        now: Timestamp,
    ) -> Result<(u64, u64), QueueError> {
        let mut runs = self.runs().await?;
        runs.retain(|(_, run)| run.machine == *machine);
        self.requeue(runs, message, now).await
    }

    /// Gives up the jobs of a service that was there no more at `removed_at`: how many there were. Those accepted later
    /// belong to a new service of that name. Refuse new ones before.
    ///
    /// # Errors
    /// The state's failure; call it again then.
    pub async fn remove_service(
        &self,
        queue: &QueueName,
        removed_at: Timestamp,
    ) -> Result<u64, QueueError> {
        let jobs = self.all_keys(KeySpan::prefix(&format!("{}{queue}/", keys::ALL))?).await?;
        let remove = |key: &Key| {
            let (queue, id) = keys::listed(key)?;
            Some((queue, Action::Remove { id }))
        };
        let replies = self.each(jobs.iter().filter_map(remove).collect(), removed_at).await?;
        Ok(replies.iter().filter(|reply| matches!(reply, Reply::Swept(true))).count() as u64)
    }

    /// Removes the blobs that nothing refers to. Cannot race a submission; see [`BlobStore`](crate::BlobStore).
    ///
    /// # Errors
    /// [`QueueError::Blob`].
    pub async fn sweep_blobs(&self) -> Result<BlobSweep, QueueError> {
        let referenced = async {
            let mut rest = blob_references()?;
            let mut blobs = HashSet::new();
            loop {
                let found = self.state.range(Query::span(rest.clone()).keys_only()).await?;
                blobs.extend(found.entries.iter().filter_map(|e| referenced_blob(&e.key)));
                match found.entries.last() {
                    Some(last) if found.more => rest = rest.after(&last.key),
                    _ => return Ok(blobs),
                }
            }
        };
        Ok(self.blobs.sweep(referenced).await?)
    }

    /// The stored counts of all queues.
    async fn counts(&self) -> Result<Vec<(QueueName, Count)>, QueueError> {
        let mut rest = keys::below(keys::COUNTS);
        let mut counts = Vec::new();
        loop {
            let found = self.state.range(Query::span(rest.clone())).await?;
            for entry in &found.entries {
                if let Some(queue) = keys::queue_of_count(&entry.key) {
                    counts.push((queue, parse(entry)?));
                }
            }
            match found.entries.last() {
                Some(last) if found.more => rest = rest.after(&last.key),
                _ => return Ok(counts),
            }
        }
    }

    /// The stored count of a queue.
    pub(super) async fn count(&self, queue: &QueueName) -> Result<Count, QueueError> {
        let entry = self.state.get(&keys::count(queue)).await?;
        Ok(entry.as_ref().map(parse).transpose()?.unwrap_or_default())
    }

    /// Counts the jobs of each queue anew by the index keys, and corrects a count that is wrong.
    pub(super) async fn recount(&self) -> Result<(), QueueError> {
        let begin = self.state.range(Query::span(keys::below(keys::COUNTS)).limit(1)).await?;
        let counted = self.counted().await?;
        let stored = self.queues().await?;
        for queue in counted.keys().chain(&stored).collect::<BTreeSet<_>>() {
            let right = counted.get(queue).cloned().unwrap_or_default();
            let entry = self.state.get(&keys::count(queue)).await?;
            let revision = entry.as_ref().map_or(Revision::ZERO, |entry| entry.mod_revision);
            // Changed since: another process works on it, and the count may be of a later moment than the keys.
            if revision > begin.revision {
                continue;
            }
            let found: Count = entry.as_ref().map(parse).transpose()?.unwrap_or_default();
            if found.agrees(&right) {
                continue;
            }
            tracing::warn!(%queue, ?found, ?right, "a queue's count was wrong");
            let right = Count { next: found.next.max(right.next), ..right };
            let key = keys::count(queue);
            let txn = Txn::new()
                .when(Compare::unchanged(key.clone(), revision))
                .then(Op::put(key, encode(&right)));
            self.state.txn(txn).await?;
        }
        Ok(())
    }

    /// The counts that the index keys amount to.
    async fn counted(&self) -> Result<BTreeMap<QueueName, Count>, QueueError> {
        let mut counts: BTreeMap<QueueName, Count> = BTreeMap::new();
        for root in [keys::WAITING, keys::LATE, keys::RUNNING, keys::ENDED] {
            for key in self.all_keys(keys::below(root)).await? {
                let Some((queue, last)) = keys::queue_and_last(&key) else { continue };
                let count = counts.entry(queue).or_default();
                match root {
                    keys::WAITING => {
                        count.waiting += 1;
                        let sequence = u64::from_str_radix(last, 16).unwrap_or(0);
                        count.next = count.next.max(sequence + 1);
                    }
                    keys::LATE => count.late += 1,
                    keys::RUNNING => count.running += 1,
                    _ => count.ended += 1,
                }
            }
        }
        Ok(counts)
    }

    /// Checks every job, every index key and every count against each other. Reads everything, in pages: call it while
    /// nothing changes the queue, or its findings may be only differences in time.
    ///
    /// # Errors
    /// The state's failure.
    pub async fn audit(&self) -> Result<Audit, QueueError> {
        let mut audit = Audit::default();
        let mut expected: BTreeSet<Key> = BTreeSet::new();
        let mut counts: BTreeMap<QueueName, Count> = BTreeMap::new();
        let mut rest = keys::below(keys::JOBS);
        loop {
            let found = self.state.range(Query::span(rest.clone())).await?;
            for entry in &found.entries {
                let stored: StoredJob = parse(entry)?;
                audit.jobs += 1;
                tally(counts.entry(stored.queue()).or_default(), &stored);
                expect_keys(&stored, &mut expected);
            }
            match found.entries.last() {
                Some(last) if found.more => rest = rest.after(&last.key),
                _ => break,
            }
        }
        let mut found = BTreeSet::new();
        for span in [KeySpan::prefix("q/")?, blob_references()?] {
            found.extend(self.all_keys(span).await?);
        }
        found.retain(is_of_a_job);
        for key in expected.difference(&found) {
            audit.fault(format!("{key} is missing"));
        }
        for key in found.difference(&expected) {
            audit.fault(format!("{key} belongs to no job in that state"));
        }
        for queue in counts.keys().cloned().chain(self.queues().await?).collect::<BTreeSet<_>>() {
            let (stored, right) = (self.count(&queue).await?, counts.get(&queue));
            let right = right.cloned().unwrap_or_default();
            if !stored.agrees(&right) || stored.next < right.next {
                audit.fault(format!("the count of {queue} is {stored:?}, and should be {right:?}"));
            }
        }
        Ok(audit)
    }
}

/// Whether the key is one of a job (not a count, not a claimant, not another's blob).
fn is_of_a_job(key: &Key) -> bool {
    let key = key.as_str();
    let own_blob = key.starts_with("blob/") && key.contains(&format!("/{}", keys::JOBS));
    let of_queue = key.starts_with("q/");
    own_blob || of_queue && !key.starts_with(keys::COUNTS) && !key.starts_with(keys::CLAIMANTS)
}

fn tally(count: &mut Count, stored: &StoredJob) {
    count.next = count.next.max(stored.sequence + 1);
    match &stored.job.state {
        JobState::Waiting { not_before: Timestamp::ZERO } => count.waiting += 1,
        JobState::Waiting { .. } => count.late += 1,
        JobState::Running { .. } => count.running += 1,
        JobState::Done { .. } | JobState::DeadLetter { .. } | JobState::Cancelled { .. } => {
            count.ended += 1;
        }
    }
}

/// The keys that a job in its state has.
fn expect_keys(stored: &StoredJob, expected: &mut BTreeSet<Key>) {
    let (queue, job) = (stored.queue(), &stored.job);
    expected.insert(keys::job(job.id));
    expected.insert(keys::all(&queue, job.id));
    expected.extend(job.token.as_ref().map(|token| keys::token(&queue, token)));
    let body = |side, body: &skein_model::BodyRef| match body.blob {
        Some(blob) => crate::blob::blob_reference(blob, &keys::blob_owner(job.id, side)).ok(),
        None => (body.bytes > 0).then(|| keys::body(job.id, side)),
    };
    expected.extend(body(Side::In, &job.payload));
    if let JobState::Done { result, .. } = &job.state {
        expected.extend(body(Side::Out, result));
    }
    expected.insert(match &job.state {
        JobState::Waiting { not_before: Timestamp::ZERO } => keys::waiting(&queue, stored.sequence),
        JobState::Waiting { not_before } => keys::late(*not_before, &queue, job.id),
        JobState::Running { .. } => keys::running(&queue, job.id),
        JobState::Done { at, .. }
        | JobState::DeadLetter { at, .. }
        | JobState::Cancelled { at } => keys::ended(*at + job.retention, &queue, job.id),
    });
    if job.state.ended_at().is_none() {
        expected.extend(job.deadline.map(|deadline| keys::due(deadline, &queue, job.id)));
    }
}
