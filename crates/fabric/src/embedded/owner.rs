//! The thread that owns the store: everything that changes goes through it, in batches.
//!
//! It takes what waits in its inbox, applies it in one SQLite transaction, commits, tells the watchers, and has the
//! answers sent: at once, or when the [log](super::log) is on the disk. There is no waiting for a batch to fill: while
//! one commit runs, the next batch gathers by itself. A lone writer is answered after its own commit, sixty-four writers
//! share one.

use super::database::{Database, Failure};
use super::history::History;
use super::leases::Leases;
use super::log::{Log, Syncing};
use crate::state::{
    Batch, Durability, Event, KeySpan, LeaseId, LeaseStatus, Revision, StateError, Txn, TxnReply,
    Watch, WatchFrom,
};
use std::fs::File;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Requests in one commit: the first of them waits for the last, some 5 ms at most.
const BATCH_REQUESTS_MAX: usize = 256;

/// Bytes in one commit, after which no more requests are added.
const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Where an answer goes.
pub(super) type Answer<T> = oneshot::Sender<Result<T, StateError>>;

/// What the owner is asked for.
pub(super) enum Request {
    Txn { txn: Txn, answer: Answer<TxnReply> },
    Revoke { lease: LeaseId, answer: Answer<()> },
    Grant { ttl: Duration, answer: Answer<LeaseId> },
    KeepAlive { lease: LeaseId, answer: Answer<Duration> },
    TimeToLive { lease: LeaseId, answer: Answer<LeaseStatus> },
    Watch { span: KeySpan, from: WatchFrom, answer: Answer<Watch> },
    Compact { revision: Revision, answer: Answer<()> },
    Close { answer: Answer<()> },
}

/// A request and its place in the bounded inbox, given back when it is answered.
pub(super) struct Envelope {
    pub(super) request: Request,
    pub(super) place: OwnedSemaphorePermit,
}

/// A change that waits for the commit.
enum Write {
    Txn {
        txn: Txn,
        answer: Answer<TxnReply>,
    },
    /// A lease whose holder ends it.
    Revoke {
        lease: LeaseId,
        answer: Answer<()>,
    },
    /// A lease that has run out.
    Expire {
        lease: LeaseId,
    },
}

/// What a write will be answered.
enum Outcome {
    Txn(TxnReply),
    Ended,
    Refused(StateError),
}

pub(super) struct Owner {
    database: Database,
    log: Log,
    /// Held as long as the store is open; the other processes find it locked.
    _lock: File,
    revision: Revision,
    leases: Leases,
    history: History,
    /// Why nothing can be written any more in this process, once that is so.
    broken: Option<String>,
}

impl Owner {
    /// Takes the store over, and ends the leases that its last process left.
    pub(super) fn new(
        database: Database,
        lock: File,
        history: impl FnOnce(Revision) -> History,
    ) -> Result<(Self, Log, Syncing), StateError> {
        let failed = |failure| refusal(failure, &database);
        let revision = database.revision().map_err(failed)?;
        let mut events = Vec::new();
        database.begin().map_err(failed)?;
        database.delete_all_leased(&mut events).map_err(failed)?;
        let next = if events.is_empty() { revision } else { revision.next() };
        database.set_revision(next).map_err(failed)?;
        database.commit().map_err(failed)?;
        let unopened = |error: std::io::Error| StateError::Open {
            path: database.path().to_path_buf(),
            why: format!("its log: {error}"),
        };
        let (log, syncing) = Log::open(database.path(), next).map_err(unopened)?;
        let mut history = history(revision);
        if !events.is_empty() {
            history.publish(Batch { revision: next, events });
        }
        let leases = Leases::default();
        let handle = log.clone();
        let owner =
            Self { database, log, _lock: lock, revision: next, leases, history, broken: None };
        Ok((owner, handle, syncing))
    }

