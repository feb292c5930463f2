//! The truth: keys with revisions, transactions, watches and leases, in etcd's data model.
//!
//! Every change of the store has a [`Revision`], one number for the whole store that only grows. A transaction
//! ([`Txn`]) compares, then either changes or does something else, as one step; all its changes share one
//! revision. A [`Watch`] sees every revision that touches its keys, in order and whole. A lease is a time to
//! live that keys hang on: when it runs out, they are deleted in one revision that watchers see.
//!
//! Reads and transactions are linearizable: what was acknowledged before a call began is seen by it. There is no
//! reading of the past; a list is read page by page, each page at the revision it reports.
//!
//! This interface never decides anything and knows no nouns of the product. The implementations are
//! [`EmbeddedState`](crate::EmbeddedState) and, for several machines, an etcd client; both pass
//! [`conformance`](crate::conformance).

mod error;
mod key;
mod txn;
mod watch;

pub use error::StateError;
pub use key::{KEY_BYTES_MAX, Key, KeySpan};
pub use txn::{
    Compare, Durability, Entry, Op, OpReply, Query, RANGE_BYTES_MAX, RangeReply, Relation,
    TXN_BYTES_MAX, TXN_OPS_MAX, Target, Txn, TxnReply, VALUE_BYTES_MAX,
};
pub use watch::{Batch, Event, Watch, WatchFrom};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

/// A point in the history of the whole store. Zero is before the first change.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(u64);

impl Revision {
    /// Before the first change; also the creation and modification revision of a key that does not exist.
    pub const ZERO: Self = Self(0);

    /// From its number, at most `i64::MAX`.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The revision after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names a lease; 1 to `i64::MAX`. Never given twice by one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(NonZeroU64);

impl LeaseId {
    /// From its number; `None` for 0 and above `i64::MAX`.
    pub const fn new(number: u64) -> Option<Self> {
        if number > i64::MAX as u64 {
            return None;
        }
        match NonZeroU64::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What is known of a living lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseStatus {
    /// The time to live it was granted.
    pub granted: Duration,
    /// What is left of it, unless it is kept alive.
    pub remaining: Duration,
    /// The keys that hang on it, in order.
    pub keys: Vec<Key>,
}

/// A store of keys. Handles are shared as `Arc<dyn State>`.
///
/// # Cancel safety
/// A dropped call may or may not have happened, like one that ended in [`StateError::Unknown`]. It never happens
/// in part.
#[async_trait]
pub trait State: Send + Sync + fmt::Debug + 'static {
    /// Reads the entries of a span, in key order. A page may end before its limit, with `more` set, when it holds
    /// [`RANGE_BYTES_MAX`] or more.
    ///
    /// # Errors
    /// [`StateError::Invalid`] for a limit of 0, and whatever stops the store from answering.
    async fn range(&self, query: Query) -> Result<RangeReply, StateError>;

    /// Compares and changes in one step. All compares hold: the `then` list runs; otherwise the `otherwise` list.
    ///
    /// # Errors
    /// [`StateError::Invalid`] beyond the bounds of [`Txn`], [`StateError::LeaseNotFound`] for a put under a lease
    /// that is gone, [`StateError::DiskFull`]: refused, nothing has happened. [`StateError::Unknown`]: it may or
    /// may not have happened.
    async fn txn(&self, txn: Txn) -> Result<TxnReply, StateError>;

    /// Waits until everything up to `revision`, which has been seen, outlasts a loss of power. What was written with
    /// [`Durability::Now`] does so once it was answered.
    ///
    /// # Errors
    /// [`StateError::Unknown`]: it may or may not outlast one.
    async fn sync(&self, revision: Revision) -> Result<(), StateError>;

    /// Follows the changes of a span. When this returns, the watch is in place: no later change is missed.
    ///
    /// # Errors
    /// [`StateError::Compacted`] when the history does not reach back to where it should begin.
    async fn watch(&self, span: KeySpan, from: WatchFrom) -> Result<Watch, StateError>;

    /// Forgets the history up to and including `revision`: watches can begin after it only.
    ///
    /// # Errors
    /// [`StateError::Compacted`] when that has been forgotten already; [`StateError::Invalid`] for a revision that
    /// has not been.
    async fn compact(&self, revision: Revision) -> Result<(), StateError>;

    /// Grants a lease that lives `ttl` after this call or its last keeping alive. Between 1 s and 1 day; an
    /// implementation may round up to whole seconds, and the embedded one takes less than 1 s too.
    ///
    /// # Errors
    /// [`StateError::Invalid`] outside the range.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StateError>;

    /// Lets a lease live its full time again, and returns that time. Count it from *before* the call.
    ///
    /// # Errors
    /// [`StateError::LeaseNotFound`] when it has run out: it does not come back.
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StateError>;

    /// Ends a lease and deletes its keys in one revision.
    ///
    /// # Errors
    /// [`StateError::LeaseNotFound`] when it has ended already.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StateError>;

    /// What is left of a lease, and what hangs on it.
    ///
    /// # Errors
    /// [`StateError::LeaseNotFound`] when it has ended.
    async fn time_to_live(&self, lease: LeaseId) -> Result<LeaseStatus, StateError>;

    /// Reads one key.
    ///
    /// # Errors
    /// As [`State::range`].
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StateError> {
        let reply = self.range(Query::one(key.clone())).await?;
        Ok(reply.entries.into_iter().next())
    }

    /// Writes one key, whatever it was, without a lease.
    ///
    /// # Errors
    /// As [`State::txn`].
    async fn put(&self, key: Key, value: Bytes) -> Result<Revision, StateError> {
        let reply = self.txn(Txn::new().then(Op::put(key, value))).await?;
        Ok(reply.revision)
    }

    /// Deletes every key of a span and says how many there were.
    ///
    /// # Errors
    /// As [`State::txn`].
    async fn delete(&self, span: KeySpan) -> Result<u64, StateError> {
        let reply = self.txn(Txn::new().then(Op::Delete(span))).await?;
        match reply.replies.first() {
            Some(OpReply::Deleted(count)) => Ok(*count),
            _ => Err(StateError::Protocol { what: "a delete was not answered with a count" }),
        }
    }
}
