//! What the queue's engine knows of one queue, and the transaction that it is building.
//!
//! **Invariant:** everything in a [`Lane`] was true at `revision`, the last write of the queue's count. Every change of
//! a queue writes its count, so a transaction that compares that revision is guarded against all others with one
//! comparison, and a lane is either right or found out.

use super::QueueName;
use super::keys;
use super::stored::{Count, StoredJob, TokenUse};
use crate::state::{Compare, Key, Op, Revision, TXN_BYTES_MAX, TXN_OPS_MAX, Txn};
use bytes::Bytes;
use skein_model::JobId;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Waiting jobs of one queue known by heart: several claims of the largest size.
pub(super) const WINDOW_MAX: usize = 1024;

/// Records and tokens of one queue known by heart: some MiB.
const KNOWN_MAX: usize = 4096;

/// One queue, as far as it is known.
#[derive(Debug)]
pub(super) struct Lane {
    /// Last write of the count; zero when there is none yet.
    pub(super) revision: Revision,
    pub(super) count: Count,
    /// The first waiting jobs, by sequence.
    pub(super) window: BTreeMap<u64, JobId>,
    /// Whether the window is all that waits.
    pub(super) whole: bool,
    /// Records that were read or written; `None`: known not to exist.
    pub(super) jobs: HashMap<JobId, Option<StoredJob>>,
    pub(super) tokens: HashMap<String, Option<TokenUse>>,
}

impl Lane {
    pub(super) fn new(revision: Revision, count: Count) -> Self {
        let (window, jobs, tokens) = Default::default();
        let whole = count.waiting == 0;
        Self { revision, count, window, whole, jobs, tokens }
    }

    /// A job begins to wait.
    pub(super) fn begins_to_wait(&mut self, sequence: u64, id: JobId) {
        let before_last = self.window.last_key_value().is_some_and(|(last, _)| sequence < *last);
        if self.whole || before_last {
            self.window.insert(sequence, id);
        }
        if self.window.len() > WINDOW_MAX {
            self.window.pop_last();
            self.whole = false;
        }
    }

    /// Forgets what is only convenient to know, when it has become much.
    pub(super) fn trim(&mut self) {
        if self.jobs.len() > KNOWN_MAX {
            self.jobs.clear();
        }
        if self.tokens.len() > KNOWN_MAX {
            self.tokens.clear();
        }
    }
}

/// A transaction in the making: the last word on each key, and what must hold.
#[derive(Debug, Default)]
pub(super) struct Draft {
    writes: BTreeMap<Key, Option<Bytes>>,
    bytes: usize,
    /// Keys that must not exist.
    missing: BTreeSet<Key>,
    /// Keys that must exist.
    exist: BTreeSet<Key>,
    /// The queues looked at, and whether they were changed.
    lanes: BTreeMap<QueueName, bool>,
}

impl Draft {
    pub(super) fn put(&mut self, key: Key, value: impl Into<Bytes>) {
        let value = value.into();
        self.bytes += key.as_bytes().len() + value.len();
        self.writes.insert(key, Some(value));
    }

    pub(super) fn delete(&mut self, key: Key) {
        self.bytes += 2 * key.as_bytes().len();
        self.writes.insert(key, None);
    }

    /// The key must not exist.
    pub(super) fn must_miss(&mut self, key: Key) {
        self.bytes += key.as_bytes().len();
        self.missing.insert(key);
    }

    /// Whether the key must not exist already.
    pub(super) fn misses(&self, key: &Key) -> bool {
        self.missing.contains(key)
    }

    /// The key must exist.
    pub(super) fn must_exist(&mut self, key: Key) {
        self.bytes += key.as_bytes().len();
        self.exist.insert(key);
    }

    /// The queue was looked at.
    pub(super) fn looks_at(&mut self, queue: &QueueName) {
        if !self.lanes.contains_key(queue) {
            self.lanes.insert(queue.clone(), false);
        }
    }

    /// The queue was changed.
    pub(super) fn changes(&mut self, queue: &QueueName) {
        self.lanes.insert(queue.clone(), true);
    }

    /// How many more operations fit, with the counts of the queues and one more queue.
    pub(super) fn room(&self) -> usize {
        let compares = self.missing.len() + self.exist.len() + self.lanes.len() + 1;
        let writes = self.writes.len() + self.lanes.len() + 1;
        TXN_OPS_MAX.saturating_sub(writes.max(compares))
    }

    /// How many more bytes fit, leaving some for the counts.
    pub(super) fn room_bytes(&self) -> usize {
        const COUNTS: usize = 32 * 1024;
        (TXN_BYTES_MAX - COUNTS).saturating_sub(self.bytes)
    }

    /// The queues that it concerns, and whether it changes them.
    pub(super) fn lanes(&self) -> &BTreeMap<QueueName, bool> {
        &self.lanes
    }

    /// The transaction. `lanes` holds every queue that it concerns.
    pub(super) fn into_txn(self, lanes: &HashMap<QueueName, Lane>) -> Txn {
        let mut txn = Txn::new();
        txn.compares.extend(self.missing.into_iter().map(Compare::missing));
        txn.compares.extend(self.exist.into_iter().map(Compare::exists));
        for (queue, changed) in self.lanes {
            let Some(lane) = lanes.get(&queue) else { continue };
            let key = keys::count(&queue);
            txn.compares.push(Compare::unchanged(key.clone(), lane.revision));
            if changed {
                txn.then.push(Op::put(key, super::stored::encode(&lane.count)));
            }
        }
        txn.then.extend(self.writes.into_iter().map(|(key, value)| match value {
            Some(value) => Op::Put { key, value, lease: None },
            None => Op::delete(&key),
        }));
        txn
    }
}