    /// Serves until it is told to close or all handles are gone.
    pub(super) fn run(mut self, inbox: &Receiver<Envelope>) {
        let closing = loop {
            let first = match self.leases.next_deadline() {
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => inbox.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            let batch = match first {
                Ok(first) => gather(first, inbox),
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => break None,
            };
            if let Some(answer) = self.serve(batch) {
                break Some(answer);
            }
        };
        if let Err(failure) = self.database.checkpoint() {
            // The log stays beside the database and is read at the next opening.
            tracing::debug!(?failure, "no checkpoint at closing");
        }
        drop(self);
        if let Some(answer) = closing {
            let _ = answer.send(Ok(()));
        }
    }

    /// One round: what changes, then what only looks. Returns where to report the closing, if that was asked.
    fn serve(&mut self, batch: Vec<Envelope>) -> Option<Answer<()>> {
        let now = Instant::now();
        let mut places = Vec::with_capacity(batch.len());
        let mut writes = Vec::with_capacity(batch.len());
        let mut after = Vec::new();
        for Envelope { request, place } in batch {
            places.push(place);
            match request {
                Request::Txn { txn, answer } => writes.push(Write::Txn { txn, answer }),
                Request::Revoke { lease, answer } => writes.push(Write::Revoke { lease, answer }),
                Request::Grant { ttl, answer } => {
                    let _ = answer.send(Ok(self.leases.grant(ttl, now)));
                }
                // Before expiry is looked at: what waited here while a commit ran was in time.
                Request::KeepAlive { lease, answer } => {
                    let _ = answer.send(self.leases.keep_alive(lease, now));
                }
                other => after.push(other),
            }
        }
        writes.extend(self.leases.expired(now).into_iter().map(|lease| Write::Expire { lease }));
        self.write(writes, now);
        let mut closing = None;
        for request in after {
            closing = self.look(request, now).or(closing);
        }
        closing
    }

    /// Requests that change nothing durable; they see all writes of their round.
    fn look(&mut self, request: Request, now: Instant) -> Option<Answer<()>> {
        match request {
            Request::TimeToLive { lease, answer } => {
                let _ = answer.send(self.time_to_live(lease, now));
            }
            Request::Watch { span, from, answer } => {
                let _ = answer.send(self.history.watch(span, from, self.revision));
            }
            Request::Compact { revision, answer } => {
                let _ = answer.send(self.history.compact(revision, self.revision));
            }
            Request::Close { answer } => return Some(answer),
            Request::Txn { .. }
            | Request::Revoke { .. }
            | Request::Grant { .. }
            | Request::KeepAlive { .. } => unreachable!("served before"),
        }
        None
    }

    fn time_to_live(&self, lease: LeaseId, now: Instant) -> Result<LeaseStatus, StateError> {
        let (granted, remaining) = self.leases.status(lease, now)?;
        let keys =
            self.database.leased_keys(lease).map_err(|failure| refusal(failure, &self.database))?;
        Ok(LeaseStatus { granted, remaining, keys })
    }

    /// Commits the writes together. If there is no space for all of them, each is tried alone, because one that
    /// frees space, or needs little, must not fail with one that needs much.
    fn write(&mut self, writes: Vec<Write>, now: Instant) {
        if writes.is_empty() {
            return;
        }
        if let Some(why) = self.broken.as_deref().or(self.log.broken()) {
            let error = StateError::Unavailable { why: why.to_owned() };
            return self.refuse(writes, &error, now);
        }
        match self.commit(&writes, now) {
            Ok(outcomes) => self.answer(writes, outcomes),
            Err(CommitFailure::Before(Failure::Full)) if writes.len() > 1 => {
                for write in &writes {
                    if let Write::Revoke { lease, .. } = write {
                        self.leases.spare(*lease);
                    }
                }
                for write in writes {
                    self.write(vec![write], now);
                }
            }
            Err(CommitFailure::Before(failure)) => {
                let error = refusal(failure, &self.database);
                self.refuse(writes, &error, now);
            }
            Err(CommitFailure::During(why)) => {
                // What reached the disk cannot be known any more. The next opening reads it from there.
                tracing::error!(%why, "the state could not be committed; it stays closed to writing");
                self.broken = Some(format!("committing failed before: {why}"));
                self.refuse(writes, &StateError::Unknown { why }, now);
            }
        }
    }

    fn commit(&mut self, writes: &[Write], now: Instant) -> Result<Vec<Outcome>, CommitFailure> {
        let applied = self.database.begin().and_then(|()| self.apply(writes, now));
        let (outcomes, batches, revision) = match applied {
            Ok(applied) => applied,
            Err(failure) => {
                self.database.rollback();
                return Err(CommitFailure::Before(failure));
            }
        };
        match self.database.commit() {
            Ok(()) => {}
            Err(Failure::Full) => {
                self.database.rollback();
                return Err(CommitFailure::Before(Failure::Full));
            }
            Err(failure) => {
                self.database.rollback();
                return Err(CommitFailure::During(refusal(failure, &self.database).to_string()));
            }
        }
        self.revision = revision;
        for batch in batches {
            self.history.publish(batch);
        }
        Ok(outcomes)
    }

    /// Applies the writes in the open transaction: what to answer, what changed, and the last revision.
    fn apply(
        &mut self,
        writes: &[Write],
        now: Instant,
    ) -> Result<(Vec<Outcome>, Vec<Batch>, Revision), Failure> {
        let mut revision = self.revision;
        let mut outcomes = Vec::with_capacity(writes.len());
        let mut batches = Vec::with_capacity(writes.len());
        for write in writes {
            let mut events: Vec<Event> = Vec::new();
            let outcome = match self.apply_one(write, revision, now, &mut events) {
                Err(Failure::Refused(error)) => Outcome::Refused(error),
                other => other?,
            };
            outcomes.push(outcome);
            if !events.is_empty() {
                revision = revision.next();
                batches.push(Batch { revision, events });
            }
        }
        self.database.set_revision(revision)?;
        Ok((outcomes, batches, revision))
    }

    fn apply_one(
        &mut self,
        write: &Write,
        revision: Revision,
        now: Instant,
        events: &mut Vec<Event>,
    ) -> Result<Outcome, Failure> {
        match write {
            Write::Txn { txn, .. } => {
                let lives = |lease| self.leases.check(lease, now);
                self.database.apply(txn, revision, lives, events).map(Outcome::Txn)
            }
            Write::Revoke { lease, .. } => {
                self.leases.check(*lease, now).map_err(Failure::Refused)?;
                self.leases.end(*lease);
                self.database.delete_leased(*lease, events).map(|()| Outcome::Ended)
            }
            Write::Expire { lease } => {
                self.database.delete_leased(*lease, events).map(|()| Outcome::Ended)
            }
        }
    }

    /// Answers those who are content with a commit; the others when it is durable.
    fn answer(&mut self, writes: Vec<Write>, outcomes: Vec<Outcome>) {
        for (write, outcome) in writes.into_iter().zip(outcomes) {
            match (write, outcome) {
                (Write::Txn { txn, answer }, Outcome::Txn(reply)) => match txn.durability {
                    Durability::Soon => drop(answer.send(Ok(reply))),
                    Durability::Now => self.answer_durable(answer, reply),
                },
                (Write::Txn { answer, .. }, Outcome::Refused(error)) => {
                    drop(answer.send(Err(error)));
                }
                (Write::Revoke { lease, answer }, Outcome::Ended) => {
                    self.leases.remove(lease);
                    self.answer_durable(answer, ());
                }
                (Write::Revoke { answer, .. }, Outcome::Refused(error)) => {
                    let _ = answer.send(Err(error));
                }
                (Write::Expire { lease }, _) => self.leases.remove(lease),
                (Write::Txn { .. }, Outcome::Ended) | (Write::Revoke { .. }, Outcome::Txn(_)) => {
                    unreachable!("an outcome is of the kind of its write")
                }
            }
        }
    }

    fn answer_durable<T: Send + 'static>(&self, answer: Answer<T>, reply: T) {
        self.log.when_synced(self.revision, |outcome| drop(answer.send(outcome.map(|()| reply))));
    }

    fn refuse(&mut self, writes: Vec<Write>, error: &StateError, now: Instant) {
        for write in writes {
            match write {
                Write::Txn { answer, .. } => drop(answer.send(Err(error.clone()))),
                Write::Revoke { lease, answer } => {
                    self.leases.spare(lease);
                    let _ = answer.send(Err(error.clone()));
                }
                Write::Expire { lease } => self.leases.retry(lease, now),
            }
        }
    }
}

/// When a commit failed.
enum CommitFailure {
    /// Before anything could be seen.
    Before(Failure),
    /// While the log was written.
    During(String),
}

fn gather(first: Envelope, inbox: &Receiver<Envelope>) -> Vec<Envelope> {
    let weight = |envelope: &Envelope| match &envelope.request {
        Request::Txn { txn, .. } => txn.bytes(),
        _ => 0,
    };
    let mut bytes = weight(&first);
    let mut batch = vec![first];
    while batch.len() < BATCH_REQUESTS_MAX && bytes < BATCH_BYTES_MAX {
        let Ok(next) = inbox.try_recv() else { break };
        bytes += weight(&next);
        batch.push(next);
    }
    batch
}

/// A failure in the words of the interface. Nothing has happened.
pub(super) fn refusal(failure: Failure, database: &Database) -> StateError {
    match failure {
        Failure::Refused(error) => error,
        Failure::Full => StateError::DiskFull,
        Failure::Corrupt(what) => StateError::Corrupt { path: database.path().to_path_buf(), what },
        Failure::Other(why) => StateError::Unavailable { why },
    }
}
